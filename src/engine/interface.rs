//! The inputs and outputs of the engine.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

#[cfg(doc)]
use crate::engine::Engine;
use crate::engine::{ClearReservation, KeyId, Moment, Reservation, Since, Workers};
use crate::task::{
    BreakerState, Cause, Client, Counters, DeadLetter, DeliveryId, DeliveryState, Node, Obstacle,
    Partition, Progress, ReplicaIndex, ReplicaLimits, ReplicaPause, ReplicaState, TaskChange,
    TaskId, Timestamp,
};

/// Charged for each task on top of key and value: its row on disk, its entry in memory.
pub const TASK_OVERHEAD_BYTES: u64 = 512;

#[derive(Clone, Debug)]
pub struct EngineSettings {
    pub workers: Workers,
    /// Maximum tasks in the eventual queue, and maximum open strong writes.
    pub queue_capacity: usize,
    /// Maximum deliveries that wait for a retry or are being retried.
    pub retry_capacity: usize,
    /// Maximum bytes charged for tasks that wait.
    pub max_bytes: u64,
    /// Maximum bytes charged for tasks with only dead letters left, parked ones included. Accepted
    /// tasks can exceed it.
    pub max_dead_letter_bytes: u64,
    /// `None` keeps dead letters forever.
    pub dead_letter_retention: Option<Duration>,
    pub hinted_handoff: bool,
    /// Redriven dead letters per replica and second.
    pub redrive_rate: NonZeroU32,
    /// Consecutive failures that open a breaker; 0 disables breakers.
    pub breaker_failures: u32,
    /// How long a replica may still apply an attempt without an answer; zero disables the tracking.
    pub settle_after: Duration,
    /// Send only the newest of the waiting writes of a key.
    pub coalesce: bool,
    pub max_known_replicas: usize,
    pub max_retries: u32,
    /// The wait after the first failure.
    pub retry_base: Duration,
    pub strong_timeout: Duration,
    pub seed: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// Greater than the id of every earlier task of the partition.
    pub id: TaskId,
    pub partition: Partition,
    pub key: KeyId,
    /// Each node once.
    pub replicas: &'a [Node],
    /// [`crate::task::weight`]; the engine adds the overhead.
    pub bytes: u64,
    pub client: Option<&'a Client>,
    pub accepted_at: Timestamp,
}

#[derive(Debug)]
pub enum Origin {
    /// Just written. The reservation is there if this process accepted the write.
    Written(Option<Reservation>),
    /// A strong write that another process has accepted, whose client waits there.
    Awaited,
    /// Being made durable by this process; [`Engine::committed`] follows. Writes of other keys may
    /// arrive later with smaller ids.
    Early(ClearReservation),
    /// Of a partition that was claimed, with one progress per replica.
    Recovered(Vec<Progress>),
    /// A recovered strong write whose client still waits, in this process or another one.
    RecoveredAwaited(Vec<Progress>),
}

/// An effect for the caller, to be done in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineAction {
    /// Send this delivery, then call [`Engine::answered`].
    Send {
        delivery: DeliveryId,
        node: Node,
        /// From 1.
        attempt: u32,
        /// The charge of its task: about the memory that the task takes.
        bytes: u64,
    },
    Save {
        task: TaskId,
        progress: Vec<Progress>,
    },
    /// Nothing of the task is left: remove it from disk and memory.
    Remove {
        task: TaskId,
    },
    /// A task ended and is about to be removed. Only with [`Engine::report_ends`].
    Ended {
        last: TaskView,
    },
    /// Answer the client of a strong write.
    Conclude {
        task: TaskId,
        success: bool,
        needed: usize,
        acked: Vec<ReplicaIndex>,
        missing: Vec<ReplicaIndex>,
        /// Without a majority: why nothing is sent to some of the missing replicas.
        obstacles: Vec<(ReplicaIndex, Obstacle)>,
    },
    /// A delivery became a dead letter.
    Buried {
        delivery: DeliveryId,
        node: Node,
        letter: DeadLetter,
    },
    /// The breaker of a replica opened (with the error), or the replica is back (without).
    Breaker {
        node: Node,
        error: Option<Arc<str>>,
    },
    /// The pause of a replica has ended by itself.
    PauseEnded {
        node: Node,
        pause: ReplicaPause,
    },
    /// A dead letter reached its retention limit and was discarded.
    Discarded {
        delivery: DeliveryId,
        node: Node,
    },
    /// A dead letter that an operation redrove has its outcome.
    RedriveEnded {
        operation: u32,
        outcome: RedriveOutcome,
    },
    /// A delivery changed. Only with [`Engine::watch`].
    Changed {
        task: TaskId,
        node: Node,
        change: TaskChange,
        /// Of a failure or a dead letter.
        error: Option<Arc<str>>,
    },
}

