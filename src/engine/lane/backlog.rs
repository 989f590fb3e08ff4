//! The pending deliveries of a lane by age: how far a replica lags behind.

use std::collections::{BTreeSet, VecDeque};

use crate::task::TaskId;

/// Arrivals are compacted once there are more than twice the pending deliveries plus this many.
const SLACK: usize = 1024;

#[derive(Debug, Default)]
pub(in crate::engine) struct Backlog {
    /// In the order of arrival. The first is pending; later ones may be settled.
    arrivals: VecDeque<TaskId>,
    /// Deliveries that are not in their place there: dead letters that came back, and tasks of a
    /// partition that was claimed after younger tasks of another one.
    returned: BTreeSet<TaskId>,
    bytes: u64,
    /// Of all deliveries so far.
    accepted_bytes: u64,
}

impl Backlog {
    /// Adds a new delivery, younger than the others of its partition.
    pub(in crate::engine) fn push(&mut self, id: TaskId, bytes: u64) {
        if self.arrivals.back().is_some_and(|&youngest| youngest > id) {
            self.returned.insert(id);
        } else {
            self.arrivals.push_back(id);
        }
        self.bytes += bytes;
        self.accepted_bytes += bytes;
    }

    /// Undoes the last push, of a delivery that was settled before the restart.
    pub(in crate::engine) fn undo_push(&mut self, id: TaskId, bytes: u64) {
        if self.arrivals.back() == Some(&id) {
            self.arrivals.pop_back();
        } else {
            self.returned.remove(&id);
        }
        self.bytes -= bytes;
        self.accepted_bytes -= bytes;
    }

    /// Adds a delivery that is pending again.
    pub(in crate::engine) fn push_returned(&mut self, id: TaskId, bytes: u64) {
        self.returned.insert(id);
        self.bytes += bytes;
    }

    /// Removes a delivery that is not pending any more. `pending` others are.
    pub(in crate::engine) fn remove(
        &mut self,
        id: TaskId,
        bytes: u64,
        pending: u64,
        is_pending: impl Fn(TaskId) -> bool,
    ) {
        self.bytes -= bytes;
        self.returned.remove(&id);
        if self.arrivals.front() == Some(&id) {
            self.arrivals.pop_front();
            while self.arrivals.front().is_some_and(|&id| !is_pending(id)) {
                self.arrivals.pop_front();
            }
        }
        let pending = usize::try_from(pending).unwrap_or(usize::MAX);
        if self.arrivals.len() / 2 > pending.saturating_add(SLACK) {
            self.arrivals.retain(|&id| is_pending(id));
        }
        if self.arrivals.is_empty() && self.arrivals.capacity() > SLACK {
            self.arrivals.shrink_to_fit();
        }
    }

    pub(in crate::engine) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(in crate::engine) fn accepted_bytes(&self) -> u64 {
        self.accepted_bytes
    }

    pub(in crate::engine) fn oldest(&self) -> Option<TaskId> {
        self.arrivals.front().into_iter().chain(self.returned.first()).min().copied()
    }
}
