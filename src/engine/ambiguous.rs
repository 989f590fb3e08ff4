//! Ambiguous attempts: the replica may still apply them, over a newer write.
//!
//! An attempt that ended in a timeout or reset is **ambiguous** for `settle_after`. If a newer
//! write of the key is delivered meanwhile, it is sent again `settle_after` later.
//!
//! Both survive a restart: the task of an ambiguous attempt stays on disk until its time is over,
//! and so does one that awaits its resend. After a restart, every attempt that may have been in
//! flight is ambiguous. After a crash there may also have been attempts of early writes, of which the
//! disk knows nothing: every write that is delivered within `settle_after` is sent again then.

use crate::engine::table::{DeliveryRef, SettledAs, Stage};
use crate::engine::{Engine, MOST_DUE};
use crate::task::{TaskChange, Timestamp};

impl Engine {
    /// Marks the last attempt of a delivery as ambiguous.
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
        self.lanes[delivery.lane].ambiguous.insert(key, id, until);
    }

    /// Attempts in flight at the end of the last process are unknown. So a recovered delivery that
    /// settles soon after the start counts as ambiguous.
    pub(super) fn note_ambiguous_if_restored(&mut self, at: DeliveryRef) {
        let until = self.restored_at.after(self.settings.settle_after);
        if self.tasks[at.slot].recovered && self.now.moment < until {
            self.note_ambiguous(at, self.now.wall);
        }
    }

    /// Restores an ambiguous attempt. Its full time starts again, because the wall clock may have
    /// been set since.
    pub(super) fn restore_ambiguous(&mut self, at: DeliveryRef) {
        self.settled_before(at, SettledAs::Superseded);
        self.note_ambiguous(at, self.now.wall);
    }

    /// Settles an acknowledged delivery, or schedules a resend if an ambiguous older attempt may
    /// overwrite it. With a newer write behind it, no resend is needed.
    pub(super) fn delivered(&mut self, at: DeliveryRef) {
        let entry = &self.tasks[at.slot];
        let newest = self.tasks[at].next.is_none();
        let first = self.tasks[at].stage.is_pending();
        let attempts = &self.lanes[self.tasks[at].lane].ambiguous;
        let exposed = attempts.may_overwrite(entry.key, entry.id, self.now.moment)
            || self.now.moment < self.unrecorded_until;
        if !(first && newest && exposed) {
            return self.settle_head(at, SettledAs::Delivered);
        }
        self.supersede_letter(at);
        self.note_ambiguous_if_restored(at);
        if let Some(failures) = &mut self.tasks[at].failures {
            failures.count = 0;
        }
        self.emit_change(at.slot, self.tasks[at].lane, TaskChange::Delivered, None);
        self.resend_later(at);
    }

    pub(super) fn resend_later(&mut self, at: DeliveryRef) {
        // Not at once: `settle_after` may have been lowered to zero since the ambiguous attempt.
        let wait = self.settings.settle_after.max(self.settings.retry_base);
        self.change(at, Stage::Resend { until: self.now.moment.after(wait) });
        self.touch(at.slot);
    }

    /// A resend failed. It is repeated for about an hour with default settings: a replica that is
    /// gone for good must not keep the task forever.
    pub(super) fn resend_failed(&mut self, at: DeliveryRef) {
        const MOST: u32 = 120;
        let delivery = &self.tasks[at];
        if delivery.next.is_some() || delivery.failure_count() > MOST {
            self.settle_head(at, SettledAs::Delivered);
        } else {
            self.resend_later(at);
        }
    }

    /// Drops the ambiguous attempts whose time is over.
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

    /// Drops the ambiguous attempt of a delivery, if there is one.
    pub(super) fn clear_ambiguous(&mut self, at: DeliveryRef) {
        let entry = &mut self.tasks[at.slot];
        let (id, key, delivery) = (entry.id, entry.key, &mut entry.deliveries[at.index]);
        if let Some((_, until)) = delivery.set_ambiguous(None) {
            self.ambiguous.remove(&(until, id, delivery.lane));
            self.lanes[delivery.lane].ambiguous.remove(key, id);
        }
    }
}
