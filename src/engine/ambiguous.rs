//! Late applies: an attempt without an answer may still be applied by the replica, over a newer
//! write.
//!
//! An attempt that ended in a timeout or a reset is a **doubt** about its key and replica for
//! `settle_after`. If a newer write of the key is delivered meanwhile, the newest is sent once
//! more `settle_after` later, when whatever could still be applied has been.
//!
//! Both survive a restart: the task of a doubt stays on disk until its time is over, even if
//! nothing else is left of it, and so does one that is to be sent once more. A restart itself is a
//! doubt about everything that may have been on the wire before it.

use crate::engine::table::{Settlement, Slot, State};
use crate::engine::{Change, Engine, MOST_DUE};
use crate::task::Timestamp;

impl Engine {
    /// The last attempt of a delivery may still be applied.
    pub(super) fn doubt(&mut self, slot: Slot, index: usize, since: Timestamp) {
        let age = self.now.wall.saturating_since(since);
        let left = self.settings.settle_after.saturating_sub(age);
        if left.is_zero() {
            return;
        }
        let until = self.now.moment.after(left);
        let entry = &mut self.tasks[slot];
        let (id, key, delivery) = (entry.id, entry.key, &mut entry.deliveries[index]);
        if let Some((_, before)) = delivery.set_doubt(Some((since, until))) {
            self.doubts.remove(&(before, id, delivery.lane));
        }
        self.doubts.insert((until, id, delivery.lane));
        let doubted = self.lanes[delivery.lane].doubts.entry(key).or_default();
        doubted.retain(|(doubter, _)| *doubter != id);
        doubted.push((id, until));
    }

    /// What was on the wire when the process ended is not known. Whatever of that time is settled
    /// soon after the start is a doubt.
    pub(super) fn doubt_restored(&mut self, slot: Slot, index: usize) {
        let until = self.restored_at.after(self.settings.settle_after);
        if self.tasks[slot].restored && self.now.moment < until {
            self.doubt(slot, index, self.now.wall);
        }
    }

    /// Takes on a doubt found on disk. It holds for the whole time again: the wall clock, by which its
    /// age could be told, may have been set meanwhile.
    pub(super) fn restore_doubt(&mut self, slot: Slot, index: usize) {
        self.settled_before(slot, index, Settlement::Superseded);
        self.doubt(slot, index, self.now.wall);
    }

    /// Ends a delivery that was acknowledged, or has it sent once more when an older attempt may
    /// still be applied over it. A newer write behind it makes that pointless.
    pub(super) fn delivered(&mut self, slot: Slot, index: usize) {
        let entry = &self.tasks[slot];
        let (id, now) = (entry.id, self.now.moment);
        let newest = entry.deliveries[index].next.is_none();
        let first = entry.deliveries[index].state.is_pending();
        let doubts = self.lanes[entry.deliveries[index].lane].doubts.get(&entry.key);
        let in_doubt = doubts
            .is_some_and(|doubts| doubts.iter().any(|&(older, until)| older < id && until > now));
        if !(first && newest && in_doubt) {
            return self.settle_head(slot, index, Settlement::Delivered);
        }
        self.supersede_letter(slot, index);
        self.doubt_restored(slot, index);
        if let Some(failures) = &mut self.tasks[slot].deliveries[index].failures {
            failures.count = 0;
        }
        self.tell_change(slot, self.tasks[slot].deliveries[index].lane, Change::Delivered, None);
        self.resend_later(slot, index);
    }

    /// Has a delivered write wait for being sent once more.
    pub(super) fn resend_later(&mut self, slot: Slot, index: usize) {
        // Not at once, even if a doubt of another setting was found on disk.
        let wait = self.settings.settle_after.max(self.settings.retry_base);
        self.change(slot, index, State::Resend { until: self.now.moment.after(wait) });
        self.touch(slot);
    }

    /// A write that was to be sent once more could not be. It is tried again for about an hour with
    /// the default times; a replica that is away for longer has lost what it had not applied, and
    /// one that is gone for good must not keep the task for ever.
    pub(super) fn resend_failed(&mut self, slot: Slot, index: usize) {
        const MOST: u32 = 120;
        let delivery = &self.tasks[slot].deliveries[index];
        if delivery.next.is_some() || delivery.failure_count() > MOST {
            self.settle_head(slot, index, Settlement::Delivered);
        } else {
            self.resend_later(slot, index);
        }
    }

    /// Lets go of the doubts whose time is over.
    pub(super) fn forget_doubts(&mut self) {
        for _ in 0..MOST_DUE {
            let Some(&(until, id, lane)) = self.doubts.first() else { return };
            if until > self.now.moment {
                return;
            }
            self.doubts.remove(&(until, id, lane));
            let Some(slot) = self.tasks.find(id) else { continue };
            let index = self.tasks[slot].delivery_on(lane);
            self.tasks[slot].deliveries[index].set_doubt(None);
            let doubts = &mut self.lanes[lane].doubts;
            if let Some(doubted) = doubts.get_mut(&self.tasks[slot].key) {
                doubted.retain(|(doubter, _)| *doubter != id);
                if doubted.is_empty() {
                    doubts.remove(&self.tasks[slot].key);
                }
            }
            self.touch(slot);
        }
    }
}
