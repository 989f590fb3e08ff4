//! The committer: the only thread that writes. A task is accepted when its commit returns.
//!
//! A flush costs about 0.4 ms whatever its size, so all waiting writes share one. A turn:
//!
//! 1. **gather**: take orders, up to [`MAX_BATCH_TASKS`] or [`MAX_BATCH_BYTES`]. New tasks are written
//!    as soon as they fill a row, so that writing overlaps with the requests that bring the next ones;
//! 2. **commit**: write the last row, flush, answer every caller in the order of the calls, then notify;
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
//! before settlements.
//!
//! The first error of the database is final: after a failed fsync the state of the disk is unknown.
//! Nothing is written any more and every call is refused. A panic counts as an error.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::Files;
use super::compaction::Compactor;
use super::database::Database;
use super::error::{Failure, guarded};
use super::presence::Lookout;
use super::turns::CommitterTurns;
use crate::faults;
use crate::store::journal::{JournalEvent, Notify, Reply};
use crate::store::records::{CommitError, IdempotencyRow, ReplicaRow};
use crate::task::{Idempotency, Node, Partition, Progress, Task, TaskId};

/// Tasks per flush. Beyond it, writing the others (up to 10 µs each) takes longer than the flush.
const MAX_BATCH_TASKS: usize = 1024;
/// Bytes of keys and values per flush; the last task may exceed it.
const MAX_BATCH_BYTES: usize = 16 << 20;
/// The longest row. If more bytes of keys and values wait, the next row is full.
const ROW_BYTES: usize = 4096;
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

/// The handle of the committer. Cheap to clone; no call blocks.
///
/// The thread ends with the last clone, as after [`close`](Self::close).
#[derive(Clone)]
pub struct Committer {
    orders: Sender<Order>,
    turns: CommitterTurns,
}

enum Order {
    Accept(Accept),
    Settle(TaskId, Settlement),
    /// The orders up to `GroupEnd` are one commit.
    Group,
    GroupEnd,
    Keys(Vec<KeyChange>),
    Sync(Reply),
    Close(Reply),
}

type KeyChange = (Box<str>, Option<IdempotencyRow>);

struct Accept {
    what: Accepted,
    reply: Option<Reply>,
}

impl Accept {
    fn task(&self) -> Option<(&Task, Option<&Idempotency>)> {
        match &self.what {
            Accepted::Task(task, key) => Some((task, key.as_ref())),
            Accepted::Replica(..) => None,
        }
    }
}

fn bytes_of(task: &Task) -> usize {
    task.key.len() + task.value.len()
}

enum Accepted {
    Task(Arc<Task>, Option<Idempotency>),
    Replica(Node, Option<ReplicaRow>),
}

/// A caller that waits for all earlier orders.
struct Sync {
    reply: Reply,
    /// The last task with a settlement at the time of the call.
    through: Option<TaskId>,
    /// Only the flush is missing.
    written: bool,
}

enum Settlement {
    Save(Vec<Progress>),
    Remove,
}

impl Committer {
    /// Makes a task durable together with its idempotency key, then calls `reply`.
    pub fn accept(&self, task: Arc<Task>, idempotency: Option<Idempotency>, reply: Option<Reply>) {
        self.order(Order::Accept(Accept { what: Accepted::Task(task, idempotency), reply }));
    }

    /// Writes all tasks that `hand_in` hands in with one commit, within [`MAX_BATCH_TASKS`] and
    /// [`MAX_BATCH_BYTES`]. The committer waits for its end, so it must not block.
    pub fn in_one_commit(&self, hand_in: impl FnOnce()) {
        /// Ends the group even if `hand_in` panics.
        struct End<'a>(&'a Committer);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.order(Order::GroupEnd);
            }
        }
        self.order(Order::Group);
        let _end = End(self);
        hand_in();
    }

    /// Writes the record of a replica, or removes it, before any task that is handed in later.
    pub fn set_replica(&self, node: Node, row: Option<ReplicaRow>, reply: Option<Reply>) {
        self.order(Order::Accept(Accept { what: Accepted::Replica(node, row), reply }));
    }

    /// Replaces the row of an idempotency key, with the settlements.
    pub fn set_idempotency(&self, key: Box<str>, row: IdempotencyRow) {
        self.order(Order::Keys(vec![(key, Some(row))]));
    }

    /// Removes idempotency keys, with the settlements.
    pub fn forget_idempotency(&self, keys: Vec<Box<str>>) {
        self.order(Order::Keys(keys.into_iter().map(|key| (key, None)).collect()));
    }

    /// Calls `reply` once all earlier orders are durable, settlements included.
    pub fn sync(&self, reply: Reply) {
        self.order(Order::Sync(reply));
    }

    /// Saves the progress of a task, one entry per replica; the latest wins. Error texts are cut to
    /// about 1 KiB.
    pub fn save(&self, id: TaskId, progress: Vec<Progress>) {
        self.order(Order::Settle(id, Settlement::Save(progress)));
    }

    /// Removes a task. No [`Self::save`] may follow.
    pub fn remove(&self, id: TaskId) {
        self.order(Order::Settle(id, Settlement::Remove));
    }

    /// Ends the thread once all earlier orders are on disk. Later ones are refused.
    #[must_use = "the store is closed when the receiver resolves"]
    pub fn close(&self) -> oneshot::Receiver<Result<(), CommitError>> {
        let (reply, closed) = oneshot::channel();
        self.order(Order::Close(Box::new(|result| {
            let _ = reply.send(result);
        })));
        closed
    }

    /// The turn in progress, read without waiting for the thread.
    #[must_use]
    pub fn turns(&self) -> CommitterTurns {
        self.turns.clone()
    }

    fn order(&self, order: Order) {
        if let Err(mpsc::SendError(order)) = self.orders.send(order) {
            order.refuse(CommitError::Closed);
        }
    }
}

