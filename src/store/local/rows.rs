//! The bytes of a row.
//!
//! ```text
//! row      = version (1 byte, now 1) · checksum (4, big endian) · payload
//! checksum = CRC-32 of version · tag of the tree · key · payload
//! ```
//!
//! The checksum covers tree and key, so a row is valid only in its own place. A payload in `meta`
//! is one or more big endian numbers, a chunk's is raw bytes, all others are bincode 2 (standard
//! configuration).
//!
//! A task is a stream of bytes: the envelope (all but the value), then the value. Its row in `tasks`
//! holds both lengths and the head of the stream; chunks in `values` hold the rest. Small tasks of one
//! commit share a row (`rows/packed.rs`). No row exceeds 4 KiB: sled keeps about 16 rows in a leaf, and
//! never syncs a leaf over 128 KiB. Error texts are truncated for the same reason.
//!
//! `src/store/payload.rs` has the envelope, progress, dead letters, replicas and keys.

use bincode::{BorrowDecode, Encode};

use super::error::{Damage, Failure};
use super::keys::{self, Tree};
use crate::store::payload::{self, decode_next, encode};
use crate::task::{Idempotency, Progress, Task, TaskId};

mod packed;

pub(super) use crate::store::payload::{
    Nodes, dead_letter, header, header_and_key, idempotency, progress, read_dead_letter,
    read_idempotency, read_progress, read_replica, replica,
};
pub(super) use packed::{NewRow, PackedTask, REACH, parse, tasks, without};

const ROW_VERSION: u8 = 1;
const FRAME_BYTES: usize = 5;

/// The longest row of `tasks`.
pub(super) const ROW_BYTES: usize = 4096;
/// The part of the stream in a row of `tasks`. With the frame and the two lengths (at most nine
/// bytes each) the row is at most 4 KiB.
pub(super) const HEAD_BYTES: usize = ROW_BYTES - FRAME_BYTES - 18;
pub(super) const CHUNK_BYTES: usize = 4096;

pub(super) fn seal(tree: Tree, key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(FRAME_BYTES + payload.len());
    row.push(ROW_VERSION);
    row.extend_from_slice(&checksum(ROW_VERSION, tree, key, payload).to_be_bytes());
    row.extend_from_slice(payload);
    row
}

/// Checks the frame and returns the payload.
pub(super) fn unseal<'a>(tree: Tree, key: &[u8], row: &'a [u8]) -> Result<&'a [u8], Damage> {
    let damage = |what| damage(tree, key, what);
    let Some((&[version, ref sum @ ..], payload)) = row.split_first_chunk::<FRAME_BYTES>() else {
        return Err(damage("is cut short"));
    };
    // Before the version: a flipped bit there is damage, not a future format.
    if checksum(version, tree, key, payload) != u32::from_be_bytes(*sum) {
        return Err(damage("fails its checksum"));
    }
    if version != ROW_VERSION {
        return Err(damage("is in a version that this binary does not know"));
    }
    Ok(payload)
}

/// The payload of a row that may be damaged.
pub(super) fn unchecked_payload(row: &[u8]) -> &[u8] {
    row.get(FRAME_BYTES..).unwrap_or_default()
}

pub(super) fn read<'a, T>(
    tree: Tree,
    key: &[u8],
    row: &'a [u8],
    decode: impl FnOnce(&'a [u8]) -> Option<T>,
) -> Result<T, Damage> {
    decode(unseal(tree, key, row)?).ok_or_else(|| undecodable(tree, key))
}

/// Reads a row of `meta`; `None` if it is missing.
pub(super) fn read_meta<T>(
    meta: &sled::Tree,
    key: &[u8],
    decode: impl FnOnce(&[u8]) -> Option<T>,
) -> Result<Option<T>, Failure> {
    Ok(meta.get(key)?.map(|row| read(Tree::Meta, key, &row, decode)).transpose()?)
}

/// Decodes a payload that is a single `u64`.
pub(super) fn number(payload: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(payload.try_into().ok()?))
}

fn checksum(version: u8, tree: Tree, key: &[u8], payload: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&[version, tree.tag()]);
    sum.update(key);
    sum.update(payload);
    sum.finalize()
}

/// The checksum stored in a row, right or wrong.
pub(super) fn stored_checksum(row: &[u8]) -> u32 {
    let sum = row.get(1..FRAME_BYTES).and_then(|bytes| bytes.try_into().ok());
    sum.map_or(0, u32::from_be_bytes)
}

pub(super) fn damage(tree: Tree, key: &[u8], what: &'static str) -> Damage {
    Damage { tree, key: key.to_vec(), what, last: None }
}

pub(super) fn undecodable(tree: Tree, key: &[u8]) -> Damage {
    damage(tree, key, "does not decode")
}

/// What precedes the stream of a task in a row of `tasks`.
#[derive(Encode, BorrowDecode)]
struct Lengths {
    envelope: u64,
    value: u64,
}

pub(super) struct TaskStream<'a> {
    envelope: Vec<u8>,
    value: &'a [u8],
}

