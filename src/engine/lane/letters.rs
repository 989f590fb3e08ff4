//! The dead letters of a lane, and how far their redrive has come.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Unbounded};

use crate::engine::KeyId;
use crate::engine::table::Slot;
use crate::task::{Cause, TaskId};

/// The dead letters of a lane. For each key there is only the newest.
#[derive(Debug, Default)]
pub(in crate::engine) struct LaneLetters {
    by_age: BTreeMap<TaskId, Slot>,
    by_key: HashMap<KeyId, Slot>,
    /// Those with the cause [`Cause::Refused`].
    refused: BTreeMap<TaskId, Slot>,
    /// Charged for tasks with only dead letters left, parked deliveries included.
    bytes: u64,
    redrive: Option<RedrivePass>,
    /// Where the last pass was interrupted.
    interrupted_at: TaskId,
    last_probe: TaskId,
}

/// Cursor of a redrive pass, oldest first. A pass that starts where the last one was interrupted
/// wraps around at the end.
#[derive(Clone, Copy, Debug)]
struct RedrivePass {
    after: TaskId,
    /// Set once it has wrapped around: where it ends.
    until: Option<TaskId>,
}

impl LaneLetters {
    pub(in crate::engine) fn insert(&mut self, id: TaskId, key: KeyId, slot: Slot, cause: Cause) {
        self.by_age.insert(id, slot);
        self.by_key.insert(key, slot);
        if cause == Cause::Refused {
            self.refused.insert(id, slot);
        }
    }

    pub(in crate::engine) fn remove(&mut self, id: TaskId, key: KeyId) {
        self.by_age.remove(&id);
        self.by_key.remove(&key);
        self.refused.remove(&id);
    }

    pub(in crate::engine) fn of_key(&self, key: KeyId) -> Option<Slot> {
        self.by_key.get(&key).copied()
    }

    pub(in crate::engine) fn is_empty(&self) -> bool {
        self.by_age.is_empty()
    }

    pub(in crate::engine) fn refused(&self) -> usize {
        self.refused.len()
    }

    pub(in crate::engine) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(in crate::engine) fn charge(&mut self, bytes: u64) {
        self.bytes += bytes;
    }

    pub(in crate::engine) fn release(&mut self, bytes: u64) {
        self.bytes -= bytes;
    }

    pub(in crate::engine) fn is_redriving(&self) -> bool {
        self.redrive.is_some()
    }

    pub(in crate::engine) fn start_redrive(&mut self) {
        self.redrive = Some(RedrivePass { after: self.interrupted_at, until: None });
    }

    pub(in crate::engine) fn interrupt_redrive(&mut self) {
        if let Some(pass) = self.redrive.take() {
            self.interrupted_at = pass.after;
        }
    }

    pub(in crate::engine) fn end_redrive(&mut self) {
        (self.redrive, self.interrupted_at) = (None, TaskId(0));
    }

    pub(in crate::engine) fn next_to_redrive(&mut self) -> Option<Slot> {
        let pass = self.redrive.as_mut()?;
        loop {
            let next = self.by_age.range((Excluded(pass.after), Unbounded)).next();
            match next.filter(|(id, _)| pass.until.is_none_or(|until| **id <= until)) {
                Some((&id, &slot)) => {
                    pass.after = id;
                    return Some(slot);
                }
                None if pass.until.is_none() && self.interrupted_at > TaskId(0) => {
                    *pass = RedrivePass { after: TaskId(0), until: Some(self.interrupted_at) };
                }
                None => return None,
            }
        }
    }

    /// The letters in the order in which they become the probe, from the one after the last.
    pub(in crate::engine) fn probe_order(&self) -> impl Iterator<Item = (TaskId, Slot)> {
        let later = self.by_age.range((Excluded(self.last_probe), Unbounded));
        later.chain(self.by_age.range(..=self.last_probe)).map(|(&id, &slot)| (id, slot))
    }

    /// The refused letters, oldest first.
    pub(in crate::engine) fn refused_by_age(&self) -> impl Iterator<Item = (TaskId, Slot)> {
        self.refused.iter().map(|(&id, &slot)| (id, slot))
    }

    pub(in crate::engine) fn probed_up_to(&mut self, id: TaskId) {
        self.last_probe = id;
    }
}
