//! The forget operation of a lane: everything for its replica is discarded, in steps.

use crate::task::TaskId;

#[derive(Debug, Default)]
pub(in crate::engine) struct ForgetState {
    /// While it runs: the last discarded task, and the last one to discard.
    range: Option<(TaskId, TaskId)>,
    forgotten: bool,
    /// The last reservation before it.
    up_to_reservation: u64,
}

impl ForgetState {
    pub(in crate::engine) fn start(&mut self, newest: TaskId, reservation: u64) {
        *self = Self {
            range: Some((TaskId(0), newest)),
            forgotten: true,
            up_to_reservation: reservation,
        };
    }

    pub(in crate::engine) fn range(&self) -> Option<(TaskId, TaskId)> {
        self.range
    }

    pub(in crate::engine) fn is_running(&self) -> bool {
        self.range.is_some()
    }

    /// Continues after `last` with the next step.
    pub(in crate::engine) fn advance(&mut self, last: TaskId) {
        if let Some((after, _)) = &mut self.range {
            *after = last;
        }
    }

    pub(in crate::engine) fn finish(&mut self) {
        self.range = None;
    }

    /// Whether the replica was forgotten and has not been used since.
    pub(in crate::engine) fn is_forgotten(&self) -> bool {
        self.forgotten
    }

    pub(in crate::engine) fn used_again(&mut self) {
        self.forgotten = false;
    }

    /// Whether a write with this reservation was accepted before the forget.
    pub(in crate::engine) fn covers(&self, reservation: u64) -> bool {
        reservation <= self.up_to_reservation
    }
}
