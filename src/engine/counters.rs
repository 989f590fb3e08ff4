//! How [`Counters`] change. Every delivery is counted under exactly one outcome.

use crate::task::Counters;

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
            DeliveryOutcome::Released => &mut self.handed_over,
        }
    }
}
