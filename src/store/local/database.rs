//! The open database: which rows hold a task, its progress, a replica or an idempotency key. `tasks.rs`
//! has the rows of tasks.
//!
//! The order of the rows is part of the format, because a crash leaves a prefix of the writes: a
//! task's row is written after its chunks and removed before them; a dead letter's row is written
//! before the progress that refers to it and removed after it. All rows go through `put` and `take`,
//! which update the [`ledger`](super::integrity::ledger).

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use self::kept::KeptRows;
use super::error::{Failure, guarded};
use super::integrity::commit_marker::MarkerFile;
use super::integrity::ledger::{self, Ledger, Tallies};
use super::keys::{self, Tree};
use super::rows;
use super::watched::{self, OnReadError};
use crate::store::records::{IdempotencyRow, ReplicaRow};
use crate::task::{Node, TaskId};

pub(super) mod kept;
mod tasks;

/// All trees, in the order of a copy: a task's row before its values, as in a removal.
pub(super) const TREES: [Tree; 7] = [
    Tree::Meta,
    Tree::Tasks,
    Tree::Values,
    Tree::Progress,
    Tree::DeadLetters,
    Tree::Replicas,
    Tree::Idempotency,
];

#[derive(Clone)]
pub(super) struct Database {
    pub(super) db: sled::Db,
    pub(super) meta: sled::Tree,
    pub(super) tasks: sled::Tree,
    pub(super) values: sled::Tree,
    pub(super) progress: sled::Tree,
    pub(super) dead_letters: sled::Tree,
    replicas: sled::Tree,
    idempotency: sled::Tree,
    /// Changed by one thread only: recovery's, then the committer's. Must be dropped last: when the
    /// database is closed, its commit marker records how far the log is durable.
    write_state: Arc<Mutex<WriteState>>,
    /// Of the snapshot that is being read. Locked while a row changes, so that a reader that finds a
    /// changed row in its tree finds the old one here.
    kept: Arc<Mutex<Option<KeptRows>>>,
}

#[derive(Debug)]
struct WriteState {
    /// `number` is that of the last ledger on disk; the rest includes all writes since. `open`: there
    /// are such writes. `settling`: the row of that name is among them.
    ledger: Ledger,
    open: bool,
    settling: bool,
    marker_file: Option<MarkerFile>,
    /// Without the rows of `meta`.
    live_bytes: u64,
    /// Receives a copy of every row during a compaction.
    mirror: Option<Mirror>,
    #[cfg(test)]
    recorded: Option<Vec<WrittenRow>>,
}

/// A row that was written or removed.
#[cfg(test)]
pub(super) type WrittenRow = (Tree, Vec<u8>, Option<Vec<u8>>);

#[derive(Debug)]
struct Mirror {
    trees: Vec<(Tree, sled::Tree)>,
    /// The first error. After it nothing more is written to the mirror.
    failure: Option<Failure>,
}

impl Mirror {
    /// A failure must not affect the store in use.
    fn write(&mut self, tree: Tree, key: &[u8], row: Option<&[u8]>) {
        let found = self.trees.iter().find(|(name, _)| *name == tree);
        let (None, Some((_, tree))) = (&self.failure, found) else {
            return;
        };
        let written = guarded(|| match row {
            Some(row) => Ok(tree.insert(key, row).map(drop)?),
            None => Ok(tree.remove(key).map(drop)?),
        });
        self.failure = written.err();
    }
}

impl WriteState {
    /// Updates the ledger and the mirror.
    fn replaced(&mut self, tree: Tree, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) {
        self.ledger.tallies.replace(tree, old, new);
        let bytes = |row: &[u8]| (key.len() + row.len()) as u64;
        self.live_bytes += new.map_or(0, bytes);
        self.live_bytes = self.live_bytes.saturating_sub(old.map_or(0, bytes));
        self.copy(tree, key, new);
    }

    fn copy(&mut self, tree: Tree, key: &[u8], row: Option<&[u8]>) {
        if let Some(mirror) = &mut self.mirror {
            mirror.write(tree, key, row);
        }
        #[cfg(test)]
        if let Some(recorded) = &mut self.recorded {
            recorded.push((tree, key.to_vec(), row.map(<[u8]>::to_vec)));
        }
    }

