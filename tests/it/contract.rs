//! The inbound contract, field by field: requests and their answers.

use serde_json::{Value, json};

use crate::support::{Daemon, Replica, client, delete, set, strong, wait_until};

#[tokio::test]
async fn an_eventual_write_is_accepted_and_arrives() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    let (status, answer) = daemon.post(&set("k", "v", &[&replica])).await;
    assert_eq!(status, 202);
    let task = answer["task_id"].as_str().unwrap();
    assert_eq!(answer, json!({"success": true, "node_id": "replicator", "task_id": task}));
    assert!(task.parse::<u64>().is_ok(), "{task}");
    replica.until_holds("k", "v").await;
}

#[tokio::test]
async fn a_strong_write_lists_acknowledging_nodes_as_the_client_spelled_them() {
    let (daemon, a, b) = (Daemon::start(&[]).await, Replica::start().await, Replica::start().await);
    let mut body = strong("k", "v", &[&a, &b]);
    body["replica_nodes"] = json!([format!("{}/", a.url()), b.url().to_uppercase()]);
    let (status, answer) = daemon.post(&body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["success"], true);
    let mut acked: Vec<_> = answer["acked_nodes"].as_array().unwrap().clone();
    acked.sort_by_key(|node| node != &body["replica_nodes"][0]);
    assert_eq!(Value::Array(acked), body["replica_nodes"]);
    assert_eq!((a.get("k"), b.get("k")), (Some(b"v".to_vec()), Some(b"v".to_vec())));
}

#[tokio::test]
async fn a_delete_removes_the_key_and_succeeds_if_it_is_missing() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    daemon.accept(&set("k", "v", &[&replica])).await;
    daemon.accept(&delete("k", &[&replica])).await;
    daemon.accept(&delete("never", &[&replica])).await;
    replica.until_seen(3).await;
    daemon.until_metric("successful_replicas", 3).await;
    assert_eq!(replica.get("k"), None);
    assert_eq!(daemon.metrics().await["failed_replicas"], 0);
}

#[tokio::test]
async fn a_value_is_base64_if_it_can_be_and_text_otherwise() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    let cases: [(&str, Value, Option<&str>, &[u8]); 9] = [
        ("base64", json!("aGVsbG8="), None, b"hello"),
        ("binary", json!("AAH/"), None, b"\x00\x01\xff"),
        ("text", json!("hello there"), None, b"hello there"),
        ("unpadded", json!("aGVsbG8"), None, b"aGVsbG8"),
        ("utf8", json!("grüße"), None, "grüße".as_bytes()),
        ("raw", json!("aGVsbG8="), Some("raw"), b"aGVsbG8="),
        ("said", json!("aGVsbG8="), Some("base64"), b"hello"),
        ("empty", json!(""), None, b""),
        ("null", Value::Null, None, b""),
    ];
    for (key, value, encoding, want) in cases {
        let mut body = set(key, "", &[&replica]);
        body["value"] = value;
        match encoding {
            Some(encoding) => body["value_encoding"] = encoding.into(),
            None => drop(body.as_object_mut().unwrap().remove("value_encoding")),
        }
        daemon.accept(&body).await;
        let holds = || async { (replica.get(key).as_deref() == Some(want)).then_some(()) };
        wait_until(key, holds).await;
    }
}

#[tokio::test]
async fn unknown_fields_are_ignored_and_optional_ones_may_be_missing_or_null() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    let mut body = set("k", "v", &[&replica]);
    body["something"] = json!({"new": [1, 2]});
    for field in ["ttl", "consistency", "primary_node", "user_id"] {
        body[field] = Value::Null;
    }
    assert_eq!(daemon.post(&body).await.0, 202);
    body["consistency"] = "".into();
    body["primary_node"] = "http://primary:1".into();
    body["user_id"] = "u".into();
    body["ttl"] = 0.into();
    assert_eq!(daemon.post(&body).await.0, 202);
}

#[tokio::test]
async fn a_node_named_twice_counts_once() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    let mut body = strong("k", "v", &[&replica]);
    body["replica_nodes"] = json!([replica.url(), format!("{}/", replica.url())]);
    let (status, answer) = daemon.post(&body).await;
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer["acked_nodes"], json!([replica.url()]));
    assert_eq!(replica.seen().len(), 1);
}

