//! Finds copies of tasks that came too late.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};

use crate::store::jetstream::message::Nonce;

/// Tasks whose copies are recognized.
const MAX_RECENT: usize = 1 << 15;

/// The nonces of the last tasks. The servers do not store a task twice within their window; a copy that
/// was delayed for longer must not follow newer writes of its key.
#[derive(Default)]
pub(super) struct RecentNonces {
    sequences: HashMap<Nonce, u64>,
    order: VecDeque<Nonce>,
}

impl RecentNonces {
    /// Whether the task is the first one with its nonce.
    pub(super) fn is_first(&mut self, nonce: Nonce, sequence: u64) -> bool {
        match self.sequences.entry(nonce) {
            Entry::Occupied(known) => *known.get() == sequence,
            Entry::Vacant(free) => {
                free.insert(sequence);
                self.order.push_back(nonce);
                if self.order.len() > MAX_RECENT
                    && let Some(oldest) = self.order.pop_front()
                {
                    self.sequences.remove(&oldest);
                }
                true
            }
        }
    }
}
