//! The words of the replicator: task, operation, node, delivery, verdict, progress.
//!
//! Every other module speaks in these types; this one knows nobody. It does no I/O and reads no
//! clock: a moment always comes in as a [`Timestamp`].
//!
//! Start with [`Task`]; a [`DeliveryId`] names one task to one of its replicas, a [`Verdict`] is
//! what the answer of a replica means, and [`Progress`] is what a replica has had of a task so far.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod moment;
mod node;
mod uptime;

pub use moment::{Moment, Now, Since};
pub use node::{MAX_NODE_BYTES, Node, NodeError};
pub use uptime::{Step, Uptime};

/// The place of a task in the order of acceptance; it only ever grows, across restarts too.
///
/// The first number of a new store is the time of its creation in microseconds, so that numbers
/// do not come again when a data directory is lost and made anew. The text form is decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u64);

/// A set of keys whose order one owner keeps. A journal on one disk has one, the default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Partition(pub u16);

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for TaskId {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(TaskId)
    }
}

/// A moment of the wall clock, in nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// The moment `duration` later; the last representable one (in the year 2554) if beyond it.
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    /// The time from `earlier` to `self`, zero if `earlier` is not earlier.
    #[must_use]
    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// What a write does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Store the value.
    Set,
    /// Remove the key.
    Delete,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Set => "SET",
            Self::Delete => "DELETE",
        })
    }
}

/// When the client has its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// Once the task is durable here.
    Eventual,
    /// Once a majority of the replicas has acknowledged, and the task is durable here.
    Strong,
}

/// The W3C trace context that came with a request, so that the deliveries of its task, hours later
/// or after a restart, still belong to the trace of the write.
///
/// The texts as they came; whoever takes them in checks them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The text of `traceparent`, at most [`Trace::MAX_PARENT_BYTES`].
    pub parent: Box<str>,
    /// The text of `tracestate`, at most [`Trace::MAX_STATE_BYTES`].
    pub state: Option<Box<str>>,
}

impl Trace {
    /// Version `00` takes 55; a later one may append to it.
    pub const MAX_PARENT_BYTES: usize = 64;
    /// What the recommendation asks everyone to carry at least.
    pub const MAX_STATE_BYTES: usize = 512;

    fn bytes(&self) -> usize {
        self.parent.len() + self.state.as_ref().map_or(0, |state| state.len())
    }
}

/// The `Idempotency-Key` that a client gave a write, and what makes another write the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// The client's word for it.
    pub key: Box<str>,
    /// What its body comes down to.
    pub fingerprint: [u8; 16],
}

/// A valid write request that is not accepted yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTask {
    /// Never empty, never `.` or `..`.
    pub key: String,
    /// SET or DELETE.
    pub operation: Operation,
    /// Empty for a DELETE.
    pub value: Bytes,
    /// How long the value lives, counted from acceptance; `None` is for ever.
    pub ttl: Option<Duration>,
    /// When the client wants its answer.
    pub consistency: Consistency,
    /// At least one, each once.
    pub replicas: Vec<Node>,
    /// Whose write this is, for the metrics and for operators.
    pub user_id: Option<String>,
    /// The trace that it belongs to.
    pub trace: Option<Trace>,
}

impl NewTask {
    /// See [`weight`].
    #[must_use]
    pub fn weight(&self) -> usize {
        let (user_id, trace) = (self.user_id.as_deref(), self.trace.as_ref());
        weight(&self.key, self.value.len(), &self.replicas, user_id, trace)
    }
}

/// An accepted write, immutable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// Its place in the order of acceptance.
    pub id: TaskId,
    /// The key as the client wrote it, not encoded.
    pub key: String,
    /// SET or DELETE.
    pub operation: Operation,
    /// Empty for a DELETE.
    pub value: Bytes,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// From when on the key is to be gone; `None` is never.
    pub expires_at: Option<Timestamp>,
    /// The nodes that are to hold the write, each once. A [`ReplicaIndex`] points into this list.
    pub replicas: Vec<Node>,
    /// Whose write this is.
    pub user_id: Option<String>,
    /// What the client waited for.
    pub consistency: Consistency,
    /// The trace that it belongs to.
    pub trace: Option<Trace>,
}

