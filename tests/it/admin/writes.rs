//! Batches and idempotency keys.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::support::replica::Seen;
use crate::support::{Behaviour, Daemon, Replica, set, strong};

const BATCH: &str = "/v1/replicate/batch";

fn statuses(answers: &Value) -> Vec<u64> {
    let answers = answers["answers"].as_array().unwrap().iter();
    answers.map(|answer| answer["status"].as_u64().unwrap()).collect()
}

/// Posts a text. Returns the status, whether the answer is marked as a repeat, and the answer.
async fn post(
    daemon: &Daemon,
    path: &str,
    headers: &[(&str, &str)],
    body: String,
) -> (u16, bool, Value) {
    let mut request = daemon.client().post(daemon.url(path)).body(body);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let answer = request.send().await.unwrap();
    let replayed = answer.headers().get("idempotency-replayed").is_some_and(|said| said == "true");
    (answer.status().as_u16(), replayed, answer.json().await.unwrap())
}

#[tokio::test]
async fn each_write_of_a_batch_has_its_own_answer_in_order() {
    let daemon = Daemon::start(&["--max-value-bytes", "1KiB"]).await;
    let (replica, down) = (Replica::start().await, Replica::with(|_| Behaviour::Reset).await);
    let mut wrong = set("k", "v", &[&replica]);
    wrong["operation"] = "PUT".into();
    let large = set("large", &"x".repeat(2000), &[&replica]);
    let members = [
        set("a", "1", &[&replica]),
        wrong,
        strong("b", "2", &[&replica]),
        json!("no write"),
        large,
        strong("c", "3", &[&replica, &down]),
        set("a", "4", &[&replica]),
    ];
    let lines = members.iter().map(|member| format!("{member}\n")).collect::<String>();
    for (body, headers) in [
        (json!(members).to_string(), &[("content-type", "application/json")][..]),
        (lines, &[("content-type", "application/x-ndjson")]),
    ] {
        let (status, _, answers) = post(&daemon, BATCH, headers, body).await;
        assert_eq!(status, 200, "{answers}");
        assert_eq!(statuses(&answers), [202, 400, 200, 400, 413, 503, 202], "{answers}");
        assert_eq!((&answers["accepted"], &answers["refused"]), (&json!(4), &json!(3)));
        let answer = |at: usize| &answers["answers"][at]["body"];
        assert_eq!(answer(0)["success"], true);
        assert!(answer(1)["error"].as_str().unwrap().contains("\"operation\""), "{answers}");
        assert_eq!(answer(2)["acked_nodes"], json!([replica.url()]));
        assert!(answer(5)["failed_nodes"].to_string().contains(&down.url()), "{answers}");
        let id = |at: usize| answer(at)["task_id"].as_str().unwrap().parse::<u64>().unwrap();
        assert!(id(0) < id(6), "the ids follow the order of the batch");
        replica.until_holds("a", "4").await;
        replica.until_holds("b", "2").await;
    }
}

#[tokio::test]
async fn an_invalid_batch_is_rejected_completely() {
    let daemon = Daemon::start(&[]).await;
    let replica = Replica::start().await;
    let write = set("k", "v", &[&replica]).to_string();
    let many = vec![&write[..]; 1001].join("\n");
    for (body, status, word) in [
        (String::new(), 400, "at least one write"),
        ("[]".to_owned(), 400, "at least one write"),
        (format!("[{write}"), 400, "not a valid JSON array"),
        (many, 413, "more than 1000 writes"),
        (" ".repeat(40 << 20), 413, "the body is longer than"),
    ] {
        let (shown, _, answer) = post(&daemon, BATCH, &[], body).await;
        assert_eq!(shown, status, "{answer}");
        assert!(answer["error"].as_str().unwrap().contains(word), "{answer}");
    }
    let (status, _, answer) = post(&daemon, BATCH, &[("idempotency-key", "k")], write).await;
    assert_eq!(status, 400);
    assert!(answer["error"].as_str().unwrap().contains("idempotency_key"), "{answer}");
    let (status, _) = daemon.get(BATCH).await;
    assert_eq!(status, 405);
    assert_eq!(replica.seen().len(), 0);
}

