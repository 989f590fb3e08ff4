//! Requests between instances, and the marks of barriers.

use std::sync::Arc;

use super::*;

/// Calls a future from a thread that may block.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

#[test]
fn an_instance_asks_another_one_and_gets_a_large_answer_or_a_clear_no() {
    const LARGE: usize = 3 << 20;
    let world = World::new();
    let (a, b) = (world.open("a"), world.open("b"));
    let (one, other) = (a.journal.peers().unwrap(), b.journal.peers().unwrap());
    let patience = Duration::from_secs(60);
    runtime().block_on(async {
        let handler = |question: Bytes| -> BoxFuture<'static, Option<Vec<u8>>> {
            Box::pin(async move {
                match &*question {
                    b"large" => Some((0..=250).cycle().take(LARGE).collect()),
                    b"slow" => {
                        // Longer than an instance may be silent.
                        tokio::time::sleep(Duration::from_millis(1_500)).await;
                        Some(b"done".to_vec())
                    }
                    _ => None,
                }
            })
        };
        other.serve(Arc::new(handler)).await;
        let ask = async |question: &'static [u8]| {
            one.ask(other.this(), Bytes::from_static(question), patience).await
        };
        let large = loop {
            // The servers may not know yet that it listens.
            if let Ok(answer) = ask(b"large").await {
                break answer;
            }
        };
        assert_eq!(large.len(), LARGE);
        assert!(large.iter().zip((0..=250_u8).cycle()).all(|(byte, sent)| *byte == sent));
        assert_eq!(ask(b"slow").await.as_deref(), Ok(&b"done"[..]));
        assert_eq!(ask(b"another version").await, Err(PeerSilence::Unknown));
        let nobody = one.ask(7, Bytes::from_static(b"large"), patience).await;
        assert_eq!(nobody, Err(PeerSilence::Silent));
        let huge = Bytes::from(vec![0; 2 << 20]);
        assert_eq!(one.ask(other.this(), huge, patience).await, Err(PeerSilence::TooLarge));
    });
    a.close();
    b.close();
}

#[test]
fn a_request_that_nobody_waits_for_any_more_is_not_carried_out() {
    let world = World::new();
    let (a, b) = (world.open("a"), world.open("b"));
    let (one, other) = (a.journal.peers().unwrap(), b.journal.peers().unwrap());
    let (patience, (carried, done)) = (Duration::from_secs(60), channel());
    runtime().block_on(async {
        let handler = move |question: Bytes| -> BoxFuture<'static, Option<Vec<u8>>> {
            carried.send(question).unwrap();
            Box::pin(async { Some(Vec::new()) })
        };
        other.serve(Arc::new(handler)).await;
        let ask = async |question: &'static [u8]| {
            one.ask(other.this(), Bytes::from_static(question), patience).await
        };
        while ask(b"first").await.is_err() {}
        // As it lies in a socket: its sender does not listen any more.
        let names = one.shared.store.names();
        let client = one.shared.store.client();
        let (old, inbox) =
            (Bytes::from_static(b"old"), names.answer(one.this(), "0123456789abcdef"));
        client.publish_with_reply(names.questions(other.this()), inbox, old).await.unwrap();
        client.flush().await.unwrap();
        while ask(b"last").await.is_err() {}
    });
    let carried: Vec<_> = done.try_iter().collect();
    assert!(!carried.iter().any(|question| **question == *b"old"), "{carried:?}");
    a.close();
    b.close();
}

#[test]
fn a_mark_is_behind_what_was_accepted_before_and_its_owner_says_when_it_has_read_it() {
    let world = World::new();
    let (owner, _) = world.owner("a");
    let other = world.open("b");
    (0..30).for_each(|number| other.append(number, &format!("key {number}")));
    let (before, _) = other.outcomes(30);
    let marks = runtime().block_on(other.journal.peers().unwrap().mark()).unwrap();
    (0..30).for_each(|number| other.append(number, &format!("key {number}")));
    let (after, _) = other.outcomes(30);
    let mark = |id: TaskId| marks[usize::from(other.journal.partition_of(id).0)];
    assert!(before.values().map(id).all(|id| id < mark(id)));
    assert!(after.values().map(id).all(|id| id > mark(id)));

    let (mut arrived, mut left) = (Vec::new(), marks.clone());
    (0..PARTITIONS).for_each(|one| owner.journal.report_caught_up(Partition(one)));
    while !left.is_empty() {
        match owner.next() {
            Report::Event(JournalEvent::Arrived { tasks, .. }) => {
                arrived.extend(tasks.iter().map(|task| task.id));
            }
            Report::Event(JournalEvent::CaughtUp { through }) => {
                let partition = owner.journal.partition_of(through);
                let is_of = |id: &TaskId| owner.journal.partition_of(*id) == partition;
                let missing = |id: &TaskId| is_of(id) && *id <= through && !arrived.contains(id);
                assert_eq!(before.values().map(id).find(missing), None, "not before {through}");
                left.retain(|mark| !is_of(mark) || through < *mark);
                owner.journal.report_caught_up(partition);
            }
            _ => {}
        }
    }
    owner.close();
    other.close();
}
