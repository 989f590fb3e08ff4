//! The payloads that the stores have in common, in bincode 2 (standard configuration). **A change to one
//! of these types is a migration of each store.**
//!
//! The envelope of a task is all but its value: [`EnvelopeRow`], then optionally [`EnvelopeMore`] (from
//! format 3), then [`ClientRow`] if that says so (from format 5), then optionally [`KeyRow`] (from format
//! 4). Older formats take trailing bytes for damage and cannot misread them.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use bincode::error::{DecodeError, EncodeError};
use bincode::{BorrowDecode, Encode};

use super::records::Header;
use crate::task::{
    Cause, Client, Consistency, DeadLetter, Idempotency, Node, Operation, Progress, Task, TaskId,
    Timestamp, Trace,
};

mod kept;

pub(in crate::store) use kept::{idempotency, read_idempotency, read_replica, replica};

/// For all error texts of one row together; a single one gets at most a third.
const ERROR_BYTES: usize = 3 * 1024;

/// bincode reserves memory by the length that it reads, before it finds that the bytes are missing.
/// A limit by the size of the payload bounds that: no element takes 64 times its bytes.
type Bincode<const LIMIT: usize> = Configuration<LittleEndian, Varint, Limit<LIMIT>>;
/// Above the longest payload of a single row.
pub(in crate::store) const SMALL: usize = 16 << 10;
const BINCODE_SMALL: Bincode<{ SMALL * 64 }> = bincode::config::standard().with_limit();
/// Above any envelope: 65,536 replicas with the longest addresses are half of it.
const BINCODE: Bincode<{ 128 << 20 }> = bincode::config::standard().with_limit();

pub(in crate::store) fn encode(row: impl Encode) -> Result<Vec<u8>, EncodeError> {
    bincode::encode_to_vec(row, BINCODE)
}

pub(in crate::store) fn decode<'a, T: BorrowDecode<'a, ()>>(payload: &'a [u8]) -> Option<T> {
    let (row, read) = decode_first(payload).ok()?;
    (read == payload.len()).then_some(row)
}

/// Also returns how many bytes were read.
pub(in crate::store) fn decode_first<'a, T: BorrowDecode<'a, ()>>(
    payload: &'a [u8],
) -> Result<(T, usize), DecodeError> {
    if payload.len() <= SMALL {
        bincode::borrow_decode_from_slice(payload, BINCODE_SMALL)
    } else {
        bincode::borrow_decode_from_slice(payload, BINCODE)
    }
}

/// Decodes a row and moves `rest` behind it.
pub(in crate::store) fn decode_next<'a, T: BorrowDecode<'a, ()>>(rest: &mut &'a [u8]) -> Option<T> {
    let (row, read) = decode_first(rest).ok()?;
    *rest = rest.get(read..)?;
    Some(row)
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

/// All of a task but its value.
pub(in crate::store) fn envelope(
    task: &Task,
    idempotency: Option<&Idempotency>,
) -> Result<Vec<u8>, EncodeError> {
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
    Ok(envelope)
}

pub(in crate::store) fn header(
    id: TaskId,
    envelope: &[u8],
    value_bytes: usize,
    nodes: &mut Nodes,
) -> Option<Header> {
    header_and_key(id, envelope, value_bytes, nodes).map(|(header, _)| header)
}

pub(in crate::store) fn header_and_key(
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
#[derive(Debug, Default)]
pub(in crate::store) struct Nodes(HashMap<String, Node>);

impl Nodes {
    /// Above any cluster; bounds the memory if every task names other nodes.
    const MAX: usize = 4096;

    pub(in crate::store) fn get(&mut self, text: &str) -> Node {
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
pub(in crate::store) enum ProgressRow<'a> {
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

pub(in crate::store) fn progress(entries: &[Progress]) -> Result<Vec<u8>, EncodeError> {
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
pub(in crate::store) fn read_progress(payload: &[u8]) -> Option<Vec<Option<Progress>>> {
    decode::<Vec<ProgressRow<'_>>>(payload).map(entries)
}

/// Reads [`progress`] and behind it [`dead_letter`] for each dead letter.
pub(in crate::store) fn read_progress_with_letters(mut payload: &[u8]) -> Option<Vec<Progress>> {
    let rest = &mut payload;
    let mut all = Vec::new();
    for entry in entries(decode_next(rest)?) {
        all.push(match entry {
            Some(progress) => progress,
            None => Progress::Dead(letter(&decode_next(rest)?)?),
        });
    }
    rest.is_empty().then_some(all)
}

fn entries(row: Vec<ProgressRow<'_>>) -> Vec<Option<Progress>> {
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
    entries.collect()
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

pub(in crate::store) fn dead_letter(letter: &DeadLetter) -> Result<Vec<u8>, EncodeError> {
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

pub(in crate::store) fn read_dead_letter(payload: &[u8]) -> Option<DeadLetter> {
    letter(&decode(payload)?)
}

fn letter(row: &DeadLetterRow<'_>) -> Option<DeadLetter> {
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
pub(in crate::store) fn truncate(text: &str, bytes: usize) -> &str {
    let end = (0..=bytes.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    end.and_then(|end| text.get(..end)).unwrap_or_default()
}
