//! Replicas: how far behind, since when, why, and when it will be done.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether deliveries go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// They do.
    Closed,
    /// The replica answers again, and gets more by and by.
    HalfOpen,
    /// They fail without being sent, but for a probe now and then.
    Open,
}

/// Where its backlog is going, from the rates of the last minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Convergence {
    /// There is none.
    Drained,
    /// It shrinks.
    Draining,
    /// It does not.
    NotConverging,
    /// Nothing is sent, as an operator wants it.
    Paused,
}

/// What has become of all deliveries since the start of the process, those found on disk included.
///
/// `accepted = delivered + superseded + dead + discarded + pending`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Books {
    /// Taken on.
    pub accepted: u64,
    /// Acknowledged.
    pub delivered: u64,
    /// Made pointless by a newer write.
    pub superseded: u64,
    /// Dead letters.
    pub dead: u64,
    /// Thrown away.
    pub discarded: u64,
    /// Not settled yet.
    pub pending: u64,
    /// Failed attempts that were sent.
    pub failed_attempts: u64,
    /// Attempts that were not sent: the breaker was open, or the process was short of resources.
    #[serde(default)]
    pub unsent_attempts: u64,
    /// Dead letters made ready again.
    pub redriven: u64,
}

/// An error and its time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LastError {
    /// What went wrong.
    pub error: String,
    /// When.
    pub at: String,
}

/// One replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Replica {
    /// Its address, in normal form.
    pub replica: String,
    /// Addresses that were renamed to this one.
    pub renamed_from: Vec<String>,
    /// Since when an operator has it paused; `null` if it is not.
    pub paused_since: Option<String>,
    /// Its breaker.
    pub breaker: BreakerState,
    /// Since when the breaker is in that state; `null` since the start.
    pub breaker_since: Option<String>,
    /// When the next probe may go out, while the breaker is open.
    pub next_probe_at: Option<String>,
    /// Unsettled deliveries, dead letters not included.
    pub backlog_tasks: u64,
    /// What their tasks are charged for, in bytes.
    pub backlog_bytes: u64,
    /// When the oldest of them was accepted.
    pub oldest_accepted_at: Option<String>,
    /// How long ago that is, in seconds; 0 without a backlog.
    pub lag_seconds: f64,
    /// Of the backlog, on the wire.
    pub in_flight: u64,
    /// Of the backlog, waiting for a retry.
    pub retrying: u64,
    /// Of the backlog, failed and without a place in the retry queue.
    pub parked: u64,
    /// Dead letters, without the parked ones.
    pub dead_letters: u64,
    /// What is charged for dead letters and parked deliveries, in bytes.
    pub dead_letter_bytes: u64,
    /// Deliveries that it may have at once.
    pub workers: u32,
    /// Deliveries accepted in a second, over the last minute.
    pub rate_in: f64,
    /// Deliveries settled in a second, over the last minute.
    pub rate_out: f64,
    /// Half of the attempts of the last minutes took no longer; `null` if there were none.
    pub latency_p50_seconds: Option<f64>,
    /// 99 of 100 of the attempts of the last minutes took no longer.
    pub latency_p99_seconds: Option<f64>,
    /// The last attempt that failed.
    pub last_error: Option<LastError>,
    /// Where the backlog is going.
    pub convergence: Convergence,
    /// When it will be drained at these rates, in seconds; only while it is draining.
    pub drained_in_seconds: Option<f64>,
    /// Its books.
    pub books: Books,
}

/// All replicas, by address.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReplicaPage {
    /// The replicas with deliveries since the start, or something on disk.
    pub replicas: Vec<Replica>,
}

/// What came of asking for a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Probed {
    /// The replica.
    pub replica: String,
    /// Its breaker, just after.
    pub breaker: BreakerState,
    /// A delivery goes out now as the probe.
    pub probing: bool,
    /// Why not, if not.
    pub reason: Option<String>,
}

/// What was thrown away with a replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Forgotten {
    /// The replica.
    pub replica: String,
    /// Deliveries and dead letters discarded.
    pub discarded: u64,
    /// Deliveries on the wire: their outcome is awaited, and they are not tried again.
    pub in_flight: u64,
}

/// Where a replica is to be found now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Rename {
    /// The new address. Nothing may have been sent to it before.
    pub to: String,
}
