//! Barriers: is everything that was accepted before this moment where it belongs?

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Asks for a barrier.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewBarrier {
    /// Whose deliveries it is about; all replicas' where it is missing or empty.
    #[serde(default)]
    pub replicas: Vec<String>,
}

/// What is left of one replica before a barrier.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BarrierReplica {
    /// The replica.
    pub replica: String,
    /// Deliveries accepted before the barrier and not settled.
    pub pending: u64,
    /// Of those accepted before it, dead letters by now.
    pub given_up: u64,
}

/// How a barrier stands. It holds over a restart: all of it is in its id.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Barrier {
    /// Its id.
    pub barrier_id: String,
    /// Every delivery before it is settled, or given up.
    pub reached: bool,
    /// The last task accepted before it.
    pub up_to: String,
    /// Deliveries that are not settled.
    pub pending: u64,
    /// Deliveries that are dead letters.
    pub given_up: u64,
    /// The replicas that it is about and that have, or had, deliveries.
    pub replicas: Vec<BarrierReplica>,
}
