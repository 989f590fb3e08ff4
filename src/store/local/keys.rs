//! The trees and the keys in them. All numbers are big endian, so that a scan is the queue's order.
//!
//! | tree | key | bytes |
//! | --- | --- | --- |
//! | `meta` | a name | |
//! | `tasks` | task | 8 |
//! | `values` | task, number of the chunk from 0 | 8 + 4 |
//! | `progress` | task | 8 |
//! | `dead_letters` | task, replica index | 8 + 2 |
//! | `replicas` | the address of a replica, in its normal form | up to 1024 |
//! | `idempotency` | the key that a client gave | up to 255 |

use std::fmt;

use crate::task::{Node, ReplicaIndex, TaskId};

/// `meta`: the version of the format, a `u32`.
pub(super) const FORMAT_VERSION: &[u8] = b"format_version";
/// `meta`: the sequence lease, a `u64`: every [`TaskId`] that may have been used is below it.
pub(super) const SEQUENCE: &[u8] = b"sequence";
/// `meta`: the [`Ledger`](super::integrity::ledger::Ledger).
pub(super) const LEDGER: &[u8] = b"ledger";
/// `meta`: the number of the ledger behind which settlements were begun, a `u64`.
pub(super) const SETTLING: &[u8] = b"settling";

/// The longest key of `idempotency`: the name of a token (64 bytes), a space, and the key of its
/// client, for which 255 bytes are the shortest limit that clients of such keys expect anywhere.
pub const MAX_IDEMPOTENCY_KEY_BYTES: usize = 64 + 1 + 255;

/// One of the trees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tree {
    Meta,
    Tasks,
    Values,
    Progress,
    DeadLetters,
    Replicas,
    Idempotency,
}

impl Tree {
    /// The name of the tree in the database.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Tasks => "tasks",
            Self::Values => "values",
            Self::Progress => "progress",
            Self::DeadLetters => "dead_letters",
            Self::Replicas => "replicas",
            Self::Idempotency => "idempotency",
        }
    }

    /// How long a key in it is; 0 where they differ.
    pub(super) fn key_bytes(self) -> usize {
        match self {
            Self::Meta | Self::Replicas | Self::Idempotency => 0,
            Self::Tasks | Self::Progress => 8,
            Self::Values => 12,
            Self::DeadLetters => 10,
        }
    }

    /// What stands for the tree under a row's checksum, so that no row passes in another tree.
    pub(super) fn tag(self) -> u8 {
        match self {
            Self::Meta => b'm',
            Self::Tasks => b't',
            Self::Values => b'v',
            Self::Progress => b'p',
            Self::DeadLetters => b'd',
            Self::Replicas => b'r',
            Self::Idempotency => b'i',
        }
    }

    /// Whether its rows belong to tasks, whose ids their keys begin with.
    pub(super) fn is_of_tasks(self) -> bool {
        match self {
            Self::Tasks | Self::Values | Self::Progress | Self::DeadLetters => true,
            Self::Meta | Self::Replicas | Self::Idempotency => false,
        }
    }

    /// Whose row this is in it, if its rows belong to tasks.
    pub(super) fn owner(self, key: &[u8]) -> Option<TaskId> {
        owner(key).filter(|_| self.is_of_tasks())
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The key of a task in `tasks` and `progress`; also the prefix of all that belongs to it in the
/// other trees.
pub(super) fn of_task(id: TaskId) -> [u8; 8] {
    id.0.to_be_bytes()
}

/// The key of a chunk in `values`.
pub(super) fn of_chunk(id: TaskId, chunk: u32) -> [u8; 12] {
    let mut key = [0; 12];
    let (task, rest) = key.split_at_mut(8);
    task.copy_from_slice(&of_task(id));
    rest.copy_from_slice(&chunk.to_be_bytes());
    key
}

/// The key of a dead letter in `dead_letters`.
pub(super) fn of_dead_letter(id: TaskId, replica: ReplicaIndex) -> [u8; 10] {
    let mut key = [0; 10];
    let (task, rest) = key.split_at_mut(8);
    task.copy_from_slice(&of_task(id));
    rest.copy_from_slice(&replica.0.to_be_bytes());
    key
}

/// The key of a replica in `replicas`.
pub(super) fn of_replica(node: &Node) -> &[u8] {
    node.as_str().as_bytes()
}

/// The task of a key in `tasks` or `progress`; `None` if no such key was ever written.
pub(super) fn task(key: &[u8]) -> Option<TaskId> {
    Some(TaskId(u64::from_be_bytes(key.try_into().ok()?)))
}

/// Whose row this is, in any of the trees that hold rows of tasks.
pub(super) fn owner(key: &[u8]) -> Option<TaskId> {
    key.get(..8).and_then(task)
}

/// A key in hexadecimal.
pub(super) fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The task and the replica of a key in `dead_letters`.
pub(super) fn dead_letter(key: &[u8]) -> Option<(TaskId, ReplicaIndex)> {
    let (id, index) = key.split_first_chunk::<8>()?;
    let index = u16::from_be_bytes(index.try_into().ok()?);
    Some((task(id)?, ReplicaIndex(index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_as_their_numbers_do() {
        assert!(of_task(TaskId(255)) < of_task(TaskId(256)));
        assert!(of_chunk(TaskId(1), u32::MAX) < of_chunk(TaskId(2), 0));
        assert!(
            of_dead_letter(TaskId(1), ReplicaIndex(256))
                < of_dead_letter(TaskId(2), ReplicaIndex(0))
        );
    }

    #[test]
    fn keys_are_read_back_and_those_of_another_length_are_not() {
        let (id, replica) = (TaskId(0x0102_0304_0506_0708), ReplicaIndex(9));
        assert_eq!(of_chunk(id, 7), [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 7]);
        assert_eq!(task(&of_task(id)), Some(id));
        assert_eq!(dead_letter(&of_dead_letter(id, replica)), Some((id, replica)));
        assert_eq!(task(b"1234567"), None);
        assert_eq!(dead_letter(&of_chunk(id, 7)), None);
    }
}
