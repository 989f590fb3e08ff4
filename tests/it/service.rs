//! The contract of the service, word for word: every JSON here is from the description of the
//! service. Only the ports of the replicas differ, because those may be in use.

use serde_json::{Value, json};

use crate::support::{Behaviour, Daemon, Replica, client, set, strong, wait_until};

mod gateway;

const REQUEST: &str = r#"{
  "key": "user:123",
  "value": "base64-encoded-data-or-raw",
  "operation": "SET",
  "ttl": 3600000000000,
  "consistency": "eventual",
  "primary_node": "http://localhost:8082",
  "replica_nodes": [
    "http://localhost:8083",
    "http://localhost:8084"
  ],
  "user_id": 1
}"#;

const EVENTUAL_RESPONSE: &str = r#"{
  "success": true,
  "node_id": "replicator"
}"#;

const STRONG_RESPONSE: &str = r#"{
  "success": true,
  "node_id": "replicator",
  "acked_nodes": [
    "http://localhost:8083",
    "http://localhost:8084"
  ]
}"#;

const METRICS: &str = r#"{
  "total_replications": 5420,
  "successful_replicas": 10782,
  "failed_replicas": 58,
  "queue_size": 23,
  "average_ack_time_ms": 45.7,
  "max_replication_lag_ms": 1234.5,
  "retries_in_progress": 2
}"#;

const HEALTH: &str = r#"{
  "status": "healthy",
  "service": "replicator",
  "queue_size": 23
}"#;

#[test]
fn the_documentation_shows_these_examples_word_for_word() {
    let api = include_str!("../../docs/api.md");
    for example in [REQUEST, EVENTUAL_RESPONSE, STRONG_RESPONSE, HEALTH] {
        assert!(api.contains(example), "{example}");
    }
    assert!(include_str!("../../docs/metrics.md").contains(METRICS));
}

