//! The outbound contract: requests to replicas, and the effect of their answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;

use crate::support::daemon::DemoReplica;
use crate::support::{Behaviour, Daemon, Replica, client, delete, set, strong, wait_until};

/// Short waits between retries.
const QUICK: &[&str] = &["--retry-base", "50ms"];

/// In addition, a short timeout of an attempt. It is long enough for a replica that answers at
/// once, on a busy machine too.
const HASTY: &[&str] = &["--retry-base", "50ms", "--request-timeout", "5s"];

#[tokio::test]
async fn a_replica_receives_the_raw_bytes_and_the_replication_headers() {
    let (daemon, replica) = (Daemon::start(&["--node-id", "r-7"]).await, Replica::start().await);
    let first = daemon.accept(&set("a key", "v", &[&replica])).await;
    let second = daemon.accept(&delete("a key", &[&replica])).await;
    assert!(second > first);
    replica.until_seen(2).await;
    let seen = replica.seen();
    assert_eq!((seen[0].method.as_str(), seen[0].target.as_str()), ("PUT", "/store/a%20key"));
    assert_eq!(seen[0].body, b"v");
    assert_eq!(seen[0].headers["content-type"], "application/octet-stream");
    assert_eq!(seen[0].headers["x-replication"], "true");
    assert_eq!(seen[0].headers["x-replication-id"], format!("r-7-{first}"));
    assert_eq!(seen[0].sequence(), first);
    assert_eq!((seen[1].method.as_str(), seen[1].target.as_str()), ("DELETE", "/store/a%20key"));
    assert_eq!(seen[1].sequence(), second);
}

#[tokio::test]
async fn every_key_arrives_unchanged() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    let keys = [
        "a/b",
        "/",
        "//",
        "%",
        "%2F",
        "%2e%2e",
        "...",
        "a?b=c",
        "a#b",
        " ",
        "a b",
        "a+b",
        "grüße",
        "日本",
        "\u{0}",
        "\n",
        "\"",
        "a;b",
        "a&b",
        "\\",
        "~-_.",
        ".a",
        "../x",
        "http://x/",
    ];
    for key in keys {
        daemon.accept(&set(key, key, &[&replica])).await;
    }
    for key in keys {
        replica.until_holds(key, key).await;
    }
    assert_eq!(replica.data().len(), keys.len());
}

#[tokio::test]
async fn a_base_path_is_kept() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    let mut body = set("k", "v", &[&replica]);
    body["replica_nodes"] = serde_json::json!([format!("{}/p/q/", replica.url())]);
    daemon.accept(&body).await;
    replica.until_seen(1).await;
    assert_eq!(replica.seen()[0].target, "/p/q/store/k");
}

#[tokio::test]
async fn the_remaining_ttl_is_sent_and_an_expired_write_is_a_delete() {
    let args = [QUICK, &["--max-retries", "1000"]].concat();
    let (daemon, replica) = (Daemon::start(&args).await, Replica::start().await);
    let mut long = set("long", "v", &[&replica]);
    long["ttl"] = 3_600_000_000_000_u64.into();
    daemon.accept(&long).await;
    replica.until_seen(1).await;
    let target = replica.seen()[0].target.clone();
    assert!(target.starts_with("/store/long?ttl=59m") && target.ends_with('s'), "{target}");

    daemon.accept(&set("short", "old", &[&replica])).await;
    replica.until_holds("short", "old").await;
    replica.behave(|_| Behaviour::Answer(503, "", ""));
    let mut short = set("short", "v", &[&replica]);
    short["ttl"] = 20_000_000_u64.into();
    daemon.accept(&short).await;
    replica.until_seen(3).await;
    replica.behave(|_| Behaviour::Apply);
    replica.until_gone("short").await;
}

