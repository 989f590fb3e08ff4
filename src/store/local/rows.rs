//! What stands in a row, byte by byte; with `rows/` the only place that names bincode.
//!
//! ```text
//! row      = version (1 byte, now 1) · checksum (4, big endian) · payload
//! checksum = CRC-32 of version · tag of the tree · key · payload
//! ```
//!
//! The checksum covers the key and the tree, so that a row is only good in its own place. A
//! payload in `meta` is one or more big endian numbers, a chunk's is its bytes, all others are
//! bincode 2 in its standard configuration, of the private types below. These are the format: a
//! change to one of them is a migration.
//!
//! A task is one stream of bytes: its envelope (all but the value), then its value. The row in
//! `tasks` says how long the two are and holds the beginning of the stream, chunks in `values`
//! the rest. So a small task is a single row, and however large a task is, no row is larger than
//! about 4 KiB: sled keeps some 16 rows in a leaf, and a leaf over 128 KiB would go to a file of
//! its own that it never syncs.
//!
//! The envelope is that of format 2, and where there is more to say than was said then, an
//! [`EnvelopeMore`] behind it. A task that has nothing of it is the same bytes in both formats, and
//! a row of format 2 is read as one that has nothing: eventual, and of no trace. Format 2 itself
//! took bytes behind its envelope for damage, so nothing that it wrote can be misread.
//!
//! The key that a client gave its write stands behind that, from format 4 on, so that no crash leaves
//! a task without it. Format 3 took bytes there for damage, so the same holds of it.
//!
//! For the same reason the texts of errors are cut to fit when they are written.

use std::collections::HashMap;
use std::sync::Arc;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Encode};

use super::database::Database;
use super::error::{Damage, Failure};
use super::keys::Tree;
use crate::task::{
    Cause, Consistency, DeadLetter, Idempotency, Node, Operation, Progress, Task, TaskId,
    Timestamp, Trace,
};

mod kept;

pub use kept::{IdempotencyAnswer, IdempotencyRow, ReplicaRow};
pub(super) use kept::{idempotency, read_idempotency, read_replica, replica};

const ROW_VERSION: u8 = 1;
const FRAME_BYTES: usize = 5;

/// How much of a task's stream its row in `tasks` holds. With the frame and the two lengths (at
/// most nine bytes each) the row is at most 4 KiB.
pub(super) const HEAD_BYTES: usize = 4096 - FRAME_BYTES - 18;
/// How much of a task's stream one row in `values` holds.
pub(super) const CHUNK_BYTES: usize = 4096;
/// Room for all the error texts of one row together; one alone gets at most a third of it.
const ERROR_BYTES: usize = 3 * 1024;

/// The decoder reserves memory by what a length says, before it finds that the bytes are not there;
/// a limit for each size of a payload keeps that in proportion. No element takes 64 times its bytes.
type Bincode<const LIMIT: usize> = Configuration<LittleEndian, Varint, Limit<LIMIT>>;
/// The longest payload of a row by itself, and more.
const SMALL: usize = 16 << 10;
const BINCODE_SMALL: Bincode<{ SMALL * 64 }> = bincode::config::standard().with_limit();
/// Larger than any envelope, which can go over many rows: 65,536 replicas with the longest addresses
/// are half of it.
const BINCODE: Bincode<{ 128 << 20 }> = bincode::config::standard().with_limit();

/// Puts a payload into its frame.
pub(super) fn seal(tree: Tree, key: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(FRAME_BYTES + payload.len());
    row.push(ROW_VERSION);
    row.extend_from_slice(&checksum(ROW_VERSION, tree, key, payload).to_be_bytes());
    row.extend_from_slice(payload);
    row
}

/// Takes the payload out of a row that lies in `tree` under `key`.
pub(super) fn unseal<'a>(tree: Tree, key: &[u8], row: &'a [u8]) -> Result<&'a [u8], Damage> {
    let damage = |what| damage(tree, key, what);
    let Some((&[version, ref sum @ ..], payload)) = row.split_first_chunk::<FRAME_BYTES>() else {
        return Err(damage("is cut short"));
    };
    // Before the version: a flipped bit there is damage, not a format of the future.
    if checksum(version, tree, key, payload) != u32::from_be_bytes(*sum) {
        return Err(damage("fails its checksum"));
    }
    if version != ROW_VERSION {
        return Err(damage("is in a version that this binary does not know"));
    }
    Ok(payload)
}

