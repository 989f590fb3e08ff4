//! `replicator check`: finds damage in a store that is not in use, and repairs it on request.
//!
//! sled changes a database when it opens it. So a check works on a copy, `DIR/check.tmp`, which needs
//! as much space as the store and is removed afterwards. Only a repair opens the store itself. It
//!
//! - sets tasks with damaged rows aside, as the daemon does (`quarantine.rs`);
//! - copies the rest into a fresh store (`rebuild.rs`), whatever the ledger says;
//! - rewrites unreadable rows of `meta`, except the format version.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::store::local::database::{Database, check_reads, open_copy, open_sled};
use crate::store::local::directory::{self, Directory};
use crate::store::local::error::{Failure, OpenError, guarded};
use crate::store::local::integrity::commit_marker::{self, Marker, MarkerFile};
use crate::store::local::integrity::ledger::Ledger;
use crate::store::local::integrity::quarantine::{self, SetAside};
use crate::store::local::integrity::rebuild::RebuildSource;
use crate::store::local::integrity::{scan, sled_log};
use crate::store::local::keys::{self, Tree};
use crate::store::local::recover::{self, OnMissing, Recovery};
use crate::store::local::{StoreSettings, commit, fsync, migrate, rows};

const COPY: &str = "check.tmp";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    pub store: String,
    /// As it is on disk.
    pub format: u32,
    /// The number of the last commit, or 0 if it cannot be read.
    pub commit: u64,
    pub tasks: u64,
    pub value_bytes: u64,
    pub dead_letters: u64,
    pub replicas: u64,
    pub idempotency_keys: u64,
    /// Rows left by a crash, which the next start removes. They are no damage.
    pub orphans: u64,
    pub quarantined_rows: u64,
    pub problems: Vec<String>,
    /// What could not be checked, and is no damage.
    pub notes: Vec<String>,
    /// What a repair has set aside; `None` without a repair.
    pub repaired: Option<SetAside>,
}

/// Checks a store; with `repair` repairs it if it is damaged. The report describes the state before
/// the repair. Damage inside the store is not an error.
pub fn check(settings: &StoreSettings, repair: bool) -> Result<CheckReport, OpenError> {
    let copied = StoreCopy::make(settings)?;
    let examined = copied.examine(settings);
    copied.check_reads(&settings.dir)?;
    let mut report = examined?;
    if repair && !report.problems.is_empty() {
        copied.refuse_newer_store(&settings.dir)?;
        fsync::check().map_err(|function| OpenError::Barrier { function })?;
        report.repaired = Some(copied.repair(settings)?);
    }
    Ok(report)
}

/// A locked data directory, and a copy of its store. The copy is removed on drop.
pub(crate) struct StoreCopy {
    directory: Directory,
    original: PathBuf,
    store: String,
    copy: PathBuf,
}

impl Drop for StoreCopy {
    fn drop(&mut self) {
        // If this fails, the next check removes it.
        let _ = fs::remove_dir_all(&self.copy);
    }
}

impl StoreCopy {
    pub(crate) fn make(settings: &StoreSettings) -> Result<Self, OpenError> {
        let dir = &settings.dir;
        let no_store = || OpenError::NoStore { dir: dir.clone() };
        if !dir.is_dir() {
            return Err(no_store());
        }
        let directory = Directory::lock(dir)?;
        // Every store counts as used: opening it to find out would write to it.
        let original = directory.current(|_| Ok(true))?.ok_or_else(no_store)?;
        let store = directory::name_of(&original);
        let copy = dir.join(COPY);
        if copy.exists() {
            fs::remove_dir_all(&copy).map_err(OpenError::io("remove", &copy))?;
        }
        let copied = Self { directory, original, store, copy };
        copy_dir(&copied.original, &copied.copy)
            .map_err(OpenError::io("copy the store to", &copied.copy))?;
        Ok(copied)
    }

    /// Fails if a read of the copy has failed: then nothing found in it is valid.
    pub(crate) fn check_reads(&self, dir: &Path) -> Result<(), OpenError> {
        check_reads(&self.copy).map_err(OpenError::in_store(dir))
    }