    /// Writes a row of `meta` that no ledger counts.
    fn put_meta(&mut self, meta: &sled::Tree, key: &[u8], payload: &[u8]) -> Result<(), Failure> {
        let row = rows::seal(Tree::Meta, key, payload);
        meta.insert(key, &*row)?;
        self.copy(Tree::Meta, key, Some(&row));
        Ok(())
    }
}

/// Opens or creates the sled database in the directory `path`. If a read of its log fails, then or
/// later, the process exits: sled would take the failure for the end of the log.
pub(super) fn open_sled(path: &Path, cache_bytes: u64) -> Result<sled::Db, Failure> {
    open_watched(path, cache_bytes, OnReadError::Exit)
}

/// Opens a copy that may be discarded. After reading it, the caller must call [`check_reads`].
pub(super) fn open_copy(path: &Path, cache_bytes: u64) -> Result<sled::Db, Failure> {
    open_watched(path, cache_bytes, OnReadError::Record)
}

/// Fails if a read of the log in `path` has failed since [`open_copy`].
pub(super) fn check_reads(path: &Path) -> Result<(), Failure> {
    watched::take_read_error(&path.join("db")).map_or(Ok(()), |why| Err(Failure::Unread(why)))
}

fn open_watched(
    path: &Path,
    cache_bytes: u64,
    on_read_error: OnReadError,
) -> Result<sled::Db, Failure> {
    let log = path.join("db");
    wait_for_release(&log);
    remove_unfinished_snapshots(path).map_err(|error| {
        Failure::Database(format!("cannot remove an unfinished snapshot of the database: {error}"))
    })?;
    read_through(path)?;
    let config = sled::Config::new()
        .path(path)
        .mode(sled::Mode::HighThroughput)
        .flush_every_ms(None)
        .cache_capacity(cache_bytes);
    let existed = watched::watch(&log, on_read_error);
    let db = config.open().map_err(|error| match (error, on_read_error) {
        // A snapshot or `conf`, which sled reads by calls that are not watched.
        (sled::Error::Io(error), OnReadError::Record) if error.raw_os_error().is_some() => {
            Failure::Unread(format!("cannot read {}: {error}", path.display()))
        }
        (error, _) => error.into(),
    })?;
    if !existed {
        watched::watch(&log, on_read_error);
    }
    Ok(db)
}

/// Removes snapshots that a crash interrupted. sled writes `snap.….generating` and renames it, but
/// when opening it takes such a file for a complete snapshot and gives up if it is torn. Until the
/// rename the previous snapshot and the log that it needs are still there.
fn remove_unfinished_snapshots(store: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(store) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("snap.") && name.ends_with(".generating") {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Reads every file of the database once, so that a failing disk is found before sled changes
/// anything. sled then reads from the page cache; `watched.rs` covers pages that were evicted.
/// With a warm cache 500 MiB take 0.05 s in reads of 1 MiB.
fn read_through(store: &Path) -> Result<(), Failure> {
    let mut buffer = vec![0; 1 << 20];
    let mut read = |path: &Path| -> io::Result<()> {
        let mut file = File::open(path)?;
        while file.read(&mut buffer)? > 0 {}
        Ok(())
    };
    let unread = |path: &Path, error: &io::Error| {
        Failure::Unread(format!("cannot read {}: {error}", path.display()))
    };
    let entries = match fs::read_dir(store) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|error| unread(store, &error))?,
    };
    for entry in entries {
        let path = entry.map_err(|error| unread(store, &error))?.path();
        // The only directory, `blobs`, is empty: no row is too large for a leaf.
        if !path.is_dir() {
            read(&path).map_err(|error| unread(&path, &error))?;
        }
    }
    Ok(())
}

/// Waits until sled has released its file. A thread of sled's pool can hold it for a moment after
/// this process dropped the last handle, and sled would fail at once. The data directory is locked,
/// so no other process has it.
fn wait_for_release(file: &Path) {
    const PAUSE: Duration = Duration::from_millis(1);
    const MAX_PAUSES: u32 = 5_000;
    let Ok(file) = File::open(file) else {
        return;
    };
    for _ in 0..MAX_PAUSES {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            // Dropping the file unlocks it. sled reports any error itself.
            Ok(()) | Err(TryLockError::Error(_)) => return,
        }
    }
}

