//! Compaction: copies the live rows into a fresh store beside the current one, and switches.
//!
//! sled reuses the space of removed rows but never returns it: a drained backlog of 390 MiB left a
//! file of 637 MiB. If the file is large compared with its live rows, the committer's thread, between
//! its batches,
//!
//! 1. has a thread create a fresh database in `store-N.new`;
//! 2. then writes every new row to both, and copies the old rows in slices of a few milliseconds, in
//!    key order. Behind the cursor both are equal; rows ahead of it are copied as they are then;
//! 3. finally flushes both, renames the fresh store, names it in `CURRENT` and uses it. A thread
//!    removes the old one.
//!
//! A write is confirmed by the flush of the current store alone. A fresh store is durable before
//! `CURRENT` names it, so its row order does not matter. If it fails, for example on a full disk, it
//! is given up without an effect on the current store.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::Files;
use super::database::{Database, TREES};
use super::directory;
use super::error::{Failure, guarded};
use super::integrity::commit_marker::MarkerFile;
use crate::faults;

/// A file smaller than this plus twice its live bytes is not compacted. The promise is 64 MiB plus
/// twice the live bytes; sled itself needs up to 1.8 times (1,000,000 rows of 300 B took 528 MB).
const FLOOR_BYTES: u64 = 48 << 20;
/// The floor when the disk is nearly full.
const FLOOR_BYTES_LOW: u64 = 1 << 20;
/// Limits of a slice: a row costs about 10 us, a flush 0.4 ms.
const SLICE_BYTES: usize = 256 << 10;
const SLICE_ROWS: usize = 256;
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// The delay after a compaction that was due but not possible.
const RETRY_INTERVAL: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(5);

/// Runs on the committer's thread, one turn at a time.
pub(super) struct Compactor {
    state: CompactionState,
    files: Arc<Files>,
    store: String,
    /// When the sizes are checked next; `None` while nothing changes.
    check_at: Option<Instant>,
    /// After a compaction that left the file large: the size that starts the next one.
    not_below: u64,
    /// The same for a low disk, after every compaction. Its floor is so low that one compaction
    /// would otherwise start the next.
    not_below_low: u64,
    removing: Option<JoinHandle<()>>,
}

enum CompactionState {
    Idle,
    Making { making: JoinHandle<Result<Database, Failure>>, name: String, since: Instant },
    Copying(Copying),
}

struct Copying {
    fresh: Database,
    name: String,
    since: Instant,
    /// Trees that are copied.
    through: usize,
    /// The last key that was copied in the next tree.
    cursor: Option<sled::IVec>,
    rows: u64,
    bytes: u64,
    longest_slice: Duration,
}

impl Compactor {
    pub(super) fn new(files: Arc<Files>) -> Self {
        Self {
            state: CompactionState::Idle,
            store: files.store.clone(),
            files,
            check_at: Some(now()),
            not_below: 0,
            not_below_low: 0,
            removing: None,
        }
    }

    /// To be called after a flush. Updates the free disk space at once, because new tasks are
    /// refused by it and the next batch can be large; the other sizes follow soon.
    pub(super) fn flushed(&mut self) {
        self.check_disk();
        self.check_at.get_or_insert_with(|| now() + CHECK_INTERVAL);
    }

    /// How long the committer may sleep; `None` for ever.
    pub(super) fn wait(&self) -> Option<Duration> {
        match &self.state {
            CompactionState::Idle => self.check_at.map(|at| at.saturating_duration_since(now())),
            CompactionState::Making { .. } => Some(POLL_INTERVAL),
            CompactionState::Copying(_) => Some(Duration::ZERO),
        }
    }

    /// Does a slice of the work. Everything in `database` must be flushed; at the end of a
    /// compaction it is replaced by the fresh one.
    pub(super) fn turn(&mut self, database: &mut Database) -> Result<(), Failure> {
        if self.check_at.is_some_and(|at| at <= now()) {
            self.check_at = None;
            self.check_sizes(database);
        }
        match std::mem::replace(&mut self.state, CompactionState::Idle) {
            CompactionState::Idle => {}
            CompactionState::Making { making, name, since } if making.is_finished() => {
                let panicked = |_| Err(Failure::Database("the rewrite thread has died".to_owned()));
                match making.join().unwrap_or_else(panicked) {
                    Ok(fresh) => {
                        database.mirror_to(Some(&fresh));
                        faults::point("rewrite.mirroring");
                        self.state = CompactionState::Copying(Copying {
                            fresh,
                            name,
                            since,
                            through: 0,
                            cursor: None,
                            rows: 0,
                            bytes: 0,
                            longest_slice: Duration::ZERO,
                        });
                    }
                    Err(failure) => self.give_up(&failure, &name),
                }
            }
            making @ CompactionState::Making { .. } => self.state = making,
            CompactionState::Copying(copying) => self.copy(copying, database)?,
        }
        Ok(())
    }

