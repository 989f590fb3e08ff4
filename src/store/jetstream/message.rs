//! The bytes of the messages of a partition.
//!
//! ```text
//! message  = version (1 byte, now 1) · checksum (4, big endian) · payload
//! checksum = CRC-32 of version · kind · payload
//! ```
//!
//! | kind | payload |
//! | --- | --- |
//! | task | [`TaskMessageHead`], the envelope, and the value unless it has chunks |
//! | chunk | the nonce of its task (16 bytes), its number (4), bytes of the value |
//! | progress | as in the local store, then each of its dead letters |
//! | copy | [`CopyHead`], then the message of the task as it is |
//! | checkpoint | [`Checkpoint`] |
//! | pushed tasks | for each: [`PushedHead`], then its message as it is; not stored |
//!
//! `src/store/payload.rs` has the envelope and the progress.

use std::sync::Arc;

use bincode::error::EncodeError;
use bincode::{BorrowDecode, Encode};
use bytes::Bytes;
use ring::rand::{SecureRandom, SystemRandom};
use thiserror::Error;

use super::checkpoint::Checkpoint;
use crate::store::payload::{self, Nodes};
use crate::store::records::Header;
use crate::task::{DeadLetter, Idempotency, Progress, Task, TaskId};

const VERSION: u8 = 1;
const FRAME_BYTES: usize = 5;

/// A longer value is in chunks of this length. Servers take messages of up to 1 MiB.
pub(super) const CHUNK_BYTES: usize = 512 << 10;

/// For all error texts of one progress together. A single one gets at most 1 KiB.
const LETTER_BYTES: usize = 256 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Task,
    Chunk,
    Progress,
    Copy,
    Checkpoint,
    Pushed,
}

impl Kind {
    /// Part of the checksum, so that no message is valid as another kind.
    fn tag(self) -> u8 {
        match self {
            Self::Task => b't',
            Self::Chunk => b'v',
            Self::Progress => b'g',
            Self::Copy => b'k',
            Self::Checkpoint => b'c',
            Self::Pushed => b's',
        }
    }
}

/// A message that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub(super) enum MessageError {
    #[error("is damaged")]
    Damaged,
    #[error("has version {0}, which this binary does not know")]
    Version(u8),
}

/// Identifies a write over all attempts to store it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Nonce(pub(super) u128);

impl Nonce {
    pub(super) fn random() -> Self {
        Self(u128::from_be_bytes(random()))
    }

    /// The value of the header `Nats-Msg-Id`, by which the servers find repeats.
    pub(super) fn text(self) -> String {
        format!("{:032x}", self.0)
    }
}

/// Random bytes of the operating system.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // Fails only where the system has no source of randomness at all.
    if SystemRandom::new().fill(&mut bytes).is_err() {
        fastrand::fill(&mut bytes);
    }
    bytes
}

fn seal(kind: Kind, payload: &[&[u8]]) -> Bytes {
    let bytes = payload.iter().map(|part| part.len()).sum::<usize>();
    let mut message = Vec::with_capacity(FRAME_BYTES + bytes);
    message.push(VERSION);
    message.extend_from_slice(&checksum(VERSION, kind, payload).to_be_bytes());
    payload.iter().for_each(|part| message.extend_from_slice(part));
    message.into()
}

fn unseal(kind: Kind, message: &Bytes) -> Result<Bytes, MessageError> {
    let Some((&[version, ref sum @ ..], payload)) = message.split_first_chunk::<FRAME_BYTES>()
    else {
        return Err(MessageError::Damaged);
    };
    // Before the version: a flipped bit there is damage, not a future format.
    if checksum(version, kind, &[payload]) != u32::from_be_bytes(*sum) {
        return Err(MessageError::Damaged);
    }
    if version != VERSION {
        return Err(MessageError::Version(version));
    }
    Ok(message.slice(FRAME_BYTES..))
}

fn checksum(version: u8, kind: Kind, payload: &[&[u8]]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&[version, kind.tag()]);
    payload.iter().for_each(|part| sum.update(part));
    sum.finalize()
}

/// What precedes the envelope of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub(super) struct TaskMessageHead {
    nonce: u128,
    envelope: u64,
    value: u64,
    /// Messages with the value, right before this one; 0 if the value is in this one.
    chunks: u32,
    /// The process that waits for the answer of a strong write.
    awaited_by: Option<u64>,
}