/// Why a write was refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Full {
    #[error("the eventual queue is full (--queue-capacity {0})")]
    Queue(usize),
    #[error("the queue of strong writes is full (--queue-capacity {0})")]
    Strong(usize),
    #[error("the queued tasks leave no room for this write (--queue-max-bytes {0})")]
    Bytes(u64),
    /// The rest of the limit is reserved for others.
    #[error("{claimant} has used up its share of {limit} ({}: {held})", limit.what())]
    Share { claimant: Claimant, limit: SharedLimit, held: u64 },
    #[error(
        "this token has used up its quota ({}={most}; {}: {held})",
        limit.quota(), limit.what()
    )]
    Quota { client: Client, limit: SharedLimit, most: NonZeroU64, held: u64, more: u64 },
    #[error(
        "the write names a new replica and all known ones have pending deliveries or dead letters (--max-known-replicas {0})"
    )]
    Replicas(usize),
}

/// Who has used up a share.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Error)]
pub enum Claimant {
    #[error("this client")]
    Client(Option<Client>),
    /// The host of this replica, whatever its base path.
    #[error("{0}")]
    Replica(Node),
    /// The client's share of this replica.
    #[error("this client, for {1},")]
    ClientAtReplica(Option<Client>, Node),
}

/// A limit that clients and replicas share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum SharedLimit {
    #[error("--queue-capacity")]
    Queue,
    #[error("--queue-max-bytes")]
    Bytes,
    #[error("--dead-letter-max-bytes")]
    DeadLetters,
    #[error("--max-known-replicas")]
    Replicas,
}

