//! A write of a former owner that arrives when the next owner has delivered newer ones: what no lease can
//! prevent, and a replica that remembers sequences refuses.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::daemon::DemoReplica;
use crate::support::oracle::ARGS;
use crate::support::servers::{Servers, urls};
use crate::support::{Daemon, client, wait_until};
use crate::world::TURN;

/// The network in front of a replica.
struct Network {
    url: String,
    passing: watch::Sender<Passing>,
    /// What arrived on the connections that were held, in both directions.
    requests: Arc<Mutex<Vec<u8>>>,
    answers: Arc<Mutex<Vec<u8>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Passing {
    All,
    /// Everything stays on its way.
    None,
    /// Only on connections that are made from now on.
    LaterConnections,
    Again,
}

impl Network {
    async fn before(replica: &DemoReplica) -> Self {
        let address = replica.1.strip_prefix("http://").unwrap().to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let passing = watch::Sender::new(Passing::All);
        let (requests, answers) = <(Arc<Mutex<Vec<u8>>>, Arc<_>)>::default();
        let (all, held) = (passing.subscribe(), (Arc::clone(&requests), Arc::clone(&answers)));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let is_first = matches!(*all.borrow(), Passing::All | Passing::None);
                let replica = TcpStream::connect(&address).await.unwrap();
                let (from_client, to_client) = client.into_split();
                let (from_replica, to_replica) = replica.into_split();
                let held = is_first.then(|| held.clone());
                let (requests, answers) = held.unzip();
                tokio::spawn(pass(from_client, to_replica, all.clone(), requests));
                tokio::spawn(pass(from_replica, to_client, all.clone(), answers));
            }
        });
        Self { url, passing, requests, answers }
    }

    async fn until_holding(&self, text: &str) {
        until_in(&self.requests, text).await;
    }
}

async fn until_in(bytes: &Mutex<Vec<u8>>, text: &str) {
    wait_until(text, || async {
        String::from_utf8_lossy(&bytes.lock().unwrap()).contains(text).then_some(())
    })
    .await;
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut passing: watch::Receiver<Passing>,
    held: Option<Arc<Mutex<Vec<u8>>>>,
) {
    let mut bytes = vec![0; 64 << 10];
    loop {
        let read = from.read(&mut bytes).await.unwrap_or(0);
        if let Some(held) = &held {
            if *passing.borrow() != Passing::All {
                held.lock().unwrap().extend_from_slice(&bytes[..read]);
            }
            let passes = |passing: &Passing| matches!(passing, Passing::All | Passing::Again);
            if passing.wait_for(passes).await.is_err() {
                return;
            }
        }
        if read == 0 || to.write_all(&bytes[..read]).await.is_err() {
            let _ = to.shutdown().await;
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fenced_replica_refuses_a_write_of_a_stopped_former_owner() {
    let _turn = TURN.acquire().await.unwrap();
    let servers = Servers::start().await;
    let store = urls(&servers.ports());
    let dir = tempfile::tempdir().unwrap();
    let start = async |name| {
        let args = [&["--node-id", name, "--store", &store], ARGS].concat();
        Daemon::start_on(&dir.path().join(name), &args).await
    };
    let replica = DemoReplica::start(&["--fenced"]);
    let network = Network::before(&replica).await;
    let write = |value: &str| {
        serde_json::json!({
            "key": "k",
            "value": value,
            "value_encoding": "raw",
            "operation": "SET",
            "replica_nodes": [network.url],
        })
    };
    let value = async || {
        let answer = client().get(format!("{}/store/k", replica.1)).send().await.unwrap();
        answer.text().await.unwrap()
    };
    let former = start("former").await;
    former.accept(&write("first")).await;
    former.until_drained().await;
    network.passing.send_replace(Passing::None);
    former.accept(&write("second")).await;
    network.until_holding("second").await;
    former.signal("-STOP");
    network.passing.send_replace(Passing::LaterConnections);

    // It delivers the second write, which has no answer, and then the third one.
    let next = start("next").await;
    next.accept(&write("third")).await;
    wait_until("the next owner delivers", || async { (value().await == "third").then_some(()) })
        .await;
    next.until_drained().await;

    network.passing.send_replace(Passing::Again);
    until_in(&network.answers, "already replicated").await;
    assert!(String::from_utf8_lossy(&network.answers.lock().unwrap()).contains(" 409 "));
    assert_eq!(value().await, "third");
    former.signal("-CONT");
    for instance in [&former, &next] {
        instance.until_drained().await;
    }
    assert_eq!(value().await, "third");
}
