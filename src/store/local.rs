//! The store on the local disk, in sled.
//!
//! To read on: `commit.rs` for how a write becomes durable, `database.rs` and `rows.rs` for what
//! is written, `recover.rs` for how it is read back, `compaction.rs` for how space is given back,
//! `integrity/` for how damage is noticed and repaired, `presence.rs` for how a removed directory
//! is noticed, `directory.rs` for how a data directory comes into being, `uptime.rs` for when it
//! was in use and `permissions.rs` for who may change it, `tools/` for the tools on a store that is
//! not in use, `fsync.rs` and `watched.rs` for why sled can be trusted with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use self::database::{Database, open_sled};
use self::directory::Directory;
use self::error::{Failure, guarded};
use self::integrity::commit_marker::{Marker, MarkerFile};
use self::integrity::ledger::Ledger;
use self::integrity::rebuild::Place;
use self::integrity::scan::SideTables;
use self::integrity::{commit_marker, quarantine, scan, sled_log};
use self::keys::Tree;
use self::migrate::Migrated;
use self::presence::Presence;
use self::recover::{OnMissing, Recovery};
use crate::faults;
use crate::store::journal::Notify;
use crate::task::{Node, TaskId, Timestamp};

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
mod tools;
mod turns;
mod uptime;
mod watched;

pub use commit::Committer;
pub use error::{CommitError, Damage, Gone, OpenError, ReadError};
#[cfg(test)]
pub(super) use idempotency::Keys;
pub use idempotency::Repeated;
pub use integrity::quarantine::SetAside;
pub use journal::{KeyLimits, LocalJournal};
pub use keys::MAX_IDEMPOTENCY_KEY_BYTES;
pub use read::Reader;
pub use recover::{Handed, Recovered, RecoveryReport};
pub use rows::{Header, IdempotencyAnswer, IdempotencyRow, ReplicaRow};
pub use tools::check::{Checked, check};
pub use tools::dump::{Exported, ImportError, Imported, export, import};
pub use turns::Turns;
pub use uptime::UptimeFile;

/// Where the store is, and how it is opened.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The data directory. It is made, for this user alone, where there is none.
    pub dir: PathBuf,
    /// How much memory the database may use for its pages, in bytes.
    pub cache_bytes: u64,
    /// What is to stay free on its disk, in bytes: a compaction takes no more than half of it.
    pub min_free_bytes: u64,
    /// The present: the ids of a new store begin with it.
    pub now: Timestamp,
}

/// The open files, and the lock on their directory.
struct Files {
    /// The current store. A compaction puts another in its place.
    database: RwLock<Database>,
    /// The name of the one that was current at the start.
    store: String,
    sizes: Sizes,
    cache_bytes: u64,
    min_free_bytes: u64,
    /// What must still be there when a commit is answered; nothing before the store is in use.
    presence: Mutex<Option<Presence>>,
    /// It must be the last to go.
    directory: Directory,
}

/// The sizes that the committer saw last.
#[derive(Debug, Default)]
struct Sizes {
    file: AtomicU64,
    live: AtomicU64,
    /// Free on the disk; the largest number where the system does not say.
    free: AtomicU64,
    /// How often the store was compacted since the start.
    compactions: AtomicU64,
}

impl Files {
    fn new(database: Database, store: String, directory: Directory, settings: &Settings) -> Self {
        let (cache_bytes, min_free_bytes) = (settings.cache_bytes, settings.min_free_bytes);
        let sizes = Sizes::default();
        sizes.file.store(compaction::file_bytes(&settings.dir.join(&store)), Ordering::Relaxed);
        sizes.free.store(directory.free_bytes().unwrap_or(u64::MAX), Ordering::Relaxed);
        let database = RwLock::new(database);
        let presence = Mutex::new(None);
        Self { database, store, sizes, cache_bytes, min_free_bytes, presence, directory }
    }

