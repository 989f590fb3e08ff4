//! The rows that belong to no task: replicas and idempotency keys. The longest key row fills a row:
//! its answer names up to 1024 replicas, three bytes each.

use std::num::{NonZeroU32, NonZeroU64};

use bincode::error::EncodeError;
use bincode::{BorrowDecode, Encode};

use super::{decode, decode_next, encode};
use crate::store::records::{IdempotencyAnswer, IdempotencyRow, ReplicaRow};
use crate::task::{Node, ReplicaLimits, ReplicaPause, TaskId, Timestamp};

#[derive(Encode, BorrowDecode)]
struct StoredReplica<'a> {
    paused_since: Option<u64>,
    renamed_to: Option<&'a str>,
    first_used: u64,
}

/// From format 7. Absent without limits and an end of the pause.
#[derive(Default, PartialEq, Encode, BorrowDecode)]
struct StoredLimits {
    paused_until: Option<u64>,
    workers: Option<NonZeroU32>,
    rate: Option<NonZeroU32>,
    bandwidth: Option<NonZeroU64>,
    redrive_rate: Option<NonZeroU32>,
}

pub(in crate::store) fn replica(row: &ReplicaRow) -> Result<Vec<u8>, EncodeError> {
    let mut payload = encode(StoredReplica {
        paused_since: row.pause.map(|pause| pause.since.0),
        renamed_to: row.renamed_to.as_ref().map(Node::as_str),
        first_used: row.first_used.0,
    })?;
    let ReplicaLimits { workers, rate, bandwidth, redrive_rate } = row.limits;
    let paused_until = row.pause.and_then(|pause| pause.until).map(|until| until.0);
    let limits = StoredLimits { paused_until, workers, rate, bandwidth, redrive_rate };
    if limits != StoredLimits::default() {
        payload.extend(encode(limits)?);
    }
    Ok(payload)
}

pub(in crate::store) fn read_replica(mut payload: &[u8]) -> Option<ReplicaRow> {
    let row: StoredReplica<'_> = decode_next(&mut payload)?;
    let StoredLimits { paused_until, workers, rate, bandwidth, redrive_rate } = match payload {
        [] => StoredLimits::default(),
        limits => decode(limits)?,
    };
    let until = paused_until.map(Timestamp);
    Some(ReplicaRow {
        pause: row.paused_since.map(|since| ReplicaPause { since: Timestamp(since), until }),
        limits: ReplicaLimits { workers, rate, bandwidth, redrive_rate },
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
