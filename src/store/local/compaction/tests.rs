use crate::store::local::tests::{accept, accept_all, close, failed, large, open, settings, small};
use crate::store::{IdempotencyRow, LocalStore, ReplicaRow, StoreSettings};
use crate::task::{Node, TaskId, Timestamp};

#[test]
fn a_rewrite_keeps_tasks_progress_replicas_and_keys() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let row = ReplicaRow::new(Timestamp(1));
    let node = |n: u64| Node::parse(&format!("http://node-{n}")).unwrap();
    let key = |n: u64| IdempotencyRow {
        task: TaskId(n),
        fingerprint: [1; 16],
        at: Timestamp(n),
        answer: None,
    };
    for n in 1..=400 {
        opened.committer.set_replica(node(n), Some(row.clone()), None);
        opened.committer.set_idempotency(format!("key {n:03}").into(), key(n));
    }
    accept(&opened, &large(1, 20_000)).unwrap();
    opened.committer.save(TaskId(1), vec![failed(1), failed(2)]);
    for id in 2..=40 {
        accept(&opened, &large(id, 100_000)).unwrap();
        opened.committer.remove(TaskId(id));
    }
    let shared: Vec<_> = (41..=60).map(small).collect();
    accept_all(&opened, &shared);
    let free = opened.reader.free_bytes().unwrap();
    close(opened);

    // On a nearly full disk even a small file is rewritten.
    let low = StoreSettings { min_free_bytes: free, ..settings(dir.path()) };
    let (opened, _) = LocalStore::open(&low).unwrap().recover(&mut drop, Box::new(drop)).unwrap();
    let before = (opened.replicas.clone(), opened.idempotency.clone());
    assert_eq!((before.0.len(), before.1.len()), (400, 400));
    let mut last = 60;
    while opened.reader.compactions() == 0 {
        // Rows change while they are copied.
        last += 1;
        accept(&opened, &small(last)).unwrap();
        opened.committer.remove(TaskId(last));
        // From a row of several tasks.
        opened.committer.remove(TaskId((last - 20).min(50)));
        opened.committer.set_idempotency("key 400".into(), key(last));
        opened.committer.set_replica(node(400), None, None);
    }
    let header = opened.reader.header(TaskId(1)).unwrap().unwrap();
    assert_eq!(header.value_bytes, 20_000);
    close(opened);
    let (opened, recovered, _) = open(dir.path());
    let left = (last - 20).min(50) + 1..=60;
    let ids: Vec<_> = recovered.iter().map(|task| task.header.id.0).collect();
    assert_eq!(ids, [1].into_iter().chain(left).collect::<Vec<_>>());
    assert_eq!(recovered[0].progress, [failed(1), failed(2)]);
    assert_eq!(opened.reader.read(TaskId(1)).unwrap(), Some(large(1, 20_000)));
    assert_eq!(opened.reader.read(TaskId(60)).unwrap(), Some(small(60)));
    let (mut replicas, mut keys) = before;
    replicas.retain(|(of, _)| *of != node(400));
    keys.last_mut().unwrap().1 = key(last);
    assert_eq!((&opened.replicas, &opened.idempotency), (&replicas, &keys));
}

#[test]
fn a_rewrite_that_fails_does_not_affect_the_current_store() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    accept(&opened, &large(1, 20_000)).unwrap();
    for id in 2..=40 {
        accept(&opened, &large(id, 100_000)).unwrap();
        opened.committer.remove(TaskId(id));
    }
    let free = opened.reader.free_bytes().unwrap();
    close(opened);
    // As on a disk without room for one more file.
    std::fs::create_dir(dir.path().join("CURRENT.new")).unwrap();

    let low = StoreSettings { min_free_bytes: free, ..settings(dir.path()) };
    let (opened, _) = LocalStore::open(&low).unwrap().recover(&mut drop, Box::new(drop)).unwrap();
    let unfinished = dir.path().join("store-000002.new");
    let mut last = 40;
    for making in [true, false] {
        while unfinished.exists() != making {
            last += 1;
            accept(&opened, &small(last)).unwrap();
        }
    }
    accept(&opened, &small(last + 1)).unwrap();
    assert_eq!(opened.reader.compactions(), 0);
    close(opened);
    assert!(!dir.path().join("store-000002").exists());
    assert_eq!(open(dir.path()).1.len() as u64, 1 + last + 1 - 40);
}
