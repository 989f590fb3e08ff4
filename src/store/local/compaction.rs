//! Gives space back: copies what lives into a fresh store beside the current one, and switches.
//!
//! sled uses the space of removed rows again and never returns it: a drained backlog of 390 MiB
//! left a file of 637 MiB. So when the file is large against what lives in it, the committer's
//! thread, between its batches,
//!
//! 1. has a fresh database made in `store-N.new`, by a thread of its own;
//! 2. from then on writes every row into both, and copies the old rows in slices of a few
//!    milliseconds, tree by tree in the order of the keys. Behind the cursor both are equal;
//!    what is ahead of it will be copied as it is then;
//! 3. when the cursor is through, and all is flushed in both: renames the fresh store, names it in
//!    `CURRENT`, and uses it. The old one is removed by a thread of its own.
//!
//! An acknowledgement needs the flush of the current store alone. What a crash leaves of the fresh
//! one is never looked at before `CURRENT` names it, and by then all of it is durable; so the
//! order in which its rows were written means nothing. Whatever `CURRENT` does not name is
//! removed at the next start. A fresh store that fails, on a full disk, is given up: the current
//! one is not touched by it.

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
use super::integrity::rebuild::told;
use crate::faults;

/// A file below this, and what lives twice over, is left alone. The promise is 64 MiB and twice
/// what lives; sled itself needs up to 1.8 times as much (1,000,000 rows of 300 B took 528 MB).
const FLOOR_BYTES: u64 = 48 << 20;
/// The floor where the disk runs out of room and every megabyte counts.
const FLOOR_BYTES_LOW: u64 = 1 << 20;
/// A slice ends with so many bytes or rows: a row costs about 10 us, a flush 0.4 ms.
const SLICE_BYTES: usize = 256 << 10;
const SLICE_ROWS: usize = 256;
/// How often the sizes are looked at while there is traffic.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How soon they are looked at again where a compaction was due and could not be.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How often the making of the fresh database is looked after.
const POLL_EVERY: Duration = Duration::from_millis(5);

/// Watches the sizes and compacts the store; one turn at a time, by the committer's thread.
pub(super) struct Compactor {
    state: State,
    files: Arc<Files>,
    /// The name of the current store.
    store: String,
    /// When the sizes are looked at next; `None` while nothing changes.
    look_at: Option<Instant>,
    /// After a compaction that could not make it small: how large the file must be for another.
    not_below: u64,
    /// The same while the disk is low, after every compaction: one that is begun for so little must not
    /// follow on itself.
    not_below_low: u64,
    removing: Option<JoinHandle<()>>,
}

enum State {
    Idle,
    Making { making: JoinHandle<Result<Fresh, Failure>>, name: String, since: Instant },
    Copying(Copying),
}

/// A database that was just made.
struct Fresh {
    database: Database,
}

struct Copying {
    fresh: Fresh,
    name: String,
    since: Instant,
    /// How many of the trees are through, and the last key that was copied in the next one.
    through: usize,
    cursor: Option<sled::IVec>,
    rows: u64,
    bytes: u64,
    /// The longest turn of the committer that went into it.
    longest: Duration,
}

impl Compactor {
    pub(super) fn new(files: Arc<Files>) -> Self {
        let store = files.store.clone();
        let look_at = Some(now());
        Self {
            state: State::Idle,
            files,
            store,
            look_at,
            not_below: 0,
            not_below_low: 0,
            removing: None,
        }
    }

    /// Something was flushed: the sizes are to be looked at soon, what is free on the disk at once.
    /// New tasks are refused by that, and the next batch of them can be large.
    pub(super) fn flushed(&mut self) {
        self.look_at_disk();
        self.look_at.get_or_insert_with(|| now() + LOOK_EVERY);
    }

    /// How long the committer may sleep.
    pub(super) fn wait(&self) -> Option<Duration> {
        match &self.state {
            State::Idle => self.look_at.map(|at| at.saturating_duration_since(now())),
            State::Making { .. } => Some(POLL_EVERY),
            State::Copying(_) => Some(Duration::ZERO),
        }
    }

