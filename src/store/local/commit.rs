//! The committer: the only thread that writes. A task is accepted when its commit returns.
//!
//! A flush costs about 0.4 ms whatever its size, so all waiting writes share one. A turn:
//!
//! 1. **gather**: take orders, up to [`MAX_BATCH_TASKS`] or [`MAX_BATCH_BYTES`]. New tasks are written
//!    as soon as they fill a row, so that writing overlaps with the requests that bring the next ones. An
//!    early one, and what follows it, waits for the commit, because it may be removed until then; the
//!    commit of early tasks alone waits for their removal (`early.rs`);
//! 2. **commit**: write the rest, flush, answer every caller in the order of the calls, then notify;
//! 3. **settle**: write settlements that have waited [`SETTLE_WITHIN`], or all of them for a sync.
//!    They share the flush of the next batch, or get their own if no batch comes.
//!
//! Between commit and settle the compaction gets a turn (`compaction.rs`).
//!
//! A lost settlement only repeats a delivery. The order needs this guarantee:
//!
//! **A settlement on disk implies the settlements of every older write of the same key to the same
//! replica.** Deliveries of one key to one replica settle in the order of their [`TaskId`]s, so
//! older settlements are on disk or in the map here. The map is written in ascending order of ids.
//! If a new batch interrupts that, it resumes at the lowest id. A crash leaves a prefix of the
//! writes. So a restart may repeat an older write before a newer one, never after it.
//!
//! **A record of a replica is written in its place among the tasks**: a task that is handed in later
//! becomes durable later.
//!
//! **A task and its idempotency key are in one row.** A second row, right behind it, keeps the key when
//! the task is gone; after a crash between the two, the next start restores it. Later changes of a
//! key are written with the settlements, before them. If one is lost, the answer to a strong write
//! comes from its task, which is still there, or a key is forgotten later.
//!
//! **Small tasks of one commit share rows.** Removals from one row are one write if they follow each other
//! in the order above, so a crash still leaves a prefix.
//!
//! **A task is written before its settlement**: both come through one queue, and a turn writes tasks
//! before settlements. A task that is removed before its commit began is not written at all.
//!
//! **Once a strong task is committed, the number of durable settlements is reported** (`settled.rs`).
//! Then strong writes may be sent before they are durable. A row in `meta` says so until the store is
//! closed, because a crash can lose a write that a replica has.
//!
//! The first error of the database is final: after a failed fsync the state of the disk is unknown.
//! Nothing is written any more and every call is refused. A panic counts as an error.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::Files;
use super::compaction::Compactor;
use super::database::Database;
use super::error::{Failure, guarded};
use super::presence::Lookout;
use super::rows::ROW_BYTES;
use super::settled::SettledCount;
use super::turns::CommitterTurns;
use crate::faults;
use crate::store::journal::{JournalEvent, Notify, Reply};
use crate::store::records::{CommitError, IdempotencyRow};
use crate::task::{Consistency, Idempotency, Partition, TaskId};

mod early;
mod orders;

pub use orders::Committer;

use early::EarlyTasks;
use orders::{Accept, Accepted, AfterCommit, Order, Settlement, answer, bytes};

/// Tasks per flush. Beyond it, writing the others (up to 10 µs each) takes longer than the flush.
const MAX_BATCH_TASKS: usize = 1024;
/// Bytes of keys and values per flush; the last task may exceed it.
const MAX_BATCH_BYTES: usize = 16 << 20;
/// How long a settlement waits for others. Most tasks are delivered within it, and then only their
/// removal is written.
const SETTLE_WITHIN: Duration = Duration::from_millis(20);
/// How long settlements may delay new tasks. Removing a task of 1 MiB removes 256 rows, and hundreds
/// of removals can be due when a replica comes back.
const SETTLE_FOR: Duration = Duration::from_millis(5);
/// With more waiting settlements they are written at once.
const MAX_SETTLEMENTS: usize = 4096;
/// Orders per turn, so that a flood of settlements cannot block the commit.
const MAX_ORDERS: usize = 8192;

/// Ids that a lease on disk covers ahead of their use.
const LEASE: u64 = 1 << 20;
/// A lease is renewed when this much is left. Ids are assigned before their commit. A few thousand
/// can be uncommitted at once, so every id that a client has seen is below the lease on disk.
const RENEW: u64 = LEASE / 2;

