use std::num::{NonZeroU32, NonZeroU64};

use bytes::Bytes;
use tempfile::TempDir;
use tokio::sync::oneshot;

use super::keys::Tree;
use super::*;
use crate::store::records::{
    CommitError, Header, IdempotencyAnswer, IdempotencyRow, ReadError, Recovered, ReplicaRow,
};
use crate::task::{
    Cause, Consistency, DeadLetter, Idempotency, Node, Operation, Progress, ReplicaLimits,
    ReplicaPause, Task, Trace,
};

mod model;

pub(super) fn settings(dir: &Path) -> StoreSettings {
    StoreSettings {
        dir: dir.to_owned(),
        cache_bytes: 8 << 20,
        min_free_bytes: 0,
        now: Timestamp(5_000_000),
    }
}

/// Opens a store; events go nowhere.
pub(super) fn open(dir: &Path) -> (Opened, Vec<Recovered>, RecoveryReport) {
    open_with(dir, Box::new(drop))
}

pub(super) fn open_with(dir: &Path, notify: Notify) -> (Opened, Vec<Recovered>, RecoveryReport) {
    let mut recovered = Vec::new();
    let (opened, report) = LocalStore::open(&settings(dir))
        .unwrap()
        .recover(&mut |handed: RecoveryEvent| handed.collect_into(&mut recovered), notify)
        .unwrap();
    (opened, recovered, report)
}

/// The error of opening the store in `dir`.
pub(super) fn refusal(dir: &Path) -> String {
    let store = match LocalStore::open(&settings(dir)) {
        Ok(store) => store,
        Err(error) => return error.to_string(),
    };
    let recovered = store.recover(&mut drop, Box::new(drop));
    recovered.unwrap_err().to_string()
}

pub(super) fn close(opened: Opened) {
    let closed = opened.committer.close();
    drop(opened);
    closed.blocking_recv().unwrap().unwrap();
}

/// Closes the committer only.
fn close_but_keep(opened: &Opened) {
    opened.committer.close().blocking_recv().unwrap().unwrap();
}

pub(super) fn accept(opened: &Opened, task: &Task) -> Result<(), CommitError> {
    hand_in(opened, task).blocking_recv().unwrap()
}

/// Hands a task to the committer and returns the receiver of its answer.
pub(super) fn hand_in(opened: &Opened, task: &Task) -> oneshot::Receiver<Result<(), CommitError>> {
    hand_in_with(opened, task, None)
}

/// The same for a task with an idempotency key.
pub(super) fn hand_in_with(
    opened: &Opened,
    task: &Task,
    idempotency: Option<Idempotency>,
) -> oneshot::Receiver<Result<(), CommitError>> {
    let (reply, answer) = oneshot::channel();
    let reply = move |result| {
        // The receiver may be dropped.
        let _ = reply.send(result);
    };
    opened.committer.accept(Arc::new(task.clone()), idempotency, Some(Box::new(reply)));
    answer
}

/// Accepts tasks in one commit.
pub(super) fn accept_all(opened: &Opened, tasks: &[Task]) {
    let mut answers = vec![];
    opened.committer.in_one_commit(|| {
        answers.extend(tasks.iter().map(|task| hand_in(opened, task)));
    });
    answers.into_iter().for_each(|answer| answer.blocking_recv().unwrap().unwrap());
}

/// Waits until everything that was handed in is on disk.
pub(super) fn sync(opened: &Opened) {
    let (reply, synced) = oneshot::channel();
    opened.committer.sync(Box::new(|result| reply.send(result).unwrap()));
    synced.blocking_recv().unwrap().unwrap();
}

pub(super) fn nodes(count: usize) -> Vec<Node> {
    let node = |n| Node::parse(&format!("http://node-{n}:80{n:02}/base")).unwrap();
    (0..count).map(node).collect()
}

pub(super) fn small(id: u64) -> Task {
    Task {
        id: TaskId(id),
        key: format!("key-{id}"),
        operation: Operation::Set,
        value: Bytes::from(format!("value-{id}")),
        accepted_at: Timestamp(id),
        expires_at: None,
        replicas: nodes(2),
        user_id: None,
        client: None,
        consistency: Consistency::Eventual,
        primary: None,
        trace: None,
    }
}