#[tokio::test]
async fn a_thousand_writes_are_accepted_at_once() {
    let daemon = Daemon::start(&["--queue-capacity", "2000"]).await;
    let replica = Replica::start().await;
    let lines: Vec<_> =
        (0..1000).map(|n| set(&format!("k{n}"), "v", &[&replica]).to_string()).collect();
    let (status, _, answers) = post(&daemon, BATCH, &[], lines.join("\n")).await;
    assert_eq!((status, &answers["accepted"]), (200, &json!(1000)), "{}", answers["answers"][0]);
    daemon.until_drained().await;
    assert_eq!(replica.data().len(), 1000);
}

#[tokio::test]
async fn a_write_repeated_with_its_key_is_the_same_task_after_a_kill_too() {
    let mut daemon = Daemon::start(&[]).await;
    let replica = Replica::start().await;
    let key = [("idempotency-key", "order-7")];
    let body = set("k", "v", &[&replica]).to_string();
    let (status, replayed, first) = post(&daemon, "/replicate", &key, body.clone()).await;
    assert_eq!((status, replayed), (202, false), "{first}");
    let again = post(&daemon, "/replicate", &key, body.clone()).await;
    assert_eq!(again, (202, true, first.clone()));
    daemon.until_drained().await;
    daemon.kill_and_restart().await;
    let again = post(&daemon, "/replicate", &key, body.clone()).await;
    assert_eq!(again, (202, true, first.clone()));

    let other = set("k", "w", &[&replica]).to_string();
    let (status, replayed, answer) = post(&daemon, "/replicate", &key, other.clone()).await;
    assert_eq!((status, replayed), (422, false), "{answer}");
    assert!(answer["error"].is_string());
    let (status, _, second) =
        post(&daemon, "/replicate", &[("idempotency-key", "order-8")], body).await;
    assert_eq!(status, 202);
    assert_ne!(first["task_id"], second["task_id"]);
    daemon.until_drained().await;
    // A settlement that the kill lost makes the daemon send the delivery again, as the same task.
    let tasks: BTreeSet<_> = replica.seen().iter().map(Seen::sequence).collect();
    assert_eq!(tasks.len(), 2);
}

#[tokio::test]
async fn a_repeated_strong_write_gets_the_same_answer() {
    let daemon = Daemon::start(&[]).await;
    let replica = Replica::start().await;
    let key = [("idempotency-key", "s")];
    let body = strong("k", "v", &[&replica]).to_string();
    let (status, _, first) = post(&daemon, "/replicate", &key, body.clone()).await;
    assert_eq!((status, &first["acked_nodes"]), (200, &json!([replica.url()])));
    let (status, replayed, again) = post(&daemon, "/replicate", &key, body).await;
    assert_eq!((status, replayed, &again["task_id"]), (200, true, &first["task_id"]));
    daemon.until_drained().await;
    assert_eq!(replica.seen().len(), 1);
}

#[tokio::test]
async fn each_write_of_a_batch_has_its_own_idempotency_key() {
    let daemon = Daemon::start(&[]).await;
    let replica = Replica::start().await;
    let keyed = |key: &str, value: &str| {
        let mut write = set("k", value, &[&replica]);
        write["idempotency_key"] = key.into();
        write
    };
    let first = json!([keyed("a", "1"), keyed("b", "2"), keyed("", "3")]);
    let (_, _, first) = post(&daemon, BATCH, &[], first.to_string()).await;
    assert_eq!(statuses(&first), [202, 202, 400], "{first}");
    let again = json!([keyed("a", "1"), keyed("b", "other"), keyed("c", "4")]);
    let (_, _, again) = post(&daemon, BATCH, &[], again.to_string()).await;
    assert_eq!(statuses(&again), [202, 422, 202], "{again}");
    assert_eq!(again["answers"][0]["body"], first["answers"][0]["body"]);
    let replayed = |at: usize| again["answers"][at]["replayed"] == true;
    assert_eq!([replayed(0), replayed(1), replayed(2)], [true, false, false]);
    daemon.until_drained().await;
    assert_eq!(replica.seen().len(), 3);
}

#[tokio::test]
async fn an_invalid_idempotency_key_is_a_400() {
    let daemon = Daemon::start(&[]).await;
    let replica = Replica::start().await;
    let long = "k".repeat(256);
    for key in ["", "two words", &long] {
        let body = set("k", "v", &[&replica]).to_string();
        let (status, _, answer) =
            post(&daemon, "/replicate", &[("idempotency-key", key)], body).await;
        assert_eq!(status, 400, "{key}");
        assert!(answer["error"].as_str().unwrap().contains("Idempotency-Key"), "{answer}");
    }
    assert_eq!(replica.seen().len(), 0);
}