/// A caller that waits for all earlier orders.
struct Sync {
    reply: Reply,
    /// The last task with a settlement at the time of the call.
    through: Option<TaskId>,
    /// Only the flush is missing.
    written: bool,
}

pub(super) fn lease(next: TaskId) -> TaskId {
    TaskId(next.0.saturating_add(LEASE))
}

/// Starts the thread. `lease` is the one on disk.
pub(super) fn start(
    files: Arc<Files>,
    lease: TaskId,
    notify: Notify,
) -> std::io::Result<Committer> {
    let (sender, orders) = mpsc::channel();
    let writer = Writer::new(orders, files, lease, notify);
    let turns = writer.turns.clone();
    thread::Builder::new().name("committer".to_owned()).spawn(move || writer.live())?;
    Ok(Committer { orders: sender, turns })
}

struct Writer {
    orders: Receiver<Order>,
    database: Database,
    lookout: Lookout,
    turns: CommitterTurns,
    compactor: Compactor,
    notify: Notify,
    lease: TaskId,
    /// The newest task so far.
    newest: TaskId,
    /// The new tasks and replica records of this turn.
    batch: Vec<Accept>,
    batch_bytes: usize,
    /// How many of `batch` are written, and the bytes of the others.
    written: usize,
    unwritten_bytes: usize,
    early: EarlyTasks,
    /// When the first of `batch` was taken.
    batch_since: Option<Instant>,
    settlements: BTreeMap<TaskId, Settlement>,
    settled: SettledCount,
    key_changes: BTreeMap<Box<str>, Option<IdempotencyRow>>,
    /// When the first of `settlements` and `key_changes` came.
    waiting_since: Option<Instant>,
    unflushed: bool,
    syncs: Vec<Sync>,
    after_commit: Vec<AfterCommit>,
    grouping: bool,
    /// Set in the last turn.
    closing: Option<Closing>,
}

/// `None` if the last [`Committer`] was dropped.
type Closing = Option<Reply>;

impl Writer {
    fn new(orders: Receiver<Order>, files: Arc<Files>, lease: TaskId, notify: Notify) -> Self {
        Self {
            orders,
            database: files.database(),
            compactor: Compactor::new(Arc::clone(&files)),
            lookout: Lookout::new(files, now()),
            turns: CommitterTurns::default(),
            notify,
            lease,
            newest: TaskId(0),
            batch: Vec::new(),
            batch_bytes: 0,
            written: 0,
            unwritten_bytes: 0,
            early: EarlyTasks::default(),
            batch_since: None,
            settlements: BTreeMap::new(),
            settled: SettledCount::default(),
            key_changes: BTreeMap::new(),
            waiting_since: None,
            unflushed: false,
            syncs: Vec::new(),
            after_commit: Vec::new(),
            grouping: false,
            closing: None,
        }
    }

    fn live(mut self) {
        match guarded(|| self.work()) {
            Ok(()) => {
                let _turn = self.turns.begin();
                let closing = self.closing.take().flatten();
                // Orders that come later still fail to be sent, with the same error.
                self.orders.try_iter().for_each(|late| late.refuse(CommitError::Closed));
                // The files are closed before the caller is answered.
                let Self { database, lookout, compactor, orders, .. } = self;
                compactor.close(&database);
                drop((database, lookout, orders));
                answer(closing, Ok(()));
            }
            Err(failure) => self.fail(&failure),
        }
    }

    fn work(&mut self) -> Result<(), Failure> {
        while self.closing.is_none() {
            self.gather()?;
            let _turn = self.turns.begin();
            self.renew_lease()?;
            if !self.batch.is_empty() {
                self.commit()?;
            } else if self.unflushed
                || !self.after_commit.is_empty()
                || self.syncs.iter().any(|sync| sync.written)
            {
                self.flush()?;
            } else {
                self.report_settled();
            }
            self.compactor.turn(&mut self.database)?;
            if self.settlements_wait() == Some(Duration::ZERO) {
                self.settle()?;
            }
            self.lookout.look_if_due(now())?;
        }
        let _turn = self.turns.begin();
        while self.settlements_wait().is_some() {
            self.settle()?;
        }
        if self.database.sends_early()? {
            self.database.set_sends_early(false)?;
        }
        faults::point("shutdown.settled");
        self.flush()?;
        faults::point("shutdown.flushed");
        Ok(())
    }

