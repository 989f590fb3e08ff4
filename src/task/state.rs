//! States and counters that the engine keeps and the API shows.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// State of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// Waiting to be sent.
    Queued,
    InFlight,
    /// Failed and waiting for its retry.
    Retrying,
    /// Failed and waiting for a place in the retry queue. Comes back automatically.
    Parked,
    Dead,
    Delivered,
    /// A newer write of the key made it pointless.
    Superseded,
    /// Discarded by an operator or after its retention.
    Discarded,
}

/// State of the circuit breaker of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Deliveries are sent.
    Closed,
    /// The replica responds again; its load grows step by step.
    HalfOpen,
    /// Only probes are sent.
    Open,
}

/// Change of a task or of one of its deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskChange {
    /// The task was accepted.
    Accepted,
    /// An attempt failed.
    Failed,
    Delivered,
    /// A newer write of the key superseded it.
    Superseded,
    /// It became a dead letter or was parked.
    Dead,
    Redriven,
    Discarded,
}

/// Deliveries by outcome since the start of the process, including those recovered from disk.
///
/// `accepted = delivered + superseded + dead + discarded + pending`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Books)]
pub struct Counters {
    pub accepted: u64,
    pub delivered: u64,
    pub superseded: u64,
    /// Dead letters.
    pub dead: u64,
    pub discarded: u64,
    // Left unsettled with their partition. Part of the balance; a journal on one disk releases none.
    #[serde(skip)]
    pub released: u64,
    /// Not settled yet.
    pub pending: u64,
    // The rest counts events. A dead letter may be redriven and rejected again.
    #[serde(skip)]
    pub rejected: u64,
    #[serde(skip)]
    pub gave_up: u64,
    /// Failed attempts that were sent.
    pub failed_attempts: u64,
    /// Attempts that were not sent: the breaker was open, or the process was short of resources.
    #[serde(default)]
    pub unsent_attempts: u64,
    /// Redriven dead letters.
    pub redriven: u64,
}

impl Counters {
    /// Every delivery is counted under exactly one outcome. Not 0 means a bug.
    pub fn unaccounted(&self) -> u64 {
        let Self { delivered, superseded, dead, discarded, released, pending, .. } = self;
        self.accepted.abs_diff(delivered + superseded + dead + discarded + released + pending)
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.delivered += other.delivered;
        self.superseded += other.superseded;
        self.dead += other.dead;
        self.discarded += other.discarded;
        self.released += other.released;
        self.pending += other.pending;
        self.rejected += other.rejected;
        self.gave_up += other.gave_up;
        self.failed_attempts += other.failed_attempts;
        self.unsent_attempts += other.unsent_attempts;
        self.redriven += other.redriven;
    }
}
