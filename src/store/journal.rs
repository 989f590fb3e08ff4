//! The seam between the daemon and whatever keeps its tasks.
//!
//! A journal numbers the writes, makes them durable, and says so by [`JournalEvent`]s. It is above
//! rows and files: the local one ([`super::LocalJournal`]) keeps them in sled, the one in memory, for
//! tests, keeps nothing. `conformance.rs` holds both to what is promised here.
//!
//! The keys are divided into partitions, each with one owner at a time. A process learns which it
//! owns by [`JournalEvent::Claimed`], at the start or at any time. The local journal has one
//! partition, which it claims once.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

use super::local::{
    CommitError, Header, IdempotencyAnswer, ReadError, Recovered, Repeated, ReplicaRow,
};
use crate::task::{Idempotency, Moment, NewTask, Node, Now, Partition, Progress, Task, TaskId};

/// The future of an answer that may wait for the disk.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Keeps tasks. Only the calls that return a future wait for the disk.
///
/// Calls take effect in their order.
pub trait Journal: Send + Sync + fmt::Debug {
    /// Makes writes durable, in order and after the writes of earlier calls, in one commit if they
    /// fit. Replies come in the same order, except that a write that becomes no task may have its
    /// reply at once.
    ///
    /// A new task arrives by [`JournalEvent::Arrived`], after its reply.
    fn append(&self, writes: Vec<Append>);

    /// Remembers what each replica has had of a task, one entry for each; the latest state wins. It
    /// may be lost in a crash: then deliveries are repeated. What is left is a prefix of what was
    /// handed in, by age of the tasks.
    fn save(&self, id: TaskId, progress: Vec<Progress>);

    /// Forgets a task, as [`Self::save`] remembers its progress.
    fn remove(&self, id: TaskId);

    /// Makes the record of a replica durable before any write that is appended later; `None`
    /// removes it.
    fn set_replica(&self, node: Node, row: Option<ReplicaRow>);

    /// The state of an idempotency key now. A key that is new here can be known to a later
    /// [`Self::append`].
    fn key(&self, idempotency: &Idempotency) -> KeyState;

    /// Keeps the answer to a strong write for its repeats.
    fn conclude(&self, id: TaskId, answer: IdempotencyAnswer);

    /// Forgets the idempotency keys whose time is over.
    fn tick(&self, now: Moment);

    /// Calls `reply` once the effects of all earlier calls are durable.
    fn sync(&self, reply: Reply);

    /// Reads a task with its value; `None` if it is settled and removed.
    fn read(&self, id: TaskId) -> BoxFuture<'static, Result<Option<Task>, ReadError>>;

    /// Reads tasks without their values, one entry for each of `ids`; `None` also for one that
    /// cannot be read whole.
    fn headers(
        &self,
        ids: Vec<TaskId>,
    ) -> BoxFuture<'static, Result<Vec<Option<Header>>, ReadError>>;

    /// Whether there is room for a write of so many bytes besides those that are appended.
    /// [`NoRoom`] is no failure: new writes must wait.
    fn room(&self, bytes: u64) -> Result<(), NoRoom>;

    /// How much it keeps, and how much room there is, as last seen.
    fn stats(&self) -> Stats;

    /// The number of the operation in progress, `None` between two. Each takes milliseconds: the same
    /// number for seconds means that the journal hangs.
    fn in_progress(&self) -> Option<u64>;

    /// Ends the journal once the effects of all earlier calls are durable. Refuses later calls.
    fn close(&self) -> BoxFuture<'static, Result<(), CommitError>>;
}

/// What is known of an idempotency key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyState {
    /// Nothing.
    New,
    /// Nothing, and as many as may be are remembered.
    NoRoom,
    /// It came with another body.
    Mismatch,
    /// The write that it came with is not durable yet.
    Pending,
    /// The write that it came with.
    Known(Repeated),
}

impl KeyState {
    /// The outcome of a write with this key, unless the write becomes a new task or waits for a
    /// pending one.
    pub(super) fn outcome(self) -> Option<Result<Appended, AppendError>> {
        match self {
            Self::New | Self::Pending => None,
            Self::NoRoom => Some(Err(AppendError::KeysFull)),
            Self::Mismatch => Some(Err(AppendError::Mismatch)),
            Self::Known(repeated) => Some(Ok(Appended::Repeated(repeated))),
        }
    }
}

/// How full a journal is, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Its files take.
    pub file_bytes: u64,
    /// Of that, what is not garbage.
    pub live_bytes: u64,
    /// Free on its disk; `None` where nothing limits it, or the system does not say.
    pub free_bytes: Option<u64>,
    /// How often garbage was removed by writing the rest to another file, since the start.
    pub compactions: u64,
    /// New writes are refused for want of space: see [`Journal::room`].
    pub is_full: bool,
}

/// Why a write has no room. The text names the limit.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct NoRoom(pub String);

/// An event of a journal. Each partition has its own sequence of `Claimed`, `Arrived`, `Released`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JournalEvent {
    /// This process owns the partition from now on. These of its tasks are not settled. They come
    /// in one event or in several, in the order of their ids and before any that arrive.
    Claimed { partition: Partition, tasks: Vec<Recovered> },
    /// The partition has another owner, or is about to be claimed once more: nothing may be sent for
    /// its tasks any more.
    Released { partition: Partition },
    /// The record of a replica, `None` if it has none any more. Known ones come before the first
    /// claim; later ones are set by another process.
    Replica { node: Node, row: Option<ReplicaRow> },
    /// These tasks are durable, and their callers have been answered.
    Arrived {
        partition: Partition,
        /// In the order of their ids.
        tasks: Vec<Arc<Task>>,
        /// How long making them durable took.
        took: Duration,
    },
    /// It has failed, and why. Comes once; nothing is written any more.
    Failed(Arc<str>),
}

/// Called on the journal's thread: it must pass the event on and return.
pub type Notify = Box<dyn Fn(JournalEvent) + Send>;

/// Called on the journal's thread: it must pass the answer on and return.
pub type Reply = Box<dyn FnOnce(Result<(), CommitError>) + Send>;

/// A write that is to be made durable.
pub struct Append {
    /// What was asked for.
    pub new: Box<NewTask>,
    /// When it was accepted.
    pub now: Now,
    /// The key that its client gave it.
    pub idempotency: Option<Idempotency>,
    /// Called once. It must pass the outcome on and return.
    pub reply: AppendReply,
}

/// Takes the outcome of an [`Append`].
pub type AppendReply = Box<dyn FnOnce(Result<Appended, AppendError>) + Send>;

/// What a write has become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// A task, which is durable.
    New(TaskId),
    /// It was a task before.
    Repeated(Repeated),
}

/// Why a write has become nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// Its idempotency key came with another body before.
    Mismatch,
    /// As many idempotency keys as may be are remembered.
    KeysFull,
    /// The store takes nothing.
    Store(CommitError),
}
