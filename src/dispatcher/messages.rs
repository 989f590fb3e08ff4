//! The messages to the loop: requests from handles, and events from the journal, the attempts and the
//! daemon. Only types.

use std::collections::HashMap;
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::api;
use crate::dispatcher::cluster::ownership::Claim;
use crate::dispatcher::verify::{RecentPart, RecentWrite};
use crate::engine::{
    AdminOutcome, BarrierEnd, EngineSettings, KeyStanding, LetterView, Moment, Reservation,
    SearchPage,
};
use crate::metrics::Snapshot;
use crate::store::{AppendError, Appended, JournalEvent, StoreSnapshot};
use crate::task::{
    AttemptOutcome, Cause, Client, Consistency, DeliveryId, DeliveryState, Idempotency, NewTask,
    Node, Obstacle, Partition, Quota, ReplicaIndex, ReplicaLimits, Task, TaskId, Timestamp,
};

#[derive(Debug)]
pub(crate) enum Request {
    /// Accepts these writes in this order and answers each.
    Replicate(Vec<NewWrite>),
    Tasks(TaskRequest),
    Replicas(ReplicaRequest),
    DeadLetters(DeadLetterRequest),
    Barrier(BarrierRequest),
    Verify(VerifyQuestion),
    /// The partitions that this process owns, and whose tasks are all in the engine.
    Claims {
        reply: oneshot::Sender<Vec<Claim>>,
    },
    /// Whether this task is known, if it was accepted and its partition is owned.
    HasRead {
        id: TaskId,
        reply: oneshot::Sender<bool>,
    },
    /// The figures of the last hour, of the daemon or of one replica.
    Past {
        node: Option<Node>,
        reply: AdminReply<Option<api::PastFigures>>,
    },
    Snapshot {
        reply: oneshot::Sender<Box<Snapshot>>,
    },
    StoreSnapshot {
        reply: AdminReply<Box<dyn StoreSnapshot>>,
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

/// Why a write is not answered with success. Nothing was accepted, except for `NoMajority`,
/// `OwnerChanged` and perhaps `Unconfirmed`.
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
    #[error(
        "the store did not answer in time; the write may have been accepted, so repeat it: with an Idempotency-Key it is the same write"
    )]
    Unconfirmed,
    /// A strong write of a partition that no instance owns.
    #[error("no instance owns the partition of this key: nothing was accepted, try again later")]
    NoOwner,
    /// A strong write is durable, but another instance delivers it and has not answered.
    #[error(
        "another instance owns the partition of the key: the write is accepted and is delivered, but the acknowledgements are not known"
    )]
    OwnerChanged { id: TaskId },
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

/// Why a request of an operator failed.
#[derive(Clone, Debug, PartialEq, Eq, Error, Serialize, Deserialize)]
pub enum AdminError {
    #[error("the replicator is shutting down, or its store has failed")]
    Stopped,
    /// It is made, and may be stored later or not at all.
    #[error(
        "the change is made here, but the store has not confirmed it in time: look at its result, and repeat the request if it is lacking"
    )]
    Unconfirmed,
    #[error("cannot be read from the store: {0}")]
    Unreadable(String),
    /// The text names the limit.
    #[error("{0}")]
    TooMany(String),
    #[error("{0}")]
    Invalid(String),
    /// The outbound policy forbids the address. The text names it.
    #[error("{0}")]
    Forbidden(String),
    /// Not possible in the current state.
    #[error("{0}")]
    Conflict(String),
    /// A part of the cluster does not answer. The text names it.
    #[error("{0}")]
    Unanswered(String),
}

pub(crate) type AdminReply<T> = oneshot::Sender<Result<T, AdminError>>;

