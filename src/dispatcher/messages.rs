//! The messages between the server's handlers and the loop, and those that the loop is sent by its
//! own parts. Types alone: what is done with them is elsewhere.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::api;
use crate::engine::{AdminOutcome, Moment, Reservation};
use crate::metrics::Snapshot;
use crate::store::{AppendError, Appended, JournalEvent};
use crate::task::{
    AttemptOutcome, Cause, DeliveryId, DeliveryState, Idempotency, NewTask, Node, Obstacle,
    ReplicaIndex, Task, TaskId,
};

/// A request to the loop from a handler.
#[derive(Debug)]
pub(crate) enum Request {
    /// Accept these writes, in this order, and say how each went.
    Replicate(Vec<Write>),
    /// Answer an operator's question, or carry out an order.
    Admin(Query),
    /// Say how things stand.
    Snapshot { reply: oneshot::Sender<Box<Snapshot>> },
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
pub struct Accepted {
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
pub(crate) type Reply = oneshot::Sender<Result<Accepted, Refusal>>;

/// A write as it comes in.
#[derive(Debug)]
pub(crate) struct Write {
    pub(crate) new: Box<NewTask>,
    pub(crate) idempotency: Option<Idempotency>,
    pub(crate) reply: Reply,
}

/// Why a question has no answer, or an order was not carried out.
#[derive(Debug, Error)]
pub enum AdminError {
    /// The daemon has stopped, or its store has failed.
    #[error("the replicator is shutting down, or its store has failed")]
    Stopped,
    /// What it is about cannot be read from the store.
    #[error("cannot be read from the store: {0}")]
    Unreadable(String),
    /// Too many of these run already. The text names the limit.
    #[error("{0}")]
    TooMany(String),
    /// It makes no sense as it is. The text says why.
    #[error("{0}")]
    Invalid(String),
    /// It would write to where it may not. The text names the address.
    #[error("{0}")]
    Forbidden(String),
    /// It cannot be done as things are. The text says why.
    #[error("{0}")]
    Conflict(String),
}

/// Which tasks; what is not said does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// A delivery stands so: queued, in flight, retrying, parked or dead.
    pub state: Option<DeliveryState>,
    /// That delivery, or any, is to this replica.
    pub replica: Option<Node>,
    /// Of this key.
    pub key: Option<String>,
    /// Of the keys that begin so.
    pub key_prefix: Option<String>,
    /// Of this user.
    pub user_id: Option<String>,
}

/// Which dead letters; what is not said does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// These alone, each to one replica or to all of its task.
    pub ids: Option<Vec<(TaskId, Option<Node>)>>,
    /// To this replica.
    pub replica: Option<Node>,
    /// Of this key.
    pub key: Option<String>,
    /// Of the keys that begin so.
    pub key_prefix: Option<String>,
    /// Of this user.
    pub user_id: Option<String>,
    /// With this cause.
    pub cause: Option<Cause>,
}

/// A place in the list of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LetterCursor(pub(super) TaskId, pub(super) ReplicaIndex);

impl fmt::Display for LetterCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1.0)
    }
}

impl FromStr for LetterCursor {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (task, replica) = text.split_once('.').unwrap_or((text, ""));
        Ok(Self(task.parse()?, ReplicaIndex(replica.parse()?)))
    }
}

/// Where an answer goes.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, AdminError>>;

/// What the loop is asked.
#[derive(Debug)]
pub(crate) enum Query {
    Tasks {
        filter: TaskFilter,
        limit: usize,
        after: Option<TaskId>,
        reply: Answer<Step<api::TaskInfo, TaskId>>,
    },
    Task {
        id: TaskId,
        reply: Answer<Option<api::TaskInfo>>,
    },
    DiscardTask {
        id: TaskId,
        reply: Answer<Option<api::TaskInfo>>,
    },
    Replicas {
        /// This one alone.
        node: Option<Node>,
        reply: Answer<Vec<api::Replica>>,
    },
    Pause {
        node: Node,
        paused: bool,
        reply: Answer<Option<api::Replica>>,
    },
    Probe {
        node: Node,
        reply: Answer<Option<api::Probed>>,
    },
    Forget {
        node: Node,
        reply: Answer<Option<api::Forgotten>>,
    },
    Rename {
        node: Node,
        to: Node,
        reply: Answer<Option<api::Replica>>,
    },
    Letters {
        filter: LetterFilter,
        limit: usize,
        after: Option<LetterCursor>,
        reply: Answer<Step<Letter, LetterCursor>>,
    },
    Steer {
        letters: Vec<DeliveryId>,
        order: Order,
        reply: Answer<Vec<AdminOutcome>>,
    },
    Barrier {
        /// Up to here; to the last that was accepted where nothing is said.
        up_to: Option<TaskId>,
        nodes: Vec<Node>,
        reply: Answer<api::Barrier>,
    },
}

/// A dead letter, and what the loop knows it by.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) delivery: DeliveryId,
    pub(crate) shown: api::DeadLetterInfo,
}

/// What becomes of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Redrive,
    Discard,
    /// Nothing, but say what a redrive would do.
    WouldRedrive,
}

/// A part of a list.
#[derive(Debug)]
pub(crate) struct Step<T, C> {
    pub(crate) items: Vec<T>,
    /// How many were looked at for these.
    pub(crate) examined: usize,
    /// Where to go on; `None` at the end.
    pub(crate) next: Option<C>,
}

/// A write on its way to the disk.
#[derive(Debug)]
pub(crate) struct Pending {
    pub(crate) reply: Reply,
    /// When its request came.
    pub(crate) arrived: Moment,
    /// None for a repeat, which needs no room.
    pub(crate) reservation: Option<Reservation>,
    pub(crate) idempotency: Option<Idempotency>,
}

/// An event that the loop handles.
#[derive(Debug)]
pub(crate) enum Event {
    /// By the journal: what became of a write. The task of a new one arrives behind this.
    Appended { pending: Pending, outcome: Result<Appended, AppendError> },
    /// By the journal.
    Journal(JournalEvent),
    /// By an attempt: it has ended.
    Answered(Answered),
    /// By the daemon: refuse what comes from now on.
    Refuse,
    /// By the daemon: send nothing more, and end when nothing is on the wire.
    Stop,
}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) struct Answered {
    pub(crate) delivery: DeliveryId,
    pub(crate) outcome: AttemptOutcome,
    /// The task, if it could be read.
    pub(crate) task: Option<Arc<Task>>,
    /// Where it was sent; nothing where it was not.
    pub(crate) node: Option<Node>,
}
