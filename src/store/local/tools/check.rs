//! `replicator check`: whether a store that is not in use is whole, and what can be done if not.
//!
//! Opening a sled database writes to it: it cuts what it takes for the end of an interrupted
//! write. So everything is looked at in a copy, `DIR/check.tmp`, which is removed afterwards and
//! needs as much room as the store. Only a repair opens the store itself; it
//!
//! - sets tasks with damaged rows aside, as a start of the daemon does (`quarantine.rs`);
//! - takes what is left for all there is, and writes it into a fresh store (`rebuild.rs`);
//! - writes rows of `meta` anew that cannot be read, but for the version of the format.
//!
//! What is missing stays missing. The report says what is known of it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::store::local::database::{Database, open_copy, open_sled, unread};
use crate::store::local::directory::{self, Directory};
use crate::store::local::error::{Failure, OpenError, guarded};
use crate::store::local::integrity::commit_marker::{self, Marker, MarkerFile};
use crate::store::local::integrity::ledger::Ledger;
use crate::store::local::integrity::quarantine::{self, SetAside};
use crate::store::local::integrity::rebuild::Place;
use crate::store::local::integrity::scan;
use crate::store::local::integrity::sled_log;
use crate::store::local::keys::{self, Tree};
use crate::store::local::migrate::{self, Migrated};
use crate::store::local::recover::{self, OnMissing, Recovery};
use crate::store::local::{Settings, commit, fsync, rows};

const COPY: &str = "check.tmp";

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// The name of the store.
    pub store: String,
    /// The version of its format on disk.
    pub format: u32,
    /// The number of the last commit, where it can be read.
    pub commit: u64,
    /// Tasks that are whole.
    pub tasks: u64,
    /// The length of their values together, in bytes.
    pub value_bytes: u64,
    /// Dead letters among their deliveries.
    pub dead_letters: u64,
    /// Replicas that something is known of.
    pub replicas: u64,
    /// Idempotency keys.
    pub idempotency_keys: u64,
    /// Rows that a crash has left, which the next start removes: no damage.
    pub orphans: u64,
    /// Rows that were set aside before.
    pub quarantined_rows: u64,
    /// What is wrong, a sentence each.
    pub problems: Vec<String>,
    /// What could not be looked at, and is no damage.
    pub notes: Vec<String>,
    /// What a repair has set aside; `None` if there was none.
    pub repaired: Option<SetAside>,
}

/// Looks at a store; with `repair` brings a damaged one into order. With a repair the report is
/// on what was found before it.
///
/// # Errors
///
/// An [`OpenError`] if there is no store, or it is in use or in a newer format, or a repair fails.
/// What is wrong inside of the store is no error but in the report.
pub fn check(settings: &Settings, repair: bool) -> Result<Checked, OpenError> {
    let copied = Copied::make(settings)?;
    let examined = copied.examine(settings);
    copied.was_read(&settings.dir)?;
    let mut checked = examined?;
    if repair && !checked.problems.is_empty() {
        copied.is_the_newest(&settings.dir)?;
        fsync::check().map_err(|function| OpenError::Barrier { function })?;
        checked.repaired = Some(copied.repair(settings)?);
    }
    Ok(checked)
}

/// A locked data directory, and a copy of its store that is removed with this.
pub(in crate::store::local) struct Copied {
    directory: Directory,
    original: PathBuf,
    store: String,
    copy: PathBuf,
}

impl Drop for Copied {
    fn drop(&mut self) {
        // What cannot be removed now is removed by the next one.
        let _ = fs::remove_dir_all(&self.copy);
    }
}

impl Copied {
    pub(in crate::store::local) fn make(settings: &Settings) -> Result<Self, OpenError> {
        let dir = &settings.dir;
        let no_store = || OpenError::NoStore { dir: dir.clone() };
        if !dir.is_dir() {
            return Err(no_store());
        }
        let directory = Directory::lock(dir)?;
        // Not to be opened to find out: without a CURRENT, a person must say which it is.
        let original = directory.current(|_| Ok(true))?.ok_or_else(no_store)?;
        let store = original.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let copy = dir.join(COPY);
        if copy.exists() {
            fs::remove_dir_all(&copy).map_err(OpenError::io("remove", &copy))?;
        }
        let copied = Self { directory, original, store, copy };
        copy_dir(&copied.original, &copied.copy)
            .map_err(OpenError::io("copy the store to", &copied.copy))?;
        Ok(copied)
    }

    /// Whether all of the copy could be read since. If not, whatever was found of it means nothing.
    pub(in crate::store::local) fn was_read(&self, dir: &Path) -> Result<(), OpenError> {
        unread(&self.copy).map_err(OpenError::in_store(dir))
    }

