//! The open database: what it means to insert, save, remove or read a task, in rows and their order.
//!
//! The order within each operation is part of the format. What survives a crash is a prefix of
//! what was written, so wherever it ends, the rest must still make sense: a task's row comes
//! after its chunks and goes before them, and a dead letter's row comes before the progress that
//! refers to it and goes after it.
//!
//! Every row is written and removed by `put` and `take`, which keep the
//! [`ledger`](super::integrity::ledger) true.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;

use super::error::{Failure, guarded};
use super::integrity::commit_marker::MarkerFile;
use super::integrity::ledger::{self, Ledger, Tallies};
use super::keys::{self, Tree};
use super::rows::{self, Head, Header, IdempotencyRow, Nodes, ReplicaRow, Stream};
use super::watched::{self, OnUnread};
use crate::faults;
use crate::task::{Idempotency, Node, Progress, ReplicaIndex, Task, TaskId};

/// All trees, in the order in which a copy is made: a task's row comes before its values, as they
/// are removed.
pub(super) const TREES: [Tree; 7] = [
    Tree::Meta,
    Tree::Tasks,
    Tree::Values,
    Tree::Progress,
    Tree::DeadLetters,
    Tree::Replicas,
    Tree::Idempotency,
];

/// sled and our trees in it.
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
    /// Changed by one thread only, first recovery's, then the committer's. It must be the last to go:
    /// the commit marker in it says how far the log was durable when the database was closed.
    write_state: Arc<Mutex<WriteState>>,
}

/// What is written and not closed by a ledger yet.
#[derive(Debug)]
struct WriteState {
    /// The number is that of the last ledger written, the rest is up to date.
    ledger: Ledger,
    /// Something was written behind that ledger.
    open: bool,
    /// Settlements were begun behind it, and a row says so.
    settling: bool,
    /// Who is told of each commit.
    marker_file: Option<MarkerFile>,
    /// The length of all keys and rows but those of `meta`, in bytes.
    live_bytes: u64,
    /// Where every row goes as well, while the store is compacted.
    mirror: Option<Mirror>,
}

/// The trees of a second database that is to become equal.
#[derive(Debug)]
struct Mirror {
    trees: Vec<(Tree, sled::Tree)>,
    /// The first error of it. It gets nothing more then.
    failure: Option<Failure>,
}

impl Mirror {
    /// Writes or removes a row there. That it fails is no matter of the one that is in use.
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
    /// One row took the place of another, or of none.
    fn replaced(&mut self, tree: Tree, key: &[u8], old: Option<&[u8]>, new: Option<&[u8]>) {
        self.ledger.tallies.replace(tree, old, new);
        let bytes = |row: &[u8]| (key.len() + row.len()) as u64;
        self.live_bytes += new.map_or(0, bytes);
        self.live_bytes = self.live_bytes.saturating_sub(old.map_or(0, bytes));
        if let Some(mirror) = &mut self.mirror {
            mirror.write(tree, key, new);
        }
    }

    /// Writes a row that is about the rows of `meta`'s own database.
    fn put_meta(&mut self, meta: &sled::Tree, key: &[u8], payload: &[u8]) -> Result<(), Failure> {
        let row = rows::seal(Tree::Meta, key, payload);
        meta.insert(key, &*row)?;
        if let Some(mirror) = &mut self.mirror {
            mirror.write(Tree::Meta, key, Some(&row));
        }
        Ok(())
    }
}

/// Opens, or makes, the sled database in the directory `path`.
///
/// A read of its log that fails, then or later, ends the process: sled would take it for the end of
/// the log.
pub(super) fn open_sled(path: &Path, cache_bytes: u64) -> Result<sled::Db, Failure> {
    open_watched(path, cache_bytes, OnUnread::End)
}

/// Opens a copy, which nobody misses. Once it was read, [`unread`] must be asked.
pub(super) fn open_copy(path: &Path, cache_bytes: u64) -> Result<sled::Db, Failure> {
    open_watched(path, cache_bytes, OnUnread::Keep)
}

/// Whether a read of the log in `path` has failed since it was opened by [`open_copy`].
pub(super) fn unread(path: &Path) -> Result<(), Failure> {
    watched::unread(&path.join("db")).map_or(Ok(()), |why| Err(Failure::Unread(why)))
}

fn open_watched(path: &Path, cache_bytes: u64, on_unread: OnUnread) -> Result<sled::Db, Failure> {
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
    let was_there = watched::watch(&log, on_unread);
    let db = config.open().map_err(|error| match (error, on_unread) {
        // Not of the log: of a snapshot or the configuration, which it reads in another way.
        (sled::Error::Io(error), OnUnread::Keep) if error.raw_os_error().is_some() => {
            Failure::Unread(format!("cannot read {}: {error}", path.display()))
        }
        (error, _) => error.into(),
    })?;
    if !was_there {
        watched::watch(&log, on_unread);
    }
    Ok(db)
}

