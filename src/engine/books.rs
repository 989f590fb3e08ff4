//! The books of a replica: every delivery is in exactly one of their columns.

use std::ops::AddAssign;

/// Counts since the start; what was recovered from disk counts as accepted then.
///
/// accepted = delivered + superseded + rejected + gave up + pending, at every moment. A delivery
/// parked by `retry_overflow` is pending.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Books {
    /// Deliveries taken on.
    pub accepted: u64,
    /// Acknowledged by the replica.
    pub delivered: u64,
    /// Made pointless by a newer write of the key.
    pub superseded: u64,
    /// Refused by the replica for good.
    pub rejected: u64,
    /// Given up after the last retry.
    pub gave_up: u64,
    /// Not settled yet.
    pub pending: u64,
    /// Failed attempts; one delivery can have several.
    pub failed_attempts: u64,
}

impl Books {
    /// Whether they add up.
    #[must_use]
    pub fn balance(&self) -> bool {
        self.accepted
            == self.delivered + self.superseded + self.rejected + self.gave_up + self.pending
    }
}

impl AddAssign for Books {
    fn add_assign(&mut self, other: Self) {
        self.accepted += other.accepted;
        self.delivered += other.delivered;
        self.superseded += other.superseded;
        self.rejected += other.rejected;
        self.gave_up += other.gave_up;
        self.pending += other.pending;
        self.failed_attempts += other.failed_attempts;
    }
}
