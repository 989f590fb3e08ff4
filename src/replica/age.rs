//! The age of a connection to a replica.

use std::time::Duration;

use tokio::time::Instant;

#[derive(Clone, Copy, Debug)]
pub(super) struct ConnectionAge {
    pub(super) made: Instant,
    /// The part of the maximum age that it may reach, so that the replicas are not all reconnected to
    /// at once.
    share: f64,
}

impl ConnectionAge {
    pub(super) fn from(made: Instant) -> Self {
        Self { made, share: 0.8 + 0.2 * fastrand::f64() }
    }

    /// Zero means no limit.
    pub(super) fn is_over(&self, most: Duration, now: Instant) -> bool {
        !most.is_zero() && now - self.made >= most.mul_f64(self.share)
    }
}
