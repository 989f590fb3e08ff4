//! The store on the local disk, on sled.
//!
//! Format: `rows.rs`, `keys.rs`, `database.rs`, `migrate.rs`. Writing: `journal.rs`,
//! `idempotency.rs`, `commit.rs`, `settled.rs`, `turns.rs`. Reading: `read.rs`. Start: `directory.rs`,
//! `permissions.rs`, `recover.rs`, `uptime.rs`. Disk space: `compaction.rs`. Damage: `integrity/`,
//! `presence.rs`. Making sled safe: `fsync.rs`, `watched.rs`. Offline tools: `tools/`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use self::database::{Database, open_sled};
use self::directory::Directory;
use self::error::{Failure, guarded};
use self::integrity::commit_marker::{Marker, MarkerFile};
use self::integrity::ledger::Ledger;
use self::integrity::rebuild::RebuildSource;
use self::integrity::scan::SideTables;
use self::integrity::{commit_marker, quarantine, scan, sled_log};
use self::keys::Tree;
use self::presence::Presence;
use self::recover::{OnMissing, Recovery};
use crate::faults;
use crate::store::journal::Notify;
use crate::store::records::{IdempotencyRow, ReplicaRow};
use crate::task::{Node, TaskId, Timestamp};

mod ahead;
mod commit;
mod compaction;
mod database;
mod directory;
mod error;
mod fsync;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod idempotency;
mod integrity;
mod journal;
mod keys;
mod migrate;
mod permissions;
mod presence;
mod read;
mod recover;
mod room;
mod rows;
mod settled;
mod snapshot;
mod tools;
mod turns;
mod uptime;
mod watched;

pub use commit::Committer;
pub use error::{Damage, OpenError};
#[cfg(test)]
pub(super) use idempotency::Keys;
pub use integrity::quarantine::SetAside;
pub use journal::{KeyLimits, LocalJournal};
pub use read::StoreReader;
pub use recover::{RecoveryEvent, RecoveryReport};
pub use tools::check::{CheckReport, check};
pub use tools::dump::{export, import};
pub use uptime::UptimeFile;

#[derive(Clone, Debug)]
pub struct StoreSettings {
    /// The data directory. If it is missing it is created with mode 0700.
    pub dir: PathBuf,
    pub cache_bytes: u64,
    /// Disk space to keep free. A compaction may use at most half of it.
    pub min_free_bytes: u64,
    /// The ids of a new store start at this time.
    pub now: Timestamp,
}

struct Files {
    database: RwLock<Database>,
    /// The name of the store that was current at the start.
    store: String,
    sizes: StoreSizes,
    cache_bytes: u64,
    min_free_bytes: u64,
    /// `None` until recovery is done.
    presence: Mutex<Option<Presence>>,
    /// Must be dropped last: it holds the lock.
    directory: Directory,
}

/// The sizes last seen by the committer.
#[derive(Debug, Default)]
struct StoreSizes {
    file: AtomicU64,
    live: AtomicU64,
    /// Free disk space; `u64::MAX` if unknown.
    free: AtomicU64,
    compactions: AtomicU64,
}

impl Files {
    fn new(
        database: Database,
        store: String,
        directory: Directory,
        settings: &StoreSettings,
    ) -> Self {
        let sizes = StoreSizes::default();
        sizes.file.store(compaction::file_bytes(&settings.dir.join(&store)), Ordering::Relaxed);
        sizes.free.store(directory.free_bytes().unwrap_or(u64::MAX), Ordering::Relaxed);
        Self {
            database: RwLock::new(database),
            store,
            sizes,
            cache_bytes: settings.cache_bytes,
            min_free_bytes: settings.min_free_bytes,
            presence: Mutex::new(None),
            directory,
        }
    }

    /// The result stays readable after a compaction.
    fn database(&self) -> Database {
        self.database.read().clone()
    }

