//! The counters of a replica: every delivery is counted under exactly one outcome.

use std::ops::AddAssign;

/// Counts since the start; what was recovered from disk counts as accepted then.
///
/// accepted = delivered + superseded + dead + discarded + released + pending, at every moment. A delivery
/// parked by `retry_overflow` is pending. What follows the outcomes are events, which only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Deliveries taken on.
    pub accepted: u64,
    /// Acknowledged by the replica.
    pub delivered: u64,
    /// Made pointless by a newer write of the key.
    pub superseded: u64,
    /// Rejected or given up, and kept as dead letters now.
    pub dead: u64,
    /// Dead letters that were thrown away.
    pub discarded: u64,
    /// Left unsettled with their partition.
    pub released: u64,
    /// Not settled yet.
    pub pending: u64,
    /// Event: refused by the replica for good.
    pub rejected: u64,
    /// Event: given up after the last retry.
    pub gave_up: u64,
    /// Event: a dead letter was made ready again.
    pub redriven: u64,
    /// Event: an attempt that was sent failed.
    pub failed_attempts: u64,
    /// Event: an attempt ended without being sent: the breaker was open, or this process lacked
    /// something that it needs for it.
    pub unsent_attempts: u64,
}

/// The outcome under which a delivery is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeliveryOutcome {
    Pending,
    Delivered,
    Superseded,
    Dead,
    Discarded,
    Released,
}

/// Whether a failed attempt went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    Sent,
    Unsent,
}

impl Counters {
    /// Whether they add up.
    #[must_use]
    pub fn balance(&self) -> bool {
        self.accepted
            == self.delivered
                + self.superseded
                + self.dead
                + self.discarded
                + self.released
                + self.pending
    }

    pub(super) fn failed(&mut self, attempt: Attempt) {
        match attempt {
            Attempt::Sent => self.failed_attempts += 1,
            Attempt::Unsent => self.unsent_attempts += 1,
        }
    }

    pub(super) fn of(&mut self, outcome: DeliveryOutcome) -> &mut u64 {
        match outcome {
            DeliveryOutcome::Pending => &mut self.pending,
            DeliveryOutcome::Delivered => &mut self.delivered,
            DeliveryOutcome::Superseded => &mut self.superseded,
            DeliveryOutcome::Dead => &mut self.dead,
            DeliveryOutcome::Discarded => &mut self.discarded,
            DeliveryOutcome::Released => &mut self.released,
        }
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
        self.redriven += other.redriven;
        self.failed_attempts += other.failed_attempts;
        self.unsent_attempts += other.unsent_attempts;
    }
}