    /// Waits for orders and takes them. Writes the new tasks.
    ///
    /// When the queue is empty it yields and looks again, while that brings more tasks: callers that
    /// were answered by the last flush return one by one, and a batch of the first alone would make
    /// the others wait for another flush. A single caller loses a microsecond.
    fn gather(&mut self) -> Result<(), Failure> {
        let mut alone_with = 0;
        for _ in 0..MAX_ORDERS {
            if self.closing.is_some()
                || self.batch.len() >= MAX_BATCH_TASKS
                || self.batch_bytes >= MAX_BATCH_BYTES
            {
                break;
            }
            match self.next() {
                Ok(Order::Accept(accept)) => self.take(accept)?,
                Ok(Order::Settle(id, settlement)) => self.take_settlement(id, settlement),
                Ok(Order::Keys(changes)) => {
                    if !changes.is_empty() {
                        self.waiting_since.get_or_insert_with(now);
                    }
                    self.key_changes.extend(changes);
                }
                Ok(Order::Sync(reply)) => {
                    let through = self.settlements.last_key_value().map(|(id, _)| *id);
                    let written = through.is_none() && self.key_changes.is_empty();
                    self.syncs.push(Sync { reply, through, written });
                }
                Ok(Order::AfterCommit(then)) => self.after_commit.push(then),
                Ok(Order::Group) => {
                    self.grouping = true;
                    // Earlier tasks get their own commit, so that the group fits into one.
                    if !self.batch.is_empty() {
                        break;
                    }
                }
                Ok(Order::GroupEnd) => self.grouping = false,
                Ok(Order::Close(reply)) => self.closing = Some(Some(reply)),
                Err(RecvTimeoutError::Timeout) if self.batch.len() > alone_with => {
                    alone_with = self.batch.len();
                    thread::yield_now();
                }
                Err(RecvTimeoutError::Timeout) => break,
                Err(RecvTimeoutError::Disconnected) => self.closing = Some(None),
            }
        }
        Ok(())
    }

    /// Takes a task or a record of a replica. Writes what fills a row, unless it must wait for the commit.
    fn take(&mut self, accept: Accept) -> Result<(), Failure> {
        let _turn = self.turns.begin();
        faults::point("commit.taken");
        self.batch_since.get_or_insert_with(now);
        if let Accepted::Task(task, key) = &accept.what {
            self.newest = self.newest.max(task.id);
            self.batch_bytes += bytes(task);
            self.unwritten_bytes += bytes(task);
            if let Some(Idempotency { key, .. }) = key {
                // They are of an earlier use of the key and would overwrite this one.
                self.key_changes.remove(key);
            }
        }
        if let Some(task) = accept.task().filter(|_| accept.is_early) {
            self.early.take(task.id, now());
        }
        // If more bytes of keys and values wait, the next row is full. A record of a replica has a row of
        // its own.
        let left = if accept.task().is_some() { ROW_BYTES } else { 0 };
        // First, so that a failure refuses it.
        self.batch.push(accept);
        if self.early.is_empty() { self.write_rows(left) } else { Ok(()) }
    }

    /// Writes the batch until no more than these bytes of keys and values are left.
    fn write_rows(&mut self, left: usize) -> Result<(), Failure> {
        while let Some([first, ..]) = self.batch.get(self.written..)
            && (left == 0 || self.unwritten_bytes > left)
        {
            let accepts = self.batch.iter().skip(self.written);
            let written = match &first.what {
                Accepted::Task(..) => {
                    self.database.insert(accepts.clone().map_while(Accept::task_and_key))?
                }
                Accepted::Replica(node, row) => {
                    self.database.set_replica(node, row.as_ref())?;
                    1
                }
            };
            for (task, key) in accepts.take(written).filter_map(Accept::task_and_key) {
                self.unwritten_bytes -= bytes(task);
                let Some(Idempotency { key, fingerprint }) = key else { continue };
                faults::point_after("commit.key-unwritten", || self.database.flush_rows())?;
                let row = IdempotencyRow::of(task, *fingerprint);
                self.database.set_idempotency(key, Some(&row))?;
            }
            self.written += written;
        }
        Ok(())
    }

