//! The rows that belong to no task: replicas and idempotency keys. The longest key row fills a row:
//! its answer names up to 1024 replicas, three bytes each.

use bincode::error::EncodeError;
use bincode::{BorrowDecode, Encode};

use super::{decode, encode};
use crate::store::records::{IdempotencyAnswer, IdempotencyRow, ReplicaRow};
use crate::task::{Node, TaskId, Timestamp};

#[derive(Encode, BorrowDecode)]
struct StoredReplica<'a> {
    paused_since: Option<u64>,
    renamed_to: Option<&'a str>,
    first_used: u64,
}

pub(in crate::store) fn replica(row: &ReplicaRow) -> Result<Vec<u8>, EncodeError> {
    encode(StoredReplica {
        paused_since: row.paused_since.map(|since| since.0),
        renamed_to: row.renamed_to.as_ref().map(Node::as_str),
        first_used: row.first_used.0,
    })
}

pub(in crate::store) fn read_replica(payload: &[u8]) -> Option<ReplicaRow> {
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

pub(in crate::store) fn idempotency(row: &IdempotencyRow) -> Result<Vec<u8>, EncodeError> {
    encode(StoredKey {
        task: row.task.0,
        fingerprint: row.fingerprint,
        at: row.at.0,
        answer: row.answer.clone(),
    })
}

pub(in crate::store) fn read_idempotency(payload: &[u8]) -> Option<IdempotencyRow> {
    let row: StoredKey = decode(payload)?;
    Some(IdempotencyRow {
        task: TaskId(row.task),
        fingerprint: row.fingerprint,
        at: Timestamp(row.at),
        answer: row.answer,
    })
}
