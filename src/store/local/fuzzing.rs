//! Fuzz target: arbitrary bytes as rows, and rows of arbitrary values.

#![allow(
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a target reports a violation by a panic"
)]

use std::net::IpAddr;
use std::num::{NonZeroU32, NonZeroU64};

use bytes::Bytes;

use super::database::TREES;
use super::integrity::ledger::Ledger;
use super::keys::{self, Tree};
use super::rows::{self, NewRow, Nodes, PackedTask, TaskHead, TaskStream};
use crate::fuzzing::input::Input;
use crate::store::records::{Header, IdempotencyAnswer, IdempotencyRow, ReplicaRow};
use crate::task::{
    Cause, Client, Consistency, DeadLetter, Idempotency, Node, Operation, Progress, ReplicaIndex,
    ReplicaLimits, ReplicaPause, Task, TaskId, Timestamp, Trace,
};

pub(crate) use crate::store::lines::fuzzing::import;

/// Bytes that are no row are refused; encoded values decode to the same values; a row that was changed
/// or moved is refused. The first byte selects one of these.
pub(crate) fn rows(data: &[u8]) {
    let mut input = Input::new(data);
    match input.below(4) {
        0 => any_bytes(input.rest()),
        1 => a_task(&mut input),
        2 => beside_a_task(&mut input),
        _ => changed(&mut input),
    }
}

/// Decodes the bytes as rows and as payloads.
fn any_bytes(bytes: &[u8]) {
    let id = TaskId(7);
    let (key, row) = bytes.split_at(bytes.len().min(8));
    for tree in TREES {
        if let Ok(payload) = rows::unseal(tree, key, row) {
            assert_eq!(rows::seal(tree, key, payload), row);
        }
    }
    packed(&keys::of_task(id), id, bytes);
    if let (Ok(tasks), Some(first)) = (rows::tasks(key, row), keys::task(key)) {
        assert!(!tasks.is_empty());
        packed(key, first, rows::unchecked_payload(row));
    }
    let _ = (keys::task(key), keys::dead_letter(bytes), Tree::Values.owner(bytes));
    let _ = Ledger::read(bytes).map(|ledger| assert!([64, 80].contains(&ledger.payload().len())));
    if let Some((header, key)) = rows::header_and_key(id, bytes, 0, &mut Nodes::default()) {
        let task = header.clone().into_task(Bytes::new());
        let stream = TaskStream::of(&task, key.as_ref()).unwrap();
        let again = rows::header_and_key(id, stream.envelope(), 0, &mut Nodes::default());
        assert_eq!(again, Some((header, key)));
    }
    if let Some(read) = rows::read_progress(bytes) {
        let letter =
            DeadLetter { cause: Cause::GaveUp, failures: 1, error: "".into(), since: Timestamp(0) };
        let entries: Vec<_> =
            read.into_iter().map(|entry| entry.unwrap_or(Progress::Dead(letter.clone()))).collect();
        progress_comes_back(&entries);
    }
    if let Some(letter) = rows::read_dead_letter(bytes) {
        letter_comes_back(&letter);
    }
    if let Some(row) = rows::read_replica(bytes) {
        assert_eq!(rows::read_replica(&rows::replica(&row).unwrap()), Some(row));
    }
    if let Some(row) = rows::read_idempotency(bytes) {
        assert_eq!(rows::read_idempotency(&rows::idempotency(&row).unwrap()), Some(row));
    }
}

