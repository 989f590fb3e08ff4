//! Data directories of every released format: each is opened, and its content is asserted.
//!
//! They are in `tests/fixtures/`. To write a new one, once for each format, run
//! `FIXTURE=tests/fixtures/format-N cargo test --test it -- --ignored writes_a_fixture`.

use std::fs;
use std::num::{NonZeroU32, NonZeroU64};
use std::path::Path;
use std::sync::Arc;

use crate::support::copy;
use replicator::testing::store::{
    IdempotencyAnswer, IdempotencyRow, LocalStore, Opened, Recovered, RecoveryEvent, ReplicaRow,
    StoreSettings,
};
use replicator::testing::task::{
    Cause, Consistency, DeadLetter, Idempotency, Node, Operation, Progress, ReplicaLimits,
    ReplicaPause, Task, TaskId, Timestamp, Trace,
};

/// The format that this release writes.
const NEWEST: u32 = 7;

const FIRST: u64 = 1_700_000_000_000_000;

fn settings(dir: &Path) -> StoreSettings {
    let cache_bytes = 8 << 20;
    StoreSettings {
        dir: dir.to_owned(),
        cache_bytes,
        min_free_bytes: 0,
        now: Timestamp(FIRST * 1_000),
    }
}

fn open(dir: &Path) -> (Opened, Vec<Recovered>) {
    let mut found = Vec::new();
    let store = LocalStore::open(&settings(dir)).unwrap();
    let (opened, _) = store
        .recover(&mut |handed: RecoveryEvent| handed.collect_into(&mut found), Box::new(drop))
        .unwrap();
    (opened, found)
}

fn close(opened: Opened) {
    let closed = opened.committer.close();
    drop(opened);
    closed.blocking_recv().unwrap().unwrap();
}

fn node(text: &str) -> Node {
    Node::parse(text).unwrap()
}

fn failed(failures: u32, error: &str) -> Progress {
    Progress::Failed { failures, error: error.into() }
}

fn dead(cause: Cause, failures: u32, error: &str) -> Progress {
    let since = Timestamp(FIRST * 1_000 + 77);
    Progress::Dead(DeadLetter { cause, failures, error: error.into(), since })
}

