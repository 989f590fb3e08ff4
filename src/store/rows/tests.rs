use bytes::Bytes;

use super::*;
use crate::store::keys;

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
    }
}

fn letter() -> DeadLetter {
    DeadLetter { cause: Cause::RetryOverflow, failures: 2, error: "e".into(), since: Timestamp(5) }
}

#[test]
fn the_bytes_of_a_task_are_these() {
    let head = Stream::of(&task()).unwrap().head().unwrap();
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
        ..task()
    };
    let head = Stream::of(&delete).unwrap().head().unwrap();
    assert_eq!(head[2..10], *b"\x04k/\xc3\xbc\x01\x01\x00");
    assert_eq!(head.last(), Some(&0));
}

#[test]
fn the_bytes_of_progress_are_these() {
    let entries = [
        Progress::Untouched,
        Progress::Failed { failures: 3, error: "no".into() },
        Progress::Delivered,
        Progress::Superseded,
        Progress::Dead(letter()),
        Progress::Doubted { since: Timestamp(9) },
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
    for (cause, byte) in [(Cause::Rejected, 0), (Cause::GaveUp, 1)] {
        let payload = dead_letter(&DeadLetter { cause, ..letter() }).unwrap();
        assert_eq!(payload[0], byte);
    }
}

#[test]
fn the_bytes_of_a_frame_are_these() {
    let row = seal(Tree::Meta, keys::FORMAT_VERSION, &1u32.to_be_bytes());
    let sum = crc32fast::hash(b"\x01mformat_version\0\0\0\x01").to_be_bytes();
    assert_eq!(row, [&[1], &sum[..], &[0, 0, 0, 1]].concat());
    assert_eq!(sum, FROZEN_SUM);
}

/// Computed once by another implementation of CRC-32 (that of Python's zlib).
const FROZEN_SUM: [u8; 4] = [194, 25, 193, 196];

#[test]
fn a_flipped_bit_anywhere_in_a_row_is_noticed() {
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
fn a_row_is_only_good_in_its_own_place() {
    let key = keys::of_task(TaskId(7));
    let row = seal(Tree::Tasks, &key, b"payload");
    assert!(unseal(Tree::Progress, &key, &row).is_err());
    assert!(unseal(Tree::Tasks, &keys::of_task(TaskId(8)), &row).is_err());
}

#[test]
fn trailing_bytes_and_lengths_out_of_all_proportion_do_not_decode() {
    let payload = [&progress(&[Progress::Delivered]).unwrap()[..], b"x"].concat();
    assert_eq!(read_progress(&payload), None);
    let payload = [&dead_letter(&letter()).unwrap()[..], b"x"].concat();
    assert_eq!(read_dead_letter(&payload), None);
    // A u64 follows: eighteen quintillion entries.
    let hostile = [253, 255, 255, 255, 255, 255, 255, 255, 255];
    assert_eq!(read_progress(&hostile), None);
    assert!(Head::parse(&[&hostile[..], &hostile[..]].concat()).is_none());
    assert!(Head::parse(&[1, 2, 0, 0]).is_none());
}

#[test]
fn the_stream_comes_back_whole_wherever_it_is_cut() {
    let envelope = Stream::of(&task()).unwrap().envelope.len() - 1;
    let edge = HEAD_BYTES - envelope;
    let mut lengths = vec![0, 1, CHUNK_BYTES * 3 + 5];
    for cut in [edge, edge + CHUNK_BYTES, edge + 2 * CHUNK_BYTES] {
        lengths.extend(cut - 3..cut + 3);
    }
    for key_bytes in [1, 4_000, 10_000] {
        for &value_bytes in &lengths {
            let value: Vec<u8> = (0..=255).cycle().take(value_bytes).collect();
            let task = Task { key: "k".repeat(key_bytes), value: value.into(), ..task() };
            let stream = Stream::of(&task).unwrap();
            let payload = stream.head().unwrap();
            assert!(payload.len() + FRAME_BYTES <= 4096);
            let head = Head::parse(&payload).unwrap();
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
fn however_many_replicas_failed_with_long_errors_a_row_stays_small() {
    let failed = Progress::Failed { failures: 4, error: "ü".repeat(5_000).into() };
    for replicas in [1, 2, 3, 64] {
        let payload = progress(&vec![failed.clone(); replicas]).unwrap();
        assert!(payload.len() < 4000, "{replicas}: {}", payload.len());
    }
    let dead = DeadLetter { error: "ü".repeat(5_000).into(), ..letter() };
    let read = read_dead_letter(&dead_letter(&dead).unwrap()).unwrap();
    assert_eq!(*read.error, *"ü".repeat(512));
}
