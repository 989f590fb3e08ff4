use std::num::{NonZeroU32, NonZeroU64};

use bincode::error::DecodeError;
use bytes::Bytes;

use super::*;
use crate::store::local::keys;
use crate::store::payload::{ProgressRow, SMALL, decode_first};
use crate::store::records::{Header, IdempotencyAnswer, IdempotencyRow, ReplicaRow};
use crate::task::{
    Cause, Client, Consistency, DeadLetter, Node, Operation, Progress, ReplicaLimits, ReplicaPause,
    TaskId, Timestamp, Trace,
};

fn task() -> Task {
    Task {
        id: TaskId(7),
        key: "k/ü".into(),
        operation: Operation::Set,
        value: Bytes::from_static(b"\x00v"),
        accepted_at: Timestamp(1),
        expires_at: Some(Timestamp(300)),
        replicas: vec![Node::parse("http://a").unwrap(), Node::parse("http://b:1").unwrap()],
        user_id: Some("u".into()),
        client: None,
        consistency: Consistency::Eventual,
        primary: None,
        trace: None,
    }
}

fn letter() -> DeadLetter {
    DeadLetter { cause: Cause::RetryOverflow, failures: 2, error: "e".into(), since: Timestamp(5) }
}

/// The head of the only task in a payload.
fn only(payload: &[u8]) -> Option<TaskHead<'_>> {
    let (mut tasks, is_whole) = parse(TaskId(7), payload);
    let task = tasks.pop().filter(|_| is_whole && tasks.is_empty())?;
    Some(task.head)
}

#[test]
fn the_bytes_of_a_task_are_these() {
    let head = TaskStream::of(&task(), None).unwrap().head().unwrap();
    let mut expected = vec![32, 2]; // the envelope's length, the value's
    expected.extend(b"\x04k/\xc3\xbc"); // key
    expected.push(0); // SET
    expected.push(1); // accepted_at
    expected.extend([1, 251, 44, 1]); // expires_at: Some, a u16 follows, 300
    expected.extend(b"\x02\x08http://a\x0ahttp://b:1"); // replicas
    expected.extend(b"\x01\x01u"); // user_id: Some
    expected[0] = u8::try_from(expected.len() - 2).unwrap();
    expected.extend(b"\x00v"); // value
    assert_eq!(head, expected);

    let delete = Task {
        operation: Operation::Delete,
        value: Bytes::new(),
        expires_at: None,
        user_id: None,
        client: None,
        ..task()
    };
    let head = TaskStream::of(&delete, None).unwrap().head().unwrap();
    assert_eq!(head[2..10], *b"\x04k/\xc3\xbc\x01\x01\x00");
    assert_eq!(head.last(), Some(&0));
}

#[test]
fn format_3_appends_to_the_envelope_of_format_2() {
    let value_at = |head: &[u8]| 2 + usize::from(head[0]);
    let before = TaskStream::of(&task(), None).unwrap().head().unwrap();
    let end = value_at(&before);
    let trace = |state: Option<&str>| Trace { parent: "p".into(), state: state.map(Box::from) };
    let more: [(Consistency, Option<Trace>, &[u8]); 4] = [
        (Consistency::Eventual, None, b""),
        (Consistency::Strong, None, b"\x01\x00"),
        (Consistency::Eventual, Some(trace(None)), b"\x00\x01\x01p\x00"),
        (Consistency::Strong, Some(trace(Some("s"))), b"\x01\x01\x01p\x01\x01s"),
    ];
    for (consistency, trace, bytes) in more {
        let task = Task { consistency, trace, ..task() };
        let head = TaskStream::of(&task, None).unwrap().head().unwrap();
        assert_eq!(head[2..end], before[2..end]);
        assert_eq!(head[end..value_at(&head)], *bytes);
        let parsed = only(&head).unwrap();
        let envelope = &parsed.bytes[..parsed.envelope];
        let read = |envelope: &[u8]| header(task.id, envelope, 2, &mut Nodes::default());
        let header = read(envelope).unwrap();
        assert_eq!((header.consistency, header.trace), (task.consistency, task.trace));
        assert_eq!((header.key, header.user_id), (task.key, task.user_id));
        // Neither truncated nor extended, except for the cut that leaves format 2.
        for cut in (0..envelope.len()).filter(|cut| *cut != end - 2) {
            assert!(read(&envelope[..cut]).is_none(), "{cut}");
        }
        if !bytes.is_empty() {
            assert!(read(&[envelope, b"\x00"].concat()).is_none());
        }
    }
    assert!(
        header(TaskId(7), &[&before[2..end], b"\x02\x00"].concat(), 2, &mut Nodes::default())
            .is_none()
    );
}