/// Removes the snapshots that a crash has kept sled from finishing. It writes one in three steps to
/// `snap.….generating` and renames it then, but takes a file of that name for a whole one when it
/// opens, and gives up the store where it is torn. Until it has its name the snapshot before it is
/// there, and so is all of the log that one needs.
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

/// Reads every file of the database once, to nowhere, so that a disk that fails is found before sled
/// touches anything, with the store as it was. What sled reads then is in the page cache; where it is
/// not any more and cannot be read again, `watched.rs` knows. From the cache 500 MiB take 0.05 s in
/// reads of 1 MiB.
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
        // Where there is no row too large for a leaf, the only directory is empty.
        if !path.is_dir() {
            read(&path).map_err(|error| unread(&path, &error))?;
        }
    }
    Ok(())
}

/// Waits until sled has let go of its file. Where this process had the database open before, a
/// thread of sled's pool can hold the file for a moment after the last handle was dropped, and
/// sled itself would give up at once. Nobody else can have it: the data directory is locked.
fn wait_for_release(file: &Path) {
    const PAUSE: Duration = Duration::from_millis(1);
    const PATIENCE: u32 = 5_000;
    let Ok(file) = File::open(file) else {
        return;
    };
    for _ in 0..PATIENCE {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
            // Dropping the file unlocks it again. Any error is sled's to report.
            Ok(()) | Err(TryLockError::Error(_)) => return,
        }
    }
}

impl Database {
    /// The trees of a database in the newest format.
    pub(super) fn new(db: sled::Db) -> Result<Self, Failure> {
        let tree = |tree: Tree| db.open_tree(tree.name());
        let meta = tree(Tree::Meta)?;
        let missing = || rows::damage(Tree::Meta, keys::LEDGER, "is missing");
        let ledger = Ledger::load(&meta)?.ok_or_else(missing)?;
        let settling = !ledger::binds(&ledger, &meta)?;
        let write_state = WriteState {
            ledger,
            open: false,
            settling,
            marker_file: None,
            live_bytes: 0,
            mirror: None,
        };
        Ok(Self {
            write_state: Arc::new(Mutex::new(write_state)),
            meta,
            tasks: tree(Tree::Tasks)?,
            values: tree(Tree::Values)?,
            progress: tree(Tree::Progress)?,
            dead_letters: tree(Tree::DeadLetters)?,
            replicas: tree(Tree::Replicas)?,
            idempotency: tree(Tree::Idempotency)?,
            db,
        })
    }

    /// Makes all that was written so far durable, as one commit.
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

    /// The ledger as it is on disk when nothing was written since the last flush; and whether the
    /// trees must hold what it says.
    pub(super) fn ledger(&self) -> (Ledger, bool) {
        let write_state = self.write_state();
        (write_state.ledger, !write_state.settling)
    }

    /// Takes what recovery found for what there must be from now on.
    pub(super) fn adopt(&self, highest: Option<TaskId>, tallies: Tallies, live_bytes: u64) {
        let mut write_state = self.write_state();
        write_state.live_bytes = live_bytes;
        write_state.ledger.highest = write_state.ledger.highest.max(highest.unwrap_or(TaskId(0)));
        write_state.ledger.tallies = tallies;
    }

    /// From now on each commit is told to `marker_file`.
    pub(super) fn set_marker(&self, marker_file: MarkerFile) {
        self.write_state().marker_file = Some(marker_file);
    }

    fn write_state(&self) -> MutexGuard<'_, WriteState> {
        // Who panicked while it wrote has ended the store; nobody commits after it.
        self.write_state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rows of a tree.
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

    /// Writes a row.
    pub(super) fn put(&self, tree: Tree, key: &[u8], payload: &[u8]) -> Result<(), Failure> {
        let row = rows::seal(tree, key, payload);
        let mut write_state = self.write_state();
        let old = self.tree(tree).insert(key, &*row)?;
        write_state.open = true;
        write_state.replaced(tree, key, old.as_deref(), Some(&row));
        Ok(())
    }

    /// Removes a row and gives it back.
    pub(super) fn take(&self, tree: Tree, key: &[u8]) -> Result<Option<sled::IVec>, Failure> {
        // What no ledger counts, none can miss.
        if tree != Tree::Idempotency {
            self.begin_settling()?;
        }
        let mut write_state = self.write_state();
        let old = self.tree(tree).remove(key)?;
        write_state.open = true;
        write_state.replaced(tree, key, old.as_deref(), None);
        Ok(old)
    }

