//! The handle of the committer, and its orders.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{self, Sender};

use tokio::sync::oneshot;

use crate::store::journal::Reply;
use crate::store::local::database::Database;
use crate::store::local::turns::CommitterTurns;
use crate::store::records::{CommitError, IdempotencyRow, ReplicaRow};
use crate::task::{Idempotency, Node, Progress, Task, TaskId};

/// The handle of the committer. Cheap to clone; no call blocks.
///
/// The thread ends with the last clone, as after [`close`](Self::close).
#[derive(Clone)]
pub struct Committer {
    pub(super) orders: Sender<Order>,
    pub(super) turns: CommitterTurns,
}

pub(super) enum Order {
    Accept(Accept),
    Settle(TaskId, Settlement),
    /// The orders up to `GroupEnd` are one commit.
    Group,
    GroupEnd,
    Keys(Vec<KeyChange>),
    Sync(Reply),
    AfterCommit(AfterCommit),
    Close(Reply),
}

/// Called on the committer's thread when all that is written is durable.
pub(super) type AfterCommit = Box<dyn FnOnce(Result<&Database, CommitError>) + Send>;

pub(super) type KeyChange = (Box<str>, Option<IdempotencyRow>);

pub(super) struct Accept {
    pub(super) what: Accepted,
    pub(super) reply: Option<Reply>,
    /// Its removal may come before its commit begins.
    pub(super) is_early: bool,
}

pub(super) enum Accepted {
    Task(Arc<Task>, Option<Idempotency>),
    Replica(Node, Option<ReplicaRow>),
}

pub(super) enum Settlement {
    Save(Vec<Progress>),
    Remove,
}

impl Committer {
    /// Makes a task durable together with its idempotency key, then calls `reply`.
    pub fn accept(&self, task: Arc<Task>, idempotency: Option<Idempotency>, reply: Option<Reply>) {
        let what = Accepted::Task(task, idempotency);
        self.order(Order::Accept(Accept { what, reply, is_early: false }));
    }

    /// Makes a task durable, unless it is removed before its commit begins, which waits for that for a
    /// moment. Then calls `reply`, with [`CommitError::Removed`] if it was removed.
    pub fn accept_early(&self, task: Arc<Task>, reply: Reply) {
        let (what, reply) = (Accepted::Task(task, None), Some(reply));
        self.order(Order::Accept(Accept { what, reply, is_early: true }));
    }

    /// Writes all tasks that `hand_in` hands in with one commit, within the limits of a batch. The
    /// committer waits for its end, so it must not block.
    pub fn in_one_commit<T>(&self, hand_in: impl FnOnce() -> T) -> T {
        /// Ends the group even if `hand_in` panics.
        struct End<'a>(&'a Committer);
        impl Drop for End<'_> {
            fn drop(&mut self) {
                self.0.order(Order::GroupEnd);
            }
        }
        self.order(Order::Group);
        let _end = End(self);
        hand_in()
    }

    /// Writes the record of a replica, or removes it, before any task that is handed in later.
    pub fn set_replica(&self, node: Node, row: Option<ReplicaRow>, reply: Option<Reply>) {
        let what = Accepted::Replica(node, row);
        self.order(Order::Accept(Accept { what, reply, is_early: false }));
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

    /// Calls `then` between two commits, after that of all earlier tasks. It must not block.
    pub(in crate::store::local) fn after_commit(
        &self,
        then: impl FnOnce(Result<&Database, CommitError>) + Send + 'static,
    ) {
        self.order(Order::AfterCommit(Box::new(then)));
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

impl Accept {
    pub(super) fn task(&self) -> Option<&Arc<Task>> {
        match &self.what {
            Accepted::Task(task, _) => Some(task),
            Accepted::Replica(..) => None,
        }
    }

    pub(super) fn task_and_key(&self) -> Option<(&Task, Option<&Idempotency>)> {
        match &self.what {
            Accepted::Task(task, key) => Some((task, key.as_ref())),
            Accepted::Replica(..) => None,
        }
    }
}

/// What a task counts toward the limit of a batch.
pub(super) fn bytes(task: &Task) -> usize {
    task.key.len() + task.value.len()
}

impl Order {
    pub(super) fn refuse(self, error: CommitError) {
        match self {
            Self::Accept(accept) => answer(accept.reply, Err(error)),
            Self::Sync(reply) | Self::Close(reply) => answer(Some(reply), Err(error)),
            Self::AfterCommit(then) => then(Err(error)),
            Self::Settle(..) | Self::Keys(_) | Self::Group | Self::GroupEnd => {}
        }
    }
}

pub(super) fn answer(reply: Option<Reply>, result: Result<(), CommitError>) {
    if let Some(reply) = reply {
        reply(result);
    }
}

impl fmt::Debug for Committer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Committer").finish_non_exhaustive()
    }
}