/// The messages of a task: its chunks and then the task itself.
#[derive(Clone, Debug)]
pub(super) struct TaskMessages {
    pub(super) nonce: Nonce,
    pub(super) chunks: Vec<Bytes>,
    pub(super) task: Bytes,
}

impl TaskMessages {
    /// The id of the task is not in them: the servers give it.
    pub(super) fn of(
        task: &Task,
        idempotency: Option<&Idempotency>,
        nonce: Nonce,
        awaited_by: Option<u64>,
    ) -> Result<Self, EncodeError> {
        let envelope = payload::envelope(task, idempotency)?;
        let chunk = |(number, bytes): (u32, &[u8])| {
            seal(Kind::Chunk, &[&nonce.0.to_be_bytes(), &number.to_be_bytes(), bytes])
        };
        let is_large = task.value.len() > CHUNK_BYTES;
        let chunks: Vec<_> = match is_large {
            true => (0..).zip(task.value.chunks(CHUNK_BYTES)).map(chunk).collect(),
            false => Vec::new(),
        };
        let head = payload::encode(TaskMessageHead {
            nonce: nonce.0,
            envelope: envelope.len() as u64,
            value: task.value.len() as u64,
            chunks: u32::try_from(chunks.len()).unwrap_or(u32::MAX),
            awaited_by,
        })?;
        let value: &[u8] = if is_large { &[] } else { &task.value };
        Ok(Self { nonce, chunks, task: seal(Kind::Task, &[&head, &envelope, value]) })
    }
}

/// A task as it is in its message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StoredTask {
    pub(super) header: Header,
    pub(super) idempotency: Option<Idempotency>,
    pub(super) nonce: Nonce,
    pub(super) chunks: u32,
    pub(super) awaited_by: Option<u64>,
    /// Empty if it has chunks.
    value: Bytes,
}

/// The most messages of a batch, one of which is the task itself.
const MAX_CHUNKS: u64 = 999;

/// The longest value that can be stored.
pub const MAX_VALUE_BYTES: u64 = MAX_CHUNKS * CHUNK_BYTES as u64;

pub(super) fn read_task(
    id: TaskId,
    message: &Bytes,
    nodes: &mut Nodes,
) -> Result<StoredTask, MessageError> {
    let payload = unseal(Kind::Task, message)?;
    let mut rest = &*payload;
    let mut read = || {
        let head: TaskMessageHead = payload::decode_next(&mut rest)?;
        let start = payload.len() - rest.len();
        let end = start.checked_add(usize::try_from(head.envelope).ok()?)?;
        let envelope = payload.get(start..end)?;
        let value_bytes = usize::try_from(head.value).ok()?;
        let value = payload.slice(end..);
        let expected = if head.chunks == 0 { value_bytes } else { 0 };
        let chunks = value_bytes.div_ceil(CHUNK_BYTES);
        let has_chunks = usize::try_from(head.chunks) == Ok(chunks) && chunks > 1;
        if value.len() != expected || (head.chunks > 0 && !has_chunks) {
            return None;
        }
        let (header, idempotency) = payload::header_and_key(id, envelope, value_bytes, nodes)?;
        let (nonce, chunks, awaited_by) = (Nonce(head.nonce), head.chunks, head.awaited_by);
        Some(StoredTask { header, idempotency, nonce, chunks, awaited_by, value })
    };
    read().ok_or(MessageError::Damaged)
}

impl StoredTask {
    /// The task, if its message has its whole value.
    pub(super) fn whole(self) -> Result<Task, Box<Self>> {
        if self.chunks > 0 { Err(Box::new(self)) } else { Ok(self.header.into_task(self.value)) }
    }

    /// The task with the value from its chunks, which are in their order.
    pub(super) fn with_chunks(self, chunks: &[Bytes]) -> Result<Task, MessageError> {
        let mut value = Vec::with_capacity(self.header.value_bytes.min(CHUNK_BYTES * chunks.len()));
        for (number, chunk) in (0_u32..).zip(chunks) {
            let payload = unseal(Kind::Chunk, chunk)?;
            let prefix = [&self.nonce.0.to_be_bytes()[..], &number.to_be_bytes()].concat();
            let bytes = payload.strip_prefix(&*prefix).ok_or(MessageError::Damaged)?;
            value.extend_from_slice(bytes);
        }
        if value.len() != self.header.value_bytes {
            return Err(MessageError::Damaged);
        }
        Ok(self.header.into_task(value.into()))
    }
}

