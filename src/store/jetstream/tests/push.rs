//! Tasks that an instance has stored for another one.

use std::collections::HashSet;
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use futures_util::StreamExt;

use super::*;
use crate::store::jetstream::message::{Nonce, PushedTask, TaskMessages};
use crate::store::jetstream::names::task_id;

/// A message of a task, as a writer makes it.
fn message_of(opened: &Opened, key: &str) -> Bytes {
    let new = opened.write(0, key, b"pushed".to_vec(), false).new;
    let task = Task::accepted(*new, TaskId(0), Timestamp(5_000_000));
    TaskMessages::of(&task, None, Nonce::random(), None).unwrap().task
}

#[test]
fn a_stored_task_is_passed_on_to_the_owner_of_its_partition() {
    let world = World::new();
    let (owner, _) = world.owner("a");
    let other = world.open("b");
    let process = owner.journal.peers().unwrap().this();
    let mut ids: HashSet<_> = block_on(async {
        let store = other.journal.store();
        // A client of its own: the other ones belong to the threads of their stores.
        let client = async_nats::connect(&world.settings("c").urls[0]).await.unwrap();
        let mut pushed = client.subscribe(store.names().pushed(process)).await.unwrap();
        client.flush().await.unwrap();
        // Until it knows who owns the partitions.
        for number in 0..1_000 {
            other.append(number, &format!("key {number}"));
            let wait = tokio::time::timeout(Duration::from_millis(50), pushed.next());
            if let Ok(Some(group)) = wait.await {
                let tasks = message::read_pushed(&group.payload).unwrap();
                return tasks.into_iter().map(|task| task.id).collect();
            }
        }
        panic!("nothing is passed on");
    });
    while !ids.is_empty() {
        if let Report::Event(JournalEvent::Arrived { tasks, .. }) = owner.next() {
            tasks.iter().for_each(|task| _ = ids.remove(&task.id));
        }
    }
    owner.close();
    other.close();
}

#[test]
fn an_owner_takes_a_pushed_task_before_it_reads_the_log() {
    let world = World::new();
    let (owner, _) = world.owner("a");
    let (store, partition) = (owner.journal.store(), Partition(0));
    let subject = store.names().pushed(owner.journal.peers().unwrap().this());
    let push = |sequence, message| {
        let tasks = [PushedTask { id: task_id(sequence, partition), message }];
        let payload = message::pushed(&tasks).unwrap();
        block_on(store.client().publish(subject.clone(), payload)).unwrap();
    };
    let key = (0..).map(|n| format!("key {n}")).find(|key| store.record().partition_of(key).0 == 0);
    let message = message_of(&owner, &key.unwrap());
    // The log never has it. A checkpoint may take its place first: then the next one is tried.
    let attempt = || {
        let checkpoint = store.names().checkpoint(partition);
        let last = block_on(store.last_of_leader(partition, &checkpoint)).unwrap().unwrap();
        push(last.sequence + 1, Bytes::from_static(b"damaged"));
        push(last.sequence + 1, message.clone());
        match owner.reports.recv_timeout(Duration::from_millis(200)) {
            Ok(Report::Event(JournalEvent::Arrived { tasks, .. })) => Some(tasks),
            Ok(Report::Event(_)) | Err(RecvTimeoutError::Timeout) => None,
            other => panic!("{other:?}"),
        }
    };
    let arrived = (0..600).find_map(|_| attempt()).expect("the task arrives");
    assert_eq!((arrived.len(), &*arrived[0].value), (1, &b"pushed"[..]));
    block_on(owner.journal.close()).unwrap();
}
