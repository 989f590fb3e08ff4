//! The record of a cluster: what must not change while it has tasks.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use crate::task::Partition;

/// Format of the messages of this version.
pub const FORMAT: u32 = 1;

/// Written once, when the cluster is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterRecord {
    pub format: u32,
    pub partitions: u16,
    /// Of the hash that divides the keys among the partitions.
    pub seed: u64,
    /// An import fills the cluster, or was interrupted.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub importing: bool,
}

impl ClusterRecord {
    /// The partition of a key, the same in every version and on every machine.
    #[must_use]
    pub fn partition_of(&self, key: &str) -> Partition {
        let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
        digest.update(&self.seed.to_be_bytes());
        digest.update(key.as_bytes());
        let digest = digest.finish();
        let first = digest.as_ref().iter().take(8).fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let partition = first % u64::from(self.partitions.max(1));
        Partition(u16::try_from(partition).unwrap_or(0))
    }

    pub fn partitions(&self) -> impl Iterator<Item = Partition> + use<> {
        (0..self.partitions).map(Partition)
    }
}

/// A token of a subject that stands for a text.
pub(super) fn hash(text: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, text.as_bytes());
    digest.as_ref().iter().take(16).fold(String::new(), |mut token, byte| {
        // Writing to a String cannot fail.
        let _ = write!(token, "{byte:02x}");
        token
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_partition_of_a_key_never_changes() {
        let record = ClusterRecord { format: FORMAT, partitions: 8, seed: 42, importing: false };
        let of = |key| record.partition_of(key).0;
        assert_eq!(["a", "b", "c", "user:1", ""].map(of), [6, 1, 2, 0, 2]);
    }

    #[test]
    fn a_hash_is_one_token() {
        let token = hash("http://a:80/ > *");
        assert!(token.len() == 32 && token.bytes().all(|byte| byte.is_ascii_hexdigit()));
        assert_ne!(token, hash("http://a:80/ > "));
    }

    #[test]
    fn keys_are_spread_over_all_partitions() {
        let record = ClusterRecord { format: FORMAT, partitions: 8, seed: 42, importing: false };
        let mut counts = [0; 8];
        for key in 0..8000 {
            counts[record.partition_of(&format!("key {key}")).0 as usize] += 1;
        }
        assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
    }
}
