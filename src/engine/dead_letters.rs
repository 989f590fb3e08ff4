//! Dead letters: rejected, refused or given up deliveries, and their redrive.
//!
//! A dead letter is outside the chain of its key, so newer writes pass it. When a newer write is
//! delivered or dies, the older letter is superseded. So there is at most one per key and replica,
//! it is the newest write that the replica does not have, and no newer one was delivered: it is
//! safe to send again while nothing newer of the key is pending.
//!
//! **Hinted handoff**: when a replica is back, its given up letters are redriven once, oldest
//! first, at a limited rate, behind everything else. Parked deliveries follow at the same rate.
//! Refused letters take part; `refused.rs` says when they are redriven besides.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::claims::Pool;
use crate::engine::lane::Chain;
use crate::engine::reserve::signed;
use crate::engine::table::{DeliveryRef, Priority, RedrivenLetter, SettledAs, Slot, Stage};
use crate::engine::{Engine, EngineAction, Moment};
use crate::task::{BreakerState, Cause, Progress, TaskChange, TaskId, Timestamp, Verdict};

/// The interval of a redrive pass; each step takes what the rate allows.
const STEP: Duration = Duration::from_millis(5);

/// Delay of the redrive after a start: the restart may be part of the outage, and writes accepted
/// since go first.
pub(super) const AFTER_RESTART: Duration = Duration::from_secs(1);

/// The interval at which a lane with an open or half open breaker is checked: a dead letter becomes
/// the probe if nothing else is due, and a ramp ends if nothing is left.
const OPEN: Duration = Duration::from_secs(1);

/// Maximum dead letters per scan for one to redrive: 100,000 rejected ones would block all else.
pub(super) const LOOKS: usize = 4096;

/// A letter that failed this often while others succeeded is not redriven automatically.
const MAX_LONE_FAILURES: u8 = 3;

impl Engine {
    pub(super) fn bury_head(&mut self, at: DeliveryRef, cause: Cause) {
        self.supersede_letter(at);
        self.note_ambiguous_if_restored(at);
        let until = self.expiry(cause, self.tasks[at].since());
        self.change(at, Stage::Dead { cause, until });
        let lane = self.tasks[at].lane;
        for counters in self.counters(lane) {
            match cause {
                Cause::Rejected => counters.rejected += 1,
                Cause::Refused => counters.refused += 1,
                Cause::GaveUp | Cause::RetryOverflow => counters.gave_up += 1,
            }
        }
        self.fail_quorum(at);
        self.emit_buried(at);
        self.touch(at.slot);
        self.leave_chain(at);
        if cause == Cause::GaveUp {
            self.suspect_replica(at);
        }
        if self.lanes[lane].health.breaker().is_open() {
            self.schedule_wakeup(lane, self.now.moment.after(OPEN));
        }
    }

    /// Opens the breaker for a given up delivery if the replica may be down. Without it, nothing
    /// would probe a replica that has no other traffic. Redriven letters have been through this
    /// already.
    fn suspect_replica(&mut self, at: DeliveryRef) {
        let delivery = &self.tasks[at];
        let (number, Some(failures)) = (delivery.lane, &delivery.failures) else { return };
        if self.settings.breaker_failures == 0 || failures.letter.is_some() {
            return;
        }
        let error = Arc::clone(&failures.error);
        let (count, jitter) = (failures.count, self.rng.f64());
        let span = self.schedule.span(count);
        if self.lanes[number].health.given_up(self.now, count, span, jitter, &error) {
            self.breaker_opened(number, &error);
        }
    }

    /// Counts the failure of a redriven letter whose replica answers other deliveries.
    pub(super) fn count_lone_failure(&mut self, at: DeliveryRef, verdict: &Verdict) {
        let delivery = &mut self.tasks[at];
        let answers = self.lanes[delivery.lane].health.breaker().last_succeeded();
        if let (
            Verdict::Retry { .. },
            Stage::InFlight { priority: Priority::Redrive, probe: false, .. },
        ) = (verdict, delivery.stage)
            && answers
            && let Some(failures) = &mut delivery.failures
        {
            failures.lone = failures.lone.saturating_add(1);
        }
    }

