use std::path::Path;

use super::super::tests::{
    accept, close, dead, failed, hand_in_with, image, open, refusal, settings, small,
};
use super::super::{LocalStore, Opened, keys};
use super::*;
use crate::store::local::keys::Tree;
use crate::store::{IdempotencyRow, ReplicaRow};
use crate::task::{Cause, Idempotency, Node, Progress, ReplicaIndex, TaskId, Timestamp};

fn database(opened: &Opened) -> Database {
    opened.reader.files.database()
}

/// Removes a row without updating the ledger, as damage in sled's log would.
fn lose(opened: &Opened, tree: Tree, id: u64) {
    let lost = database(opened).tree(tree).remove(keys::of_task(TaskId(id))).unwrap();
    assert!(lost.is_some());
}

/// An open store with three tasks, each with a row of progress.
fn three_failed(dir: &Path) -> Opened {
    let (opened, ..) = open(dir);
    for id in 1..=3 {
        accept(&opened, &small(id)).unwrap();
        opened.committer.save(TaskId(id), vec![failed(1), failed(2)]);
    }
    close(opened);
    open(dir).0
}

#[test]
fn a_lost_row_is_detected_and_nothing_is_removed() {
    for (tree, expected) in [
        (Tree::Tasks, "tasks holds 2 rows, expected 3"),
        (Tree::Progress, "progress holds 2 rows, expected 3"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let opened = three_failed(dir.path());
        lose(&opened, tree, 2);
        close(opened);
        for _ in 0..2 {
            let error = refusal(dir.path());
            assert!(error.contains("has lost rows") && error.contains(expected), "{error}");
        }
    }
}

/// Opens a store, with a torn log or a whole one, and returns why it is refused.
fn refusal_with(dir: &Path, log_is_whole: bool) -> String {
    let mut store = LocalStore::open(&settings(dir)).unwrap();
    store.log_is_whole = log_is_whole;
    store.recover(&mut drop, Box::new(drop)).unwrap_err().to_string()
}

/// Moves a row to another key, and leaves the counts of the ledger right.
fn move_row(opened: &Opened, tree: Tree, from: &[u8], to: &[u8]) {
    let database = database(opened);
    let row = database.tree(tree).remove(from).unwrap().unwrap();
    assert!(database.tree(tree).insert(to, row).unwrap().is_none());
}

#[test]
fn progress_under_the_key_of_no_task_is_refused_and_can_be_repaired() {
    for wrong in [&keys::of_task(TaskId(0))[..], b"short"] {
        let dir = tempfile::tempdir().unwrap();
        let opened = three_failed(dir.path());
        move_row(&opened, Tree::Progress, &keys::of_task(TaskId(2)), wrong);
        close(opened);
        for log_is_whole in [false, true] {
            let error = refusal_with(dir.path(), log_is_whole);
            assert!(
                error.contains("progress holds rows that are not found with their tasks"),
                "{error}"
            );
        }
        // The command that the error names has something to repair.
        let checked = crate::store::check(&settings(dir.path()), true).unwrap();
        assert!(checked.repaired.is_some(), "{checked:?}");
        assert_eq!(open(dir.path()).1.len(), 3);
    }
}

#[test]
fn a_row_that_a_torn_log_shows_under_the_key_of_another_task_is_refused() {
    let [second, third, fourth] = [2, 3, 4].map(|id| keys::of_task(TaskId(id)));
    let letter = |id| keys::of_dead_letter(TaskId(id), ReplicaIndex(0));
    let moved: [(Tree, &[u8], &[u8]); 4] = [
        (Tree::Tasks, &fourth, &third),
        (Tree::Progress, &second, &fourth),
        (Tree::DeadLetters, &letter(1), &letter(2)),
        (Tree::Replicas, b"http://a", b"http://b"),
    ];
    for (tree, from, to) in moved {
        let dir = tempfile::tempdir().unwrap();
        let (opened, ..) = open(dir.path());
        [1, 2, 4].into_iter().for_each(|id| accept(&opened, &small(id)).unwrap());
        opened.committer.save(TaskId(1), vec![dead(Cause::GaveUp), Progress::Untouched]);
        opened.committer.save(TaskId(2), vec![failed(1), Progress::Delivered]);
        let row = ReplicaRow::new(Timestamp(1));
        opened.committer.set_replica(Node::parse("http://a").unwrap(), Some(row), None);
        close(opened);
        let (opened, ..) = open(dir.path());
        move_row(&opened, tree, from, to);
        close(opened);
        let error = refusal_with(dir.path(), false);
        let expected = format!("{tree} holds rows under keys that they were not written under");
        assert!(error.contains(&expected), "{error}");
        // In a whole log it is a damaged row, and set aside.
        assert!(open(dir.path()).2.rebuilt);
    }
}

/// The error of a store in which a row was replaced by an older version, after `besides`.
fn refusal_of_an_older_row(besides: impl FnOnce(&Database)) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    for id in 1..=2 {
        accept(&opened, &small(id)).unwrap();
    }
    opened.committer.save(TaskId(1), vec![failed(1), failed(1)]);
    close(opened);
    let (opened, ..) = open(dir.path());
    let key = keys::of_task(TaskId(1));
    let older = database(&opened).progress.get(key).unwrap().unwrap();
    opened.committer.save(TaskId(1), vec![failed(2), failed(2)]);
    close(opened);
    let (opened, ..) = open(dir.path());
    database(&opened).progress.insert(key, older).unwrap();
    besides(&database(&opened));
    close(opened);
    refusal(dir.path())
}