impl Database {
    /// For a database in the newest format.
    pub(super) fn new(db: sled::Db) -> Result<Self, Failure> {
        let meta = db.open_tree(Tree::Meta.name())?;
        let missing = || rows::damage(Tree::Meta, keys::LEDGER, "is missing");
        let ledger = Ledger::load(&meta)?.ok_or_else(missing)?;
        let write_state = WriteState {
            ledger,
            open: false,
            settling: !ledger::binds(&ledger, &meta)?,
            marker_file: None,
            live_bytes: 0,
            mirror: None,
            #[cfg(test)]
            recorded: None,
        };
        Self::with(db, Arc::new(Mutex::new(write_state)), Arc::default())
    }

    /// For a database that will replace this one. Both share the ledger and the snapshot.
    pub(super) fn beside(&self, db: sled::Db) -> Result<Self, Failure> {
        Self::with(db, Arc::clone(&self.write_state), Arc::clone(&self.kept))
    }

    fn with(
        db: sled::Db,
        write_state: Arc<Mutex<WriteState>>,
        kept: Arc<Mutex<Option<KeptRows>>>,
    ) -> Result<Self, Failure> {
        let tree = |tree: Tree| db.open_tree(tree.name());
        Ok(Self {
            meta: tree(Tree::Meta)?,
            tasks: tree(Tree::Tasks)?,
            values: tree(Tree::Values)?,
            progress: tree(Tree::Progress)?,
            dead_letters: tree(Tree::DeadLetters)?,
            replicas: tree(Tree::Replicas)?,
            idempotency: tree(Tree::Idempotency)?,
            db,
            write_state,
            kept,
        })
    }

    /// Makes everything written so far durable, as one commit.
    pub(super) fn flush(&self) -> Result<(), Failure> {
        let mut write_state = self.write_state();
        if write_state.open {
            write_state.ledger.number += 1;
            let payload = write_state.ledger.payload();
            write_state.put_meta(&self.meta, keys::LEDGER, &payload)?;
            write_state.open = false;
            write_state.settling = false;
        }
        self.db.flush()?;
        let WriteState { ledger, marker_file, .. } = &mut *write_state;
        if let Some(marker_file) = marker_file {
            marker_file.flushed(ledger.number);
        }
        Ok(())
    }

    /// Also returns whether the trees must match the ledger.
    pub(super) fn ledger(&self) -> (Ledger, bool) {
        let write_state = self.write_state();
        (write_state.ledger, !write_state.settling)
    }

    /// Takes over the result of a scan.
    pub(super) fn adopt(&self, highest: Option<TaskId>, tallies: Tallies, live_bytes: u64) {
        let mut write_state = self.write_state();
        write_state.live_bytes = live_bytes;
        write_state.ledger.highest = write_state.ledger.highest.max(highest.unwrap_or(TaskId(0)));
        write_state.ledger.tallies = tallies;
    }

    pub(super) fn set_marker(&self, marker_file: MarkerFile) {
        self.write_state().marker_file = Some(marker_file);
    }

