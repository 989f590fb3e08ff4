//! Operator actions: pause, limit, probe, forget, rename, redrive, discard.
//!
//! None of them breaks the order of a key. A discard also supersedes pending older writes of the
//! key: sending them later would restore an older value. A redriven letter is the newest write that
//! the replica does not have. A renamed lane stays the same lane, and nothing was ever sent to the
//! new name.

use std::sync::Arc;

use crate::engine::breaker::Gate;
use crate::engine::lane::limits::LaneLimits;
use crate::engine::lane::{Chain, LanePause};
use crate::engine::table::{DeliveryRef, SettledAs, Slot, Stage};
use crate::engine::{
    AdminOutcome, Engine, EngineAction, ForgetCounts, Now, ProbeState, RenameError,
};
use crate::task::{DeliveryId, Node, ReplicaLimits, ReplicaPause, TaskChange, TaskId};

/// Maximum deliveries discarded and tasks scanned per step of a forget: a few milliseconds, as
/// everything else waits.
const STEP: usize = 1024;
const LOOKS: usize = 16 * STEP;

impl Engine {
    /// Enables [`EngineAction::Changed`].
    pub fn watch(&mut self, watched: bool) {
        self.watched = watched;
    }

    pub fn is_watched(&self) -> bool {
        self.watched
    }

    /// Enables [`EngineAction::Ended`].
    pub fn report_ends(&mut self, enabled: bool) {
        self.reports_ends = enabled;
    }

    pub(super) fn emit_change(
        &mut self,
        slot: Slot,
        lane: u32,
        change: TaskChange,
        error: Option<Arc<str>>,
    ) {
        if self.watched {
            let (task, node) = (self.tasks[slot].id, self.lanes[lane].node.clone());
            self.actions.push_back(EngineAction::Changed { task, node, change, error });
        }
    }

    /// Pauses a replica, or resumes it with `None`. Attempts in flight continue. Waiting retries
    /// are parked, so that their places are free for other replicas, and return on resume.
    ///
    /// The pause may come from a record that survived a restart. Opens the lane if needed.
    pub fn pause(&mut self, now: Now, node: &Node, pause: Option<ReplicaPause>) {
        self.now = now;
        let number = match pause {
            Some(_) => Some(self.lane_for(node, None)),
            None => self.lanes.find(node),
        };
        if let Some(number) = number {
            let known = self.lanes[number].paused;
            self.lanes[number].paused = pause.map(|pause| match known {
                Some(known) if known.pause == pause => known,
                _ => LanePause {
                    pause,
                    ends: pause.left(now.wall).map(|left| now.moment.after(left)),
                },
            });
            self.refill = true;
            self.mark_dirty(number);
            self.schedule_wakeup(number, now.moment);
            if pause.is_some() {
                self.lanes[number].forget.used_again();
                self.park_retries(number);
                self.answer_unreachable(number);
            }
        }
        self.finish();
    }

    /// Sets the limits of a replica. Opens the lane if there are any.
    pub fn limit(&mut self, now: Now, node: &Node, limits: ReplicaLimits) {
        self.now = now;
        let number = match limits.is_none() {
            false => Some(self.lane_for(node, None)),
            true => self.lanes.find(node),
        };
        if let Some(number) = number
            && self.lanes[number].set_limits() != limits
        {
            let lane = &mut self.lanes[number];
            lane.limits = LaneLimits::new(limits);
            if !limits.is_none() {
                lane.forget.used_again();
            }
            self.mark_dirty(number);
            self.schedule_wakeup(number, now.moment);
        }
        self.finish();
    }

    /// Ends a pause whose time is over, or schedules that. Returns whether the replica is paused.
    pub(super) fn continue_pause(&mut self, number: u32) -> bool {
        let Some(LanePause { pause, ends }) = self.lanes[number].paused else { return false };
        if let Some(ends) = ends {
            if ends <= self.now.moment {
                self.lanes[number].paused = None;
                let node = self.lanes[number].node.clone();
                self.actions.push_back(EngineAction::PauseEnded { node, pause });
                return false;
            }
            self.schedule_wakeup(number, ends);
        }
        true
    }

    /// Sends the next probe of an open breaker now, if any delivery can be it. Otherwise the next
    /// write is. `None` for an unknown replica.
    pub fn probe(&mut self, now: Now, node: &Node) -> Option<ProbeState> {
        self.now = now;
        let number = self.lanes.find(node)?;
        self.lanes[number].health.probe_now(now);
        self.mark_dirty(number);
        self.schedule_wakeup(number, now.moment);
        self.tick(now);
        // The tick sends what is due. Otherwise the operator's request ends a wait.
        let lane = &self.lanes[number];
        if lane.health.breaker().probe_at().is_some() && !lane.is_suspended() {
            if !self.probe_by_retry(number) && !self.redrive_as_probe(number) {
                self.probe_by_deferred(number);
            }
            self.finish();
        }
        let breaker = self.lanes[number].health.breaker();
        Some(ProbeState { breaker: breaker.view(), probing: breaker.is_probing() })
    }

