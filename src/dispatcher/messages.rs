//! The messages between the server's handlers and the loop, and those that the loop is sent by its
//! own parts. Types alone: what is done with them is elsewhere.

use std::sync::Arc;

use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::dispatcher::admin::barriers::BarrierRequest;
use crate::dispatcher::admin::dead_letters::DeadLetterRequest;
use crate::dispatcher::admin::replicas::ReplicaRequest;
use crate::dispatcher::admin::tasks::TaskRequest;
use crate::engine::{Moment, Reservation};
use crate::metrics::Snapshot;
use crate::store::{AppendError, Appended, JournalEvent};
use crate::task::{
    AttemptOutcome, DeliveryId, Idempotency, NewTask, Node, Obstacle, ReplicaIndex, Task, TaskId,
};

/// A request to the loop from a handler.
#[derive(Debug)]
pub(crate) enum Request {
    /// Accept these writes, in this order, and say how each went.
    Replicate(Vec<NewWrite>),
    Tasks(TaskRequest),
    Replicas(ReplicaRequest),
    DeadLetters(DeadLetterRequest),
    Barrier(BarrierRequest),
    /// Say how things stand.
    Snapshot {
        reply: oneshot::Sender<Box<Snapshot>>,
    },
}

/// How the daemon is, as far as anyone outside needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It accepts writes.
    Serving,
    /// The store does not answer: what waits for it waits, nothing new is accepted.
    Stalled {
        /// When it answered last.
        since: Instant,
    },
    /// It was told to stop: what is in flight is finished, nothing new is accepted.
    Draining,
    /// The store has failed and nothing can be accepted until a restart. Says why.
    StoreFailed(Arc<str>),
}

impl Health {
    /// What a new write is answered; `None` if it is accepted.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Serving => None,
            Self::Stalled { .. } => Some(Refusal::Stalled),
            Self::Draining => Some(Refusal::Draining),
            Self::StoreFailed(_) => Some(Refusal::StoreFailed),
        }
    }
}

/// An accepted write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedWrite {
    /// The task that it became; it is on disk.
    pub id: TaskId,
    /// Who has acknowledged: a majority for a strong write, nobody yet for an eventual one.
    pub acked: Vec<ReplicaIndex>,
    /// It was accepted before, under the same idempotency key.
    pub replayed: bool,
}

/// Why a write has no success to report.
#[derive(Debug, Error)]
pub enum Refusal {
    /// A limit is reached; nothing was accepted. The text names the limit.
    #[error("{0}")]
    Full(String),
    /// The store does not answer; nothing was accepted.
    #[error(
        "the store does not answer: its disk hangs or is overloaded; nothing was accepted, try again later"
    )]
    Stalled,
    /// The daemon is stopping; nothing was accepted.
    #[error("the replicator is shutting down and accepts no new writes")]
    Draining,
    /// The store has failed; nothing was accepted as far as anyone knows.
    #[error("the store has failed and nothing can be accepted until a restart")]
    StoreFailed,
    /// A strong write is durable here, but no majority has acknowledged it in time. Its
    /// deliveries go on in the background.
    #[error("{}", no_majority(acked.len(), acked.len() + failed.len(), *needed))]
    NoMajority {
        /// The task that it became.
        id: TaskId,
        /// How many acknowledgements make a majority.
        needed: usize,
        /// Who has acknowledged.
        acked: Vec<ReplicaIndex>,
        /// Who has not.
        failed: Vec<ReplicaIndex>,
        /// What kept those of them that nothing was sent to, if it is known.
        obstacles: Vec<(ReplicaIndex, Obstacle)>,
        /// It was accepted before, under the same idempotency key.
        replayed: bool,
    },
    /// The write makes no sense as things are; nothing was accepted. The text names the field.
    #[error("{0}")]
    Invalid(String),
    /// Its idempotency key was given with another body.
    #[error("this Idempotency-Key came with another body before: a new write needs a new key")]
    Mismatch,
}

/// How far a strong write came without its majority: of one replica, of two, and of many.
fn no_majority(acked: usize, replicas: usize, needed: usize) -> String {
    match (acked, replicas) {
        (_, 1) => "the replica has not acknowledged the write".to_owned(),
        (0, _) => format!(
            "none of the {replicas} replicas has acknowledged the write, a majority is {needed}"
        ),
        _ => format!(
            "only {acked} of the {replicas} replicas acknowledged the write, a majority is {needed}"
        ),
    }
}

/// Where the answer of a request goes.
pub(crate) type WriteReply = oneshot::Sender<Result<AcceptedWrite, Refusal>>;

/// A write as it comes in.
#[derive(Debug)]
pub(crate) struct NewWrite {
    pub(crate) new: Box<NewTask>,
    pub(crate) idempotency: Option<Idempotency>,
    pub(crate) reply: WriteReply,
}

/// A write on its way to the disk.
#[derive(Debug)]
pub(crate) struct PendingWrite {
    pub(crate) reply: WriteReply,
    /// When its request came.
    pub(crate) arrived: Moment,
    /// None for a repeat, which needs no room.
    pub(crate) reservation: Option<Reservation>,
    pub(crate) idempotency: Option<Idempotency>,
}

/// An event that the loop handles.
#[derive(Debug)]
pub(crate) enum LoopEvent {
    /// By the journal: what became of a write. The task of a new one arrives behind this.
    Appended { write: PendingWrite, outcome: Result<Appended, AppendError> },
    /// By the journal.
    Journal(JournalEvent),
    /// By an attempt: it has ended.
    AttemptEnded(AttemptReport),
    /// By the daemon: refuse what comes from now on.
    Refuse,
    /// By the daemon: send nothing more, and end when nothing is on the wire.
    Stop,
}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) struct AttemptReport {
    pub(crate) delivery: DeliveryId,
    pub(crate) outcome: AttemptOutcome,
    /// The task, if it could be read.
    pub(crate) task: Option<Arc<Task>>,
    /// Where it was sent; nothing where it was not.
    pub(crate) node: Option<Node>,
}
