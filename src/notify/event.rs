//! What a notification reports.

use std::sync::Arc;

use serde_json::{Map, Value, json};
use tokio::time::Instant;

use crate::clock::Clock;
use crate::task::{Node, Timestamp};

/// Text of a replica is cut here.
const MAX_ERROR_CHARS: usize = 500;

/// A state of the daemon that begins and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Condition {
    StoreStalled,
    /// Only with `--store`.
    StoreUnreachable,
    /// Only with `--store`.
    PartitionsUnavailable,
    DiskFull,
    QueueFull,
    ReplicasFull,
}

impl Condition {
    #[cfg(test)]
    pub(super) const ALL: [Self; 6] = [
        Self::StoreStalled,
        Self::StoreUnreachable,
        Self::PartitionsUnavailable,
        Self::DiskFull,
        Self::QueueFull,
        Self::ReplicasFull,
    ];

    /// The types of its begin and its end.
    fn types(self) -> (&'static str, &'static str) {
        match self {
            Self::StoreStalled => ("store.stalled", "store.recovered"),
            Self::StoreUnreachable => ("store.unreachable", "store.reachable"),
            Self::PartitionsUnavailable => ("partitions.unavailable", "partitions.available"),
            Self::DiskFull => ("disk.full", "disk.freed"),
            Self::QueueFull => ("queue.full", "queue.freed"),
            Self::ReplicasFull => ("replicas.full", "replicas.freed"),
        }
    }

    /// The sentences of its begin and its end.
    fn sentences(self) -> (&'static str, &'static str) {
        match self {
            Self::StoreStalled => (
                "The store does not answer: new writes are refused.",
                "The store answers again: new writes are accepted.",
            ),
            Self::StoreUnreachable => (
                "No server of the cluster store can be reached: nothing is accepted or delivered.",
                "A server of the cluster store can be reached again.",
            ),
            Self::PartitionsUnavailable => (
                "Partitions of the cluster have no owner or no leader: their writes are not delivered or not accepted.",
                "All partitions of the cluster have an owner and a leader again.",
            ),
            Self::DiskFull => (
                "The disk is nearly full (--min-free-disk): new writes are refused.",
                "The disk has room again: new writes are accepted.",
            ),
            Self::QueueFull => (
                "The queue is full or nearly full (--queue-capacity, --queue-max-bytes): new writes are refused when it is full.",
                "The queue has room again.",
            ),
            Self::ReplicasFull => (
                "All places for known replicas are in use (--max-known-replicas): writes that name another replica are refused.",
                "No write was refused for want of a place for its replica in the last minute.",
            ),
        }
    }
}

/// Deliveries that became dead letters since the last notification about their replica.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewLetters {
    pub rejected: u64,
    pub refused: u64,
    pub given_up: u64,
}

impl NewLetters {
    pub fn sum(self) -> u64 {
        self.rejected + self.refused + self.given_up
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotifyEvent {
    /// Of `replicator notify test`.
    Test,
    ReplicaFailing {
        replica: Node,
        /// May be text of the replica.
        error: Arc<str>,
        backlog: u64,
    },
    ReplicaRecovered {
        replica: Node,
        backlog: u64,
    },
    /// It was failing, and this instance has no deliveries for it any more.
    ReplicaRemoved {
        replica: Node,
    },
    LettersAppeared {
        replica: Node,
        new: NewLetters,
        /// All that are kept now.
        kept: u64,
    },
    LettersCleared {
        replica: Node,
    },
    Began(Condition),
    Ended {
        condition: Condition,
        seconds: u64,
    },
    StoreFailed,
}

impl NotifyEvent {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Test => "notification.test",
            Self::ReplicaFailing { .. } => "replica.failing",
            Self::ReplicaRecovered { .. } => "replica.recovered",
            Self::ReplicaRemoved { .. } => "replica.removed",
            Self::LettersAppeared { .. } => "dead_letters.appeared",
            Self::LettersCleared { .. } => "dead_letters.cleared",
            Self::Began(condition) => condition.types().0,
            Self::Ended { condition, .. } => condition.types().1,
            Self::StoreFailed => "store.failed",
        }
    }

    /// The fields of `data` that depend on the type.
    pub(super) fn fields(&self) -> Map<String, Value> {
        let fields = match self {
            Self::Test | Self::Began(_) | Self::StoreFailed => json!({}),
            Self::ReplicaFailing { replica, error, backlog } => {
                json!({ "replica": replica.as_str(), "error": cut(error), "backlog_tasks": backlog })
            }
            Self::ReplicaRecovered { replica, backlog } => {
                json!({ "replica": replica.as_str(), "backlog_tasks": backlog })
            }
            Self::ReplicaRemoved { replica } | Self::LettersCleared { replica } => {
                json!({ "replica": replica.as_str() })
            }
            Self::LettersAppeared { replica, new, kept } => json!({
                "replica": replica.as_str(),
                "new": new.sum(),
                "rejected": new.rejected,
                "refused": new.refused,
                "given_up": new.given_up,
                "dead_letters": kept,
            }),
            Self::Ended { seconds, .. } => json!({ "seconds": seconds }),
        };
        match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        }
    }

    /// The event in a sentence. `quote` makes text from outside harmless for the reader.
    pub(super) fn sentence(&self, quote: impl Fn(&str) -> String) -> String {
        match self {
            Self::Test => "This is a test notification of the replicator.".to_owned(),
            Self::ReplicaFailing { replica, error, backlog } => {
                let (replica, error) = (quote(replica.as_str()), quote(&cut(error)));
                format!("Replica {replica} is failing, {backlog} tasks wait for it: {error}")
            }
            Self::ReplicaRecovered { replica, backlog } => {
                format!(
                    "Replica {} has recovered, {backlog} tasks wait for it.",
                    quote(replica.as_str())
                )
            }
            Self::ReplicaRemoved { replica } => {
                let replica = quote(replica.as_str());
                format!("Replica {replica}, which was failing, has no deliveries here any more.")
            }
            Self::LettersAppeared { replica, new, kept } => {
                let NewLetters { rejected, refused, given_up } = new;
                format!(
                    "{} new dead letters of replica {} ({rejected} rejected, {refused} refused, {given_up} given up); {kept} are kept.",
                    new.sum(),
                    quote(replica.as_str()),
                )
            }
            Self::LettersCleared { replica } => {
                format!("Replica {} has no dead letters any more.", quote(replica.as_str()))
            }
            Self::Began(condition) => condition.sentences().0.to_owned(),
            Self::Ended { condition, seconds } => {
                format!("{} It lasted {seconds} s.", condition.sentences().1)
            }
            Self::StoreFailed => {
                "The store has failed: nothing is accepted until a restart. The log has the reason."
                    .to_owned()
            }
        }
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MAX_ERROR_CHARS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

/// An event on its way to the receivers.
#[derive(Clone, Debug)]
pub(super) struct Notice {
    /// The same for every attempt and every receiver.
    pub(super) id: String,
    pub(super) at: Timestamp,
    pub(super) since: Instant,
    pub(super) event: NotifyEvent,
}

impl Notice {
    pub(super) fn new(clock: Clock, event: NotifyEvent) -> Self {
        let now = clock.now();
        let id = format!("msg_{:032x}", fastrand::u128(..));
        Self { id, at: now.wall, since: clock.instant(now.moment), event }
    }
}
