//! The interface between the daemon and its store.
//!
//! A journal numbers writes, makes them durable and reports it with [`JournalEvent`]s. It knows
//! nothing of rows and files. [`super::LocalJournal`] is the one on the local disk, `memory.rs` is for
//! tests; both pass the suite in `conformance.rs`.
//!
//! Keys are divided into partitions with one owner each. A process learns of its partitions by
//! [`JournalEvent::Claimed`], at the start or later. The local journal has one partition and claims
//! it at the start.

use std::fmt;
use std::io::Write;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::jetstream::{ClusterStatus, Peers};
use super::lines::Exported;
use super::records::{
    CommitError, Header, IdempotencyAnswer, ReadError, RecordCause, Recovered, Repeated, ReplicaRow,
};
use crate::lease::Fence;
use crate::task::{
    Idempotency, Moment, NewTask, Node, Now, Obstacle, Partition, Progress, ReplicaIndex, Task,
    TaskId,
};

pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// A store of tasks. Calls take effect in their order. Only calls that return a future wait for
/// the disk.
pub trait Journal: Send + Sync + fmt::Debug {
    /// Makes writes durable in their order, in one commit if they fit. Replies come in the same
    /// order; a write that becomes no task may get its reply earlier. A new task arrives by
    /// [`JournalEvent::Arrived`] after its reply.
    ///
    /// Returns the tasks that are numbered already, one entry per write.
    fn append(&self, writes: Vec<Append>) -> Vec<Option<Numbered>>;

    /// Saves the progress of a task, one entry per replica; the latest wins. A crash may lose it, and
    /// deliveries are repeated then. Of the settlements a crash leaves a prefix, by age of the tasks.
    fn save(&self, id: TaskId, progress: Vec<Progress>);

    /// Removes a task, under the conditions of [`Self::save`]. An early one whose commit has not begun
    /// is not stored at all: its reply is [`AppendError::Removed`].
    fn remove(&self, id: TaskId);

    /// Writes the record of a replica before any write to it that is appended later; `None` removes it.
    /// If what another process has set stays instead, [`JournalEvent::Replica`] tells it.
    fn set_replica(&self, node: Node, row: Option<ReplicaRow>, cause: RecordCause);

    /// The current state of an idempotency key. A later [`Self::append`] may find another one.
    fn key(&self, idempotency: &Idempotency) -> KeyState;

    /// Stores the answer to a strong write for its repeats, and sends it to the process that has
    /// accepted the write. `obstacles` are the reasons why nothing is sent to some replicas.
    fn conclude(
        &self,
        id: TaskId,
        answer: IdempotencyAnswer,
        obstacles: &[(ReplicaIndex, Obstacle)],
    );

    /// Removes expired idempotency keys.
    fn tick(&self, now: Moment);

    /// Calls `reply` once the effects of all earlier calls are durable. A store of several processes
    /// gives up after a while.
    fn sync(&self, reply: Reply);

    /// Calls `reply` once the records of replicas set so far are durable. Gives up as [`Self::sync`].
    fn sync_replicas(&self, reply: Reply) {
        self.sync(reply);
    }

    /// Begins a snapshot, and calls `begun` with it once the effects of all earlier calls of
    /// [`Self::append`] are durable.
    fn snapshot(&self, begun: SnapshotReply) {
        begun(Err(SnapshotError::Shared));
    }

    /// Reads a task with its value; `None` if it is settled and removed.
    fn read(&self, id: TaskId) -> BoxFuture<'static, Result<Option<Task>, ReadError>>;

    /// Reads tasks without their values, one entry per id; `None` also for a damaged one.
    fn headers(
        &self,
        ids: Vec<TaskId>,
    ) -> BoxFuture<'static, Result<Vec<Option<Header>>, ReadError>>;

    /// The right to send a task of a claimed partition. Asked for each attempt.
    fn fence(&self, id: TaskId) -> Fence;

    /// Whether this process may send for a claimed partition now.
    fn holds(&self, _: Partition) -> bool {
        true
    }

    /// The partition of a task.
    fn partition_of(&self, _: TaskId) -> Partition {
        Partition::default()
    }

    /// After [`JournalEvent::Releasing`] nothing of the partition is in flight any more, and all
    /// settlements were passed on.
    fn quiet(&self, _: Partition) {}

    /// The caller has carried out [`JournalEvent::Released`]. Later calls do not mean its tasks of
    /// before.
    fn given_up(&self, _: Partition) {}

    /// Whether a write of this many bytes fits besides the appended ones.
    ///
    /// # Errors
    ///
    /// [`NoRoom`]: new writes are refused until space is free again.
    fn room(&self, bytes: u64) -> Result<(), NoRoom>;

    fn stats(&self) -> Stats;

    /// The live processes that share the store.
    fn processes(&self) -> NonZeroU32 {
        NonZeroU32::MIN
    }

    /// `None` for a store of one process.
    fn cluster(&self) -> Option<ClusterStatus> {
        None
    }

    /// The instances of the cluster; `None` for a store of one process.
    fn peers(&self) -> Option<Peers> {
        None
    }

    /// Asks for a [`JournalEvent::CaughtUp`] of an owned partition.
    fn report_caught_up(&self, _: Partition) {}

    /// The number of the operation in progress, `None` between two. Each takes milliseconds; the same
    /// number for seconds means that the journal hangs.
    fn in_progress(&self) -> Option<u64>;

    /// Closes the journal once the effects of all earlier calls are durable. Refuses later calls.
    fn close(&self) -> BoxFuture<'static, Result<(), CommitError>>;
}

/// The state of an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyState {
    New,
    /// New, and the limit of keys is reached.
    NoRoom,
    /// Used with another body.
    Mismatch,
    /// Its write is not durable yet.
    Pending,
    Known(Repeated),
}