impl Order {
    fn refuse(self, error: CommitError) {
        match self {
            Self::Accept(accept) => answer(accept.reply, Err(error)),
            Self::Sync(reply) | Self::Close(reply) => answer(Some(reply), Err(error)),
            Self::Settle(..) | Self::Keys(_) | Self::Group | Self::GroupEnd => {}
        }
    }
}

fn answer(reply: Option<Reply>, result: Result<(), CommitError>) {
    if let Some(reply) = reply {
        reply(result);
    }
}

impl fmt::Debug for Committer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Committer").finish_non_exhaustive()
    }
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
    /// The new tasks and replica records of this turn.
    batch: Vec<Accept>,
    batch_bytes: usize,
    /// How many of `batch` are written, and the bytes of the others.
    written: usize,
    unwritten_bytes: usize,
    /// When the first of `batch` was taken.
    batch_since: Option<Instant>,
    settlements: BTreeMap<TaskId, Settlement>,
    key_changes: BTreeMap<Box<str>, Option<IdempotencyRow>>,
    /// When the first of `settlements` and `key_changes` came.
    waiting_since: Option<Instant>,
    unflushed: bool,
    syncs: Vec<Sync>,
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
            batch: Vec::new(),
            batch_bytes: 0,
            written: 0,
            unwritten_bytes: 0,
            batch_since: None,
            settlements: BTreeMap::new(),
            key_changes: BTreeMap::new(),
            waiting_since: None,
            unflushed: false,
            syncs: Vec::new(),
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
            if !self.batch.is_empty() {
                self.commit()?;
            } else if self.unflushed || self.syncs.iter().any(|sync| sync.written) {
                self.flush()?;
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
                Ok(Order::Settle(id, settlement)) => {
                    self.settlements.insert(id, settlement);
                    self.waiting_since.get_or_insert_with(now);
                }
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

    /// Takes a task or a record of a replica. The next commit makes it durable.
    fn take(&mut self, accept: Accept) -> Result<(), Failure> {
        let _turn = self.turns.begin();
        faults::point("commit.taken");
        self.batch_since.get_or_insert_with(now);
        // First, so that a failure refuses it.
        self.batch.push(accept);
        let task = self.batch.last().and_then(Accept::task);
        let Some((task, key)) = task else { return self.write_rows(0) };
        self.batch_bytes += bytes_of(task);
        self.unwritten_bytes += bytes_of(task);
        if let Some(Idempotency { key, .. }) = key {
            // They are of an earlier use of the key and would overwrite this one.
            self.key_changes.remove(key);
        }
        if task.id.0.saturating_add(RENEW) >= self.lease.0 {
            self.lease = lease(task.id);
            self.database.set_sequence(self.lease)?;
        }
        self.write_rows(ROW_BYTES)
    }

    /// Writes the batch until no more than these bytes of keys and values are left.
    fn write_rows(&mut self, left: usize) -> Result<(), Failure> {
        while let Some([first, ..]) = self.batch.get(self.written..)
            && (left == 0 || self.unwritten_bytes > left)
        {
            let accepts = self.batch.iter().skip(self.written);
            let written = match &first.what {
                Accepted::Task(..) => {
                    self.database.insert(accepts.clone().map_while(Accept::task))?
                }
                Accepted::Replica(node, row) => {
                    self.database.set_replica(node, row.as_ref())?;
                    1
                }
            };
            for (task, key) in accepts.take(written).filter_map(Accept::task) {
                self.unwritten_bytes -= bytes_of(task);
                let Some(Idempotency { key, fingerprint }) = key else { continue };
                faults::point_after("commit.key-unwritten", || self.database.flush_rows())?;
                let row = IdempotencyRow::of(task, *fingerprint);
                self.database.set_idempotency(key, Some(&row))?;
            }
            self.written += written;
        }
        Ok(())
    }

    /// The next order. Waits for it until other work is due.
    fn next(&self) -> Result<Order, RecvTimeoutError> {
        if self.grouping {
            return self.orders.recv().map_err(|_| RecvTimeoutError::Disconnected);
        }
        let idle = self.batch.is_empty() && !self.unflushed && self.syncs.is_empty();
        let wait = if idle {
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
        self.write_rows(0)?;
        faults::point("commit.written");
        let task = |accept: &Accept| match &accept.what {
            Accepted::Task(task, _) => Some(Arc::clone(task)),
            Accepted::Replica(..) => None,
        };
        let tasks: Vec<_> = self.batch.iter().filter_map(task).collect();
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
        Ok(())
    }

    /// Refuses every order from now on.
    fn fail(mut self, failure: &Failure) {
        const FAILED: CommitError = CommitError::StoreFailed;
        let waiting = self.batch.drain(..).filter_map(|accept| accept.reply);
        for reply in waiting.chain(self.syncs.drain(..).map(|sync| sync.reply)) {
            reply(Err(FAILED));
        }
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