    /// Does a little of what is to be done. Everything in `database` must have been flushed; at
    /// the end of a compaction it becomes the fresh one.
    pub(super) fn turn(&mut self, database: &mut Database) -> Result<(), Failure> {
        if self.look_at.is_some_and(|at| at <= now()) {
            self.look_at = None;
            self.look(database);
        }
        match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => {}
            State::Making { making, name, since } if making.is_finished() => {
                match making.join().unwrap_or_else(|_| Err(died())) {
                    Ok(fresh) => {
                        database.mirror_to(Some(&fresh.database));
                        faults::point("rewrite.mirroring");
                        self.state = State::Copying(Copying {
                            fresh,
                            name,
                            since,
                            through: 0,
                            cursor: None,
                            rows: 0,
                            bytes: 0,
                            longest: Duration::ZERO,
                        });
                    }
                    Err(failure) => self.give_up(&failure, &name),
                }
            }
            making @ State::Making { .. } => self.state = making,
            State::Copying(copying) => self.copy(copying, database)?,
        }
        Ok(())
    }

    fn look_at_disk(&self) -> Option<u64> {
        let free = self.files.directory.free_bytes();
        self.files.sizes.free.store(free.unwrap_or(u64::MAX), Ordering::Relaxed);
        free
    }

    /// Publishes the sizes, and begins a compaction if one is due.
    fn look(&mut self, database: &Database) {
        let path = self.files.directory.path();
        let (file, live) = (file_bytes(&path.join(&self.store)), database.live_bytes());
        let free = self.look_at_disk();
        let sizes = &self.files.sizes;
        sizes.file.store(file, Ordering::Relaxed);
        sizes.live.store(live, Ordering::Relaxed);
        if !matches!(self.state, State::Idle) {
            return self.flushed();
        }
        let reserve = self.files.min_free_bytes;
        let low = free.is_some_and(|free| free < reserve.saturating_add(reserve / 8));
        if low {
            // Room may appear without anything being written here.
            self.look_at = Some(now() + LOOK_EVERY);
        }
        let floor = if low { FLOOR_BYTES_LOW } else { faults::compaction_floor(FLOOR_BYTES) };
        let not_below = if low { self.not_below_low } else { self.not_below };
        if file < floor.saturating_add(2 * live) || file < not_below {
            return;
        }
        // Half of the reserve is for this: with no room at all for a copy, a disk that one
        // backlog has filled would stay full for ever.
        let copy = live.saturating_mul(2).saturating_add(FLOOR_BYTES_LOW / 2);
        if free.is_some_and(|free| free.saturating_sub(reserve / 2) < copy) {
            self.look_at = Some(now() + LOOK_AGAIN);
            return;
        }
        self.begin(database, file, live);
    }

    fn begin(&mut self, database: &Database, file_bytes: u64, live_bytes: u64) {
        let name = directory::next_name(&self.store);
        let path = self.files.directory.unfinished(&name);
        info!(store = name, file_bytes, live_bytes, "rewriting the store to give space back");
        let (old, dir) = (database.clone(), self.files.directory.path().to_owned());
        let cache_bytes = self.files.cache_bytes;
        let make = move || guarded(|| make(&old, &dir, &path, cache_bytes));
        let since = now();
        match thread::Builder::new().name("rewrite".to_owned()).spawn(make) {
            Ok(making) => self.state = State::Making { making, name, since },
            Err(error) => self.give_up(&Failure::Database(error.to_string()), &name),
        }
    }

    fn copy(&mut self, mut copying: Copying, database: &mut Database) -> Result<(), Failure> {
        let begun = now();
        if let Some(failure) = database.mirror_failure() {
            let name = copying.name.clone();
            drop(copying);
            self.give_up(&failure, &name);
            return Ok(());
        }
        match copying.slice(database)? {
            Err(failure) => {
                database.mirror_to(None);
                let name = copying.name.clone();
                drop(copying);
                self.give_up(&failure, &name);
            }
            Ok(false) => {
                copying.longest = copying.longest.max(begun.elapsed());
                self.state = State::Copying(copying);
            }
            Ok(true) => self.switch(copying, database, begun)?,
        }
        Ok(())
    }

    /// All rows are in both, and flushed.
    fn switch(
        &mut self,
        copying: Copying,
        database: &mut Database,
        begun: Instant,
    ) -> Result<(), Failure> {
        let Copying { fresh, name, since, rows, bytes, longest, .. } = copying;
        faults::point("rewrite.flushed");
        database.mirror_to(None);
        let directory = &self.files.directory;
        if let Err(error) = directory.announce(&name) {
            drop(fresh);
            self.give_up(&told(error), &name);
            return Ok(());
        }
        directory.adopt(&name).map_err(told)?;
        let number = database.ledger().0.number;
        database.set_marker(MarkerFile::begin(directory.path(), &name, number).map_err(told)?);
        self.files.must_be_present(&name).map_err(told)?;
        faults::point("rewrite.witnessed");
        let old = std::mem::replace(database, fresh.database);
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
            longest_slice_seconds = longest.as_secs_f64(),
            switch_seconds = begun.elapsed().as_secs_f64(),
            "the store is rewritten"
        );
        // Dropping a database takes long. The files hold the lock on the directory until then.
        let files = Arc::clone(&self.files);
        let remove = move || {
            drop((old, shared));
            faults::point("rewrite.old-dropped");
            if let Err(error) = fs::remove_dir_all(&old_path) {
                warn!(path = %old_path.display(), %error, "the old store could not be removed; the next start will");
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
        warn!(store = name, error = %failure, "the rewrite of the store is given up; the store itself is well");
        remove_unfinished(&self.files, name);
        self.look_at = Some(now() + LOOK_AGAIN);
    }

    fn join_removal(&mut self) {
        if let Some(removing) = self.removing.take() {
            // It has said itself what went wrong.
            let _ = removing.join();
        }
    }

    /// Leaves no work undone and nothing half done.
    pub(super) fn close(mut self, database: &Database) {
        database.mirror_to(None);
        let name = match std::mem::replace(&mut self.state, State::Idle) {
            State::Idle => None,
            State::Making { making, name, .. } => {
                drop(making.join());
                Some(name)
            }
            State::Copying(copying) => Some(copying.name.clone()),
        };
        if let Some(name) = name {
            remove_unfinished(&self.files, &name);
        }
        self.join_removal();
    }
}