fn checksum(version: u8, tree: Tree, key: &[u8], payload: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&[version, tree.tag()]);
    sum.update(key);
    sum.update(payload);
    sum.finalize()
}

/// The checksum that a row carries, whether it is right or not.
pub(super) fn checksum_in(row: &[u8]) -> u32 {
    let sum = row.get(1..FRAME_BYTES).and_then(|bytes| bytes.try_into().ok());
    sum.map_or(0, u32::from_be_bytes)
}

/// This row is not what was written.
pub(super) fn damage(tree: Tree, key: &[u8], what: &'static str) -> Damage {
    Damage { tree, key: key.to_vec(), what }
}

fn encode(row: impl Encode) -> Result<Vec<u8>, Failure> {
    bincode::encode_to_vec(row, BINCODE).map_err(|error| Failure::Database(error.to_string()))
}

fn decode<'a, T: BorrowDecode<'a, ()>>(payload: &'a [u8]) -> Option<T> {
    let (row, read) = decode_first(payload).ok()?;
    (read == payload.len()).then_some(row)
}

/// Decodes what a payload begins with, and says how many bytes that are.
fn decode_first<'a, T: BorrowDecode<'a, ()>>(payload: &'a [u8]) -> Result<(T, usize), DecodeError> {
    if payload.len() <= SMALL {
        bincode::borrow_decode_from_slice(payload, BINCODE_SMALL)
    } else {
        bincode::borrow_decode_from_slice(payload, BINCODE)
    }
}

/// What stands before the stream's first part in a row of `tasks`.
#[derive(Encode, BorrowDecode)]
struct Lengths {
    envelope: u64,
    value: u64,
}

#[derive(Encode, BorrowDecode)]
struct EnvelopeRow<'a> {
    key: &'a str,
    operation: u8,
    accepted_at: u64,
    expires_at: Option<u64>,
    replicas: Vec<&'a str>,
    user_id: Option<&'a str>,
}

/// What format 3 knows of a task beyond [`EnvelopeRow`]; not there for an eventual write of no
/// trace, unless a [`KeyRow`] follows.
#[derive(Encode, BorrowDecode)]
struct EnvelopeMore<'a> {
    consistency: u8,
    trace: Option<TraceRow<'a>>,
}

#[derive(Encode, BorrowDecode)]
struct TraceRow<'a> {
    parent: &'a str,
    state: Option<&'a str>,
}

/// What format 4 knows beyond [`EnvelopeMore`]; not there for a write without an idempotency key.
#[derive(Encode, BorrowDecode)]
struct KeyRow<'a> {
    key: &'a str,
    fingerprint: [u8; 16],
}

const EVENTUAL: u8 = 0;
const STRONG: u8 = 1;

const SET: u8 = 0;
const DELETE: u8 = 1;

/// A task on its way into its rows.
pub(super) struct Stream<'a> {
    envelope: Vec<u8>,
    value: &'a [u8],
}

impl<'a> Stream<'a> {
    /// The stream of a task, whose client may have given it a key.
    pub(super) fn of(task: &'a Task, idempotency: Option<&Idempotency>) -> Result<Self, Failure> {
        let envelope = EnvelopeRow {
            key: &task.key,
            operation: match task.operation {
                Operation::Set => SET,
                Operation::Delete => DELETE,
            },
            accepted_at: task.accepted_at.0,
            expires_at: task.expires_at.map(|end| end.0),
            replicas: task.replicas.iter().map(Node::as_str).collect(),
            user_id: task.user_id.as_deref(),
        };
        let mut envelope = encode(envelope)?;
        let more = task.consistency != Consistency::Eventual || task.trace.is_some();
        if more || idempotency.is_some() {
            envelope.extend(encode(EnvelopeMore {
                consistency: match task.consistency {
                    Consistency::Eventual => EVENTUAL,
                    Consistency::Strong => STRONG,
                },
                trace: task
                    .trace
                    .as_ref()
                    .map(|trace| TraceRow { parent: &trace.parent, state: trace.state.as_deref() }),
            })?);
        }
        if let Some(Idempotency { key, fingerprint }) = idempotency {
            envelope.extend(encode(KeyRow { key, fingerprint: *fingerprint })?);
        }
        Ok(Self { envelope, value: &task.value })
    }

