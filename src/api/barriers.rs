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
    /// Deliveries accepted before the barrier and not settled. One that a newer write superseded
    /// counts until that is settled.
    pub pending: u64,
    /// Of those accepted before it, or what superseded them, dead letters by now.
    pub given_up: u64,
}

/// How a barrier stands. It holds over a restart: all of it is in its id. Reached with nothing given
/// up, each replica was given every write before it or a newer one of the key. Which older write a
/// newer one superseded is not kept over a restart: after one, each delivery that failed or took the
/// place of one that failed counts for every barrier from before the restart. A kill loses that for
/// the last moments before it.
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
