//! The ambiguous attempts of a lane, by key.

use std::collections::HashMap;

use smallvec::SmallVec;

use crate::engine::{KeyId, Moment};
use crate::task::TaskId;

/// For each key the attempts that the replica may still apply, each with the end of that time. A
/// task has at most one.
#[derive(Debug, Default)]
pub(in crate::engine) struct AmbiguousAttempts(HashMap<KeyId, SmallVec<[(TaskId, Moment); 1]>>);

impl AmbiguousAttempts {
    pub(in crate::engine) fn insert(&mut self, key: KeyId, id: TaskId, until: Moment) {
        let attempts = self.0.entry(key).or_default();
        attempts.retain(|(other, _)| *other != id);
        attempts.push((id, until));
    }

    pub(in crate::engine) fn remove(&mut self, key: KeyId, id: TaskId) {
        if let Some(attempts) = self.0.get_mut(&key) {
            attempts.retain(|(other, _)| *other != id);
            if attempts.is_empty() {
                self.0.remove(&key);
            }
        }
    }

    pub(in crate::engine) fn has(&self, key: KeyId) -> bool {
        self.0.contains_key(&key)
    }

    pub(in crate::engine) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an older attempt of the key may be applied over the write `id`.
    pub(in crate::engine) fn may_overwrite(&self, key: KeyId, id: TaskId, now: Moment) -> bool {
        let attempts = self.0.get(&key).into_iter().flatten();
        attempts.into_iter().any(|&(older, until)| older < id && until > now)
    }
}
