use proptest::prelude::*;

use super::*;
use crate::store::jetstream::checkpoint::{PartitionLevels, Settled, StoreInstance};
use crate::task::{Cause, Client, Consistency, DeadLetter, Node, Operation, Timestamp, Trace};

fn task(value: Vec<u8>) -> Task {
    Task {
        id: TaskId(7),
        key: "k/ü".into(),
        operation: Operation::Set,
        value: value.into(),
        accepted_at: Timestamp(1),
        expires_at: Some(Timestamp(300)),
        replicas: vec![Node::parse("http://a").unwrap(), Node::parse("http://b:1").unwrap()],
        user_id: Some("u".into()),
        client: Some(Client::Token("ann".into())),
        consistency: Consistency::Strong,
        primary: None,
        trace: Some(Trace { parent: "p".into(), state: None }),
    }
}

fn read(message: &Bytes) -> Result<StoredTask, MessageError> {
    read_task(TaskId(7), message, &mut Nodes::default())
}

fn key() -> Idempotency {
    Idempotency { key: "k1".into(), fingerprint: *b"0123456789abcdef" }
}

#[test]
fn a_task_comes_back_whole_with_its_key_and_nonce() {
    let task = task(b"\x00v".to_vec());
    let messages = TaskMessages::of(&task, Some(&key()), Nonce(9), Some(7)).unwrap();
    assert!(messages.chunks.is_empty());
    let stored = read(&messages.task).unwrap();
    assert_eq!((stored.nonce, stored.idempotency.as_ref()), (Nonce(9), Some(&key())));
    assert_eq!(stored.whole(), Ok(task));
}

#[test]
fn a_large_value_is_in_chunks() {
    for length in [CHUNK_BYTES, CHUNK_BYTES + 1, 2 * CHUNK_BYTES, 2 * CHUNK_BYTES + 5] {
        let value: Vec<u8> = (0..=250).cycle().take(length).collect();
        let task = task(value);
        let messages = TaskMessages::of(&task, None, Nonce(9), None).unwrap();
        let stored = read(&messages.task).unwrap();
        assert_eq!(stored.header.value_bytes, length);
        if length <= CHUNK_BYTES {
            assert_eq!(stored.whole(), Ok(task));
            continue;
        }
        assert_eq!(messages.chunks.len(), length.div_ceil(CHUNK_BYTES));
        let stored = stored.whole().unwrap_err();
        let other = TaskMessages::of(&task, None, Nonce(8), None).unwrap();
        let mut wrong = vec![other.chunks, messages.chunks[1..].to_vec()];
        wrong.push(messages.chunks.iter().rev().cloned().collect());
        for chunks in wrong {
            assert_eq!(stored.clone().with_chunks(&chunks), Err(MessageError::Damaged));
        }
        assert_eq!(stored.with_chunks(&messages.chunks), Ok(task));
    }
}

#[test]
fn a_flipped_bit_anywhere_is_detected_and_no_message_is_valid_as_another_kind() {
    let messages = TaskMessages::of(&task(b"v".to_vec()), None, Nonce(9), None).unwrap();
    for bit in 0..messages.task.len() * 8 {
        let mut message = messages.task.to_vec();
        message[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(read(&message.into()), Err(MessageError::Damaged), "bit {bit}");
    }
    for short in 0..messages.task.len() {
        assert!(read(&messages.task.slice(..short)).is_err());
    }
    assert!(read_progress(&messages.task).is_err());
    assert!(read_checkpoint(&messages.task).is_err());
}

#[test]
fn a_copy_is_valid_only_for_its_own_task() {
    let message = TaskMessages::of(&task(b"v".to_vec()), None, Nonce(9), None).unwrap().task;
    for chunks in [None, Some(5)] {
        let written = TaskCopy { chunks, message: message.clone() };
        let copied = copy(7, &written).unwrap();
        assert_eq!(read_copy(7, &copied), Ok(written));
        assert_eq!(read_copy(8, &copied), Err(MessageError::Damaged));
        assert!(read(&copied).is_err() && read_copy(7, &message).is_err());
        for bit in 0..copied.len() * 8 {
            let mut flipped = copied.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read_copy(7, &flipped.into()), Err(MessageError::Damaged), "bit {bit}");
        }
    }
}

#[test]
fn a_message_of_a_newer_version_is_not_taken_for_damage() {
    let payload = b"anything";
    let sum = checksum(2, Kind::Task, &[payload]).to_be_bytes();
    let message = [&[2], &sum[..], payload].concat();
    assert_eq!(read(&message.into()), Err(MessageError::Version(2)));
}

