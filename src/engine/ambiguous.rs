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

use crate::engine::table::{DeliveryRef, Settlement, State};
use crate::engine::{Change, Engine, MOST_DUE};
use crate::task::Timestamp;

impl Engine {
    /// The last attempt of a delivery may still be applied.
    pub(super) fn note_ambiguous(&mut self, at: DeliveryRef, since: Timestamp) {
        let age = self.now.wall.saturating_since(since);
        let left = self.settings.settle_after.saturating_sub(age);
        if left.is_zero() {
            return;
        }
        let until = self.now.moment.after(left);
        let entry = &mut self.tasks[at.slot];
        let (id, key, delivery) = (entry.id, entry.key, &mut entry.deliveries[at.index]);
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
    pub(super) fn note_ambiguous_if_restored(&mut self, at: DeliveryRef) {
        let until = self.restored_at.after(self.settings.settle_after);
        if self.tasks[at.slot].recovered && self.now.moment < until {
            self.note_ambiguous(at, self.now.wall);
        }
    }

    /// Takes on an ambiguous attempt found on disk. It counts for the whole time again: the wall
    /// clock, by which its age could be told, may have been set meanwhile.
    pub(super) fn restore_ambiguous(&mut self, at: DeliveryRef) {
        self.settled_before(at, Settlement::Superseded);
        self.note_ambiguous(at, self.now.wall);
    }

    /// Ends a delivery that was acknowledged, or has it sent once more when an older attempt may
    /// still be applied over it. A newer write behind it makes that pointless.
    pub(super) fn delivered(&mut self, at: DeliveryRef) {
        let entry = &self.tasks[at.slot];
        let (id, now) = (entry.id, self.now.moment);
        let newest = self.tasks[at].next.is_none();
        let first = self.tasks[at].state.is_pending();
        let attempts = self.lanes[self.tasks[at].lane].ambiguous.get(&entry.key);
        let exposed = attempts.is_some_and(|attempts| {
            attempts.iter().any(|&(older, until)| older < id && until > now)
        });
        if !(first && newest && exposed) {
            return self.settle_head(at, Settlement::Delivered);
        }
        self.supersede_letter(at);
        self.note_ambiguous_if_restored(at);
        if let Some(failures) = &mut self.tasks[at].failures {
            failures.count = 0;
        }
        self.tell_change(at.slot, self.tasks[at].lane, Change::Delivered, None);
        self.resend_later(at);
    }

    /// Has a delivered write wait for being sent once more.
    pub(super) fn resend_later(&mut self, at: DeliveryRef) {
        // Not at once, even if an ambiguous attempt of another setting was found on disk.
        let wait = self.settings.settle_after.max(self.settings.retry_base);
        self.change(at, State::Resend { until: self.now.moment.after(wait) });
        self.touch(at.slot);
    }

    /// A write that was to be sent once more could not be. It is tried again for about an hour with
    /// the default times; a replica that is away for longer has lost what it had not applied, and
    /// one that is gone for good must not keep the task for ever.
    pub(super) fn resend_failed(&mut self, at: DeliveryRef) {
        const MOST: u32 = 120;
        let delivery = &self.tasks[at];
        if delivery.next.is_some() || delivery.failure_count() > MOST {
            self.settle_head(at, Settlement::Delivered);
        } else {
            self.resend_later(at);
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
            let at = self.tasks.delivery_on(slot, lane);
            self.clear_ambiguous(at);
            self.touch(slot);
        }
    }

    /// The attempts of a delivery are not ambiguous any more.
    pub(super) fn clear_ambiguous(&mut self, at: DeliveryRef) {
        let entry = &mut self.tasks[at.slot];
        let (id, key, delivery) = (entry.id, entry.key, &mut entry.deliveries[at.index]);
        let Some((_, until)) = delivery.set_ambiguous(None) else { return };
        self.ambiguous.remove(&(until, id, delivery.lane));
        let ambiguous = &mut self.lanes[delivery.lane].ambiguous;
        if let Some(attempts) = ambiguous.get_mut(&key) {
            attempts.retain(|(other, _)| *other != id);
            if attempts.is_empty() {
                ambiguous.remove(&key);
            }
        }
    }
}