    /// What stands before the value.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn envelope(&self) -> &[u8] {
        &self.envelope
    }

    /// The payload of the row in `tasks`.
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
        let starts = (HEAD_BYTES..self.envelope.len() + self.value.len()).step_by(CHUNK_BYTES);
        (0..).zip(starts).map(|(number, start)| {
            let mut payload = Vec::with_capacity(CHUNK_BYTES);
            self.copy(start, CHUNK_BYTES, &mut payload);
            (number, payload)
        })
    }

    /// Appends up to `bytes` of the stream from `start` on.
    fn copy(&self, start: usize, bytes: usize, out: &mut Vec<u8>) {
        let value_starts = self.envelope.len();
        let end = start + bytes;
        for (part, offset) in [(&*self.envelope, 0), (self.value, value_starts)] {
            let clip = |at: usize| at.saturating_sub(offset).min(part.len());
            out.extend_from_slice(part.get(clip(start)..clip(end)).unwrap_or_default());
        }
    }
}

/// A row of `tasks`: what it says of its task's stream, and the beginning of it.
pub(super) struct Head<'a> {
    /// The length of the envelope, in bytes.
    pub(super) envelope: usize,
    /// The length of the value, in bytes.
    pub(super) value: usize,
    /// The beginning of the stream.
    pub(super) bytes: &'a [u8],
}

impl<'a> Head<'a> {
    /// Reads a row of `tasks`.
    pub(super) fn read(key: &[u8], row: &'a [u8]) -> Result<Self, Damage> {
        let payload = unseal(Tree::Tasks, key, row)?;
        Self::parse(payload).ok_or_else(|| damage(Tree::Tasks, key, "does not decode"))
    }

    pub(super) fn parse(payload: &'a [u8]) -> Option<Self> {
        let (lengths, read) = decode_first::<Lengths>(payload).ok()?;
        let head = Self {
            envelope: lengths.envelope.try_into().ok()?,
            value: lengths.value.try_into().ok()?,
            bytes: payload.get(read..)?,
        };
        let stream = head.envelope.checked_add(head.value)?;
        (head.bytes.len() == stream.min(HEAD_BYTES)).then_some(head)
    }

    /// How long the whole stream is, in bytes.
    pub(super) fn stream(&self) -> usize {
        self.envelope.saturating_add(self.value)
    }

    /// How many rows of `values` belong to the task.
    pub(super) fn chunks(&self) -> usize {
        self.stream().saturating_sub(HEAD_BYTES).div_ceil(CHUNK_BYTES)
    }

    /// How long the payload of the chunk with this number is.
    pub(super) fn chunk_bytes(&self, number: usize) -> usize {
        let start = number.saturating_mul(CHUNK_BYTES).saturating_add(HEAD_BYTES);
        self.stream().saturating_sub(start).min(CHUNK_BYTES)
    }
}

/// The payload of the chunk with this number.
pub(super) fn chunk<'a>(
    key: &[u8],
    row: &'a [u8],
    head: &Head<'_>,
    number: usize,
) -> Result<&'a [u8], Damage> {
    let payload = unseal(Tree::Values, key, row)?;
    if payload.len() != head.chunk_bytes(number) {
        return Err(damage(Tree::Values, key, "has the wrong length"));
    }
    Ok(payload)
}