/// The report on a store without tasks.
const NOTHING: RecoveryReport = RecoveryReport {
    sent_early: false,
    tasks: 0,
    value_bytes: 0,
    dead_letters: 0,
    orphans_removed: 0,
    keys_restored: 0,
    had_marker: true,
    set_aside: SetAside { file: None, damaged: vec![], tasks: 0, rows: 0, superseded: 0 },
    rebuilt: false,
    quarantined_rows: 0,
};

pub(super) fn large(id: u64, bytes: usize) -> Task {
    let value: Vec<u8> = (0..=250).cycle().take(bytes).collect();
    Task { value: value.into(), ..small(id) }
}

pub(super) fn failed(failures: u32) -> Progress {
    Progress::Failed { failures, error: "connection refused".into() }
}

pub(super) fn dead(cause: Cause) -> Progress {
    Progress::Dead(DeadLetter {
        cause,
        failures: 4,
        error: "503 Service Unavailable".into(),
        since: Timestamp(9),
    })
}

/// A copy of the data directory, as a kill -9 would leave it.
pub(super) fn image(dir: &Path) -> TempDir {
    fn copy(from: &Path, to: &Path) {
        let mut paths: Vec<_> =
            std::fs::read_dir(from).unwrap().map(|entry| entry.unwrap().path()).collect();
        // The commit marker before the store, so that it is not ahead if a commit comes between.
        paths.sort_by_key(|path| path.is_dir());
        for path in paths {
            let to = to.join(path.file_name().unwrap());
            if path.is_dir() {
                std::fs::create_dir(&to).unwrap();
                copy(&path, &to);
            } else {
                std::fs::copy(&path, to).unwrap();
            }
        }
    }
    let image = tempfile::tempdir().unwrap();
    copy(dir, image.path());
    image
}

pub(super) fn untouched(task: &Task) -> Recovered {
    let progress = vec![Progress::Untouched; task.replicas.len()];
    Recovered { header: Header::of(task), idempotency: None, progress, is_awaited: false }
}

fn trace(state: Option<&str>) -> Trace {
    Trace { parent: "p".repeat(Trace::MAX_PARENT_BYTES).into(), state: state.map(Box::from) }
}

/// Small, large and odd tasks.
fn menagerie() -> Vec<Task> {
    vec![
        small(10),
        Task {
            operation: Operation::Delete,
            value: Bytes::new(),
            expires_at: Some(Timestamp(u64::MAX)),
            user_id: Some("ürsula".into()),
            ..small(11)
        },
        large(12, 1 << 20),
        Task { key: "\u{0}/%?#\u{1F980}".repeat(300), replicas: nodes(64), ..large(13, 10_000) },
        Task { key: "k".repeat(100_000), value: Bytes::new(), ..small(14) },
        Task { replicas: nodes(1), ..large(15, 3_900) },
        Task { consistency: Consistency::Strong, ..small(16) },
        Task { trace: Some(trace(None)), ..large(17, 9_000) },
        Task { trace: Some(trace(Some("k=v"))), key: "k".repeat(9_000), ..small(18) },
    ]
}

#[test]
fn tasks_of_every_size_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let tasks = menagerie();
    let (opened, recovered, report) = open(dir.path());
    assert_eq!((recovered, report), (vec![], NOTHING));
    for task in &tasks {
        accept(&opened, task).unwrap();
        assert_eq!(opened.reader.read(task.id).unwrap().as_ref(), Some(task));
    }
    close(opened);

    let (opened, recovered, report) = open(dir.path());
    assert_eq!(recovered, tasks.iter().map(untouched).collect::<Vec<_>>());
    assert_eq!(report.tasks, 9);
    assert_eq!(report.value_bytes, 1_048_576 + 10_000 + 3_900 + 9_000 + 3 * 8);
    assert_eq!(report.orphans_removed, 0);
    for task in &tasks {
        assert_eq!(opened.reader.read(task.id).unwrap().as_ref(), Some(task));
        opened.committer.remove(task.id);
    }
    assert_eq!(opened.reader.read(TaskId(9)).unwrap(), None);
    assert!(compaction::file_bytes(&dir.path().join("store-000001")) > 1 << 20);
    close(opened);

    let (opened, recovered, report) = open(dir.path());
    assert_eq!((recovered, report), (vec![], NOTHING));
    let database = &opened.reader.files.database();
    assert_eq!((database.tasks.len(), database.values.len()), (0, 0));
}

