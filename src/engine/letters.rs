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
//! What the full retry queue had no room for comes back after them, at the same rate.

use std::ops::Bound::{Excluded, Unbounded};
use std::sync::Arc;
use std::time::Duration;

use crate::engine::lane::Chain;
use crate::engine::tasks::{Rank, Settlement, Slot, State};
use crate::engine::{Action, Change, Engine, Moment};
use crate::task::{Cause, Progress, TaskId, Timestamp};

/// How often a redrive goes on; at each step it takes as many as the rate allows.
const STEP: Duration = Duration::from_millis(5);

/// What was found on disk is redriven so long after the start: the restart may be part of the
/// outage, and what was accepted since goes first.
const AFTER_RESTART: Duration = Duration::from_secs(1);

/// How often a lane with an open breaker is looked at: when all that it has are dead letters, one
/// of them is the probe.
const OPEN: Duration = Duration::from_secs(1);

impl Engine {
    /// Makes the head of a chain a dead letter; the next of its key comes forward.
    pub(super) fn bury_head(&mut self, slot: Slot, leg: usize, cause: Cause) {
        self.supersede_letter(slot, leg);
        self.doubt_restored(slot, leg);
        let since = self.tasks[slot].legs[leg].since();
        let until = self.expiry(since);
        self.change(slot, leg, State::Dead { cause, until });
        let lane = self.tasks[slot].legs[leg].lane;
        for books in [&mut self.lanes[lane].books, &mut self.totals] {
            *(if cause == Cause::Rejected { &mut books.rejected } else { &mut books.gave_up }) += 1;
        }
        self.fail_quorum(slot, leg);
        self.tell_buried(slot, leg);
        self.touch(slot);
        self.leave_chain(slot, leg);
        if self.lanes[lane].breaker.is_open() {
            self.ring(lane, self.now.moment.after(OPEN));
        }
    }

    /// Takes on a dead letter found on disk.
    pub(super) fn restore_letter(&mut self, slot: Slot, leg: usize, cause: Cause) {
        // Two of one key are there only if the newer one's death was written and the older one's
        // end was not; the order of the settlements rules that out, and this costs nothing.
        self.supersede_letter(slot, leg);
        let until = self.expiry(self.tasks[slot].legs[leg].since());
        self.change(slot, leg, State::Dead { cause, until });
        let lane = self.tasks[slot].legs[leg].lane;
        if cause == Cause::GaveUp && self.settings.hinted_handoff {
            self.lanes[lane].redrive = Some(TaskId(0));
            self.ring(lane, self.now.moment.after(AFTER_RESTART));
        }
    }

    /// When a dead letter from `since` is discarded. Counted by the monotonic clock from now on, so
    /// that a step of the wall clock discards nothing.
    fn expiry(&self, since: Timestamp) -> Moment {
        let age = self.now.wall.saturating_since(since);
        match self.settings.dead_letter_retention {
            Some(retention) => self.now.moment.after(retention.saturating_sub(age)),
            None => Moment(u64::MAX),
        }
    }

    /// A newer write of the key has been delivered, or has died: the older dead letter is settled.
    pub(super) fn supersede_letter(&mut self, slot: Slot, leg: usize) {
        let lane = self.tasks[slot].legs[leg].lane;
        let older = self.lanes[lane].letters.get(&self.tasks[slot].key).copied();
        if let Some(older) = older.filter(|&older| older != slot) {
            let leg = self.tasks[older].leg_on(lane);
            self.settle(older, leg, Settlement::Superseded);
        }
    }

    /// Throws away a dead letter whose time is over.
    pub(super) fn discard(&mut self, slot: Slot, leg: usize) {
        let delivery = self.delivery(slot, leg);
        let node = self.lanes[self.tasks[slot].legs[leg].lane].node.clone();
        self.settle(slot, leg, Settlement::Discarded);
        self.actions.push_back(Action::Discarded { delivery, node });
    }

    /// Tells of a new dead letter.
    pub(super) fn tell_buried(&mut self, slot: Slot, leg: usize) {
        if let Progress::Dead(letter) = self.tasks[slot].legs[leg].progress() {
            let delivery = self.delivery(slot, leg);
            let lane = self.tasks[slot].legs[leg].lane;
            self.tell_change(slot, lane, Change::Dead, Some(Arc::clone(&letter.error)));
            let node = self.lanes[lane].node.clone();
            self.actions.push_back(Action::Buried { delivery, node, letter });
        }
    }

    /// The replica is back: its dead letters are redriven, from the oldest on.
    pub(super) fn hand_off(&mut self, number: u32) {
        if self.settings.hinted_handoff {
            self.lanes[number].redrive = Some(TaskId(0));
            self.ring(number, self.now.moment);
        }
    }

    /// The replica is still down, or down again: a redriven letter is a letter as before.
    pub(super) fn lay_back(&mut self, slot: Slot, leg: usize) {
        let until = self.expiry(self.tasks[slot].legs[leg].since());
        self.change(slot, leg, State::Dead { cause: Cause::GaveUp, until });
        self.touch(slot);
        self.leave_chain(slot, leg);
    }

