//! The bytes of a row. Only this module and `rows/` name bincode.
//!
//! ```text
//! row      = version (1 byte, now 1) · checksum (4, big endian) · payload
//! checksum = CRC-32 of version · tag of the tree · key · payload
//! ```
//!
//! The checksum covers tree and key, so a row is valid only in its own place. A payload in `meta`
//! is one or more big endian numbers, a chunk's is raw bytes, all others are bincode 2 (standard
//! configuration) of the types below. **A change to one of these types is a migration.**
//!
//! A task is a stream of bytes: the envelope (all but the value), then the value. Its row in `tasks`
//! holds both lengths and the head of the stream; chunks in `values` hold the rest. Small tasks of one
//! commit share a row (`rows/packed.rs`). No row exceeds 4 KiB: sled keeps about 16 rows in a leaf, and
//! never syncs a leaf over 128 KiB. Error texts are truncated for the same reason.
//!
//! The envelope is [`EnvelopeRow`], then optionally [`EnvelopeMore`] (from format 3), then [`ClientRow`]
//! if that says so (from format 5), then optionally [`KeyRow`] (from format 4). Older formats take trailing bytes for damage and cannot misread them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::error::DecodeError;
use bincode::{BorrowDecode, Encode};

use super::error::{Damage, Failure};
use super::keys::Tree;
use crate::store::records::Header;
use crate::task::{
    Cause, Client, Consistency, DeadLetter, Idempotency, Node, Operation, Progress, Task, TaskId,
    Timestamp, Trace,
};

mod kept;
mod packed;

pub(super) use kept::{idempotency, read_idempotency, read_replica, replica};
pub(super) use packed::{NewRow, PackedTask, REACH, parse, tasks, without};

const ROW_VERSION: u8 = 1;
const FRAME_BYTES: usize = 5;

/// The longest row of `tasks`.
pub(super) const ROW_BYTES: usize = 4096;
/// The part of the stream in a row of `tasks`. With the frame and the two lengths (at most nine
/// bytes each) the row is at most 4 KiB.
pub(super) const HEAD_BYTES: usize = ROW_BYTES - FRAME_BYTES - 18;
pub(super) const CHUNK_BYTES: usize = 4096;
/// For all error texts of one row together; a single one gets at most a third.
const ERROR_BYTES: usize = 3 * 1024;

/// bincode reserves memory by the length that it reads, before it finds that the bytes are missing.
/// A limit by the size of the payload bounds that: no element takes 64 times its bytes.
type Bincode<const LIMIT: usize> = Configuration<LittleEndian, Varint, Limit<LIMIT>>;
/// Above the longest payload of a single row.
const SMALL: usize = 16 << 10;
const BINCODE_SMALL: Bincode<{ SMALL * 64 }> = bincode::config::standard().with_limit();
/// Above any envelope: 65,536 replicas with the longest addresses are half of it.
const BINCODE: Bincode<{ 128 << 20 }> = bincode::config::standard().with_limit();

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

fn encode(row: impl Encode) -> Result<Vec<u8>, Failure> {
    bincode::encode_to_vec(row, BINCODE).map_err(|error| Failure::Database(error.to_string()))
}

fn decode<'a, T: BorrowDecode<'a, ()>>(payload: &'a [u8]) -> Option<T> {
    let (row, read) = decode_first(payload).ok()?;
    (read == payload.len()).then_some(row)
}

/// Also returns how many bytes were read.
fn decode_first<'a, T: BorrowDecode<'a, ()>>(payload: &'a [u8]) -> Result<(T, usize), DecodeError> {
    if payload.len() <= SMALL {
        bincode::borrow_decode_from_slice(payload, BINCODE_SMALL)
    } else {
        bincode::borrow_decode_from_slice(payload, BINCODE)
    }
}

/// Decodes a row and moves `rest` behind it.
fn decode_next<'a, T: BorrowDecode<'a, ()>>(rest: &mut &'a [u8]) -> Option<T> {
    let (row, read) = decode_first(rest).ok()?;
    *rest = rest.get(read..)?;
    Some(row)
}

/// What precedes the stream of a task in a row of `tasks`.
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

/// From format 3. Absent for an eventual write without a trace, unless another row follows.
#[derive(Encode, BorrowDecode)]
struct EnvelopeMore<'a> {
    /// [`EVENTUAL`] or [`STRONG`], and [`CLIENT_FOLLOWS`].
    consistency: u8,
    trace: Option<TraceRow<'a>>,
}

#[derive(Encode, BorrowDecode)]
struct TraceRow<'a> {
    parent: &'a str,
    state: Option<&'a str>,
}

/// From format 5. Absent for a write whose client is not known.
#[derive(Encode, BorrowDecode)]
enum ClientRow<'a> {
    Token(&'a str),
    V4([u8; 4]),
    V6([u8; 16]),
}

impl<'a> ClientRow<'a> {
    fn of(client: &'a Client) -> Self {
        match client {
            Client::Token(name) => Self::Token(name),
            Client::Address(IpAddr::V4(address)) => Self::V4(address.octets()),
            Client::Address(IpAddr::V6(address)) => Self::V6(address.octets()),
        }
    }

    fn client(self) -> Client {
        match self {
            Self::Token(name) => Client::Token(name.into()),
            Self::V4(octets) => Client::Address(octets.into()),
            Self::V6(octets) => Client::Address(octets.into()),
        }
    }
}

