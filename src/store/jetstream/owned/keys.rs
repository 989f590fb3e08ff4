//! Tasks with an idempotency key, and strong ones whose answer another process awaits.

use std::mem;

use super::{KeyedTask, MAX_KEYED, Owned};
use crate::store::jetstream::message::Nonce;
use crate::task::{Consistency, Idempotency};

impl Owned {
    pub(super) fn add_key(
        &mut self,
        sequence: u64,
        idempotency: Option<Idempotency>,
        consistency: Consistency,
        nonce: Nonce,
    ) {
        let Some(idempotency) = idempotency else { return };
        self.keyed.insert(sequence, KeyedTask { idempotency, consistency, nonce });
        self.unbound.insert(sequence);
        self.to_bind.push(sequence);
    }

    /// Remembers the key of a settled task for a while: its answer may come late.
    pub(super) fn keep_key(&mut self, sequence: u64) {
        if !self.keyed.contains_key(&sequence) {
            return;
        }
        self.settled_keyed.push_back(sequence);
        if self.settled_keyed.len() > MAX_KEYED
            && let Some(oldest) = self.settled_keyed.pop_front()
        {
            self.keyed.remove(&oldest);
        }
    }

    pub(super) fn add_awaited(&mut self, sequence: u64, by: Option<u64>) {
        if let Some(process) = by {
            self.awaited.insert(sequence, process);
        }
        while self.awaited.len() > MAX_KEYED {
            self.awaited.pop_first();
        }
    }

    /// The process that waits for the answer of this task. It is answered once.
    pub(in crate::store::jetstream) fn take_awaited(&mut self, sequence: u64) -> Option<u64> {
        self.awaited.remove(&sequence)
    }

    /// Tasks whose keys must get their ids. [`Self::bound`] follows for each.
    pub(in crate::store::jetstream) fn take_to_bind(&mut self) -> Vec<(u64, KeyedTask)> {
        let taken = mem::take(&mut self.to_bind).into_iter();
        taken.filter_map(|sequence| Some((sequence, self.keyed.get(&sequence)?.clone()))).collect()
    }

    pub(in crate::store::jetstream) fn bound(&mut self, sequence: u64) {
        self.unbound.remove(&sequence);
    }

    /// The key of a strong write that was decided. It is not settled before [`Self::answered`].
    pub(in crate::store::jetstream) fn decided(&mut self, sequence: u64) -> Option<&KeyedTask> {
        let keyed = self.keyed.get(&sequence)?;
        self.unanswered.insert(sequence);
        Some(keyed)
    }

    /// The key of the task has its answer.
    pub(in crate::store::jetstream) fn answered(&mut self, sequence: u64) {
        self.unanswered.remove(&sequence);
    }

    pub(super) fn lacks_its_key(&self, sequence: u64) -> bool {
        self.unbound.contains(&sequence) || self.unanswered.contains(&sequence)
    }
}