#[test]
fn format_5_has_the_client_before_the_key() {
    let idempotency = Idempotency { key: "k1".into(), fingerprint: *b"0123456789abcdef" };
    let before = TaskStream::of(&task(), None).unwrap().envelope().len();
    let clients: [(Client, &[u8]); 3] = [
        (Client::Token("ann".into()), b"\x00\x03ann"),
        (Client::at([10, 0, 0, 7].into()), b"\x01\x0a\x00\x00\x07"),
        (Client::at([0x20; 16].into()), b"\x02        \x00\x00\x00\x00\x00\x00\x00\x00"),
    ];
    for (client, bytes) in clients {
        for (consistency, byte) in [(Consistency::Eventual, 2), (Consistency::Strong, 3)] {
            let task = Task { client: Some(client.clone()), consistency, ..task() };
            for key in [None, Some(&idempotency)] {
                let stream = TaskStream::of(&task, key).unwrap();
                let envelope = stream.envelope();
                assert_eq!(envelope[before..before + 2], [byte, 0]);
                assert!(envelope[before + 2..].starts_with(bytes), "{envelope:?}");
                let read =
                    |envelope: &[u8]| header_and_key(task.id, envelope, 2, &mut Nodes::default());
                assert_eq!(read(envelope), Some((Header::of(&task), key.cloned())));
                let cuts = before + 1..before + 2 + bytes.len();
                assert!(cuts.into_iter().all(|cut| read(&envelope[..cut]).is_none()));
            }
        }
    }
}

#[test]
fn format_4_appends_the_key_to_the_envelope_of_format_3() {
    let value_at = |head: &[u8]| 2 + usize::from(head[0]);
    let end = value_at(&TaskStream::of(&task(), None).unwrap().head().unwrap());
    let idempotency = Idempotency { key: "k1".into(), fingerprint: *b"0123456789abcdef" };
    for (consistency, before) in
        [(Consistency::Eventual, b"\x00\x00"), (Consistency::Strong, b"\x01\x00")]
    {
        let task = Task { consistency, ..task() };
        let head = TaskStream::of(&task, Some(&idempotency)).unwrap().head().unwrap();
        assert_eq!(head[end..value_at(&head)], [&before[..], b"\x02k10123456789abcdef"].concat());
        let parsed = only(&head).unwrap();
        let envelope = &parsed.bytes[..parsed.envelope];
        let read = |envelope: &[u8]| header_and_key(task.id, envelope, 2, &mut Nodes::default());
        let (header, key) = read(envelope).unwrap();
        assert_eq!((header, key.as_ref()), (Header::of(&task), Some(&idempotency)));
        // Neither truncated nor extended, except for the cuts that leave an older format.
        let older = [end - 2, end];
        for cut in (0..envelope.len()).filter(|cut| !older.contains(cut)) {
            assert!(read(&envelope[..cut]).is_none(), "{cut}");
        }
        assert!(read(&[envelope, b"\x00"].concat()).is_none());
    }
}

#[test]
fn the_bytes_of_a_replica_are_these() {
    let plain = ReplicaRow::new(Timestamp(300));
    let renamed_to = Some(Node::parse("http://b").unwrap());
    let pause = |until| Some(ReplicaPause { since: Timestamp(7), until });
    let before_7 = ReplicaRow { pause: pause(None), renamed_to, ..plain.clone() };
    let ends = ReplicaRow { pause: pause(Some(Timestamp(9))), ..plain.clone() };
    let limits = ReplicaLimits {
        workers: NonZeroU32::new(2),
        rate: NonZeroU32::new(3),
        bandwidth: NonZeroU64::new(1 << 40),
        redrive_rate: NonZeroU32::new(5),
    };
    let limited = ReplicaRow { limits, ..plain.clone() };
    let golden: [(ReplicaRow, &[u8]); 4] = [
        (plain, b"\x00\x00\xfb\x2c\x01"),
        (before_7, b"\x01\x07\x01\x08http://b\xfb\x2c\x01"),
        (ends, b"\x01\x07\x00\xfb\x2c\x01\x01\x09\x00\x00\x00\x00"),
        (limited, b"\x00\x00\xfb\x2c\x01\x00\x01\x02\x01\x03\x01\xfd\0\0\0\0\0\x01\0\0\x01\x05"),
    ];
    for (row, bytes) in golden {
        assert_eq!(replica(&row).unwrap(), bytes);
        assert_eq!(read_replica(bytes), Some(row));
        assert_eq!(read_replica(&[bytes, b"x"].concat()), None);
    }
}