    /// Before rows of former commits change: says so on disk, once for each ledger.
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

    /// The length of all keys and rows but those of `meta`, in bytes.
    pub(super) fn live_bytes(&self) -> u64 {
        self.write_state().live_bytes
    }

    /// The trees of a database that is to become equal to this one, with the same books.
    pub(super) fn beside(&self, db: sled::Db) -> Result<Self, Failure> {
        let tree = |tree: Tree| db.open_tree(tree.name());
        Ok(Self {
            write_state: Arc::clone(&self.write_state),
            meta: tree(Tree::Meta)?,
            tasks: tree(Tree::Tasks)?,
            values: tree(Tree::Values)?,
            progress: tree(Tree::Progress)?,
            dead_letters: tree(Tree::DeadLetters)?,
            replicas: tree(Tree::Replicas)?,
            idempotency: tree(Tree::Idempotency)?,
            db,
        })
    }

    /// From now on every row goes to `other` as well, or to none.
    pub(super) fn mirror_to(&self, other: Option<&Self>) {
        let trees = |other: &Self| TREES.map(|tree| (tree, other.tree(tree).clone())).to_vec();
        self.write_state().mirror =
            other.map(|other| Mirror { trees: trees(other), failure: None });
    }

    /// Why a row did not get into the mirror; it is none any more then.
    pub(super) fn mirror_failure(&self) -> Option<Failure> {
        let mut write_state = self.write_state();
        let failure = write_state.mirror.as_mut()?.failure.take()?;
        write_state.mirror = None;
        Some(failure)
    }

    /// Makes all rows durable, without a ledger: that of a mirror comes with the rows.
    pub(super) fn flush_rows(&self) -> Result<(), Failure> {
        self.db.flush()?;
        Ok(())
    }

    /// The exclusive upper bound of all ids that may have been used; `None` in a new store.
    pub(super) fn sequence(&self) -> Result<Option<TaskId>, Failure> {
        let key = keys::SEQUENCE;
        let Some(row) = self.meta.get(key)? else {
            return Ok(None);
        };
        let payload = rows::unseal(Tree::Meta, key, &row)?;
        let bytes =
            payload.try_into().map_err(|_| rows::damage(Tree::Meta, key, "does not decode"))?;
        Ok(Some(TaskId(u64::from_be_bytes(bytes))))
    }

    /// Writes [`Self::sequence`].
    pub(super) fn set_sequence(&self, end: TaskId) -> Result<(), Failure> {
        self.put(Tree::Meta, keys::SEQUENCE, &end.0.to_be_bytes())
    }

    /// Writes a new task, its chunks first, and in its row the key that its client gave it.
    pub(super) fn insert(
        &self,
        task: &Task,
        idempotency: Option<&Idempotency>,
    ) -> Result<(), Failure> {
        if task.id <= self.write_state().ledger.highest {
            // The ledger on disk counts up to there, and did not count this one.
            self.begin_settling()?;
        }
        let stream = Stream::of(task, idempotency)?;
        for (number, bytes) in stream.chunks() {
            self.put(Tree::Values, &keys::of_chunk(task.id, number), &bytes)?;
        }
        faults::point("commit.chunks-written");
        self.put(Tree::Tasks, &keys::of_task(task.id), &stream.head()?)?;
        faults::point("commit.row-written");
        let mut write_state = self.write_state();
        write_state.ledger.highest = write_state.ledger.highest.max(task.id);
        Ok(())
    }

    /// Writes what each replica has had of a task, in place of what was written before.
    pub(super) fn save(&self, id: TaskId, progress: &[Progress]) -> Result<(), Failure> {
        self.begin_settling()?;
        for (index, entry) in (0..=u16::MAX).zip(progress) {
            if let Progress::Dead(letter) = entry {
                let key = keys::of_dead_letter(id, ReplicaIndex(index));
                let payload = rows::dead_letter(letter)?;
                self.put(Tree::DeadLetters, &key, &payload)?;
                faults::point("settle.letter-written");
            }
        }
        let key = keys::of_task(id);
        if progress.iter().all(|entry| *entry == Progress::Untouched) {
            self.take(Tree::Progress, &key)?;
        } else {
            self.put(Tree::Progress, &key, &rows::progress(progress)?)?;
        }
        for entry in self.dead_letters.scan_prefix(key).keys() {
            let key = entry?;
            let replica = keys::dead_letter(&key).map(|(_, replica)| replica.get());
            let kept = replica.and_then(|replica| progress.get(replica));
            if !matches!(kept, Some(Progress::Dead(_))) {
                self.take(Tree::DeadLetters, &key)?;
            }
        }
        faults::point("settle.saved");
        Ok(())
    }

