//! The committer: the one thread that writes, and the only place where a task becomes accepted.
//!
//! A flush costs about 0.4 ms however much it covers, so everything that waits shares one. A
//! turn of the loop:
//!
//! 1. **gather**: take what was handed in, up to [`MAX_BATCH_TASKS`] or [`MAX_BATCH_BYTES`];
//! 2. **commit**: write the new tasks in the order in which they came, flush, give every caller
//!    the same answer, and only then tell the daemon;
//! 3. **settle**: if settlements have waited [`SETTLE_WITHIN`], or someone waits for all that was
//!    handed in before, write them. They ride with the flush of the next batch; if none waits, they
//!    get one of their own.
//!
//! Between the last two a compaction of the store gets its turn: see `compaction.rs`.
//!
//! Nobody waits for a settlement. Losing one means that a delivery is repeated, which the
//! contract allows, as long as the order holds. Of that, this module guarantees:
//!
//! **A settlement on disk implies those of every older write of the same key to the same
//! replica.** The deliveries of one key to one replica settle in the order of their [`TaskId`]s,
//! so when the settlement of one is here, those of the older ones are here or on disk. All that
//! are here are written in ascending order of the ids, and if that is cut short to let new tasks
//! through, it goes on from the lowest; and what survives a crash is a
//! prefix of what was written. So after a restart an older write may be repeated before a newer
//! one, never after it.
//!
//! **What operators say of a replica takes its place among the new tasks**: a row that was handed in
//! before a task is on disk before that task. A task's idempotency key is in the task's own row, so
//! no crash separates them. It has a row of its own as well, right behind the task's, which stays when
//! the task is settled; where a crash has kept it from the disk, the next start writes it by what the
//! task's row says. What is said of keys later rides with the settlements, before them: losing it
//! means at most that the answer to a strong write comes from its task, which is still there, or that
//! a key is forgotten later.
//!
//! **A task is written before its settlement**, if it was handed in before: both come through one
//! queue, and a turn writes its new tasks before its settlements.
//!
//! The first error of the database is the last: after an fsync that failed, nobody knows what is
//! on disk. From then on nothing is written and every caller is refused. A panic counts as an
//! error, so the thread cannot die with callers waiting.

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
use super::error::{CommitError, Failure, guarded};
use super::presence::Lookout;
use super::rows::{IdempotencyRow, ReplicaRow};
use super::turns::CommitterTurns;
use crate::faults;
use crate::store::journal::{JournalEvent, Notify, Reply};
use crate::task::{Idempotency, Node, Partition, Progress, Task, TaskId};

/// The most tasks that one flush covers: with more, the first of them wait longer for the others
/// to be written (about 10 µs each) than the flush takes.
const MAX_BATCH_TASKS: usize = 1024;
/// The most bytes of keys and values that one flush covers; one more task may go over it.
const MAX_BATCH_BYTES: usize = 16 << 20;
/// How long a settlement waits for others. Most of a task's deliveries settle within it, and
/// then all that is written of them is the removal of the task.
const SETTLE_WITHIN: Duration = Duration::from_millis(20);
/// How long new tasks wait for settlements that are being written: the removal of a task of 1 MiB
/// is that of 256 rows, and several hundred can be due at once when a replica comes back.
const SETTLE_FOR: Duration = Duration::from_millis(5);
/// So many tasks with settlements do not wait for more.
const MAX_SETTLEMENTS: usize = 4096;
/// The most orders that one turn takes, so that a flood of settlements cannot keep it gathering.
const MAX_ORDERS: usize = 8192;

/// How far beyond the ids in use the sequence is leased.
const LEASE: u64 = 1 << 20;
/// A lease is renewed when so much of it is left. Ids are given out before their commit; that
/// many (as against a few thousand requests) can never be on their way at once, so every id that
/// anyone has seen is below a lease that is on disk.
const RENEW: u64 = LEASE / 2;

/// The way to write. Cheap to clone; no call blocks.
///
/// When the last one is dropped the thread ends as after [`close`](Self::close).
#[derive(Clone)]
pub struct Committer {
    orders: Sender<Order>,
    turns: CommitterTurns,
}

enum Order {
    Accept(Accept),
    Settle(TaskId, Settlement),
    /// What follows is one group: it waits for all of it, up to the end.
    Group,
    GroupEnd,
    /// What is known of keys from now on, `None` to forget one.
    Keys(Vec<KeyChange>),
    Sync(Reply),
    Close(Reply),
}

type KeyChange = (Box<str>, Option<IdempotencyRow>);

/// What is answered once it is durable.
struct Accept {
    what: Accepted,
    reply: Option<Reply>,
}

enum Accepted {
    Task(Arc<Task>, Option<Idempotency>),
    Replica(Node, Option<ReplicaRow>),
}

/// Who waits for all that was handed in before.
struct Sync {
    reply: Reply,
    /// The last task with a settlement that was waiting then. Those of tasks up to it are written,
    /// in the order of the ids, before those of later ones.
    through: Option<TaskId>,
    /// All of it is written, and lacks only a flush.
    written: bool,
}