/// What a verification asks.
#[derive(Debug)]
pub(crate) enum VerifyQuestion {
    /// Recent writes, for one replica or for any.
    Sample { replica: Option<Node>, most: usize, reply: AdminReply<Vec<RecentWrite>> },
    /// The recent writes after a sequence.
    After { after: TaskId, most: usize, reply: AdminReply<RecentPart> },
    /// Whether the newest write of a key has arrived; `None` if it is not the newest.
    Standing {
        key: Arc<str>,
        sequence: TaskId,
        replicas: Vec<Node>,
        reply: AdminReply<Option<Vec<KeyStanding>>>,
    },
    /// Accepts a write if `of` is still the newest of its key.
    Repair { of: TaskId, write: NewWrite },
}

/// A part of a list.
#[derive(Debug)]
pub(crate) struct ListPart<T, C> {
    pub(crate) items: Vec<T>,
    /// Length of the items as JSON.
    pub(crate) bytes: usize,
    /// Entries that were searched for these items.
    pub(crate) examined: usize,
    /// Where the next part starts; `None` at the end of the list.
    pub(crate) next: Option<C>,
}

/// A page of a list, each item with its place.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ListPage<C, T> {
    pub(crate) items: Vec<(C, T)>,
    /// The page has everything up to this place; `None` at the end of the list.
    pub(crate) next: Option<C>,
}

#[derive(Debug)]
pub(crate) enum TaskRequest {
    List {
        filter: TaskFilter,
        limit: usize,
        after: Option<TaskId>,
        reply: AdminReply<ListPart<(TaskId, api::TaskInfo), TaskId>>,
    },
    /// The settled tasks of a key that are remembered, newest first.
    Settled {
        key: String,
        reply: AdminReply<Vec<(TaskId, api::TaskInfo)>>,
    },
    Show {
        id: TaskId,
        reply: AdminReply<Option<api::TaskInfo>>,
    },
    Discard {
        id: TaskId,
        reply: AdminReply<Option<api::TaskInfo>>,
    },
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskFilter {
    /// The state of the delivery to `replica`, or of any delivery. Settled tasks are not listed.
    pub state: Option<DeliveryState>,
    pub replica: Option<Node>,
    pub key: Option<String>,
    pub key_prefix: Option<String>,
    pub user_id: Option<String>,
}

#[derive(Debug)]
pub(crate) enum ReplicaRequest {
    /// One replica, or all.
    List {
        node: Option<Node>,
        reply: AdminReply<Vec<api::Replica>>,
    },
    Pause {
        node: Node,
        /// `None` resumes it.
        end: Option<PauseEnd>,
        /// Why a replica that is not known cannot be paused.
        forbidden: Option<String>,
        reply: AdminReply<Option<api::Replica>>,
    },
    Limit {
        node: Node,
        change: LimitsChange,
        /// As for a pause.
        forbidden: Option<String>,
        reply: AdminReply<Option<api::Replica>>,
    },
    Probe {
        node: Node,
        reply: AdminReply<Option<api::Probed>>,
    },
    Forget {
        node: Node,
        /// Its pause and its names stay.
        keeps_record: bool,
        reply: AdminReply<Option<api::Forgotten>>,
    },
    /// Ends its pause and its former names.
    EndRecord {
        node: Node,
        reply: AdminReply<()>,
    },
    /// Whether the record of a replica says this, here too.
    Applied {
        record: ReplicaRecord,
        reply: AdminReply<bool>,
    },
    Rename {
        node: Node,
        to: Node,
        /// No other process has pending writes for it.
        is_settled_elsewhere: bool,
        reply: AdminReply<Option<api::Replica>>,
    },
}

/// When a pause ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PauseEnd {
    Never,
    After(Duration),
    At(Timestamp),
}

/// The change of one limit of a replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LimitChange<T> {
    #[default]
    Keep,
    Unset,
    Set(T),
}

