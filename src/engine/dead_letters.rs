//! Dead letters: what was rejected or given up, and how it gets out of there.
//!
//! A dead letter is out of the chain of its key, so that newer writes pass it; and as soon as one
//! of those is delivered, or dies itself, the older letter is superseded. So there is at most one
//! for each key and replica, it is the newest write that the replica does not have, and nothing
//! newer has ever been delivered. That is why it can be sent again without harm, as long as
//! nothing newer is on its way: then it is left to that.
//!
//! **Hinted handoff**: when a replica is back, its dead letters that were given up are redriven,
//! oldest first, at a limited rate, behind everything else; once for each time that it comes back.
//! What the retry queue had no place for comes back after them, at the same rate.

use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::lane::{Chain, Round};
use crate::engine::table::{DeliveryRef, Priority, Settlement, Slot, State};
use crate::engine::{Action, BreakerState, Change, Engine, Moment};
use crate::task::{Cause, Progress, TaskId, Timestamp, Verdict};

/// How often a redrive goes on; at each step it takes as many as the rate allows.
const STEP: Duration = Duration::from_millis(5);

/// What was found on disk is redriven so long after the start: the restart may be part of the
/// outage, and what was accepted since goes first.
const AFTER_RESTART: Duration = Duration::from_secs(1);

/// How often a lane is looked at whose breaker is not closed: when all that it has are dead letters,
/// one of them is the probe; when there is nothing left, it is closed.
const OPEN: Duration = Duration::from_secs(1);

/// Dead letters that one look passes over at the most, to find one that may be sent again: 100,000
/// rejected ones would hold up everything else.
const LOOKS: usize = 4096;

/// A letter that has failed so often while others did not is not redriven by itself any more.
const ALONE: u8 = 3;

impl Engine {
    /// Makes the head of a chain a dead letter; the next of its key comes forward.
    pub(super) fn bury_head(&mut self, at: DeliveryRef, cause: Cause) {
        self.supersede_letter(at);
        self.note_ambiguous_if_restored(at);
        let since = self.tasks[at].since();
        let until = self.expiry(since);
        self.change(at, State::Dead { cause, until });
        let lane = self.tasks[at].lane;
        for counters in [&mut self.lanes[lane].counters, &mut self.totals] {
            *(if cause == Cause::Rejected {
                &mut counters.rejected
            } else {
                &mut counters.gave_up
            }) += 1;
        }
        self.fail_quorum(at);
        self.tell_buried(at);
        self.touch(at.slot);
        self.leave_chain(at);
        if cause == Cause::GaveUp {
            self.suspect_replica(at);
        }
        if self.lanes[lane].breaker.is_open() {
            self.schedule_wakeup(lane, self.now.moment.after(OPEN));
        }
    }

    /// A delivery was given up. Were that all, on a replica that is down and has nothing else to do,
    /// nobody would notice when it is back. One that was a letter before has been through this.
    fn suspect_replica(&mut self, at: DeliveryRef) {
        let delivery = &self.tasks[at];
        let (number, Some(failures)) = (delivery.lane, &delivery.failures) else { return };
        if self.settings.breaker_failures == 0 || failures.letter.is_some() {
            return;
        }
        let error = Arc::clone(&failures.error);
        let (count, jitter) = (failures.count, self.rng.f64());
        let span = self.schedule.span(count);
        let breaker = &mut self.lanes[number].breaker;
        if breaker.given_up(self.now.moment, count, span, jitter) {
            self.breaker_opened(number, &error);
        }
    }

    /// An attempt of one that was redriven has ended: whether the replica answers others and not it.
    pub(super) fn judge_letter(&mut self, at: DeliveryRef, verdict: &Verdict) {
        let delivery = &mut self.tasks[at];
        let answers = self.lanes[delivery.lane].breaker.answers();
        if let (
            Verdict::Retry { .. },
            State::InFlight { priority: Priority::Redrive, probe: false, .. },
        ) = (verdict, delivery.state)
            && answers
            && let Some(failures) = &mut delivery.failures
        {
            failures.alone = failures.alone.saturating_add(1);
        }
    }

