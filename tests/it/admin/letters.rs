//! Dead letters: lists, redrives, discards and their operations.

use serde_json::{Value, json};

use super::{all_of, path_of, until};
use crate::support::replica::Gate;
use crate::support::{Behaviour, Daemon, Replica, set};

/// One attempt per delivery, and nothing is redriven by itself.
const QUICK: [&str; 6] =
    ["--max-retries", "0", "--breaker-failures", "0", "--hinted-handoff", "off"];

async fn letters(daemon: &Daemon, query: &str) -> Vec<Value> {
    all_of(daemon, &format!("/v1/dead-letters{query}"), "dead_letters", 2).await
}

/// Makes `count` dead letters: writes that the replica rejects.
async fn reject(daemon: &Daemon, replica: &Replica, count: u64) {
    replica.behave(|_| Behaviour::Answer(400, "", "no"));
    for n in 0..count {
        daemon.accept(&set(&format!("k{n}"), "old", &[replica])).await;
    }
    daemon.until_metric("dead_letters", count).await;
    daemon.until_drained().await;
    replica.behave(|_| Behaviour::Apply);
}

async fn start(daemon: &Daemon, path: &str, body: &Value) -> String {
    let (status, operation) = daemon.post_to(path, body).await;
    assert_eq!(status, 202, "{operation}");
    format!("/v1/operations/{}", operation["operation_id"].as_str().unwrap())
}

async fn ended(daemon: &Daemon, path: &str, body: &Value) -> Value {
    let operation = start(daemon, path, body).await;
    until(daemon, &operation, |operation| operation["state"] != "running").await
}

/// The counts of an operation: examined, matched, done, superseded.
fn counts(operation: &Value) -> [u64; 4] {
    assert_eq!(operation["state"], "done", "{operation}");
    ["examined", "matched", "done", "superseded"].map(|name| operation[name].as_u64().unwrap())
}

#[tokio::test]
async fn dead_letters_are_listed_by_replica_key_user_and_cause_in_pages() {
    let daemon = Daemon::start(&QUICK).await;
    let strict = Replica::with(|_| Behaviour::Answer(400, "", "no")).await;
    let down = Replica::with(|_| Behaviour::Reset).await;
    for key in ["a/1", "a/2", "b/1"] {
        let mut write = set(key, "v", &[&strict, &down]);
        write["user_id"] = key[..1].into();
        daemon.accept(&write).await;
    }
    daemon.until_metric("dead_letters", 6).await;
    let host = strict.url().replace("http://", "");
    for (query, keys) in [
        (String::new(), vec!["a/1", "a/1", "a/2", "a/2", "b/1", "b/1"]),
        (format!("?replica={host}"), vec!["a/1", "a/2", "b/1"]),
        ("?cause=rejected".to_owned(), vec!["a/1", "a/2", "b/1"]),
        ("?cause=gave_up&key=b%2F1".to_owned(), vec!["b/1"]),
        ("?cause=retry_overflow".to_owned(), vec![]),
        ("?key_prefix=a%2F".to_owned(), vec!["a/1", "a/1", "a/2", "a/2"]),
        ("?user_id=b".to_owned(), vec!["b/1", "b/1"]),
        ("?user_id=nobody".to_owned(), vec![]),
    ] {
        let found = letters(&daemon, &query).await;
        let found: Vec<_> = found.iter().map(|letter| letter["key"].as_str().unwrap()).collect();
        assert_eq!(found, keys, "{query}");
    }
    let letter = &letters(&daemon, "?cause=rejected").await[0];
    assert_eq!((&letter["replica"], &letter["failures"]), (&json!(strict.url()), &json!(1)));
    assert!(letter["last_error"].as_str().unwrap().contains("400"), "{letter}");
    for (query, word) in
        [("?cause=bored", "\"cause\""), ("?cursor=x", "\"cursor\""), ("?state=dead", "\"state\"")]
    {
        let (status, answer) = daemon.get(&format!("/v1/dead-letters{query}")).await;
        assert_eq!(status, 400, "{query}");
        assert!(answer["error"].as_str().unwrap().contains(word), "{answer}");
    }
}

