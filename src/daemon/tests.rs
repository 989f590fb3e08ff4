use std::path::Path;

use bytes::Bytes;
use clap::Parser;
use tokio::sync::oneshot;

use super::*;
use crate::cli::Cli;
use crate::dispatcher::{Request, TaskFilter};
use crate::engine::{self, Arrived, Engine, EngineAction, KeyHasher, Origin};
use crate::store::{LocalStore, Opened, Recovered, RecoveryEvent, StoreReader};
use crate::task::{
    Cause, Consistency, NewTask, Node, Operation, Partition, Progress, Task, TaskId, Timestamp,
};

fn open(dir: &Path, clock: Clock, notify: store::Notify) -> (Opened, Vec<Recovered>) {
    let settings = store::StoreSettings {
        dir: dir.to_owned(),
        cache_bytes: 8 << 20,
        min_free_bytes: 0,
        now: clock.now().wall,
    };
    let mut found = Vec::new();
    let store = LocalStore::open(&settings).unwrap();
    let (opened, _) = store
        .recover(&mut |handed: RecoveryEvent| handed.collect_into(&mut found), notify)
        .unwrap();
    (opened, found)
}

/// A task that is only on disk, for a replica that does not exist.
async fn put(opened: &Opened) -> Task {
    put_as(opened, opened.next_id, "k").await
}

async fn put_as(opened: &Opened, id: TaskId, key: &str) -> Task {
    let task = Task {
        id,
        key: key.into(),
        operation: Operation::Set,
        value: Bytes::from_static(b"v"),
        accepted_at: Timestamp(1),
        expires_at: None,
        replicas: vec![Node::parse("http://127.0.0.1:9").unwrap()],
        user_id: None,
        client: None,
        consistency: Consistency::Eventual,
        primary: None,
        trace: None,
    };
    let (reply, durable) = oneshot::channel();
    let reply = Box::new(move |result| reply.send(result).unwrap());
    opened.committer.accept(Arc::new(task.clone()), None, Some(reply));
    durable.await.unwrap().unwrap();
    task
}

