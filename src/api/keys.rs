//! What is known of one key.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::TaskInfo;

/// The writes of a key that the daemon knows: unsettled ones, and settled ones for `--task-history`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Key)]
pub struct KeyInfo {
    pub key: String,
    /// Newest first, at most 100 and about 1 MiB.
    pub writes: Vec<TaskInfo>,
    /// The replicas of these writes, by address.
    pub replicas: Vec<KeyReplica>,
    /// Partitions of the cluster without an answer, one of which may know more; missing if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<u16>,
}

/// What one replica has of a key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeyReplica {
    pub replica: String,
    /// `task_id` of the newest write that the replica is known to have acknowledged; `null` if none is
    /// known. A write with this or a lower id can be read there, or a newer one of the key.
    pub acknowledged_sequence: Option<String>,
    /// Unsettled writes, without dead letters.
    pub pending: u64,
    pub dead_letters: u64,
}