    /// Has a lane looked at, at `at` or before.
    pub(super) fn ring(&mut self, number: u32, at: Moment) {
        let lane = &mut self.lanes[number];
        if lane.alarm.is_some_and(|alarm| alarm <= at) {
            return;
        }
        if let Some(later) = lane.alarm.replace(at) {
            self.alarms.remove(&(later, number));
        }
        self.alarms.insert((at, number));
    }

    /// What is due for a lane: the next dead letters, or one to see whether the replica is back
    /// while there is nothing else to see it by.
    pub(super) fn alarm(&mut self, at: Moment, number: u32) {
        // A lane that has made way for another may have left one behind.
        if self.lanes.get(number).is_none_or(|lane| lane.alarm != Some(at)) {
            return;
        }
        self.lanes[number].alarm = None;
        self.mark(number);
        let now = self.now.moment;
        if self.lanes[number].forgetting.is_some() {
            return self.forget_on(number);
        }
        let lane = &self.lanes[number];
        if lane.paused.is_some() {
            return; // Looked at again when it is resumed.
        }
        if lane.breaker.is_open() {
            // The next one goes out only when this one has failed: the probe is in flight then.
            match lane.breaker.probe_at() {
                Some(at) if at > now => self.ring(number, at),
                Some(_) if lane.chains.is_empty() => {
                    self.redrive(number, 1);
                }
                Some(_) | None => {}
            }
            if !self.lanes[number].is_empty() {
                self.ring(number, now.after(OPEN));
            }
        } else if lane.redrive.is_some() {
            let rate = self.settings.redrive_rate.get();
            let step = STEP.max(Duration::from_secs(1) / rate);
            let micros = u64::try_from(step.as_micros()).unwrap_or(u64::MAX);
            let most = u64::from(rate).saturating_mul(micros) / 1_000_000;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            if self.redrive(number, most.max(1)) {
                self.ring(number, now.after(step));
            } else {
                self.lanes[number].redrive = None;
            }
        }
    }

    /// Makes the next dead letters ready again, as long as fewer than `most` wait for their turn.
    /// Says whether there are more.
    fn redrive(&mut self, number: u32, most: usize) -> bool {
        let after = self.lanes[number].redrive.unwrap_or(TaskId(0));
        let mut last = after;
        while self.lanes[number].ready(Rank::Redrive).len() < most && self.may_return(number) {
            let lane = &self.lanes[number];
            let Some((&id, &slot)) = lane.dead.range((Excluded(last), Unbounded)).next() else {
                return false;
            };
            last = id;
            let leg = self.tasks[slot].leg_on(number);
            let gave_up = matches!(
                self.tasks[slot].legs[leg].state,
                State::Dead { cause: Cause::GaveUp, .. }
            );
            // Behind a newer write of its key it is left to that.
            let key = self.tasks[slot].key;
            if gave_up && !lane.chains.contains_key(&key) {
                self.bring_back(slot, leg);
                self.count_return(number);
            }
        }
        if let Some(redriven) = &mut self.lanes[number].redrive {
            *redriven = last;
        }
        true
    }

    /// Makes a dead letter ready again; no chain of its key may be there.
    pub(super) fn bring_back(&mut self, slot: Slot, leg: usize) {
        let (key, number) = (self.tasks[slot].key, self.tasks[slot].legs[leg].lane);
        self.change(slot, leg, State::Ready(Rank::Redrive));
        self.lanes[number].chains.insert(key, Chain::of(slot));
        for books in [&mut self.lanes[number].books, &mut self.totals] {
            books.redriven += 1;
        }
        self.tell_change(slot, number, Change::Redriven, None);
    }

    /// Whether `--redrive-rate` lets another delivery back now, a dead letter or a parked one. If
    /// not, the lane is looked at when it does.
    pub(super) fn may_return(&mut self, number: u32) -> bool {
        let (now, at) = (self.now.moment, self.lanes[number].next_return);
        if at > now {
            self.ring(number, at.max(now.after(STEP)));
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
    pub(super) fn keep(&mut self, slot: Slot) {
        self.charge(slot, true);
    }

    /// A task of which more than dead letters is left counts as waiting again.
    pub(super) fn unkeep(&mut self, slot: Slot) {
        self.charge(slot, false);
        self.touch(slot);
    }

    fn charge(&mut self, slot: Slot, kept: bool) {
        let entry = &mut self.tasks[slot];
        if std::mem::replace(&mut entry.kept, kept) == kept {
            return;
        }
        let (from, to) = match kept {
            true => (&mut self.levels.bytes, &mut self.levels.dead_letter_bytes),
            false => (&mut self.levels.dead_letter_bytes, &mut self.levels.bytes),
        };
        *from -= entry.bytes;
        *to += entry.bytes;
        for leg in entry.legs.iter().filter(|leg| leg.state.is_dead_letter()) {
            let bytes = &mut self.lanes[leg.lane].kept_bytes;
            if kept { *bytes += entry.bytes } else { *bytes -= entry.bytes }
        }
    }
}