/// Runs the loop on a store with one task after `damage`. Returns the health at the end, and the
/// progress on disk.
async fn run_with(damage: fn(&StoreReader, TaskId), settled: bool) -> (Health, Vec<Progress>) {
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::start();
    let (events, event_receiver) = mpsc::unbounded_channel();
    let (requests, request_receiver) = mpsc::unbounded_channel();
    let (health, mut watched) = watch::channel(Health::Serving);
    let (opened, _) = open(dir.path(), clock, Box::new(drop));
    let task = put(&opened).await;
    let row = opened.reader.read(task.id).unwrap().unwrap();
    damage(&opened.reader, task.id);

    let mut engine = Engine::new(engine::EngineSettings {
        hinted_handoff: false,
        breaker_failures: 0,
        ..engine::settings()
    });
    let keys = KeyHasher::default();
    let progress = vec![Progress::Untouched];
    let key = keys.id(&task.key);
    let arrived = Arrived {
        client: None,
        partition: Partition(0),
        id: task.id,
        key,
        replicas: &row.replicas,
        bytes: 2,
        accepted_at: Timestamp(0),
    };
    engine.arrive(clock.now(), arrived, Origin::Recovered(progress));
    let journal = Arc::new(opened.journal.clone());
    let newest = TaskId(opened.next_id.0 - 1);
    let core =
        Core::over(journal, newest, (engine, keys), clock, events.clone(), health, dir.path());
    let core = tokio::spawn(core.run(event_receiver, request_receiver));
    if settled {
        loop {
            let (reply, snapshot) = oneshot::channel();
            requests.send(Request::Snapshot { reply }).unwrap();
            let totals = snapshot.await.unwrap().totals;
            if totals.rejected + totals.gave_up == 1 {
                break;
            }
            tokio::task::yield_now().await;
        }
    } else {
        watched.wait_for(|health| *health != Health::Serving).await.unwrap();
    }
    events.send(LoopEvent::Stop).unwrap();
    core.await.unwrap();
    let end = watched.borrow().clone();
    // The intact row again, so that its progress can be read.
    opened.reader.clear(task.id);
    opened.committer.accept(Arc::new(row), None, None);
    let closed = opened.committer.close();
    drop(opened);
    let closed = closed.await.unwrap();
    if closed.is_err() {
        return (end, vec![]);
    }
    let (_, found) = open(dir.path(), clock, Box::new(drop));
    assert_eq!(found.len(), 1);
    (end, found[0].progress.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_cannot_be_read_back_becomes_a_dead_letter_at_once() {
    let (health, progress) = run_with(StoreReader::damage, true).await;
    assert_eq!(health, Health::Serving);
    let Progress::Dead(letter) = &progress[0] else {
        panic!("{progress:?}");
    };
    assert_eq!(letter.cause, Cause::Rejected);
    assert!(letter.error.starts_with("not sent: the task cannot be read back: the row "));
    assert!(letter.error.ends_with(" of tasks fails its checksum"), "{}", letter.error);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_vanished_is_a_failure_of_the_store_and_not_of_the_replica() {
    let (health, progress) = run_with(StoreReader::lose, false).await;
    assert!(matches!(&health, Health::StoreFailed(why) if why.contains("vanished")), "{health:?}");
    assert_eq!(progress, [Progress::Untouched]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_cannot_be_read_is_a_failure_of_the_store() {
    let (health, _) = run_with(|reader, _| reader.break_down(), false).await;
    let Health::StoreFailed(why) = &health else {
        panic!("{health:?}");
    };
    assert!(why.starts_with("cannot read from the store: "), "{why}");
}

#[tokio::test]
async fn a_full_page_has_the_cursor_of_the_next_page() {
    let dir = tempfile::tempdir().unwrap();
    let mut cli = Cli::try_parse_from(["replicator", "--port", "0", "--retry-base", "1h"]).unwrap();
    cli.daemon.storage.data_dir = dir.path().join("data");
    let daemon = Daemon::start(&Config::from_args(&cli.daemon).unwrap()).await.unwrap();
    let handle = daemon.handle().clone();
    for key in ["a", "b", "c"] {
        let node = Node::parse("http://127.0.0.1:9").unwrap();
        let new = NewTask {
            key: key.into(),
            operation: Operation::Set,
            value: Bytes::from_static(b"v"),
            ttl: None,
            replicas: vec![node],
            user_id: None,
            client: None,
            consistency: Consistency::Eventual,
            primary: None,
            trace: None,
        };
        handle.replicate(new, None).await.unwrap();
    }
    let first = handle.tasks(TaskFilter::default(), 2, None).await.unwrap();
    assert_eq!(first.tasks.len(), 2);
    let after = first.next_cursor.unwrap().parse().map(TaskId).unwrap();
    let rest = handle.tasks(TaskFilter::default(), 2, Some(after)).await.unwrap();
    assert_eq!((rest.tasks.len(), rest.next_cursor), (1, None));
    daemon.stop().await.unwrap();
}

/// A start claims 256 tasks at once, so more of them are needed for a claim before the damage is found.
#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_a_damaged_store_keeps_nothing_of_the_tasks_that_it_claimed_before_the_damage()
{
    let dir = tempfile::tempdir().unwrap();
    let clock = Clock::start();
    let (opened, _) = open(dir.path(), clock, Box::new(drop));
    let id = |n| TaskId(opened.next_id.0 + n);
    for n in 0..300 {
        put_as(&opened, id(n), &format!("k{}", n % 299)).await;
    }
    opened.reader.flip(id(299));
    let (first, last) = (id(0), id(299));
    let closed = opened.committer.close();
    drop(opened);
    closed.await.unwrap().unwrap();

    let settings = store::StoreSettings {
        dir: dir.path().to_owned(),
        cache_bytes: 8 << 20,
        min_free_bytes: 0,
        now: clock.now().wall,
    };
    let keys = store::KeyLimits { window: Duration::from_secs(60), most: 10 };
    let (events, _) = mpsc::unbounded_channel();
    let restore = move || restore::open(&settings, keys, &engine::settings(), clock, events);
    let restored = tokio::task::spawn_blocking(restore).await.unwrap().unwrap();
    let mut engine = restored.engine;
    let mut sent = Vec::new();
    while let Some(action) = engine.next_action() {
        if let EngineAction::Send { delivery, .. } = action {
            sent.push(delivery.task);
        }
    }
    assert_eq!(sent.len() as u64, engine.levels().in_flight, "each was claimed once");
    assert!(!sent.contains(&first), "a newer write of its key was set aside");
    assert!(!sent.contains(&last));
    assert_eq!(engine.totals().accepted, engine.totals().pending, "{:?}", engine.totals());
}