    fn take_settlement(&mut self, id: TaskId, settlement: Settlement) {
        self.settled.count();
        if matches!(settlement, Settlement::Remove) && self.withdraw(id) {
            self.settlements.remove(&id);
        } else {
            self.settlements.insert(id, settlement);
            self.waiting_since.get_or_insert_with(now);
        }
    }

    /// Takes a task out of the batch, unless it is written.
    fn withdraw(&mut self, id: TaskId) -> bool {
        if !self.early.withdraw(id) {
            return false;
        }
        let is_it = |accept: &Accept| accept.task().is_some_and(|task| task.id == id);
        let mut unwritten = self.batch.iter().skip(self.written);
        let Some(at) = unwritten.position(is_it) else { return false };
        let withdrawn = self.batch.remove(self.written + at);
        let bytes = withdrawn.task().map_or(0, |task| bytes(task));
        self.batch_bytes -= bytes;
        self.unwritten_bytes -= bytes;
        if self.batch.is_empty() {
            self.batch_since = None;
        }
        answer(withdrawn.reply, Err(CommitError::Removed));
        true
    }

    /// The next order. Waits for it until other work is due.
    fn next(&self) -> Result<Order, RecvTimeoutError> {
        if self.grouping {
            return self.orders.recv().map_err(|_| RecvTimeoutError::Disconnected);
        }
        let idle = self.batch.is_empty()
            && !self.unflushed
            && self.syncs.is_empty()
            && self.after_commit.is_empty();
        let wait = if let Some(wait) = self.early_wait() {
            Some(wait)
        } else if idle {
            let others = self.compactor.wait().into_iter().chain([self.lookout.wait(now())]);
            self.settlements_wait().into_iter().chain(others).min()
        } else {
            Some(Duration::ZERO)
        };
        match wait {
            None => self.orders.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(wait) => self.orders.recv_timeout(wait),
        }
    }

    /// How much longer the commit waits for the removal of early tasks. Nothing else may wait for it.
    fn early_wait(&self) -> Option<Duration> {
        let alone = self.early.len() == self.batch.len() && self.syncs.is_empty();
        if self.early.is_empty() || !alone {
            return None;
        }
        let wait = self.early.wait(now())?;
        Some(self.settlements_wait().map_or(wait, |settle| settle.min(wait)))
    }

    /// How much longer settlements and key changes may wait; `None` without any.
    fn settlements_wait(&self) -> Option<Duration> {
        let since = self.waiting_since?;
        let many = self.settlements.len().max(self.key_changes.len()) > MAX_SETTLEMENTS;
        Some(match many || !self.syncs.is_empty() {
            true => Duration::ZERO,
            false => SETTLE_WITHIN.saturating_sub(since.elapsed()),
        })
    }

    /// Makes the batch durable, answers the callers and notifies.
    fn commit(&mut self) -> Result<(), Failure> {
        self.early.commit(now());
        self.write_rows(0)?;
        faults::point("commit.written");
        let tasks: Vec<_> = self.batch.iter().filter_map(Accept::task).map(Arc::clone).collect();
        let sends_early = self.settled.is_reported()
            || tasks.iter().any(|task| task.consistency == Consistency::Strong);
        if sends_early && !self.settled.is_reported() {
            self.database.set_sends_early(true)?;
        }
        self.settled.report_from_now_on(sends_early);
        self.flush()?;
        let took = self.batch_since.take().map_or(Duration::ZERO, |since| since.elapsed());
        faults::point("commit.flushed");
        for accept in self.batch.drain(..) {
            answer(accept.reply, Ok(()));
            faults::point("commit.answered");
        }
        (self.batch_bytes, self.written) = (0, 0);
        if !tasks.is_empty() {
            let partition = Partition::default();
            (self.notify)(JournalEvent::Arrived { partition, tasks, took });
        }
        Ok(())
    }