/// The content of a fixture: small and large values, every kind of progress, odd keys, and the
/// fields of later formats.
fn contents(format: u32) -> Vec<(Task, Vec<Progress>)> {
    let two = || vec![node("http://10.0.0.1:8080"), node("https://b.example/base")];
    let task = |n: u64, key: &str, value: Vec<u8>, replicas: Vec<Node>| Task {
        id: TaskId(FIRST + n),
        key: key.to_owned(),
        operation: Operation::Set,
        value: value.into(),
        accepted_at: Timestamp(FIRST * 1_000 + n),
        expires_at: None,
        replicas,
        user_id: None,
        client: None,
        consistency: Consistency::Eventual,
        primary: None,
        trace: None,
    };
    let pattern = |bytes: usize| (0..=250).cycle().take(bytes).collect::<Vec<u8>>();
    let untouched = |n: usize| vec![Progress::Untouched; n];
    let mut contents = vec![
        (task(0, "plain", b"value".to_vec(), two()), untouched(2)),
        (task(1, "empty value", vec![], two()), untouched(2)),
        (
            Task {
                user_id: Some("ürsula".into()),
                ..task(2, "ключ/%?#\u{1F980}", b"v".to_vec(), two())
            },
            vec![Progress::Delivered, failed(2, "connection refused")],
        ),
        (
            Task { operation: Operation::Delete, ..task(3, "plain", vec![], two()) },
            vec![Progress::Superseded, dead(Cause::Rejected, 1, "404 Not Found")],
        ),
        (
            Task {
                expires_at: Some(Timestamp(u64::MAX)),
                ..task(4, "large", pattern(50_000), two())
            },
            vec![dead(Cause::GaveUp, 4, "503 Service Unavailable"), Progress::Delivered],
        ),
        (
            task(5, &"long/".repeat(2_000), pattern(3_000), vec![node("http://one")]),
            vec![dead(Cause::RetryOverflow, 1, "timed out")],
        ),
        (task(7, "after a settled one", pattern(4_000), two()), untouched(2)),
    ];
    if format >= 3 {
        let strong = Consistency::Strong;
        let trace = |state: Option<&str>| {
            let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into();
            Some(Trace { parent, state: state.map(Box::from) })
        };
        let v = || b"v".to_vec();
        contents.extend([
            (Task { consistency: strong, ..task(8, "strong", v(), two()) }, untouched(2)),
            (Task { trace: trace(None), ..task(9, "traced", v(), two()) }, untouched(2)),
            (
                Task {
                    consistency: strong,
                    trace: trace(Some("congo=t61rcWkgMzE")),
                    ..task(10, "both", pattern(9_000), two())
                },
                vec![Progress::Delivered, failed(1, "timed out")],
            ),
        ]);
    }
    if format >= 4 {
        let keyed = Task {
            consistency: Consistency::Strong,
            ..task(11, "with the longest key", pattern(9_000), two())
        };
        contents.push((keyed, vec![failed(1, "timed out"), Progress::Delivered]));
    }
    if format >= 5 {
        contents.push((
            task(12, "refused", b"v".to_vec(), two()),
            vec![Progress::Delivered, dead(Cause::Refused, 1, "403 Forbidden")],
        ));
    }
    if format >= 6 {
        // Beside tasks that are settled.
        let v = || b"v".to_vec();
        contents.extend([
            (task(14, "between settled ones", v(), two()), untouched(2)),
            (
                task(16, "beside others", vec![], two()),
                vec![failed(1, "timed out"), dead(Cause::GaveUp, 4, "503 Service Unavailable")],
            ),
            (task(17, "alone in its row", pattern(9_000), two()), untouched(2)),
            (task(19, "behind the first of its row", v(), two()), untouched(2)),
        ]);
    }
    contents
}

/// The tasks of a new fixture that are settled. The first is alone in its row from format 6 on, the
/// last is the first in its row.
const SETTLED: [u64; 4] = [6, 13, 15, 18];

fn replicas(format: u32) -> Vec<(Node, ReplicaRow)> {
    let used = ReplicaRow::new(Timestamp(FIRST * 1_000));
    let pause = |until| Some(ReplicaPause { since: Timestamp(FIRST * 1_000 + 5), until });
    let renamed_to = Some(node("https://b.example/base"));
    let mut rows = vec![
        (node("http://10.0.0.1:8080"), ReplicaRow { pause: pause(None), ..used.clone() }),
        (node("http://old"), ReplicaRow { renamed_to, ..used.clone() }),
        (node("https://b.example/base"), used.clone()),
    ];
    if format >= 7 {
        let limits = ReplicaLimits {
            workers: NonZeroU32::new(1024),
            rate: NonZeroU32::new(1),
            bandwidth: NonZeroU64::new(1_000_000_000_000),
            redrive_rate: NonZeroU32::new(300),
        };
        let until = Some(Timestamp(u64::MAX));
        rows.extend([
            (node("https://limited"), ReplicaRow { limits, ..used.clone() }),
            (node("https://until"), ReplicaRow { pause: pause(until), ..used }),
        ]);
    }
    rows
}

const FINGERPRINT: [u8; 16] = *b"0123456789abcdef";

fn idempotency(format: u32) -> Vec<(Box<str>, IdempotencyRow)> {
    let row = |n: u64, answer| IdempotencyRow {
        task: TaskId(FIRST + n),
        fingerprint: FINGERPRINT,
        at: Timestamp(FIRST * 1_000 + n),
        answer,
    };
    let answer =
        IdempotencyAnswer { success: false, acked: vec![0], failed: vec![1, 300], needed: 2 };
    let mut rows =
        vec![("a key".into(), row(0, None)), ("of a strong write".into(), row(8, Some(answer)))];
    if format >= 4 {
        rows.push(("z".repeat(255).into(), row(11, None)));
    }
    rows
}