#[tokio::test]
async fn a_dry_run_counts_and_a_redrive_delivers() {
    let daemon = Daemon::start(&QUICK).await;
    let replica = Replica::start().await;
    reject(&daemon, &replica, 5).await;
    let redrive = "/v1/dead-letters/redrive";
    let dry = json!({"replica": replica.url(), "dry_run": true});
    assert_eq!(counts(&ended(&daemon, redrive, &dry).await), [5, 5, 5, 0]);
    assert_eq!(letters(&daemon, "").await.len(), 5);
    assert_eq!(replica.seen().len(), 5);

    let one = letters(&daemon, "?key=k3").await[0]["task_id"].clone();
    let by_id = json!({"ids": [{"task_id": one}]});
    assert_eq!(counts(&ended(&daemon, redrive, &by_id).await)[1..], [1, 1, 0]);
    replica.until_holds("k3", "old").await;
    assert_eq!(counts(&ended(&daemon, redrive, &json!({"key_prefix": "k"})).await)[1..], [4, 4, 0]);
    for n in 0..5 {
        replica.until_holds(&format!("k{n}"), "old").await;
    }
    daemon.until_metric("dead_letters", 0).await;
    let operations = daemon.show("/v1/operations").await;
    let operations = operations["operations"].as_array().unwrap();
    assert_eq!(operations.len(), 3);
    assert_eq!(
        (&operations[2]["dry_run"], &operations[0]["done"]),
        (&json!(true), &json!(4)),
        "newest first"
    );
}

#[tokio::test]
async fn a_redrive_reports_how_many_letters_were_delivered_and_how_many_failed_again() {
    let daemon = Daemon::start(&QUICK).await;
    let replica = Replica::start().await;
    reject(&daemon, &replica, 6).await;
    replica.behave(|seen| match seen.key().as_str() {
        "k0" | "k1" => Behaviour::Answer(400, "", "no"),
        _ => Behaviour::Apply,
    });
    let operation = start(&daemon, "/v1/dead-letters/redrive", &json!({"all": true})).await;
    let expected = json!({"delivered": 4, "failed": 2, "superseded": 0, "discarded": 0, "handed_over": 0, "waiting": 0});
    let shown = until(&daemon, &operation, |shown| shown["outcomes"] == expected).await;
    assert_eq!(shown["done"], 6);
    let dry = json!({"all": true, "dry_run": true});
    let dry = ended(&daemon, "/v1/dead-letters/redrive", &dry).await;
    assert_eq!(dry["outcomes"], Value::Null);
}

#[tokio::test]
async fn dead_letters_are_summarized_by_replica_cause_and_error() {
    let daemon = Daemon::start(&QUICK).await;
    let strict = Replica::with(|seen| {
        let number = seen.key().trim_start_matches('k').to_owned();
        Behaviour::Answer(400, "", if number == "0" { "no key k1234" } else { "no key k5678" })
    })
    .await;
    let down = Replica::with(|_| Behaviour::Reset).await;
    assert_eq!(
        daemon.show("/v1/dead-letters/summary").await,
        json!({"dead_letters": 0, "groups": [], "other": 0})
    );
    for key in ["k0", "k1", "k2"] {
        daemon.accept(&set(key, "v", &[&strict])).await;
    }
    daemon.accept(&set("k", "v", &[&down])).await;
    daemon.until_metric("dead_letters", 4).await;
    let summary = daemon.show("/v1/dead-letters/summary").await;
    assert_eq!((&summary["dead_letters"], &summary["other"]), (&json!(4), &json!(0)));
    let groups = summary["groups"].as_array().unwrap();
    assert_eq!(groups.len(), 2, "{summary}");
    let first = &groups[0];
    assert_eq!(
        (&first["replica"], &first["cause"], &first["count"]),
        (&json!(strict.url()), &json!("rejected"), &json!(3))
    );
    let error = first["error"].as_str().unwrap();
    assert!(error.contains("400") && error.ends_with("no key #"), "{error}");
    assert!(first["oldest"].as_str() <= first["newest"].as_str(), "{first}");
    assert_eq!(groups[1]["cause"], "gave_up");
}

