//! A delivery goes from state to state, and a task from queue to queue.
//!
//! [`Engine::change`] is the one place where a state is written: it takes the delivery out of the
//! index of the old state and puts it into that of the new one. Everything else here decides
//! which change is due. Every public call of the engine ends in [`Engine::finish`].

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::engine::lane::Chain;
use crate::engine::quorum::{Quorum, Standing};
use crate::engine::tasks::{Entry, Leg, Queue, Rank, Settlement, Slot, State, Trouble};
use crate::engine::{Action, Engine, KeyId, Now};
use crate::task::{Delivery, Progress, ReplicaIndex, TaskId};

impl Engine {
    /// Puts a task into memory, with a pending delivery for each of `lanes`.
    pub(super) fn insert(
        &mut self,
        id: TaskId,
        key: KeyId,
        bytes: u64,
        lanes: &[u32],
        quorum: Option<Box<Quorum>>,
        durable: bool,
    ) -> Slot {
        let strong = quorum.is_some();
        for &lane in lanes {
            for books in [&mut self.lanes[lane].books, &mut self.totals] {
                books.accepted += 1;
                books.pending += 1;
            }
        }
        self.levels.bytes += bytes;
        let deadline = quorum.as_ref().map(|quorum| quorum.deadline);
        let slot = self.tasks.insert(Entry {
            id,
            key,
            bytes,
            queue: Queue::Outside,
            durable,
            strong,
            touched: false,
            pending: u16::try_from(lanes.len()).unwrap_or(u16::MAX),
            quorum,
            legs: lanes.iter().copied().map(Leg::new).collect(),
        });
        if let Some(deadline) = deadline {
            self.deadlines.insert((deadline, slot));
        }
        slot
    }

    /// Writes a state: out of the index of the old one, into that of the new one.
    pub(super) fn change(&mut self, slot: Slot, leg: usize, to: State) {
        let entry = &mut self.tasks[slot];
        let id = entry.id;
        let leg = &mut entry.legs[leg];
        let from = std::mem::replace(&mut leg.state, to);
        let number = leg.lane;
        let lane = &mut self.lanes[number];
        match from {
            State::Blocked => {}
            State::Ready(rank) => {
                lane.ready(rank).remove(&id);
            }
            State::InFlight { express } => {
                self.levels.in_flight -= 1;
                *(if express { &mut lane.express } else { &mut lane.in_flight }) -= 1;
            }
            State::Waiting { until } => {
                lane.waiting -= 1;
                self.timers.remove(&(until, slot, number));
            }
            State::Parked { .. } => {
                lane.parked.remove(&id);
                self.levels.dead_letters -= 1;
            }
            State::Settled(_) => debug_assert!(false, "what is settled stays settled"),
        }
        match to {
            State::Blocked => debug_assert!(false, "nothing goes back to being blocked"),
            State::Ready(rank) => {
                lane.ready(rank).insert(id, slot);
            }
            State::InFlight { express } => {
                self.levels.in_flight += 1;
                *(if express { &mut lane.express } else { &mut lane.in_flight }) += 1;
            }
            State::Waiting { until } => {
                lane.waiting += 1;
                self.timers.insert((until, slot, number));
            }
            State::Parked { .. } => {
                lane.parked.insert(id, slot);
                self.levels.dead_letters += 1;
                if !self.parked_lanes.contains(&number) {
                    self.parked_lanes.push_back(number);
                }
            }
            State::Settled(settlement) => {
                for books in [&mut lane.books, &mut self.totals] {
                    books.pending -= 1;
                    match settlement {
                        Settlement::Delivered => books.delivered += 1,
                        Settlement::Superseded => books.superseded += 1,
                        Settlement::Rejected => books.rejected += 1,
                        Settlement::GaveUp => books.gave_up += 1,
                    }
                }
                entry.pending -= 1;
                lane.hold(entry.queue, Queue::Outside);
            }
        }
    }

    /// A delivery that was settled before the restart: it is in no column of today's books.
    pub(super) fn settled_before(&mut self, slot: Slot, leg: usize, settlement: Settlement) {
        let entry = &mut self.tasks[slot];
        entry.pending -= 1;
        let leg = &mut entry.legs[leg];
        leg.state = State::Settled(settlement);
        self.levels.dead_letters += u64::from(leg.is_dead());
        for books in [&mut self.lanes[leg.lane].books, &mut self.totals] {
            books.accepted -= 1;
            books.pending -= 1;
        }
    }