#[test]
fn the_bytes_of_an_idempotency_key_are_these() {
    let row = |answer| IdempotencyRow {
        task: TaskId(7),
        fingerprint: *b"0123456789abcdef",
        at: Timestamp(300),
        answer,
    };
    let answer =
        IdempotencyAnswer { success: true, acked: vec![0, 2], failed: vec![300], needed: 2 };
    let golden: [(IdempotencyRow, &[u8]); 2] = [
        (row(None), b"\x070123456789abcdef\xfb\x2c\x01\x00"),
        (
            row(Some(answer)),
            b"\x070123456789abcdef\xfb\x2c\x01\x01\x01\x02\x00\x02\x01\xfb\x2c\x01\x02",
        ),
    ];
    for (row, bytes) in golden {
        assert_eq!(idempotency(&row).unwrap(), bytes);
        assert_eq!(read_idempotency(bytes), Some(row));
        assert_eq!(read_idempotency(&[bytes, b"x"].concat()), None);
    }
}

#[test]
fn the_longest_idempotency_row_fits_into_4_kib() {
    // The maximum number of replicas.
    let answer = IdempotencyAnswer {
        success: false,
        acked: (0..512).collect(),
        failed: (512..1024).collect(),
        needed: 513,
    };
    let row = IdempotencyRow {
        task: TaskId(u64::MAX),
        fingerprint: [0; 16],
        at: Timestamp(u64::MAX),
        answer: Some(answer),
    };
    let bytes = idempotency(&row).unwrap().len()
        + crate::store::records::MAX_IDEMPOTENCY_KEY_BYTES
        + FRAME_BYTES;
    assert!(bytes <= 4096, "{bytes}");
}

#[test]
fn the_bytes_of_progress_are_these() {
    let entries = [
        Progress::Untouched,
        Progress::Failed { failures: 3, error: "no".into() },
        Progress::Delivered,
        Progress::Superseded,
        Progress::Dead(letter()),
        Progress::Ambiguous { since: Timestamp(9) },
        Progress::Resend,
    ];
    let payload = progress(&entries).unwrap();
    assert_eq!(payload, b"\x07\x00\x01\x03\x02no\x02\x03\x04\x05\x09\x06");
    let mut read: Vec<_> = entries.into_iter().map(Some).collect();
    read[4] = None;
    assert_eq!(read_progress(&payload), Some(read));
}

#[test]
fn the_bytes_of_a_dead_letter_are_these() {
    let payload = dead_letter(&letter()).unwrap();
    assert_eq!(payload, b"\x02\x02\x01e\x05");
    assert_eq!(read_dead_letter(&payload), Some(letter()));
    for (cause, byte) in [(Cause::Rejected, 0), (Cause::GaveUp, 1), (Cause::Refused, 3)] {
        let letter = DeadLetter { cause, ..letter() };
        let payload = dead_letter(&letter).unwrap();
        assert_eq!(payload[0], byte);
        assert_eq!(read_dead_letter(&payload), Some(letter));
    }
}

#[test]
fn the_bytes_of_a_frame_are_these() {
    let row = seal(Tree::Meta, keys::FORMAT_VERSION, &1u32.to_be_bytes());
    let sum = crc32fast::hash(b"\x01mformat_version\0\0\0\x01").to_be_bytes();
    assert_eq!(row, [&[1], &sum[..], &[0, 0, 0, 1]].concat());
    assert_eq!(sum, FROZEN_SUM);
}

/// Computed by another implementation of CRC-32 (Python's zlib).
const FROZEN_SUM: [u8; 4] = [194, 25, 193, 196];

#[test]
fn a_flipped_bit_anywhere_in_a_row_is_detected() {
    let key = keys::of_task(TaskId(7));
    let row = seal(Tree::Tasks, &key, b"payload");
    assert_eq!(unseal(Tree::Tasks, &key, &row).unwrap(), b"payload");
    for bit in 0..row.len() * 8 {
        let mut row = row.clone();
        row[bit / 8] ^= 1 << (bit % 8);
        assert!(unseal(Tree::Tasks, &key, &row).is_err(), "bit {bit}");
    }
    for short in 0..row.len() {
        assert!(unseal(Tree::Tasks, &key, &row[..short]).is_err());
    }
}