#[test]
fn a_row_replaced_by_an_older_version_is_detected() {
    let error = refusal_of_an_older_row(|_| {});
    assert!(error.contains("the 1 rows of progress are not those that were written"), "{error}");
}

#[test]
fn an_older_row_is_detected_beside_a_damaged_one() {
    let error = refusal_of_an_older_row(|database| {
        database.tasks.insert(keys::of_task(TaskId(2)), b"no row").unwrap();
    });
    assert!(error.contains("the 1 rows of progress are not those that were written"), "{error}");
}

#[test]
fn a_crash_between_two_commits_is_not_taken_for_lost_rows() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    accept(&opened, &small(1)).unwrap();
    accept(&opened, &small(2)).unwrap();
    close(opened);
    // A new task that sled flushed before the commit.
    let (opened, ..) = open(dir.path());
    database(&opened).insert([(&small(3), None)]).unwrap();
    database(&opened).tasks.flush().unwrap();
    let cut = image(dir.path());
    let (reopened, recovered, _) = open(cut.path());
    assert_eq!(recovered.len(), 3);
    close(reopened);
    assert_eq!(open(cut.path()).1.len(), 3);
    // The beginning of the settlements.
    database(&opened).take(Tree::Tasks, &keys::of_task(TaskId(1))).unwrap();
    database(&opened).tasks.flush().unwrap();
    let cut = image(dir.path());
    let (reopened, recovered, _) = open(cut.path());
    assert_eq!(recovered.len(), 2);
    // Now the ledger binds again.
    lose(&reopened, Tree::Tasks, 2);
    close(reopened);
    assert!(refusal(cut.path()).contains("tasks holds 1 rows, expected 2"));
}

fn idempotency(key: &str) -> Idempotency {
    Idempotency { key: key.into(), fingerprint: [9; 16] }
}

/// The keys and their tasks.
fn keys_of(opened: &Opened) -> Vec<(&str, u64)> {
    opened.idempotency.iter().map(|(key, row)| (&**key, row.task.0)).collect()
}

#[test]
fn a_key_whose_row_was_lost_in_a_crash_is_restored_from_its_task() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    for (id, key) in [(1, "used again"), (2, "other")] {
        hand_in_with(&opened, &small(id), Some(idempotency(key))).blocking_recv().unwrap().unwrap();
    }
    // Tasks that sled flushed before their commit: a new key, one that an older task had, and one
    // that two of them have.
    for (id, key) in [(3, "new"), (4, "used again"), (5, "twice"), (6, "twice")] {
        database(&opened).insert([(&small(id), Some(&idempotency(key)))]).unwrap();
    }
    database(&opened).tasks.flush().unwrap();
    let cut = image(dir.path());
    let (opened, recovered, report) = open(cut.path());
    assert_eq!((recovered.len(), report.keys_restored), (6, 3));
    let known = [("new", 3), ("other", 2), ("twice", 6), ("used again", 4)];
    assert_eq!(keys_of(&opened), known);
    assert_eq!(opened.idempotency[0].1, IdempotencyRow::of(&small(3), [9; 16]));
    // The keys stay when the tasks are settled.
    (1..=6).for_each(|id| opened.committer.remove(TaskId(id)));
    close(opened);
    let (opened, recovered, report) = open(cut.path());
    assert_eq!((recovered.len(), report.keys_restored), (0, 0));
    assert_eq!(keys_of(&opened), known);
}

#[test]
fn a_start_does_not_restore_keys_that_were_changed_or_forgotten_later() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    for (id, key) in [(1, "forgotten"), (2, "used again"), (3, "answered")] {
        hand_in_with(&opened, &small(id), Some(idempotency(key))).blocking_recv().unwrap().unwrap();
    }
    opened.committer.forget_idempotency(vec!["forgotten".into(), "used again".into()]);
    hand_in_with(&opened, &small(4), Some(idempotency("used again")));
    opened.committer.remove(TaskId(4));
    let answer = crate::store::IdempotencyAnswer {
        success: true,
        acked: vec![0],
        failed: vec![],
        needed: 1,
    };
    let answered =
        IdempotencyRow { answer: Some(answer), ..IdempotencyRow::of(&small(3), [9; 16]) };
    opened.committer.set_idempotency("answered".into(), answered.clone());
    close(opened);
    let (opened, recovered, report) = open(dir.path());
    assert_eq!((recovered.len(), report.keys_restored), (3, 0));
    assert_eq!(keys_of(&opened), [("answered", 3), ("used again", 4)]);
    assert_eq!(opened.idempotency[0].1, answered);
}

