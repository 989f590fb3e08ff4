//! The pending deliveries of a lane by age: how far behind a replica is.

use std::collections::{BTreeSet, VecDeque};

use crate::task::TaskId;

/// Beyond twice the pending deliveries, and so many, the list of arrivals is cleared of what is
/// settled.
const SLACK: usize = 1024;

/// The deliveries of a lane that are not settled, oldest first.
#[derive(Debug, Default)]
pub(in crate::engine) struct Backlog {
    /// What came, by age. The first is pending; of those behind it some are settled.
    arrivals: VecDeque<TaskId>,
    /// Those that are not in their place there: they were dead letters in between, or came with a
    /// partition.
    returned: BTreeSet<TaskId>,
    /// What the tasks of the pending are charged for.
    pub(in crate::engine) bytes: u64,
}

impl Backlog {
    /// A new delivery. It is younger than the others of its partition, but a partition that was
    /// claimed just now can have tasks that are older than those of others.
    pub(in crate::engine) fn enter(&mut self, id: TaskId, bytes: u64) {
        if self.arrivals.back().is_some_and(|&youngest| youngest > id) {
            self.returned.insert(id);
        } else {
            self.arrivals.push_back(id);
        }
        self.bytes += bytes;
    }

    /// The last to enter was settled before the restart.
    pub(in crate::engine) fn take_back(&mut self, id: TaskId, bytes: u64) {
        if self.arrivals.back() == Some(&id) {
            self.arrivals.pop_back();
        } else {
            self.returned.remove(&id);
        }
        self.bytes -= bytes;
    }

    /// One that had left is pending again.
    pub(in crate::engine) fn come_back(&mut self, id: TaskId, bytes: u64) {
        self.returned.insert(id);
        self.bytes += bytes;
    }

    /// A delivery is not pending any more. Of those that are, there are `pending`.
    pub(in crate::engine) fn leave(
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

    /// The oldest of them.
    pub(in crate::engine) fn oldest(&self) -> Option<TaskId> {
        self.arrivals.front().into_iter().chain(self.returned.first()).min().copied()
    }
}