impl SharedLimit {
    /// The field of a token with its quota.
    fn quota(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            _ => "places",
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Queue => "queued for it",
            Self::Bytes => "bytes queued for it",
            Self::DeadLetters => "bytes of its dead letters",
            Self::Replicas => "its known replicas",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// Tasks in the eventual queue.
    pub queue: usize,
    pub strong: usize,
    /// Deliveries that wait for a retry or are being retried.
    pub retry: usize,
    /// Bytes charged for tasks that wait.
    pub bytes: u64,
    /// Bytes charged for tasks with only dead letters left.
    pub dead_letter_bytes: u64,
    /// Parked deliveries included.
    pub dead_letters: u64,
    pub in_flight: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneView {
    pub node: Node,
    pub counters: Counters,
    pub in_flight: u64,
    pub waiting: u64,
    pub parked: u64,
    /// Bytes charged for the tasks of pending deliveries.
    pub pending_bytes: u64,
    /// Bytes charged for the tasks of all deliveries accepted so far.
    pub accepted_bytes: u64,
    /// When the oldest pending delivery was accepted.
    pub oldest: Option<Timestamp>,
    /// The same by the monotonic clock.
    pub oldest_since: Option<Since>,
    pub paused: Option<ReplicaPause>,
    pub last_error: Option<(Arc<str>, Timestamp)>,
    /// When the breaker last changed; `None` if it has not changed since the start.
    pub breaker_since: Option<Timestamp>,
    pub next_probe: Option<Moment>,
    pub dead_letter_bytes: u64,
    /// Dead letters with the cause [`Cause::Refused`].
    pub refused_letters: u64,
    pub breaker: BreakerState,
    /// Its current limit of concurrent deliveries.
    pub workers: u32,
    pub limits: ReplicaLimits,
}

#[cfg(test)]
impl LaneView {
    /// A healthy replica with five workers and nothing in flight.
    pub(crate) fn idle(node: &str, counters: Counters) -> Self {
        Self {
            node: Node::parse(node).unwrap(),
            counters,
            in_flight: 0,
            waiting: 0,
            parked: 0,
            pending_bytes: 0,
            accepted_bytes: 0,
            oldest: None,
            oldest_since: None,
            paused: None,
            last_error: None,
            breaker_since: None,
            next_probe: None,
            dead_letter_bytes: 0,
            refused_letters: 0,
            breaker: BreakerState::Closed,
            workers: 5,
            limits: ReplicaLimits::default(),
        }
    }
}

impl LaneView {
    pub fn state(&self) -> ReplicaState {
        ReplicaState::of(self.paused.is_some(), self.breaker, self.refused_letters)
    }

    /// When the replica entered its state; `None` if it has not changed since the start, or while
    /// it refuses writes.
    pub fn state_since(&self) -> Option<Timestamp> {
        let since = self.paused.map(|pause| pause.since).or(self.breaker_since);
        since.filter(|_| self.refused_letters == 0 || self.breaker != BreakerState::Closed)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    pub id: TaskId,
    /// In the order of the task's replicas.
    pub deliveries: Vec<DeliveryView>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryView {
    pub node: Node,
    pub state: DeliveryState,
    /// Of a dead letter.
    pub cause: Option<Cause>,
    pub failures: u32,
    pub error: Option<(Arc<str>, Timestamp)>,
    pub due: Option<Moment>,
    /// The last attempts, oldest first, if one failed. Only in the view of a single task.
    pub attempts: Vec<EndedSend>,
}

/// Whether the writes of a key have arrived at a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyStanding {
    /// The newest is delivered, and no attempt can be applied late.
    Settled,
    Pending,
    /// A dead letter.
    Dead,
    /// Nothing is sent to the replica.
    Paused,
    /// The replica has no lane, or was forgotten.
    Unknown,
    /// It is not known any more which write of the key is the newest.
    Dropped,
}

/// An attempt that was sent and has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedSend {
    pub at: Timestamp,
    pub took: Duration,
    /// `None` if the replica acknowledged it.
    pub error: Option<Arc<str>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterView {
    pub task: TaskId,
    pub replica: ReplicaIndex,
    pub delivery: DeliveryView,
}

/// Selects deliveries. An unset field matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeliveryFilter {
    pub state: Option<DeliveryState>,
    pub node: Option<Node>,
    pub key: Option<KeyId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SearchPage<T, C> {
    /// Oldest first.
    pub items: Vec<T>,
    /// Where the next page starts; `None` at the end.
    pub next: Option<C>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedriveOutcome {
    Delivered,
    /// It is a dead letter or parked again.
    Failed,
    Superseded,
    Discarded,
    /// Its partition was released: the next owner sends it.
    HandedOver,
}

/// The effect of an operator's request on one dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminOutcome {
    Done,
    /// No effect: a newer write of its key is pending and will settle it.
    LeftOut,
    /// No effect: the replica is paused or failing, or the retry queue has no place.
    HeldBack,
    /// It is not a dead letter any more.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeState {
    pub breaker: BreakerState,
    /// A probe is in flight.
    pub probing: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForgetCounts {
    pub discarded: u64,
    /// Deliveries in flight; they are not retried.
    pub in_flight: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameError {
    Unknown,
    Used,
}
