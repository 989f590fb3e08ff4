use super::super::tests::{accept, close, failed, image, open, refusal, small};
use super::super::{Opened, keys};
use super::*;
use crate::store::ReplicaRow;
use crate::store::keys::Tree;
use crate::task::{Node, TaskId, Timestamp};

fn database(opened: &Opened) -> Database {
    opened.reader.files.database()
}

/// Takes a row away behind the ledger's back, as damage in sled's log would.
fn lose(opened: &Opened, tree: Tree, id: u64) {
    let lost = database(opened).tree(tree).remove(keys::of_task(TaskId(id))).unwrap();
    assert!(lost.is_some());
}

#[test]
fn a_row_that_vanished_is_missed_and_nothing_is_removed_for_it() {
    for (tree, expected) in [
        (Tree::Tasks, "tasks holds 2 rows where 3 must be"),
        (Tree::Progress, "progress holds 2 rows where 3 must be"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (opened, ..) = open(dir.path());
        for id in 1..=3 {
            accept(&opened, &small(id)).unwrap();
            opened.committer.save(TaskId(id), vec![failed(1), failed(2)]);
        }
        close(opened);
        let (opened, ..) = open(dir.path());
        lose(&opened, tree, 2);
        close(opened);
        for _ in 0..2 {
            let error = refusal(dir.path());
            assert!(error.contains("has lost rows") && error.contains(expected), "{error}");
        }
    }
}

/// What is said of a store in which a row went back to an older one, and what `besides` does.
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
fn a_row_that_went_back_to_an_older_one_is_noticed() {
    let error = refusal_of_an_older_row(|_| {});
    assert!(error.contains("the 1 rows of progress are not those that were written"), "{error}");
}

#[test]
fn a_row_that_went_back_is_noticed_beside_one_that_is_damaged() {
    let error = refusal_of_an_older_row(|database| {
        database.tasks.insert(keys::of_task(TaskId(2)), b"no row").unwrap();
    });
    assert!(error.contains("the 1 rows of progress are not those that were written"), "{error}");
}

#[test]
fn a_cut_between_two_commits_is_none_of_the_ledgers_business() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    accept(&opened, &small(1)).unwrap();
    accept(&opened, &small(2)).unwrap();
    close(opened);
    // New tasks that were not committed, flushed by sled for itself.
    let (opened, ..) = open(dir.path());
    database(&opened).insert(&small(3)).unwrap();
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
    // From here on the count binds again.
    lose(&reopened, Tree::Tasks, 2);
    close(reopened);
    assert!(refusal(cut.path()).contains("tasks holds 1 rows where 2 must be"));
}

#[test]
fn a_row_of_a_replica_that_vanished_is_missed_and_one_that_was_just_written_is_not_too_many() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let node = |text| Node::parse(text).unwrap();
    let row = ReplicaRow { paused_since: None, renamed_to: None, first_used: Timestamp(1) };
    opened.committer.set_replica(node("http://a"), Some(row.clone()), None);
    opened.committer.set_replica(node("http://b"), Some(row.clone()), None);
    close(opened);
    // Written and not committed, flushed by sled for itself.
    let (opened, ..) = open(dir.path());
    database(&opened).set_replica(&node("http://c"), Some(&row)).unwrap();
    database(&opened).tasks.flush().unwrap();
    let cut = image(dir.path());
    let (reopened, ..) = open(cut.path());
    assert_eq!(reopened.replicas.len(), 3);
    database(&reopened).tree(Tree::Replicas).remove(b"http://b").unwrap().unwrap();
    close(reopened);
    let error = refusal(cut.path());
    assert!(error.contains("replicas holds 2 rows where 3 must be"), "{error}");
}

#[test]
fn a_store_that_lost_the_end_of_its_log_is_refused_by_what_the_witness_saw() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    accept(&opened, &small(1)).unwrap();
    let before = image(dir.path());
    accept(&opened, &small(2)).unwrap();
    let witness = dir.path().join("COMMITTED");
    std::fs::copy(&witness, before.path().join("COMMITTED")).unwrap();
    let error = refusal(before.path());
    assert!(error.contains("has lost the end of") && error.contains("COMMITTED"), "{error}");
    // Nothing but the witness knows: without it the store opens, and says so.
    for harm in [None, Some("store-000001 torn")] {
        match harm {
            None => std::fs::remove_file(before.path().join("COMMITTED")).unwrap(),
            Some(text) => std::fs::write(before.path().join("COMMITTED"), text).unwrap(),
        }
        let (opened, recovered, report) = open(before.path());
        assert_eq!((recovered.len(), report.witnessed), (1, false));
        close(opened);
        let (opened, _, report) = open(before.path());
        assert!(report.witnessed);
        close(opened);
    }
}

#[test]
fn a_store_emptied_to_nothing_is_not_taken_for_a_new_one() {
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
