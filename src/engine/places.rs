//! The places of the retry queue. A delivery holds one depending on its stage
//! ([`Stage::holds_retry_place`]). A failed delivery without one is parked outside the queue, and
//! returns when its replica has a free place.

use std::ops::Bound::{Excluded, Unbounded};

use crate::engine::claims::Pool;
use crate::engine::table::{Delivery, DeliveryRef, Slot, Stage};
use crate::engine::{Engine, MOST_DUE, Moment};
use crate::share::{Alone, SharedPool};

impl Engine {
    /// Whether a client may take another place for a replica within all shares.
    pub(super) fn retry_has_room(&self, number: u32, client: u32) -> bool {
        let pool = SharedPool::new(self.settings.retry_capacity, self.levels.retry);
        let host = self.lanes[number].host;
        let held = self.claims.held(Pool::Retries, Some(client), Some(host));
        let alone = Alone { client: self.claims.clients() == 1, host: false };
        held.may_take(pool, 1, alone).is_ok()
    }

    /// Makes a delivery wait for its retry, or parks it if there is no place. Returns whether it
    /// waits.
    ///
    /// A suspended replica gets no places: they would be blocked until it is resumed.
    pub(super) fn await_retry(&mut self, at: DeliveryRef, until: Moment) -> bool {
        let Delivery { lane, stage, .. } = self.tasks[at];
        let waits = !self.lanes[lane].is_suspended()
            && (stage.holds_retry_place() || self.retry_has_room(lane, self.tasks[at.slot].client));
        let to = if waits { Stage::Waiting { until } } else { Stage::Parked { until } };
        self.change(at, to);
        waits
    }

    /// Parks the retries of a paused replica to free their places, up to a limit per call. The rest
    /// follows in the next call, which is due at once.
    pub(super) fn park_retries(&mut self, number: u32) {
        let now = self.now.moment;
        let slots: Vec<_> = self.lanes[number].heads.retries(MOST_DUE).collect();
        for &slot in &slots {
            let at = self.tasks.delivery_on(slot, number);
            let until = match self.tasks[at].stage {
                Stage::Waiting { until } => until,
                _ => now,
            };
            self.change(at, Stage::Parked { until });
            self.touch(slot);
        }
        if !slots.is_empty() {
            self.schedule_wakeup(number, now);
        }
    }

    /// Returns parked deliveries to the retry queue, oldest first. Replicas take turns, each at its
    /// `--redrive-rate`, because after an outage most of a backlog is parked.
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
            // Its dead letters are older and go first. A suspended replica would only fill the
            // queue.
            if !lane.letters.is_redriving()
                && !lane.is_suspended()
                && self.may_return(number)
                && let Some(slot) = self.oldest_with_room(number)
            {
                self.count_return(number);
                let at = self.tasks.delivery_on(slot, number);
                if let Stage::Parked { until } = self.tasks[at].stage {
                    self.unpark(at, until);
                }
                passed_over = 0;
            }
        }
    }

    /// The oldest parked delivery whose client may have another retry place.
    fn oldest_with_room(&self, number: u32) -> Option<Slot> {
        let oldest = self.lanes[number].heads.oldest_parked();
        let with_room = oldest.filter(|&(client, ..)| self.retry_has_room(number, client));
        with_room.min_by_key(|&(_, id, _)| id).map(|(_, _, slot)| slot)
    }

    pub(super) fn unpark(&mut self, at: DeliveryRef, until: Moment) {
        self.change(at, Stage::Waiting { until });
        if until <= self.now.moment {
            self.make_ready(at);
        }
        self.touch(at.slot);
    }
}