#[tokio::test]
async fn each_failure_is_retried_and_counted() {
    let cases = [
        ("500", Behaviour::Answer(500, "", "")),
        ("503", Behaviour::Answer(503, "", "busy")),
        ("408", Behaviour::Answer(408, "", "")),
        ("425", Behaviour::Answer(425, "", "")),
        ("429", Behaviour::Answer(429, "", "")),
        ("hang", Behaviour::Hang),
        ("reset", Behaviour::Reset),
        ("garbage", Behaviour::Garbage),
        ("trickle", Behaviour::Trickle),
        ("endless", Behaviour::Endless),
    ];
    // In parallel, because some take until the timeout.
    let mut all = JoinSet::new();
    for (name, behaviour) in cases {
        all.spawn(is_retried_and_counted(name, behaviour));
    }
    all.join_all().await;
}

async fn is_retried_and_counted(name: &str, behaviour: Behaviour) {
    let calls = Arc::new(AtomicUsize::new(0));
    let replica = Replica::with(move |_| match calls.fetch_add(1, Ordering::SeqCst) {
        0 | 1 => behaviour.clone(),
        _ => Behaviour::Apply,
    });
    let (daemon, replica) = (Daemon::start(HASTY).await, replica.await);
    daemon.accept(&set("k", "v", &[&replica])).await;
    replica.until_holds("k", "v").await;
    daemon.until_metric("successful_replicas", 1).await;
    let metrics = daemon.metrics().await;
    assert_eq!(metrics["failed_replicas"], 2, "{name}: {metrics}");
    assert_eq!(metrics["permanent_failures"], 0, "{name}");
    let ids: Vec<_> =
        replica.seen().iter().map(|s| s.headers["x-replication-id"].clone()).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{name}: {ids:?}");
}

#[tokio::test]
async fn a_rejected_delivery_is_not_retried() {
    let cases = [(400, ""), (402, ""), (404, ""), (409, ""), (413, ""), (422, "")];
    let redirects = [(301, "location: /elsewhere"), (307, "location: /elsewhere"), (304, "")];
    for (status, header) in cases.into_iter().chain(redirects) {
        let replica = Replica::with(move |_| Behaviour::Answer(status, header, "")).await;
        let daemon = Daemon::start(QUICK).await;
        daemon.accept(&set("k", "v", &[&replica])).await;
        daemon.until_metric("permanent_failures", 1).await;
        let metrics = daemon.metrics().await;
        assert_eq!(metrics["dead_letters"], 1, "{status}: {metrics}");
        assert_eq!(metrics["failed_replicas"], 1, "{status}: {metrics}");
        assert_eq!(replica.seen().len(), 1, "{status}");
        daemon.until_logged("dead letter").await;
    }
}

#[tokio::test]
async fn already_replicated_and_already_gone_count_as_delivered() {
    let daemon = Daemon::start(QUICK).await;
    let already =
        Replica::with(|_| Behaviour::Answer(409, "", "{\"error\":\"already replicated\"}")).await;
    daemon.accept(&set("k", "v", &[&already])).await;
    let gone = Replica::with(|_| Behaviour::Answer(410, "", "")).await;
    daemon.accept(&delete("k", &[&gone])).await;
    daemon.until_metric("successful_replicas", 2).await;
    assert_eq!(daemon.metrics().await["failed_replicas"], 0);
}

#[tokio::test]
async fn after_the_last_retry_a_delivery_is_a_dead_letter_also_after_a_restart() {
    let replica = Replica::with(|_| Behaviour::Answer(500, "", "")).await;
    let mut daemon = Daemon::start(&["--retry-base", "20ms"]).await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    daemon.until_metric("permanent_failures", 1).await;
    assert_eq!(replica.seen().len(), 4);
    let metrics = daemon.metrics().await;
    assert_eq!(metrics["failed_replicas"], 4);
    assert_eq!(metrics["retries_in_progress"], 0);
    assert!(daemon.terminate().await.success());
    daemon.restart().await;
    assert_eq!(daemon.metrics().await["dead_letters"], 1);
    assert_eq!(replica.seen().len(), 4);
}

