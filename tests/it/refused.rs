//! Writes that a replica refuses (401, 403, 407, 421): kept, and redriven when it accepts writes.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use crate::support::{Behaviour, Daemon, Replica, client, path_of, set};

const FORBIDDEN: Behaviour = Behaviour::Answer(403, "", "");

/// With one delivery at a time, the requests arrive in the order of sending.
const IN_ORDER: [&str; 2] = ["--workers", "1"];

fn keys() -> Vec<String> {
    (0..20).map(|n| format!("k{n:02}")).collect()
}

/// Posts a write for each key and waits until the replica has refused them all.
async fn refuse(daemon: &Daemon, replica: &Replica) {
    for key in keys() {
        daemon.accept(&set(&key, "v", &[replica])).await;
    }
    daemon.until_metric("permanent_failures", 20).await;
    daemon.until_metric("dead_letters", 20).await;
}

/// The keys of the applied requests, in the order of arrival, without `but`.
fn applied(replica: &Replica, but: &str) -> Vec<String> {
    let applied = replica.seen().into_iter().filter(|seen| seen.applied).map(|seen| seen.key());
    applied.filter(|key| key != but).collect()
}

#[tokio::test]
async fn a_refused_delivery_is_a_dead_letter_at_once_and_is_not_retried() {
    for status in [401, 403, 407, 421] {
        let replica = Replica::with(move |_| Behaviour::Answer(status, "", "")).await;
        let daemon = Daemon::start(&["--hinted-handoff", "off", "--retry-base", "1ms"]).await;
        daemon.accept(&set("k", "v", &[&replica])).await;
        daemon.until_metric("permanent_failures", 1).await;
        daemon.until_logged("the replica refuses writes: check its credentials").await;
        let metrics = daemon.metrics().await;
        assert_eq!((&metrics["dead_letters"], &metrics["failed_replicas"]), (&json!(1), &json!(1)));
        assert_eq!(replica.seen().len(), 1, "{status}");
        let letters = daemon.show("/v1/dead-letters?cause=refused").await;
        let error = letters["dead_letters"][0]["last_error"].as_str().unwrap();
        assert!(error.starts_with(&format!("{status} ")), "{error}");
        assert_eq!(daemon.show(&path_of(&replica)).await["refused_letters"], 1);
    }
}

#[tokio::test]
async fn refused_writes_outlive_the_retention_and_follow_in_order_after_an_accepted_write() {
    let replica = Replica::with(|_| FORBIDDEN).await;
    let picky = Replica::with(|_| Behaviour::Answer(400, "", "")).await;
    let daemon = Daemon::start(&[IN_ORDER, ["--dead-letter-retention", "1s"]].concat()).await;
    refuse(&daemon, &replica).await;
    // It becomes a dead letter later and expires earlier.
    daemon.accept(&set("other", "v", &[&picky])).await;
    daemon.until_metric("discarded_replicas", 1).await;
    assert_eq!(daemon.metrics().await["dead_letters"], 20);
    let page = client().get(daemon.url("/metrics")).header("accept", "text/plain");
    let page = page.send().await.unwrap().text().await.unwrap();
    let gauge = format!("replicator_replica_refused_letters{{replica=\"{}\"}} ", replica.url());
    assert!(page.contains(&gauge), "{page}");

    replica.behave(|_| Behaviour::Apply);
    daemon.accept(&set("new", "v", &[&replica])).await;
    daemon.until_metric("dead_letters", 0).await;
    // The last one: a redriven letter is in no queue.
    replica.until_holds("k19", "v").await;
    assert_eq!(applied(&replica, "new"), keys());
    assert_eq!(replica.data().len(), 21);
    assert_eq!(daemon.metrics().await["discarded_replicas"], 1);
}

#[tokio::test]
async fn refused_writes_are_tried_again_without_other_traffic() {
    let replica = Replica::with(|_| FORBIDDEN).await;
    let daemon = Daemon::start(&IN_ORDER).await;
    refuse(&daemon, &replica).await;
    replica.until_seen(22).await;
    replica.behave(|_| Behaviour::Apply);
    daemon.until_metric("dead_letters", 0).await;
    // The last one: a redriven letter is in no queue.
    replica.until_holds("k19", "v").await;
    assert_eq!(applied(&replica, ""), keys());
}

#[tokio::test]
async fn refused_writes_follow_when_a_new_token_is_reloaded() {
    let replica = Replica::with(|seen| {
        let token = seen.headers.get("authorization").map(String::as_str);
        if token == Some("Bearer new") { Behaviour::Apply } else { Behaviour::Answer(401, "", "") }
    });
    let replica = replica.await;
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    let write = |token: &str| {
        std::fs::write(&tokens, format!("{} {token}\n", replica.url())).unwrap();
        std::fs::set_permissions(&tokens, PermissionsExt::from_mode(0o600)).unwrap();
    };
    write("old");
    let path = tokens.to_str().unwrap();
    let daemon = Daemon::start(&[IN_ORDER, ["--replica-token-file", path]].concat()).await;
    refuse(&daemon, &replica).await;
    write("new");
    daemon.signal("-HUP");
    daemon.until_logged("connections to replicas are renewed").await;
    daemon.until_metric("dead_letters", 0).await;
    // The last one: a redriven letter is in no queue.
    replica.until_holds("k19", "v").await;
    assert_eq!(applied(&replica, ""), keys());
}

#[tokio::test]
async fn refused_writes_are_kept_and_follow_after_a_restart() {
    let replica = Replica::with(|_| FORBIDDEN).await;
    let mut daemon = Daemon::start(&[IN_ORDER, ["--dead-letter-retention", "1s"]].concat()).await;
    refuse(&daemon, &replica).await;
    assert!(daemon.terminate().await.success());
    let before = replica.seen().len();
    daemon.restart().await;
    assert_eq!(daemon.metrics().await["dead_letters"], 20);
    // The first try after the restart.
    replica.until_seen(before + 1).await;
    replica.behave(|_| Behaviour::Apply);
    daemon.kill_and_restart().await;
    daemon.until_metric("dead_letters", 0).await;
    // The last one: a redriven letter is in no queue.
    replica.until_holds("k19", "v").await;
    assert_eq!(applied(&replica, ""), keys());
    assert_eq!(daemon.metrics().await["discarded_replicas"], 0);
}
