//! The shared vocabulary: task, operation, node, delivery, verdict, progress.
//!
//! Every other module uses these types; this one imports no other module, does no I/O and reads no
//! clock. Start with [`Task`]. A [`DeliveryId`] names one task for one replica, a [`Verdict`] is
//! the meaning of a replica's answer, and [`Progress`] is the durable part of a delivery's state.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod client;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod kept;
mod moment;
mod node;
mod replica;
mod state;
mod uptime;

pub use client::{Client, Quota};
#[cfg(test)]
pub(crate) use kept::sized_task;
pub(crate) use kept::{KeptTasks, cost};
pub use moment::{Moment, Now, Since};
pub use node::{MAX_NODE_BYTES, Node, NodeError};
pub use replica::{ReplicaLimits, ReplicaPause};
pub use state::{BreakerState, Counters, DeliveryState, ReplicaState, TaskChange};
pub use uptime::{ClockStep, Uptime};

/// The position of a task in the order of acceptance. It only grows, across restarts too.
///
/// A new store starts at its creation time in microseconds, so that ids do not repeat when a data
/// directory is lost and replaced. The text form is decimal.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
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

/// Wall clock time in nanoseconds since 1970-01-01 UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// `self + duration`, at most the last representable time (in the year 2554).
    pub fn saturating_add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }

    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Operation of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
#[schema(as = Write)]
pub enum Operation {
    Set,
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

/// When a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// When the write is durable here.
    Eventual,
    /// When a majority of the replicas has acknowledged.
    Strong,
}

/// The W3C trace context of a request. It is stored, so that deliveries after hours or a restart
/// still belong to the trace of the write. The receiver has validated the texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub parent: Box<str>,
    pub state: Option<Box<str>>,
}

impl Trace {
    /// Version `00` takes 55 bytes; a later version may be longer.
    pub const MAX_PARENT_BYTES: usize = 64;
    /// The length that the W3C recommendation requires everyone to propagate.
    pub const MAX_STATE_BYTES: usize = 512;

    fn bytes(&self) -> usize {
        self.parent.len() + self.state.as_ref().map_or(0, |state| state.len())
    }
}

/// The `Idempotency-Key` of a write, and the fingerprint that a repeat must match.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    pub key: Box<str>,
    pub fingerprint: [u8; 16],
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewTask {
    /// Not empty, `.` or `..`.
    pub key: String,
    pub operation: Operation,
    /// Empty for a DELETE.
    pub value: Bytes,
    /// Time to live from acceptance; `None` is forever.
    pub ttl: Option<Duration>,
    pub consistency: Consistency,
    /// At least one, each once.
    pub replicas: Vec<Node>,
    pub user_id: Option<String>,
    /// Whose shares the write takes. `None` is a client of its own.
    pub client: Option<Client>,
    /// The node that the client wrote to first, if it names an address.
    pub primary: Option<Node>,
    pub trace: Option<Trace>,
}

impl NewTask {
    pub fn weight(&self) -> usize {
        let (user_id, trace) = (self.user_id.as_deref(), self.trace.as_ref());
        weight(&self.key, self.value.len(), &self.replicas, user_id, trace)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub id: TaskId,
    /// As the client wrote it, not encoded.
    pub key: String,
    pub operation: Operation,
    pub value: Bytes,
    pub accepted_at: Timestamp,
    /// When the key expires; `None` is never.
    pub expires_at: Option<Timestamp>,
    /// The nodes that must hold the write, each once. A [`ReplicaIndex`] indexes this list.
    pub replicas: Vec<Node>,
    pub user_id: Option<String>,
    /// `None` for a write of an older format.
    pub client: Option<Client>,
    pub consistency: Consistency,
    /// Only in the process that accepted it: it is not stored.
    pub primary: Option<Node>,
    pub trace: Option<Trace>,
}

impl Task {
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
            client: new.client,
            consistency: new.consistency,
            primary: new.primary,
            trace: new.trace,
        }
    }

    pub fn weight(&self) -> usize {
        let (user_id, trace) = (self.user_id.as_deref(), self.trace.as_ref());
        weight(&self.key, self.value.len(), &self.replicas, user_id, trace)
    }

    /// The command that gives a replica at `now` the state of the primary.
    ///
    /// The remaining TTL never exceeds the client's TTL, even if the clock was set back. An expired
    /// SET becomes a DELETE: the replica may hold an older value, and the primary's is gone.
    pub fn command_at(&self, now: Timestamp) -> ReplicaCommand {
        match (self.operation, self.expires_at) {
            (Operation::Delete, _) => ReplicaCommand::Delete,
            (Operation::Set, None) => ReplicaCommand::Put { ttl: None },
            (Operation::Set, Some(end)) => match end.saturating_since(now.max(self.accepted_at)) {
                Duration::ZERO => ReplicaCommand::Delete,
                remaining => ReplicaCommand::Put { ttl: Some(remaining) },
            },
        }
    }
}