    /// From now on [`Self::check_presence`] requires the files of `store`.
    fn require_presence(&self, store: &str) -> Result<(), OpenError> {
        let presence = Presence::of(self.directory.path(), store)?;
        *self.presence.lock() = Some(presence);
        Ok(())
    }

    fn check_presence(&self) -> Result<(), Failure> {
        let presence = self.presence.lock();
        presence.as_ref().map_or(Ok(()), Presence::check)
    }

    fn replace_database(&self, new: Database) -> Database {
        let mut database = self.database.write();
        std::mem::replace(&mut *database, new)
    }
}

/// A store that is locked and migrated, but not recovered yet.
pub struct LocalStore {
    files: Files,
    now: Timestamp,
    had_marker: bool,
    log_is_whole: bool,
}

/// A store in use.
#[derive(Debug)]
pub struct Opened {
    pub journal: LocalJournal,
    pub committer: Committer,
    pub reader: StoreReader,
    /// Above any id that was ever used.
    pub next_id: TaskId,
    pub replicas: Vec<(Node, ReplicaRow)>,
    /// The task of a key may be settled and removed. A task may also be here without its key, if
    /// the key was set aside.
    pub idempotency: Vec<(Box<str>, IdempotencyRow)>,
}

impl LocalStore {
    /// Locks the data directory and migrates the store. After an error nothing is changed, except
    /// by migrations that succeeded before it.
    pub fn open(settings: &StoreSettings) -> Result<Self, OpenError> {
        fsync::check().map_err(|function| OpenError::Barrier { function })?;
        let directory = Directory::lock(&settings.dir)?;
        let path = match directory.current(is_used)? {
            Some(path) => path,
            None => {
                let fill = |path: &Path| {
                    let created = guarded(|| open_sled(path, SMALL_CACHE).map(drop));
                    created.map_err(OpenError::in_store(path))
                };
                directory.create(fill)?.0
            }
        };
        let in_dir = || OpenError::in_store(&settings.dir);
        let marker = read_marker(&settings.dir, &path)?;
        let log_is_whole = sled_log::is_whole(&path, marker.durable(&path)).map_err(in_dir())?;
        let db = guarded(|| open_sled(&path, settings.cache_bytes)).map_err(in_dir())?;
        // sled may have changed its files while opening.
        directory::sync_store(&path)?;
        // Before the migration, which would take an emptied store for a new one.
        let had_marker = check_marker(&settings.dir, &path, marker, &db)?;
        guarded(|| migrate::run(&db)).map_err(in_dir())?;
        let database = guarded(|| Database::new(db)).map_err(in_dir())?;
        let store = directory::name_of(&path);
        let files = Files::new(database, store, directory, settings);
        Ok(Self { files, now: settings.now, had_marker, log_is_whole })
    }

    pub fn uptime(&self) -> UptimeFile {
        UptimeFile::of(self.files.directory.path())
    }

    /// Reads the replica rows ahead of [`Self::recover`], whose caller may need them. Damaged rows
    /// are skipped here; `recover` sets them aside.
    pub fn replicas(&self) -> Result<Vec<(Node, ReplicaRow)>, OpenError> {
        let dir = self.files.directory.path();
        guarded(|| scan::replicas(&self.files.database())).map_err(OpenError::in_store(dir))
    }

