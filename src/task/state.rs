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

/// State of the circuit breaker of a replica. Operators see [`ReplicaState`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BreakerState {
    Closed,
    HalfOpen,
    Open,
}

/// State of a replica. The worst is the least.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum ReplicaState {
    /// Its breaker is open: only probes are sent. Or it refused writes that it still lacks, because
    /// of its credentials: then new writes are sent.
    Failing,
    /// A probe succeeded; its load grows step by step.
    Recovering,
    /// An operator paused it: nothing is sent.
    Paused,
    /// Deliveries are sent.
    Healthy,
}

impl ReplicaState {
    pub const ALL: [Self; 4] = [Self::Failing, Self::Recovering, Self::Paused, Self::Healthy];

    #[must_use]
    pub fn of(paused: bool, breaker: BreakerState, refused_letters: u64) -> Self {
        match breaker {
            _ if paused => Self::Paused,
            BreakerState::Closed if refused_letters > 0 => Self::Failing,
            BreakerState::Closed => Self::Healthy,
            BreakerState::HalfOpen => Self::Recovering,
            BreakerState::Open => Self::Failing,
        }
    }

    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failing => "failing",
            Self::Recovering => "recovering",
            Self::Paused => "paused",
            Self::Healthy => "healthy",
        }
    }
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
/// `accepted = delivered + superseded + dead + discarded + handed_over + pending`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Books)]
pub struct Counters {
    pub accepted: u64,
    pub delivered: u64,
    pub superseded: u64,
    /// Dead letters.
    pub dead: u64,
    pub discarded: u64,
    /// Left, unsettled, to the next owner of their partition, which counts them as accepted. 0 without
    /// a cluster.
    #[serde(default)]
    pub handed_over: u64,
    /// Not settled yet.
    pub pending: u64,
    // The rest counts events. A dead letter may be redriven and rejected again.
    #[serde(skip)]
    pub rejected: u64,
    #[serde(skip)]
    pub refused: u64,
    #[serde(skip)]
    pub gave_up: u64,
    /// Failed attempts that were sent.
    pub failed_attempts: u64,
    /// Attempts that were not sent: the breaker was open, the process was short of resources, or the
    /// lease of the partition had ended.
    #[serde(default)]
    pub unsent_attempts: u64,
    /// Redriven dead letters.
    pub redriven: u64,
}

impl Counters {
    /// Every delivery is counted under exactly one outcome. Not 0 means a bug.
    pub fn unaccounted(&self) -> u64 {
        let Self { delivered, superseded, dead, discarded, handed_over, pending, .. } = self;
        self.accepted.abs_diff(delivered + superseded + dead + discarded + handed_over + pending)
    }
}

impl AddAssign for Counters {
    fn add_assign(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.delivered += other.delivered;
        self.superseded += other.superseded;
        self.dead += other.dead;
        self.discarded += other.discarded;
        self.handed_over += other.handed_over;
        self.pending += other.pending;
        self.rejected += other.rejected;
        self.refused += other.refused;
        self.gave_up += other.gave_up;
        self.failed_attempts += other.failed_attempts;
        self.unsent_attempts += other.unsent_attempts;
        self.redriven += other.redriven;
    }
}
