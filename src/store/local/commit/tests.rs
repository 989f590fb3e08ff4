use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::super::tests::{accept, close, failed, hand_in, image, large, open, open_with, small};
use super::*;
use crate::store::ReplicaRow;
use crate::store::local::keys::{self, Tree};
use crate::store::records::Header;
use crate::task::{Idempotency, Node, Task, Timestamp};

mod prefix;

/// Records the events for the daemon.
fn recorder() -> (Arc<Mutex<Vec<JournalEvent>>>, Notify) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&events);
    let notify: Notify = Box::new(move |event| record.lock().push(event));
    (events, notify)
}

#[test]
fn an_answered_task_is_on_disk_without_a_close() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    for id in 1..=5 {
        accept(&opened, &small(id)).unwrap();
        let image = image(dir.path());
        let (_, recovered, _) = open(image.path());
        assert_eq!(recovered.len() as u64, id);
    }
}

#[test]
fn everyone_in_a_batch_is_answered_and_the_daemon_is_told_of_each_task_once() {
    let dir = tempfile::tempdir().unwrap();
    let (events, notify) = recorder();
    let (opened, ..) = open_with(dir.path(), notify);
    let answers: Vec<_> = (1..=3_000).map(|id| hand_in(&opened, &small(id))).collect();
    for answer in answers {
        assert_eq!(answer.blocking_recv().unwrap(), Ok(()));
    }
    close(opened);
    let batches: Vec<Vec<TaskId>> = std::mem::take(&mut *events.lock())
        .into_iter()
        .map(|event| match event {
            JournalEvent::Arrived { tasks, .. } => tasks.iter().map(|task| task.id).collect(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(batches.len() < 1_500, "{} flushes", batches.len());
    assert!(batches.iter().all(|ids| ids.len() <= MAX_BATCH_TASKS));
    assert_eq!(batches.concat(), (1..=3_000).map(TaskId).collect::<Vec<_>>());
    assert_eq!(open(dir.path()).1.len(), 3_000);
}

#[test]
fn a_group_is_one_commit_however_slowly_it_comes_in() {
    let dir = tempfile::tempdir().unwrap();
    let (events, notify) = recorder();
    let (opened, ..) = open_with(dir.path(), notify);
    let mut answers = vec![hand_in(&opened, &small(1))];
    opened.committer.in_one_commit(|| {
        for id in 2..=1_001 {
            answers.push(hand_in(&opened, &small(id)));
            (0..20).for_each(|_| thread::yield_now());
        }
    });
    answers.push(hand_in(&opened, &small(1_002)));
    for answer in answers {
        assert_eq!(answer.blocking_recv().unwrap(), Ok(()));
    }
    close(opened);
    let events = events.lock();
    let of_group = |event: &&JournalEvent| {
        let in_group = |task: &Arc<Task>| (2..=1_001).contains(&task.id.0);
        matches!(event, JournalEvent::Arrived { tasks, .. } if tasks.iter().any(in_group))
    };
    assert_eq!(events.iter().filter(of_group).count(), 1);
}

#[test]
fn settlements_are_written_in_the_order_of_their_tasks_whatever_order_they_came_in() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let files = Arc::clone(&opened.reader.files);
    let writes = files.database().progress.watch_prefix([]);
    // All are handed in before the first turn.
    let (sender, orders) = mpsc::channel();
    let committer = Committer { orders: sender, turns: CommitterTurns::default() };
    for id in (1..=200).rev() {
        committer.accept(Arc::new(small(id)), None, None);
        committer.save(TaskId(id), vec![failed(1), failed(2)]);
    }
    drop(committer);
    Writer::new(orders, files, lease(opened.next_id), Box::new(drop)).live();
    close(opened);
    let written: Vec<_> = writes.map(|write| keys::task(write.key()).unwrap().0).collect();
    assert_eq!(written, (1..=200).collect::<Vec<_>>());
}

#[test]
fn settlements_reach_the_disk_by_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    accept(&opened, &small(1)).unwrap();
    accept(&opened, &small(2)).unwrap();
    let mut writes = opened.reader.files.database().tasks.watch_prefix([]);
    opened.committer.remove(TaskId(1));
    writes.next_timeout(Duration::from_secs(120)).unwrap();
    // The flush follows the write at once; nothing tells when it is over.
    let settled = (0..1_000).any(|_| {
        let image = image(dir.path());
        open(image.path()).1.len() == 1
    });
    assert!(settled);
}

#[test]
fn a_task_and_its_settlement_that_come_together_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    for id in 1..=100 {
        opened.committer.accept(Arc::new(small(id)), None, None);
        opened.committer.save(TaskId(id), vec![failed(1), failed(1)]);
        opened.committer.remove(TaskId(id));
    }
    close(opened);
    let (_, recovered, report) = open(dir.path());
    assert_eq!((recovered.len(), report.orphans_removed), (0, 0));
}