#[test]
fn headers_are_read_without_values_and_a_damaged_task_does_not_affect_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let tasks = menagerie();
    for task in &tasks {
        accept(&opened, task).unwrap();
        assert_eq!(opened.reader.header(task.id).unwrap(), Some(Header::of(task)));
    }
    // Damaged: the value of 12, the envelope of 14 and the row of 16. 13 is settled.
    let values = &opened.reader.files.database().values;
    values.insert(keys::of_chunk(TaskId(12), 0), b"?").unwrap();
    values.remove(keys::of_chunk(TaskId(14), 3)).unwrap().unwrap();
    opened.reader.damage(TaskId(16));
    opened.committer.remove(TaskId(13));
    close_but_keep(&opened);
    let ids: Vec<_> = (10..=19).map(TaskId).collect();
    let lost = [13, 14, 16, 19].map(TaskId);
    let expected = |id: &TaskId| {
        let task = tasks.iter().find(|task| task.id == *id && !lost.contains(id));
        task.map(Header::of)
    };
    let headers = opened.reader.headers(&ids).unwrap();
    assert_eq!(headers, ids.iter().map(expected).collect::<Vec<_>>());
    let error = opened.reader.header(TaskId(14)).unwrap_err().to_string();
    assert_eq!(
        error,
        "the store is damaged: the row 000000000000000e00000003 of values is missing"
    );
    assert!(matches!(opened.reader.header(TaskId(16)), Err(ReadError::Damaged(_))));
    opened.reader.break_down();
    assert!(matches!(opened.reader.headers(&ids), Err(ReadError::Database(_))));
}

#[test]
fn progress_comes_back_and_the_latest_state_wins() {
    let dir = tempfile::tempdir().unwrap();
    let task = Task { replicas: nodes(5), ..small(1) };
    let states = [
        vec![
            Progress::Untouched,
            failed(3),
            Progress::Delivered,
            Progress::Superseded,
            dead(Cause::RetryOverflow),
        ],
        vec![
            dead(Cause::Rejected),
            dead(Cause::GaveUp),
            Progress::Delivered,
            Progress::Untouched,
            failed(1),
        ],
        vec![Progress::Untouched; 5],
    ];
    let (mut opened, ..) = open(dir.path());
    accept(&opened, &task).unwrap();
    for (state, letters) in states.into_iter().zip([1, 2, 0]) {
        opened.committer.save(task.id, vec![dead(Cause::GaveUp); 5]);
        opened.committer.save(task.id, state.clone());
        close(opened);
        let reopened = open(dir.path());
        opened = reopened.0;
        assert_eq!(reopened.1[0].progress, state);
        assert_eq!(reopened.2.dead_letters, letters);
        let rows = opened.reader.files.database().dead_letters.len();
        assert_eq!(u64::try_from(rows), Ok(letters));
    }
    assert_eq!(opened.reader.files.database().progress.len(), 0);
}

#[test]
fn a_dead_letter_overrides_the_progress_row() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    accept(&opened, &small(1)).unwrap();
    opened.committer.save(TaskId(1), vec![dead(Cause::GaveUp), failed(2)]);
    close(opened);
    // As after a crash in the middle of a redrive.
    let (opened, ..) = open(dir.path());
    let row = rows::progress(&[Progress::Untouched, failed(2)]).unwrap();
    let key = keys::of_task(TaskId(1));
    opened.reader.files.database().put(Tree::Progress, &key, &row).unwrap();
    close(opened);
    let (_, recovered, _) = open(dir.path());
    assert_eq!(recovered[0].progress, [dead(Cause::GaveUp), failed(2)]);
}

#[test]
fn rows_without_their_task_are_removed_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    for id in [1, 3, 5] {
        accept(&opened, &large(id, 20_000)).unwrap();
        opened.committer.save(TaskId(id), vec![dead(Cause::GaveUp), failed(1)]);
    }
    close(opened);
    // As after a crash in the middle of a removal.
    let (opened, ..) = open(dir.path());
    for id in [1, 5] {
        let key = keys::of_task(TaskId(id));
        opened.reader.files.database().take(Tree::Tasks, &key).unwrap().unwrap();
    }
    close(opened);
    let (opened, recovered, report) = open(dir.path());
    assert_eq!(recovered.len(), 1);
    assert_eq!(recovered[0].header.id, TaskId(3));
    assert_eq!(recovered[0].progress, [dead(Cause::GaveUp), failed(1)]);
    assert_eq!(report.orphans_removed, 2 * (4 + 1 + 1));
    close(opened);
    assert_eq!(open(dir.path()).2.orphans_removed, 0);
}