    fn check_disk(&self) -> Option<u64> {
        let free = self.files.directory.free_bytes();
        self.files.sizes.free.store(free.unwrap_or(u64::MAX), Ordering::Relaxed);
        free
    }

    fn check_sizes(&mut self, database: &Database) {
        let path = self.files.directory.path();
        let (file, live) = (file_bytes(&path.join(&self.store)), database.live_bytes());
        let free = self.check_disk();
        let sizes = &self.files.sizes;
        sizes.file.store(file, Ordering::Relaxed);
        sizes.live.store(live, Ordering::Relaxed);
        if free.is_some_and(|free| free < self.files.min_free_bytes)
            && let Some(kept) = &mut *database.kept()
        {
            kept.give_up("the disk is nearly full (--min-free-disk)");
        }
        if !matches!(self.state, CompactionState::Idle) {
            return self.flushed();
        }
        let reserve = self.files.min_free_bytes;
        let low = free.is_some_and(|free| free < reserve.saturating_add(reserve / 8));
        if low {
            // Space may become free without any write here.
            self.check_at = Some(now() + CHECK_INTERVAL);
        }
        let floor = if low { FLOOR_BYTES_LOW } else { faults::compaction_floor(FLOOR_BYTES) };
        let not_below = if low { self.not_below_low } else { self.not_below };
        if file < floor.saturating_add(2 * live) || file < not_below {
            return;
        }
        // Half of the reserve may be used for the copy. Without any, a disk that a backlog has
        // filled would stay full for ever.
        let copy = live.saturating_mul(2).saturating_add(FLOOR_BYTES_LOW / 2);
        if free.is_some_and(|free| free.saturating_sub(reserve / 2) < copy) {
            self.check_at = Some(now() + RETRY_INTERVAL);
            return;
        }
        self.begin(database, file, live);
    }

    fn begin(&mut self, database: &Database, file_bytes: u64, live_bytes: u64) {
        let name = directory::next_name(&self.store);
        let path = self.files.directory.unfinished(&name);
        info!(store = name, file_bytes, live_bytes, "rewriting the store to free disk space");
        let (old, dir) = (database.clone(), self.files.directory.path().to_owned());
        let cache_bytes = self.files.cache_bytes;
        let make = move || guarded(|| make(&old, &dir, &path, cache_bytes));
        let since = now();
        match thread::Builder::new().name("rewrite".to_owned()).spawn(make) {
            Ok(making) => self.state = CompactionState::Making { making, name, since },
            Err(error) => self.give_up(&Failure::Database(error.to_string()), &name),
        }
    }

    fn copy(&mut self, mut copying: Copying, database: &mut Database) -> Result<(), Failure> {
        let begun = now();
        let copied = match database.mirror_failure() {
            Some(failure) => Err(failure),
            None => copying.slice(database)?,
        };
        match copied {
            Err(failure) => {
                database.mirror_to(None);
                let Copying { fresh, name, .. } = copying;
                drop(fresh);
                self.give_up(&failure, &name);
            }
            Ok(false) => {
                copying.longest_slice = copying.longest_slice.max(begun.elapsed());
                self.state = CompactionState::Copying(copying);
            }
            Ok(true) => self.switch(copying, database, begun)?,
        }
        Ok(())
    }

