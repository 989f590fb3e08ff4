//! The transitions of deliveries between stages and of tasks between queues.
//!
//! Only [`Engine::change`] writes a stage: it moves the delivery from the index of the old stage to
//! that of the new one. Everything else here decides which change is due. Every public call ends in
//! [`Engine::finish`].

use smallvec::SmallVec;

use crate::engine::barrier::CountedDelivery;
use crate::engine::claims::Pool;
use crate::engine::counters::DeliveryOutcome;
use crate::engine::lane::Chain;
use crate::engine::quorum::Quorum;
use crate::engine::reserve::signed;
use crate::engine::table::{
    Delivery, DeliveryRef, Priority, SettledAs, Slot, Stage, TaskEntry, TaskQueue,
};
use crate::engine::{Arrived, Engine, EngineAction, Since, TASK_OVERHEAD_BYTES};
use crate::task::{DeliveryId, Progress, ReplicaIndex, TaskChange, TaskId};

impl Engine {
    pub(super) fn insert(
        &mut self,
        task: &Arrived<'_>,
        since: Since,
        lanes: &[u32],
        quorum: Option<Box<Quorum>>,
        recovered: bool,
    ) -> Slot {
        let Arrived { id, partition, key, accepted_at, .. } = *task;
        let bytes = task.bytes.saturating_add(TASK_OVERHEAD_BYTES);
        let client = self.claims.join_client(task.client);
        for &number in lanes {
            for counters in self.counters(number) {
                counters.accepted += 1;
                counters.pending += 1;
            }
            let lane = &mut self.lanes[number];
            lane.backlog.push(id, bytes);
            self.claims.at_host(Pool::Bytes, client, lane.host, signed(bytes));
        }
        self.count_bytes(client, signed(bytes));
        let deadline = quorum.as_ref().map(|quorum| quorum.deadline);
        let slot = self.tasks.insert(TaskEntry {
            id,
            partition,
            key,
            accepted_at,
            since,
            bytes,
            client,
            queue: TaskQueue::Outside,
            recovered,
            strong: quorum.is_some(),
            durable: true,
            touched: false,
            charged_as_dead: false,
            quorum,
            deliveries: lanes.iter().copied().map(Delivery::new).collect(),
        });
        for &lane in lanes {
            let node = &self.lanes[lane].node;
            self.barriers.arrived(CountedDelivery { task: id, origin: id, lane, node });
        }
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, slot));
        }
        slot
    }

    /// Writes a stage, and moves the delivery between the indexes.
    pub(super) fn change(&mut self, at: DeliveryRef, to: Stage) {
        if self.tasks[at.slot].charged_as_dead {
            self.release_charge(at.slot);
        }
        let entry = &mut self.tasks[at.slot];
        let (id, key, origin) = (entry.id, entry.key, entry.origin(at.index));
        let is_held = self.held.contains_key(&entry.partition);
        let (client, bytes) = (entry.client, entry.bytes);
        let delivery = &mut entry.deliveries[at.index];
        let from = std::mem::replace(&mut delivery.stage, to);
        if let Some(outcome) = to.redrive_outcome()
            && let Some(failures) = &mut delivery.failures
            && let Some(operation) = failures.operation.take()
        {
            self.actions.push_back(EngineAction::RedriveEnded { operation, outcome });
        }
        let number = delivery.lane;
        let lane = &mut self.lanes[number];
        match from {
            Stage::Blocked => {}
            Stage::Ready(priority) => {
                lane.heads.leave_ready(priority, id);
            }
            Stage::InFlight { priority, .. } => {
                self.levels.in_flight -= 1;
                lane.in_flight.end(priority);
            }
            Stage::Waiting { until } => {
                lane.heads.leave_waiting(id);
                self.timers.remove(&(until, at.slot, number));
            }
            Stage::Resend { until } => {
                self.timers.remove(&(until, at.slot, number));
            }
            Stage::Parked { .. } => {
                lane.heads.leave_parked(client, id);
                self.levels.dead_letters -= 1;
                if lane.heads.parked() == 0 {
                    self.parked_lanes.remove(&number);
                }
            }
            Stage::Deferred { until } => {
                lane.heads.leave_deferred();
                self.levels.dead_letters -= 1;
                self.timers.remove(&(until, at.slot, number));
            }
            Stage::Dead { until, .. } => {
                lane.letters.remove(id, key);
                self.timers.remove(&(until, at.slot, number));
                self.levels.dead_letters -= 1;
            }
            Stage::Settled(_) => debug_assert!(false, "a settled delivery cannot change"),
        }
        match to {
            Stage::Blocked => debug_assert!(false, "a delivery cannot become blocked again"),
            Stage::Ready(_) if is_held => {}
            Stage::Ready(priority) => {
                lane.heads.enter_ready(priority, id, at.slot);
            }
            Stage::InFlight { priority, .. } => {
                self.levels.in_flight += 1;
                lane.in_flight.start(priority);
            }
            Stage::Waiting { until } => {
                lane.heads.enter_waiting(id, at.slot);
                self.timers.insert((until, at.slot, number));
            }
            Stage::Resend { until } => {
                self.timers.insert((until, at.slot, number));
            }
            Stage::Parked { .. } => {
                lane.heads.enter_parked(client, id, at.slot);
                self.levels.dead_letters += 1;
                self.parked_lanes.insert(number);
                self.refill = true;
            }
            Stage::Deferred { until } => {
                lane.heads.enter_deferred();
                self.levels.dead_letters += 1;
                self.timers.insert((until, at.slot, number));
            }
            Stage::Dead { until, cause } => {
                lane.letters.insert(id, key, at.slot, cause);
                self.timers.insert((until, at.slot, number));
                self.levels.dead_letters += 1;
            }
            Stage::Settled(_) => {}
        }
        for counters in [&mut lane.counters, &mut self.totals] {
            *counters.of(from.outcome()) -= 1;
            *counters.of(to.outcome()) += 1;
        }
        let mark = CountedDelivery { task: id, origin, lane: number, node: &lane.node };
        self.barriers.note(mark, from.outcome(), to.outcome());
        let host = lane.host;
        match (from.holds_queue(), to.holds_queue()) {
            (true, false) => {
                lane.places.move_task(entry.queue, TaskQueue::Outside);
                self.claims.at_host(entry.queue.pool(), client, host, -1);
            }
            (false, true) => {
                lane.places.move_task(TaskQueue::Outside, entry.queue);
                self.claims.at_host(entry.queue.pool(), client, host, 1);
            }
            _ => {}
        }
        match (from.holds_retry_place(), to.holds_retry_place()) {
            (true, false) => {
                self.levels.retry -= 1;
                self.claims.at_host(Pool::Retries, client, host, -1);
                self.claims.by_client(Pool::Retries, client, -1);
                self.refill = true;
            }
            (false, true) => {
                self.levels.retry += 1;
                self.claims.at_host(Pool::Retries, client, host, 1);
                self.claims.by_client(Pool::Retries, client, 1);
            }
            _ => {}
        }
        match (from.is_pending(), to.is_pending()) {
            (true, false) => {
                self.claims.at_host(Pool::Bytes, client, host, -signed(bytes));
                self.leave_backlog(number, id, bytes);
            }
            (false, true) => {
                self.claims.at_host(Pool::Bytes, client, host, signed(bytes));
                lane.backlog.push_returned(id, bytes);
            }
            _ => {}
        }
        self.mark_dirty(number);
    }

    fn leave_backlog(&mut self, number: u32, id: TaskId, bytes: u64) {
        let lane = &mut self.lanes[number];
        let tasks = &self.tasks;
        let is_pending = |id: TaskId| {
            tasks
                .find(id)
                .is_some_and(|slot| tasks[tasks.delivery_on(slot, number)].stage.is_pending())
        };
        lane.backlog.remove(id, bytes, lane.counters.pending, is_pending);
    }

    /// Settles a delivery that ended before the restart. This process does not count it.
    pub(super) fn settled_before(&mut self, at: DeliveryRef, settlement: SettledAs) {
        let entry = &mut self.tasks[at.slot];
        let delivery = &mut entry.deliveries[at.index];
        delivery.stage = Stage::Settled(settlement);
        let lane = delivery.lane;
        self.lanes[lane].backlog.undo_push(entry.id, entry.bytes);
        let host = self.lanes[lane].host;
        self.claims.at_host(Pool::Bytes, entry.client, host, -signed(entry.bytes));
        for counters in self.counters(lane) {
            counters.accepted -= 1;
            counters.pending -= 1;
        }
    }

    /// Appends a delivery to the chain of its key, and supersedes older ones where allowed. Returns
    /// whether it is the head.
    pub(super) fn join(&mut self, at: DeliveryRef) -> bool {
        let entry = &self.tasks[at.slot];
        let (key, strong, lane) = (entry.key, entry.quorum.is_some(), self.tasks[at].lane);
        let older = self.lanes[lane].chains.get(&key).copied();
        let mut chain = match older {
            Some(chain) if strong || self.settings.coalesce => {
                self.overtake(lane, chain.head, at.slot)
            }
            Some(chain) => self.supersede_retry(lane, chain, at.slot),
            None => None,
        };
        self.append(lane, &mut chain, at.slot);
        let Some(chain) = chain else { return false };
        self.lanes[lane].chains.insert(key, chain);
        if chain.head != at.slot {
            // If it superseded the head, the delivery behind that one leads now.
            self.unblock(self.tasks.delivery_on(chain.head, lane));
        }
        chain.head == at.slot
    }

    /// Supersedes an older delivery that awaits a retry. It is alone in its chain.
    fn supersede_retry(&mut self, lane: u32, chain: Chain, by: Slot) -> Option<Chain> {
        let at = self.tasks.delivery_on(chain.head, lane);
        if !self.tasks[at].stage.awaits_retry() {
            return Some(chain);
        }
        self.supersede(at, by);
        None
    }

    /// Supersedes a delivery. The newer write `by` stands for it from now on: a barrier that covers
    /// the older write waits for the newer one.
    pub(super) fn supersede(&mut self, at: DeliveryRef, by: Slot) {
        let (lane, stage) = (self.tasks[at].lane, self.tasks[at].stage);
        if matches!(stage.outcome(), DeliveryOutcome::Pending | DeliveryOutcome::Dead) {
            self.stand_for(by, lane, self.tasks[at.slot].origin(at.index));
        }
        self.settle(at, SettledAs::Superseded);
    }

    fn stand_for(&mut self, slot: Slot, lane: u32, older: TaskId) {
        let DeliveryRef { index, .. } = self.tasks.delivery_on(slot, lane);
        let entry = &mut self.tasks[slot];
        let (task, before) = (entry.id, entry.origin(index));
        let delivery = &mut entry.deliveries[index];
        if older >= before {
            return;
        }
        let outcome = delivery.stage.outcome();
        delivery.failures_mut(self.now.wall).stands_for = Some(older);
        let mark = CountedDelivery { task, origin: older, lane, node: &self.lanes[lane].node };
        self.barriers.stand_for(mark, before, outcome);
        self.touch(slot);
    }

    /// Supersedes all older writes of the key that are neither in flight nor awaited by a client,
    /// for a strong write or with `coalesce`. Returns the rest of the chain.
    fn overtake(&mut self, lane: u32, head: Slot, by: Slot) -> Option<Chain> {
        let mut remaining = None;
        let mut cursor = Some(head);
        while let Some(older) = cursor {
            self.step();
            let at = self.tasks.delivery_on(older, lane);
            let Delivery { stage, next, .. } = self.tasks[at];
            let stays = matches!(stage, Stage::InFlight { .. })
                || (self.tasks[older].quorum.is_some() && !stage.awaits_retry());
            if stays {
                self.tasks[at].next = None;
                self.append(lane, &mut remaining, older);
            } else {
                self.supersede(at, by);
            }
            cursor = next;
        }
        remaining
    }

    pub(super) fn append(&mut self, lane: u32, chain: &mut Option<Chain>, slot: Slot) {
        match chain {
            None => *chain = Some(Chain::of(slot)),
            Some(chain) => {
                let tail = self.tasks.delivery_on(chain.tail, lane);
                self.tasks[tail].next = Some(slot);
                chain.tail = slot;
            }
        }
    }

    /// Makes the head of a chain ready if it is blocked. One that failed before a restart and has a
    /// newer write behind it is superseded instead.
    pub(super) fn unblock(&mut self, at: DeliveryRef) {
        let entry = &self.tasks[at.slot];
        let Delivery { lane, stage, next, .. } = self.tasks[at];
        let leads = || self.lanes[lane].chains.get(&entry.key).is_some_and(|c| c.head == at.slot);
        if stage != Stage::Blocked || !leads() {
            return;
        }
        let failed = self.tasks[at].failure_count() > 0;
        match next {
            Some(next) if failed => self.supersede_head(at, next),
            None if failed => {
                self.await_retry(at, self.now.moment);
                self.touch(at.slot);
            }
            _ => self.make_ready(at),
        }
    }

    pub(super) fn make_ready(&mut self, at: DeliveryRef) {
        let entry = &self.tasks[at.slot];
        let failed = self.tasks[at].failure_count() > 0;
        // A strong write keeps its priority after its answer, as the next one may wait behind it.
        let priority = if matches!(self.tasks[at].stage, Stage::Resend { .. }) {
            Priority::Resend
        } else if !failed && self.tasks[at].is_redriven() {
            Priority::Redrive
        } else if entry.quorum.is_some() || (entry.strong && !failed) {
            Priority::Urgent
        } else if failed {
            Priority::Retry
        } else {
            Priority::Fresh
        };
        self.change(at, Stage::Ready(priority));
    }

    pub(super) fn mark_dirty(&mut self, number: u32) {
        if !std::mem::replace(&mut self.lanes[number].dirty, true) {
            self.dirty.push_back(number);
        }
    }

    pub(super) fn delivery_id(&self, at: DeliveryRef) -> DeliveryId {
        let replica = ReplicaIndex(u16::try_from(at.index).unwrap_or(u16::MAX));
        DeliveryId { task: self.tasks[at.slot].id, replica }
    }

    /// Settles the head of a chain; the next delivery of the key becomes the head.
    pub(super) fn settle_head(&mut self, at: DeliveryRef, settlement: SettledAs) {
        if settlement == SettledAs::Delivered {
            self.supersede_letter(at);
        }
        self.settle(at, settlement);
        self.leave_chain(at);
    }

    pub(super) fn supersede_head(&mut self, at: DeliveryRef, next: Slot) {
        self.supersede(at, next);
        self.leave_chain(at);
    }

    pub(super) fn leave_chain(&mut self, at: DeliveryRef) {
        let entry = &mut self.tasks[at.slot];
        let (key, number, next) =
            (entry.key, entry.deliveries[at.index].lane, entry.deliveries[at.index].next.take());
        let lane = &mut self.lanes[number];
        match next {
            None => {
                lane.chains.remove(&key);
                if lane.chains.is_empty() && lane.chains.capacity() > 1024 {
                    lane.chains.shrink_to_fit();
                }
            }
            Some(head) => {
                if let Some(chain) = lane.chains.get_mut(&key) {
                    chain.head = head;
                }
                self.unblock(self.tasks.delivery_on(head, number));
            }
        }
    }

    pub(super) fn settle(&mut self, at: DeliveryRef, settlement: SettledAs) {
        // It was acknowledged before the resend.
        let delivered = self.tasks[at].stage.outcome() == DeliveryOutcome::Delivered;
        let settlement = if delivered { SettledAs::Delivered } else { settlement };
        self.note_ambiguous_if_restored(at);
        self.change(at, Stage::Settled(settlement));
        let change = match settlement {
            SettledAs::Delivered => TaskChange::Delivered,
            SettledAs::Superseded => TaskChange::Superseded,
            SettledAs::Discarded | SettledAs::Released => TaskChange::Discarded,
        };
        if !delivered {
            self.emit_change(at.slot, self.tasks[at].lane, change, None);
        }
        if settlement != SettledAs::Delivered {
            self.fail_quorum(at);
        }
        self.touch(at.slot);
    }

    pub(super) fn enter_queue(&mut self, slot: Slot, queue: TaskQueue) {
        let entry = &mut self.tasks[slot];
        let (client, left) = (entry.client, std::mem::replace(&mut entry.queue, queue));
        for delivery in entry.deliveries.iter().filter(|delivery| delivery.stage.holds_queue()) {
            let lane = &mut self.lanes[delivery.lane];
            lane.places.move_task(left, queue);
            self.claims.at_host(left.pool(), client, lane.host, -1);
            self.claims.at_host(queue.pool(), client, lane.host, 1);
        }
        self.count_queued(left, client, -1);
        self.count_queued(queue, client, 1);
    }

    pub(super) fn touch(&mut self, slot: Slot) {
        if !std::mem::replace(&mut self.tasks[slot].touched, true) {
            self.touched.push(slot);
        }
    }

    /// Ends a call: sends, answers, saves, removes and refills until nothing is left to do.
    pub(super) fn finish(&mut self) {
        loop {
            self.fill_retry_queue();
            while let Some(lane) = self.dirty.pop_front() {
                self.dispatch(lane);
            }
            if self.touched.is_empty() && !self.refill {
                return;
            }
            // Oldest first: a newer write's settlement must not be durable before an older one's.
            self.touched.sort_unstable_by_key(|&slot| self.tasks[slot].id);
            let touched: SmallVec<[Slot; 8]> = self.touched.drain(..).collect();
            for slot in touched {
                self.tasks[slot].touched = false;
                self.conclude(slot);
                self.review(slot);
            }
        }
    }

    /// Removes a task of which every delivery is settled.
    pub(super) fn remove_task(&mut self, slot: Slot) {
        self.enter_queue(slot, TaskQueue::Outside);
        let &TaskEntry { bytes, client, .. } = &self.tasks[slot];
        self.count_bytes(client, -signed(bytes));
        self.leave_client(client);
        self.tasks.remove(slot);
    }

    /// Saves the progress of a task, or removes the task if it is over.
    fn review(&mut self, slot: Slot) {
        let entry = &self.tasks[slot];
        let (task, key) = (entry.id, entry.key);
        let stages = || entry.deliveries.iter().map(|delivery| delivery.stage);
        let over = |delivery: &Delivery| {
            matches!(delivery.stage, Stage::Settled(_)) && delivery.ambiguous().is_none()
        };
        if entry.deliveries.iter().all(over) {
            if self.reports_ends {
                let last = self.whole_view(slot);
                self.actions.push_back(EngineAction::Ended { last });
            }
            self.actions.push_back(EngineAction::Remove { task });
            self.settlements.note(key);
            return self.remove_task(slot);
        }
        let only_dead = stages().all(Stage::is_at_rest) && stages().any(Stage::is_dead_letter);
        let waits = stages().any(Stage::holds_queue);
        let progress: Vec<_> = entry.deliveries.iter().map(Delivery::progress).collect();
        if progress.iter().any(|progress| *progress != Progress::Untouched) {
            self.actions.push_back(EngineAction::Save { task, progress });
            self.settlements.note(key);
        }
        if !waits {
            self.enter_queue(slot, TaskQueue::Outside);
        }
        if only_dead {
            self.charge_as_dead(slot);
        }
    }
}