    pub(super) fn restore_letter(&mut self, at: DeliveryRef, cause: Cause) {
        // The order of settlements rules out two letters of one key; this makes sure.
        self.supersede_letter(at);
        let until = self.expiry(cause, self.tasks[at].since());
        self.change(at, Stage::Dead { cause, until });
        let number = self.tasks[at].lane;
        let lane = &mut self.lanes[number];
        match cause {
            Cause::Refused => self.restored_refused(number),
            // Behind an open breaker a pass could not proceed, and parked deliveries would wait for it.
            Cause::GaveUp if lane.health.breaker().is_open() || lane.refusals.is_refusing() => {}
            Cause::GaveUp if self.settings.hinted_handoff => lane.letters.start_redrive(),
            Cause::GaveUp => {}
            Cause::Rejected | Cause::RetryOverflow => return,
        }
        if self.settings.hinted_handoff {
            self.schedule_wakeup(number, self.now.moment.after(AFTER_RESTART));
        }
    }

    /// When a dead letter from `since` expires. Counted by the monotonic clock from now on, so that
    /// a step of the wall clock expires nothing. A refused one never expires.
    fn expiry(&self, cause: Cause, since: Timestamp) -> Moment {
        let age = self.uptime.age(self.now.wall, since);
        match self.settings.dead_letter_retention.filter(|_| cause != Cause::Refused) {
            Some(retention) => self.now.moment.after(retention.saturating_sub(age)),
            None => Moment(u64::MAX),
        }
    }

    /// Supersedes the older dead letter of the key, as a newer write was delivered or died.
    pub(super) fn supersede_letter(&mut self, at: DeliveryRef) {
        let lane = self.tasks[at].lane;
        let older = self.lanes[lane].letters.of_key(self.tasks[at.slot].key);
        if let Some(older) = older.filter(|&older| older != at.slot) {
            let older = self.tasks.delivery_on(older, lane);
            self.supersede(older, at.slot);
        }
    }

    pub(super) fn expire(&mut self, at: DeliveryRef) {
        let delivery = self.delivery_id(at);
        let node = self.lanes[self.tasks[at].lane].node.clone();
        self.settle(at, SettledAs::Discarded);
        self.actions.push_back(EngineAction::Discarded { delivery, node });
    }

    pub(super) fn emit_buried(&mut self, at: DeliveryRef) {
        if let Progress::Dead(letter) = self.tasks[at].progress() {
            let delivery = self.delivery_id(at);
            let lane = self.tasks[at].lane;
            self.emit_change(at.slot, lane, TaskChange::Dead, Some(Arc::clone(&letter.error)));
            let node = self.lanes[lane].node.clone();
            self.actions.push_back(EngineAction::Buried { delivery, node, letter });
        }
    }

    /// Redrives the dead letters of a replica that is back, from where the last pass was
    /// interrupted.
    pub(super) fn start_handoff(&mut self, number: u32) {
        let (now, lane) = (self.now.moment, &mut self.lanes[number]);
        if self.settings.hinted_handoff {
            if lane.refusals.is_refusing() {
                lane.refusals.try_at(now, now);
            } else {
                lane.letters.start_redrive();
            }
        }
        self.schedule_wakeup(number, now);
    }

    /// The replica is still down or refuses still, or does so again: a redriven letter becomes a
    /// dead letter again, with its cause.
    pub(super) fn return_to_dead(&mut self, at: DeliveryRef) {
        let this = &mut self.tasks[at];
        let tried = this.stage != Stage::Ready(Priority::Redrive);
        if let Some(failures) = &mut this.failures
            && let Some(letter) = failures.letter
        {
            // An unsent letter keeps its old failures.
            let again = if tried { failures.count } else { 0 };
            failures.count = letter.failures.saturating_add(again);
            failures.since = letter.since;
        }
        let cause = self.tasks[at].letter_cause().unwrap_or(Cause::GaveUp);
        let until = self.expiry(cause, self.tasks[at].since());
        self.change(at, Stage::Dead { cause, until });
        self.touch(at.slot);
        self.leave_chain(at);
    }

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