#[tokio::test]
async fn a_redrive_skips_a_dead_letter_with_a_newer_write_on_its_way() {
    let daemon = Daemon::start(&[&QUICK[..], &["--request-timeout", "5m"]].concat()).await;
    let replica = Replica::start().await;
    reject(&daemon, &replica, 3).await;
    let gate = Gate::default();
    let behind = gate.clone();
    replica.behave(move |_| Behaviour::ApplyBehind(behind.clone()));
    daemon.accept(&set("k1", "new", &[&replica])).await;
    replica.until_seen(4).await;
    let redriven = ended(&daemon, "/v1/dead-letters/redrive", &json!({"all": true})).await;
    assert_eq!(counts(&redriven), [3, 3, 2, 1]);
    gate.open();
    replica.until_holds("k1", "new").await;
    daemon.until_metric("dead_letters", 0).await;
    daemon.until_drained().await;
    let sent = replica.seen();
    assert_eq!(sent.iter().filter(|seen| seen.applied && seen.key() == "k1").count(), 1);
    replica.until_holds("k2", "old").await;
}

#[tokio::test]
async fn a_redrive_keeps_its_rate_and_can_be_cancelled() {
    let daemon = Daemon::start(&QUICK).await;
    let replica = Replica::start().await;
    reject(&daemon, &replica, 50).await;
    let slow = json!({"all": true, "rate": 1});
    let operation = start(&daemon, "/v1/dead-letters/redrive", &slow).await;
    // The first ones are sent at once, the others at the rate.
    replica.until_seen(51).await;
    let (status, cancelled) = daemon.delete(&operation).await;
    assert_eq!(status, 200);
    let ended = until(&daemon, &operation, |operation| operation["state"] == "cancelled").await;
    assert_eq!((&ended["rate"], &cancelled["kind"]), (&json!(1), &json!("redrive")));
    let done = ended["done"].as_u64().unwrap();
    assert!((1..50).contains(&done), "{ended}");
    daemon.until_drained().await;
    assert_eq!(letters(&daemon, "").await.len() as u64, 50 - done, "the others have not changed");
    // The operation has ended, so a cancel changes nothing.
    assert_eq!(daemon.delete(&operation).await, (200, ended));
}

#[tokio::test]
async fn a_discarded_dead_letter_stays_discarded_after_a_kill() {
    let mut daemon = Daemon::start(&QUICK).await;
    let replica = Replica::start().await;
    reject(&daemon, &replica, 4).await;
    let discard = "/v1/dead-letters/discard";
    let dry = json!({"key": "k0", "dry_run": true});
    assert_eq!(counts(&ended(&daemon, discard, &dry).await)[1..3], [1, 1]);
    assert_eq!(letters(&daemon, "").await.len(), 4);
    assert_eq!(counts(&ended(&daemon, discard, &json!({"key": "k0"})).await)[1..3], [1, 1]);
    let left = |letters: Vec<Value>| letters.iter().map(|l| l["key"].clone()).collect::<Vec<_>>();
    assert_eq!(left(letters(&daemon, "").await), ["k1", "k2", "k3"]);
    daemon.kill_and_restart().await;
    assert_eq!(left(letters(&daemon, "").await), ["k1", "k2", "k3"]);
    assert_eq!(counts(&ended(&daemon, discard, &json!({"all": true})).await)[1..3], [3, 3]);
    daemon.until_metric("dead_letters", 0).await;
}

