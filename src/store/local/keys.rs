//! The trees and their keys. Numbers are big endian, so that a scan follows the order of the queue.
//!
//! | tree | key | bytes |
//! | --- | --- | --- |
//! | `meta` | a name | |
//! | `tasks` | task | 8 |
//! | `values` | task, number of the chunk | 8 + 4 |
//! | `progress` | task | 8 |
//! | `dead_letters` | task, replica index | 8 + 2 |
//! | `replicas` | the address of a replica, in its normal form | up to 1024 |
//! | `idempotency` | token, space, the client's key | up to 320 |

use std::fmt;

use crate::task::{Node, ReplicaIndex, TaskId};

/// `meta`: the version of the format, a `u32`.
pub(super) const FORMAT_VERSION: &[u8] = b"format_version";
/// `meta`: the end of the sequence lease, a `u64`. Every id that may have been used is below it.
pub(super) const SEQUENCE: &[u8] = b"sequence";
/// `meta`: the [`Ledger`](super::integrity::ledger::Ledger).
pub(super) const LEDGER: &[u8] = b"ledger";
/// `meta`: the number of the ledger that settlements follow, a `u64`.
pub(super) const SETTLING: &[u8] = b"settling";

/// `meta`: 1 while strong writes may be sent before they are durable, a `u64`. Missing or 0 after the
/// store was closed.
pub(super) const SENDS_EARLY: &[u8] = b"sends_early";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

    /// The length of its keys; 0 if it varies.
    pub(super) fn key_bytes(self) -> usize {
        match self {
            Self::Meta | Self::Replicas | Self::Idempotency => 0,
            Self::Tasks | Self::Progress => 8,
            Self::Values => 12,
            Self::DeadLetters => 10,
        }
    }

    /// Part of each row's checksum, so that no row is valid in another tree.
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

    /// Whether its rows belong to tasks. Then their keys begin with the id.
    pub(super) fn is_of_tasks(self) -> bool {
        match self {
            Self::Tasks | Self::Values | Self::Progress | Self::DeadLetters => true,
            Self::Meta | Self::Replicas | Self::Idempotency => false,
        }
    }

    /// The task that a row belongs to.
    pub(super) fn owner(self, key: &[u8]) -> Option<TaskId> {
        owner(key).filter(|_| self.is_of_tasks())
    }
}

impl fmt::Display for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A key in `tasks` and `progress`; the prefix of the task's keys in `values` and `dead_letters`.
pub(super) fn of_task(id: TaskId) -> [u8; 8] {
    id.0.to_be_bytes()
}

pub(super) fn of_chunk(id: TaskId, chunk: u32) -> [u8; 12] {
    let mut key = [0; 12];
    let (task, rest) = key.split_at_mut(8);
    task.copy_from_slice(&of_task(id));
    rest.copy_from_slice(&chunk.to_be_bytes());
    key
}

pub(super) fn of_dead_letter(id: TaskId, replica: ReplicaIndex) -> [u8; 10] {
    let mut key = [0; 10];
    let (task, rest) = key.split_at_mut(8);
    task.copy_from_slice(&of_task(id));
    rest.copy_from_slice(&replica.0.to_be_bytes());
    key
}

pub(super) fn of_replica(node: &Node) -> &[u8] {
    node.as_str().as_bytes()
}

/// Parses a key of `tasks` or `progress`.
pub(super) fn task(key: &[u8]) -> Option<TaskId> {
    Some(TaskId(u64::from_be_bytes(key.try_into().ok()?)))
}

/// The task of a key in any of the trees that hold rows of tasks.
pub(super) fn owner(key: &[u8]) -> Option<TaskId> {
    key.get(..8).and_then(task)
}

pub(super) fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Parses a key of `dead_letters`.
pub(super) fn dead_letter(key: &[u8]) -> Option<(TaskId, ReplicaIndex)> {
    let (id, index) = key.split_first_chunk::<8>()?;
    let index = u16::from_be_bytes(index.try_into().ok()?);
    Some((task(id)?, ReplicaIndex(index)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_sort_like_their_numbers() {
        assert!(of_task(TaskId(255)) < of_task(TaskId(256)));
        assert!(of_chunk(TaskId(1), u32::MAX) < of_chunk(TaskId(2), 0));
        assert!(
            of_dead_letter(TaskId(1), ReplicaIndex(256))
                < of_dead_letter(TaskId(2), ReplicaIndex(0))
        );
    }

    #[test]
    fn keys_are_parsed_back_and_keys_of_another_length_are_refused() {
        let (id, replica) = (TaskId(0x0102_0304_0506_0708), ReplicaIndex(9));
        assert_eq!(of_chunk(id, 7), [1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 7]);
        assert_eq!(task(&of_task(id)), Some(id));
        assert_eq!(dead_letter(&of_dead_letter(id, replica)), Some((id, replica)));
        assert_eq!(task(b"1234567"), None);
        assert_eq!(dead_letter(&of_chunk(id, 7)), None);
    }
}