/// The tasks in a payload are in order and whole. Without a task the others come back unchanged.
fn packed(key: &[u8], first: TaskId, payload: &[u8]) {
    let (tasks, is_whole_row) = rows::parse(first, payload);
    assert!(tasks.is_sorted_by(|one, next| one.id < next.id));
    assert!(tasks.iter().all(|task| is_whole(&task.head)));
    assert!(tasks.iter().all(|task| task.id.0 - first.0 <= rows::REACH));
    assert!(tasks.len() <= 1 || tasks.iter().all(|task| task.head.chunks() == 0));
    for settled in tasks.iter().map(|task| task.id).filter(|_| is_whole_row) {
        let left = rows::without(key, &tasks, |id| id == settled);
        assert_eq!(left.is_some(), tasks.len() > 1);
        let Some(left) = left else { continue };
        assert!(left.len() < payload.len());
        let (left, is_whole_row) = rows::parse(first, &left);
        assert!(is_whole_row);
        let stream =
            |task: &PackedTask<'_>| (task.id, task.head.envelope, task.head.bytes.to_vec());
        let others = tasks.iter().filter(|task| task.id != settled).map(stream);
        assert!(left.iter().map(stream).eq(others));
    }
}

/// Whether the parts of a stream add up to its length.
fn is_whole(head: &TaskHead<'_>) -> bool {
    let Some(stream) = head.envelope.checked_add(head.value) else { return false };
    let chunks = head.chunks();
    let most = chunks.min(1000);
    (0..most).all(|number| (1..=rows::CHUNK_BYTES).contains(&head.chunk_bytes(number)))
        && head.chunk_bytes(chunks) == 0
        && (chunks > most
            || head.bytes.len() + (0..chunks).map(|n| head.chunk_bytes(n)).sum::<usize>() == stream)
}

/// A task is encoded into rows and decoded again.
fn a_task(input: &mut Input<'_>) {
    let mut task = Task {
        id: TaskId(input.number()),
        key: input.text().repeat(1 + input.below(20)),
        operation: if input.flag() { Operation::Delete } else { Operation::Set },
        value: Bytes::new(),
        accepted_at: Timestamp(input.size()),
        expires_at: input.flag().then(|| Timestamp(input.size())),
        replicas: (0..input.below(80)).map(|_| Node::from_normal(&input.text())).collect(),
        user_id: input.flag().then(|| input.text()),
        client: match input.below(4) {
            0 => None,
            1 => Some(Client::Token(input.text().into())),
            2 => Some(Client::Address(IpAddr::from([input.byte(); 4]))),
            _ => Some(Client::Address(IpAddr::from([input.byte(); 16]))),
        },
        consistency: if input.flag() { Consistency::Strong } else { Consistency::Eventual },
        primary: None,
        trace: input.flag().then(|| Trace {
            parent: input.text().into(),
            state: input.flag().then(|| input.text().into()),
        }),
    };
    let idempotency = input
        .flag()
        .then(|| Idempotency { key: input.text().into(), fingerprint: [input.byte(); 16] });
    let idempotency = idempotency.as_ref();
    // Ends near the edge of a chunk.
    let envelope = TaskStream::of(&task, idempotency).unwrap().envelope().len();
    let edge = rows::HEAD_BYTES + rows::CHUNK_BYTES * input.below(4);
    let length = (edge.saturating_sub(envelope) + input.below(9)).saturating_sub(4);
    let filling = input.rest();
    task.value = filling.iter().copied().chain(std::iter::repeat(7)).take(length).collect();

    let stream = TaskStream::of(&task, idempotency).unwrap();
    let key = keys::of_task(task.id);
    let row = rows::seal(Tree::Tasks, &key, &stream.head().unwrap());
    assert!(row.len() <= 4096, "{} bytes", row.len());
    let [PackedTask { id, head, .. }] = &rows::tasks(&key, &row).unwrap()[..] else { panic!() };
    assert!(*id == task.id && is_whole(head));
    let mut read = head.bytes.to_vec();
    let mut chunks = 0;
    for (number, chunk) in stream.chunks() {
        assert!(chunk.len() <= rows::CHUNK_BYTES);
        let key = keys::of_chunk(task.id, number);
        let row = rows::seal(Tree::Values, &key, &chunk);
        read.extend_from_slice(rows::chunk(&key, &row, head, chunks).unwrap());
        // A chunk of another length is refused even with a valid checksum.
        let cut = rows::seal(Tree::Values, &key, &chunk[1..]);
        assert!(rows::chunk(&key, &cut, head, chunks).is_err());
        chunks += 1;
    }
    assert_eq!(chunks, head.chunks());
    assert_eq!(read.len(), head.stream());
    let (envelope, value) = read.split_at(head.envelope);
    let header = rows::header_and_key(task.id, envelope, head.value, &mut Nodes::default());
    assert_eq!(header, Some((Header::of(&task), idempotency.cloned())));
    assert_eq!(value, task.value);
    beside_others(&task, idempotency, filling);
}

