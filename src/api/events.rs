//! Payloads of the event stream (`GET /v1/events`).

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::task::{ReplicaLimits, ReplicaState, TaskChange};

/// A change of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TaskEvent {
    pub at: String,
    pub task_id: String,
    /// Address of the replica; `null` for all.
    pub replica: Option<String>,
    pub change: TaskChange,
    /// Set if the change is `failed` or `dead`.
    pub error: Option<String>,
}

/// Kind of a replica's change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaChange {
    /// Its breaker opened.
    Failing,
    /// A probe succeeded.
    Recovering,
    /// Its load is no longer limited after an outage.
    Healthy,
    Paused,
    Resumed,
    /// Its limits were changed.
    Limited,
    /// Everything for it was discarded.
    Forgotten,
    Renamed,
}

/// A change of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaEvent {
    pub at: String,
    pub replica: String,
    pub change: ReplicaChange,
    /// The error that opened the breaker, the new address, the limits, or when the pause ends or has ended by
    /// itself.
    pub detail: Option<String>,
}

/// Figures of one replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaFigures {
    pub replica: String,
    pub state: ReplicaState,
    /// Unsettled deliveries.
    pub backlog_tasks: u64,
    /// Age of the oldest unsettled delivery.
    pub lag_seconds: f64,
    pub in_flight: u64,
    /// Deliveries waiting for a retry or parked.
    pub retrying: u64,
    pub dead_letters: u64,
    /// Deliveries acknowledged in the last second.
    pub delivered_per_second: f64,
    /// Attempts that failed in the last second.
    pub failed_per_second: f64,
    /// Missing if there are none.
    #[serde(default, skip_serializing_if = "ReplicaLimits::is_none")]
    pub limits: ReplicaLimits,
}

/// Figures of the daemon, once a second.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Figures {
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
    /// Dead letters, including parked deliveries.
    pub dead_letters: u64,
    /// Unsettled deliveries of all replicas.
    pub backlog_tasks: u64,
    /// The largest lag of any replica.
    pub lag_seconds: f64,
    /// Sorted by address.
    pub replicas: Vec<ReplicaFigures>,
}