    /// Puts a delivery at the end of its key's chain, and settles what it supersedes there. Says
    /// whether it is the head now.
    pub(super) fn join(&mut self, slot: Slot, leg: usize) -> bool {
        let entry = &self.tasks[slot];
        let (key, strong, lane) = (entry.key, entry.quorum.is_some(), entry.legs[leg].lane);
        let older = self.lanes[lane].chains.get(&key).copied();
        let mut chain = match older {
            Some(chain) if strong => self.overtake(lane, chain.head),
            Some(chain) => self.supersede_retry(lane, chain),
            None => None,
        };
        self.append(lane, &mut chain, slot);
        let Some(chain) = chain else { return false };
        self.lanes[lane].chains.insert(key, chain);
        if chain.head != slot {
            // What it overtook may have been the head: then the one behind that leads now.
            self.unblock(chain.head, self.tasks[chain.head].leg_on(lane));
        }
        chain.head == slot
    }

    /// Before a newer write of its key, a delivery that awaits a retry is superseded. It is alone
    /// in its chain, so nothing else has to be looked at.
    fn supersede_retry(&mut self, lane: u32, chain: Chain) -> Option<Chain> {
        let leg = self.tasks[chain.head].leg_on(lane);
        if !self.tasks[chain.head].legs[leg].state.awaits_retry() {
            return Some(chain);
        }
        self.settle(chain.head, leg, Settlement::Superseded);
        None
    }

    /// Before a strong write, everything of its key is superseded that is neither on the wire nor
    /// awaited by a client. Gives back what is left of the chain.
    fn overtake(&mut self, lane: u32, head: Slot) -> Option<Chain> {
        let mut kept = None;
        let mut at = Some(head);
        while let Some(older) = at {
            let leg = self.tasks[older].leg_on(lane);
            let Leg { state, next, .. } = self.tasks[older].legs[leg];
            let stays = matches!(state, State::InFlight { .. })
                || (self.tasks[older].quorum.is_some() && !state.awaits_retry());
            if stays {
                self.tasks[older].legs[leg].next = None;
                self.append(lane, &mut kept, older);
            } else {
                self.settle(older, leg, Settlement::Superseded);
            }
            at = next;
        }
        kept
    }

    /// Links `slot` behind the tail of `chain`.
    fn append(&mut self, lane: u32, chain: &mut Option<Chain>, slot: Slot) {
        match chain {
            None => *chain = Some(Chain::of(slot)),
            Some(chain) => {
                let tail_leg = self.tasks[chain.tail].leg_on(lane);
                self.tasks[chain.tail].legs[tail_leg].next = Some(slot);
                chain.tail = slot;
            }
        }
    }

    /// Makes a blocked delivery ready if it leads its chain and may be sent. One that failed before
    /// a restart and has a newer write of its key behind it is superseded instead.
    pub(super) fn unblock(&mut self, slot: Slot, leg: usize) {
        let entry = &self.tasks[slot];
        let Leg { lane, state, next, .. } = entry.legs[leg];
        let leads = || self.lanes[lane].chains.get(&entry.key).is_some_and(|c| c.head == slot);
        if state != State::Blocked || !entry.durable || !leads() {
            return;
        }
        if entry.legs[leg].failures() > 0 && next.is_some() {
            self.settle_head(slot, leg, Settlement::Superseded);
        } else {
            self.make_ready(slot, leg);
        }
    }

    pub(super) fn make_ready(&mut self, slot: Slot, leg: usize) {
        let entry = &self.tasks[slot];
        let failed = entry.legs[leg].failures() > 0;
        // A strong write keeps its rank after its answer, for the next one may wait behind it.
        let rank = if entry.quorum.is_some() || (entry.strong && !failed) {
            Rank::Urgent
        } else if failed {
            Rank::Retry
        } else {
            Rank::Fresh
        };
        let lane = entry.legs[leg].lane;
        self.change(slot, leg, State::Ready(rank));
        self.dispatch(lane);
    }

