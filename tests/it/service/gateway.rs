//! The requests of the gateway: a Go struct in the form of `encoding/json`, field by field. A nil
//! slice is `null`, `[]byte` is base64, a string has `<`, `>` and `&` escaped, and no field is left
//! out.

use serde_json::{Value, json};

use super::post;
use crate::support::{Daemon, Replica};

/// `{"key":"k","value":"dg==",…}` with one field replaced.
fn body(replicas: &[&Replica], field: &str, literal: &str) -> String {
    let nodes: Vec<_> = replicas.iter().map(|replica| format!("{:?}", replica.url())).collect();
    let nodes = format!("[{}]", nodes.join(","));
    let fields = [
        ("key", "\"k\""),
        ("value", "\"dg==\""),
        ("operation", "\"SET\""),
        ("ttl", "0"),
        ("consistency", "\"eventual\""),
        ("primary_node", "\"http://localhost:8082\""),
        ("replica_nodes", nodes.as_str()),
        ("user_id", "1"),
    ];
    assert!(fields.iter().any(|(name, _)| *name == field));
    let printed = fields
        .map(|(name, value)| format!("\"{name}\":{}", if name == field { literal } else { value }));
    format!("{{{}}}", printed.join(","))
}

/// Posts a write with one field replaced; it must be accepted.
async fn accepted(daemon: &Daemon, replica: &Replica, field: &str, literal: &str) -> Value {
    let (status, answer) = post(daemon, "/replicate", &body(&[replica], field, literal)).await;
    assert!(matches!(status, 200 | 202), "{field} {literal}: {answer}");
    answer
}