    /// Refuses to repair a store where the newer one, which the commits went to, is still there: it
    /// would be removed as one that is not current.
    fn is_the_newest(&self, dir: &Path) -> Result<(), OpenError> {
        match commit_marker::read(dir)? {
            Marker::Commits { store: newer, .. }
                if directory::number(&newer) > directory::number(&self.store)
                    && dir.join(&newer).is_dir() =>
            {
                Err(OpenError::NewerStore { dir: dir.to_owned(), store: self.store.clone(), newer })
            }
            _ => Ok(()),
        }
    }

    /// Opens the copy, in the newest format.
    pub(in crate::store::local) fn open(
        &self,
        settings: &Settings,
    ) -> Result<(Database, u32), OpenError> {
        let dir = || OpenError::in_store(&settings.dir);
        let open = || {
            let db = open_copy(&self.copy, settings.cache_bytes)?;
            let format = migrate::version(&db.open_tree(Tree::Meta.name())?)?;
            Ok::<_, Failure>((db, format))
        };
        let (db, format) = guarded(open).map_err(dir())?;
        migrate_or_refuse(&db, settings)?;
        let database = || {
            if Ledger::load(&db.open_tree(Tree::Meta.name())?).is_ok_and(|row| row.is_some()) {
                return Database::new(db);
            }
            migrate::count_anew(&db)?;
            Database::new(db)
        };
        Ok((guarded::<_, Failure>(database).map_err(dir())?, format))
    }

    fn examine(&self, settings: &Settings) -> Result<Checked, OpenError> {
        let dir = &settings.dir;
        let mut checked = Checked {
            store: self.store.clone(),
            quarantined_rows: quarantine::rows_in(dir)
                .map_err(OpenError::io("read the quarantine in", dir))?,
            ..Checked::default()
        };
        // Before it is opened: sled begins to tidy up.
        let durable = commit_marker::read(dir)?.durable(&self.original);
        let log_is_whole =
            sled_log::is_whole(&self.copy, durable).map_err(OpenError::in_store(dir))?;
        self.examine_meta(dir, settings, &mut checked)?;
        self.was_read(dir)?;
        if checked.problems.iter().any(|problem| problem.contains("format_version")) {
            return Ok(checked);
        }
        let examine = || {
            let (database, format) = self.open(settings)?;
            let walk = || scan::walk(&database, &mut drop);
            let found = guarded(walk).map_err(OpenError::in_store(dir))?;
            Ok::<_, OpenError>((format, recover::gone(&database, &found), database.ledger(), found))
        };
        let (format, gone, (_, binds), found) = match examine() {
            Ok(examined) => examined,
            Err(OpenError::Database { why, .. }) => {
                checked.problems.push(format!("the database cannot be read: {why}"));
                return Ok(checked);
            }
            Err(OpenError::Damaged { damage, .. }) => {
                checked.problems.push(damage.to_string());
                return Ok(checked);
            }
            Err(error) => return Err(error),
        };
        checked.format = format;
        checked.tasks = found.tasks;
        checked.value_bytes = found.value_bytes;
        checked.dead_letters = found.dead_letters;
        checked.replicas = found.side_tables.replicas.len() as u64;
        checked.idempotency_keys = found.side_tables.idempotency.len() as u64;
        checked.orphans = found.orphans.len() as u64;
        checked.problems.extend(found.damaged.iter().map(ToString::to_string));
        checked.problems.extend(gone.map(|gone| gone.to_string()));
        if checked.problems.is_empty() && (!log_is_whole || found.returned) {
            let note = "the database's log is damaged, though all is there: the next start writes \
                        it into a fresh store";
            checked.notes.push(note.to_owned());
        }
        if !binds {
            let note = "the last settlements were cut by a crash, so rows cannot be counted";
            checked.notes.push(note.to_owned());
        }
        Ok(checked)
    }