impl Task {
    /// The task that `new` becomes when it is accepted as `id` at `now`.
    #[must_use]
    pub fn accepted(new: NewTask, id: TaskId, now: Timestamp) -> Self {
        Self {
            id,
            key: new.key,
            operation: new.operation,
            value: new.value,
            accepted_at: now,
            expires_at: new.ttl.map(|ttl| now.saturating_add(ttl)),
            replicas: new.replicas,
            user_id: new.user_id,
            consistency: new.consistency,
            trace: new.trace,
        }
    }

    /// See [`weight`].
    #[must_use]
    pub fn weight(&self) -> usize {
        let (user_id, trace) = (self.user_id.as_deref(), self.trace.as_ref());
        weight(&self.key, self.value.len(), &self.replicas, user_id, trace)
    }

    /// What a replica must be told at `now` so that it ends up with what the primary holds.
    ///
    /// It is never given more time than the client gave, also after the clock was set back.
    /// A SET whose time has run out is a DELETE: the replica may hold an older value, which has
    /// to go just as the primary's is gone.
    #[must_use]
    pub fn command_at(&self, now: Timestamp) -> Command {
        match (self.operation, self.expires_at) {
            (Operation::Delete, _) => Command::Delete,
            (Operation::Set, None) => Command::Put { ttl: None },
            (Operation::Set, Some(end)) => match end.saturating_since(now.max(self.accepted_at)) {
                Duration::ZERO => Command::Delete,
                remaining => Command::Put { ttl: Some(remaining) },
            },
        }
    }
}

/// What a task weighs in queues and in memory beyond a fixed overhead, in bytes: all of it whose
/// length a client chooses.
#[must_use]
pub fn weight(
    key: &str,
    value: usize,
    replicas: &[Node],
    user_id: Option<&str>,
    trace: Option<&Trace>,
) -> usize {
    /// A replica's place in lists, and its progress on disk.
    const REPLICA_OVERHEAD: usize = 64;
    let replicas = replicas.iter().map(|node| node.as_str().len() + REPLICA_OVERHEAD);
    let told = user_id.map_or(0, str::len) + trace.map_or(0, Trace::bytes);
    key.len() + value + told + replicas.sum::<usize>()
}

/// The request that a replica gets for a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Store the task's value.
    Put {
        /// The time that is left to it, never zero.
        ttl: Option<Duration>,
    },
    /// Remove the key.
    Delete,
}

/// A position in [`Task::replicas`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaIndex(pub u16);

impl ReplicaIndex {
    /// As an index into a slice.
    #[must_use]
    pub fn get(self) -> usize {
        usize::from(self.0)
    }
}

/// Names a delivery: one task to one of its replicas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId {
    /// The write.
    pub task: TaskId,
    /// Which of the task's replicas.
    pub replica: ReplicaIndex,
}

/// Why nothing is sent to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// An operator has it paused.
    Paused,
    /// Its breaker is open.
    BreakerOpen,
}

/// How one attempt ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptOutcome {
    /// What it means for the delivery.
    pub verdict: Verdict,
    /// A request of it had no answer: the replica may still apply it, over a newer write.
    pub ambiguous: bool,
    /// From sending to the verdict, without the time in which this process did not run.
    pub took: Duration,
}

impl AttemptOutcome {
    /// Of an attempt whose requests were all answered, or not sent.
    #[must_use]
    pub fn certain(verdict: Verdict, took: Duration) -> Self {
        Self { verdict, ambiguous: false, took }
    }
}

/// What the outcome of one attempt means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The replica has the write.
    Delivered,
    /// It does not, or nobody knows; another attempt may help.
    Retry {
        /// The replica asked to be left alone for so long (`Retry-After`).
        after: Option<Duration>,
        /// Why, for operators.
        error: Arc<str>,
    },
    /// It was not sent, because this process lacks something that it needs for that, such as a file
    /// descriptor. It says nothing about the replica, and another attempt may help.
    Shortage {
        /// Why, for operators.
        error: Arc<str>,
    },
    /// It never will: another attempt would end the same.
    Rejected {
        /// Why, for operators.
        error: Arc<str>,
    },
}

