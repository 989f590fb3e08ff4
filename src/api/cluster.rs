//! The instances and partitions of a cluster.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::ClusterServer;

/// The cluster, as one of its instances sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Cluster {
    /// `--cluster`.
    pub name: String,
    /// The live instances, by name.
    pub members: Vec<ClusterMember>,
    pub partitions: Vec<PartitionInfo>,
    pub store: SharedStore,
}

/// A live instance. One that was not heard for 3 s is not listed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ClusterMember {
    /// `--node-id`.
    pub node: String,
    pub version: String,
    pub up_for_seconds: f64,
    /// It hands its partitions over and claims none.
    pub draining: bool,
    /// It is shutting down.
    pub leaving: bool,
    /// Number of partitions that it owns.
    pub partitions: u64,
    /// It is the instance that answers.
    pub here: bool,
}

/// State of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum PartitionState {
    /// An instance delivers its tasks.
    Owned,
    /// Its writes are accepted, and none is delivered.
    NoOwner,
    /// Its stream has no leader, or does not answer: its writes wait.
    NoLeader,
}

/// A partition and its stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PartitionInfo {
    pub number: u16,
    pub state: PartitionState,
    /// The instance that delivers its tasks; `null` if there is none, or it is unknown.
    pub owner: Option<String>,
    /// Counts the owners.
    pub epoch: u64,
    /// Since when the instance that answers knows this owner.
    pub since: Option<String>,
    /// The server that leads its stream; `null` if it is unknown.
    pub leader: Option<String>,
}

/// The servers of the cluster store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SharedStore {
    /// Empty if the servers do not tell.
    pub servers: Vec<ClusterServer>,
    /// Whether all servers sync each write to disk before it is accepted; `null` if they do not tell.
    pub sync_always: Option<bool>,
    /// Operations that the slowest copy of any stream lacks; `null` if no stream answers.
    pub lag: Option<u64>,
}

/// Request to drain an instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct ClusterDrain {
    /// `--node-id` of the instance.
    pub node: String,
    /// `false` ends the drain.
    pub drain: bool,
}