    /// Writes key changes, then settlements in the order of the ids, each for at most [`SETTLE_FOR`].
    /// Keys come first, because the answer to a strong write is in its key only once the task is
    /// gone. For a sync all key changes are written: otherwise new ones could delay it forever.
    fn settle(&mut self) -> Result<(), Failure> {
        if self.settlements.is_empty() && self.key_changes.is_empty() {
            // The last one was a change of a key that is in use again.
            self.waiting_since = None;
            self.syncs.iter_mut().for_each(|sync| sync.written = true);
            return Ok(());
        }
        faults::point("settle.begun");
        let begun = now();
        while let Some((key, row)) = self.key_changes.pop_first() {
            self.database.set_idempotency(&key, row.as_ref())?;
            self.unflushed = true;
            if self.syncs.is_empty() && begun.elapsed() >= SETTLE_FOR {
                break;
            }
        }
        let begun = now();
        while self.key_changes.is_empty()
            && let Some((id, settlement)) = self.settlements.pop_first()
        {
            match settlement {
                Settlement::Save(progress) => self.database.save(id, &progress)?,
                Settlement::Remove => {
                    // Nothing else may come between tasks that leave their row in one write.
                    let settlements = &mut self.settlements;
                    self.database.remove(id, |last| {
                        let next = settlements.first_entry()?;
                        let joins = *next.key() <= last && matches!(next.get(), Settlement::Remove);
                        joins.then(|| next.remove_entry().0)
                    })?;
                }
            }
            self.unflushed = true;
            if begun.elapsed() >= SETTLE_FOR {
                break;
            }
        }
        let lowest = self.settlements.first_key_value().map(|(id, _)| *id);
        if lowest.is_none() && self.key_changes.is_empty() {
            self.waiting_since = None;
        }
        for sync in &mut self.syncs {
            sync.written |= lowest.is_none_or(|lowest| Some(lowest) > sync.through);
        }
        self.note_written();
        faults::point("settle.written");
        Ok(())
    }

    fn flush(&mut self) -> Result<(), Failure> {
        self.database.flush()?;
        self.lookout.look(now())?;
        self.compactor.flushed();
        if std::mem::take(&mut self.unflushed) {
            faults::point("settle.flushed");
        }
        for sync in self.syncs.extract_if(.., |sync| sync.written) {
            (sync.reply)(Ok(()));
        }
        for then in self.after_commit.drain(..) {
            then(Ok(&self.database));
        }
        self.report_settled();
        Ok(())
    }

    fn note_written(&mut self) {
        let ids = |(id, _): (&TaskId, &Settlement)| *id;
        let lowest = self.settlements.first_key_value().map(ids);
        self.settled.written_below(lowest, self.settlements.last_key_value().map(ids));
    }

    /// Reports the settlements that are durable. Nothing may be unflushed.
    fn report_settled(&mut self) {
        self.note_written();
        if let Some(through) = self.settled.report() {
            (self.notify)(JournalEvent::Settled { through });
        }
    }

    /// Also for tasks that are not written: their ids were used.
    fn renew_lease(&mut self) -> Result<(), Failure> {
        if self.newest.0.saturating_add(RENEW) >= self.lease.0 {
            self.lease = lease(self.newest);
            self.database.set_sequence(self.lease)?;
            self.unflushed = true;
        }
        Ok(())
    }

    /// Refuses every order from now on.
    fn fail(mut self, failure: &Failure) {
        const FAILED: CommitError = CommitError::StoreFailed;
        let waiting = self.batch.drain(..).filter_map(|accept| accept.reply);
        for reply in waiting.chain(self.syncs.drain(..).map(|sync| sync.reply)) {
            reply(Err(FAILED));
        }
        self.after_commit.drain(..).for_each(|then| then(Err(FAILED)));
        (self.notify)(JournalEvent::Failed(failure.to_string().into()));
        let mut closing = self.closing.take();
        while closing.is_none() {
            match self.orders.recv() {
                Ok(Order::Close(reply)) => closing = Some(Some(reply)),
                Ok(order) => order.refuse(FAILED),
                Err(_) => closing = Some(None),
            }
        }
        // This closes the files, which can block on a disk that hangs.
        let turn = self.turns.begin();
        drop(self);
        drop(turn);
        answer(closing.flatten(), Err(FAILED));
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "durations of this thread; no decision depends on the time of day"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