/// Every invalid request: the change to a valid one, the status, and a word of the error.
#[tokio::test]
async fn invalid_input_is_rejected_with_a_sentence_and_leaves_no_trace() {
    let daemon = Daemon::start(&["--max-value-bytes", "1KiB", "--max-replicas", "2"]).await;
    let replica = Replica::start().await;
    let long = "x".repeat(5000);
    let many: Vec<_> = (0..3).map(|n| format!("http://127.0.0.1:{}", 9000 + n)).collect();
    let cases: Vec<(&str, Value, u16, &str)> = vec![
        ("key", Value::Null, 400, "key"),
        ("key", json!(""), 400, "key"),
        ("key", json!("."), 400, "key"),
        ("key", json!(".."), 400, "key"),
        ("key", json!(7), 400, "key"),
        ("key", json!(long), 400, "4096"),
        ("operation", Value::Null, 400, "operation"),
        ("operation", json!("set"), 400, "SET"),
        ("operation", json!("PATCH"), 400, "DELETE"),
        ("ttl", json!("1h"), 400, "ttl"),
        ("ttl", json!(-1), 400, "ttl"),
        ("ttl", json!(1.5), 400, "ttl"),
        ("ttl", json!(1e30), 400, "ttl"),
        ("ttl", json!(u64::MAX), 400, "ttl"),
        ("consistency", json!("quorum"), 400, "consistency"),
        ("consistency", json!(1), 400, "consistency"),
        ("value", json!(7), 400, "value"),
        ("value", json!({"a": 1}), 400, "value"),
        ("value", json!("x".repeat(1025)), 413, "1024"),
        ("value_encoding", json!("hex"), 400, "value_encoding"),
        ("replica_nodes", Value::Null, 400, "replica_nodes"),
        ("replica_nodes", json!([]), 400, "replica_nodes"),
        ("replica_nodes", json!("http://a"), 400, "replica_nodes"),
        ("replica_nodes", json!([1]), 400, "replica_nodes"),
        ("replica_nodes", json!(["127.0.0.1:80"]), 400, "replica_nodes"),
        ("replica_nodes", json!(["ftp://h"]), 400, "ftp"),
        ("replica_nodes", json!(["http://u:p@h"]), 400, "user info"),
        ("replica_nodes", json!(["http://h?q=1"]), 400, "query"),
        ("replica_nodes", json!(["http://h#f"]), 400, "fragment"),
        ("replica_nodes", json!([""]), 400, "replica_nodes"),
        ("replica_nodes", json!(many), 400, "2"),
        ("user_id", json!(1.5), 400, "user_id"),
        ("user_id", json!(1e30), 400, "user_id"),
        ("user_id", json!(true), 400, "user_id"),
        ("user_id", json!("u".repeat(257)), 400, "user_id"),
    ];
    for (field, value, status, word) in cases {
        let mut body = set("k", "v", &[&replica]);
        body[field] = value.clone();
        let (got, answer) = daemon.post(&body).await;
        let error = answer["error"].as_str().unwrap_or_default().to_owned();
        assert_eq!(got, status, "{field} = {value:.50}: {answer}");
        assert!(error.contains(word), "{field} = {value:.50}: {error}");
    }
    for field in ["key", "operation", "replica_nodes"] {
        let mut body = set("k", "v", &[&replica]);
        body.as_object_mut().unwrap().remove(field);
        let (status, answer) = daemon.post(&body).await;
        assert_eq!(status, 400);
        assert!(answer["error"].as_str().unwrap().contains(field), "{answer}");
    }
    let metrics = daemon.metrics().await;
    assert_eq!((&metrics["total_replications"], &metrics["queue_size"]), (&json!(0), &json!(0)));
    assert!(replica.seen().is_empty());
}

#[tokio::test]
async fn invalid_base64_that_was_announced_is_a_400() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    let mut body = set("k", "not base64!", &[&replica]);
    body["value_encoding"] = "base64".into();
    let (status, answer) = daemon.post(&body).await;
    assert_eq!(status, 400);
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains("value") && !error.contains("not base64!"), "{error}");
}

#[tokio::test]
async fn a_body_that_is_not_json_is_a_400() {
    let daemon = Daemon::start(&[]).await;
    let bodies: [&[u8]; 7] =
        [b"", b"{", b"[]", b"null", b"\xff\xfe", b"{\"key\":\"\\ud800\"}", b"7"];
    for body in bodies {
        let answer = client().post(daemon.url("/replicate")).body(body).send().await.unwrap();
        assert_eq!(answer.status(), 400, "{body:?}");
        let answer: Value = answer.json().await.unwrap();
        assert!(answer["error"].is_string(), "{answer}");
    }
    let deep = format!("{{\"x\":{}", "[".repeat(100_000));
    let answer = client().post(daemon.url("/replicate")).body(deep).send().await.unwrap();
    assert_eq!(answer.status(), 400);
}