    fn write_state(&self) -> MutexGuard<'_, WriteState> {
        // A panic while writing has failed the store: nothing commits after it.
        self.write_state.lock()
    }

    /// The rows kept for a snapshot; `None` unless one is being read.
    pub(super) fn kept(&self) -> MutexGuard<'_, Option<KeptRows>> {
        self.kept.lock()
    }

    pub(super) fn tree(&self, tree: Tree) -> &sled::Tree {
        match tree {
            Tree::Meta => &self.meta,
            Tree::Tasks => &self.tasks,
            Tree::Values => &self.values,
            Tree::Progress => &self.progress,
            Tree::DeadLetters => &self.dead_letters,
            Tree::Replicas => &self.replicas,
            Tree::Idempotency => &self.idempotency,
        }
    }

    pub(super) fn put(&self, tree: Tree, key: &[u8], payload: &[u8]) -> Result<(), Failure> {
        let row = rows::seal(tree, key, payload);
        let mut write_state = self.write_state();
        let old = {
            let mut kept = self.kept();
            let old = self.tree(tree).insert(key, &*row)?;
            if let Some(kept) = &mut *kept {
                kept.keep(tree, key, old.as_deref());
            }
            old
        };
        write_state.open = true;
        write_state.replaced(tree, key, old.as_deref(), Some(&row));
        Ok(())
    }

    pub(super) fn take(&self, tree: Tree, key: &[u8]) -> Result<Option<sled::IVec>, Failure> {
        // No ledger counts the rows of this tree.
        if tree != Tree::Idempotency {
            self.begin_settling()?;
        }
        let mut write_state = self.write_state();
        let old = {
            let mut kept = self.kept();
            let old = self.tree(tree).remove(key)?;
            if let (Some(kept), Some(old)) = (&mut *kept, &old) {
                kept.keep(tree, key, Some(old));
            }
            old
        };
        write_state.open = true;
        write_state.replaced(tree, key, old.as_deref(), None);
        Ok(old)
    }

    /// Must be called before a row of an earlier commit changes. Writes the `settling` row, once
    /// per ledger.
    fn begin_settling(&self) -> Result<(), Failure> {
        let mut write_state = self.write_state();
        if !write_state.settling {
            let number = write_state.ledger.number.to_be_bytes();
            write_state.put_meta(&self.meta, keys::SETTLING, &number)?;
            write_state.settling = true;
            write_state.open = true;
        }
        Ok(())
    }

    pub(super) fn live_bytes(&self) -> u64 {
        self.write_state().live_bytes
    }

    /// From now on every row is also written to `other`.
    pub(super) fn mirror_to(&self, other: Option<&Self>) {
        let trees = |other: &Self| TREES.map(|tree| (tree, other.tree(tree).clone())).to_vec();
        self.write_state().mirror =
            other.map(|other| Mirror { trees: trees(other), failure: None });
    }

    /// The error of the mirror, if it failed. Then it is no longer written to.
    pub(super) fn mirror_failure(&self) -> Option<Failure> {
        let mut write_state = self.write_state();
        let failure = write_state.mirror.as_mut()?.failure.take()?;
        write_state.mirror = None;
        Some(failure)
    }

    /// Makes all rows durable without writing a ledger. In a mirror the ledger is a copied row.
    pub(super) fn flush_rows(&self) -> Result<(), Failure> {
        self.db.flush()?;
        Ok(())
    }

    /// The exclusive upper bound of all ids that may have been used; `None` in a new store.
    pub(super) fn sequence(&self) -> Result<Option<TaskId>, Failure> {
        Ok(rows::read_meta(&self.meta, keys::SEQUENCE, rows::number)?.map(TaskId))
    }

    pub(super) fn set_sequence(&self, end: TaskId) -> Result<(), Failure> {
        self.put(Tree::Meta, keys::SEQUENCE, &end.0.to_be_bytes())
    }

    /// Whether strong writes may have been sent before they were durable.
    pub(super) fn sends_early(&self) -> Result<bool, Failure> {
        Ok(rows::read_meta(&self.meta, keys::SENDS_EARLY, rows::number)? == Some(1))
    }

    pub(super) fn set_sends_early(&self, early: bool) -> Result<(), Failure> {
        self.put(Tree::Meta, keys::SENDS_EARLY, &u64::from(early).to_be_bytes())
    }

    pub(super) fn set_replica(&self, node: &Node, row: Option<&ReplicaRow>) -> Result<(), Failure> {
        let key = keys::of_replica(node);
        match row {
            Some(row) => {
                self.begin_settling()?;
                self.put(Tree::Replicas, key, &rows::replica(row)?)?;
            }
            None => drop(self.take(Tree::Replicas, key)?),
        }
        Ok(())
    }

    pub(super) fn set_idempotency(
        &self,
        key: &str,
        row: Option<&IdempotencyRow>,
    ) -> Result<(), Failure> {
        match row {
            Some(row) => self.put(Tree::Idempotency, key.as_bytes(), &rows::idempotency(row)?)?,
            None => drop(self.take(Tree::Idempotency, key.as_bytes())?),
        }
        Ok(())
    }
}

#[cfg(test)]
impl Database {
    pub(super) fn record_rows(&self) {
        self.write_state().recorded = Some(Vec::new());
    }

    /// All rows since [`Self::record_rows`], in the order in which they were written.
    pub(super) fn recorded_rows(&self) -> Vec<WrittenRow> {
        self.write_state().recorded.clone().unwrap_or_default()
    }
}
