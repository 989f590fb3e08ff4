//! Files of a server that are damaged while it is down. docs/cluster.md says what was seen.

use serde_json::json;

use crate::support::servers::Servers;
use crate::support::{Behaviour, Daemon, Replica, wait_until};
use crate::world::TURN;

/// Long values, so that the log has several files. The last one is also in the log of the Raft group.
const WRITES: usize = 70;
const VALUE_BYTES: usize = 300_000;

fn value(n: usize) -> String {
    format!("{n} ").repeat(VALUE_BYTES / 3)
}

/// JetStream does not notice it: the server keeps a log with a hole, and may lead with it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_server_with_a_cut_file_lacks_is_read_from_another() {
    let _turn = TURN.acquire().await.unwrap();
    let mut servers = Servers::start().await;
    let replica = Replica::with(|_| Behaviour::Answer(503, "", "not now")).await;
    let dir = tempfile::tempdir().unwrap();
    let url = servers.url();
    let args = [
        "--node-id",
        "a",
        "--store",
        &url,
        "--partitions",
        "1",
        "--retry-base",
        "200ms",
        "--queue-max-bytes",
        "512MiB",
    ];
    let mut instance = Daemon::start_on(dir.path(), &args).await;
    for n in 0..WRITES {
        let body = json!({ "key": format!("key {n}"), "value": value(n), "value_encoding": "raw",
            "operation": "SET", "replica_nodes": [replica.url()] });
        instance.accept(&body).await;
    }
    assert!(instance.terminate().await.success());
    let (leader, other) = servers.busiest_and_idlest().await;
    servers.kill(other);
    servers.cut_first_file(other, "replicator-p0");
    servers.spawn(other);
    servers.until_ready().await;
    // The damaged one may be elected.
    servers.kill(leader);
    servers.until_ready().await;
    servers.spawn(leader);
    servers.until_ready().await;
    replica.behave(|_| Behaviour::Apply);
    instance.restart().await;
    wait_until("everything is delivered", || async {
        let data = replica.data();
        (0..WRITES).all(|n| data.contains_key(&format!("key {n}"))).then_some(())
    })
    .await;
    for n in 0..WRITES {
        assert_eq!(replica.get(&format!("key {n}")), Some(value(n).into_bytes()));
    }
    assert!(instance.terminate().await.success());
}
