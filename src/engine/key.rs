//! A key as the engine knows it: sixteen bytes, whatever the key's length.

use std::hash::{BuildHasher, RandomState};

/// Stands for a key. Two keys have the same one with a probability of 2⁻¹²⁸ a pair.
///
/// The engine keeps a million tasks in memory, and what it needs of a key is only whether two
/// are equal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId([u64; 2]);

/// Makes [`KeyId`]s, by two keyed hashes with random keys, so that no client can make two keys
/// meet: the writes of one key supersede each other.
#[derive(Clone, Debug, Default)]
pub struct KeyHasher([RandomState; 2]);

impl KeyHasher {
    /// The id of `key`, the same for as long as this hasher lives.
    #[must_use]
    pub fn id(&self, key: &str) -> KeyId {
        let [first, second] = &self.0;
        KeyId([first.hash_one(key), second.hash_one(key)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_keeps_its_id_and_another_has_another() {
        let hasher = KeyHasher::default();
        assert_eq!(hasher.id("a"), hasher.id("a"));
        assert_ne!(hasher.id("a"), hasher.id("b"));
    }
}