    /// The current store, which stays readable for as long as this is held.
    fn database(&self) -> Database {
        self.database.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on the files of `store` must be those of the data directory.
    fn must_be_present(&self, store: &str) -> Result<(), OpenError> {
        let presence = Presence::of(self.directory.path(), store)?;
        *self.presence.lock().unwrap_or_else(PoisonError::into_inner) = Some(presence);
        Ok(())
    }

    /// Whether they are.
    fn is_present(&self) -> Result<(), Failure> {
        let presence = self.presence.lock().unwrap_or_else(PoisonError::into_inner);
        presence.as_ref().map_or(Ok(()), Presence::check)
    }

    /// Puts another in its place, and gives back the one before.
    fn replace_database(&self, new: Database) -> Database {
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *database, new)
    }
}

/// A store that is locked and in the newest format, and not recovered yet.
pub struct Store {
    files: Files,
    now: Timestamp,
    witnessed: bool,
    log_is_whole: bool,
}

/// A store in use.
#[derive(Debug)]
pub struct Opened {
    /// Numbers writes and makes them durable.
    pub journal: LocalJournal,
    /// What the journal writes with.
    pub committer: Committer,
    /// Reads.
    pub reader: Reader,
    /// The first id to give out; greater than any that was ever used.
    pub next_id: TaskId,
    /// What is known of replicas, each once.
    pub replicas: Vec<(Node, ReplicaRow)>,
    /// What is known of the keys that clients gave, each once. The task may be settled and gone,
    /// or, if the key was set aside or a crash came between them, be there without its key.
    pub idempotency: Vec<(Box<str>, IdempotencyRow)>,
}

