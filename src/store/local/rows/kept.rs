//! The rows that belong to no task: replicas and idempotency keys. The longest key row fills a row:
//! its answer names up to 1024 replicas, three bytes each.

use bincode::{BorrowDecode, Encode};
use serde::{Deserialize, Serialize};

use super::{Failure, decode, encode};
use crate::task::{Node, Task, TaskId, Timestamp};

/// Kept from the first write to the replica on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRow {
    pub paused_since: Option<Timestamp>,
    pub renamed_to: Option<Node>,
    /// When the first write to it was accepted.
    pub first_used: Timestamp,
}

/// Kept for a write with an idempotency key, until the window is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyRow {
    pub task: TaskId,
    /// Of the write's body: the same key with another body is refused.
    pub fingerprint: [u8; 16],
    /// When the write was accepted.
    pub at: Timestamp,
    /// The answer to a strong write, once there is one.
    pub answer: Option<IdempotencyAnswer>,
}

impl IdempotencyRow {
    pub fn of(task: &Task, fingerprint: [u8; 16]) -> Self {
        Self { task: task.id, fingerprint, at: task.accepted_at, answer: None }
    }
}

/// The answer to a strong write. Part of the row format and of the export format: a change is a
/// migration.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdempotencyAnswer {
    /// Whether a majority acknowledged.
    pub success: bool,
    /// Replicas that acknowledged, as positions in the task's list.
    pub acked: Vec<u16>,
    pub failed: Vec<u16>,
    /// The size of the majority.
    pub needed: u16,
}

#[derive(Encode, BorrowDecode)]
struct StoredReplica<'a> {
    paused_since: Option<u64>,
    renamed_to: Option<&'a str>,
    first_used: u64,
}

pub(crate) fn replica(row: &ReplicaRow) -> Result<Vec<u8>, Failure> {
    encode(StoredReplica {
        paused_since: row.paused_since.map(|since| since.0),
        renamed_to: row.renamed_to.as_ref().map(Node::as_str),
        first_used: row.first_used.0,
    })
}

pub(crate) fn read_replica(payload: &[u8]) -> Option<ReplicaRow> {
    let row: StoredReplica<'_> = decode(payload)?;
    Some(ReplicaRow {
        paused_since: row.paused_since.map(Timestamp),
        renamed_to: row.renamed_to.map(Node::from_normal),
        first_used: Timestamp(row.first_used),
    })
}

#[derive(Encode, BorrowDecode)]
struct StoredKey {
    task: u64,
    fingerprint: [u8; 16],
    at: u64,
    answer: Option<IdempotencyAnswer>,
}

pub(crate) fn idempotency(row: &IdempotencyRow) -> Result<Vec<u8>, Failure> {
    encode(StoredKey {
        task: row.task.0,
        fingerprint: row.fingerprint,
        at: row.at.0,
        answer: row.answer.clone(),
    })
}

pub(crate) fn read_idempotency(payload: &[u8]) -> Option<IdempotencyRow> {
    let row: StoredKey = decode(payload)?;
    Some(IdempotencyRow {
        task: TaskId(row.task),
        fingerprint: row.fingerprint,
        at: Timestamp(row.at),
        answer: row.answer,
    })
}
