//! Refused dead letters: the replica answers, and accepts no write with the current credentials.
//!
//! They wait until the replica accepts writes again, and never expire. While it refuses, new writes
//! are still sent, and now and then one letter is the probe. The first acknowledged write starts a
//! redrive pass over all letters. A refused one stops the pass; the next pass resumes behind it.
//!
//! A replica may refuse only some writes for good, by their key. Its other writes must not start a
//! pass each, so an acknowledgement counts only until it has proved wrong.

use crate::engine::dead_letters::{AFTER_RESTART, LOOKS};
use crate::engine::table::{DeliveryRef, Slot};
use crate::engine::{Engine, Moment, Now};
use crate::task::Cause;

impl Engine {
    /// The credentials for replicas were reloaded: tries the letters that were refused with the old
    /// ones, one per replica.
    pub fn credentials_renewed(&mut self, now: Now) {
        self.now = now;
        let numbers: Vec<_> = self.lanes.numbers().collect();
        for number in numbers {
            if self.lanes[number].refusals.renewed(now.moment) {
                self.schedule_wakeup(number, now.moment);
            }
        }
        self.finish();
    }

    /// The replica refused a delivery: stops a redrive pass.
    pub(super) fn note_refusal(&mut self, at: DeliveryRef) {
        let number = self.tasks[at].lane;
        let again = self.tasks[at].letter_cause() == Some(Cause::Refused);
        let lane = &mut self.lanes[number];
        lane.letters.interrupt_redrive();
        let due = lane.refusals.refused(self.now.moment, again);
        if self.settings.hinted_handoff {
            self.schedule_wakeup(number, due);
        }
    }

    /// The replica acknowledged a delivery: it accepts writes.
    pub(super) fn note_acceptance(&mut self, at: DeliveryRef, sent_at: Moment) {
        let (number, redriven) = (self.tasks[at].lane, self.tasks[at].is_redriven());
        let due = self.lanes[number].refusals.accepted(self.now.moment, sent_at, redriven);
        if let Some(due) = due.filter(|_| self.settings.hinted_handoff) {
            self.schedule_wakeup(number, due);
        }
    }

    /// A refused letter was found on disk. The credentials may be others since the restart.
    pub(super) fn restored_refused(&mut self, number: u32) {
        let now = self.now.moment;
        let lane = &mut self.lanes[number];
        lane.letters.end_redrive();
        lane.refusals.try_at(now, now.after(AFTER_RESTART));
    }

    /// Tries refused letters when that is due: one while the replica refuses, otherwise all.
    pub(super) fn try_refused(&mut self, number: u32) {
        let now = self.now.moment;
        let due = self.lanes[number].refusals.due().filter(|_| self.settings.hinted_handoff);
        let Some(due) = due else { return };
        if due > now {
            return self.schedule_wakeup(number, due);
        }
        if !self.may_return(number) {
            return;
        }
        let lane = &mut self.lanes[number];
        if !lane.refusals.is_refusing() || lane.letters.refused() == 0 {
            lane.refusals.passes();
            lane.letters.start_redrive();
            return self.schedule_wakeup(number, now);
        }
        let in_turns = lane.refusals.take_turns();
        let next = lane.refusals.probed(now);
        self.schedule_wakeup(number, next);
        let lane = &self.lanes[number];
        let leads = |slot: Slot| !lane.chains.contains_key(&self.tasks[slot].key);
        // In turns, so that letters that were given up are not held back for good by refused ones.
        let chosen = match in_turns {
            true => lane
                .letters
                .probe_order()
                .take(LOOKS)
                .find(|&(_, slot)| self.redrivable(slot, number).is_some()),
            false => lane.letters.refused_by_age().take(LOOKS).find(|&(_, slot)| leads(slot)),
        };
        if let Some((id, slot)) = chosen {
            self.lanes[number].letters.probed_up_to(id);
            self.redrive_one(self.tasks.delivery_on(slot, number));
            self.count_return(number);
        }
    }
}