#[test]
fn a_row_is_valid_only_in_its_own_place() {
    let key = keys::of_task(TaskId(7));
    let row = seal(Tree::Tasks, &key, b"payload");
    assert!(unseal(Tree::Progress, &key, &row).is_err());
    assert!(unseal(Tree::Tasks, &keys::of_task(TaskId(8)), &row).is_err());
}

#[test]
fn trailing_bytes_and_excessive_lengths_do_not_decode() {
    let payload = [&progress(&[Progress::Delivered]).unwrap()[..], b"x"].concat();
    assert_eq!(read_progress(&payload), None);
    let payload = [&dead_letter(&letter()).unwrap()[..], b"x"].concat();
    assert_eq!(read_dead_letter(&payload), None);
    // A u64 follows: eighteen quintillion entries.
    let hostile = [253, 255, 255, 255, 255, 255, 255, 255, 255];
    assert_eq!(read_progress(&hostile), None);
    assert!(only(&[&hostile[..], &hostile[..]].concat()).is_none());
    assert!(only(&[1, 2, 0, 0]).is_none());
}

/// A row is a few KiB, so a length in it is limited accordingly. In memory an entry is larger.
#[test]
fn a_length_in_a_small_row_reserves_little() {
    for entries in [100_000_u32, 3_000_000] {
        let row = [&[252][..], &entries.to_le_bytes()].concat();
        let outcome = decode_first::<Vec<ProgressRow<'_>>>(&row).map(|_| ());
        assert!(matches!(outcome, Err(DecodeError::LimitExceeded)), "{outcome:?}");
    }
    // The longest valid row still decodes.
    let entries = vec![Progress::Delivered; SMALL - 3];
    let payload = progress(&entries).unwrap();
    assert_eq!(payload.len(), SMALL);
    assert_eq!(read_progress(&payload).unwrap().len(), entries.len());
}

#[test]
fn a_stream_comes_back_whole_wherever_chunks_end() {
    let envelope = TaskStream::of(&task(), None).unwrap().envelope.len() - 1;
    let edge = HEAD_BYTES - envelope;
    let mut lengths = vec![0, 1, CHUNK_BYTES * 3 + 5];
    for cut in [edge, edge + CHUNK_BYTES, edge + 2 * CHUNK_BYTES] {
        lengths.extend(cut - 3..cut + 3);
    }
    for key_bytes in [1, 4_000, 10_000] {
        for &value_bytes in &lengths {
            let value: Vec<u8> = (0..=255).cycle().take(value_bytes).collect();
            let task = Task { key: "k".repeat(key_bytes), value: value.into(), ..task() };
            let stream = TaskStream::of(&task, None).unwrap();
            let payload = stream.head().unwrap();
            assert!(payload.len() + FRAME_BYTES <= 4096);
            let head = only(&payload).unwrap();
            let mut read = head.bytes.to_vec();
            let chunks: Vec<_> = stream.chunks().collect();
            assert_eq!(chunks.len(), head.chunks());
            for (at, (number, chunk)) in chunks.into_iter().enumerate() {
                assert_eq!(usize::try_from(number), Ok(at));
                assert_eq!(chunk.len(), head.chunk_bytes(at));
                read.extend(chunk);
            }
            assert_eq!(read, [&stream.envelope, stream.value].concat());
        }
    }
}

#[test]
fn a_row_stays_small_with_any_number_of_long_errors() {
    let failed = Progress::Failed { failures: 4, error: "ü".repeat(5_000).into() };
    for replicas in [1, 2, 3, 64] {
        let payload = progress(&vec![failed.clone(); replicas]).unwrap();
        assert!(payload.len() < 4000, "{replicas}: {}", payload.len());
    }
    let dead = DeadLetter { error: "ü".repeat(5_000).into(), ..letter() };
    let read = read_dead_letter(&dead_letter(&dead).unwrap()).unwrap();
    assert_eq!(*read.error, *"ü".repeat(512));
}

/// A row of tasks with these ids and values, as far as they fit, and the ids of those that do.
fn shared_row(tasks: &[(u64, usize)]) -> (NewRow, Vec<u64>) {
    let task = |(id, bytes): (u64, usize)| Task {
        id: TaskId(id),
        value: vec![u8::try_from(id % 251).unwrap(); bytes].into(),
        ..task()
    };
    let first = task(tasks[0]);
    let mut row = NewRow::of(first.id, &TaskStream::of(&first, None).unwrap()).unwrap();
    let mut ids = vec![first.id.0];
    for other in tasks[1..].iter().map(|other| task(*other)) {
        if row.add(other.id, &TaskStream::of(&other, None).unwrap()).unwrap() {
            ids.push(other.id.0);
        }
    }
    assert_eq!(row.last().0, *ids.last().unwrap());
    (row, ids)
}