impl KeyState {
    /// The outcome of a write with this key. `None` if it becomes a new task or waits for a pending
    /// one.
    pub(super) fn outcome(self) -> Option<Result<Appended, AppendError>> {
        match self {
            Self::New | Self::Pending => None,
            Self::NoRoom => Some(Err(AppendError::KeysFull)),
            Self::Mismatch => Some(Err(AppendError::Mismatch)),
            Self::Known(repeated) => Some(Ok(Appended::Repeated(repeated))),
        }
    }
}

/// Sizes of a journal, in bytes, as of its last look at the disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub file_bytes: u64,
    /// `file_bytes` without garbage.
    pub live_bytes: u64,
    /// Free on its disk; `None` if there is no limit or the system does not report it.
    pub free_bytes: Option<u64>,
    /// The free bytes that new writes leave.
    pub reserved_bytes: u64,
    /// Count since the start.
    pub compactions: u64,
    /// Whether [`Journal::room`] refuses new writes.
    pub is_full: bool,
}

/// New writes are refused. The text names the limit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct NoRoom(pub String);

/// The events of a partition are `Claimed`, any number of `Arrived` and `CaughtUp`, perhaps `Releasing`
/// with more of these, `Released`, and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalEvent {
    /// This process owns the partition now. `tasks` are its unsettled ones, in the order of their
    /// ids, possibly in several events. All come before the first `Arrived`.
    Claimed { partition: Partition, tasks: Vec<Recovered> },
    /// The partition will be handed over: `Released` follows after [`Journal::quiet`], or sooner.
    /// Nothing more may be sent for its tasks. Attempts in flight are finished.
    Releasing { partition: Partition },
    /// All unsettled tasks of an owned partition up to this id have been reported. Comes after a whole
    /// claim and when it is asked for; only from a store that several processes share.
    CaughtUp { through: TaskId },
    /// The partition has another owner, or is claimed again next. Nothing may be sent for its tasks.
    Released { partition: Partition },
    /// The record of a replica, `None` if it was removed. Existing ones come before the first claim;
    /// later ones are set by another process.
    Replica { node: Node, row: Option<ReplicaRow> },
    /// These tasks are durable and their callers have been answered.
    Arrived {
        partition: Partition,
        /// In the order of their ids.
        tasks: Vec<Arc<Task>>,
        /// Duration of the commit.
        took: Duration,
    },
    /// The first `through` calls of [`Journal::save`] and [`Journal::remove`] are durable.
    ///
    /// Only from a journal that has one partition for its whole life and numbers each write in
    /// [`Journal::append`]. Such a journal also notices that a process ended without closing it after
    /// the first of these events.
    Settled { through: u64 },
    /// The answer to a strong write of this process, from the process that delivers it.
    Concluded { task: TaskId, answer: IdempotencyAnswer, obstacles: Vec<(ReplicaIndex, Obstacle)> },
    /// The journal has failed and writes nothing more. Comes once.
    Failed(Arc<str>),
}

/// Called on the journal's thread, so it must not block.
pub type Notify = Box<dyn Fn(JournalEvent) + Send>;

/// Called on the journal's thread, so it must not block.
pub type Reply = Box<dyn FnOnce(Result<(), CommitError>) + Send>;

/// Called on the journal's thread, so it must not block.
pub type SnapshotReply = Box<dyn FnOnce(Result<Box<dyn StoreSnapshot>, SnapshotError>) + Send>;

/// The content of a store at one instant: what a kill of the process would have left. It ends when it
/// is dropped.
pub trait StoreSnapshot: Send + fmt::Debug {
    /// Writes an export. Blocks on the disk and on `out`.
    fn write(self: Box<Self>, out: &mut dyn Write) -> std::io::Result<Exported>;
}

/// Why there is no snapshot.
#[derive(Debug, Error)]
pub enum SnapshotError {
    #[error(
        "a store in a cluster is copied by replicator export --store URL, with all instances stopped"
    )]
    Shared,
    #[error("another snapshot is being read: only one is possible at a time")]
    Busy,
    #[error("cannot begin a snapshot: {0}")]
    Disk(std::io::Error),
    #[error(transparent)]
    Store(#[from] CommitError),
}

/// A write for [`Journal::append`].
pub struct Append {
    pub new: Box<NewTask>,
    pub now: Now,
    pub idempotency: Option<Idempotency>,
    /// It is sent before it is durable, so it may be removed soon. Its commit may wait for that for a
    /// moment.
    pub early: bool,
    /// Called once.
    pub reply: AppendReply,
}

/// A write with its number. It is not durable yet.
#[derive(Clone, Debug)]
pub struct Numbered {
    pub partition: Partition,
    pub task: Arc<Task>,
}

/// Called on the journal's thread, so it must not block.
pub type AppendReply = Box<dyn FnOnce(Result<Appended, AppendError>) + Send>;

/// The outcome of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// A new task, durable.
    New(TaskId),
    /// A new task, durable, of a partition that this process does not own: it does not arrive. If it
    /// is strong, [`JournalEvent::Concluded`] may follow, or may have come before. Also the repeat of a
    /// strong write that is not decided.
    Elsewhere(TaskId),
    /// Its idempotency key belongs to an earlier task.
    Repeated(Repeated),
}

/// Why a write became no task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// Its idempotency key was used with another body.
    Mismatch,
    /// The limit of idempotency keys is reached.
    KeysFull,
    /// It was removed before its commit began.
    Removed(TaskId),
    /// The store did not answer in time. The write may be durable, or may become so.
    Unconfirmed,
    /// The store has no room for it.
    Full,
    /// The servers do not answer, and too many writes wait for them.
    TooManyWait,
    /// A strong write, and no process owns its partition.
    NoOwner,
    Store(CommitError),
}
