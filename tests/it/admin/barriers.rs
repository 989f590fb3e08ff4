//! Barriers: created, waited for, reached.

use serde_json::{Value, json};

use super::until;
use crate::support::replica::Gate;
use crate::support::{Behaviour, Daemon, Replica, client, set};

const PATIENT: [&str; 4] = ["--request-timeout", "5m", "--workers", "1"];

/// Creates a barrier for some replicas or all; returns its path and the answer.
async fn create(daemon: &Daemon, body: &Value) -> (String, Value) {
    let (status, barrier) = daemon.post_to("/v1/barriers", body).await;
    assert_eq!(status, 201, "{barrier}");
    (format!("/v1/barriers/{}", barrier["barrier_id"].as_str().unwrap()), barrier)
}

#[tokio::test]
async fn a_barrier_waits_for_earlier_writes_and_not_for_later_ones() {
    let gate = Gate::default();
    let behind = gate.clone();
    let slow = Replica::with(move |seen| match seen.key().as_str() {
        "before" => Behaviour::ApplyBehind(behind.clone()),
        _ => Behaviour::Hang,
    })
    .await;
    let quick = Replica::start().await;
    let mut daemon = Daemon::start(&PATIENT).await;
    let before = daemon.accept(&set("before", "v", &[&slow, &quick])).await;
    until(&daemon, &super::path_of(&quick), |shown| shown["books"]["delivered"] == 1).await;
    let (all, barrier) = create(&daemon, &Value::Null).await;
    assert_eq!((&barrier["reached"], &barrier["pending"]), (&json!(false), &json!(1)));
    assert_eq!(barrier["up_to"], before.to_string());
    let (of_quick, _) = create(&daemon, &json!({"replicas": [quick.url()]})).await;
    until(&daemon, &of_quick, |barrier| barrier["reached"] == true).await;
    daemon.accept(&set("after", "v", &[&slow])).await;

    // The id contains the complete barrier, so it survives a kill.
    daemon.kill_and_restart().await;
    let waited = daemon.show(&format!("{all}?wait=100ms")).await;
    assert_eq!((&waited["reached"], &waited["pending"]), (&json!(false), &json!(1)), "{waited}");
    let wait = client().get(daemon.url(&format!("{all}?wait=60s"))).send();
    let wait = tokio::spawn(wait);
    gate.open();
    let reached: Value = wait.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!((&reached["reached"], &reached["pending"]), (&json!(true), &json!(0)), "{reached}");
    assert!(slow.get("after").is_none(), "the barrier does not wait for a later write");
}

#[tokio::test]
async fn a_barrier_counts_dead_letters_and_does_not_wait_for_them() {
    let strict = Replica::with(|_| Behaviour::Answer(400, "", "no")).await;
    let daemon = Daemon::start(&[]).await;
    daemon.accept(&set("k", "v", &[&strict])).await;
    daemon.until_metric("dead_letters", 1).await;
    let (_, barrier) = create(&daemon, &json!({})).await;
    assert_eq!((&barrier["reached"], &barrier["given_up"]), (&json!(true), &json!(1)), "{barrier}");
    assert_eq!(barrier["replicas"][0]["replica"], strict.url());
}

#[tokio::test]
async fn a_client_that_waits_for_a_barrier_does_not_delay_a_shutdown() {
    let replica = Replica::start().await;
    let mut daemon = Daemon::start(&["--drain-timeout", "5m"]).await;
    daemon.accept(&set("first", "v", &[&replica])).await;
    replica.until_holds("first", "v").await;
    daemon.post_to(&format!("{}/pause", super::path_of(&replica)), &Value::Null).await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    let (barrier, _) = create(&daemon, &Value::Null).await;
    let wait = tokio::spawn(client().get(daemon.url(&format!("{barrier}?wait=60s"))).send());
    let begun = std::time::Instant::now();
    // The request may not have arrived yet. Rejected or answered, it must not delay the stop.
    daemon.until_metric("dead_letters", 0).await;
    assert!(daemon.terminate().await.success());
    assert!(begun.elapsed().as_secs() < 50, "{:?}", begun.elapsed());
    drop(wait.await);
}

#[tokio::test]
async fn an_invalid_field_or_parameter_is_named() {
    let daemon = Daemon::start(&[]).await;
    for (body, word) in [
        (json!({"replica": "h"}), "`replica`"),
        (json!({"replicas": "h"}), "\"replicas\""),
        (json!({"replicas": ["ftp://h"]}), "\"replicas[0]\""),
        // A misspelled address must not count as reached.
        (json!({"replicas": ["http://127.0.0.1:1"]}), "http://127.0.0.1:1"),
    ] {
        let (status, answer) = daemon.post_to("/v1/barriers", &body).await;
        assert_eq!(status, 400, "{body}");
        assert!(answer["error"].as_str().unwrap().contains(word), "{body} {answer}");
    }
    let (status, answer) = daemon.get("/v1/barriers/nonsense").await;
    assert_eq!((status, &answer["error"]), (404, &json!("there is no barrier \"nonsense\"")));
    let (path, _) = create(&daemon, &Value::Null).await;
    for wait in ["61s", "10", "soon"] {
        let (status, answer) = daemon.get(&format!("{path}?wait={wait}")).await;
        assert_eq!(status, 400, "{wait} {answer}");
    }
}