/// An accepted write without its value: what recovery hands over, so that the values of a large
/// queue need not fit into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its place in the order of acceptance.
    pub id: TaskId,
    /// The key as the client wrote it.
    pub key: String,
    /// SET or DELETE.
    pub operation: Operation,
    /// When it was accepted.
    pub accepted_at: Timestamp,
    /// From when on the key is to be gone; `None` is never.
    pub expires_at: Option<Timestamp>,
    /// The nodes that are to hold the write.
    pub replicas: Vec<Node>,
    /// Whose write this is.
    pub user_id: Option<String>,
    /// What the client waited for; eventual for a task from before format 3, which did not say.
    pub consistency: Consistency,
    /// The trace that it belongs to.
    pub trace: Option<Trace>,
    /// How long the value is, in bytes.
    pub value_bytes: usize,
}

impl Header {
    /// What stands before the value of a task.
    #[must_use]
    pub fn of(task: &Task) -> Self {
        Self {
            id: task.id,
            key: task.key.clone(),
            operation: task.operation,
            accepted_at: task.accepted_at,
            expires_at: task.expires_at,
            replicas: task.replicas.clone(),
            user_id: task.user_id.clone(),
            consistency: task.consistency,
            trace: task.trace.clone(),
            value_bytes: task.value.len(),
        }
    }
}

/// Reads the envelope of a task; `None` if it does not decode.
pub(super) fn header(
    id: TaskId,
    envelope: &[u8],
    value_bytes: usize,
    nodes: &mut Nodes,
) -> Option<Header> {
    header_and_key(id, envelope, value_bytes, nodes).map(|(header, _)| header)
}

