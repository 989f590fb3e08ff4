//! Strong writes that are sent while their commit is under way.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::metrics::Snapshot;

/// Replicas that answer when the test says so.
struct World {
    running: RunningLoop,
    listeners: Vec<TcpListener>,
}

impl World {
    /// All replicas have had a write. From now on, nothing becomes durable by itself.
    async fn new(replicas: usize) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..replicas {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let world = Self { running: RunningLoop::start(10), listeners };
        let first = world.write("first", EVENTUAL, None);
        first.await.unwrap().unwrap();
        for at in 0..replicas {
            world.acknowledge(at).await;
        }
        world.running.journal.hold_commits();
        world
    }

    fn write(
        &self,
        key: &str,
        consistency: Consistency,
        idempotency: Option<&str>,
    ) -> oneshot::Receiver<WriteAnswer> {
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let replicas = self.listeners.iter().map(|listener| Node::parse(&url(listener)).unwrap());
        let write = (key, consistency, idempotency.map(|key| (key, 1)));
        let (write, answer) = new_write(write, replicas.collect());
        self.running.requests.send(Request::Replicate(vec![write])).unwrap();
        answer
    }

    async fn acknowledge(&self, at: usize) {
        let (mut stream, _) = self.listeners[at].accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"value") {
            stream.read_buf(&mut request).await.unwrap();
        }
        let answer = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
        stream.write_all(answer).await.unwrap();
    }

    async fn until(&self, holds: impl Fn(&Snapshot) -> bool) {
        loop {
            let (reply, snapshot) = oneshot::channel();
            self.running.requests.send(Request::Snapshot { reply }).unwrap();
            if holds(&snapshot.await.unwrap()) {
                return;
            }
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test]
async fn an_early_write_that_all_replicas_have_is_answered_and_never_stored() {
    let world = World::new(2).await;
    let answer = world.write("k", STRONG, None);
    world.acknowledge(0).await;
    world.acknowledge(1).await;
    let accepted = answer.await.unwrap().unwrap();
    assert_eq!(accepted.acked.len(), 2);
    world.running.journal.commit();
    assert_eq!(world.running.journal.read(accepted.id).await.unwrap(), None);
    world.until(|snapshot| snapshot.totals.delivered == 4).await;
    // A later write of the key is sent once, and in the order.
    let later = world.write("k", STRONG, None);
    world.acknowledge(0).await;
    world.acknowledge(1).await;
    assert!(later.await.unwrap().unwrap().id > accepted.id);
    world
        .until(|snapshot| snapshot.totals.pending == 0 && snapshot.accept_seconds.count() == 3)
        .await;
    world.running.stop().await;
}

#[tokio::test]
async fn an_early_write_that_a_replica_lacks_is_answered_when_it_is_durable() {
    let world = World::new(3).await;
    let mut answer = world.write("k", STRONG, None);
    world.acknowledge(0).await;
    world.acknowledge(1).await;
    world.until(|snapshot| snapshot.totals.delivered == 5).await;
    assert!(answer.try_recv().is_err(), "a crash would lose it for the third replica");
    world.running.journal.commit();
    let accepted = answer.await.unwrap().unwrap();
    assert_eq!(accepted.acked.len(), 2);
    let task = world.running.journal.read(accepted.id).await.unwrap();
    assert_eq!(task.map(|task| task.key), Some("k".to_owned()));
    world.acknowledge(2).await;
    world.until(|snapshot| snapshot.totals.pending == 0).await;
    assert_eq!(world.running.journal.read(accepted.id).await.unwrap(), None);
    world.running.stop().await;
}

#[tokio::test]
async fn a_write_with_an_idempotency_key_is_durable_before_it_is_sent() {
    let world = World::new(1).await;
    let answer = world.write("k", STRONG, Some("key"));
    world.until(|snapshot| (snapshot.levels.strong, snapshot.levels.in_flight) == (1, 0)).await;
    world.running.journal.commit();
    world.acknowledge(0).await;
    let accepted = answer.await.unwrap().unwrap();
    let repeated = world.write("k", STRONG, Some("key")).await.unwrap().unwrap();
    assert_eq!((repeated.id, repeated.replayed), (accepted.id, true));
    world.running.stop().await;
}

#[tokio::test]
async fn the_client_of_an_early_write_is_told_that_the_store_failed() {
    let world = World::new(2).await;
    let answer = world.write("k", STRONG, None);
    world.acknowledge(0).await;
    world.until(|snapshot| snapshot.totals.delivered == 3).await;
    world.running.journal.fail();
    // The handle reports a dropped reply as a failed store.
    assert!(answer.await.is_err());
    world.acknowledge(1).await;
    world.running.stop().await;
}