#[test]
fn the_bytes_of_a_checkpoint_are_these() {
    let written = Checkpoint {
        writer: StoreInstance { process: 1, node: "a".into() },
        is_released: false,
        epoch: 2,
        counter: 3,
        settled: Settled::default(),
        levels: PartitionLevels { queued: 4, queued_bytes: 5, dead: 6, dead_bytes: 7 },
    };
    let message = checkpoint(&written).unwrap();
    assert_eq!(message[..1], [1]);
    assert_eq!(message[FRAME_BYTES..], *b"\x01\x01a\x00\x02\x03\x00\x00\x00\x00\x04\x05\x06\x07");
    assert_eq!(read_checkpoint(&message), Ok(written));
}

#[test]
fn the_bytes_of_a_task_are_these() {
    let plain = Task {
        expires_at: None,
        user_id: None,
        client: None,
        consistency: Consistency::Eventual,
        trace: None,
        ..task(b"v".to_vec())
    };
    let message = TaskMessages::of(&plain, None, Nonce(9), None).unwrap().task;
    let envelope = b"\x04k/\xc3\xbc\x00\x01\x00\x02\x08http://a\x0ahttp://b:1\x00";
    let head = [9, u8::try_from(envelope.len()).unwrap(), 1, 0, 0];
    assert_eq!(message[FRAME_BYTES..], [&head[..], envelope, b"v"].concat());
}

fn some_progress() -> impl Strategy<Value = Progress> {
    let letter = (0..4_u8, any::<u32>(), ".{0,40}", any::<u64>());
    prop_oneof![
        Just(Progress::Untouched),
        Just(Progress::Delivered),
        Just(Progress::Superseded),
        Just(Progress::Resend),
        any::<u64>().prop_map(|since| Progress::Ambiguous { since: Timestamp(since) }),
        (any::<u32>(), ".{0,40}")
            .prop_map(|(failures, error)| Progress::Failed { failures, error: error.into() }),
        letter.prop_map(|(cause, failures, error, since)| {
            let causes = [Cause::Rejected, Cause::Refused, Cause::GaveUp, Cause::RetryOverflow];
            let cause = causes[usize::from(cause)];
            let (error, since) = (error.into(), Timestamp(since));
            Progress::Dead(DeadLetter { cause, failures, error, since })
        }),
    ]
}

proptest! {
    #[test]
    fn progress_comes_back_as_it_was(entries in proptest::collection::vec(some_progress(), 1..20)) {
        prop_assert_eq!(read_progress(&progress(&entries).unwrap()), Ok(entries));
    }

    #[test]
    fn bytes_that_were_never_written_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        for kind in [Kind::Task, Kind::Chunk, Kind::Progress, Kind::Checkpoint] {
            let message = seal(kind, &[&bytes]);
            // Whatever they mean: none may panic or take much memory.
            let _ = (read(&message), read_progress(&message), read_checkpoint(&message));
        }
    }
}

#[test]
fn a_thousand_dead_letters_with_long_errors_fit_into_a_message() {
    let error = "ü".repeat(5_000).into();
    let letter = DeadLetter { cause: Cause::GaveUp, failures: 4, error, since: Timestamp(5) };
    let message = progress(&vec![Progress::Dead(letter); 1024]).unwrap();
    assert!(message.len() < 512 << 10, "{}", message.len());
    assert_eq!(read_progress(&message).unwrap().len(), 1024);
}

#[test]
fn pushed_tasks_come_back_whole_and_damage_is_noticed() {
    let tasks = [(7, &b"one"[..]), (u64::MAX, b""), (9, b"two")];
    let tasks = tasks.map(|(id, message)| PushedTask { id: TaskId(id), message: message.into() });
    let sent = pushed(&tasks).unwrap();
    assert_eq!(read_pushed(&sent).unwrap(), tasks);
    assert_eq!(read_pushed(&pushed(&[]).unwrap()).unwrap(), []);
    // Also what a sender made wrong, with a checksum that is right.
    let cut = seal(Kind::Pushed, &[&sent[FRAME_BYTES..sent.len() - 1]]);
    assert_eq!(read_pushed(&cut), Err(MessageError::Damaged));
    for at in 0..sent.len() {
        let mut damaged = sent.to_vec();
        damaged[at] ^= 1;
        assert_eq!(read_pushed(&damaged.into()), Err(MessageError::Damaged), "{at}");
    }
}