/// The bytes of a task whose length the client chooses. Queues and memory are charged this plus a
/// fixed overhead.
pub fn weight(
    key: &str,
    value: usize,
    replicas: &[Node],
    user_id: Option<&str>,
    trace: Option<&Trace>,
) -> usize {
    /// A replica's entry in lists, and its progress on disk.
    const REPLICA_OVERHEAD: usize = 64;
    let replicas = replicas.iter().map(|node| node.as_str().len() + REPLICA_OVERHEAD);
    let metadata = user_id.map_or(0, str::len) + trace.map_or(0, Trace::bytes);
    key.len() + value + metadata + replicas.sum::<usize>()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaCommand {
    Put {
        /// Never zero.
        ttl: Option<Duration>,
    },
    Delete,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ReplicaIndex(pub u16);

impl ReplicaIndex {
    pub fn get(self) -> usize {
        usize::from(self.0)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeliveryId {
    pub task: TaskId,
    pub replica: ReplicaIndex,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    Paused,
    BreakerOpen,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttemptOutcome {
    pub verdict: Verdict,
    /// A request got no answer: the replica may still apply it, over a newer write.
    pub ambiguous: bool,
    /// From sending to the verdict, without time in which this process was suspended.
    pub took: Duration,
}

impl AttemptOutcome {
    pub fn certain(verdict: Verdict, took: Duration) -> Self {
        Self { verdict, ambiguous: false, took }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Delivered,
    /// Also if it is unknown whether the replica has the write.
    Retry {
        after: Option<Duration>,
        error: Arc<str>,
    },
    /// Not sent, because this process lacks a resource such as a file descriptor; or not sent or cut,
    /// because its lease has ended. It says nothing about the replica, and another attempt may help.
    Shortage {
        error: Arc<str>,
    },
    /// Another attempt would end the same.
    Rejected {
        error: Arc<str>,
    },
    /// The replica accepts no write with these credentials. Another attempt ends the same until
    /// someone changes that.
    Refused {
        error: Arc<str>,
    },
}

impl Verdict {
    pub fn error(&self) -> Option<&Arc<str>> {
        match self {
            Self::Delivered => None,
            Self::Retry { error, .. }
            | Self::Shortage { error }
            | Self::Rejected { error }
            | Self::Refused { error } => Some(error),
        }
    }
}

/// The durable part of a delivery's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    Untouched,
    /// Waits for a retry; or not tried yet, but it superseded a write that failed.
    Failed {
        /// Failed attempts; 0 only if it superseded a failed write.
        failures: u32,
        error: Arc<str>,
    },
    Delivered,
    Superseded,
    Dead(DeadLetter),
    /// Nothing is left to send, but the last attempt may still be applied.
    Ambiguous {
        since: Timestamp,
    },
    /// Acknowledged, but sent once more: an ambiguous attempt of an older write may have been
    /// applied over it.
    Resend,
}

impl Progress {
    /// Whether an attempt has failed and the write will not be sent soon.
    pub fn has_failed(&self) -> bool {
        match self {
            Self::Failed { failures, .. } => *failures > 0,
            Self::Dead(_) | Self::Ambiguous { .. } => true,
            Self::Untouched | Self::Delivered | Self::Superseded | Self::Resend => false,
        }
    }
}

/// A delivery that was given up or parked, kept until it is redriven or discarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    pub cause: Cause,
    pub failures: u32,
    pub error: Arc<str>,
    pub since: Timestamp,
}

/// Why a delivery became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    // Also if the task could not be read from the store and was not sent; the error says which.
    /// The replica rejected it.
    Rejected,
    /// The replica refuses all writes with the current credentials. Redriven automatically when it
    /// accepts a write again; never expires.
    Refused,
    /// All attempts failed.
    GaveUp,
    /// Parked: the retry queue is full, the replica has used up its share of it, is paused, or asked
    /// for a long wait. Comes back automatically.
    RetryOverflow,
}

impl Cause {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "rejected",
            Self::Refused => "refused",
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
            client: None,
            primary: None,
            trace: None,
        };
        Task::accepted(new, TaskId(1), Timestamp(1_000))
    }

    #[test]
    fn a_set_carries_what_is_left_of_its_ttl() {
        let task = set_with_ttl(Some(Duration::from_nanos(500)));
        let command = task.command_at(Timestamp(1_200));
        assert_eq!(command, ReplicaCommand::Put { ttl: Some(Duration::from_nanos(300)) });
    }

    #[test]
    fn a_clock_that_is_set_back_gives_a_set_no_more_time_than_its_client() {
        let task = set_with_ttl(Some(Duration::from_nanos(500)));
        let command = task.command_at(Timestamp(7));
        assert_eq!(command, ReplicaCommand::Put { ttl: Some(Duration::from_nanos(500)) });
    }

    #[test]
    fn a_set_without_ttl_never_expires() {
        let task = set_with_ttl(None);
        assert_eq!(task.command_at(Timestamp(u64::MAX)), ReplicaCommand::Put { ttl: None });
    }

    #[test]
    fn an_expired_set_is_a_delete_from_its_last_nanosecond_on() {
        let task = set_with_ttl(Some(Duration::from_nanos(500)));
        assert_eq!(task.command_at(Timestamp(1_500)), ReplicaCommand::Delete);
        assert_eq!(task.command_at(Timestamp(9_999)), ReplicaCommand::Delete);
    }

    #[test]
    fn a_ttl_beyond_the_last_timestamp_is_clamped() {
        let task = set_with_ttl(Some(Duration::MAX));
        assert_eq!(task.expires_at, Some(Timestamp(u64::MAX)));
    }
}