#[tokio::test]
async fn retries_wait_longer_each_time() {
    let replica = Replica::with(|_| Behaviour::Answer(500, "", "")).await;
    let daemon = Daemon::start(&["--retry-base", "100ms"]).await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    replica.until_seen(4).await;
    let seen = replica.seen();
    let waits: Vec<_> = seen.windows(2).map(|pair| pair[1].at - pair[0].at).collect();
    // A wait is never shorter than planned. The machine decides how much longer it is.
    for (wait, planned) in waits.iter().zip([100, 200, 300]) {
        assert!(*wait >= Duration::from_millis(planned - 5), "{waits:?}");
    }
}

#[tokio::test]
async fn only_the_replicas_that_failed_get_a_retry() {
    let (daemon, good) = (Daemon::start(QUICK).await, Replica::start().await);
    let bad = Replica::with(|_| Behaviour::Answer(500, "", "")).await;
    daemon.accept(&set("k", "v", &[&good, &bad])).await;
    daemon.until_metric("permanent_failures", 1).await;
    assert_eq!((good.seen().len(), bad.seen().len()), (1, 4));
}

#[tokio::test]
async fn a_replica_has_at_most_its_workers_in_flight_and_keeps_its_connections() {
    let replica = Replica::with(|_| Behaviour::ApplyAfter(Duration::from_millis(5))).await;
    let daemon = Daemon::start(&["--workers", "3"]).await;
    for n in 0..60 {
        daemon.accept(&set(&format!("k{n}"), "v", &[&replica])).await;
    }
    daemon.until_metric("successful_replicas", 60).await;
    assert!(replica.most_in_progress() <= 3, "{}", replica.most_in_progress());
    assert!(replica.connections_accepted() <= 10, "{}", replica.connections_accepted());
}

#[tokio::test]
async fn the_writes_of_a_key_arrive_in_the_order_of_acceptance_whatever_fails() {
    let calls = Arc::new(AtomicUsize::new(0));
    let replica = Replica::with(move |_| match calls.fetch_add(1, Ordering::SeqCst) % 5 {
        1 => Behaviour::Answer(503, "", ""),
        3 => Behaviour::ApplyAndReset,
        _ => Behaviour::Apply,
    });
    let args = ["--retry-base", "5ms", "--max-retries", "1000"];
    let (daemon, replica) = (Daemon::start(&args).await, replica.await);
    for n in 0..100 {
        daemon.accept(&set(&format!("k{}", n % 3), &n.to_string(), &[&replica])).await;
    }
    daemon.until_drained().await;
    for key in ["k0", "k1", "k2"] {
        let seen = replica.seen();
        let of_key = seen
            .iter()
            .filter(|seen| seen.key() == key)
            .map(crate::support::replica::Seen::sequence);
        assert!(of_key.is_sorted(), "{key}");
    }
    for (key, last) in [("k0", "99"), ("k1", "97"), ("k2", "98")] {
        replica.until_holds(key, last).await;
    }
    let metrics = daemon.metrics().await;
    let settled = ["successful_replicas", "superseded_replicas", "permanent_failures"];
    let sum: u64 = settled.iter().map(|name| metrics[name].as_u64().unwrap()).sum();
    assert_eq!(sum, 100, "{metrics}");
}

#[tokio::test]
async fn an_older_retry_never_lands_over_a_newer_write() {
    let daemon = Daemon::start(&["--retry-base", "1h"]).await;
    let replica = Replica::with(|_| Behaviour::Answer(503, "", "")).await;
    let old = daemon.accept(&set("k", "old", &[&replica])).await;
    daemon.until_metric("retries_in_progress", 1).await;
    replica.behave(|_| Behaviour::Apply);
    let new = daemon.accept(&set("k", "new", &[&replica])).await;
    replica.until_holds("k", "new").await;
    daemon.until_drained().await;
    let sequences: Vec<_> =
        replica.seen().iter().map(crate::support::replica::Seen::sequence).collect();
    assert!(sequences.is_sorted(), "{sequences:?}");
    assert_eq!((sequences[0], *sequences.last().unwrap()), (old, new));
    assert_eq!(daemon.metrics().await["superseded_replicas"], 1);
}