/// A task is written into a row with others, as many as fit, and read back.
fn beside_others(task: &Task, idempotency: Option<&Idempotency>, filling: &[u8]) {
    // Most are too large to leave room.
    let first = filling.first().map_or(0, |first| usize::from(*first));
    let task = &Task { value: task.value.slice(..task.value.len().min(first)), ..task.clone() };
    let mut row = NewRow::of(task.id, &TaskStream::of(task, idempotency).unwrap()).unwrap();
    let mut written = vec![(task.id, task.value.clone())];
    let mut id = task.id;
    for (at, step) in filling.iter().enumerate() {
        let Some(next) = id.0.checked_add(u64::from(*step)) else { break };
        id = TaskId(next);
        let value = Bytes::copy_from_slice(&filling[at..]);
        let other = Task { id, value: value.clone(), ..task.clone() };
        if row.add(id, &TaskStream::of(&other, None).unwrap()).unwrap() {
            written.push((id, value));
        }
    }
    assert_eq!(row.last(), written.last().unwrap().0);
    let key = row.key();
    let sealed = rows::seal(Tree::Tasks, &key, row.payload());
    assert!(sealed.len() <= 4096, "{} bytes", sealed.len());
    packed(&key, task.id, row.payload());
    let tasks = rows::tasks(&key, &sealed).unwrap();
    assert!(tasks.iter().map(|task| task.id).eq(written.iter().map(|(id, _)| *id)));
    for (PackedTask { id, head, .. }, (_, value)) in tasks.iter().zip(&written) {
        let (envelope, start) = head.bytes.split_at(head.envelope.min(head.bytes.len()));
        assert!(value.starts_with(start) && head.value == value.len());
        if head.chunks() == 0 {
            let header = rows::header(*id, envelope, head.value, &mut Nodes::default()).unwrap();
            assert_eq!(header, Header { id: *id, value_bytes: value.len(), ..Header::of(task) });
        }
    }
}

/// Progress, replicas and idempotency keys are encoded into rows and decoded again.
fn beside_a_task(input: &mut Input<'_>) {
    let entries: Vec<_> = (0..1 + input.below(70)).map(|_| progress(input)).collect();
    progress_comes_back(&entries);
    letter_comes_back(&letter(input));
    let row = ReplicaRow {
        pause: input.flag().then(|| ReplicaPause {
            since: Timestamp(input.size()),
            until: input.flag().then(|| Timestamp(input.size())),
        }),
        renamed_to: input.flag().then(|| Node::from_normal(&input.text())),
        limits: ReplicaLimits {
            workers: NonZeroU32::new(input.byte().into()),
            bandwidth: NonZeroU64::new(input.size()),
            ..ReplicaLimits::default()
        },
        first_used: Timestamp(input.size()),
    };
    assert_eq!(rows::read_replica(&rows::replica(&row).unwrap()), Some(row));
    let positions = |input: &mut Input<'_>| -> Vec<u16> {
        input.bytes().iter().map(|byte| u16::from(*byte) * 257).collect()
    };
    let mut fingerprint = [0; 16];
    fingerprint.fill_with(|| input.byte());
    let row = IdempotencyRow {
        task: TaskId(input.size()),
        fingerprint,
        at: Timestamp(input.size()),
        answer: input.flag().then(|| IdempotencyAnswer {
            success: input.flag(),
            acked: positions(input),
            failed: positions(input),
            needed: u16::from(input.byte()),
        }),
    };
    assert_eq!(rows::read_idempotency(&rows::idempotency(&row).unwrap()), Some(row));
}

