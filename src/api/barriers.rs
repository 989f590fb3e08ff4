//! Barriers: whether all writes accepted before a point are delivered.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Request to create a barrier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBarrier {
    /// Replicas to cover; all if missing or empty.
    #[serde(default)]
    pub replicas: Vec<String>,
}

/// Progress of one replica towards a barrier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BarrierReplica {
    pub replica: String,
    /// Unsettled deliveries accepted before the barrier. A superseded one counts until the newer
    /// write is settled.
    pub pending: u64,
    /// Deliveries accepted before the barrier, or their newer writes, that are dead letters now.
    pub given_up: u64,
}

/// State of a barrier. If it is reached with `given_up` 0, each replica received every write before
/// the barrier, or a newer write of the same key. A barrier survives restarts, since its id holds
/// all its state. Which older write was superseded is not stored: after a restart, every delivery
/// that failed, or that superseded a failed one, counts for every earlier barrier. A kill loses
/// this for the last moments before it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Barrier {
    pub barrier_id: String,
    /// Every delivery before the barrier is settled.
    pub reached: bool,
    /// The last task accepted before the barrier.
    pub up_to: String,
    /// Deliveries that are not settled.
    pub pending: u64,
    /// Deliveries that are dead letters.
    pub given_up: u64,
    /// The covered replicas that have or had deliveries.
    pub replicas: Vec<BarrierReplica>,
    /// Partitions of the cluster without an answer, or that are not read so far: the barrier is not reached. Missing if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<u16>,
}
