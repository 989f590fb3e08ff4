use std::sync::Mutex;

use super::super::tests::{accept, close, failed, hand_in, image, open, open_with, small};
use super::*;
use crate::store::keys;

/// Collects what the daemon would be told.
fn recorder() -> (Arc<Mutex<Vec<Event>>>, Notify) {
    let events = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&events);
    let notify: Notify = Box::new(move |event| record.lock().unwrap().push(event));
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
    let batches: Vec<_> = std::mem::take(&mut *events.lock().unwrap())
        .into_iter()
        .map(|event| match event {
            Event::Committed { tasks, .. } => tasks,
            Event::Failed(why) => panic!("{why}"),
        })
        .collect();
    assert!(batches.len() < 1_500, "{} flushes", batches.len());
    assert!(batches.iter().all(|ids| ids.len() <= MAX_BATCH_TASKS));
    assert_eq!(batches.concat(), (1..=3_000).map(TaskId).collect::<Vec<_>>());
    assert_eq!(open(dir.path()).1.len(), 3_000);
}

#[test]
fn settlements_are_written_in_the_order_of_their_tasks_whatever_order_they_came_in() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let files = Arc::clone(&opened.reader.files);
    let writes = files.database().progress.watch_prefix([]);
    // All are handed in before the first turn.
    let (sender, orders) = mpsc::channel();
    let committer = Committer { orders: sender };
    for id in (1..=200).rev() {
        committer.accept(Arc::new(small(id)), None);
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
    writes.next_timeout(Duration::from_secs(10)).unwrap();
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
        opened.committer.accept(Arc::new(small(id)), None);
        opened.committer.save(TaskId(id), vec![failed(1), failed(1)]);
        opened.committer.remove(TaskId(id));
    }
    close(opened);
    let (_, recovered, report) = open(dir.path());
    assert_eq!((recovered.len(), report.orphans_removed), (0, 0));
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
    // Those that come before the settlement is due still get in; then nobody does.
    let first = (2..).find(|&id| accept(&opened, &small(id)).is_err()).unwrap();
    for id in first + 1..first + 10 {
        assert_eq!(accept(&opened, &small(id)), Err(CommitError::StoreFailed));
        opened.committer.remove(TaskId(2));
    }
    let closed = opened.committer.close().blocking_recv().unwrap();
    assert_eq!(closed, Err(CommitError::StoreFailed));
    assert_eq!(accept(&opened, &small(1_000_000)), Err(CommitError::Closed));
    let events = events.lock().unwrap();
    let failures = events.iter().filter(|event| matches!(event, Event::Failed(_)));
    assert_eq!(failures.count(), 1);
    let Some(Event::Failed(why)) = events.last() else {
        panic!("{events:?}");
    };
    assert!(why.contains("does not exist"), "{why}");
}

#[test]
fn a_panic_of_the_thread_is_a_failure_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let (events, record) = recorder();
    let notify: Notify = Box::new(move |event| match event {
        Event::Committed { tasks, .. } if tasks.contains(&TaskId(2)) => panic!("on purpose"),
        other => record(other),
    });
    let (opened, ..) = open_with(dir.path(), notify);
    accept(&opened, &small(1)).unwrap();
    accept(&opened, &small(2)).unwrap();
    assert_eq!(accept(&opened, &small(3)), Err(CommitError::StoreFailed));
    let last = events.lock().unwrap().last().cloned();
    assert!(matches!(last, Some(Event::Failed(why)) if why.contains("on purpose")));
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