enum Settlement {
    Save(Vec<Progress>),
    Remove,
}

impl Committer {
    /// Makes a task durable together with the key that its client gave it, then calls `reply`. A caller that stops waiting does not undo it.
    pub fn accept(&self, task: Arc<Task>, idempotency: Option<Idempotency>, reply: Option<Reply>) {
        self.order(Order::Accept(Accept { what: Accepted::Task(task, idempotency), reply }));
    }

    /// Has all tasks that are handed in by `what` written in one commit, as far as that holds
    /// [`MAX_BATCH_TASKS`] and [`MAX_BATCH_BYTES`]. Nothing else is written before they are all
    /// there, so it is not for what takes its time.
    pub fn in_one_commit(&self, what: impl FnOnce()) {
        /// Also if it panics.
        struct End<'a>(&'a Committer);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.order(Order::GroupEnd);
            }
        }
        self.order(Order::Group);
        let _end = End(self);
        what();
    }

    /// Remembers what is said of a replica, or forgets it; calls `reply` once that is durable. It is
    /// on disk before any task that is handed in later.
    pub fn set_replica(&self, node: Node, row: Option<ReplicaRow>, reply: Option<Reply>) {
        self.order(Order::Accept(Accept { what: Accepted::Replica(node, row), reply }));
    }

    /// Puts another row in the place of an idempotency key's. Nobody waits for it, as for a
    /// settlement.
    pub fn set_idempotency(&self, key: Box<str>, row: IdempotencyRow) {
        self.order(Order::Keys(vec![(key, Some(row))]));
    }

    /// Forgets idempotency keys. Nobody waits for it, as for a settlement.
    pub fn forget_idempotency(&self, keys: Vec<Box<str>>) {
        self.order(Order::Keys(keys.into_iter().map(|key| (key, None)).collect()));
    }

    /// Calls `reply` once everything that was handed in before is durable, settlements included: for
    /// what a person has ordered and must not come back after a crash.
    pub fn sync(&self, reply: Reply) {
        self.order(Order::Sync(reply));
    }

    /// Remembers what each replica has had of a task, one entry for each of its replicas; the
    /// latest state wins. The texts of errors are cut to about 1 KiB.
    pub fn save(&self, id: TaskId, progress: Vec<Progress>) {
        self.order(Order::Settle(id, Settlement::Save(progress)));
    }

    /// Forgets a task: every delivery is settled and no dead letter is kept. Nothing must be
    /// saved for it afterwards.
    pub fn remove(&self, id: TaskId) {
        self.order(Order::Settle(id, Settlement::Remove));
    }

    /// Ends the thread once everything that was handed in before is on disk; then the answer
    /// comes. What is handed in later is refused.
    #[must_use = "the store is closed only when the answer is there"]
    pub fn close(&self) -> oneshot::Receiver<Result<(), CommitError>> {
        let (reply, closed) = oneshot::channel();
        self.order(Order::Close(Box::new(|result| {
            let _ = reply.send(result);
        })));
        closed
    }

    /// Whether the thread is at work. Asking does not wait for it.
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

/// The end of a lease for the ids from `next` on.
pub(super) fn lease(next: TaskId) -> TaskId {
    TaskId(next.0.saturating_add(LEASE))
}

/// Starts the thread. `lease` is what the sequence on disk says.
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

/// What the thread owns.
struct Writer {
    orders: Receiver<Order>,
    /// The current store.
    database: Database,
    lookout: Lookout,
    turns: CommitterTurns,
    compactor: Compactor,
    notify: Notify,
    /// The end of the lease on disk.
    lease: TaskId,
    /// New tasks of this turn, and what is said of replicas between them.
    batch: Vec<Accept>,
    /// The length of their keys and values, in bytes.
    batch_bytes: usize,
    /// Not written yet, the latest of each task.
    settlements: BTreeMap<TaskId, Settlement>,
    /// What is to become of keys, not written yet, the latest of each.
    key_changes: BTreeMap<Box<str>, Option<IdempotencyRow>>,
    /// When the first of either came.
    waiting_since: Option<Instant>,
    /// Settlements were written after the last flush.
    unflushed: bool,
    syncs: Vec<Sync>,
    /// The rest of a group is on its way.
    grouping: bool,
    /// No more is taken: this is the last turn.
    closing: Option<Closing>,
}