/// From format 4. Absent for a write without an idempotency key.
#[derive(Encode, BorrowDecode)]
struct KeyRow<'a> {
    key: &'a str,
    fingerprint: [u8; 16],
}

const EVENTUAL: u8 = 0;
const STRONG: u8 = 1;
const CLIENT_FOLLOWS: u8 = 2;

const SET: u8 = 0;
const DELETE: u8 = 1;

pub(super) struct TaskStream<'a> {
    envelope: Vec<u8>,
    value: &'a [u8],
}

impl<'a> TaskStream<'a> {
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
        if more || task.client.is_some() || idempotency.is_some() {
            let consistency = match task.consistency {
                Consistency::Eventual => EVENTUAL,
                Consistency::Strong => STRONG,
            };
            let client = if task.client.is_some() { CLIENT_FOLLOWS } else { 0 };
            envelope.extend(encode(EnvelopeMore {
                consistency: consistency | client,
                trace: task
                    .trace
                    .as_ref()
                    .map(|trace| TraceRow { parent: &trace.parent, state: trace.state.as_deref() }),
            })?);
        }
        if let Some(client) = &task.client {
            envelope.extend(encode(ClientRow::of(client))?);
        }
        if let Some(Idempotency { key, fingerprint }) = idempotency {
            envelope.extend(encode(KeyRow { key, fingerprint: *fingerprint })?);
        }
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

pub(super) fn header(
    id: TaskId,
    envelope: &[u8],
    value_bytes: usize,
    nodes: &mut Nodes,
) -> Option<Header> {
    header_and_key(id, envelope, value_bytes, nodes).map(|(header, _)| header)
}

pub(super) fn header_and_key(
    id: TaskId,
    envelope: &[u8],
    value_bytes: usize,
    nodes: &mut Nodes,
) -> Option<(Header, Option<Idempotency>)> {
    let (row, read) = decode_first::<EnvelopeRow<'_>>(envelope).ok()?;
    let mut rest = envelope.get(read..)?;
    let mut more = EnvelopeMore { consistency: EVENTUAL, trace: None };
    if !rest.is_empty() {
        more = decode_next(&mut rest)?;
    }
    let client = match more.consistency & CLIENT_FOLLOWS {
        0 => None,
        _ => Some(decode_next::<ClientRow<'_>>(&mut rest)?.client()),
    };
    let key = match rest {
        [] => None,
        key => Some(decode::<KeyRow<'_>>(key)?),
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
        client,
        consistency: match more.consistency & !CLIENT_FOLLOWS {
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

/// Parsed nodes. A million tasks name the same few: each is parsed and stored once.
#[derive(Default)]
pub(super) struct Nodes(HashMap<String, Node>);

impl Nodes {
    /// Above any cluster; bounds the memory if every task names other nodes.
    const MAX: usize = 4096;

    fn get(&mut self, text: &str) -> Node {
        if let Some(node) = self.0.get(text) {
            return node.clone();
        }
        let node = Node::from_normal(text);
        if self.0.len() >= Self::MAX {
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
    /// The rest is in `dead_letters`.
    Dead,
    Ambiguous {
        since: u64,
    },
    Resend,
}

pub(super) fn progress(entries: &[Progress]) -> Result<Vec<u8>, Failure> {
    let failed = |entry: &&Progress| matches!(entry, Progress::Failed { .. });
    let room = ERROR_BYTES / entries.iter().filter(failed).count().max(3);
    let row: Vec<_> = entries
        .iter()
        .map(|entry| match entry {
            Progress::Untouched => ProgressRow::Untouched,
            Progress::Failed { failures, error } => {
                ProgressRow::Failed { failures: *failures, error: truncate(error, room) }
            }
            Progress::Delivered => ProgressRow::Delivered,
            Progress::Superseded => ProgressRow::Superseded,
            Progress::Dead(_) => ProgressRow::Dead,
            Progress::Ambiguous { since } => ProgressRow::Ambiguous { since: since.0 },
            Progress::Resend => ProgressRow::Resend,
        })
        .collect();
    encode(row)
}

/// `None` stands for a dead letter.
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
            ProgressRow::Ambiguous { since } => Progress::Ambiguous { since: Timestamp(since) },
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
/// From format 5.
const REFUSED: u8 = 3;

pub(super) fn dead_letter(letter: &DeadLetter) -> Result<Vec<u8>, Failure> {
    encode(DeadLetterRow {
        cause: match letter.cause {
            Cause::Rejected => REJECTED,
            Cause::GaveUp => GAVE_UP,
            Cause::RetryOverflow => RETRY_OVERFLOW,
            Cause::Refused => REFUSED,
        },
        failures: letter.failures,
        error: truncate(&letter.error, ERROR_BYTES / 3),
        since: letter.since.0,
    })
}

pub(super) fn read_dead_letter(payload: &[u8]) -> Option<DeadLetter> {
    let row: DeadLetterRow<'_> = decode(payload)?;
    Some(DeadLetter {
        cause: match row.cause {
            REJECTED => Cause::Rejected,
            GAVE_UP => Cause::GaveUp,
            RETRY_OVERFLOW => Cause::RetryOverflow,
            REFUSED => Cause::Refused,
            _ => return None,
        },
        failures: row.failures,
        error: Arc::from(row.error),
        since: Timestamp(row.since),
    })
}

/// At most `bytes` of a text, in whole characters.
fn truncate(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests;