/// What precedes the message of a task that was copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, BorrowDecode)]
struct CopyHead {
    id: u64,
    /// The first of its chunks; 0 if the value is in the message.
    chunks: u64,
}

/// A copy of the message of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TaskCopy {
    /// The first of its chunks.
    pub(super) chunks: Option<u64>,
    pub(super) message: Bytes,
}

/// Of the task whose first message has the sequence `id`.
pub(super) fn copy(id: u64, copy: &TaskCopy) -> Result<Bytes, EncodeError> {
    let head = payload::encode(CopyHead { id, chunks: copy.chunks.unwrap_or(0) })?;
    Ok(seal(Kind::Copy, &[&head, &copy.message]))
}

pub(super) fn read_copy(id: u64, message: &Bytes) -> Result<TaskCopy, MessageError> {
    let payload = unseal(Kind::Copy, message)?;
    let mut rest = &*payload;
    let head: Option<CopyHead> = payload::decode_next(&mut rest);
    let head = head.filter(|head| head.id == id).ok_or(MessageError::Damaged)?;
    let chunks = (head.chunks > 0).then_some(head.chunks);
    Ok(TaskCopy { chunks, message: payload.slice(payload.len() - rest.len()..) })
}

/// A stored task on its way to the owner of its partition: the message as it is in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PushedTask {
    pub(super) id: TaskId,
    pub(super) message: Bytes,
}

/// What precedes the message of a pushed task.
#[derive(Clone, Copy, Debug, Encode, BorrowDecode)]
struct PushedHead {
    id: u64,
    bytes: u64,
}

pub(super) fn pushed(tasks: &[PushedTask]) -> Result<Bytes, EncodeError> {
    let mut parts = Vec::new();
    for PushedTask { id, message } in tasks {
        parts.extend(payload::encode(PushedHead { id: id.0, bytes: message.len() as u64 })?);
        parts.extend_from_slice(message);
    }
    Ok(seal(Kind::Pushed, &[&parts]))
}

pub(super) fn read_pushed(message: &Bytes) -> Result<Vec<PushedTask>, MessageError> {
    let payload = unseal(Kind::Pushed, message)?;
    let mut rest = &*payload;
    let mut tasks = Vec::new();
    while !rest.is_empty() {
        let head: Option<PushedHead> = payload::decode_next(&mut rest);
        let taken = head.and_then(|PushedHead { id, bytes }| {
            let (message, next) = rest.split_at_checked(usize::try_from(bytes).ok()?)?;
            // Copied: one of them may be kept much longer than the others.
            Some((PushedTask { id: TaskId(id), message: Bytes::copy_from_slice(message) }, next))
        });
        let (task, next) = taken.ok_or(MessageError::Damaged)?;
        tasks.push(task);
        rest = next;
    }
    Ok(tasks)
}

pub(super) fn progress(entries: &[Progress]) -> Result<Bytes, EncodeError> {
    let letters = || entries.iter().filter_map(letter);
    let mut bytes = payload::progress(entries)?;
    let room = LETTER_BYTES / letters().count().max(1);
    for letter in letters() {
        let error: Arc<str> = payload::truncate(&letter.error, room).into();
        let letter = DeadLetter { error, ..letter.clone() };
        bytes.extend(payload::dead_letter(&letter)?);
    }
    Ok(seal(Kind::Progress, &[&bytes]))
}

fn letter(progress: &Progress) -> Option<&DeadLetter> {
    match progress {
        Progress::Dead(letter) => Some(letter),
        _ => None,
    }
}

pub(super) fn read_progress(message: &Bytes) -> Result<Vec<Progress>, MessageError> {
    let payload = unseal(Kind::Progress, message)?;
    payload::read_progress_with_letters(&payload).ok_or(MessageError::Damaged)
}

pub(super) fn checkpoint(checkpoint: &Checkpoint) -> Result<Bytes, EncodeError> {
    Ok(seal(Kind::Checkpoint, &[&payload::encode(checkpoint)?]))
}

pub(super) fn read_checkpoint(message: &Bytes) -> Result<Checkpoint, MessageError> {
    let payload = unseal(Kind::Checkpoint, message)?;
    payload::decode(&payload).ok_or(MessageError::Damaged)
}

#[cfg(test)]
mod tests;