/// Who is told of the end, unless it came with the last [`Committer`].
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
            settlements: BTreeMap::new(),
            key_changes: BTreeMap::new(),
            waiting_since: None,
            unflushed: false,
            syncs: Vec::new(),
            grouping: false,
            closing: None,
        }
    }

    /// The life of the thread.
    fn live(mut self) {
        match guarded(|| self.work()) {
            Ok(()) => {
                let _turn = self.turns.begin();
                let closing = self.closing.take().flatten();
                // Late comers; one that comes later still finds nobody, which says the same.
                self.orders.try_iter().for_each(|late| late.refuse(CommitError::Closed));
                // The files are let go before anyone is told that they are.
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
            self.gather();
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

    /// Waits until there is something to do, and takes what there is.
    ///
    /// When nothing more is there it gives way once and looks again, for as long as that brings
    /// company: the callers that the last flush has answered are just coming back, and a batch of
    /// the first of them alone would make all the others wait for a flush. A caller that is alone
    /// loses a microsecond by it.
    fn gather(&mut self) {
        let mut alone_with = 0;
        for _ in 0..MAX_ORDERS {
            if self.closing.is_some()
                || self.batch.len() >= MAX_BATCH_TASKS
                || self.batch_bytes >= MAX_BATCH_BYTES
            {
                return;
            }
            match self.next() {
                Ok(Order::Accept(accept)) => self.take(accept),
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
                    // Those before it have their own commit, so that the group fits into one.
                    if !self.batch.is_empty() {
                        return;
                    }
                }
                Ok(Order::GroupEnd) => self.grouping = false,
                Ok(Order::Close(reply)) => self.closing = Some(Some(reply)),
                Err(RecvTimeoutError::Timeout) if self.batch.len() > alone_with => {
                    alone_with = self.batch.len();
                    thread::yield_now();
                }
                Err(RecvTimeoutError::Timeout) => return,
                Err(RecvTimeoutError::Disconnected) => self.closing = Some(None),
            }
        }
    }

    fn take(&mut self, accept: Accept) {
        if let Accepted::Task(task, key) = &accept.what {
            self.batch_bytes += task.key.len() + task.value.len();
            if let Some(Idempotency { key, .. }) = key {
                // Said of a former use of the key, and would be written over this one.
                self.key_changes.remove(key);
            }
        }
        self.batch.push(accept);
    }

    /// The next order; waits for it only as long as there is nothing better to do.
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

    /// How much longer settlements and changes of keys can wait for others; `None` if there are none.
    fn settlements_wait(&self) -> Option<Duration> {
        let since = self.waiting_since?;
        let many = self.settlements.len().max(self.key_changes.len()) > MAX_SETTLEMENTS;
        Some(match many || !self.syncs.is_empty() {
            true => Duration::ZERO,
            false => SETTLE_WITHIN.saturating_sub(since.elapsed()),
        })
    }

    /// Makes the batch durable, then says so.
    fn commit(&mut self) -> Result<(), Failure> {
        faults::point("commit.gathered");
        let begun = now();
        let task = |accept: &Accept| match &accept.what {
            Accepted::Task(task, _) => Some(Arc::clone(task)),
            Accepted::Replica(..) => None,
        };
        let tasks: Vec<_> = self.batch.iter().filter_map(task).collect();
        if let Some(top) = tasks.iter().map(|task| task.id).max()
            && top.0.saturating_add(RENEW) >= self.lease.0
        {
            self.lease = lease(top);
            self.database.set_sequence(self.lease)?;
        }
        for accept in &self.batch {
            match &accept.what {
                Accepted::Task(task, key) => {
                    self.database.insert(task, key.as_ref())?;
                    if let Some(Idempotency { key, fingerprint }) = key {
                        faults::point_after("commit.key-unwritten", || self.database.flush_rows())?;
                        let row = IdempotencyRow::of(task, *fingerprint);
                        self.database.set_idempotency(key, Some(&row))?;
                    }
                }
                Accepted::Replica(node, row) => self.database.set_replica(node, row.as_ref())?,
            }
        }
        faults::point("commit.written");
        self.flush()?;
        let took = begun.elapsed();
        faults::point("commit.flushed");
        for accept in self.batch.drain(..) {
            answer(accept.reply, Ok(()));
            faults::point("commit.answered");
        }
        self.batch_bytes = 0;
        if !tasks.is_empty() {
            let partition = Partition::default();
            (self.notify)(JournalEvent::Arrived { partition, tasks, took });
        }
        Ok(())
    }

    /// Writes changes of keys, in their order: all, or the first of them if that takes long. All if
    /// someone waits for what came before: new ones could for ever come first. Then settlements, in
    /// the same way, in the order of the tasks: see the invariant at the top. The answer to a strong
    /// write is among the keys, and nothing else tells it once the task is gone.
    fn settle(&mut self) -> Result<(), Failure> {
        if self.settlements.is_empty() && self.key_changes.is_empty() {
            // The last of them was a key's, and the key is in use again.
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
                Settlement::Remove => self.database.remove(id)?,
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

    /// Refuses everyone, for ever.
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
        // The files are closed by that, for which a disk that hangs can be waited for as well.
        let turn = self.turns.begin();
        drop(self);
        drop(turn);
        answer(closing.flatten(), Err(FAILED));
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "only how long a settlement waits for company and how long a commit takes, which nothing outside can tell"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests;
