//! Idempotency keys at their limit, as three servers keep them.

use async_nats::jetstream;
use serde_json::Value;

use crate::support::servers::shared;
use crate::support::{Daemon, Replica, set, wait_until};

const KEYS: u64 = 3;

async fn post(daemon: &Daemon, key: u64, body: &Value) -> (u16, Value) {
    let request = daemon.client().post(daemon.url("/replicate")).json(body);
    let answer = request.header("Idempotency-Key", format!("key-{key}")).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

/// The rows of all keys.
async fn rows(cluster: &str) -> Vec<Value> {
    let client = async_nats::connect(shared().split(',').next().unwrap()).await.unwrap();
    let stream = jetstream::new(client).get_stream(format!("{cluster}-keys")).await.unwrap();
    let state = stream.cached_info().state.clone();
    let mut rows = Vec::new();
    for sequence in state.first_sequence..=state.last_sequence {
        // Earlier versions of a row are gone.
        if let Ok(row) = stream.get_raw_message(sequence).await {
            rows.push(serde_json::from_slice(&row.payload).unwrap());
        }
    }
    rows
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_limit_of_keys_each_key_gets_the_id_of_its_task() {
    let (dir, replica) = (tempfile::tempdir().unwrap(), Replica::start().await);
    let cluster = format!("keys-{}", fastrand::u32(..));
    let most = KEYS.to_string();
    let args = ["--store", shared(), "--cluster", &cluster, "--idempotency-keys", &most];
    let daemon = Daemon::start_on(&dir.path().join("a"), &args).await;
    let body = |key: u64| set(&format!("k{key}"), "value", &[&replica]);
    let mut answers = Vec::new();
    for key in 0..KEYS {
        let (status, answer) = post(&daemon, key, &body(key)).await;
        assert_eq!(status, 202, "{answer}");
        answers.push(answer);
    }
    let (status, answer) = post(&daemon, KEYS, &body(KEYS)).await;
    assert_eq!(status, 503, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("--idempotency-keys"), "{answer}");
    // Without its id, a key would be forgotten as soon as its task is settled.
    wait_until("each key has its id", || async {
        let rows = rows(&cluster).await;
        let bound = rows.iter().filter(|row| row["id"].is_u64()).count() as u64;
        (bound == KEYS).then_some(())
    })
    .await;
    for (key, answer) in (0..KEYS).zip(answers) {
        assert_eq!(post(&daemon, key, &body(key)).await, (202, answer));
    }
}