impl Copying {
    /// Copies a few rows. Whether that were the last; the inner error is of the fresh store.
    fn slice(&mut self, old: &Database) -> Result<Result<bool, Failure>, Failure> {
        let (mut rows, mut bytes) = (0, 0);
        while let Some(&tree) = TREES.get(self.through) {
            let from = match &self.cursor {
                Some(key) => std::ops::Bound::Excluded(key.clone()),
                None => std::ops::Bound::Unbounded,
            };
            let into = self.fresh.database.tree(tree);
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
        if let Err(failure) = guarded(|| self.fresh.database.flush_rows()) {
            return Ok(Err(failure));
        }
        faults::point("rewrite.slice-flushed");
        Ok(Ok(self.through == TREES.len()))
    }
}

/// Makes the fresh database, with all that a power cut could take of its directory durable.
fn make(old: &Database, dir: &Path, path: &Path, cache_bytes: u64) -> Result<Fresh, Failure> {
    directory::make_empty(path).map_err(told)?;
    faults::point("rewrite.begun");
    let database = old.beside(super::open_sled(path, cache_bytes)?)?;
    database.flush_rows()?;
    faults::point("rewrite.made");
    directory::sync_store(path).map_err(told)?;
    directory::sync(dir).map_err(told)?;
    faults::point("rewrite.synced");
    Ok(Fresh { database })
}

fn remove_unfinished(files: &Files, name: &str) {
    let path = files.directory.unfinished(name);
    if let Err(error) = fs::remove_dir_all(&path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        warn!(path = %path.display(), %error, "cannot be removed; the next start will");
    }
}

/// The size of a store's file; 0 if the system does not say.
pub(super) fn file_bytes(store: &Path) -> u64 {
    fs::metadata(store.join("db")).map_or(0, |file| file.len())
}

fn died() -> Failure {
    Failure::Database("the thread that made the store has died".to_owned())
}

#[expect(
    clippy::disallowed_methods,
    reason = "only how long the committer sleeps and what the log says of it"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
