//! Keys as the engine stores them: 16 bytes each.

use std::hash::{BuildHasher, RandomState};

/// Stands for a key; the engine only compares keys. Two keys collide with a probability of 2⁻¹²⁸.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct KeyId([u64; 2]);

/// Makes [`KeyId`]s with two randomly keyed hashes, so that no client can construct a collision:
/// the writes of colliding keys would supersede each other.
#[derive(Clone, Debug, Default)]
pub struct KeyHasher([RandomState; 2]);

impl KeyHasher {
    /// The id of `key`, stable for the life of this hasher.
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
