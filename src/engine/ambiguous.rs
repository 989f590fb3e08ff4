//! Late applies: an attempt without an answer may still be applied by the replica, over a newer
//! write.
//!
//! An attempt that ended in a timeout or a reset is **ambiguous** for `settle_after`. If a newer
//! write of the key is delivered meanwhile, the newest is sent once more `settle_after` later, when
//! whatever could still be applied has been.
//!
//! Both survive a restart: the task of an ambiguous attempt stays on disk until its time is over,
//! even if nothing else is left of it, and so does one that is to be sent once more. After a restart
//! every attempt that may have been on the wire before it is ambiguous.

use crate::engine::table::{Settlement, Slot, State};
use crate::engine::{Change, Engine, MOST_DUE};
use crate::task::Timestamp;

impl Engine {
    /// The last attempt of a delivery may still be applied.
    pub(super) fn note_ambiguous(&mut self, slot: Slot, index: usize, since: Timestamp) {
        let age = self.now.wall.saturating_since(since);
        let left = self.settings.settle_after.saturating_sub(age);
        if left.is_zero() {
            return;
        }
        let until = self.now.moment.after(left);
        let entry = &mut self.tasks[slot];
        let (id, key, delivery) = (entry.id, entry.key, &mut entry.deliveries[index]);
        if let Some((_, before)) = delivery.set_ambiguous(Some((since, until))) {
            self.ambiguous.remove(&(before, id, delivery.lane));
        }
        self.ambiguous.insert((until, id, delivery.lane));
        let attempts = self.lanes[delivery.lane].ambiguous.entry(key).or_default();
        attempts.retain(|(other, _)| *other != id);
        attempts.push((id, until));
    }

    /// What was on the wire when the process ended is not known. A delivery of that time that is
    /// settled soon after the start counts as one with an ambiguous attempt.
    pub(super) fn note_ambiguous_if_restored(&mut self, slot: Slot, index: usize) {
        let until = self.restored_at.after(self.settings.settle_after);
        if self.tasks[slot].restored && self.now.moment < until {
            self.note_ambiguous(slot, index, self.now.wall);
        }
    }

    /// Takes on an ambiguous attempt found on disk. It counts for the whole time again: the wall
    /// clock, by which its age could be told, may have been set meanwhile.
    pub(super) fn restore_ambiguous(&mut self, slot: Slot, index: usize) {
        self.settled_before(slot, index, Settlement::Superseded);
        self.note_ambiguous(slot, index, self.now.wall);
    }

    /// Ends a delivery that was acknowledged, or has it sent once more when an older attempt may
    /// still be applied over it. A newer write behind it makes that pointless.
    pub(super) fn delivered(&mut self, slot: Slot, index: usize) {
        let entry = &self.tasks[slot];
        let (id, now) = (entry.id, self.now.moment);
        let newest = entry.deliveries[index].next.is_none();
        let first = entry.deliveries[index].state.is_pending();
        let attempts = self.lanes[entry.deliveries[index].lane].ambiguous.get(&entry.key);
        let exposed = attempts.is_some_and(|attempts| {
            attempts.iter().any(|&(older, until)| older < id && until > now)
        });
        if !(first && newest && exposed) {
            return self.settle_head(slot, index, Settlement::Delivered);
        }
        self.supersede_letter(slot, index);
        self.note_ambiguous_if_restored(slot, index);
        if let Some(failures) = &mut self.tasks[slot].deliveries[index].failures {
            failures.count = 0;
        }
        self.tell_change(slot, self.tasks[slot].deliveries[index].lane, Change::Delivered, None);
        self.resend_later(slot, index);
    }

    /// Has a delivered write wait for being sent once more.
    pub(super) fn resend_later(&mut self, slot: Slot, index: usize) {
        // Not at once, even if an ambiguous attempt of another setting was found on disk.
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

    /// Forgets the ambiguous attempts whose time is over.
    pub(super) fn forget_ambiguous(&mut self) {
        for _ in 0..MOST_DUE {
            let Some(&(until, id, lane)) = self.ambiguous.first() else { return };
            if until > self.now.moment {
                return;
            }
            self.ambiguous.remove(&(until, id, lane));
            let Some(slot) = self.tasks.find(id) else { continue };
            let index = self.tasks[slot].delivery_on(lane);
            self.tasks[slot].deliveries[index].set_ambiguous(None);
            let ambiguous = &mut self.lanes[lane].ambiguous;
            if let Some(attempts) = ambiguous.get_mut(&self.tasks[slot].key) {
                attempts.retain(|(other, _)| *other != id);
                if attempts.is_empty() {
                    ambiguous.remove(&self.tasks[slot].key);
                }
            }
            self.touch(slot);
        }
    }
}
