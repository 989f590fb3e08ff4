//! The rows that are kept beside the tasks: what is known of replicas and of idempotency keys.
//!
//! One of an idempotency key can be as long as a row may be: its answer names up to 1024 replicas,
//! three bytes each.

use bincode::{BorrowDecode, Encode};

use super::{Failure, decode, encode};
use crate::task::{Node, Task, TaskId, Timestamp};

/// What is remembered of a replica from the first write to it on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRow {
    /// Since when an operator wants nothing sent to it.
    pub paused_since: Option<Timestamp>,
    /// Where its deliveries go instead.
    pub renamed_to: Option<Node>,
    /// When the first write for it was accepted.
    pub first_used: Timestamp,
}

/// What is remembered of a write whose client gave it a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyRow {
    /// The task that the write became.
    pub task: TaskId,
    /// What the write said, so that another under the same key is told from a repeated one.
    pub fingerprint: [u8; 16],
    /// When it was accepted.
    pub at: Timestamp,
    /// What a strong write was answered, once that is known.
    pub answer: Option<IdempotencyAnswer>,
}

impl IdempotencyRow {
    /// That of a task which has just been accepted.
    #[must_use]
    pub fn of(task: &Task, fingerprint: [u8; 16]) -> Self {
        Self { task: task.id, fingerprint, at: task.accepted_at, answer: None }
    }
}

/// The answer to a strong write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyAnswer {
    /// Whether the majority acknowledged.
    pub success: bool,
    /// The replicas that had acknowledged, as positions in the task's list.
    pub acked: Vec<u16>,
    /// Those that had failed.
    pub failed: Vec<u16>,
    /// How many were needed.
    pub needed: u16,
}

#[derive(Encode, BorrowDecode)]
struct Replica<'a> {
    paused_since: Option<u64>,
    renamed_to: Option<&'a str>,
    first_used: u64,
}

/// The payload of a row in `replicas`.
pub(in crate::store) fn replica(row: &ReplicaRow) -> Result<Vec<u8>, Failure> {
    encode(Replica {
        paused_since: row.paused_since.map(|since| since.0),
        renamed_to: row.renamed_to.as_ref().map(Node::as_str),
        first_used: row.first_used.0,
    })
}

/// Reads a payload of `replicas`.
pub(in crate::store) fn read_replica(payload: &[u8]) -> Option<ReplicaRow> {
    let row: Replica<'_> = decode(payload)?;
    Some(ReplicaRow {
        paused_since: row.paused_since.map(Timestamp),
        renamed_to: row.renamed_to.map(Node::from_normal),
        first_used: Timestamp(row.first_used),
    })
}

#[derive(Encode, BorrowDecode)]
struct Idempotency {
    task: u64,
    fingerprint: [u8; 16],
    at: u64,
    answer: Option<Answer>,
}

#[derive(Encode, BorrowDecode)]
struct Answer {
    success: bool,
    acked: Vec<u16>,
    failed: Vec<u16>,
    needed: u16,
}

/// The payload of a row in `idempotency`.
pub(in crate::store) fn idempotency(row: &IdempotencyRow) -> Result<Vec<u8>, Failure> {
    encode(Idempotency {
        task: row.task.0,
        fingerprint: row.fingerprint,
        at: row.at.0,
        answer: row.answer.as_ref().map(|answer| Answer {
            success: answer.success,
            acked: answer.acked.clone(),
            failed: answer.failed.clone(),
            needed: answer.needed,
        }),
    })
}

/// Reads a payload of `idempotency`.
pub(in crate::store) fn read_idempotency(payload: &[u8]) -> Option<IdempotencyRow> {
    let row: Idempotency = decode(payload)?;
    Some(IdempotencyRow {
        task: TaskId(row.task),
        fingerprint: row.fingerprint,
        at: Timestamp(row.at),
        answer: row.answer.map(|Answer { success, acked, failed, needed }| IdempotencyAnswer {
            success,
            acked,
            failed,
            needed,
        }),
    })
}
