//! What operators do: pause, probe, forget and rename a replica; redrive and discard.
//!
//! None of it breaks the order. What is thrown away is not tried again, and takes with it what
//! waits of older writes of its key: it may have been sent already, and never was the key to
//! go back to them. What is redriven is the newest write of its key that the replica does not have; a lane that is renamed
//! is the same lane, and the new name must be one that nothing was ever sent to.

use std::sync::Arc;

use crate::engine::breaker::Gate;
use crate::engine::lane::Chain;
use crate::engine::table::{DeliveryRef, Settlement, Slot, State};
use crate::engine::{
    Action, AdminOutcome, BreakerState, Change, Engine, Forgotten, Now, Probed, RenameError,
};
use crate::task::{DeliveryId, Node, TaskId, Timestamp};

/// Deliveries that one step of forgetting throws away, and tasks that it looks at for them: a few
/// milliseconds, as everything else waits meanwhile.
const STEP: usize = 1024;
const LOOKS: usize = 16 * STEP;

impl Engine {
    /// Whether every change of a delivery is told by [`Action::Changed`].
    pub fn watch(&mut self, watched: bool) {
        self.watched = watched;
    }

    /// Whether someone wants to hear of every change.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watched
    }

    /// Whether the end of every task is told by [`Action::Ended`].
    pub fn tell_ends(&mut self, told: bool) {
        self.ends_told = told;
    }

    pub(super) fn tell_change(
        &mut self,
        slot: Slot,
        lane: u32,
        change: Change,
        error: Option<Arc<str>>,
    ) {
        if self.watched {
            let (task, node) = (self.tasks[slot].id, self.lanes[lane].node.clone());
            self.actions.push_back(Action::Changed { task, node, change, error });
        }
    }

    /// Nothing is sent to a replica from now on, or everything again. What is on the wire goes on.
    /// What waits for a retry is parked, so that the places in the retry queue are free for other
    /// replicas, and comes back when the replica is resumed.
    ///
    /// Since when is for the records: one that was paused before a restart stays so. Makes the lane
    /// known if it is not.
    pub fn pause(&mut self, now: Now, node: &Node, since: Option<Timestamp>) {
        self.now = now;
        let number = self.lanes.find(node).or_else(|| {
            let node = since.is_some().then(|| std::slice::from_ref(node))?;
            self.lanes.open(node, usize::MAX)?.first().copied()
        });
        if let Some(number) = number {
            self.lanes[number].paused = since;
            self.refill = true;
            self.lanes[number].forgotten &= since.is_none();
            self.mark_dirty(number);
            self.schedule_wakeup(number, now.moment);
            if since.is_some() {
                self.park_retries(number);
                self.answer_unreachable(number);
            }
        }
        self.finish();
    }

    /// Has a lane for a replica that was used before the start, or forgotten, and has had nothing to
    /// do since. False if there is no room for it.
    pub fn know(&mut self, node: &Node) -> bool {
        let limit = self.settings.max_known_replicas;
        let opened = self.lanes.open(std::slice::from_ref(node), limit);
        let Some([number]) = opened.as_deref() else { return false };
        self.lanes[*number].forgotten = false;
        true
    }

    /// Lets an open breaker send its next probe now. `None` for an unknown replica.
    pub fn probe(&mut self, now: Now, node: &Node) -> Option<Probed> {
        self.now = now;
        let number = self.lanes.find(node)?;
        self.lanes[number].breaker.probe_now(now.moment);
        self.mark_dirty(number);
        self.schedule_wakeup(number, now.moment);
        // With nothing that is due a dead letter is the probe.
        self.tick(now);
        let lane = &self.lanes[number];
        if lane.breaker.probe_at().is_some() && lane.has_nothing_due() && !lane.is_held() {
            if !self.probe_by_letter(number) {
                self.probe_by_deferred(number);
            }
            self.finish();
        }
        let breaker = &self.lanes[number].breaker;
        Some(Probed { breaker: breaker.view(), probing: breaker.is_probing() })
    }

    /// Throws away everything for a replica. `None` for an unknown one.
    ///
    /// It takes as many steps as there are tasks; meanwhile nothing is sent to the replica.
    pub fn forget(&mut self, now: Now, node: &Node) -> Option<Forgotten> {
        self.now = now;
        let number = self.lanes.find(node)?;
        let newest = self.tasks.newest().unwrap_or(TaskId(0));
        let lane = &mut self.lanes[number];
        (lane.forgetting, lane.forgotten) = (Some((TaskId(0), newest)), true);
        lane.forgotten_up_to = self.reservations;
        let in_flight = u64::from(lane.in_flight) + u64::from(lane.express);
        let unsettled = lane.counters.pending + lane.counters.dead;
        self.schedule_wakeup(number, now.moment);
        self.answer_unreachable(number);
        self.finish();
        Some(Forgotten { discarded: unsettled.saturating_sub(in_flight), in_flight })
    }

    /// Whether a replica is still being forgotten.
    #[must_use]
    pub fn is_forgetting(&self, node: &Node) -> bool {
        let lane = self.lanes.find(node).and_then(|number| self.lanes.get(number));
        lane.is_some_and(|lane| lane.forgetting.is_some())
    }

    /// Goes on with forgetting.
    pub(super) fn forget_on(&mut self, number: u32) {
        let Some((after, up_to)) = self.lanes[number].forgetting else { return };
        let (mut last, mut looks, mut thrown) = (after, 0, 0);
        let more = loop {
            let next = self.tasks.after(Some(last)).next().filter(|(id, _)| *id <= up_to);
            let Some((id, slot)) = next else { break false };
            if looks >= LOOKS || thrown >= STEP {
                break true;
            }
            (last, looks) = (id, looks + 1);
            self.step();
            let at = self.tasks.delivery_on(slot, number);
            if self.tasks.get(at).is_some_and(|delivery| delivery.lane == number) {
                self.throw_away(at);
                thrown += 1;
            }
        };
        let lane = &mut self.lanes[number];
        lane.forgetting = more.then_some((last, up_to));
        if !more {
            // A node that is gone is not one that does not answer; were it said to be, for ever.
            (lane.breaker, lane.breaker_since, lane.last_error) = Default::default();
            self.mark_dirty(number);
        }
        self.schedule_wakeup(number, self.now.moment);
    }

    /// The replica is to be found under another address from now on: its backlog and its dead
    /// letters go there.
    ///
    /// # Errors
    ///
    /// [`RenameError`]; then nothing has changed.
    pub fn rename(&mut self, now: Now, node: &Node, to: &Node) -> Result<(), RenameError> {
        self.now = now;
        let found = self.lanes.find(node).filter(|&number| !self.lanes[number].is_gone());
        let number = found.ok_or(RenameError::Unknown)?;
        if self.lanes.find(to).is_some() {
            return Err(RenameError::Used);
        }
        self.lanes.rename(number, to.clone());
        self.barriers.rename(number, to);
        let lane = &mut self.lanes[number];
        // What is known of the old address says nothing of the new one.
        if std::mem::take(&mut lane.breaker).view() != BreakerState::Closed {
            lane.breaker_since = Some(now.wall);
        }
        self.hand_off(number);
        self.mark_dirty(number);
        self.finish();
        Ok(())
    }

    /// Throws away what is not settled of a task. What is on the wire is not tried again. False
    /// if nothing is left of the task.
    pub fn discard_task(&mut self, now: Now, id: TaskId) -> bool {
        self.now = now;
        let Some(slot) = self.tasks.find(id) else { return false };
        for index in 0..self.tasks[slot].deliveries.len() {
            self.throw_away(DeliveryRef { slot, index });
        }
        self.finish();
        true
    }

    /// Makes a dead letter ready again, whatever its cause.
    pub fn redrive_letter(&mut self, now: Now, delivery: DeliveryId) -> AdminOutcome {
        self.now = now;
        let Some(at) = self.letter(delivery) else { return AdminOutcome::Gone };
        let outcome = self.would_be_redriven(at);
        match self.tasks[at].state {
            _ if outcome != AdminOutcome::Done => {}
            State::Dead { .. } => self.revive(at),
            _ => self.unpark(at, now.moment),
        }
        self.finish();
        outcome
    }

    fn would_be_redriven(&self, at: DeliveryRef) -> AdminOutcome {
        let entry = &self.tasks[at.slot];
        let lane = &self.lanes[self.tasks[at].lane];
        // It would return to the dead letters at once.
        let shut = || lane.breaker.gate(self.now.moment, true) == Gate::Shut;
        match self.tasks[at].state {
            State::Dead { .. } if lane.chains.contains_key(&entry.key) => AdminOutcome::LeftOut,
            // It would wait as long as nothing is sent, and take the room of new writes meanwhile.
            _ if lane.is_held() => AdminOutcome::HeldBack,
            State::Dead { .. } if shut() => AdminOutcome::HeldBack,
            State::Dead { .. } => AdminOutcome::Done,
            _ if self.retry_has_room(self.tasks[at].lane) => AdminOutcome::Done,
            _ => AdminOutcome::HeldBack,
        }
    }

    /// What [`Self::redrive_letter`] would do.
    #[must_use]
    pub fn would_redrive(&self, delivery: DeliveryId) -> AdminOutcome {
        let letter = self.letter(delivery);
        letter.map_or(AdminOutcome::Gone, |at| self.would_be_redriven(at))
    }

    /// Throws a dead letter away.
    pub fn discard_letter(&mut self, now: Now, delivery: DeliveryId) -> AdminOutcome {
        self.now = now;
        let Some(at) = self.letter(delivery) else { return AdminOutcome::Gone };
        self.throw_away(at);
        self.finish();
        AdminOutcome::Done
    }

    fn letter(&self, delivery: DeliveryId) -> Option<DeliveryRef> {
        let slot = self.tasks.find(delivery.task)?;
        let at = DeliveryRef { slot, index: delivery.replica.get() };
        self.tasks.get(at).filter(|delivery| delivery.state.is_dead_letter())?;
        Some(at)
    }

    /// Ends a delivery that nobody wants any more, and supersedes what waits of older ones.
    pub(super) fn throw_away(&mut self, at: DeliveryRef) {
        if self.tasks[at].state.is_pending() {
            self.supersede_letter(at);
        }
        match self.tasks[at].state {
            State::Settled(_) => {}
            State::Dead { .. } => self.settle(at, Settlement::Discarded),
            State::InFlight { priority, probe, discard: false } => {
                self.change(at, State::InFlight { priority, probe, discard: true });
                // It may be applied, and after a restart nobody waits for its answer.
                self.note_ambiguous(at, self.now.wall);
                self.touch(at.slot);
            }
            State::InFlight { .. } => {}
            State::Blocked
            | State::Ready(_)
            | State::Waiting { .. }
            | State::Parked { .. }
            | State::Deferred { .. }
            | State::Resend { .. } => {
                self.unlink(at);
                self.settle(at, Settlement::Discarded);
                let (key, number) = (self.tasks[at.slot].key, self.tasks[at].lane);
                if let Some(chain) = self.lanes[number].chains.get(&key).copied() {
                    self.unblock(self.tasks.delivery_on(chain.head, number));
                }
            }
        }
    }

    /// Takes a delivery out of its chain, wherever it stands in it, with all before it that are not
    /// on the wire. What is behind it is not walked through: a chain that is thrown away from its
    /// head on costs a step for each delivery.
    fn unlink(&mut self, at: DeliveryRef) {
        let (key, number) = (self.tasks[at.slot].key, self.tasks[at].lane);
        let Some(Chain { head, tail }) = self.lanes[number].chains.remove(&key) else { return };
        let (mut kept, mut cursor) = (None, Some(head));
        while let Some(this) = cursor.filter(|&this| this != at.slot) {
            self.step();
            let older = self.tasks.delivery_on(this, number);
            cursor = self.tasks[older].next.take();
            if matches!(self.tasks[older].state, State::InFlight { .. }) {
                self.append(number, &mut kept, this);
            } else {
                self.supersede(older, at.slot);
            }
        }
        if let Some(behind) = self.tasks[at].next.take() {
            self.append(number, &mut kept, behind);
            kept = kept.map(|chain| Chain { tail, ..chain });
        }
        if let Some(chain) = kept {
            self.lanes[number].chains.insert(key, chain);
        }
    }
}