fn ids_in(row: &NewRow) -> Vec<u64> {
    let sealed = seal(Tree::Tasks, &row.key(), row.payload());
    assert!(sealed.len() <= 4096);
    tasks(&row.key(), &sealed).unwrap().iter().map(|task| task.id.0).collect()
}

#[test]
fn format_6_appends_tasks_to_the_row_of_the_first() {
    let (row, _) = shared_row(&[(7, 2), (9, 1), (262, 0)]);
    let single = |id, bytes| shared_row(&[(id, bytes)]).0.payload().to_vec();
    let (first, second, third) = (single(7, 2), single(9, 1), single(262, 0));
    assert_eq!(row.payload(), [&first[..], &[2], &second, &[255], &third].concat());
    let (tasks, is_whole) = parse(TaskId(7), row.payload());
    assert!(is_whole && tasks.iter().map(|task| task.id.0).eq([7, 9, 262]));
    let left = |settled: &[u64]| without(&row.key(), &tasks, |id| settled.contains(&id.0));
    assert_eq!(left(&[]).unwrap(), row.payload());
    assert_eq!(left(&[9]).unwrap(), [&first[..], &[255], &third].concat());
    assert_eq!(left(&[9, 262]).unwrap(), first);
    assert_eq!(left(&[7]).unwrap(), [&[0, 0, 2], &second[..], &[255], &third].concat());
    assert_eq!(left(&[7, 9]).unwrap(), [&[0, 0, 255], &third[..]].concat());
    assert_eq!(left(&[7, 9, 262]), None);
}

#[test]
fn a_row_holds_whole_tasks_in_the_order_of_their_ids_while_they_fit() {
    let (row, ids) = shared_row(&[(7, 300), (8, 300), (8, 1), (5, 1), (262, 1), (263, 1)]);
    assert_eq!(ids, [7, 8, 262], "neither a repeated or lower id nor one out of reach");
    assert_eq!(ids_in(&row), ids);
    let (row, ids) = shared_row(&(0..100).map(|n| (n, 200)).collect::<Vec<_>>());
    assert!((14..20).contains(&ids.len()) && ids_in(&row) == ids, "{ids:?}");
    // To the last byte.
    let second = |bytes| shared_row(&[(7, 2_000), (8, bytes)]).1.len() == 2;
    let most = (0..4_000).rev().find(|bytes| second(*bytes)).unwrap();
    let (row, _) = shared_row(&[(7, 2_000), (8, most)]);
    assert_eq!(seal(Tree::Tasks, &row.key(), row.payload()).len(), 4096);
    // A task with chunks is alone, even if there is room.
    for tasks in [[(7, 10_000), (8, 0)], [(7, 1), (8, 10_000)]] {
        let (row, ids) = shared_row(&tasks);
        assert_eq!((ids_in(&row), ids), (vec![7], vec![7]));
    }
}

#[test]
fn a_row_that_was_never_written_does_not_decode() {
    let key = keys::of_task(TaskId(7));
    let decodes = |payload: &[u8]| tasks(&key, &seal(Tree::Tasks, &key, payload)).is_ok();
    let of = |tasks: &[(u64, usize)]| shared_row(tasks).0.payload().to_vec();
    let (one, two) = (of(&[(7, 2)]), of(&[(7, 2), (9, 1)]));
    let large = of(&[(7, 10_000)]);
    assert!(decodes(&one) && decodes(&two) && decodes(&large));
    assert!((0..two.len()).all(|cut| decodes(&two[..cut]) == (cut == one.len())));
    let wrong = [
        vec![0, 0],
        [&two[..], &[2], &one].concat(),
        [&two[..], &[0], &one].concat(),
        [&two[..], &[3, 0, 0]].concat(),
        [&large[..], &[1], &one].concat(),
        [&one[..], &[1], &large].concat(),
    ];
    assert!(wrong.iter().all(|payload| !decodes(payload)));
    assert!(decodes(&[&[0, 0, 1], &one[..]].concat()));
    // An id above the highest.
    let key = keys::of_task(TaskId(u64::MAX));
    assert!(tasks(&key, &seal(Tree::Tasks, &key, &one)).is_ok());
    assert!(tasks(&key, &seal(Tree::Tasks, &key, &two)).is_err());
}