#[test]
fn a_damaged_key_row_is_restored_from_the_row_of_its_task() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    for (id, key) in [(1, "damaged"), (2, "whole")] {
        hand_in_with(&opened, &small(id), Some(idempotency(key))).blocking_recv().unwrap().unwrap();
    }
    database(&opened).tree(Tree::Idempotency).insert(b"damaged", b"no row").unwrap();
    close(opened);
    for (rebuilt, restored) in [(true, 1), (false, 0)] {
        let (opened, recovered, report) = open(dir.path());
        assert_eq!((report.rebuilt, report.keys_restored), (rebuilt, restored));
        assert_eq!(keys_of(&opened), [("damaged", 1), ("whole", 2)]);
        assert_eq!(recovered[0].idempotency, Some(idempotency("damaged")));
        close(opened);
    }
}

#[test]
fn a_lost_replica_row_is_detected_and_an_uncommitted_one_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let node = |text| Node::parse(text).unwrap();
    let row = ReplicaRow::new(Timestamp(1));
    opened.committer.set_replica(node("http://a"), Some(row.clone()), None);
    opened.committer.set_replica(node("http://b"), Some(row.clone()), None);
    close(opened);
    // Flushed by sled before the commit.
    let (opened, ..) = open(dir.path());
    database(&opened).set_replica(&node("http://c"), Some(&row)).unwrap();
    database(&opened).tasks.flush().unwrap();
    let cut = image(dir.path());
    let (reopened, ..) = open(cut.path());
    assert_eq!(reopened.replicas.len(), 3);
    database(&reopened).tree(Tree::Replicas).remove(b"http://b").unwrap().unwrap();
    close(reopened);
    let error = refusal(cut.path());
    assert!(error.contains("replicas holds 2 rows, expected 3"), "{error}");
}

#[test]
fn a_store_that_lost_the_end_of_its_log_is_refused_by_the_commit_marker() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    accept(&opened, &small(1)).unwrap();
    let before = image(dir.path());
    accept(&opened, &small(2)).unwrap();
    let marker_file = dir.path().join("COMMITTED");
    std::fs::copy(&marker_file, before.path().join("COMMITTED")).unwrap();
    let error = refusal(before.path());
    assert!(error.contains("has lost the end of") && error.contains("COMMITTED"), "{error}");
    // Without the commit marker the store opens and reports that it is missing.
    std::fs::remove_file(before.path().join("COMMITTED")).unwrap();
    let (opened, recovered, report) = open(before.path());
    assert_eq!((recovered.len(), report.had_marker), (1, false));
    close(opened);
    let (opened, _, report) = open(before.path());
    assert!(report.had_marker);
    close(opened);
}

#[test]
fn a_damaged_marker_or_one_of_a_newer_store_is_refused_and_nothing_is_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    accept(&opened, &small(1)).unwrap();
    close(opened);
    let marker_file = dir.path().join("COMMITTED");
    let log = dir.path().join("store-000001/db");
    let (intact, before) = (std::fs::read(&marker_file).unwrap(), std::fs::read(&log).unwrap());
    let flipped: Vec<_> = intact.iter().map(|byte| byte ^ 1).collect();
    for harm in [&b"store-000001 torn"[..], &intact[..20], &flipped, &[0xff; 5000]] {
        std::fs::write(&marker_file, harm).unwrap();
        let error = refusal(dir.path());
        assert!(error.contains("COMMITTED is damaged, so a lost end"), "{error}");
        assert!(error.contains("replicator check --repair"), "{error}");
    }
    // Version 1, without a position in the log.
    let text = "store-000002 00000000000000000001 ";
    std::fs::write(&marker_file, format!("{text}{:08x}\n", crc32fast::hash(text.as_bytes())))
        .unwrap();
    let error = refusal(dir.path());
    assert!(error.contains("names store-000002, but CURRENT names store-000001"), "{error}");
    assert_eq!(std::fs::read(&log).unwrap(), before);
    // If the newer store is present, it is not removed.
    let newer = dir.path().join("store-000002");
    std::fs::create_dir(&newer).unwrap();
    let settings = settings(dir.path());
    let error = crate::store::check(&settings, true).unwrap_err().to_string();
    assert!(error.contains("write store-000002 into CURRENT"), "{error}");
    assert!(newer.is_dir());
    std::fs::remove_dir(&newer).unwrap();
    crate::store::check(&settings, true).unwrap();
    assert_eq!(open(dir.path()).1.len(), 1);
}

#[test]
fn an_emptied_store_is_not_taken_for_a_new_one() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    accept(&opened, &small(1)).unwrap();
    close(opened);
    let store = dir.path().join("store-000001");
    for entry in std::fs::read_dir(&store).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap().to_string_lossy().starts_with("snap.") {
            std::fs::remove_file(path).unwrap();
        }
    }
    std::fs::write(store.join("db"), b"").unwrap();
    for _ in 0..2 {
        let error = refusal(dir.path());
        assert!(error.contains("has lost the end of"), "{error}");
    }
}