impl Store {
    /// Locks the data directory and brings what is in it to the newest format.
    ///
    /// # Errors
    ///
    /// An [`OpenError`] that says what is in the way. Nothing is changed then, but for migrations
    /// that had succeeded before.
    pub fn open(settings: &Settings) -> Result<Self, OpenError> {
        fsync::check().map_err(|function| OpenError::Barrier { function })?;
        let directory = Directory::lock(&settings.dir)?;
        let path = match directory.current(is_used)? {
            Some(path) => path,
            None => directory.create(|path| guarded(|| open_sled(path, CREATING).map(drop)))?,
        };
        let in_dir = || OpenError::in_store(&settings.dir);
        let marker = marker(&settings.dir, &path)?;
        let log_is_whole = sled_log::is_whole(&path, marker.durable(&path)).map_err(in_dir())?;
        let db = guarded(|| open_sled(&path, settings.cache_bytes)).map_err(in_dir())?;
        // sled may have tidied up its files just now.
        directory::sync_store(&path)?;
        // Before a migration could take an emptied store for a new one.
        let witnessed = is_witnessed(&settings.dir, &path, marker, &db)?;
        match guarded(|| migrate::run(&db)).map_err(in_dir())? {
            Migrated::Done => {}
            Migrated::Newer { found, known } => {
                return Err(OpenError::Newer { dir: settings.dir.clone(), found, known });
            }
        }
        let database = guarded(|| Database::new(db)).map_err(in_dir())?;
        let store = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            files: Files::new(database, store, directory, settings),
            now: settings.now,
            witnessed,
            log_is_whole,
        })
    }

    /// Where it is written when daemons ran on this data directory.
    #[must_use]
    pub fn uptime(&self) -> UptimeFile {
        UptimeFile::of(self.files.directory.path())
    }

    /// What is known of replicas, before anything is handed over: what is restored may depend on
    /// it. A row that cannot be read is left to [`Self::recover`], which sets it aside.
    ///
    /// # Errors
    ///
    /// An [`OpenError`] if the disk fails.
    pub fn replicas(&self) -> Result<Vec<(Node, ReplicaRow)>, OpenError> {
        let dir = self.files.directory.path();
        guarded(|| scan::replicas(&self.files.database())).map_err(OpenError::in_store(dir))
    }

    /// Hands every task that is not settled to `each`, in the order of acceptance and without its
    /// value; removes what crashes have left; and starts the committer, which will call `notify`.
    ///
    /// # Errors
    ///
    /// An [`OpenError`] if anything of what was accepted cannot be read back, or the disk fails.
    pub fn recover(
        self,
        each: &mut dyn FnMut(Handed),
        notify: Notify,
    ) -> Result<(Opened, RecoveryReport), OpenError> {
        let Self { mut files, now, witnessed, log_is_whole } = self;
        let dir = files.directory.path().to_owned();
        let read = || {
            let Files { directory, store, cache_bytes, .. } = &files;
            let cache_bytes = *cache_bytes;
            let place = Place { directory, store, cache_bytes, now, log_is_whole };
            let Recovery { report, unused: next_id, side_tables, fresh } =
                recover::mend(&files.database(), place, OnMissing::Refuse, each)?;
            faults::point("recover.scanned");
            if let Some((name, database)) = fresh {
                files.store = name;
                drop(files.replace_database(database));
            }
            let database = files.database();
            let lease = commit::lease(next_id);
            database.set_sequence(lease)?;
            faults::point("recover.leased");
            database.flush()?;
            faults::point("recover.flushed");
            let quarantined_rows = quarantine::rows_in(&dir).unwrap_or(report.set_aside.rows);
            let report = RecoveryReport { witnessed, quarantined_rows, ..report };
            Ok((report, side_tables, next_id, lease))
        };
        let (report, side_tables, next_id, lease) =
            guarded::<_, Failure>(read).map_err(OpenError::in_store(&dir))?;
        // Not before the current one has shown that it can be read.
        files.directory.clear_beside(&dir.join(&files.store))?;
        let number = files.database().ledger().0.number;
        files.database().set_marker(MarkerFile::begin(&dir, &files.store, number)?);
        files.must_be_present(&files.store)?;
        let files = Arc::new(files);
        let committer = commit::start(Arc::clone(&files), lease, notify)
            .map_err(OpenError::io("start the committer of", &dir))?;
        let SideTables { replicas, idempotency } = side_tables;
        let reader = Reader { files };
        let reserve = reader.files.min_free_bytes;
        let journal = LocalJournal::new(committer.clone(), reader.clone(), next_id, reserve);
        let opened = Opened { journal, committer, reader, next_id, replicas, idempotency };
        Ok((opened, report))
    }
}

/// Reads the commit marker for the store at `path`, before the store is opened.
fn marker(dir: &Path, path: &Path) -> Result<Marker, OpenError> {
    let marker = commit_marker::read(dir)?;
    let store = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let (dir, marker_file) = (dir.to_owned(), commit_marker::path(dir));
    match &marker {
        Marker::Unreadable => Err(OpenError::MarkerWrong { dir, marker_file }),
        Marker::Commits { store: other, .. } if marker.is_of_one_after(path) => {
            let other = other.clone();
            Err(OpenError::MarkerOfAnother { dir, marker_file, store, other })
        }
        _ => Ok(marker),
    }
}

/// Compares what was flushed with what is there; false if nothing tells what was flushed.
fn is_witnessed(
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
        // Of a store that this one has replaced: the cut came before its first commit.
        Marker::Commits { .. } => Ok(true),
        // Before its first commit a store has none, nor had those of format 1.
        Marker::Missing | Marker::Unreadable => Ok(found == 0),
    }
}

/// Page cache for a database that is opened only to be made or looked at, in bytes.
const CREATING: u64 = 1 << 20;

/// Whether a store that nothing names was ever in use. Its trees are made after it has a name.
fn is_used(path: &Path) -> Result<bool, Failure> {
    guarded(|| Ok(open_sled(path, CREATING)?.tree_names().len() > 1))
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store").field("dir", &self.files.directory.path()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