#[test]
fn small_tasks_of_one_commit_share_a_row_until_they_are_settled() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    // Two ids are never used. The fifth task is too large, so it begins a row.
    let tasks: Vec<_> = [1, 2, 4, 6, 7, 8, 9]
        .map(|id| if id == 7 { large(id, 20_000) } else { small(id) })
        .to_vec();
    accept_all(&opened, &tasks);
    let database = opened.reader.files.database();
    let keys = || -> Vec<_> {
        let keys = database.tasks.iter().keys();
        keys.map(|key| keys::task(&key.unwrap()).unwrap().0).collect()
    };
    let readable = || -> Vec<_> {
        let is_readable = |id: &u64| {
            let read = opened.reader.read(TaskId(*id)).unwrap();
            assert!(read.is_none() || tasks.contains(read.as_ref().unwrap()));
            assert_eq!(opened.reader.header(TaskId(*id)).unwrap(), read.as_ref().map(Header::of));
            read.is_some()
        };
        (0..=300).filter(is_readable).collect()
    };
    assert_eq!((keys(), readable()), (vec![1, 7, 8], vec![1, 2, 4, 6, 7, 8, 9]));
    opened.committer.save(TaskId(2), vec![dead(Cause::GaveUp), failed(1)]);
    opened.committer.save(TaskId(4), vec![failed(1), dead(Cause::GaveUp)]);
    let steps: [(&[u64], Vec<u64>, Vec<u64>); 5] = [
        (&[1, 3], vec![1, 7, 8], vec![2, 4, 6, 7, 8, 9]),
        (&[4, 7], vec![1, 8], vec![2, 6, 8, 9]),
        (&[2, 6], vec![8], vec![8, 9]),
        (&[9], vec![8], vec![8]),
        (&[8], vec![], vec![]),
    ];
    for (at, (settled, rows, left)) in steps.into_iter().enumerate() {
        settled.iter().for_each(|id| opened.committer.remove(TaskId(*id)));
        sync(&opened);
        assert_eq!((keys(), readable()), (rows, left.clone()), "{settled:?}");
        let (_, recovered, report) = open(image(dir.path()).path());
        assert_eq!(recovered.iter().map(|task| task.header.id.0).collect::<Vec<_>>(), left);
        assert_eq!(report.dead_letters, [2, 1, 0, 0, 0][at]);
        assert_eq!(report.orphans_removed, 0);
    }
    assert_eq!((database.values.len(), database.progress.len()), (0, 0));
}

#[test]
fn ids_are_never_reused_even_by_an_empty_store() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let first = opened.next_id;
    assert_eq!(first, TaskId(5_000), "the microseconds of the creation");
    accept(&opened, &small(first.0)).unwrap();
    opened.committer.remove(first);
    close(opened);
    let mut highest = first;
    for _ in 0..3 {
        let (opened, recovered, _) = open(dir.path());
        assert!(recovered.is_empty() && opened.next_id > highest);
        highest = opened.next_id;
        // As after a kill: the disk already holds the lease.
        let image = image(dir.path());
        assert!(open(image.path()).0.next_id > highest);
        close(opened);
    }
}

#[test]
fn a_store_that_is_open_is_not_opened_twice() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    assert!(refusal(dir.path()).contains("is in use by another replicator (process "));
    let reader = opened.reader.clone();
    close(opened);
    assert!(refusal(dir.path()).contains("is in use"), "a reader still holds the lock");
    drop(reader);
    open(dir.path());
}

#[test]
fn a_newer_format_is_refused_with_both_versions() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let row = rows::seal(Tree::Meta, keys::FORMAT_VERSION, &8u32.to_be_bytes());
    opened.reader.files.database().meta.insert(keys::FORMAT_VERSION, row).unwrap();
    close(opened);
    let path = dir.path().display();
    assert_eq!(
        refusal(dir.path()),
        format!(
            "cannot open the store in {path}: its format is version 8, this binary knows up to 7"
        )
    );
}

#[test]
fn a_used_store_without_current_is_refused_and_an_unused_one_is_created_again() {
    let dir = tempfile::tempdir().unwrap();
    close(open(dir.path()).0);
    std::fs::remove_file(dir.path().join("CURRENT")).unwrap();
    let error = refusal(dir.path());
    assert!(error.contains("no file CURRENT"), "{error}");

    let fresh = tempfile::tempdir().unwrap();
    drop(open_sled(&fresh.path().join("store-000001"), SMALL_CACHE).unwrap());
    close(open(fresh.path()).0);
}