#[tokio::test]
async fn an_unknown_path_is_a_404_and_a_wrong_method_a_405() {
    let daemon = Daemon::start(&[]).await;
    let (status, answer) = daemon.get("/nothing").await;
    assert_eq!(status, 404);
    assert!(answer["error"].is_string());
    let answer = client().get(daemon.url("/replicate")).send().await.unwrap();
    assert_eq!(answer.status(), 405);
    assert_eq!(answer.headers()["allow"], "POST");
    assert!(answer.json::<Value>().await.unwrap()["error"].is_string());
    let answer = client().post(daemon.url("/metrics")).send().await.unwrap();
    assert_eq!(answer.status(), 405);
}

#[tokio::test]
async fn a_body_over_the_limit_is_a_413_that_names_it() {
    let daemon = Daemon::start(&["--max-value-bytes", "1KiB"]).await;
    let body = "x".repeat(3_000_000);
    let answer = client().post(daemon.url("/replicate")).body(body).send().await.unwrap();
    assert_eq!(answer.status(), 413);
    let answer: Value = answer.json().await.unwrap();
    assert!(answer["error"].as_str().unwrap().contains("bytes"), "{answer}");
}

#[tokio::test]
async fn metrics_are_json_or_prometheus_text_as_the_client_asks() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    daemon.accept(&set("k", "v", &[&replica])).await;
    daemon.until_metric("successful_replicas", 1).await;
    let metrics = daemon.metrics().await;
    for name in [
        "total_replications",
        "successful_replicas",
        "failed_replicas",
        "queue_size",
        "average_ack_time_ms",
        "max_replication_lag_ms",
        "retries_in_progress",
        "superseded_replicas",
        "permanent_failures",
        "dead_letters",
    ] {
        assert!(metrics[name].is_number(), "{name} in {metrics}");
    }
    assert!(metrics["average_ack_time_ms"].as_f64().unwrap() > 0.0);
    assert!(metrics["max_replication_lag_ms"].as_f64().unwrap() > 0.0);
    for accept in ["text/plain", "application/openmetrics-text;version=1.0.0,text/plain;q=0.5"] {
        let request = client().get(daemon.url("/metrics")).header("accept", accept);
        let answer = request.send().await.unwrap();
        assert!(answer.headers()["content-type"].to_str().unwrap().starts_with("text/plain"));
        let text = answer.text().await.unwrap();
        assert!(text.contains("# TYPE replicator_"), "{text}");
    }
}

#[tokio::test]
async fn users_are_counted_by_requests_and_bytes() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    for (user, value) in [("ann", "12345"), ("bob", "1"), ("ann", "123")] {
        let mut body = set("k", value, &[&replica]);
        body["user_id"] = user.into();
        daemon.accept(&body).await;
    }
    let (status, answer) = daemon.get("/metrics/users").await;
    assert_eq!(status, 200);
    let users = answer["users"].as_array().unwrap();
    assert_eq!(users[0]["user_id"], "ann");
    assert_eq!(users[0]["requests"], 2);
    assert_eq!(users[0]["bytes"], 10);
    assert_eq!(users[1]["user_id"], "bob");
}

#[tokio::test]
async fn health_is_degraded_from_ninety_percent_of_the_queue_on() {
    let args = ["--queue-capacity", "10", "--workers", "1", "--request-timeout", "5m"];
    let daemon = Daemon::start(&args).await;
    let replica = Replica::with(|_| crate::support::Behaviour::Hang).await;
    for n in 0..8 {
        daemon.accept(&set(&format!("k{n}"), "v", &[&replica])).await;
    }
    let (status, answer) = daemon.get("/health").await;
    assert_eq!(status, 200);
    let want = json!({"status": "healthy", "service": "replicator", "queue_size": 8});
    assert_eq!(answer, want);
    daemon.accept(&set("k9", "v", &[&replica])).await;
    let (status, answer) = daemon.get("/health").await;
    assert_eq!(
        (status, &answer["status"], &answer["queue_size"]),
        (200, &json!("degraded"), &json!(9))
    );
    assert_eq!(daemon.get("/livez").await.0, 200);
    assert_eq!(daemon.get("/readyz").await.0, 200);
}