#[tokio::test]
async fn a_strong_write_without_its_majority_is_a_503_and_is_delivered_later() {
    let args = [QUICK, &["--max-retries", "1000"]].concat();
    let (daemon, good) = (Daemon::start(&args).await, Replica::start().await);
    let bad = Replica::with(|_| Behaviour::Answer(503, "", "")).await;
    let (status, answer) = daemon.post(&strong("k", "v", &[&good, &bad])).await;
    assert_eq!(status, 503);
    assert_eq!(answer["success"], false);
    let (acked, failed) = (answer["acked_nodes"].clone(), answer["failed_nodes"].clone());
    let named = [acked, failed].map(|nodes| nodes.as_array().unwrap().len());
    assert_eq!(named.iter().sum::<usize>(), 2, "{answer}");
    assert!(answer["failed_nodes"].to_string().contains(&bad.url()), "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("in the background"), "{answer}");
    bad.behave(|_| Behaviour::Apply);
    bad.until_holds("k", "v").await;
    good.until_holds("k", "v").await;
}

#[tokio::test]
async fn a_strong_write_is_answered_at_its_timeout() {
    let daemon = Daemon::start(&["--strong-timeout", "5s", "--request-timeout", "5m"]).await;
    let (good, hanging) = (Replica::start().await, Replica::with(|_| Behaviour::Hang).await);
    let (status, answer) = daemon.post(&strong("k", "v", &[&good, &hanging])).await;
    assert_eq!(status, 503);
    assert_eq!(answer["acked_nodes"], serde_json::json!([good.url()]));
    assert_eq!(answer["failed_nodes"], serde_json::json!([hanging.url()]));
}

#[tokio::test]
async fn a_strong_write_does_not_wait_for_the_slowest_replica() {
    let daemon = Daemon::start(HASTY).await;
    let (a, b) = (Replica::start().await, Replica::start().await);
    let hanging = Replica::with(|_| Behaviour::Hang).await;
    let (status, answer) = daemon.post(&strong("k", "v", &[&hanging, &a, &b])).await;
    assert_eq!(status, 200);
    assert_eq!(answer["acked_nodes"].as_array().unwrap().len(), 2);
    hanging.behave(|_| Behaviour::Apply);
    hanging.until_holds("k", "v").await;
}

#[tokio::test]
async fn a_dead_and_a_hanging_replica_do_not_delay_a_healthy_one() {
    let daemon = Daemon::start(&[
        "--queue-capacity",
        "20",
        "--retry-capacity",
        "5",
        "--request-timeout",
        "1s",
        "--queue-wait",
        "1m",
    ])
    .await;
    let (healthy, dead) = (Replica::start().await, Replica::start().await);
    dead.stop();
    let hanging = Replica::with(|_| Behaviour::Hang).await;
    for n in 0..10 {
        daemon.accept(&set(&format!("h{n}"), "v", &[&healthy, &hanging])).await;
    }
    for n in 0..200 {
        daemon.accept(&set(&format!("k{n}"), "v", &[&healthy, &dead])).await;
    }
    wait_until("the healthy replica has all writes", || async {
        (healthy.data().len() == 210).then_some(())
    })
    .await;
    dead.come_back().await;
}

#[tokio::test]
async fn a_delivery_parked_by_a_full_retry_queue_returns_by_itself() {
    let daemon = Daemon::start(&["--retry-capacity", "2", "--retry-base", "3s"]).await;
    let replica = Replica::start().await;
    replica.stop();
    for n in 0..12 {
        daemon.accept(&set(&format!("k{n}"), "v", &[&replica])).await;
    }
    daemon.until_metric("retries_in_progress", 2).await;
    daemon.until_metric("dead_letters", 10).await;
    assert_eq!(daemon.metrics().await["queue_size"], 0);
    replica.come_back().await;
    wait_until("the replica has all writes", || async {
        (replica.data().len() == 12).then_some(())
    })
    .await;
    daemon.until_metric("dead_letters", 0).await;
}

#[tokio::test]
async fn replicas_receive_writes_over_http_2() {
    let daemon = Daemon::start(&["--replica-http2", "prior-knowledge"]).await;
    let replicas = [DemoReplica::start(&["--http2"]), DemoReplica::start(&["--http2"])];
    let nodes = replicas.each_ref().map(|replica| replica.1.clone());
    for n in 0..20 {
        let mut body = strong(&format!("k{n}"), "v", &[]);
        body["replica_nodes"] = serde_json::json!(nodes);
        let (status, answer) = daemon.post(&body).await;
        assert_eq!((status, answer["success"].as_bool()), (200, Some(true)), "{answer}");
    }
    daemon.until_drained().await;
    assert_eq!(daemon.metrics().await["failed_replicas"], 0);
}

/// Sends a write as the owner of this epoch; `None` is a DELETE. Returns the status and the body.
async fn replicate(
    replica: &DemoReplica,
    value: Option<&str>,
    (sequence, epoch): (u64, Option<u64>),
) -> (u16, String) {
    let url = format!("{}/store/k", replica.1);
    let request = match value {
        Some(value) => client().put(url).body(value.to_owned()),
        None => client().delete(url),
    };
    let mut request = request.header("x-replication-sequence", sequence);
    if let Some(epoch) = epoch {
        request = request.header("x-replication-epoch", epoch);
    }
    let answer = request.send().await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn value_of(replica: &DemoReplica) -> Option<String> {
    let answer = client().get(format!("{}/store/k", replica.1)).send().await.unwrap();
    match answer.status().as_u16() {
        200 => Some(answer.text().await.unwrap()),
        404 => None,
        status => panic!("{status}"),
    }
}

#[tokio::test]
async fn a_fenced_replica_refuses_an_older_sequence_and_a_former_owner_of_the_same() {
    let replica = DemoReplica::start(&["--fenced"]);
    let refused = |(status, body): (u16, String)| {
        assert_eq!(status, 409, "{body}");
        assert!(body.contains("already replicated"), "{body}");
    };
    assert_eq!(replicate(&replica, Some("new"), (20, Some(2))).await.0, 204);
    refused(replicate(&replica, Some("old"), (10, Some(2))).await);
    refused(replicate(&replica, None, (19, Some(3))).await);
    refused(replicate(&replica, Some("late"), (20, Some(1))).await);
    assert_eq!(value_of(&replica).await.as_deref(), Some("new"));
    // A repeat, and the first write after the cluster was replaced.
    assert_eq!(replicate(&replica, Some("new"), (20, Some(2))).await.0, 204);
    assert_eq!(replicate(&replica, Some("newer"), (21, Some(1))).await.0, 204);

    assert_eq!(replicate(&replica, None, (30, None)).await.0, 204);
    refused(replicate(&replica, Some("old"), (25, None)).await);
    refused(replicate(&replica, None, (25, None)).await);
    assert_eq!(value_of(&replica).await, None);
    assert_eq!(replicate(&replica, None, (31, None)).await.0, 404);
    refused(replicate(&replica, Some("old"), (30, None)).await);
    assert_eq!(replicate(&replica, Some("again"), (32, None)).await.0, 204);
    assert_eq!(value_of(&replica).await.as_deref(), Some("again"));
}

#[tokio::test]
async fn a_write_that_a_fenced_replica_refuses_is_delivered() {
    let replica = DemoReplica::start(&["--fenced"]);
    // The sequences of the second daemon are greater: they begin at its start.
    let (older, newer) = (Daemon::start(&[]).await, Daemon::start(&[]).await);
    for (daemon, value) in [(&newer, "new"), (&older, "old")] {
        let mut body = strong("k", value, &[]);
        body["replica_nodes"] = serde_json::json!([replica.1]);
        daemon.accept(&body).await;
        daemon.until_drained().await;
        let metrics = daemon.metrics().await;
        assert_eq!((&metrics["failed_replicas"], &metrics["dead_letters"]), (&0.into(), &0.into()));
        assert_eq!(value_of(&replica).await.as_deref(), Some("new"));
    }
}