#[tokio::test]
async fn an_invalid_request_starts_no_operation() {
    let daemon = Daemon::start(&[]).await;
    for path in ["/v1/dead-letters/redrive", "/v1/dead-letters/discard"] {
        for (body, word) in [
            (Value::Null, "nothing is selected"),
            (json!({}), "nothing is selected"),
            (json!({"al": true}), "`al`"),
            (json!([]), "not a JSON object"),
            (json!({"all": true, "key": "k"}), "\"all\""),
            (json!({"ids": [{"task_id": "x"}]}), "ids[0].task_id"),
            (json!({"all": true, "rate": 0}), "\"rate\""),
        ] {
            let (status, answer) = daemon.post_to(path, &body).await;
            assert_eq!(status, 400, "{path} {body}");
            assert!(answer["error"].as_str().unwrap().contains(word), "{path} {body} {answer}");
        }
    }
    assert_eq!(daemon.show("/v1/operations").await, json!({"operations": []}));
    let sentence = json!({"error": "there is no operation \"op-1\""});
    assert_eq!(daemon.get("/v1/operations/op-1").await, (404, sentence.clone()));
    assert_eq!(daemon.delete("/v1/operations/op-1").await, (404, sentence));
}

#[tokio::test]
async fn a_redrive_leaves_the_dead_letters_of_a_paused_replica_unchanged() {
    let daemon = Daemon::start(&QUICK).await;
    let replica = Replica::start().await;
    reject(&daemon, &replica, 3).await;
    let seen = replica.seen().len();
    let kept = daemon.metrics().await["dead_letter_bytes"].clone();
    daemon.post_to(&format!("{}/pause", path_of(&replica)), &Value::Null).await;
    for dry_run in [true, false] {
        let redrive = json!({"all": true, "dry_run": dry_run});
        let operation = ended(&daemon, "/v1/dead-letters/redrive", &redrive).await;
        assert_eq!(counts(&operation), [3, 3, 0, 0]);
        assert_eq!(operation["held_back"], 3);
    }
    let metrics = daemon.metrics().await;
    assert_eq!((&metrics["dead_letter_bytes"], &metrics["queue_bytes"]), (&kept, &json!(0)));
    daemon.post_to(&format!("{}/resume", path_of(&replica)), &Value::Null).await;
    assert_eq!(replica.seen().len(), seen);
    ended(&daemon, "/v1/dead-letters/redrive", &json!({"all": true})).await;
    replica.until_holds("k2", "old").await;
}

#[cfg(feature = "faults")]
#[tokio::test]
async fn a_clock_set_forward_during_a_restart_expires_neither_dead_letters_nor_keys() {
    let mut daemon = Daemon::start(&QUICK).await;
    let replica = Replica::start().await;
    reject(&daemon, &replica, 2).await;
    let key = ("idempotency-key", "order-7");
    let body = set("keyed", "v", &[&replica]);
    let post = |daemon: &Daemon| {
        let request = daemon.client().post(daemon.url("/replicate")).header(key.0, key.1);
        let request = request.json(&body);
        async move { request.send().await.unwrap() }
    };
    assert_eq!(post(&daemon).await.status(), 202);
    daemon.until_drained().await;
    // Two days ahead, ten seconds more, and back again.
    for (ahead, logged) in [
        ("172800", "the clock has moved forward by 2days"),
        ("172810", ""),
        ("0", "was set back by 2days"),
    ] {
        daemon.set_env(&[("REPLICATOR_FAULT_CLOCK_AHEAD", ahead)]);
        daemon.terminate().await;
        daemon.restart().await;
        daemon.until_logged(logged).await;
        assert_eq!(letters(&daemon, "").await.len(), 2, "{ahead} s ahead");
        let again = post(&daemon).await;
        assert_eq!(
            (again.status().as_u16(), again.headers()["idempotency-replayed"].as_bytes()),
            (202, &b"true"[..])
        );
    }
    let metrics = daemon.metrics().await;
    assert_eq!((&metrics["dead_letters"], &metrics["discarded_replicas"]), (&json!(2), &json!(0)));
}