fn replica_row(first_used: u64) -> ReplicaRow {
    ReplicaRow::new(Timestamp(first_used))
}

fn key_row(task: u64) -> IdempotencyRow {
    IdempotencyRow { task: TaskId(task), fingerprint: [7; 16], at: Timestamp(task), answer: None }
}

fn idempotency(key: &str) -> Idempotency {
    Idempotency { key: key.into(), fingerprint: [7; 16] }
}

fn node(text: &str) -> Node {
    Node::parse(text).unwrap()
}

/// A reply, and where its answer will be.
fn reply() -> (Reply, oneshot::Receiver<Result<(), CommitError>>) {
    let (reply, answer) = oneshot::channel();
    let reply = move |result| {
        // The receiver may be dropped.
        let _ = reply.send(result);
    };
    (Box::new(reply), answer)
}

/// Runs a committer on what is handed in by `orders`, all of it before its first turn.
fn run(opened: &super::super::Opened, hand_in: impl FnOnce(&Committer)) {
    let (sender, orders) = mpsc::channel();
    let committer = Committer { orders: sender, turns: CommitterTurns::default() };
    hand_in(&committer);
    drop(committer);
    let files = Arc::clone(&opened.reader.files);
    Writer::new(orders, files, lease(opened.next_id), Box::new(drop)).live();
}

#[test]
fn an_answered_row_of_a_replica_is_on_disk_and_so_is_that_it_was_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    for (row, left) in [(Some(replica_row(1)), 1), (Some(replica_row(2)), 1), (None, 0)] {
        let (reply, answer) = reply();
        opened.committer.set_replica(node("http://a"), row.clone(), Some(reply));
        answer.blocking_recv().unwrap().unwrap();
        let image = image(dir.path());
        let (again, ..) = open(image.path());
        assert_eq!(again.replicas.len(), left);
        assert!(again.replicas.into_iter().all(|(_, found)| Some(found) == row));
    }
}

#[test]
fn a_replica_is_written_before_the_tasks_that_follow_it_and_a_key_after_its_task() {
    // Wherever the writing of a batch is cut: here by a tree that is gone.
    for (cut, replicas, tasks) in
        [("values", vec!["http://a"], 1), ("none", vec!["http://a", "http://b"], 2)]
    {
        let dir = tempfile::tempdir().unwrap();
        let (opened, ..) = open(dir.path());
        let database = opened.reader.files.database();
        database.db.drop_tree(cut).unwrap();
        run(&opened, |committer| {
            let accept = |task: Task| {
                let key = idempotency(&task.key.clone());
                committer.accept(Arc::new(task), Some(key), None);
            };
            accept(small(1));
            committer.set_replica(node("http://a"), Some(replica_row(1)), None);
            accept(large(2, 20_000));
            committer.set_replica(node("http://b"), Some(replica_row(1)), None);
        });
        let keys = |tree| database.tree(tree).iter().keys().map(Result::unwrap);
        let found: Vec<_> = keys(Tree::Replicas).collect();
        assert_eq!(found, replicas);
        assert_eq!((database.tasks.len(), keys(Tree::Idempotency).count()), (tasks, tasks));
    }
}

#[test]
fn the_latest_that_is_said_of_a_key_counts() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    run(&opened, |committer| {
        let accept = |id, key: &str| {
            committer.accept(Arc::new(small(id)), Some(idempotency(key)), None);
        };
        // Forgotten, and in use again before that was written.
        committer.set_idempotency("used again".into(), key_row(1));
        committer.forget_idempotency(vec!["used again".into()]);
        accept(2, "used again");
        accept(3, "answered");
        committer.set_idempotency("answered".into(), key_row(33));
        accept(4, "forgotten");
        committer.set_idempotency("forgotten".into(), key_row(44));
        committer.forget_idempotency(vec!["forgotten".into(), "never given".into()]);
    });
    close(opened);
    let (opened, ..) = open(dir.path());
    let found: Vec<_> = opened.idempotency.iter().map(|(key, row)| (&**key, row.task.0)).collect();
    assert_eq!(found, [("answered", 33), ("used again", 2)]);
}