    /// Discards everything for a replica, in steps. Nothing is sent to it meanwhile. `None` for an
    /// unknown replica.
    pub fn forget(&mut self, now: Now, node: &Node) -> Option<ForgetCounts> {
        self.now = now;
        let number = self.lanes.find(node)?;
        let newest = self.tasks.newest().unwrap_or(TaskId(0));
        let lane = &mut self.lanes[number];
        lane.forget.start(newest, self.reservations);
        let in_flight = u64::from(lane.in_flight.total());
        let unsettled = lane.counters.pending + lane.counters.dead;
        self.schedule_wakeup(number, now.moment);
        self.answer_unreachable(number);
        self.finish();
        Some(ForgetCounts { discarded: unsettled.saturating_sub(in_flight), in_flight })
    }

    pub fn is_forgetting(&self, node: &Node) -> bool {
        let lane = self.lanes.find(node).and_then(|number| self.lanes.get(number));
        lane.is_some_and(|lane| lane.forget.is_running())
    }

    pub(super) fn continue_forgetting(&mut self, number: u32) {
        let Some((after, up_to)) = self.lanes[number].forget.range() else { return };
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
                self.discard(at);
                thrown += 1;
            }
        };
        let lane = &mut self.lanes[number];
        if more {
            lane.forget.advance(last);
        } else {
            lane.forget.finish();
            lane.health.forget();
            self.mark_dirty(number);
        }
        self.schedule_wakeup(number, self.now.moment);
    }

    /// Changes the address of a replica. Its backlog and dead letters move along. An
    /// error changes nothing.
    pub fn rename(&mut self, now: Now, node: &Node, to: &Node) -> Result<(), RenameError> {
        self.now = now;
        let found = self.lanes.find(node).filter(|&number| !self.lanes[number].is_gone());
        let number = found.ok_or(RenameError::Unknown)?;
        if let Some(used) = self.lanes.find(to) {
            let lane = &self.lanes[used];
            if !(lane.is_gone() && lane.is_empty()) {
                return Err(RenameError::Used);
            }
            self.remove_lane(used);
        }
        self.move_lane(now, number, to);
        Ok(())
    }

    /// [`Self::rename`], as another process has done it. The record of the new address may have come
    /// first, or a write that names it: a lane without deliveries gives way to the other one, and the
    /// pause and the limits of the new address hold.
    pub fn follow_rename(&mut self, now: Now, node: &Node, to: &Node) -> Result<(), RenameError> {
        self.now = now;
        let number = self.lanes.find(node).ok_or(RenameError::Unknown)?;
        if let Some(used) = self.lanes.find(to).filter(|&used| used != number) {
            let lane = &self.lanes[used];
            if !lane.has_nothing() {
                if !self.lanes[number].has_nothing() {
                    return Err(RenameError::Used);
                }
                self.remove_lane(number);
                return Ok(());
            }
            let (paused, limits) = (lane.paused, lane.set_limits());
            self.remove_lane(used);
            self.lanes[number].paused = paused;
            self.lanes[number].limits = LaneLimits::new(limits);
        }
        self.move_lane(now, number, to);
        Ok(())
    }

    fn move_lane(&mut self, now: Now, number: u32, to: &Node) {
        self.lanes.rename(number, to.clone());
        self.lanes[number].recorded = false;
        self.barriers.rename(number, to);
        self.lanes[number].health.address_changed(now);
        self.lanes[number].refusals.renewed(now.moment);
        self.start_handoff(number);
        self.mark_dirty(number);
        self.finish();
    }

    /// Discards the unsettled deliveries of a task. Those in flight are not retried. Returns false
    /// if nothing is left of the task.
    pub fn discard_task(&mut self, now: Now, id: TaskId) -> bool {
        self.now = now;
        let Some(slot) = self.tasks.find(id) else { return false };
        for index in 0..self.tasks[slot].deliveries.len() {
            self.discard(DeliveryRef { slot, index });
        }
        self.finish();
        true
    }

    /// If the letter is redriven, [`EngineAction::RedriveEnded`] follows for the operation.
    pub fn redrive_letter(
        &mut self,
        now: Now,
        delivery: DeliveryId,
        operation: Option<u32>,
    ) -> AdminOutcome {
        self.now = now;
        let Some(at) = self.letter(delivery) else { return AdminOutcome::Gone };
        let outcome = self.redrive_outcome(at);
        if outcome == AdminOutcome::Done {
            self.tasks[at].failures_mut(now.wall).operation = operation;
        }
        match self.tasks[at].stage {
            _ if outcome != AdminOutcome::Done => {}
            Stage::Dead { .. } => self.redrive_one(at),
            _ => self.unpark(at, now.moment),
        }
        self.finish();
        outcome
    }

    fn redrive_outcome(&self, at: DeliveryRef) -> AdminOutcome {
        let entry = &self.tasks[at.slot];
        let lane = &self.lanes[self.tasks[at].lane];
        // It would become a dead letter again at once.
        let blocked = || lane.health.breaker().gate(self.now.moment, true) == Gate::Blocked;
        match self.tasks[at].stage {
            Stage::Dead { .. } if lane.chains.contains_key(&entry.key) => AdminOutcome::LeftOut,
            // It would wait while the replica is paused and take the room of new writes.
            _ if lane.is_suspended() => AdminOutcome::HeldBack,
            Stage::Dead { .. } if blocked() => AdminOutcome::HeldBack,
            Stage::Dead { .. } => AdminOutcome::Done,
            _ if self.retry_has_room(self.tasks[at].lane, self.tasks[at.slot].client) => {
                AdminOutcome::Done
            }
            _ => AdminOutcome::HeldBack,
        }
    }

    /// The outcome that [`Self::redrive_letter`] would have.
    pub fn would_redrive(&self, delivery: DeliveryId) -> AdminOutcome {
        let letter = self.letter(delivery);
        letter.map_or(AdminOutcome::Gone, |at| self.redrive_outcome(at))
    }

    pub fn discard_letter(&mut self, now: Now, delivery: DeliveryId) -> AdminOutcome {
        self.now = now;
        let Some(at) = self.letter(delivery) else { return AdminOutcome::Gone };
        self.discard(at);
        self.finish();
        AdminOutcome::Done
    }

    fn letter(&self, delivery: DeliveryId) -> Option<DeliveryRef> {
        let slot = self.tasks.find(delivery.task)?;
        let at = DeliveryRef { slot, index: delivery.replica.get() };
        self.tasks.get(at).filter(|delivery| delivery.stage.is_dead_letter())?;
        Some(at)
    }

    /// Discards a delivery, and supersedes the pending older ones of its key.
    pub(super) fn discard(&mut self, at: DeliveryRef) {
        if self.tasks[at].stage.is_pending() {
            self.supersede_letter(at);
        }
        match self.tasks[at].stage {
            Stage::Settled(_) => {}
            Stage::Dead { .. } => self.settle(at, SettledAs::Discarded),
            Stage::InFlight { priority, probe, discard: false } => {
                self.change(at, Stage::InFlight { priority, probe, discard: true });
                // The attempt may be applied, and nothing tracks it after a restart.
                self.note_ambiguous(at, self.now.wall);
                self.touch(at.slot);
            }
            Stage::InFlight { .. } => {}
            Stage::Blocked
            | Stage::Ready(_)
            | Stage::Waiting { .. }
            | Stage::Parked { .. }
            | Stage::Deferred { .. }
            | Stage::Resend { .. } => {
                self.unlink(at);
                self.settle(at, SettledAs::Discarded);
                let (key, number) = (self.tasks[at.slot].key, self.tasks[at].lane);
                if let Some(chain) = self.lanes[number].chains.get(&key).copied() {
                    self.unblock(self.tasks.delivery_on(chain.head, number));
                }
            }
        }
    }

    /// Removes a delivery from its chain, with all older ones that are not in flight. Newer ones
    /// are not walked, so discarding a chain from its head costs one step per delivery.
    fn unlink(&mut self, at: DeliveryRef) {
        let (key, number) = (self.tasks[at.slot].key, self.tasks[at].lane);
        let Some(Chain { head, tail }) = self.lanes[number].chains.remove(&key) else { return };
        let (mut remaining, mut cursor) = (None, Some(head));
        while let Some(this) = cursor.filter(|&this| this != at.slot) {
            self.step();
            let older = self.tasks.delivery_on(this, number);
            cursor = self.tasks[older].next.take();
            if matches!(self.tasks[older].stage, Stage::InFlight { .. }) {
                self.append(number, &mut remaining, this);
            } else {
                self.supersede(older, at.slot);
            }
        }
        if let Some(behind) = self.tasks[at].next.take() {
            self.append(number, &mut remaining, behind);
            remaining = remaining.map(|chain| Chain { tail, ..chain });
        }
        if let Some(chain) = remaining {
            self.lanes[number].chains.insert(key, chain);
        }
    }
}
