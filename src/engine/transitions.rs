//! A delivery goes from state to state, and a task from queue to queue.
//!
//! [`Engine::change`] is the one place where a state is written: it takes the delivery out of the
//! index of the old state and puts it into that of the new one. Everything else here decides
//! which change is due. Every public call of the engine ends in [`Engine::finish`].

use std::sync::Arc;

use smallvec::SmallVec;

use crate::engine::barrier::Mark;
use crate::engine::breaker::Gate;
use crate::engine::counters::{Attempt, DeliveryOutcome};
use crate::engine::lane::Chain;
use crate::engine::quorum::Quorum;
use crate::engine::table::{
    Delivery, DeliveryFailures, DeliveryRef, Entry, Priority, Queue, Settlement, Slot, State,
};
use crate::engine::{Action, Arrived, Change, Engine, Since, TASK_OVERHEAD_BYTES};
use crate::task::{DeliveryId, Progress, ReplicaIndex, TaskId};

/// The most deliveries that one call fails because a breaker is open. The rest comes with the
/// next, which is due at once: a full queue must not hold up everything else for its length.
const FAST_FAILURES: usize = 256;

impl Engine {
    /// Puts a task into memory, with a pending delivery for each of `lanes`.
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
        for &lane in lanes {
            for counters in [&mut self.lanes[lane].counters, &mut self.totals] {
                counters.accepted += 1;
                counters.pending += 1;
            }
            self.lanes[lane].backlog.enter(id, bytes);
        }
        self.levels.bytes += bytes;
        let deadline = quorum.as_ref().map(|quorum| quorum.deadline);
        let slot = self.tasks.insert(Entry {
            id,
            partition,
            key,
            accepted_at,
            since,
            bytes,
            queue: Queue::Outside,
            recovered,
            strong: quorum.is_some(),
            touched: false,
            charged_as_dead: false,
            quorum,
            deliveries: lanes.iter().copied().map(Delivery::new).collect(),
        });
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, slot));
        }
        slot
    }

    /// Writes a state: out of the index of the old one, into that of the new one.
    pub(super) fn change(&mut self, at: DeliveryRef, to: State) {
        if self.tasks[at.slot].charged_as_dead {
            self.release_charge(at.slot);
        }
        let entry = &mut self.tasks[at.slot];
        let (id, key, origin) = (entry.id, entry.key, entry.origin(at.index));
        let delivery = &mut entry.deliveries[at.index];
        let from = std::mem::replace(&mut delivery.state, to);
        let number = delivery.lane;
        let lane = &mut self.lanes[number];
        match from {
            State::Blocked => {}
            State::Ready(priority) => {
                lane.ready(priority).remove(&id);
            }
            State::InFlight { priority, .. } => {
                self.levels.in_flight -= 1;
                *lane.on_wire(priority) -= 1;
            }
            State::Waiting { until } => {
                lane.waiting.remove(&id);
                self.timers.remove(&(until, at.slot, number));
            }
            State::Resend { until } => {
                self.timers.remove(&(until, at.slot, number));
            }
            State::Parked { .. } => {
                lane.parked.remove(&id);
                self.levels.dead_letters -= 1;
                if lane.parked.is_empty() {
                    self.parked_lanes.remove(&number);
                }
            }
            State::Deferred { until } => {
                lane.deferred -= 1;
                self.levels.dead_letters -= 1;
                self.timers.remove(&(until, at.slot, number));
            }
            State::Dead { until, .. } => {
                lane.dead.remove(&id);
                lane.letters.remove(&key);
                self.timers.remove(&(until, at.slot, number));
                self.levels.dead_letters -= 1;
            }
            State::Settled(_) => debug_assert!(false, "what is settled stays settled"),
        }
        match to {
            State::Blocked => debug_assert!(false, "nothing goes back to being blocked"),
            State::Ready(priority) => {
                lane.ready(priority).insert(id, at.slot);
            }
            State::InFlight { priority, .. } => {
                self.levels.in_flight += 1;
                *lane.on_wire(priority) += 1;
            }
            State::Waiting { until } => {
                lane.waiting.insert(id, at.slot);
                self.timers.insert((until, at.slot, number));
            }
            State::Resend { until } => {
                self.timers.insert((until, at.slot, number));
            }
            State::Parked { .. } => {
                lane.parked.insert(id, at.slot);
                self.levels.dead_letters += 1;
                self.parked_lanes.insert(number);
                self.refill = true;
            }
            State::Deferred { until } => {
                lane.deferred += 1;
                self.levels.dead_letters += 1;
                self.timers.insert((until, at.slot, number));
            }
            State::Dead { until, .. } => {
                lane.dead.insert(id, at.slot);
                lane.letters.insert(key, at.slot);
                self.timers.insert((until, at.slot, number));
                self.levels.dead_letters += 1;
            }
            State::Settled(_) => {}
        }
        for counters in [&mut lane.counters, &mut self.totals] {
            *counters.of(from.outcome()) -= 1;
            *counters.of(to.outcome()) += 1;
        }
        let mark = Mark { task: id, origin, lane: number, node: &lane.node };
        self.barriers.note(mark, from.outcome(), to.outcome());
        match (from.holds_queue(), to.holds_queue()) {
            (true, false) => lane.hold(entry.queue, Queue::Outside),
            (false, true) => lane.hold(Queue::Outside, entry.queue),
            _ => {}
        }
        match (from.holds_retry_place(), to.holds_retry_place()) {
            (true, false) => {
                (lane.retries, self.levels.retry) = (lane.retries - 1, self.levels.retry - 1);
                self.refill = true;
            }
            (false, true) => {
                (lane.retries, self.levels.retry) = (lane.retries + 1, self.levels.retry + 1);
            }
            _ => {}
        }
        match (from.is_pending(), to.is_pending()) {
            (true, false) => {
                let bytes = entry.bytes;
                self.leave_backlog(number, id, bytes);
            }
            (false, true) => lane.backlog.come_back(id, entry.bytes),
            _ => {}
        }
        self.mark_dirty(number);
    }

    /// A delivery is not pending any more.
    fn leave_backlog(&mut self, number: u32, id: TaskId, bytes: u64) {
        let lane = &mut self.lanes[number];
        let tasks = &self.tasks;
        let is_pending = |id: TaskId| {
            tasks
                .find(id)
                .is_some_and(|slot| tasks[tasks.delivery_on(slot, number)].state.is_pending())
        };
        lane.backlog.leave(id, bytes, lane.counters.pending, is_pending);
    }

    /// A delivery that was settled before the restart: no counter of this process has it.
    pub(super) fn settled_before(&mut self, at: DeliveryRef, settlement: Settlement) {
        let entry = &mut self.tasks[at.slot];
        let delivery = &mut entry.deliveries[at.index];
        delivery.state = State::Settled(settlement);
        self.lanes[delivery.lane].backlog.take_back(entry.id, entry.bytes);
        for counters in [&mut self.lanes[delivery.lane].counters, &mut self.totals] {
            counters.accepted -= 1;
            counters.pending -= 1;
        }
    }

    /// Puts a delivery at the end of its key's chain, and settles what it supersedes there. Says
    /// whether it is the head now.
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
            // What it overtook may have been the head: then the one behind that leads now.
            self.unblock(self.tasks.delivery_on(chain.head, lane));
        }
        chain.head == at.slot
    }

    /// Before a newer write of its key, a delivery that awaits a retry is superseded. It is alone
    /// in its chain, so nothing else has to be looked at.
    fn supersede_retry(&mut self, lane: u32, chain: Chain, by: Slot) -> Option<Chain> {
        let at = self.tasks.delivery_on(chain.head, lane);
        if !self.tasks[at].state.awaits_retry() {
            return Some(chain);
        }
        self.supersede(at, by);
        None
    }

    /// Ends a delivery that a newer write of its key makes pointless. That stands for it from now
    /// on: until it is settled itself, no barrier behind the older one is reached.
    pub(super) fn supersede(&mut self, at: DeliveryRef, by: Slot) {
        let (lane, state) = (self.tasks[at].lane, self.tasks[at].state);
        if matches!(state.outcome(), DeliveryOutcome::Pending | DeliveryOutcome::Dead) {
            self.stand_for(by, lane, self.tasks[at.slot].origin(at.index));
        }
        self.settle(at, Settlement::Superseded);
    }

    fn stand_for(&mut self, slot: Slot, lane: u32, older: TaskId) {
        let DeliveryRef { index, .. } = self.tasks.delivery_on(slot, lane);
        let entry = &mut self.tasks[slot];
        let (task, before) = (entry.id, entry.origin(index));
        let delivery = &mut entry.deliveries[index];
        if older >= before {
            return;
        }
        let outcome = delivery.state.outcome();
        let new = || Box::new(DeliveryFailures::new(0, "".into(), self.now.wall));
        delivery.failures.get_or_insert_with(new).stands_for = Some(older);
        let mark = Mark { task, origin: older, lane, node: &self.lanes[lane].node };
        self.barriers.stand_for(mark, before, outcome);
        self.touch(slot);
    }

    /// Before a strong write, or any with `coalesce`, everything of its key is superseded that is neither on the wire nor
    /// awaited by a client. Gives back what is left of the chain.
    fn overtake(&mut self, lane: u32, head: Slot, by: Slot) -> Option<Chain> {
        let mut kept = None;
        let mut cursor = Some(head);
        while let Some(older) = cursor {
            self.step();
            let at = self.tasks.delivery_on(older, lane);
            let Delivery { state, next, .. } = self.tasks[at];
            let stays = matches!(state, State::InFlight { .. })
                || (self.tasks[older].quorum.is_some() && !state.awaits_retry());
            if stays {
                self.tasks[at].next = None;
                self.append(lane, &mut kept, older);
            } else {
                self.supersede(at, by);
            }
            cursor = next;
        }
        kept
    }

    /// Links `slot` behind the tail of `chain`.
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

    /// Makes a blocked delivery ready if it leads its chain and may be sent. One that failed before
    /// a restart and has a newer write of its key behind it is superseded instead.
    pub(super) fn unblock(&mut self, at: DeliveryRef) {
        let entry = &self.tasks[at.slot];
        let Delivery { lane, state, next, .. } = self.tasks[at];
        let leads = || self.lanes[lane].chains.get(&entry.key).is_some_and(|c| c.head == at.slot);
        if state != State::Blocked || !leads() {
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
        // A strong write keeps its priority after its answer, for the next one may wait behind it.
        let priority = if matches!(self.tasks[at].state, State::Resend { .. }) {
            Priority::Resend
        } else if !failed && self.tasks[at].is_redriven() {
            // It could not be sent, which is no failure.
            Priority::Redrive
        } else if entry.quorum.is_some() || (entry.strong && !failed) {
            Priority::Urgent
        } else if failed {
            Priority::Retry
        } else {
            Priority::Fresh
        };
        self.change(at, State::Ready(priority));
    }

    /// Has a lane looked at before the call ends.
    pub(super) fn mark_dirty(&mut self, number: u32) {
        if !std::mem::replace(&mut self.lanes[number].dirty, true) {
            self.dirty.push_back(number);
        }
    }

    /// Sends what may be sent over a lane, and fails what its breaker does not let out.
    fn dispatch(&mut self, number: u32) {
        self.dispatch_dirty(number);
        // Only now: what it does itself is no reason to be looked at once more.
        self.lanes[number].dirty = false;
    }

    fn dispatch_dirty(&mut self, number: u32) {
        if self.stopped || self.lanes[number].is_held() {
            return;
        }
        for failed_fast in 0.. {
            let lane = &mut self.lanes[number];
            let letter = lane.foremost().is_some_and(|(priority, _)| priority == Priority::Redrive);
            match lane.breaker.gate(self.now.moment, letter) {
                Gate::Pass(most) => {
                    let workers = lane.concurrency.limit(self.settings.workers);
                    while let Some((priority, slot)) = self.lanes[number].next(workers, most) {
                        self.send(number, slot, priority, false);
                    }
                    return;
                }
                Gate::Probe => {
                    let Some((priority, slot)) = lane.foremost() else { return };
                    lane.breaker.probe();
                    self.send(number, slot, priority, true);
                }
                Gate::Shut => {
                    let Some((_, slot)) = lane.foremost() else { return };
                    if failed_fast >= FAST_FAILURES {
                        return self.schedule_wakeup(number, self.now.moment);
                    }
                    self.fail_fast(number, slot);
                }
            }
        }
    }

    fn send(&mut self, number: u32, slot: Slot, priority: Priority, probe: bool) {
        let at = self.tasks.delivery_on(slot, number);
        self.change(at, State::InFlight { priority, probe, discard: false });
        if priority == Priority::Redrive
            && let Some(failures) = &mut self.tasks[at].failures
        {
            // It has all its attempts anew.
            failures.count = 0;
        }
        let delivery = self.delivery_id(at);
        let entry = &self.tasks[slot];
        let attempt = self.tasks[at].failure_count().saturating_add(1);
        let node = self.lanes[number].node.clone();
        self.actions.push_back(Action::Send { delivery, node, attempt, bytes: entry.bytes });
    }

    /// An attempt fails on its schedule, but without connection or place: the breaker is open.
    fn fail_fast(&mut self, number: u32, slot: Slot) {
        let at = self.tasks.delivery_on(slot, number);
        let state = self.tasks[at].state;
        if state == State::Ready(Priority::Redrive) {
            return self.return_to_dead(at);
        }
        let error = Arc::clone(&self.lanes[number].shut_error);
        self.note_failure(at, error, Attempt::Unsent);
        if state == State::Ready(Priority::Resend) {
            return self.resend_failed(at);
        }
        self.fail(at, None);
    }

    pub(super) fn delivery_id(&self, at: DeliveryRef) -> DeliveryId {
        let replica = ReplicaIndex(u16::try_from(at.index).unwrap_or(u16::MAX));
        DeliveryId { task: self.tasks[at.slot].id, replica }
    }

    /// Ends the delivery that leads its chain; the next of its key comes forward.
    pub(super) fn settle_head(&mut self, at: DeliveryRef, settlement: Settlement) {
        if settlement == Settlement::Delivered {
            self.supersede_letter(at);
        }
        self.settle(at, settlement);
        self.leave_chain(at);
    }

    /// Ends the delivery that leads its chain, as the next of its key takes its place.
    pub(super) fn supersede_head(&mut self, at: DeliveryRef, next: Slot) {
        self.supersede(at, next);
        self.leave_chain(at);
    }

    /// Takes the head out of its chain.
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

    pub(super) fn settle(&mut self, at: DeliveryRef, settlement: Settlement) {
        // Acknowledged before it was to be sent once more.
        let told = self.tasks[at].state.outcome() == DeliveryOutcome::Delivered;
        let settlement = if told { Settlement::Delivered } else { settlement };
        self.note_ambiguous_if_restored(at);
        self.change(at, State::Settled(settlement));
        let change = match settlement {
            Settlement::Delivered => Change::Delivered,
            Settlement::Superseded => Change::Superseded,
            Settlement::Discarded | Settlement::Released => Change::Discarded,
        };
        if !told {
            self.tell_change(at.slot, self.tasks[at].lane, change, None);
        }
        if settlement != Settlement::Delivered {
            self.fail_quorum(at);
        }
        self.touch(at.slot);
    }

    /// Moves a task to another queue.
    pub(super) fn enter_queue(&mut self, slot: Slot, queue: Queue) {
        let entry = &mut self.tasks[slot];
        let left = std::mem::replace(&mut entry.queue, queue);
        for delivery in entry.deliveries.iter().filter(|delivery| delivery.state.holds_queue()) {
            self.lanes[delivery.lane].hold(left, queue);
        }
        for (queue, enters) in [(left, false), (queue, true)] {
            self.count_queued(queue, enters);
        }
    }

    pub(super) fn touch(&mut self, slot: Slot) {
        if !std::mem::replace(&mut self.tasks[slot].touched, true) {
            self.touched.push(slot);
        }
    }

    /// Ends a call: sends, answers, saves, removes and refills, until nothing is left to do.
    pub(super) fn finish(&mut self) {
        loop {
            self.fill_retry_queue();
            while let Some(lane) = self.dirty.pop_front() {
                self.dispatch(lane);
            }
            if self.touched.is_empty() && !self.refill {
                return;
            }
            // By age: a newer write's settlement must not reach the disk before an older one's.
            self.touched.sort_unstable_by_key(|&slot| self.tasks[slot].id);
            let touched: SmallVec<[Slot; 8]> = self.touched.drain(..).collect();
            for slot in touched {
                self.tasks[slot].touched = false;
                self.conclude(slot);
                self.review(slot);
            }
        }
    }

    /// Saves what has become of a task, and lets it go if it is over.
    fn review(&mut self, slot: Slot) {
        let entry = &self.tasks[slot];
        let task = entry.id;
        let states = || entry.deliveries.iter().map(|delivery| delivery.state);
        let over = |delivery: &Delivery| {
            matches!(delivery.state, State::Settled(_)) && delivery.ambiguous().is_none()
        };
        if entry.deliveries.iter().all(over) {
            self.enter_queue(slot, Queue::Outside);
            self.levels.bytes -= self.tasks[slot].bytes;
            if self.ends_told {
                let last = self.view_of(slot);
                self.actions.push_back(Action::Ended { last });
            }
            self.actions.push_back(Action::Remove { task });
            self.tasks.remove(slot);
            return;
        }
        let only_dead = states().all(State::rests) && states().any(State::is_dead_letter);
        let waits = states().any(State::holds_queue);
        let progress: Vec<_> = entry.deliveries.iter().map(Delivery::progress).collect();
        if progress.iter().any(|progress| *progress != Progress::Untouched) {
            self.actions.push_back(Action::Save { task, progress });
        }
        if !waits {
            self.enter_queue(slot, Queue::Outside);
        }
        if only_dead {
            self.charge_as_dead(slot);
        }
    }
}