    /// The rows of `meta`, and the commit marker; on the copy as it is.
    fn examine_meta(
        &self,
        dir: &Path,
        settings: &Settings,
        checked: &mut Checked,
    ) -> Result<(), OpenError> {
        let unreadable = || {
            let db = open_copy(&self.copy, settings.cache_bytes)?;
            let meta = db.open_tree(Tree::Meta.name())?;
            let mut unreadable = Vec::new();
            for key in META {
                if let Some(row) = meta.get(key)? {
                    unreadable.extend(rows::unseal(Tree::Meta, key, &row).err());
                }
            }
            let format = migrate::version(&meta).unwrap_or_default();
            let ledger = Ledger::load(&meta).unwrap_or_default();
            if ledger.is_none() && format >= 2 && unreadable.is_empty() {
                unreadable.push(rows::damage(Tree::Meta, keys::LEDGER, "is missing"));
            }
            Ok::<_, Failure>((unreadable, ledger.map(|ledger| ledger.number)))
        };
        // What keeps the database from being opened is told where it is opened next.
        let Ok((unreadable, number)) = guarded(unreadable) else {
            return Ok(());
        };
        let ledger_is_well = unreadable.iter().all(|damage| damage.key != keys::LEDGER);
        checked.problems.extend(unreadable.iter().map(ToString::to_string));
        checked.commit = number.unwrap_or_default();
        let marker_file = commit_marker::path(dir);
        let marker = commit_marker::read(dir)?;
        if marker.is_of_one_after(&self.original) {
            checked.problems.push(format!(
                "{} names a store that came after {}, which CURRENT names",
                marker_file.display(),
                self.store
            ));
        }
        match marker {
            Marker::Commits { store, number, .. } if store == self.store => {
                if ledger_is_well && checked.commit < number {
                    checked.problems.push(format!(
                        "the end of {} is lost: {} says that commit {number} was on disk, and the \
                         last one found is {}",
                        self.original.display(),
                        marker_file.display(),
                        checked.commit
                    ));
                }
            }
            Marker::Commits { .. } => {}
            Marker::Missing if number.is_none() => {}
            Marker::Missing => checked.notes.push(format!(
                "{} is missing, so a lost end of the log would not be noticed",
                marker_file.display()
            )),
            Marker::Unreadable => checked.problems.push(format!(
                "{} is damaged, so a lost end of the log would not be noticed",
                marker_file.display()
            )),
        }
        Ok(())
    }

    fn repair(&self, settings: &Settings) -> Result<SetAside, OpenError> {
        let dir = &settings.dir;
        let in_dir = || OpenError::in_store(dir);
        let durable = commit_marker::read(dir)?.durable(&self.original);
        let log_is_whole = sled_log::is_whole(&self.original, durable).map_err(in_dir())?;
        let db = guarded(|| open_sled(&self.original, settings.cache_bytes)).map_err(in_dir())?;
        directory::sync_store(&self.original)?;
        let clean_meta = || {
            let meta = db.open_tree(Tree::Meta.name())?;
            let format = migrate::version(&meta)?;
            for key in META {
                if let Some(row) = meta.get(key)?
                    && rows::unseal(Tree::Meta, key, &row).is_err()
                {
                    meta.remove(key)?;
                }
            }
            if format >= 2 && !meta.contains_key(keys::LEDGER)? {
                migrate::count_anew(&db)?;
            }
            db.flush()?;
            Ok::<_, Failure>(())
        };
        guarded(clean_meta).map_err(in_dir())?;
        migrate_or_refuse(&db, settings)?;
        let mend = || {
            let database = Database::new(db)?;
            let &Settings { cache_bytes, now, .. } = settings;
            let (directory, store) = (&self.directory, &*self.store);
            let place = Place { directory, store, cache_bytes, now, log_is_whole };
            let Recovery { report, unused, fresh, .. } =
                recover::mend(&database, place, OnMissing::Accept, &mut drop)?;
            let (store, database) = fresh.unwrap_or_else(|| (self.store.clone(), database));
            database.set_sequence(commit::lease(unused))?;
            database.flush()?;
            Ok::<_, Failure>((report.set_aside, store, database.ledger().0.number))
        };
        let (set_aside, store, number) = guarded(mend).map_err(in_dir())?;
        drop(MarkerFile::begin(dir, &store, number)?);
        self.directory.clear_beside(&dir.join(store))?;
        Ok(set_aside)
    }
}

/// The rows of `meta`.
const META: [&[u8]; 4] = [keys::FORMAT_VERSION, keys::SEQUENCE, keys::LEDGER, keys::SETTLING];

fn migrate_or_refuse(db: &sled::Db, settings: &Settings) -> Result<(), OpenError> {
    match guarded(|| migrate::run(db)).map_err(OpenError::in_store(&settings.dir))? {
        Migrated::Done => Ok(()),
        Migrated::Newer { found, known } => {
            Err(OpenError::Newer { dir: settings.dir.clone(), found, known })
        }
    }
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let path = entry?.path();
        let to = to.join(path.file_name().unwrap_or_default());
        if path.is_dir() {
            copy_dir(&path, &to)?;
        } else {
            fs::copy(&path, &to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