#[test]
fn the_answer_to_a_strong_write_is_written_before_its_task_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    accept(&opened, &small(1)).unwrap();
    let database = opened.reader.files.database();
    // So the writing ends at the key.
    database.db.drop_tree("idempotency").unwrap();
    run(&opened, |committer| {
        committer.remove(TaskId(1));
        committer.set_idempotency("key".into(), key_row(1));
    });
    assert_eq!(database.tasks.len(), 1);
}

#[test]
fn all_that_was_handed_in_before_a_sync_is_on_disk_when_it_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    for n in 0..20 {
        for id in 10 * n + 1..10 * n + 10 {
            opened.committer.accept(Arc::new(small(id)), None, None);
            opened.committer.remove(TaskId(id));
        }
        let kept = 10 * n + 10;
        opened.committer.accept(Arc::new(small(kept)), None, None);
        opened.committer.save(TaskId(kept), vec![failed(1), failed(2)]);
        opened.committer.set_idempotency("key".into(), key_row(kept));
        let (reply, answer) = reply();
        opened.committer.sync(reply);
        answer.blocking_recv().unwrap().unwrap();
        let image = image(dir.path());
        let (again, recovered, _) = open(image.path());
        assert_eq!(recovered.len() as u64, n + 1);
        assert!(recovered.iter().all(|task| task.progress == [failed(1), failed(2)]));
        assert_eq!(again.idempotency, [("key".into(), key_row(kept))]);
    }
}

#[test]
fn a_sync_with_nothing_before_it_is_answered_and_so_is_one_whose_change_came_to_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let (nothing, first) = reply();
    opened.committer.sync(nothing);
    first.blocking_recv().unwrap().unwrap();
    let (overtaken, mut second) = reply();
    run(&opened, |committer| {
        committer.forget_idempotency(vec!["key".into()]);
        committer.sync(overtaken);
        committer.accept(Arc::new(small(1)), Some(idempotency("key")), None);
    });
    second.try_recv().unwrap().unwrap();
}

#[test]
fn a_sync_is_not_kept_waiting_by_what_comes_after_it() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let stop = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        let flood = opened.committer.clone();
        let stop = &stop;
        scope.spawn(move || {
            for id in (1..).take_while(|_| !stop.load(std::sync::atomic::Ordering::Relaxed)) {
                let (reply, answer) = reply();
                flood.accept(Arc::new(small(id)), None, Some(reply));
                flood.save(TaskId(id), vec![failed(1), failed(2)]);
                flood.set_idempotency(format!("{}", id % 1_000).into(), key_row(id));
                if id % 200 == 0 {
                    answer.blocking_recv().unwrap().unwrap();
                }
            }
        });
        for _ in 0..5 {
            let (reply, answer) = reply();
            opened.committer.sync(reply);
            answer.blocking_recv().unwrap().unwrap();
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_lease_is_renewed_before_an_id_beyond_it_can_be_seen() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let end = opened.next_id.0 + LEASE;
    for id in [end - RENEW - 1, end - RENEW, end - 1, end + 5 * LEASE] {
        accept(&opened, &small(id)).unwrap();
        let on_disk = opened.reader.files.database().sequence().unwrap().unwrap();
        assert!(on_disk.0 > id + RENEW, "{id} {on_disk}");
    }
}

fn strong(id: u64) -> Task {
    Task { consistency: Consistency::Strong, ..small(id) }
}

#[test]
fn a_task_that_is_removed_before_its_commit_is_not_written_and_its_id_is_not_used_again() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let writes = opened.reader.files.database().tasks.watch_prefix([]);
    let beyond = opened.next_id.0 + LEASE;
    let (first, mut first_answer) = reply();
    let (second, mut second_answer) = reply();
    run(&opened, |committer| {
        committer.accept_early(Arc::new(strong(beyond)), first);
        committer.save(TaskId(beyond), vec![failed(1), failed(1)]);
        committer.remove(TaskId(beyond));
        // One with a key is written: the key must stay.
        committer.accept(Arc::new(small(beyond + 1)), Some(idempotency("k")), Some(second));
        committer.remove(TaskId(beyond + 1));
    });
    assert_eq!(first_answer.try_recv().unwrap(), Err(CommitError::Removed));
    assert_eq!(second_answer.try_recv().unwrap(), Ok(()));
    close(opened);
    let mut written: Vec<_> = writes.map(|write| keys::task(write.key()).unwrap().0).collect();
    written.dedup();
    assert_eq!(written, [beyond + 1]);
    let (opened, recovered, _) = open(dir.path());
    assert!(recovered.is_empty() && opened.next_id.0 > beyond + RENEW);
}

