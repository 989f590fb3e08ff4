//! The pending deliveries of a lane by age: how far behind a replica is.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use crate::engine::lane::Lane;
use crate::engine::{Engine, Moment, Since};
use crate::task::{TaskId, Timestamp};

/// Beyond twice the pending deliveries, and so many, the list of arrivals is cleared of what is
/// settled.
const SLACK: usize = 1024;

/// The deliveries of a lane that are not settled, oldest first.
#[derive(Debug, Default)]
pub(super) struct Backlog {
    /// What came, by age. The first is pending; of those behind it some are settled.
    arrivals: VecDeque<TaskId>,
    /// Those that were dead letters in between.
    returned: BTreeSet<TaskId>,
    /// What the tasks of the pending are charged for.
    pub(super) bytes: u64,
}

impl Backlog {
    /// A new delivery, younger than all others.
    pub(super) fn enter(&mut self, id: TaskId, bytes: u64) {
        self.arrivals.push_back(id);
        self.bytes += bytes;
    }

    /// The last to enter was settled before the restart.
    pub(super) fn take_back(&mut self, id: TaskId, bytes: u64) {
        if self.arrivals.back() == Some(&id) {
            self.arrivals.pop_back();
        }
        self.bytes -= bytes;
    }

    /// One that had left is pending again.
    pub(super) fn come_back(&mut self, id: TaskId, bytes: u64) {
        self.returned.insert(id);
        self.bytes += bytes;
    }

    fn oldest(&self) -> Option<TaskId> {
        self.arrivals.front().into_iter().chain(self.returned.first()).min().copied()
    }
}

impl Engine {
    /// A delivery is not pending any more.
    pub(super) fn leave_backlog(&mut self, number: u32, id: TaskId, bytes: u64) {
        let lane = &mut self.lanes[number];
        let backlog = &mut lane.backlog;
        backlog.bytes -= bytes;
        backlog.returned.remove(&id);
        let tasks = &self.tasks;
        let is_pending = |id: TaskId| {
            tasks.find(id).is_some_and(|slot| {
                let entry = &tasks[slot];
                entry.legs[entry.leg_on(number)].state.is_pending()
            })
        };
        if backlog.arrivals.front() == Some(&id) {
            backlog.arrivals.pop_front();
            while backlog.arrivals.front().is_some_and(|&id| !is_pending(id)) {
                backlog.arrivals.pop_front();
            }
        }
        let pending = usize::try_from(lane.books.pending).unwrap_or(usize::MAX);
        if backlog.arrivals.len() / 2 > pending.saturating_add(SLACK) {
            backlog.arrivals.retain(|&id| is_pending(id));
        }
        if backlog.arrivals.is_empty() && backlog.arrivals.capacity() > SLACK {
            backlog.arrivals.shrink_to_fit();
        }
    }

    /// When the oldest pending delivery of a lane was accepted, by the wall clock and by one that
    /// nobody sets.
    pub(super) fn oldest(&self, lane: &Lane) -> Option<(Timestamp, Since)> {
        let slot = self.tasks.find(lane.backlog.oldest()?)?;
        let entry = &self.tasks[slot];
        Some((entry.accepted_at, entry.since))
    }

    /// How long ago a task was accepted, whatever the wall clock did since; `None` once it is
    /// settled.
    #[must_use]
    pub fn age(&self, task: TaskId, now: Moment) -> Option<Duration> {
        Some(self.tasks[self.tasks.find(task)?].since.age(now))
    }
}
