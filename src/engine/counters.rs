//! The counters of a replica. Every delivery is counted under exactly one outcome.

use std::ops::AddAssign;

/// Counts since the start; recovered deliveries count as accepted.
///
/// Always accepted = delivered + superseded + dead + discarded + released + pending. Parked
/// deliveries are pending. The other fields count events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub accepted: u64,
    pub delivered: u64,
    pub superseded: u64,
    /// Dead letters, except parked deliveries.
    pub dead: u64,
    pub discarded: u64,
    /// Left unsettled with their partition.
    pub released: u64,
    pub pending: u64,
    /// Event: the replica rejected the write.
    pub rejected: u64,
    /// Event: the last retry failed.
    pub gave_up: u64,
    /// Event: a dead letter was redriven.
    pub redriven: u64,
    /// Event: an attempt that was sent failed.
    pub failed_attempts: u64,
    /// Event: an attempt was not sent, because the breaker was open or a resource was missing.
    pub unsent_attempts: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DeliveryOutcome {
    Pending,
    Delivered,
    Superseded,
    Dead,
    Discarded,
    Released,
}

/// Whether a failed attempt was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attempt {
    Sent,
    Unsent,
}

impl Counters {
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