    /// Sends what may be sent over a lane.
    fn dispatch(&mut self, number: u32) {
        if self.stopped {
            return;
        }
        while let Some((rank, slot)) = self.lanes[number].next(self.settings.workers.get()) {
            let leg = self.tasks[slot].leg_on(number);
            self.change(slot, leg, State::InFlight { express: rank == Rank::Urgent });
            let delivery = self.delivery(slot, leg);
            let entry = &self.tasks[slot];
            let attempt = entry.legs[leg].failures().saturating_add(1);
            self.actions.push_back(Action::Send { delivery, attempt, bytes: entry.bytes });
        }
    }

    fn delivery(&self, slot: Slot, leg: usize) -> Delivery {
        let replica = ReplicaIndex(u16::try_from(leg).unwrap_or(u16::MAX));
        Delivery { task: self.tasks[slot].id, replica }
    }

    /// Writes down a failed attempt.
    pub(super) fn note_failure(&mut self, now: Now, slot: Slot, leg: usize, error: Arc<str>) {
        let replica = self.delivery(slot, leg).replica;
        let entry = &mut self.tasks[slot];
        if let Some(quorum) = &mut entry.quorum {
            quorum.fail(replica);
        }
        let leg = &mut entry.legs[leg];
        let failures = leg.failures().saturating_add(1);
        leg.trouble = Some(Box::new(Trouble { failures, error, since: now.wall }));
        self.lanes[leg.lane].books.failed_attempts += 1;
        self.totals.failed_attempts += 1;
        self.touch(slot);
    }

    /// What becomes of a delivery whose attempt failed: a newer write of the key takes its place,
    /// or it waits for a retry, or is parked, or given up.
    pub(super) fn fail(&mut self, now: Now, slot: Slot, leg: usize, asked: Option<Duration>) {
        let Leg { lane, next, .. } = self.tasks[slot].legs[leg];
        if next.is_some() {
            return self.settle_head(slot, leg, Settlement::Superseded);
        }
        let failures = self.tasks[slot].legs[leg].failures();
        let Some(wait) = self.schedule.wait(failures, asked, &mut self.rng) else {
            return self.settle_head(slot, leg, Settlement::GaveUp);
        };
        let until = now.moment.after(wait);
        if self.tasks[slot].queue != Queue::Retry && self.retry_has_room() {
            self.enter_queue(slot, Queue::Retry);
        }
        if self.tasks[slot].queue == Queue::Retry {
            self.change(slot, leg, State::Waiting { until });
        } else {
            self.change(slot, leg, State::Parked { until });
            self.bury(slot, leg);
        }
        self.dispatch(lane);
    }

