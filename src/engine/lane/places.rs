//! What a lane holds of the shared queues, and when the next delivery may return to one.

use std::time::Duration;

use crate::engine::Moment;
use crate::engine::table::TaskQueue;

#[derive(Debug, Default)]
pub(in crate::engine) struct LanePlaces {
    /// Tasks, by [`TaskQueue`].
    queued: [usize; 2],
    next_return: Moment,
}

impl LanePlaces {
    /// Tasks in a queue, reservations included. [`TaskQueue::Outside`] is not counted.
    pub(in crate::engine) fn queued(&self, queue: TaskQueue) -> usize {
        self.queued.get(queue as usize).copied().unwrap_or_default()
    }

    pub(in crate::engine) fn has_queued(&self) -> bool {
        self.queued != [0; 2]
    }

    pub(in crate::engine) fn move_task(&mut self, from: TaskQueue, to: TaskQueue) {
        if let Some(queued) = self.queued.get_mut(from as usize) {
            *queued -= 1;
        }
        if let Some(queued) = self.queued.get_mut(to as usize) {
            *queued += 1;
        }
    }

    /// When `--redrive-rate` allows the next dead letter or parked delivery to return.
    pub(in crate::engine) fn next_return(&self) -> Moment {
        self.next_return
    }

    /// Counts a return. Returns missed since `catch_up` are made up for.
    pub(in crate::engine) fn count_return(&mut self, interval: Duration, catch_up: Moment) {
        self.next_return = self.next_return.max(catch_up).after(interval);
    }
}