    /// Both stores are equal and flushed: makes the fresh one current.
    fn switch(
        &mut self,
        copying: Copying,
        database: &mut Database,
        begun: Instant,
    ) -> Result<(), Failure> {
        let Copying { fresh, name, since, rows, bytes, longest_slice, .. } = copying;
        faults::point("rewrite.flushed");
        database.mirror_to(None);
        let directory = &self.files.directory;
        if let Err(error) = directory.announce(&name) {
            drop(fresh);
            self.give_up(&error.into(), &name);
            return Ok(());
        }
        directory.adopt(&name)?;
        let number = database.ledger().0.number;
        database.set_marker(MarkerFile::begin(directory.path(), &name, number)?);
        self.files.require_presence(&name)?;
        faults::point("rewrite.witnessed");
        let old = std::mem::replace(database, fresh);
        let shared = self.files.replace_database(database.clone());
        let old_path = directory.path().join(std::mem::replace(&mut self.store, name));
        self.files.sizes.compactions.fetch_add(1, Ordering::Relaxed);

        let (file, live) = (file_bytes(&directory.path().join(&self.store)), database.live_bytes());
        let small = file < faults::compaction_floor(FLOOR_BYTES).saturating_add(2 * live);
        self.not_below = if small { 0 } else { file.saturating_mul(2) };
        self.not_below_low = file.saturating_mul(2);
        info!(
            store = self.store,
            rows,
            bytes,
            file_bytes = file,
            live_bytes = live,
            seconds = since.elapsed().as_secs_f64(),
            longest_slice_seconds = longest_slice.as_secs_f64(),
            switch_seconds = begun.elapsed().as_secs_f64(),
            "the store is rewritten"
        );
        // Dropping a database is slow. The thread holds `files`, and so the lock, until then.
        let files = Arc::clone(&self.files);
        let remove = move || {
            drop((old, shared));
            faults::point("rewrite.old-dropped");
            if let Err(error) = fs::remove_dir_all(&old_path) {
                warn!(path = %old_path.display(), %error, "cannot remove the old store; the next start will");
            }
            faults::point("rewrite.old-removed");
            drop(files);
        };
        self.join_removal();
        self.removing = thread::Builder::new().name("remove".to_owned()).spawn(remove).ok();
        self.flushed();
        Ok(())
    }

    fn give_up(&mut self, failure: &Failure, name: &str) {
        warn!(store = name, error = %failure, "the rewrite of the store failed; the store itself is intact");
        remove_unfinished(&self.files, name);
        self.check_at = Some(now() + RETRY_INTERVAL);
    }

    fn join_removal(&mut self) {
        if let Some(removing) = self.removing.take() {
            // It has logged any error itself.
            let _ = removing.join();
        }
    }

    /// Abandons a compaction in progress and waits for the threads.
    pub(super) fn close(mut self, database: &Database) {
        database.mirror_to(None);
        let name = match std::mem::replace(&mut self.state, CompactionState::Idle) {
            CompactionState::Idle => None,
            CompactionState::Making { making, name, .. } => {
                drop(making.join());
                Some(name)
            }
            CompactionState::Copying(copying) => Some(copying.name),
        };
        if let Some(name) = name {
            remove_unfinished(&self.files, &name);
        }
        self.join_removal();
    }
}

impl Copying {
    /// Copies one slice and returns whether it was the last. The inner error is that of the fresh
    /// store.
    fn slice(&mut self, old: &Database) -> Result<Result<bool, Failure>, Failure> {
        let (mut rows, mut bytes) = (0, 0);
        while let Some(&tree) = TREES.get(self.through) {
            let from = match &self.cursor {
                Some(key) => std::ops::Bound::Excluded(key.clone()),
                None => std::ops::Bound::Unbounded,
            };
            let into = self.fresh.tree(tree);
            for row in old.tree(tree).range((from, std::ops::Bound::Unbounded)) {
                let (key, row) = row?;
                rows += 1;
                bytes += key.len() + row.len();
                if let Err(failure) = guarded(|| Ok(into.insert(&key, row).map(drop)?)) {
                    return Ok(Err(failure));
                }
                self.cursor = Some(key);
                if rows >= SLICE_ROWS || bytes >= SLICE_BYTES {
                    break;
                }
            }
            if rows >= SLICE_ROWS || bytes >= SLICE_BYTES {
                break;
            }
            self.through += 1;
            self.cursor = None;
        }
        self.rows += rows as u64;
        self.bytes += bytes as u64;
        faults::point("rewrite.slice-copied");
        if let Err(failure) = guarded(|| self.fresh.flush_rows()) {
            return Ok(Err(failure));
        }
        faults::point("rewrite.slice-flushed");
        Ok(Ok(self.through == TREES.len()))
    }
}

fn make(old: &Database, dir: &Path, path: &Path, cache_bytes: u64) -> Result<Database, Failure> {
    directory::make_empty(path)?;
    faults::point("rewrite.begun");
    let database = old.beside(super::open_sled(path, cache_bytes)?)?;
    database.flush_rows()?;
    faults::point("rewrite.made");
    directory::sync_store(path)?;
    directory::sync(dir)?;
    faults::point("rewrite.synced");
    Ok(database)
}

fn remove_unfinished(files: &Files, name: &str) {
    let path = files.directory.unfinished(name);
    if let Err(error) = fs::remove_dir_all(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        warn!(path = %path.display(), %error, "cannot remove an unfinished store; the next start will");
    }
}

/// 0 if unknown.
pub(super) fn file_bytes(store: &Path) -> u64 {
    fs::metadata(store.join("db")).map_or(0, |file| file.len())
}

#[expect(clippy::disallowed_methods, reason = "only for delays and for durations in the log")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