impl<'a> TaskStream<'a> {
    pub(super) fn of(task: &'a Task, idempotency: Option<&Idempotency>) -> Result<Self, Failure> {
        let envelope = payload::envelope(task, idempotency)?;
        Ok(Self { envelope, value: &task.value })
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn envelope(&self) -> &[u8] {
        &self.envelope
    }

    fn bytes(&self) -> usize {
        self.envelope.len() + self.value.len()
    }

    fn has_chunks(&self) -> bool {
        self.bytes() > HEAD_BYTES
    }

    /// The lengths and the part of the stream that is in the row of `tasks`.
    pub(super) fn head(&self) -> Result<Vec<u8>, Failure> {
        let mut payload = encode(Lengths {
            envelope: self.envelope.len() as u64,
            value: self.value.len() as u64,
        })?;
        self.copy(0, HEAD_BYTES, &mut payload);
        Ok(payload)
    }

    /// The payloads of the rows in `values`.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (u32, Vec<u8>)> {
        let starts = (HEAD_BYTES..self.bytes()).step_by(CHUNK_BYTES);
        (0..).zip(starts).map(|(number, start)| {
            let mut payload = Vec::with_capacity(CHUNK_BYTES);
            self.copy(start, CHUNK_BYTES, &mut payload);
            (number, payload)
        })
    }

    /// Appends up to `bytes` of the stream to `out`.
    fn copy(&self, start: usize, bytes: usize, out: &mut Vec<u8>) {
        let value_starts = self.envelope.len();
        let end = start + bytes;
        for (part, offset) in [(&*self.envelope, 0), (self.value, value_starts)] {
            let clip = |at: usize| at.saturating_sub(offset).min(part.len());
            out.extend_from_slice(part.get(clip(start)..clip(end)).unwrap_or_default());
        }
    }
}

/// A task in a row of `tasks`. `envelope` and `value` are lengths, `bytes` is the head of the stream.
pub(super) struct TaskHead<'a> {
    pub(super) envelope: usize,
    pub(super) value: usize,
    pub(super) bytes: &'a [u8],
}

impl<'a> TaskHead<'a> {
    /// Reads the head of a task and moves `rest` behind it.
    fn next(rest: &mut &'a [u8]) -> Option<Self> {
        let lengths: Lengths = decode_next(rest)?;
        let envelope: usize = lengths.envelope.try_into().ok()?;
        let value = lengths.value.try_into().ok()?;
        let stream = envelope.checked_add(value)?;
        let (bytes, behind) = rest.split_at_checked(stream.min(HEAD_BYTES))?;
        *rest = behind;
        Some(Self { envelope, value, bytes })
    }

    /// The length of the stream.
    pub(super) fn stream(&self) -> usize {
        self.envelope.saturating_add(self.value)
    }

    pub(super) fn chunks(&self) -> usize {
        self.stream().saturating_sub(HEAD_BYTES).div_ceil(CHUNK_BYTES)
    }

    pub(super) fn chunk_bytes(&self, number: usize) -> usize {
        let start = number.saturating_mul(CHUNK_BYTES).saturating_add(HEAD_BYTES);
        self.stream().saturating_sub(start).min(CHUNK_BYTES)
    }
}

/// Unseals a chunk and checks its length.
pub(super) fn chunk<'a>(
    key: &[u8],
    row: &'a [u8],
    head: &TaskHead<'_>,
    number: usize,
) -> Result<&'a [u8], Damage> {
    let payload = unseal(Tree::Values, key, row)?;
    if payload.len() != head.chunk_bytes(number) {
        return Err(damage(Tree::Values, key, "has the wrong length"));
    }
    Ok(payload)
}

/// The progress of each replica, from the rows of a task in `progress` and `dead_letters`. A dead letter
/// overrides the progress row, because its own row is written first and removed last.
pub(super) fn progress_of<'a>(
    id: TaskId,
    replicas: usize,
    row: Option<(&[u8], &[u8])>,
    letters: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<Vec<Progress>, Damage> {
    let mut entries = match row {
        None => vec![Some(Progress::Untouched); replicas],
        Some((key, row)) => read(Tree::Progress, key, row, |payload| {
            read_progress(payload).filter(|entries| entries.len() == replicas)
        })?,
    };
    for (key, row) in letters {
        let letter = read(Tree::DeadLetters, key, row, read_dead_letter)?;
        let replica = keys::dead_letter(key).map(|(_, replica)| replica);
        let wrong = |what| damage(Tree::DeadLetters, key, what);
        let replica = replica.ok_or_else(|| wrong("has a key that was never written"))?;
        let entry = entries.get_mut(replica.get()).ok_or_else(|| wrong("is for no replica"))?;
        *entry = Some(Progress::Dead(letter));
    }
    let lacks_letter = || damage(Tree::Progress, &keys::of_task(id), "lacks a dead letter");
    entries.into_iter().collect::<Option<_>>().ok_or_else(lacks_letter)
}

#[cfg(test)]
mod tests;