/// What one replica has had of a task: the part of a delivery's state that survives a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing yet that is worth remembering.
    Untouched,
    /// It failed so many times and is to be tried again; or it has not been tried yet and took the
    /// place of one that failed.
    Failed {
        /// Failed attempts so far; 0 only for one that took the place of another.
        failures: u32,
        /// The last error.
        error: Arc<str>,
    },
    /// The replica acknowledged.
    Delivered,
    /// A newer write of the key made it pointless.
    Superseded,
    /// Kept as a dead letter.
    Dead(DeadLetter),
    /// Nothing is left to send, but an attempt that ended then may still be applied.
    Ambiguous {
        /// When it ended.
        since: Timestamp,
    },
    /// The replica acknowledged, and is sent the write once more, as an attempt of an older one may
    /// have been applied over it.
    Resend,
}

impl Progress {
    /// Whether an attempt has failed and the write will not be sent soon, if ever.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        match self {
            Self::Failed { failures, .. } => *failures > 0,
            Self::Dead(_) | Self::Ambiguous { .. } => true,
            Self::Untouched | Self::Delivered | Self::Superseded | Self::Resend => false,
        }
    }
}

/// A delivery that was given up or set aside, kept until someone redrives or discards it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    /// Why it lies here.
    pub cause: Cause,
    /// Failed attempts before that.
    pub failures: u32,
    /// The last error.
    pub error: Arc<str>,
    /// Since when.
    pub since: Timestamp,
}

/// Why a delivery became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// The replica refused the write for good, or it cannot be read back from the store and was
    /// not sent; the error says which.
    Rejected,
    /// All attempts failed.
    GaveUp,
    /// It has no place in the retry queue. The only cause that is not an end: the delivery is
    /// still pending and comes back by itself.
    RetryOverflow,
}

impl Cause {
    /// The name in logs, metrics and the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::GaveUp => "gave_up",
            Self::RetryOverflow => "retry_overflow",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_with_ttl(ttl: Option<Duration>) -> Task {
        let new = NewTask {
            key: "k".into(),
            operation: Operation::Set,
            value: Bytes::from_static(b"v"),
            ttl,
            consistency: Consistency::Eventual,
            replicas: vec![Node::parse("http://a").unwrap()],
            user_id: None,
            trace: None,
        };
        Task::accepted(new, TaskId(1), Timestamp(1_000))
    }

    #[test]
    fn a_set_carries_what_is_left_of_its_ttl() {
        let task = set_with_ttl(Some(Duration::from_nanos(500)));
        let command = task.command_at(Timestamp(1_200));
        assert_eq!(command, Command::Put { ttl: Some(Duration::from_nanos(300)) });
    }

    #[test]
    fn a_clock_that_is_set_back_gives_a_set_no_more_time_than_its_client() {
        let task = set_with_ttl(Some(Duration::from_nanos(500)));
        let command = task.command_at(Timestamp(7));
        assert_eq!(command, Command::Put { ttl: Some(Duration::from_nanos(500)) });
    }

    #[test]
    fn a_set_without_ttl_never_expires() {
        let task = set_with_ttl(None);
        assert_eq!(task.command_at(Timestamp(u64::MAX)), Command::Put { ttl: None });
    }

    #[test]
    fn an_expired_set_is_a_delete_from_its_last_nanosecond_on() {
        let task = set_with_ttl(Some(Duration::from_nanos(500)));
        assert_eq!(task.command_at(Timestamp(1_500)), Command::Delete);
        assert_eq!(task.command_at(Timestamp(9_999)), Command::Delete);
    }

    #[test]
    fn a_ttl_beyond_the_end_of_time_is_for_ever_long() {
        let task = set_with_ttl(Some(Duration::MAX));
        assert_eq!(task.expires_at, Some(Timestamp(u64::MAX)));
    }
}