pub(super) fn progress(input: &mut Input<'_>) -> Progress {
    match input.below(7) {
        0 => Progress::Untouched,
        1 => Progress::Failed {
            failures: u32::from(input.byte()).saturating_add(1),
            error: input.text().repeat(1 + input.below(8)).into(),
        },
        2 => Progress::Delivered,
        3 => Progress::Superseded,
        4 => Progress::Dead(letter(input)),
        5 => Progress::Ambiguous { since: Timestamp(input.size()) },
        _ => Progress::Resend,
    }
}

fn letter(input: &mut Input<'_>) -> DeadLetter {
    let causes = [Cause::Rejected, Cause::GaveUp, Cause::RetryOverflow, Cause::Refused];
    DeadLetter {
        cause: causes[input.below(causes.len())],
        failures: u32::from(input.byte()),
        error: input.text().repeat(1 + input.below(8)).into(),
        since: Timestamp(input.size()),
    }
}

/// Error texts may come back truncated.
fn progress_comes_back(entries: &[Progress]) {
    let payload = rows::progress(entries).unwrap();
    let read = rows::read_progress(&payload).unwrap();
    assert_eq!(read.len(), entries.len());
    let texts: usize = read.iter().flatten().map(|entry| text_of(entry).len()).sum();
    assert!(texts <= 3 * 1024, "{texts} bytes of errors");
    for (read, entry) in read.iter().zip(entries) {
        match (read, entry) {
            (None, Progress::Dead(_)) => {}
            (
                Some(Progress::Failed { failures, error }),
                Progress::Failed { failures: n, error: e },
            ) => {
                assert!(failures == n && e.starts_with(&**error), "{error:?} of {e:?}");
            }
            (read, entry) => assert_eq!(read.as_ref(), Some(entry)),
        }
    }
}

fn text_of(entry: &Progress) -> &str {
    match entry {
        Progress::Failed { error, .. } => error,
        _ => "",
    }
}

fn letter_comes_back(letter: &DeadLetter) {
    let payload = rows::dead_letter(letter).unwrap();
    assert!(payload.len() <= 1100, "{} bytes", payload.len());
    let read = rows::read_dead_letter(&payload).unwrap();
    assert!(letter.error.starts_with(&*read.error));
    assert_eq!(DeadLetter { error: letter.error.clone(), ..read }, *letter);
}

/// A changed byte of the row or its key, or another tree: a burst of eight bits, which a CRC-32 always
/// detects.
fn changed(input: &mut Input<'_>) {
    let tree = TREES[input.below(TREES.len())];
    let (at, flip) = (usize::try_from(input.size() % 4096).unwrap_or(0), input.byte().max(1));
    let id = TaskId(input.number());
    let mut key = match tree {
        Tree::Values => keys::of_chunk(id, u32::from(input.byte())).to_vec(),
        Tree::DeadLetters => keys::of_dead_letter(id, ReplicaIndex(input.byte().into())).to_vec(),
        Tree::Tasks | Tree::Progress => keys::of_task(id).to_vec(),
        Tree::Meta | Tree::Replicas | Tree::Idempotency => input.bytes().to_vec(),
    };
    let payload = input.rest();
    let mut row = rows::seal(tree, &key, payload);
    assert_eq!(rows::unseal(tree, &key, &row).unwrap(), payload);
    for other in TREES.into_iter().filter(|other| *other != tree) {
        assert!(rows::unseal(other, &key, &row).is_err(), "a row of {tree} in {other}");
    }
    let changed = if at < row.len() {
        &mut row[at]
    } else {
        let at = at % key.len().max(1);
        let Some(byte) = key.get_mut(at) else { return };
        byte
    };
    *changed ^= flip;
    assert!(rows::unseal(tree, &key, &row).is_err(), "byte {at} of a row of {tree}");
}