/// Reads the envelope of a task, and in it the key that its client gave it; `None` if it does not
/// decode.
pub(super) fn header_and_key(
    id: TaskId,
    envelope: &[u8],
    value_bytes: usize,
    nodes: &mut Nodes,
) -> Option<(Header, Option<Idempotency>)> {
    let (row, read) = decode_first::<EnvelopeRow<'_>>(envelope).ok()?;
    let (more, key) = match envelope.get(read..)? {
        [] => (EnvelopeMore { consistency: EVENTUAL, trace: None }, None),
        more => {
            let (row, read) = decode_first::<EnvelopeMore<'_>>(more).ok()?;
            match more.get(read..)? {
                [] => (row, None),
                key => (row, Some(decode::<KeyRow<'_>>(key)?)),
            }
        }
    };
    let key = key.map(|row| Idempotency { key: row.key.into(), fingerprint: row.fingerprint });
    let header = Header {
        id,
        key: row.key.to_owned(),
        operation: match row.operation {
            SET => Operation::Set,
            DELETE => Operation::Delete,
            _ => return None,
        },
        accepted_at: Timestamp(row.accepted_at),
        expires_at: row.expires_at.map(Timestamp),
        replicas: row.replicas.iter().map(|text| nodes.get(text)).collect(),
        user_id: row.user_id.map(str::to_owned),
        consistency: match more.consistency {
            EVENTUAL => Consistency::Eventual,
            STRONG => Consistency::Strong,
            _ => return None,
        },
        trace: more
            .trace
            .map(|trace| Trace { parent: trace.parent.into(), state: trace.state.map(Box::from) }),
        value_bytes,
    };
    Some((header, key))
}

/// What the row of a task seems to say, whatever its checksum is: for a task that is set aside.
/// `None` if it does not decode.
pub(super) fn guess_header(database: &Database, id: TaskId) -> Result<Option<Header>, Failure> {
    let Some(row) = database.tasks.get(super::keys::of_task(id))? else {
        return Ok(None);
    };
    let Some(head) = row.get(FRAME_BYTES..).and_then(Head::parse) else {
        return Ok(None);
    };
    let mut stream = head.bytes.to_vec();
    for number in (0..).take(head.chunks()) {
        if stream.len() >= head.envelope {
            break;
        }
        let Some(chunk) = database.values.get(super::keys::of_chunk(id, number))? else {
            return Ok(None);
        };
        stream.extend_from_slice(chunk.get(FRAME_BYTES..).unwrap_or_default());
    }
    let envelope = stream.get(..head.envelope);
    Ok(envelope.and_then(|envelope| header(id, envelope, head.value, &mut Nodes::default())))
}

/// Nodes that were read before. A million tasks name the same few: parsed once, held once.
#[derive(Default)]
pub(super) struct Nodes(HashMap<String, Node>);

impl Nodes {
    /// More than a cluster has; where every task names others, memory stays bounded.
    const MOST: usize = 4096;

    fn get(&mut self, text: &str) -> Node {
        if let Some(node) = self.0.get(text) {
            return node.clone();
        }
        let node = Node::from_normal(text);
        if self.0.len() >= Self::MOST {
            self.0.clear();
        }
        self.0.insert(text.to_owned(), node.clone());
        node
    }
}

#[derive(Encode, BorrowDecode)]
enum ProgressRow<'a> {
    Untouched,
    Failed {
        failures: u32,
        error: &'a str,
    },
    Delivered,
    Superseded,
    /// The rest stands in `dead_letters`.
    Dead,
    Doubted {
        since: u64,
    },
    Resend,
}

/// The payload of a row in `progress`, one entry a replica.
pub(super) fn progress(entries: &[Progress]) -> Result<Vec<u8>, Failure> {
    let failed = |entry: &&Progress| matches!(entry, Progress::Failed { .. });
    let room = ERROR_BYTES / entries.iter().filter(failed).count().max(3);
    let row: Vec<_> = entries
        .iter()
        .map(|entry| match entry {
            Progress::Untouched => ProgressRow::Untouched,
            Progress::Failed { failures, error } => {
                ProgressRow::Failed { failures: *failures, error: cut(error, room) }
            }
            Progress::Delivered => ProgressRow::Delivered,
            Progress::Superseded => ProgressRow::Superseded,
            Progress::Dead(_) => ProgressRow::Dead,
            Progress::Ambiguous { since } => ProgressRow::Doubted { since: since.0 },
            Progress::Resend => ProgressRow::Resend,
        })
        .collect();
    encode(row)
}

/// Reads a payload of `progress`. `None` stands for a dead letter, whose row has the rest.
pub(super) fn read_progress(payload: &[u8]) -> Option<Vec<Option<Progress>>> {
    let row: Vec<ProgressRow<'_>> = decode(payload)?;
    let entries = row.into_iter().map(|entry| {
        Some(match entry {
            ProgressRow::Untouched => Progress::Untouched,
            ProgressRow::Failed { failures, error } => {
                Progress::Failed { failures, error: Arc::from(error) }
            }
            ProgressRow::Delivered => Progress::Delivered,
            ProgressRow::Superseded => Progress::Superseded,
            ProgressRow::Dead => return None,
            ProgressRow::Doubted { since } => Progress::Ambiguous { since: Timestamp(since) },
            ProgressRow::Resend => Progress::Resend,
        })
    });
    Some(entries.collect())
}

#[derive(Encode, BorrowDecode)]
struct DeadLetterRow<'a> {
    cause: u8,
    failures: u32,
    error: &'a str,
    since: u64,
}

const REJECTED: u8 = 0;
const GAVE_UP: u8 = 1;
const RETRY_OVERFLOW: u8 = 2;

/// The payload of a row in `dead_letters`.
pub(super) fn dead_letter(letter: &DeadLetter) -> Result<Vec<u8>, Failure> {
    encode(DeadLetterRow {
        cause: match letter.cause {
            Cause::Rejected => REJECTED,
            Cause::GaveUp => GAVE_UP,
            Cause::RetryOverflow => RETRY_OVERFLOW,
        },
        failures: letter.failures,
        error: cut(&letter.error, ERROR_BYTES / 3),
        since: letter.since.0,
    })
}

/// Reads a payload of `dead_letters`.
pub(super) fn read_dead_letter(payload: &[u8]) -> Option<DeadLetter> {
    let row: DeadLetterRow<'_> = decode(payload)?;
    Some(DeadLetter {
        cause: match row.cause {
            REJECTED => Cause::Rejected,
            GAVE_UP => Cause::GaveUp,
            RETRY_OVERFLOW => Cause::RetryOverflow,
            _ => return None,
        },
        failures: row.failures,
        error: Arc::from(row.error),
        since: Timestamp(row.since),
    })
}

/// The beginning of a text, in whole characters.
fn cut(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