    /// Takes on a dead letter found on disk.
    pub(super) fn restore_letter(&mut self, at: DeliveryRef, cause: Cause) {
        // Two of one key are there only if the newer one's death was written and the older one's
        // end was not; the order of the settlements rules that out, and this costs nothing.
        self.supersede_letter(at);
        let until = self.expiry(self.tasks[at].since());
        self.change(at, State::Dead { cause, until });
        let lane = self.tasks[at].lane;
        if cause == Cause::GaveUp && self.settings.hinted_handoff {
            self.lanes[lane].redrive = Some(Round { after: TaskId(0), until: None });
            self.schedule_wakeup(lane, self.now.moment.after(AFTER_RESTART));
        }
    }

    /// When a dead letter from `since` is discarded. Counted by the monotonic clock from now on, so
    /// that a step of the wall clock discards nothing.
    fn expiry(&self, since: Timestamp) -> Moment {
        let age = self.uptime.age(self.now.wall, since);
        match self.settings.dead_letter_retention {
            Some(retention) => self.now.moment.after(retention.saturating_sub(age)),
            None => Moment(u64::MAX),
        }
    }

    /// A newer write of the key has been delivered, or has died: the older dead letter is settled.
    pub(super) fn supersede_letter(&mut self, at: DeliveryRef) {
        let lane = self.tasks[at].lane;
        let older = self.lanes[lane].letters.get(&self.tasks[at.slot].key).copied();
        if let Some(older) = older.filter(|&older| older != at.slot) {
            let older = self.tasks.delivery_on(older, lane);
            self.supersede(older, at.slot);
        }
    }

    /// Throws away a dead letter whose time is over.
    pub(super) fn discard(&mut self, at: DeliveryRef) {
        let delivery = self.delivery_id(at);
        let node = self.lanes[self.tasks[at].lane].node.clone();
        self.settle(at, Settlement::Discarded);
        self.actions.push_back(Action::Discarded { delivery, node });
    }

    /// Tells of a new dead letter.
    pub(super) fn tell_buried(&mut self, at: DeliveryRef) {
        if let Progress::Dead(letter) = self.tasks[at].progress() {
            let delivery = self.delivery_id(at);
            let lane = self.tasks[at].lane;
            self.tell_change(at.slot, lane, Change::Dead, Some(Arc::clone(&letter.error)));
            let node = self.lanes[lane].node.clone();
            self.actions.push_back(Action::Buried { delivery, node, letter });
        }
    }

    /// The replica is back: its dead letters are redriven, from the oldest on, or from where that
    /// was broken off the last time.
    pub(super) fn hand_off(&mut self, number: u32) {
        if self.settings.hinted_handoff {
            let after = self.lanes[number].broken_off;
            self.lanes[number].redrive = Some(Round { after, until: None });
        }
        self.schedule_wakeup(number, self.now.moment);
    }

    /// The replica is still down, or down again: a redriven letter is a letter as before.
    pub(super) fn return_to_dead(&mut self, at: DeliveryRef) {
        let this = &mut self.tasks[at];
        let tried = this.state != State::Ready(Priority::Redrive);
        if let Some(failures) = &mut this.failures
            && let Some((since, before)) = failures.letter
        {
            // If it was not sent, its failures are still those of before.
            failures.count = if tried { before + failures.count } else { before };
            failures.since = since;
        }
        let until = self.expiry(self.tasks[at].since());
        self.change(at, State::Dead { cause: Cause::GaveUp, until });
        self.touch(at.slot);
        self.leave_chain(at);
    }

    /// Has a lane looked at, at `at` or before.
    pub(super) fn schedule_wakeup(&mut self, number: u32, at: Moment) {
        let lane = &mut self.lanes[number];
        if lane.wakeup.is_some_and(|wakeup| wakeup <= at) {
            return;
        }
        if let Some(later) = lane.wakeup.replace(at) {
            self.wakeups.remove(&(later, number));
        }
        self.wakeups.insert((at, number));
    }

