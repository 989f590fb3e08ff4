//! Replicas: backlog, lag, errors, convergence.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::task::{Counters, ReplicaLimits, ReplicaState};

/// Trend of the backlog over the last minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Convergence {
    /// The backlog is empty.
    Drained,
    /// The backlog falls.
    Draining,
    /// The backlog neither falls nor grows, or the replica is too new to tell.
    Steady,
    /// The backlog has grown for a minute and exceeds the workers.
    NotConverging,
    /// An operator paused the replica.
    Paused,
}

/// An error and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastError {
    pub error: String,
    pub at: String,
}

/// A replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Replica {
    /// Normalized address.
    pub replica: String,
    /// Former addresses.
    pub renamed_from: Vec<String>,
    pub state: ReplicaState,
    /// When it entered this state; `null` if the state has not changed since the start,
    /// or while it refuses writes.
    pub state_since: Option<String>,
    /// When its pause ends by itself; missing for another pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused_until: Option<String>,
    /// Earliest time of the next probe, while it is failing.
    pub next_probe_at: Option<String>,
    /// Unsettled deliveries without dead letters.
    pub backlog_tasks: u64,
    /// Bytes charged for the tasks of the backlog.
    pub backlog_bytes: u64,
    /// When the oldest task of the backlog was accepted.
    pub oldest_accepted_at: Option<String>,
    /// Age of that task; 0 without a backlog.
    pub lag_seconds: f64,
    /// Part of the backlog that is in flight.
    pub in_flight: u64,
    /// Part of the backlog that waits for a retry.
    pub retrying: u64,
    /// Part of the backlog that failed and has no place in the retry queue.
    pub parked: u64,
    /// Dead letters without parked deliveries.
    pub dead_letters: u64,
    /// Dead letters that the replica refused. They return when it accepts writes again.
    #[serde(default)]
    pub refused_letters: u64,
    /// Bytes charged for dead letters and parked deliveries.
    pub dead_letter_bytes: u64,
    /// Maximum number of concurrent deliveries.
    pub workers: u32,
    /// Limits that an operator has set for it; missing if there are none.
    #[serde(default, skip_serializing_if = "ReplicaLimits::is_none")]
    pub limits: ReplicaLimits,
    /// Deliveries accepted per second, over the last minute.
    pub rate_in: f64,
    /// Deliveries acknowledged per second, over the last minute.
    pub rate_out: f64,
    /// Median duration of the attempts of the last minutes; `null` if there were none.
    pub latency_p50_seconds: Option<f64>,
    /// 99th percentile of the same attempts.
    pub latency_p99_seconds: Option<f64>,
    /// The last failed attempt.
    pub last_error: Option<LastError>,
    pub convergence: Convergence,
    /// Estimated time until the backlog is empty; only if it falls, the replica is healthy and not
    /// paused.
    pub drained_in_seconds: Option<f64>,
    /// Estimated time for which the replica may stay away, from now on and at the rates of the last
    /// minute, before writes for it are refused; 0 while they are. `null` if that is not within 30
    /// days, or nothing was accepted for it. In a cluster the shortest of all instances.
    #[serde(default)]
    pub outage_headroom_seconds: Option<f64>,
    /// The flag whose limit is reached first then.
    #[serde(default)]
    pub outage_limit: Option<String>,
    pub books: Counters,
    /// Partitions of the cluster without an answer, which are not counted; missing if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<u16>,
    /// Instances of the cluster that have not confirmed within 5 s that they apply a pause, its end,
    /// limits or a new address. Only in the answer to that; missing if all have.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unconfirmed: Vec<String>,
}

/// All replicas, sorted by address.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaPage {
    /// Replicas with deliveries since the start, or with data on disk.
    pub replicas: Vec<Replica>,
    /// Partitions of the cluster without an answer, which are not counted; missing if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<u16>,
}

/// Result of a probe request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Probed {
    pub replica: String,
    /// State of the replica after the call.
    pub state: ReplicaState,
    /// A delivery is being sent as the probe.
    pub probing: bool,
    /// Why no probe was sent.
    pub reason: Option<String>,
    /// Partitions of the cluster without an answer, which are not counted; missing if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<u16>,
}

/// Result of forgetting a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Forgotten {
    pub replica: String,
    /// Discarded deliveries and dead letters.
    pub discarded: u64,
    /// Deliveries in flight. They finish and are not retried.
    pub in_flight: u64,
    /// Partitions of the cluster without an answer, which are not counted; missing if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<u16>,
}

/// When a pause ends by itself: one of the two fields, or neither for a pause that lasts until it is
/// resumed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PauseRequest {
    /// After this number of seconds, at most 366 days.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub for_seconds: Option<u64>,
    /// At this time, at most 366 days ahead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(format = DateTime)]
    pub until: Option<String>,
}

/// New address of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// The new address. It must not have been used as a replica before.
    pub to: String,
}