#[test]
fn settlements_are_on_disk_when_they_are_reported_and_only_after_a_strong_write() {
    let dir = tempfile::tempdir().unwrap();
    let (reports, settled) = mpsc::channel();
    let notify: Notify = Box::new(move |event| {
        if let JournalEvent::Settled { through } = event {
            // The test may be over.
            let _ = reports.send(through);
        }
    });
    let (opened, ..) = open_with(dir.path(), notify);
    (1..=3).for_each(|id| accept(&opened, &small(id)).unwrap());
    opened.committer.remove(TaskId(1));
    let (synced, done) = reply();
    opened.committer.sync(synced);
    done.blocking_recv().unwrap().unwrap();
    assert!(settled.try_recv().is_err(), "there was no strong write");
    accept(&opened, &strong(4)).unwrap();
    assert_eq!(settled.recv(), Ok(1));
    for (count, id) in [(2, 4), (3, 2), (4, 3)] {
        opened.committer.remove(TaskId(id));
        while settled.recv().unwrap() < count {}
        let image = image(dir.path());
        let left = open(image.path()).1.len();
        assert_eq!(left as u64, 4 - count);
    }
    close(opened);
}

#[test]
fn a_start_knows_whether_the_last_process_may_have_lost_strong_writes_that_it_sent() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let sent_early = |dir: &std::path::Path| {
        let (opened, _, report) = open(dir);
        close(opened);
        report.sent_early
    };
    accept(&opened, &small(1)).unwrap();
    assert!(!sent_early(image(dir.path()).path()));
    accept(&opened, &strong(2)).unwrap();
    let crashed = image(dir.path());
    assert!(sent_early(crashed.path()), "after a crash");
    close(opened);
    assert!(!sent_early(dir.path()), "after a close");
}

/// Takes a tree away so that the removal of a task fails, and lets it fail.
fn break_store(opened: &super::super::Opened, id: u64) {
    accept(opened, &small(id)).unwrap();
    opened.reader.files.database().db.drop_tree("progress").unwrap();
    opened.committer.remove(TaskId(id));
}

#[test]
fn after_the_first_error_everyone_is_refused_and_the_daemon_is_told_once() {
    let dir = tempfile::tempdir().unwrap();
    let (events, notify) = recorder();
    let (opened, ..) = open_with(dir.path(), notify);
    break_store(&opened, 1);
    // Writes before the settlement is due are still accepted; then every write is rejected.
    let first = (2..).find(|&id| accept(&opened, &small(id)).is_err()).unwrap();
    for id in first + 1..first + 10 {
        assert_eq!(accept(&opened, &small(id)), Err(CommitError::StoreFailed));
        opened.committer.remove(TaskId(2));
    }
    let (refused, answer) = reply();
    opened.committer.sync(refused);
    assert_eq!(answer.blocking_recv().unwrap(), Err(CommitError::StoreFailed));
    let closed = opened.committer.close().blocking_recv().unwrap();
    assert_eq!(closed, Err(CommitError::StoreFailed));
    assert_eq!(accept(&opened, &small(1_000_000)), Err(CommitError::Closed));
    let (late, answer) = reply();
    opened.committer.sync(late);
    assert_eq!(answer.blocking_recv().unwrap(), Err(CommitError::Closed));
    let events = events.lock();
    let failures = events.iter().filter(|event| matches!(event, JournalEvent::Failed(_)));
    assert_eq!(failures.count(), 1);
    let Some(JournalEvent::Failed(why)) = events.last() else {
        panic!("{events:?}");
    };
    assert!(why.contains("does not exist"), "{why}");
}

#[test]
fn a_panic_of_the_thread_is_a_failure_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let (events, record) = recorder();
    let notify: Notify = Box::new(move |event| match event {
        JournalEvent::Arrived { tasks, .. } if tasks.iter().any(|task| task.id == TaskId(2)) => {
            panic!("on purpose")
        }
        other => record(other),
    });
    let (opened, ..) = open_with(dir.path(), notify);
    accept(&opened, &small(1)).unwrap();
    accept(&opened, &small(2)).unwrap();
    assert_eq!(accept(&opened, &small(3)), Err(CommitError::StoreFailed));
    let last = events.lock().last().cloned();
    assert!(matches!(last, Some(JournalEvent::Failed(why)) if why.contains("on purpose")));
}

#[test]
fn a_closed_committer_refuses_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    opened.committer.close().blocking_recv().unwrap().unwrap();
    assert_eq!(accept(&opened, &small(1)), Err(CommitError::Closed));
    let again = opened.committer.close().blocking_recv().unwrap();
    assert_eq!(again, Err(CommitError::Closed));
}
