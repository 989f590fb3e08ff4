//! The places of the retry queue: each belongs to one delivery, and follows from its state
//! ([`State::holds_retry_place`]).
//!
//! What fails without getting one is parked, outside of the queue, and comes back when there is one
//! for its replica.

use std::ops::Bound::{Excluded, Unbounded};

use crate::engine::share::SharedPool;
use crate::engine::table::{Delivery, DeliveryRef, Priority, State};
use crate::engine::{Engine, MOST_DUE, Moment};

impl Engine {
    /// Whether the retry queue has a place for a replica, which holds no more than its share.
    pub(super) fn retry_has_room(&self, number: u32) -> bool {
        let pool = SharedPool::new(self.settings.retry_capacity, self.levels.retry);
        pool.has_room_for(self.lanes[number].retries as u64)
    }

    /// Has a delivery wait for its retry if it has a place in the retry queue or gets one, or parks
    /// it. Says whether it has one.
    ///
    /// Nothing for a replica that an operator holds has one: it would keep it for as long as that
    /// lasts.
    pub(super) fn await_retry(&mut self, at: DeliveryRef, until: Moment) -> bool {
        let Delivery { lane, state, .. } = self.tasks[at];
        let waits =
            !self.lanes[lane].is_held() && (state.holds_retry_place() || self.retry_has_room(lane));
        let to = if waits { State::Waiting { until } } else { State::Parked { until } };
        self.change(at, to);
        waits
    }

    /// Parks what waits for a retry at a replica that was paused: the places are free at once. As
    /// much as one call may; the rest comes with the next, which is due at once.
    pub(super) fn park_retries(&mut self, number: u32) {
        let now = self.now.moment;
        let lane = &mut self.lanes[number];
        let waiting = lane.waiting.values().copied().take(MOST_DUE);
        let mut slots: Vec<_> = waiting.collect();
        slots.extend(lane.ready(Priority::Retry).values().copied().take(MOST_DUE));
        for &slot in &slots {
            let at = self.tasks.delivery_on(slot, number);
            let until = match self.tasks[at].state {
                State::Waiting { until } => until,
                _ => now,
            };
            self.change(at, State::Parked { until });
            self.touch(slot);
        }
        if !slots.is_empty() {
            self.schedule_wakeup(number, now);
        }
    }

    /// Lets parked deliveries back in, oldest first, the replicas taking turns, and each at its
    /// `--redrive-rate`: after an outage they are most of what the replica has missed, and without
    /// it they would come back all at once.
    pub(super) fn fill_retry_queue(&mut self) {
        if !std::mem::take(&mut self.refill) {
            return;
        }
        let mut passed_over = 0;
        while self.levels.retry < self.settings.retry_capacity
            && passed_over < self.parked_lanes.len()
        {
            let mut later = self.parked_lanes.range((Excluded(self.parked_turn), Unbounded));
            let next = later.next().or_else(|| self.parked_lanes.first()).copied();
            let Some(number) = next else { break };
            self.parked_turn = number;
            passed_over += 1;
            let lane = &self.lanes[number];
            let first = lane.parked.first_key_value().map(|(_, &slot)| slot);
            // Its dead letters, which are older, come first. While nothing is sent to it they would
            // only fill the retry queue for the others.
            if lane.redrive.is_none()
                && !lane.is_held()
                && self.retry_has_room(number)
                && self.may_return(number)
                && let Some(slot) = first
            {
                self.count_return(number);
                let at = self.tasks.delivery_on(slot, number);
                if let State::Parked { until } = self.tasks[at].state {
                    self.unpark(at, until);
                }
                passed_over = 0;
            }
        }
    }

    /// Gives a parked delivery a place in the retry queue.
    pub(super) fn unpark(&mut self, at: DeliveryRef, until: Moment) {
        self.change(at, State::Waiting { until });
        if until <= self.now.moment {
            self.make_ready(at);
        }
        self.touch(at.slot);
    }
}