    /// What is due for a lane: the next dead letters, or one to see whether the replica is back
    /// while there is nothing else to see it by.
    pub(super) fn on_wakeup(&mut self, at: Moment, number: u32) {
        // A lane that has made way for another may have left one behind.
        if self.lanes.get(number).is_none_or(|lane| lane.wakeup != Some(at)) {
            return;
        }
        self.lanes[number].wakeup = None;
        self.mark_dirty(number);
        self.refill = true;
        self.answer_unreachable(number);
        let now = self.now.moment;
        if self.lanes[number].forgetting.is_some() {
            return self.forget_on(number);
        }
        let lane = &self.lanes[number];
        if lane.paused.is_some() {
            return self.park_retries(number); // Looked at again when it is resumed.
        }
        if lane.breaker.is_open() {
            // The next one goes out only when this one has failed: the probe is in flight then.
            match lane.breaker.probe_at() {
                Some(at) if at > now => self.schedule_wakeup(number, at),
                // Without handoff they wait for an operator, who may ask for a probe.
                Some(_) if lane.has_nothing_due() && self.settings.hinted_handoff => {
                    self.probe_by_letter(number);
                }
                Some(_) | None => {}
            }
            if !self.lanes[number].is_empty() {
                self.schedule_wakeup(number, now.after(OPEN));
            }
        } else if lane.redrive.is_some() {
            let rate = self.settings.redrive_rate.get();
            let step = STEP.max(Duration::from_secs(1) / rate);
            let micros = u64::try_from(step.as_micros()).unwrap_or(u64::MAX);
            let most = u64::from(rate).saturating_mul(micros) / 1_000_000;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            if self.redrive(number, most.max(1)) {
                self.schedule_wakeup(number, now.after(step));
            } else {
                (self.lanes[number].redrive, self.lanes[number].broken_off) = (None, TaskId(0));
            }
        }
        self.close_when_quiet(number);
    }

    /// A replica that came back and has all that waited for it is not on its way back any more, even
    /// if nothing comes up that would show it.
    fn close_when_quiet(&mut self, number: u32) {
        let lane = &mut self.lanes[number];
        if lane.breaker.view() != BreakerState::HalfOpen {
            return;
        }
        if lane.chains.is_empty() && lane.redrive.is_none() {
            lane.breaker.has_all();
            lane.breaker_since = Some(self.now.wall);
        } else {
            self.schedule_wakeup(number, self.now.moment.after(OPEN));
        }
    }

    /// Makes the next dead letters ready again, as long as fewer than `most` wait for their turn.
    /// Says whether there are more.
    fn redrive(&mut self, number: u32, most: usize) -> bool {
        let Some(mut round) = self.lanes[number].redrive else { return false };
        let (mut more, mut looks) = (true, 0);
        while self.lanes[number].ready(Priority::Redrive).len() < most
            && looks < LOOKS
            && self.may_return(number)
        {
            looks += 1;
            let lane = &self.lanes[number];
            let next = lane.dead.range((Excluded(round.after), Unbounded)).next();
            let next = next.filter(|(id, _)| round.until.is_none_or(|until| **id <= until));
            let Some((&id, &slot)) = next else {
                more = round.until.is_none() && lane.broken_off > TaskId(0);
                if !more {
                    break;
                }
                round = Round { after: TaskId(0), until: Some(lane.broken_off) };
                continue;
            };
            round.after = id;
            // Behind a newer write of its key it is left to that.
            let key = self.tasks[slot].key;
            if self.alone(slot, number).is_some_and(|alone| alone < ALONE)
                && !lane.chains.contains_key(&key)
            {
                self.revive(self.tasks.delivery_on(slot, number));
                self.count_return(number);
            }
        }
        self.lanes[number].redrive = Some(round);
        more
    }

    /// Has a dead letter be the probe, each time another: the reason why one fails can be its own.
    /// Says whether there was one.
    pub(super) fn probe_by_letter(&mut self, number: u32) -> bool {
        if !self.may_return(number) {
            return false;
        }
        let lane = &self.lanes[number];
        let later = lane.dead.range((Excluded(lane.probed), Unbounded));
        let earlier = lane.dead.range(..=lane.probed);
        let mut in_turn = later.chain(earlier).map(|(id, slot)| (*id, *slot)).take(LOOKS);
        // Behind a newer write of its key it is left to that.
        let alone = |(_, slot): &(TaskId, Slot)| {
            let free = !lane.chains.contains_key(&self.tasks[*slot].key);
            self.alone(*slot, number).filter(|_| free)
        };
        let good = in_turn.clone().find(|one| alone(one).is_some_and(|alone| alone < ALONE));
        let last = in_turn.clone().last();
        let Some((id, slot)) = good.or_else(|| in_turn.find(|one| alone(one).is_some())) else {
            // The next look begins behind those that are no use.
            self.lanes[number].probed = last.map_or(TaskId(0), |(id, _)| id);
            return false;
        };
        self.lanes[number].probed = id;
        self.revive(self.tasks.delivery_on(slot, number));
        self.count_return(number);
        true
    }

