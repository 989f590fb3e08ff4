//! The figures of the last hour, and the daemon itself.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The figures of the last hour, as arrays of the same length, oldest first. They begin with the
/// start of the daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PastFigures {
    /// Address of the replica; `null` for the whole daemon.
    pub replica: Option<String>,
    /// Seconds between two values: 1 for the daemon, 10 for a replica. More where the daemon did not
    /// run.
    pub step_seconds: u32,
    /// Time of each value, in seconds since 1970.
    pub at: Vec<u64>,
    /// Tasks accepted per second; deliveries for a replica.
    pub accepted_per_second: Vec<f32>,
    /// Deliveries acknowledged per second.
    pub delivered_per_second: Vec<f32>,
    /// Attempts that failed per second.
    pub failed_per_second: Vec<f32>,
    /// Tasks in the eventual queue; deliveries in flight for a replica.
    pub queue_tasks: Vec<u32>,
    /// Deliveries in the retry queue; waiting for a retry or parked for a replica.
    pub retry_tasks: Vec<u32>,
    pub dead_letters: Vec<u32>,
    /// Unsettled deliveries, at most in a step.
    pub backlog_tasks: Vec<u32>,
    /// Age of the oldest unsettled delivery, at most in a step.
    pub lag_seconds: Vec<f32>,
    /// Partitions of the cluster without an answer, which are not counted; missing if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<u16>,
}

/// Whether the store works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum StoreState {
    Working,
    /// Less than `--min-free-disk` is free: new writes are refused.
    DiskLow,
    /// It does not answer: new writes are refused.
    Stalled,
    /// Nothing is accepted until a restart.
    StoreFailed,
}

/// The running daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Instance {
    /// `--node-id`.
    pub node_id: String,
    pub version: String,
    pub uptime_seconds: f64,
    /// It is shutting down and refuses new writes.
    pub draining: bool,
    pub store: StoreState,
    /// Tasks in the eventual queue.
    pub queue_tasks: u64,
    pub queue_capacity: u64,
    /// Size of the files of the store.
    pub store_bytes: u64,
    /// Free space on the disk of the data directory; `null` if unknown.
    pub disk_free_bytes: Option<u64>,
    /// The cluster store (`--store`); missing with a data directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cluster: Option<ClusterStore>,
}

/// The store that several instances share, as this instance sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterStore {
    /// `--cluster`.
    pub name: String,
    pub connected: bool,
    /// The server that this instance is connected to.
    pub server: Option<String>,
    /// Whether all servers sync each write to disk before it is accepted; `null` if they do not tell.
    pub sync_always: Option<bool>,
    /// Empty if the servers do not tell.
    pub servers: Vec<ClusterServer>,
    pub partitions: Vec<ClusterPartition>,
}

/// A server of the cluster store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterServer {
    pub name: String,
    pub version: String,
    /// `null` without JetStream on this server.
    pub sync_always: Option<bool>,
}

/// A partition of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterPartition {
    pub id: u16,
    /// The instance that delivers its tasks; `null` if there is none, or it is unknown.
    pub owner: Option<String>,
    /// Counts the owners.
    pub epoch: u64,
    /// Whether this instance is the owner.
    pub here: bool,
}