/// The same for a write that must be a 400; returns its error.
async fn refused(daemon: &Daemon, replica: &Replica, field: &str, literal: &str) -> String {
    let (status, answer) = post(daemon, "/replicate", &body(&[replica], field, literal)).await;
    assert_eq!(status, 400, "{field} {literal}: {answer}");
    answer["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_key_is_read_with_the_escapes_of_go() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    for (literal, key) in [
        (r#""user:123""#, "user:123"),
        (r#""a\u003cb\u003ec\u0026d""#, "a<b>c&d"),
        (r#""q\"b\\s/""#, "q\"b\\s/"),
        (r#""\n\r\t\u0001\u001f\b\f""#, "\n\r\t\u{1}\u{1f}\u{8}\u{c}"),
        (r#""\u2028\u2029\ufffd""#, "\u{2028}\u{2029}\u{fffd}"),
        ("\"grüße \u{1f600}\"", "grüße \u{1f600}"),
    ] {
        accepted(&daemon, &replica, "key", literal).await;
        replica.until_holds(key, "v").await;
    }
    let sentence = refused(&daemon, &replica, "key", r#""""#).await;
    assert_eq!(sentence, r#"field "key" is empty"#);
}

#[tokio::test]
async fn a_value_is_base64_or_empty_or_null() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    for (literal, value) in [
        (r#""aGVsbG8=""#, &b"hello"[..]),
        (r#""+/8=""#, b"\xfb\xff"),
        (r#""""#, b""),
        ("null", b""),
    ] {
        replica.forget();
        accepted(&daemon, &replica, "value", literal).await;
        replica.until_seen(1).await;
        assert_eq!(replica.seen()[0].body, value, "{literal}");
        daemon.until_drained().await;
    }
}

#[tokio::test]
async fn an_operation_is_set_or_delete_and_an_empty_one_is_named() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    accepted(&daemon, &replica, "operation", r#""SET""#).await;
    replica.until_holds("k", "v").await;
    accepted(&daemon, &replica, "operation", r#""DELETE""#).await;
    replica.until_gone("k").await;
    let sentence = refused(&daemon, &replica, "operation", r#""""#).await;
    assert_eq!(sentence, r#"field "operation" must be "SET" or "DELETE", got the string """#);
}

#[tokio::test]
async fn a_ttl_is_a_time_duration_in_nanoseconds() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    for (literal, given) in [("0", false), ("3600000000000", true), ("9223372036854775807", true)] {
        replica.forget();
        accepted(&daemon, &replica, "ttl", literal).await;
        replica.until_seen(1).await;
        let target = replica.seen()[0].target.clone();
        assert_eq!(target.contains("?ttl="), given, "{literal}: {target}");
        daemon.until_drained().await;
    }
    let sentence = refused(&daemon, &replica, "ttl", "-1").await;
    assert!(sentence.starts_with(r#"field "ttl" must be an integer number of nano"#), "{sentence}");
}

#[tokio::test]
async fn an_empty_consistency_is_eventual() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    for (literal, strong) in [(r#""""#, false), (r#""eventual""#, false), (r#""strong""#, true)] {
        let answer = accepted(&daemon, &replica, "consistency", literal).await;
        assert_eq!(answer["acked_nodes"].is_array(), strong, "{literal}: {answer}");
    }
}

#[tokio::test]
async fn a_primary_node_may_be_empty() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    for literal in [r#""""#, r#""http://localhost:8082""#] {
        accepted(&daemon, &replica, "primary_node", literal).await;
    }
}

#[tokio::test]
async fn a_nil_or_empty_list_of_replicas_is_named() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    for literal in ["null", "[]"] {
        let sentence = refused(&daemon, &replica, "replica_nodes", literal).await;
        assert_eq!(sentence, r#"field "replica_nodes" must name at least one replica"#);
    }
    let sentence = refused(&daemon, &replica, "replica_nodes", r#"["localhost:8083"]"#).await;
    let rule = r#"must begin with http:// or https://, e.g. "http://localhost:8083""#;
    assert_eq!(sentence, format!(r#"field "replica_nodes[0]": "localhost:8083" {rule}"#));
}

/// An integer in the request and in a batch; text in tasks, filters and counts.
#[tokio::test]
async fn a_user_id_is_any_int64_and_shown_as_text_wherever_it_is_shown() {
    let daemon = Daemon::start(&["--request-timeout", "30m"]).await;
    let replica = Replica::with(|_| crate::support::Behaviour::Hang).await;
    let users = ["0", "1", "-1", "9223372036854775807", "-9223372036854775808"];
    for user in users {
        accepted(&daemon, &replica, "user_id", user).await;
        let batch = format!("[{}]", body(&[&replica], "user_id", user));
        let (status, answer) = post(&daemon, "/v1/replicate/batch", &batch).await;
        assert_eq!((status, &answer["accepted"]), (200, &json!(1)), "{answer}");
        let tasks = daemon.show(&format!("/v1/tasks?user_id={user}")).await;
        let tasks = tasks["tasks"].as_array().unwrap();
        assert!(tasks.len() == 2 && tasks.iter().all(|task| task["user_id"] == user), "{tasks:?}");
        let selected = format!(r#"{{"user_id":{user},"dry_run":true}}"#);
        let (status, answer) = post(&daemon, "/v1/dead-letters/redrive", &selected).await;
        assert!(matches!(status, 200 | 202), "{status} {answer}");
    }
    let counted = daemon.show("/metrics/users").await;
    for user in users {
        let counted = counted["users"].as_array().unwrap();
        let found = counted.iter().find(|counted| counted["user_id"] == user);
        assert_eq!(found.unwrap()["requests"], 2, "{counted:?}");
    }
    for wrong in ["1.5", "9223372036854775808000"] {
        let sentence = refused(&daemon, &replica, "user_id", wrong).await;
        let rule = r#"field "user_id" must be a string or an integer from -9223372036854775808 to"#;
        assert!(sentence.starts_with(rule), "{sentence}");
    }
}

/// Some clients and libraries send these.
#[tokio::test]
async fn a_byte_order_mark_is_dropped_and_a_compressed_body_is_a_415() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    let plain = body(&[&replica], "user_id", "1");
    let (status, answer) = post(&daemon, "/replicate", &format!("\u{feff}{plain}")).await;
    assert_eq!(status, 202, "{answer}");
    for batch in [format!("\u{feff}[{plain}]"), format!("\u{feff}{plain}\n{plain}\n")] {
        let (status, answer) = post(&daemon, "/v1/replicate/batch", &batch).await;
        assert_eq!((status, &answer["refused"]), (200, &json!(0)), "{answer}");
    }
    for path in ["/replicate", "/v1/replicate/batch", "/v1/barriers"] {
        let request = daemon.client().post(daemon.url(path)).header("content-encoding", "gzip");
        let answer = request.body(plain.clone()).send().await.unwrap();
        assert_eq!(
            (answer.status().as_u16(), &answer.headers()["accept-encoding"]),
            (415, &"identity".parse().unwrap())
        );
        let answer: Value = answer.json().await.unwrap();
        let sentence = r#"the body has the Content-Encoding "gzip": it must be sent without one"#;
        assert_eq!(answer, json!({ "error": sentence }), "{path}");
    }
}