    /// Has a delivery be the probe whose replica asked for a longer wait: an operator wants to know
    /// now.
    pub(super) fn probe_by_deferred(&mut self, number: u32) {
        let heads = self.lanes[number].chains.values().take(LOOKS).map(|chain| chain.head);
        let mut heads = heads.map(|slot| self.tasks.delivery_on(slot, number));
        let deferred = heads.find(|&at| matches!(self.tasks[at].state, State::Deferred { .. }));
        if let Some(at) = deferred
            && self.retry_has_room(number)
        {
            self.unpark(at, self.now.moment);
        }
    }

    /// How often a dead letter failed while others did not; `None` for one that was not given up.
    fn alone(&self, slot: Slot, number: u32) -> Option<u8> {
        let delivery = &self.tasks[self.tasks.delivery_on(slot, number)];
        let gave_up = matches!(delivery.state, State::Dead { cause: Cause::GaveUp, .. });
        gave_up.then(|| delivery.failures.as_ref().map_or(0, |failures| failures.alone))
    }

    /// Makes a dead letter ready again; no chain of its key may be there.
    pub(super) fn revive(&mut self, at: DeliveryRef) {
        let (key, number) = (self.tasks[at.slot].key, self.tasks[at].lane);
        self.change(at, State::Ready(Priority::Redrive));
        if let Some(failures) = &mut self.tasks[at].failures {
            failures.letter = Some((failures.since, failures.count));
        }
        self.lanes[number].chains.insert(key, Chain::of(at.slot));
        for counters in [&mut self.lanes[number].counters, &mut self.totals] {
            counters.redriven += 1;
        }
        self.tell_change(at.slot, number, Change::Redriven, None);
    }

    /// Whether `--redrive-rate` lets another delivery back now, a dead letter or a parked one. If
    /// not, the lane is looked at when it does.
    pub(super) fn may_return(&mut self, number: u32) -> bool {
        let (now, at) = (self.now.moment, self.lanes[number].next_return);
        if at > now {
            self.schedule_wakeup(number, at.max(now.after(STEP)));
        }
        at <= now
    }

    /// One has been let back.
    pub(super) fn count_return(&mut self, number: u32) {
        let interval = Duration::from_secs(1) / self.settings.redrive_rate.get();
        // What a late timer has missed is made up for.
        let since = self.now.moment.before(STEP * 4);
        let next = &mut self.lanes[number].next_return;
        *next = (*next).max(since).after(interval);
    }

    /// Charges a task of which only dead letters are left to their replicas.
    pub(super) fn charge_as_dead(&mut self, slot: Slot) {
        self.charge(slot, true);
    }

    /// A task of which more than dead letters is left counts as waiting again.
    pub(super) fn release_charge(&mut self, slot: Slot) {
        self.charge(slot, false);
        self.touch(slot);
    }

    fn charge(&mut self, slot: Slot, as_dead: bool) {
        let entry = &mut self.tasks[slot];
        if std::mem::replace(&mut entry.charged_as_dead, as_dead) == as_dead {
            return;
        }
        let (from, to) = match as_dead {
            true => (&mut self.levels.bytes, &mut self.levels.dead_letter_bytes),
            false => (&mut self.levels.dead_letter_bytes, &mut self.levels.bytes),
        };
        *from -= entry.bytes;
        *to += entry.bytes;
        for delivery in entry.deliveries.iter().filter(|delivery| delivery.state.is_dead_letter()) {
            let bytes = &mut self.lanes[delivery.lane].dead_letter_bytes;
            if as_dead { *bytes += entry.bytes } else { *bytes -= entry.bytes }
        }
    }
}