    /// The scheduled check of a lane: continues a redrive, or makes a dead letter the probe.
    pub(super) fn on_wakeup(&mut self, at: Moment, number: u32) {
        // A removed lane may have left a wakeup behind.
        if self.lanes.get(number).is_none_or(|lane| lane.wakeup != Some(at)) {
            return;
        }
        self.lanes[number].wakeup = None;
        self.mark_dirty(number);
        self.refill = true;
        self.answer_unreachable(number);
        let now = self.now.moment;
        if self.lanes[number].forget.is_running() {
            return self.continue_forgetting(number);
        }
        if self.continue_pause(number) {
            return self.park_retries(number); // Looked at again when it is resumed.
        }
        let lane = &self.lanes[number];
        if lane.health.breaker().is_open() {
            // The probe is in flight; its failure schedules the next one.
            match lane.health.breaker().probe_at() {
                Some(at) if at > now => self.schedule_wakeup(number, at),
                // Without handoff, dead letters wait for an operator, who may request a probe.
                Some(_) if lane.has_nothing_due() && self.settings.hinted_handoff => {
                    self.probe_by_letter(number);
                }
                Some(_) | None => {}
            }
            if !self.lanes[number].is_empty() {
                self.schedule_wakeup(number, now.after(OPEN));
            }
        } else if lane.letters.is_redriving() {
            let rate = self.redrive_rate(number).get();
            let step = STEP.max(Duration::from_secs(1) / rate);
            let micros = u64::try_from(step.as_micros()).unwrap_or(u64::MAX);
            let most = u64::from(rate).saturating_mul(micros) / 1_000_000;
            let most = usize::try_from(most).unwrap_or(usize::MAX);
            if self.redrive(number, most.max(1)) {
                self.schedule_wakeup(number, now.after(step));
            } else {
                self.lanes[number].letters.end_redrive();
                self.try_refused(number);
            }
        } else {
            self.try_refused(number);
        }
        self.close_when_quiet(number);
    }

    /// Ends a ramp when nothing is left to send, as no further success would end it.
    fn close_when_quiet(&mut self, number: u32) {
        let lane = &mut self.lanes[number];
        if lane.health.breaker().view() != BreakerState::HalfOpen {
            return;
        }
        if lane.chains.is_empty() && !lane.letters.is_redriving() {
            lane.health.finish_ramp(self.now);
        } else {
            self.schedule_wakeup(number, self.now.moment.after(OPEN));
        }
    }

    /// Redrives the next dead letters while fewer than `most` are ready. Returns whether there are
    /// more.
    fn redrive(&mut self, number: u32, most: usize) -> bool {
        for _ in 0..LOOKS {
            if self.lanes[number].heads.redriven() >= most || !self.may_return(number) {
                break;
            }
            let Some(slot) = self.lanes[number].letters.next_to_redrive() else { return false };
            if self.redrivable(slot, number).is_some_and(|failures| failures < MAX_LONE_FAILURES) {
                self.redrive_one(self.tasks.delivery_on(slot, number));
                self.count_return(number);
            }
        }
        true
    }

    /// Makes a dead letter the probe, as far as the rate allows.
    fn probe_by_letter(&mut self, number: u32) {
        if self.may_return(number) {
            self.redrive_as_probe(number);
        }
    }

    /// Makes a dead letter the probe. Letters take turns, as one may fail for its own reasons.
    /// Returns whether there was one.
    pub(super) fn redrive_as_probe(&mut self, number: u32) -> bool {
        let letters = &self.lanes[number].letters;
        let in_turn = || letters.probe_order().take(LOOKS);
        let failures = |&(_, slot): &(TaskId, Slot)| self.redrivable(slot, number);
        let good = in_turn().find(|it| failures(it).is_some_and(|n| n < MAX_LONE_FAILURES));
        let chosen = good.or_else(|| in_turn().find(|it| failures(it).is_some()));
        // Without one, the next scan starts behind those of this scan.
        let last = chosen.or_else(|| in_turn().last()).map_or(TaskId(0), |(id, _)| id);
        self.lanes[number].letters.probed_up_to(last);
        let Some((_, slot)) = chosen else { return false };
        self.redrive_one(self.tasks.delivery_on(slot, number));
        self.count_return(number);
        true
    }

    /// Makes the oldest delivery that waits for its retry the probe, as an operator asked for one.
    /// Returns whether there was one.
    pub(super) fn probe_by_retry(&mut self, number: u32) -> bool {
        let Some(slot) = self.lanes[number].heads.oldest_waiting() else { return false };
        self.make_ready(self.tasks.delivery_on(slot, number));
        true
    }

