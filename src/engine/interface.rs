//! What goes into the engine and what comes out of it.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;

#[cfg(doc)]
use crate::engine::Engine;
use crate::engine::{BreakerState, Counters, KeyId, Moment, Reservation, Since, Workers};
use crate::task::{
    Cause, DeadLetter, DeliveryId, Node, Obstacle, Partition, Progress, ReplicaIndex, TaskId,
    Timestamp,
};

/// What a task is charged for beyond its key and value: its row on disk, its place in memory.
pub const TASK_OVERHEAD_BYTES: u64 = 512;

/// The limits and times of the engine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Deliveries on the wire to one replica.
    pub workers: Workers,
    /// Tasks in the eventual queue; as many strong writes may be open besides.
    pub queue_capacity: usize,
    /// Deliveries that wait for a retry, or are retried.
    pub retry_capacity: usize,
    /// What the tasks that wait may be charged for, in bytes.
    pub max_bytes: u64,
    /// What those may be charged for of which only dead letters are left, parked ones included, in
    /// bytes. What has been accepted before can exceed it.
    pub max_dead_letter_bytes: u64,
    /// How long a dead letter is kept; `None` is for ever.
    pub dead_letter_retention: Option<Duration>,
    /// Dead letters are redriven when their replica is back.
    pub hinted_handoff: bool,
    /// Dead letters of one replica that are redriven in a second.
    pub redrive_rate: NonZeroU32,
    /// Failures in a row that open a replica's breaker; 0 is never.
    pub breaker_failures: u32,
    /// How long an attempt without an answer may still be applied by the replica; zero is not at
    /// all.
    pub settle_after: Duration,
    /// Only the newest of the writes of one key that wait for a replica is sent to it.
    pub coalesce: bool,
    /// Replicas with a lane.
    pub max_known_replicas: usize,
    /// Retries after the first attempt.
    pub max_retries: u32,
    /// The wait after the first failure.
    pub retry_base: Duration,
    /// How long the client of a strong write waits at the most.
    pub strong_timeout: Duration,
    /// Where the jitter starts from.
    pub seed: u64,
}

/// A task that is durable.
#[derive(Clone, Copy, Debug)]
pub struct Arrived<'a> {
    /// Greater than every one of its partition that arrived before.
    pub id: TaskId,
    /// The one of its key.
    pub partition: Partition,
    /// Its key.
    pub key: KeyId,
    /// Its replicas, each once.
    pub replicas: &'a [Node],
    /// What it is charged for, to which the engine adds the overhead: [`crate::task::weight`].
    pub bytes: u64,
    /// When it was accepted.
    pub accepted_at: Timestamp,
}

/// Where a task comes from that arrives.
#[derive(Debug)]
pub enum Origin {
    /// It was just written; here, if there is a reservation.
    Written(Option<Reservation>),
    /// Its partition was claimed, at the start or later; with what each replica has had of it.
    Recovered(Vec<Progress>),
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this delivery; the outcome comes back by [`Engine::answered`].
    Send {
        /// Which.
        delivery: DeliveryId,
        /// To whom.
        node: Node,
        /// How often it is sent with this, from 1.
        attempt: u32,
        /// What its task is charged for: about what it costs to hold it in memory.
        bytes: u64,
    },
    /// The task stands so: keep it over a restart.
    Save {
        /// Which.
        task: TaskId,
        /// One entry a replica.
        progress: Vec<Progress>,
    },
    /// Nothing of the task is left: remove it from disk and memory.
    Remove {
        /// Which.
        task: TaskId,
    },
    /// A task has come to its end, as it is about to be removed: remember it for those who ask. Only
    /// where [`Engine::tell_ends`] says that someone may.
    Ended {
        /// How each of its deliveries ended.
        last: TaskView,
    },
    /// Answer the client of a strong write.
    Conclude {
        /// Which.
        task: TaskId,
        /// A majority has acknowledged.
        success: bool,
        /// How many make a majority.
        needed: usize,
        /// Who has acknowledged.
        acked: Vec<ReplicaIndex>,
        /// Who has not.
        missing: Vec<ReplicaIndex>,
        /// Without a majority, what keeps those of them that nothing is sent to.
        obstacles: Vec<(ReplicaIndex, Obstacle)>,
    },
    /// A delivery became a dead letter: tell the operator.
    Buried {
        /// Which.
        delivery: DeliveryId,
        /// Its replica.
        node: Node,
        /// Why.
        letter: DeadLetter,
    },
    /// The breaker of a replica has opened, with the error that did it, or the replica is back:
    /// tell the operator.
    Breaker {
        /// Whose.
        node: Node,
        /// Why it has opened.
        error: Option<Arc<str>>,
    },
    /// A dead letter was thrown away, as its time was over: tell the operator.
    Discarded {
        /// Which.
        delivery: DeliveryId,
        /// Its replica.
        node: Node,
    },
    /// Something has become of a delivery: tell those who watch. Only while [`Engine::watch`] says
    /// that someone does.
    Changed {
        /// Whose task.
        task: TaskId,
        /// To whom.
        node: Node,
        /// What.
        change: Change,
        /// Why, of a failure or a death.
        error: Option<Arc<str>>,
    },
}

/// What becomes of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// An attempt failed.
    Failed,
    /// Acknowledged.
    Delivered,
    /// A newer write took its place.
    Superseded,
    /// A dead letter, or parked.
    Dead,
    /// A dead letter was made ready again.
    Redriven,
    /// Thrown away.
    Discarded,
}