/// The idempotency key in the row of a task.
fn key_in(format: u32, task: TaskId) -> Option<Idempotency> {
    let (key, _) = idempotency(format).into_iter().find(|(_, row)| row.task == task)?;
    (format >= 4).then_some(Idempotency { key, fingerprint: FINGERPRINT })
}

#[test]
#[ignore = "run once for each format of the store"]
fn writes_a_fixture() {
    let target =
        std::env::var("FIXTURE").expect("FIXTURE must name a directory that does not exist");
    let (opened, found) = open(Path::new(&target));
    assert!(found.is_empty());
    for (node, row) in replicas(NEWEST) {
        opened.committer.set_replica(node, Some(row), None);
    }
    let contents = contents(NEWEST);
    let settled = SETTLED.map(|n| Task { id: TaskId(FIRST + n), ..contents[0].0.clone() });
    let mut tasks: Vec<_> = contents.iter().map(|(task, _)| task).chain(&settled).collect();
    tasks.sort_by_key(|task| task.id);
    opened.committer.in_one_commit(|| {
        for task in tasks {
            let key = key_in(NEWEST, task.id);
            opened.committer.accept(Arc::new(task.clone()), key, None);
        }
    });
    for (task, progress) in contents {
        opened.committer.save(task.id, progress);
    }
    for (key, row) in idempotency(NEWEST).into_iter().filter(|(_, row)| row.answer.is_some()) {
        opened.committer.set_idempotency(key, row);
    }
    settled.iter().for_each(|task| opened.committer.remove(task.id));
    close(opened);
    // These do not belong in the repository: `LOCK` names a process, the other file is empty.
    fs::remove_file(Path::new(&target).join("LOCK")).unwrap();
    fs::remove_dir(Path::new(&target).join("store-000001/blobs")).unwrap();
}

#[track_caller]
fn holds_the_contents(format: u32) {
    let source = format!("{}/tests/fixtures/format-{format}", env!("CARGO_MANIFEST_DIR"));
    let dir = tempfile::tempdir().unwrap();
    copy(Path::new(&source), dir.path());
    // Twice: after the migration, and as this release leaves it.
    for _ in 0..2 {
        let (opened, found) = open(dir.path());
        assert_eq!(found.len(), contents(format).len());
        for (found, (task, progress)) in found.iter().zip(contents(format)) {
            assert_eq!(found.header.id, task.id);
            assert_eq!(found.header.consistency, task.consistency);
            assert_eq!(found.header.trace, task.trace);
            assert_eq!(found.progress, progress);
            assert_eq!(found.idempotency, key_in(format, task.id));
            assert_eq!(opened.reader.read(task.id).unwrap(), Some(task));
        }
        let kept = match format {
            ..3 => Default::default(),
            3.. => (replicas(format), idempotency(format)),
        };
        assert_eq!((opened.replicas.clone(), opened.idempotency.clone()), kept);
        for settled in SETTLED {
            assert_eq!(opened.reader.read(TaskId(FIRST + settled)).unwrap(), None);
        }
        assert!(opened.next_id.0 > FIRST + 7);
        close(opened);
    }
}

#[test]
fn a_store_of_format_1_is_migrated_with_its_complete_content() {
    holds_the_contents(1);
}

#[test]
fn a_store_of_format_2_is_opened_with_its_complete_content() {
    holds_the_contents(2);
}

#[test]
fn a_store_of_format_3_is_opened_with_its_complete_content() {
    holds_the_contents(3);
}

#[test]
fn a_store_of_format_4_is_opened_with_its_complete_content() {
    holds_the_contents(4);
}

#[test]
fn a_store_of_format_5_is_opened_with_its_complete_content() {
    holds_the_contents(5);
}

#[test]
fn a_store_of_format_6_is_opened_with_its_complete_content() {
    holds_the_contents(6);
}

#[test]
fn a_store_of_format_7_is_opened_with_its_complete_content() {
    holds_the_contents(7);
}