    /// Passes every unsettled task to `each`, in the order of acceptance and without its value;
    /// removes the leftovers of crashes; and starts the committer, which will call `notify`.
    pub fn recover(
        self,
        each: &mut dyn FnMut(RecoveryEvent),
        notify: Notify,
    ) -> Result<(Opened, RecoveryReport), OpenError> {
        let Self { mut files, now, had_marker, log_is_whole } = self;
        let dir = files.directory.path().to_owned();
        let read = || {
            let Files { directory, store, cache_bytes, .. } = &files;
            let cache_bytes = *cache_bytes;
            let source = RebuildSource { directory, store, cache_bytes, now, log_is_whole };
            let Recovery { report, unused: next_id, side_tables, fresh } =
                recover::mend(&files.database(), source, OnMissing::Refuse, each)?;
            faults::point("recover.scanned");
            if let Some((name, database)) = fresh {
                files.store = name;
                drop(files.replace_database(database));
            }
            let database = files.database();
            let lease = commit::lease(next_id);
            database.set_sequence(lease)?;
            // A fresh store has no such row, and the damaged one may have lost it.
            let sent_early = report.rebuilt || database.sends_early()?;
            if sent_early {
                database.set_sends_early(true)?;
            }
            faults::point("recover.leased");
            database.flush()?;
            faults::point("recover.flushed");
            let quarantined_rows = quarantine::rows_in(&dir).unwrap_or(report.set_aside.rows);
            let report = RecoveryReport { had_marker, quarantined_rows, sent_early, ..report };
            Ok((report, side_tables, next_id, lease))
        };
        let (report, side_tables, next_id, lease) =
            guarded::<_, Failure>(read).map_err(OpenError::in_store(&dir))?;
        // Only after the current store has proved readable.
        files.directory.clear_beside(&dir.join(&files.store))?;
        let number = files.database().ledger().0.number;
        files.database().set_marker(MarkerFile::begin(&dir, &files.store, number)?);
        files.require_presence(&files.store)?;
        let files = Arc::new(files);
        let committer = commit::start(Arc::clone(&files), lease, notify)
            .map_err(OpenError::io("start the committer of", &dir))?;
        let SideTables { replicas, idempotency } = side_tables;
        let reader = StoreReader { files };
        let reserve = reader.files.min_free_bytes;
        let journal = LocalJournal::new(committer.clone(), reader.clone(), next_id, reserve);
        let opened = Opened { journal, committer, reader, next_id, replicas, idempotency };
        Ok((opened, report))
    }
}

/// Must run before the store is opened.
fn read_marker(dir: &Path, path: &Path) -> Result<Marker, OpenError> {
    let marker = commit_marker::read(dir)?;
    let (dir, marker_file) = (dir.to_owned(), commit_marker::path(dir));
    match &marker {
        Marker::Unreadable => Err(OpenError::MarkerWrong { dir, marker_file }),
        Marker::Commits { store: other, .. } if marker.is_of_newer_store(path) => {
            let (store, other) = (directory::name_of(path), other.clone());
            Err(OpenError::MarkerOfAnother { dir, marker_file, store, other })
        }
        _ => Ok(marker),
    }
}

/// Refuses a store whose last commit is older than the marker's. Returns false if there is no
/// marker to compare with.
fn check_marker(
    dir: &Path,
    store: &Path,
    marker: Marker,
    db: &sled::Db,
) -> Result<bool, OpenError> {
    let newest =
        || Ok(Ledger::load(&db.open_tree(Tree::Meta.name())?)?.map(|ledger| ledger.number));
    let newest = guarded::<_, Failure>(newest).map_err(OpenError::in_store(dir))?;
    let found = newest.unwrap_or_default();
    match marker {
        Marker::Commits { store: of, number: flushed, .. } if store.ends_with(&of) => {
            if found < flushed {
                let (dir, store) = (dir.to_owned(), store.to_owned());
                let marker_file = commit_marker::path(&dir);
                return Err(OpenError::TailGone { dir, store, marker_file, flushed, found });
            }
            Ok(true)
        }
        // Of the store that this one replaced: the crash came before the first commit of this one.
        Marker::Commits { .. } => Ok(true),
        // A store has no marker before its first commit; neither had stores of format 1.
        Marker::Missing | Marker::Unreadable => Ok(found == 0),
    }
}

/// Page cache for a database that is only created or inspected.
const SMALL_CACHE: u64 = 1 << 20;

/// Whether a store without a `CURRENT` was ever in use. Its trees are created after `CURRENT`.
fn is_used(path: &Path) -> Result<bool, Failure> {
    guarded(|| Ok(open_sled(path, SMALL_CACHE)?.tree_names().len() > 1))
}

impl fmt::Debug for LocalStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalStore")
            .field("dir", &self.files.directory.path())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