#[test]
fn a_snapshot_torn_by_a_crash_does_not_prevent_opening() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    accept(&opened, &small(1)).unwrap();
    close(opened);
    let torn = dir.path().join("store-000001/snap.00000000FFFFFFFF.generating");
    std::fs::write(&torn, [7; 57]).unwrap();
    let (opened, recovered, _) = open(dir.path());
    assert_eq!(recovered.len(), 1);
    assert!(!torn.exists());
    close(opened);
}

#[test]
fn no_row_goes_to_a_file_that_sled_does_not_sync() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let longest = |n| Node::parse(&format!("http://n{n:02}/{}", "p".repeat(1_013))).unwrap();
    let task = |id| Task {
        key: "k".repeat(4 << 10),
        replicas: (0..64).map(longest).collect(),
        user_id: Some("u".repeat(1_000)),
        trace: Some(trace(Some(&"s".repeat(Trace::MAX_STATE_BYTES)))),
        ..large(id, 256 << 10)
    };
    let error: Arc<str> = "e".repeat(100_000).into();
    let letter = DeadLetter {
        cause: Cause::GaveUp,
        failures: u32::MAX,
        error: Arc::clone(&error),
        since: Timestamp(u64::MAX),
    };
    for id in 1..=40 {
        opened.committer.accept(Arc::new(task(id)), None, None);
        let entry = match id % 2 {
            0 => Progress::Dead(letter.clone()),
            _ => Progress::Failed { failures: u32::MAX, error: Arc::clone(&error) },
        };
        opened.committer.save(TaskId(id), vec![entry; 64]);
        let row = ReplicaRow {
            pause: Some(ReplicaPause {
                since: Timestamp(u64::MAX),
                until: Some(Timestamp(u64::MAX)),
            }),
            limits: ReplicaLimits {
                workers: Some(NonZeroU32::MAX),
                rate: Some(NonZeroU32::MAX),
                bandwidth: Some(NonZeroU64::MAX),
                redrive_rate: Some(NonZeroU32::MAX),
            },
            renamed_to: Some(longest(0)),
            first_used: Timestamp(u64::MAX),
        };
        opened.committer.set_replica(longest(id), Some(row), None);
        let answer = IdempotencyAnswer {
            success: false,
            acked: (0..512).collect(),
            failed: (512..1024).collect(),
            needed: 513,
        };
        let row = IdempotencyRow {
            task: TaskId(u64::MAX),
            fingerprint: [255; 16],
            at: Timestamp(u64::MAX),
            answer: Some(answer),
        };
        let key = format!("{id:0width$}", width = crate::store::records::MAX_IDEMPOTENCY_KEY_BYTES);
        opened.committer.set_idempotency(key.into(), row);
    }
    close(opened);
    let (opened, recovered, _) = open(dir.path());
    assert_eq!(recovered.len(), 40);
    assert_eq!(opened.reader.read(TaskId(40)).unwrap(), Some(task(40)));
    assert_eq!((opened.replicas.len(), opened.idempotency.len()), (40, 40));
    let blobs = std::fs::read_dir(dir.path().join("store-000001/blobs")).unwrap();
    assert_eq!(blobs.count(), 0);
}

/// For tests of reading.
impl StoreReader {
    /// Replaces the row of a task by garbage that the ledger does not count.
    /// Flips a bit at the end of a task's row, in its value.
    pub(crate) fn flip(&self, id: TaskId) {
        let tasks = self.files.database().tasks.clone();
        let mut row = tasks.get(keys::of_task(id)).unwrap().unwrap().to_vec();
        *row.last_mut().unwrap() ^= 1;
        tasks.insert(keys::of_task(id), row).unwrap();
    }

    pub(crate) fn damage(&self, id: TaskId) {
        self.lose(id);
        let tasks = &self.files.database().tasks;
        tasks.insert(keys::of_task(id), b"not what was written").unwrap();
    }

    /// Removes a task.
    pub(crate) fn lose(&self, id: TaskId) {
        self.files.database().take(Tree::Tasks, &keys::of_task(id)).unwrap().unwrap();
    }

    /// Removes the garbage of [`Self::damage`].
    pub(crate) fn clear(&self, id: TaskId) {
        let _ = self.files.database().tasks.remove(keys::of_task(id));
    }

    /// Makes every read fail.
    pub(crate) fn break_down(&self) {
        self.files.database().db.drop_tree(Tree::Tasks.name()).unwrap();
    }
}
