//! The stream of events: what each line of it holds.
//!
//! As server-sent events: `event: task` with a [`TaskEvent`], `event: replica` with a
//! [`ReplicaEvent`], `event: figures` with [`Figures`] every second, and `event: lagged` with
//! `{"missed":n}` where a reader was too slow, or asked to resume from what is not kept any more.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::replicas::BreakerState;

/// What became of a task or of one of its deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskChange {
    /// Accepted: all its deliveries.
    Accepted,
    /// An attempt failed.
    Failed,
    /// The replica acknowledged.
    Delivered,
    /// A newer write took its place.
    Superseded,
    /// It became a dead letter, or was parked.
    Dead,
    /// The dead letter was made ready again.
    Redriven,
    /// It was thrown away.
    Discarded,
}

/// A change of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskEvent {
    /// When.
    pub at: String,
    /// Which.
    pub task_id: String,
    /// To which replica; `null` for all.
    pub replica: Option<String>,
    /// What.
    pub change: TaskChange,
    /// Why, of one that failed or died.
    pub error: Option<String>,
}

/// What became of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaChange {
    /// It does not answer: its breaker is open.
    BreakerOpened,
    /// It answers again.
    BreakerClosed,
    /// An operator paused it.
    Paused,
    /// An operator resumed it.
    Resumed,
    /// Everything for it was thrown away.
    Forgotten,
    /// It is to be found under another address.
    Renamed,
}

/// A change of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaEvent {
    /// When.
    pub at: String,
    /// Which.
    pub replica: String,
    /// What.
    pub change: ReplicaChange,
    /// The error that opened the breaker, or the new address.
    pub detail: Option<String>,
}

/// How one replica stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaFigures {
    /// Which.
    pub replica: String,
    /// Its breaker.
    pub breaker: BreakerState,
    /// An operator has it paused.
    pub paused: bool,
    /// Unsettled deliveries.
    pub backlog_tasks: u64,
    /// Age of the oldest of them.
    pub lag_seconds: f64,
    /// On the wire.
    pub in_flight: u64,
    /// Waiting for a retry, or parked.
    pub retrying: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// Acknowledged in the last second.
    pub delivered_per_second: f64,
    /// Attempts that failed in the last second.
    pub failed_per_second: f64,
}

/// How everything stands, once a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Figures {
    /// When.
    pub at: String,
    /// Tasks accepted in the last second.
    pub accepted_per_second: f64,
    /// Deliveries acknowledged in the last second.
    pub delivered_per_second: f64,
    /// Attempts that failed in the last second.
    pub failed_per_second: f64,
    /// Tasks in the eventual queue.
    pub queue_tasks: u64,
    /// Deliveries in the retry queue.
    pub retry_tasks: u64,
    /// Dead letters, the parked ones included.
    pub dead_letters: u64,
    /// Unsettled deliveries of all replicas.
    pub backlog_tasks: u64,
    /// The largest lag of a replica.
    pub lag_seconds: f64,
    /// The replicas, by address.
    pub replicas: Vec<ReplicaFigures>,
}
