//! The messages to the loop: requests from handles, and events from the journal, the attempts and the
//! daemon. Only types.

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

#[derive(Debug)]
pub(crate) enum Request {
    /// Accepts these writes in this order and answers each.
    Replicate(Vec<NewWrite>),
    Tasks(TaskRequest),
    Replicas(ReplicaRequest),
    DeadLetters(DeadLetterRequest),
    Barrier(BarrierRequest),
    Snapshot {
        reply: oneshot::Sender<Box<Snapshot>>,
    },
}

/// Whether the daemon accepts writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    Serving,
    /// The store does not answer. Requests that wait for it keep waiting; new writes are refused.
    Stalled {
        /// When it answered last.
        since: Instant,
    },
    /// The daemon is stopping. Deliveries in flight are finished; new writes are refused.
    Draining,
    /// Nothing is accepted until a restart.
    StoreFailed(Arc<str>),
}

impl Health {
    /// The refusal of a new write, unless the daemon serves.
    pub(crate) fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Serving => None,
            Self::Stalled { .. } => Some(Refusal::Stalled),
            Self::Draining => Some(Refusal::Draining),
            Self::StoreFailed(_) => Some(Refusal::StoreFailed),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedWrite {
    pub id: TaskId,
    /// A majority for a strong write, empty for an eventual one.
    pub acked: Vec<ReplicaIndex>,
    /// The write repeats an idempotency key.
    pub replayed: bool,
}

/// Why a write is not answered with success. Nothing was accepted, except for `NoMajority`.
#[derive(Debug, Error)]
pub enum Refusal {
    /// The text names the limit.
    #[error("{0}")]
    Full(String),
    #[error(
        "the store does not answer: its disk hangs or is overloaded; nothing was accepted, try again later"
    )]
    Stalled,
    #[error("the replicator is shutting down and accepts no new writes")]
    Draining,
    /// As far as the daemon knows, nothing was accepted.
    #[error("the store has failed and nothing can be accepted until a restart")]
    StoreFailed,
    /// A strong write is durable, but no majority has acknowledged it in time. Its deliveries
    /// continue in the background.
    #[error("{}", no_majority(acked.len(), acked.len() + failed.len(), *needed))]
    NoMajority {
        id: TaskId,
        /// The size of a majority.
        needed: usize,
        acked: Vec<ReplicaIndex>,
        failed: Vec<ReplicaIndex>,
        /// Why nothing was sent to some of the failed replicas.
        obstacles: Vec<(ReplicaIndex, Obstacle)>,
        /// The write repeats an idempotency key.
        replayed: bool,
    },
    /// The text names the field.
    #[error("{0}")]
    Invalid(String),
    #[error("this Idempotency-Key was used with another body before: a new write needs a new key")]
    Mismatch,
}

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

pub(crate) type WriteReply = oneshot::Sender<Result<AcceptedWrite, Refusal>>;

#[derive(Debug)]
pub(crate) struct NewWrite {
    pub(crate) new: Box<NewTask>,
    pub(crate) idempotency: Option<Idempotency>,
    pub(crate) reply: WriteReply,
}

/// A write that the journal is making durable.
#[derive(Debug)]
pub(crate) struct PendingWrite {
    pub(crate) reply: WriteReply,
    pub(crate) arrived: Moment,
    /// `None` for a repeat, which needs no room.
    pub(crate) reservation: Option<Reservation>,
    pub(crate) idempotency: Option<Idempotency>,
}

#[derive(Debug)]
pub(crate) enum LoopEvent {
    /// The journal's outcome of a write. The task of a new write arrives after it.
    Appended {
        write: PendingWrite,
        outcome: Result<Appended, AppendError>,
    },
    Journal(JournalEvent),
    AttemptEnded(AttemptReport),
    /// From now on, refuse new writes.
    Refuse,
    /// Start no more deliveries, and end when none is in flight.
    Stop,
}

#[derive(Debug)]
pub(crate) struct AttemptReport {
    pub(crate) delivery: DeliveryId,
    pub(crate) outcome: AttemptOutcome,
    /// The task, if it could be read.
    pub(crate) task: Option<Arc<Task>>,
    /// `None` if it was not sent.
    pub(crate) node: Option<Node>,
}