    /// Makes a deferred delivery the probe, as an operator asked for one.
    pub(super) fn probe_by_deferred(&mut self, number: u32) {
        let heads = self.lanes[number].chains.values().take(LOOKS).map(|chain| chain.head);
        let mut heads = heads.map(|slot| self.tasks.delivery_on(slot, number));
        let deferred = heads.find(|&at| matches!(self.tasks[at].stage, Stage::Deferred { .. }));
        if let Some(at) = deferred
            && self.retry_has_room(number, self.tasks[at.slot].client)
        {
            self.unpark(at, self.now.moment);
        }
    }

    /// The lone failures of a dead letter that may be redriven: it was given up or refused, and no
    /// newer write of its key is pending, which will settle it.
    pub(super) fn redrivable(&self, slot: Slot, number: u32) -> Option<u8> {
        let delivery = &self.tasks[self.tasks.delivery_on(slot, number)];
        let leads = !self.lanes[number].chains.contains_key(&self.tasks[slot].key);
        match delivery.stage {
            Stage::Dead { cause: Cause::GaveUp, .. } if leads => {
                Some(delivery.failures.as_ref().map_or(0, |failures| failures.lone))
            }
            Stage::Dead { cause: Cause::Refused, .. } if leads => Some(0),
            _ => None,
        }
    }

    /// No chain of its key may exist.
    pub(super) fn redrive_one(&mut self, at: DeliveryRef) {
        let (key, number) = (self.tasks[at.slot].key, self.tasks[at].lane);
        let Stage::Dead { cause, .. } = self.tasks[at].stage else { return };
        self.change(at, Stage::Ready(Priority::Redrive));
        let failures = self.tasks[at].failures_mut(self.now.wall);
        let (since, count) = (failures.since, failures.count);
        failures.letter = Some(RedrivenLetter { cause, since, failures: count });
        self.lanes[number].chains.insert(key, Chain::of(at.slot));
        for counters in self.counters(number) {
            counters.redriven += 1;
        }
        self.emit_change(at.slot, number, TaskChange::Redriven, None);
    }

    /// Whether `--redrive-rate` allows another return now, of a dead letter or a parked delivery.
    /// If not, a wakeup is scheduled.
    pub(super) fn may_return(&mut self, number: u32) -> bool {
        let (now, at) = (self.now.moment, self.lanes[number].places.next_return());
        if at > now {
            self.schedule_wakeup(number, at.max(now.after(STEP)));
        }
        at <= now
    }

    /// The share of this process of what a replica gets back per second.
    fn redrive_rate(&self, number: u32) -> NonZeroU32 {
        let rate = self.lanes[number].set_limits().redrive_rate;
        let share = rate.unwrap_or(self.settings.redrive_rate).get() / self.processes;
        NonZeroU32::new(share).unwrap_or(NonZeroU32::MIN)
    }

    pub(super) fn count_return(&mut self, number: u32) {
        let interval = Duration::from_secs(1) / self.redrive_rate(number).get();
        // Lets a late timer catch up, within limits.
        let since = self.now.moment.before(STEP * 4);
        self.lanes[number].places.count_return(interval, since);
    }

    pub(super) fn charge_as_dead(&mut self, slot: Slot) {
        self.charge(slot, true);
    }

    pub(super) fn release_charge(&mut self, slot: Slot) {
        self.charge(slot, false);
        self.touch(slot);
    }

    fn charge(&mut self, slot: Slot, as_dead: bool) {
        let entry = &mut self.tasks[slot];
        if std::mem::replace(&mut entry.charged_as_dead, as_dead) == as_dead {
            return;
        }
        let (bytes, client) = (entry.bytes, entry.client);
        let (from, to, change) = match as_dead {
            true => (&mut self.levels.bytes, &mut self.levels.dead_letter_bytes, signed(bytes)),
            false => (&mut self.levels.dead_letter_bytes, &mut self.levels.bytes, -signed(bytes)),
        };
        *from -= bytes;
        *to += bytes;
        self.claims.by_client(Pool::Bytes, client, -change);
        self.claims.by_client(Pool::LetterBytes, client, change);
        for delivery in &entry.deliveries {
            let lane = &mut self.lanes[delivery.lane];
            if delivery.stage.is_pending() {
                self.claims.at_host(Pool::Bytes, client, lane.host, -change);
            }
            if delivery.stage.is_dead_letter() {
                self.claims.at_host(Pool::LetterBytes, client, lane.host, change);
                if as_dead { lane.letters.charge(bytes) } else { lane.letters.release(bytes) }
            }
        }
    }
}