    /// Ends the delivery that leads its chain; the next of its key comes forward.
    pub(super) fn settle_head(&mut self, slot: Slot, leg: usize, settlement: Settlement) {
        self.settle(slot, leg, settlement);
        let (key, Leg { lane, next, .. }) = (self.tasks[slot].key, &self.tasks[slot].legs[leg]);
        let (number, next) = (*lane, *next);
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
                let leg = self.tasks[head].leg_on(number);
                self.unblock(head, leg);
            }
        }
        self.dispatch(number);
    }

    fn settle(&mut self, slot: Slot, leg: usize, settlement: Settlement) {
        self.change(slot, leg, State::Settled(settlement));
        let replica = self.delivery(slot, leg).replica;
        if settlement != Settlement::Delivered
            && let Some(quorum) = &mut self.tasks[slot].quorum
        {
            quorum.fail(replica);
        }
        if self.tasks[slot].legs[leg].is_dead() {
            self.levels.dead_letters += 1;
            self.bury(slot, leg);
        }
        self.touch(slot);
    }

    /// Tells of a new dead letter.
    fn bury(&mut self, slot: Slot, leg: usize) {
        if let Progress::Dead(letter) = self.tasks[slot].legs[leg].progress() {
            let delivery = self.delivery(slot, leg);
            self.actions.push_back(Action::Buried { delivery, letter });
        }
    }

    fn retry_has_room(&self) -> bool {
        self.levels.retry < self.settings.retry_capacity
    }

    /// Moves a task to another queue. What of it is parked joins the retry queue with it.
    pub(super) fn enter_queue(&mut self, slot: Slot, queue: Queue) {
        let entry = &mut self.tasks[slot];
        let left = std::mem::replace(&mut entry.queue, queue);
        for leg in entry.legs.iter().filter(|leg| !leg.state.is_settled()) {
            self.lanes[leg.lane].hold(left, queue);
        }
        for (queue, enters) in [(left, false), (queue, true)] {
            let level = match queue {
                Queue::Eventual => &mut self.levels.queue,
                Queue::Strong => &mut self.levels.strong,
                Queue::Retry => &mut self.levels.retry,
                Queue::Outside => continue,
            };
            if enters { *level += 1 } else { *level -= 1 }
        }
        if queue != Queue::Retry {
            return;
        }
        for leg in 0..self.tasks[slot].legs.len() {
            if let State::Parked { until } = self.tasks[slot].legs[leg].state {
                self.change(slot, leg, State::Waiting { until });
                self.touch(slot);
            }
        }
    }

    /// Lets parked deliveries back in, oldest first, the replicas taking turns.
    fn fill_retry_queue(&mut self) {
        while self.retry_has_room()
            && let Some(number) = self.parked_lanes.pop_front()
        {
            let first = self.lanes.get(number).and_then(|lane| lane.parked.first_key_value());
            if let Some((_, &slot)) = first {
                self.enter_queue(slot, Queue::Retry);
                self.parked_lanes.push_back(number);
            }
        }
    }

    /// Answers the client of a strong write, if there is one and its answer is known.
    ///
    /// Not before it is durable, even if its time is up: the answer says that delivery goes on.
    fn conclude(&mut self, now: Now, slot: Slot) {
        let entry = &mut self.tasks[slot];
        let Some(quorum) = &entry.quorum else { return };
        let standing = quorum.standing();
        let decided = standing != Standing::Open || quorum.deadline <= now.moment;
        if !decided || !entry.durable {
            return;
        }
        self.deadlines.remove(&(quorum.deadline, slot));
        self.actions.push_back(Action::Conclude {
            task: entry.id,
            success: standing == Standing::Reached,
            needed: quorum.needed(),
            acked: quorum.acked().to_vec(),
            missing: quorum.missing(),
        });
        entry.quorum = None;
        if entry.queue == Queue::Strong && entry.pending > 0 {
            let queue = if self.retry_has_room() { Queue::Retry } else { Queue::Outside };
            self.enter_queue(slot, queue);
        }
    }

    pub(super) fn touch(&mut self, slot: Slot) {
        if !std::mem::replace(&mut self.tasks[slot].touched, true) {
            self.touched.push(slot);
        }
    }

    /// Ends a call: answers, saves, removes and refills, until nothing is left to do.
    pub(super) fn finish(&mut self, now: Now) {
        self.fill_retry_queue();
        while !self.touched.is_empty() {
            // By age: a newer write's settlement must not reach the disk before an older one's.
            self.touched.sort_unstable_by_key(|&slot| self.tasks[slot].id);
            let touched: SmallVec<[Slot; 8]> = self.touched.drain(..).collect();
            for slot in touched {
                self.tasks[slot].touched = false;
                self.conclude(now, slot);
                self.review(slot);
            }
            self.fill_retry_queue();
        }
    }

    /// Saves what has become of a task, and lets it go if it is over. Before it is on disk there is
    /// nothing to add to; the commit brings it here again.
    fn review(&mut self, slot: Slot) {
        let entry = &self.tasks[slot];
        let task = entry.id;
        if !entry.durable {
            return;
        }
        let states = || entry.legs.iter().map(|leg| leg.state);
        if entry.pending > 0 {
            let progress: Vec<_> = entry.legs.iter().map(Leg::progress).collect();
            let only_parked =
                states().all(|s| matches!(s, State::Parked { .. } | State::Settled(_)));
            if progress.iter().any(|progress| *progress != Progress::Untouched) {
                self.actions.push_back(Action::Save { task, progress, over: false });
            }
            if only_parked {
                self.enter_queue(slot, Queue::Outside);
            }
            return;
        }
        self.enter_queue(slot, Queue::Outside);
        let entry = &self.tasks[slot];
        if entry.legs.iter().any(Leg::is_dead) {
            let progress = entry.legs.iter().map(Leg::progress).collect();
            self.actions.push_back(Action::Save { task, progress, over: true });
        } else {
            self.levels.bytes -= entry.bytes;
            self.actions.push_back(Action::Remove { task });
        }
        self.tasks.remove(slot);
    }
}