impl<T> LimitChange<T> {
    fn apply(self, known: Option<T>) -> Option<T> {
        match self {
            Self::Keep => known,
            Self::Unset => None,
            Self::Set(limit) => Some(limit),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitsChange {
    pub workers: LimitChange<NonZeroU32>,
    pub rate: LimitChange<NonZeroU32>,
    pub bandwidth: LimitChange<NonZeroU64>,
    pub redrive_rate: LimitChange<NonZeroU32>,
}

impl LimitsChange {
    pub(crate) fn apply(self, known: ReplicaLimits) -> ReplicaLimits {
        ReplicaLimits {
            workers: self.workers.apply(known.workers),
            rate: self.rate.apply(known.rate),
            bandwidth: self.bandwidth.apply(known.bandwidth),
            redrive_rate: self.redrive_rate.apply(known.redrive_rate),
        }
    }
}

/// What an operator changed of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum ReplicaRecord {
    Paused {
        node: Node,
        paused: bool,
        /// As [`api::Replica::paused_until`]. Left out for a version that does not know it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        until: Option<String>,
    },
    Renamed {
        node: Node,
        to: Node,
    },
    Limited {
        node: Node,
        limits: ReplicaLimits,
    },
}

#[derive(Debug)]
pub(crate) enum DeadLetterRequest {
    List {
        filter: LetterFilter,
        limit: usize,
        after: Option<LetterCursor>,
        reply: AdminReply<ListPart<FoundLetter, LetterCursor>>,
    },
    /// The dead letters after a place, without their rows.
    Scan {
        after: Option<LetterCursor>,
        reply: AdminReply<SearchPage<LetterView, LetterCursor>>,
    },
    Apply {
        letters: Vec<DeliveryId>,
        action: LetterAction,
        reply: AdminReply<Vec<AdminOutcome>>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LetterAction {
    /// For the operation of this number.
    Redrive(u32),
    Discard,
    /// Changes nothing and returns the outcome of a redrive.
    DryRedrive,
}

#[derive(Clone, Debug)]
pub(crate) struct FoundLetter {
    pub(crate) delivery: DeliveryId,
    pub(crate) shown: api::DeadLetterInfo,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LetterFilter {
    /// Only these tasks, each for one replica or for all.
    pub ids: Option<Vec<(TaskId, Option<Node>)>>,
    pub replica: Option<Node>,
    pub key: Option<String>,
    pub key_prefix: Option<String>,
    pub user_id: Option<String>,
    pub cause: Option<Cause>,
}

/// A place in the list of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
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

#[derive(Debug)]
pub(crate) struct BarrierRequest {
    /// `None` makes a new barrier behind the newest task.
    pub(crate) end: Option<BarrierEnd>,
    /// Empty for all replicas.
    pub(crate) nodes: Vec<Node>,
    pub(crate) reply: AdminReply<CountedBarrier>,
}

/// What is left before a barrier, as this process knows.
#[derive(Debug)]
pub(crate) struct CountedBarrier {
    pub(crate) end: BarrierEnd,
    /// By their current names.
    pub(crate) nodes: Vec<Node>,
    pub(crate) replicas: Vec<api::BarrierReplica>,
    /// Partitions of a barrier of several whose tasks before it are all counted.
    pub(crate) partitions: Vec<Partition>,
}

/// A write that the journal is making durable.
#[derive(Debug)]
pub(crate) struct PendingWrite {
    pub(crate) reply: WriteReply,
    pub(crate) arrived: Moment,
    /// `None` for a repeat, which needs no room.
    pub(crate) reservation: Option<Reservation>,
    pub(crate) idempotency: Option<Idempotency>,
    pub(crate) consistency: Consistency,
}

#[derive(Debug)]
pub(crate) enum LoopEvent {
    /// The journal's outcome of a write. The task of a new write arrives after it.
    Appended {
        write: PendingWrite,
        outcome: Result<Appended, AppendError>,
    },
    /// An early write was removed before its commit began.
    Withdrawn(TaskId),
    Journal(JournalEvent),
    AttemptEnded(AttemptReport),
    /// The credentials for replicas were reloaded.
    CredentialsRenewed,
    /// The config file was read again: the settings that the loop can change.
    Reconfigured {
        engine: Box<EngineSettings>,
        queue_wait: Duration,
    },
    /// The token list was read again: the quotas of all its tokens.
    Quotas(HashMap<Client, Quota>),
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