/// Why a write is not let in. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Full {
    /// `queue_capacity`.
    #[error("the eventual queue is full (--queue-capacity {0})")]
    Queue(usize),
    /// `queue_capacity`, for strong writes.
    #[error("the queue of strong writes is full (--queue-capacity {0})")]
    Strong(usize),
    /// One replica holds all of a queue but what is kept free for the others.
    #[error("{node} has used up its share of --queue-capacity (queued for it: {held})")]
    Share {
        /// Whose share is used up.
        node: Node,
        /// The tasks that it holds.
        held: usize,
    },
    /// `max_bytes`.
    #[error("the queued tasks leave no room for this write (--queue-max-bytes {0})")]
    Bytes(u64),
    /// `max_dead_letter_bytes`.
    #[error(
        "{node} has used up its share of --dead-letter-max-bytes (bytes of its dead letters: {bytes})"
    )]
    DeadLetters {
        /// Whose.
        node: Node,
        /// What they are charged for.
        bytes: u64,
    },
    /// `max_known_replicas`.
    #[error(
        "the write names a new replica and all known ones have pending deliveries or dead letters (--max-known-replicas {0})"
    )]
    Replicas(usize),
}

/// How full everything is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// Tasks in the eventual queue.
    pub queue: usize,
    /// Open strong writes.
    pub strong: usize,
    /// Deliveries that wait for a retry, or are retried.
    pub retry: usize,
    /// Bytes charged for the tasks that wait.
    pub bytes: u64,
    /// Bytes charged for the tasks of which only dead letters are left.
    pub dead_letter_bytes: u64,
    /// Deliveries kept as dead letters, the parked ones included.
    pub dead_letters: u64,
    /// Deliveries on the wire.
    pub in_flight: u64,
}

/// One replica, seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneView {
    /// Whose lane.
    pub node: Node,
    /// Its counters.
    pub counters: Counters,
    /// Of the pending, on the wire.
    pub in_flight: u64,
    /// Of the pending, waiting for a retry.
    pub waiting: u64,
    /// Of the pending, parked.
    pub parked: u64,
    /// What the tasks of the pending are charged for, in bytes.
    pub pending_bytes: u64,
    /// When the oldest of the pending was accepted.
    pub oldest: Option<Timestamp>,
    /// The same by a clock that nobody sets.
    pub oldest_since: Option<Since>,
    /// Since when an operator has it paused.
    pub paused: Option<Timestamp>,
    /// Why its last failed attempt failed, and when.
    pub last_error: Option<(Arc<str>, Timestamp)>,
    /// Since when its breaker is as it is; nothing since the start.
    pub breaker_since: Option<Timestamp>,
    /// When its next probe may go out.
    pub next_probe: Option<Moment>,
    /// Bytes charged for dead letters.
    pub dead_letter_bytes: u64,
    /// Its breaker.
    pub breaker: BreakerState,
    /// Deliveries that it may have at once.
    pub workers: u32,
}

/// How a delivery stands, for operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DeliveryState {
    /// Not sent yet, or about to be sent again.
    Queued,
    /// On the wire.
    InFlight,
    /// Failed, and waiting for its retry.
    Retrying,
    /// Failed, without a place in the retry queue.
    Parked,
    /// A dead letter.
    Dead,
    /// Acknowledged.
    Delivered,
    /// Made pointless by a newer write.
    Superseded,
    /// Thrown away.
    Discarded,
}

/// A task and its deliveries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskView {
    /// Which.
    pub id: TaskId,
    /// One for each replica, in the order of the task's list.
    pub deliveries: Vec<DeliveryView>,
}

/// A delivery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeliveryView {
    /// To whom.
    pub node: Node,
    /// How it stands.
    pub state: DeliveryState,
    /// Why it is a dead letter, if it is one.
    pub cause: Option<Cause>,
    /// Failed attempts.
    pub failures: u32,
    /// Why the last one failed, and when.
    pub error: Option<(Arc<str>, Timestamp)>,
    /// When it is tried again.
    pub due: Option<Moment>,
}

/// A dead letter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LetterView {
    /// Its task.
    pub task: TaskId,
    /// Which of the task's replicas.
    pub replica: ReplicaIndex,
    /// How it stands.
    pub delivery: DeliveryView,
}

/// What is looked for; what is not said does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// A delivery stands so.
    pub state: Option<DeliveryState>,
    /// That delivery, or any, is to this replica.
    pub node: Option<Node>,
    /// The task writes this key.
    pub key: Option<KeyId>,
}

/// A part of what was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<T, C> {
    /// By age.
    pub items: Vec<T>,
    /// Where to go on; `None` at the end.
    pub next: Option<C>,
}

/// What an operator's request has done to one dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminOutcome {
    /// What was asked for.
    Done,
    /// Nothing: a newer write of its key is on its way, and settles it.
    LeftOut,
    /// Nothing: its replica is paused or does not answer, or the retry queue has no place for it.
    HeldBack,
    /// It is no dead letter any more.
    Gone,
}

/// What came of asking for a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probed {
    /// The breaker afterwards.
    pub breaker: BreakerState,
    /// A delivery is on the wire that will tell how the replica is.
    pub probing: bool,
}

/// What a replica that is forgotten had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forgotten {
    /// Deliveries and dead letters that are thrown away.
    pub discarded: u64,
    /// Deliveries on the wire; they are not tried again.
    pub in_flight: u64,
}

/// Why a replica keeps its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenameError {
    /// There is no such replica.
    Unknown,
    /// There is one of the new name already.
    Used,
}