    /// Refuses to repair a store while a newer one with the latest commits is present, because the
    /// repair would remove that one.
    fn refuse_newer_store(&self, dir: &Path) -> Result<(), OpenError> {
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

    /// Opens the copy and migrates it. Returns its original format as well.
    pub(crate) fn open(&self, settings: &StoreSettings) -> Result<(Database, u32), OpenError> {
        let open = || {
            let db = open_copy(&self.copy, settings.cache_bytes)?;
            let meta = db.open_tree(Tree::Meta.name())?;
            let format = migrate::version(&meta)?;
            migrate::run(&db)?;
            if !Ledger::load(&meta).is_ok_and(|row| row.is_some()) {
                migrate::recount(&db)?;
            }
            Ok::<_, Failure>((Database::new(db)?, format))
        };
        guarded(open).map_err(OpenError::in_store(&settings.dir))
    }

    fn examine(&self, settings: &StoreSettings) -> Result<CheckReport, OpenError> {
        let dir = &settings.dir;
        let mut report = CheckReport {
            store: self.store.clone(),
            quarantined_rows: quarantine::rows_in(dir)
                .map_err(OpenError::io("read the quarantine in", dir))?,
            ..CheckReport::default()
        };
        // Before sled opens the copy and changes it.
        let durable = commit_marker::read(dir)?.durable(&self.original);
        let log_is_whole =
            sled_log::is_whole(&self.copy, durable).map_err(OpenError::in_store(dir))?;
        self.examine_meta(dir, settings, &mut report)?;
        self.check_reads(dir)?;
        if report.problems.iter().any(|problem| problem.contains("format_version")) {
            return Ok(report);
        }
        let examine = || {
            let (database, format) = self.open(settings)?;
            let walk = || scan::walk(&database, &mut drop);
            let found = guarded(walk).map_err(OpenError::in_store(dir))?;
            let missing = recover::missing_rows(&database, &found, log_is_whole);
            Ok::<_, OpenError>((format, missing, database.ledger().1, found))
        };
        let (format, missing, binds, found) = match examine() {
            Ok(examined) => examined,
            Err(OpenError::Database { why, .. }) => {
                report.problems.push(format!("the database cannot be read: {why}"));
                return Ok(report);
            }
            Err(OpenError::Damaged { damage, .. }) => {
                report.problems.push(damage.to_string());
                return Ok(report);
            }
            Err(error) => return Err(error),
        };
        report.format = format;
        report.tasks = found.tasks;
        report.value_bytes = found.value_bytes;
        report.dead_letters = found.dead_letters;
        report.replicas = found.side_tables.replicas.len() as u64;
        report.idempotency_keys = found.side_tables.idempotency.len() as u64;
        report.orphans = found.orphans.len() as u64;
        report.problems.extend(found.damaged.iter().map(ToString::to_string));
        report.problems.extend(missing.map(|missing| missing.to_string()));
        if report.problems.is_empty() && (!log_is_whole || found.returned) {
            let note = "the database's log is damaged, but no row is missing: the next start copies \
                        the rows into a fresh store";
            report.notes.push(note.to_owned());
        }
        if !binds {
            let note = "a crash interrupted the last settlements, so missing rows are not detected";
            report.notes.push(note.to_owned());
        }
        Ok(report)
    }

    /// Examines the rows of `meta` and the commit marker, before the copy is migrated.
    fn examine_meta(
        &self,
        dir: &Path,
        settings: &StoreSettings,
        report: &mut CheckReport,
    ) -> Result<(), OpenError> {
        let read_meta = || {
            let db = open_copy(&self.copy, settings.cache_bytes)?;
            let meta = db.open_tree(Tree::Meta.name())?;
            let mut damaged = Vec::new();
            for key in META {
                if let Some(row) = meta.get(key)? {
                    damaged.extend(rows::unseal(Tree::Meta, key, &row).err());
                }
            }
            let format = migrate::version(&meta).unwrap_or_default();
            let ledger = Ledger::load(&meta).unwrap_or_default();
            if ledger.is_none() && format >= 2 && damaged.is_empty() {
                damaged.push(rows::damage(Tree::Meta, keys::LEDGER, "is missing"));
            }
            Ok::<_, Failure>((damaged, ledger.map(|ledger| ledger.number)))
        };
        // The caller opens the database next and reports the error.
        let Ok((damaged, number)) = guarded(read_meta) else {
            return Ok(());
        };
        let ledger_is_intact = damaged.iter().all(|damage| damage.key != keys::LEDGER);
        report.problems.extend(damaged.iter().map(ToString::to_string));
        report.commit = number.unwrap_or_default();
        let marker_file = commit_marker::path(dir);
        let marker_file = marker_file.display();
        let marker = commit_marker::read(dir)?;
        if marker.is_of_newer_store(&self.original) {
            let store = &self.store;
            report.problems.push(format!(
                "{marker_file} names a newer store than CURRENT, which names {store}"
            ));
        }
        let unnoticed = "so a lost end of the log would not be noticed";
        match marker {
            Marker::Commits { store, number, .. } if store == self.store => {
                if ledger_is_intact && report.commit < number {
                    report.problems.push(format!(
                        "the end of {} is lost: {marker_file} records commit {number}, but the \
                         last commit found is {}",
                        self.original.display(),
                        report.commit
                    ));
                }
            }
            Marker::Commits { .. } => {}
            Marker::Missing if number.is_none() => {}
            Marker::Missing => report.notes.push(format!("{marker_file} is missing, {unnoticed}")),
            Marker::Unreadable => {
                report.problems.push(format!("{marker_file} is damaged, {unnoticed}"));
            }
        }
        Ok(())
    }

    fn repair(&self, settings: &StoreSettings) -> Result<SetAside, OpenError> {
        let dir = &settings.dir;
        let in_dir = || OpenError::in_store(dir);
        let durable = commit_marker::read(dir)?.durable(&self.original);
        let log_is_whole = sled_log::is_whole(&self.original, durable).map_err(in_dir())?;
        let db = guarded(|| open_sled(&self.original, settings.cache_bytes)).map_err(in_dir())?;
        directory::sync_store(&self.original)?;
        let mend = || {
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
                migrate::recount(&db)?;
            }
            db.flush()?;
            migrate::run(&db)?;
            let database = Database::new(db)?;
            let &StoreSettings { cache_bytes, now, .. } = settings;
            let (directory, store) = (&self.directory, &*self.store);
            let source = RebuildSource { directory, store, cache_bytes, now, log_is_whole };
            let Recovery { report, unused, fresh, .. } =
                recover::mend(&database, source, OnMissing::Accept, &mut drop)?;
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

const META: [&[u8]; 5] =
    [keys::FORMAT_VERSION, keys::SEQUENCE, keys::LEDGER, keys::SETTLING, keys::SENDS_EARLY];

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
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