    /// Writes what is known of a replica, or forgets it.
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

    /// Writes what is known of an idempotency key, or forgets it.
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

    /// Removes all that there is of a task, its own row first.
    pub(super) fn remove(&self, id: TaskId) -> Result<(), Failure> {
        let key = keys::of_task(id);
        let Some(row) = self.take(Tree::Tasks, &key)? else {
            // Removed before. What a crash left of it was an orphan, and is gone since recovery.
            return Ok(());
        };
        faults::point("settle.row-removed");
        match Head::read(&key, &row) {
            Ok(head) => {
                for number in (0..).take(head.chunks()) {
                    self.take(Tree::Values, &keys::of_chunk(id, number))?;
                }
            }
            // It has been delivered all the same. Slower, for it has to look where there is nothing.
            Err(_) => {
                for entry in self.values.scan_prefix(key).keys() {
                    self.take(Tree::Values, &entry?)?;
                }
            }
        }
        self.take(Tree::Progress, &key)?;
        for entry in self.dead_letters.scan_prefix(key).keys() {
            self.take(Tree::DeadLetters, &entry?)?;
        }
        faults::point("settle.removed");
        Ok(())
    }

    /// Reads a task with its value; `None` if it is not, or no longer, there.
    pub(super) fn read(&self, id: TaskId) -> Result<Option<Task>, Failure> {
        let key = keys::of_task(id);
        let Some(row) = self.tasks.get(key)? else {
            return Ok(None);
        };
        let head = Head::read(&key, &row)?;
        let mut stream = head.bytes.to_vec();
        for number in (0..).take(head.chunks()) {
            let key = keys::of_chunk(id, number);
            let Some(row) = self.values.get(key)? else {
                // It may be on its way out just now: then its own row is gone already.
                return match self.tasks.contains_key(keys::of_task(id))? {
                    true => Err(rows::damage(Tree::Values, &key, "is missing").into()),
                    false => Ok(None),
                };
            };
            stream.extend_from_slice(rows::unseal(Tree::Values, &key, &row)?);
        }
        let does_not_decode = || rows::damage(Tree::Tasks, &key, "does not decode");
        if stream.len() != head.stream() {
            return Err(does_not_decode().into());
        }
        let stream = Bytes::from(stream);
        let envelope = stream.slice(..head.envelope);
        let header = rows::header(id, &envelope, head.value, &mut Nodes::default())
            .ok_or_else(does_not_decode)?;
        Ok(Some(Task {
            id,
            key: header.key,
            operation: header.operation,
            value: stream.slice(head.envelope..),
            accepted_at: header.accepted_at,
            expires_at: header.expires_at,
            replicas: header.replicas,
            user_id: header.user_id,
            consistency: header.consistency,
            trace: header.trace,
        }))
    }

    /// Reads a task without its value; `None` if it is not, or no longer, there.
    pub(super) fn header(&self, id: TaskId, nodes: &mut Nodes) -> Result<Option<Header>, Failure> {
        let key = keys::of_task(id);
        let Some(row) = self.tasks.get(key)? else {
            return Ok(None);
        };
        let head = Head::read(&key, &row)?;
        let spilled = match self.spilled(id, &head) {
            // As in `read`.
            Err(_) if !self.tasks.contains_key(key)? => return Ok(None),
            spilled => spilled?,
        };
        let envelope = spilled.as_deref().unwrap_or(head.bytes).get(..head.envelope);
        let header = envelope.and_then(|envelope| rows::header(id, envelope, head.value, nodes));
        let does_not_decode = || rows::damage(Tree::Tasks, &key, "does not decode");
        Ok(Some(header.ok_or_else(does_not_decode)?))
    }

    /// The stream of a task up to the end of the envelope if that is not in its row itself.
    pub(super) fn spilled(&self, id: TaskId, head: &Head<'_>) -> Result<Option<Vec<u8>>, Failure> {
        if head.envelope <= head.bytes.len() {
            return Ok(None);
        }
        let mut stream = head.bytes.to_vec();
        for (number, at) in (0..).take(head.chunks()).enumerate() {
            if stream.len() >= head.envelope {
                break;
            }
            let key = keys::of_chunk(id, at);
            let row = self.values.get(key)?;
            let row = row.ok_or_else(|| rows::damage(Tree::Values, &key, "is missing"))?;
            stream.extend_from_slice(rows::chunk(&key, &row, head, number)?);
        }
        Ok(Some(stream))
    }
}