/// Replaces the ports in the text with those of these replicas.
fn at(text: &str, replicas: [&Replica; 2]) -> String {
    let port = |replica: &Replica| replica.url().rsplit(':').next().unwrap().to_owned();
    text.replace("8083", &port(replicas[0])).replace("8084", &port(replicas[1]))
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Posts a text unchanged.
async fn post(daemon: &Daemon, path: &str, body: &str) -> (u16, Value) {
    let request = client().post(daemon.url(path)).header("content-type", "application/json");
    let answer = request.body(body.to_owned()).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// Removes `task_id`, which is not in the description.
fn without_task(mut answer: Value) -> Value {
    let task = answer.as_object_mut().unwrap().remove("task_id").unwrap();
    assert!(task.as_str().unwrap().parse::<u64>().is_ok(), "{task}");
    answer
}

#[tokio::test]
async fn the_example_of_an_eventual_write_is_accepted_unchanged_and_arrives() {
    let daemon = Daemon::start(&[]).await;
    let (a, b) = (Replica::start().await, Replica::start().await);
    let (status, answer) = post(&daemon, "/replicate", &at(REQUEST, [&a, &b])).await;
    assert_eq!(status, 202, "{answer}");
    assert_eq!(without_task(answer), parsed(EVENTUAL_RESPONSE));
    for replica in [&a, &b] {
        replica.until_holds("user:123", "base64-encoded-data-or-raw").await;
        let seen = replica.seen().remove(0);
        assert_eq!(seen.method, "PUT");
        let ttl = seen.target.split_once("?ttl=").unwrap().1;
        assert!(ttl == "1h0m0s" || ttl.starts_with("59m"), "{}", seen.target);
    }
    let (_, users) = daemon.get("/metrics/users").await;
    assert_eq!(
        (&users["users"][0]["user_id"], &users["users"][0]["requests"]),
        (&json!("1"), &json!(1))
    );
}

#[tokio::test]
async fn the_example_of_a_strong_write_is_answered_when_both_replicas_have_it() {
    let daemon = Daemon::start(&[]).await;
    let (a, b) = (Replica::start().await, Replica::start().await);
    let request = at(REQUEST, [&a, &b]).replace("eventual", "strong");
    let (status, answer) = post(&daemon, "/replicate", &request).await;
    assert_eq!(status, 200, "{answer}");
    let mut answer = without_task(answer);
    // In the order of the acknowledgements.
    let acked = answer["acked_nodes"].as_array_mut().unwrap();
    acked.sort_by_key(|node| node != &parsed(&request)["replica_nodes"][0]);
    assert_eq!(answer, parsed(&at(STRONG_RESPONSE, [&a, &b])));
    assert!(a.get("user:123").is_some() && b.get("user:123").is_some());
}

#[tokio::test]
async fn an_invalid_body_or_consistency_level_is_a_400() {
    let daemon = Daemon::start(&[]).await;
    for body in ["", "{", "not json", &REQUEST.replace("eventual", "sometimes")] {
        let (status, answer) = post(&daemon, "/replicate", body).await;
        assert_eq!(status, 400, "{body}: {answer}");
        assert!(answer["error"].is_string(), "{body}: {answer}");
    }
}

#[tokio::test]
async fn a_full_queue_and_a_strong_write_that_is_not_acknowledged_are_a_503() {
    let flags = ["--queue-capacity", "1", "--queue-wait", "0s", "--strong-timeout", "100ms"];
    let daemon = Daemon::start(&flags).await;
    let hangs = Replica::with(|_| Behaviour::Hang).await;
    daemon.accept(&set("a", "v", &[&hangs])).await;
    let (status, answer) = daemon.post(&set("b", "v", &[&hangs])).await;
    let full = "the eventual queue is full (--queue-capacity 1); try again later";
    assert_eq!((status, answer), (503, json!({ "error": full })));
    let (status, answer) = daemon.post(&strong("c", "v", &[&hangs])).await;
    assert_eq!((status, &answer["success"]), (503, &json!(false)), "{answer}");
}

/// Majority = (N/2) + 1, where N = number of replicas.
#[tokio::test]
async fn a_strong_write_needs_more_than_half_of_its_replicas() {
    let daemon = Daemon::start(&["--breaker-failures", "0"]).await;
    for n in 1..=5 {
        let majority = n / 2 + 1;
        for (good, expected) in [(majority, 200), (majority - 1, 503)] {
            let mut replicas = Vec::new();
            for at in 0..n {
                let good = at < good;
                let script = move |_: &_| if good { Behaviour::Apply } else { Behaviour::Reset };
                replicas.push(Replica::with(script).await);
            }
            let replicas: Vec<_> = replicas.iter().collect();
            let (status, answer) = daemon.post(&strong("k", "v", &replicas)).await;
            assert_eq!(status, expected, "{good} of {n}: {answer}");
        }
    }
}

#[tokio::test]
async fn the_metrics_have_every_name_and_kind_of_the_example() {
    let daemon = Daemon::start(&[]).await;
    let (a, b) = (Replica::start().await, Replica::start().await);
    post(&daemon, "/replicate", &at(REQUEST, [&a, &b])).await;
    daemon.until_metric("successful_replicas", 2).await;
    daemon.until_drained().await;
    let (status, metrics) = daemon.get("/metrics").await;
    assert_eq!(status, 200);
    for (name, example) in parsed(METRICS).as_object().unwrap() {
        assert!(metrics[name].is_number(), "{name} in {metrics}");
        assert_eq!(metrics[name].is_f64(), example.is_f64(), "{name} in {metrics}");
    }
    let counts = ["total_replications", "successful_replicas", "failed_replicas", "queue_size"];
    let counts = counts.map(|name| metrics[name].as_u64().unwrap());
    assert_eq!(counts, [1, 2, 0, 0], "{metrics}");
    assert!(metrics["average_ack_time_ms"].as_f64() > Some(0.0), "{metrics}");
    assert!(metrics["max_replication_lag_ms"].as_f64() > Some(0.0), "{metrics}");
}

/// Healthy below 900 of the 1000 tasks of the queue, degraded from 900 on; 5 workers.
#[tokio::test]
async fn health_is_that_of_the_example_and_degraded_from_900_tasks_on() {
    let daemon = Daemon::start(&["--request-timeout", "30m"]).await;
    let hangs = Replica::with(|_| Behaviour::Hang).await;
    let add = async |from: usize, to: usize| {
        let writes: Vec<_> = (from..to).map(|n| set(&format!("k{n}"), "v", &[&hangs])).collect();
        let (status, answer) = daemon.post_to("/v1/replicate/batch", &json!(writes)).await;
        assert_eq!((status, &answer["refused"]), (200, &json!(0)), "{answer}");
    };
    add(0, 23).await;
    assert_eq!(daemon.get("/health").await, (200, parsed(HEALTH)));
    hangs.until_seen(5).await;
    add(23, 899).await;
    let health = |status: &str, size: u64| json!({ "status": status, "service": "replicator", "queue_size": size });
    assert_eq!(daemon.get("/health").await, (200, health("healthy", 899)));
    add(899, 900).await;
    assert_eq!(daemon.get("/health").await, (200, health("degraded", 900)));
    assert_eq!(hangs.most_in_progress(), 5);
    let metrics = daemon.metrics().await;
    assert_eq!(
        (&metrics["queue_capacity"], &metrics["retry_capacity"]),
        (&json!(1000), &json!(500))
    );
}

/// Answers of a replica, and how often the delivery is sent for each.
#[tokio::test]
async fn network_errors_and_5xx_are_retried_three_times_and_4xx_are_not() {
    let daemon = Daemon::start(&["--retry-base", "20ms"]).await;
    let answer = |status, body| Behaviour::Answer(status, "", body);
    for (behaviour, sent, delivered) in [
        (Behaviour::Reset, 4, false),
        (answer(500, ""), 4, false),
        (answer(503, ""), 4, false),
        (answer(400, ""), 1, false),
        (answer(404, ""), 1, false),
        (answer(422, ""), 1, false),
        (answer(409, r#"{"error":"already replicated"}"#), 1, true),
    ] {
        let before = daemon.metrics().await;
        let script = behaviour.clone();
        let replica = Replica::with(move |_| script.clone()).await;
        daemon.accept(&set("k", "v", &[&replica])).await;
        let name = if delivered { "successful_replicas" } else { "permanent_failures" };
        daemon.until_metric(name, before[name].as_u64().unwrap() + 1).await;
        assert_eq!(replica.seen().len(), sent, "{behaviour:?}");
        let failed = before["failed_replicas"].as_u64().unwrap();
        let failed = failed + if delivered { 0 } else { sent as u64 };
        assert_eq!(daemon.metrics().await["failed_replicas"], failed, "{behaviour:?}");
    }
    daemon.until_logged("failed deliveries are sent again").await;
    daemon.until_logged("rejected or given up: kept as dead letters").await;
}

/// Attempt 1: 2s delay. Attempt 2: 4s delay. Attempt 3: 6s delay. After 3 attempts: permanent
/// failure.
#[tokio::test]
async fn the_retries_come_two_four_and_six_seconds_after_the_failures() {
    let daemon = Daemon::start(&[]).await;
    let replica = Replica::with(|_| Behaviour::Answer(500, "", "")).await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    daemon.until_metric("permanent_failures", 1).await;
    let seen = replica.seen();
    assert_eq!(seen.len(), 4);
    // The machine decides how much longer they take.
    for (pair, seconds) in seen.windows(2).zip([2, 4, 6]) {
        let waited = pair[1].at - pair[0].at;
        assert!(waited.as_secs() >= seconds, "{waited:?} and not {seconds} s");
    }
}

/// success_rate = successful_replicas / (successful_replicas + failed_replicas) * 100
#[tokio::test]
async fn the_success_rate_counts_what_was_sent_while_a_breaker_is_open() {
    let daemon = Daemon::start(&["--retry-base", "20ms", "--hinted-handoff", "off"]).await;
    let (good, bad) =
        (Replica::start().await, Replica::with(|_| Behaviour::Answer(503, "", "")).await);
    for n in 0..50 {
        daemon.accept(&set(&format!("k{n}"), "v", &[&good, &bad])).await;
    }
    daemon.until_metric("permanent_failures", 50).await;
    // Every sent request has arrived, and every answered one is counted.
    let metrics = wait_until("every failure that the replica saw is counted", || async {
        let metrics = daemon.metrics().await;
        (metrics["failed_replicas"] == bad.seen().len()).then_some(metrics)
    })
    .await;
    let [sent, unsent] = ["failed_replicas", "unsent_replicas"].map(|name| metrics[name].as_u64());
    assert!(sent < Some(100) && unsent > Some(0), "{metrics}");
    assert!(sent.unwrap() + unsent.unwrap() >= 200, "four attempts for each: {metrics}");
    assert_eq!(metrics["successful_replicas"], 50);
}

/// Only the variable, as in the description of the service.
#[tokio::test]
async fn the_port_is_that_of_its_environment_variable() {
    let dir = tempfile::tempdir().unwrap();
    // Another process may take the port before the daemon does.
    for attempt in 0..20 {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port().to_string();
        drop(free);
        let path = dir.path().join(attempt.to_string());
        let env = [("REPLICATOR_PORT", port.as_str())];
        let Ok(daemon) = Daemon::try_start_on(&path, &[], &env).await else { continue };
        assert_eq!(daemon.address(), format!("127.0.0.1:{port}"));
        return assert_eq!(daemon.get("/health").await.0, 200);
    }
    panic!("no free port");
}
