//! The daemon is killed again and again in the middle of traffic, and an oracle looks at what
//! the replicas were told.
//!
//! `CRASH_ROUNDS=200 cargo test --release --test crash` runs it for longer.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stderr,
    unreachable_pub,
    dead_code,
    missing_docs,
    reason = "tests fail by panicking"
)]

#[path = "it"]
mod it {
    pub mod support;
}

use it::support;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use support::{Behaviour, Daemon, Replica, client, wait_until};

const KEYS: u64 = 24;
const WRITERS: u64 = 12;

/// Retries are quick and do not end, so that whatever is missing in the end was lost.
const ARGS: &[&str] = &[
    "--retry-base",
    "20ms",
    "--max-retries",
    "1000",
    "--retry-capacity",
    "40",
    "--request-timeout",
    "500ms",
    "--queue-wait",
    "5s",
];

/// A write that the daemon said it has.
#[derive(Clone, Debug)]
struct Accepted {
    key: String,
    task: u64,
    /// `None` is a DELETE.
    value: Option<String>,
}

/// A value that shows where it is torn: its number as often as its number says.
fn value(n: u64) -> String {
    let word = format!("<{n}>");
    word.repeat(1 + usize::try_from(n * 37 % 4000).unwrap())
}

fn is_whole(text: &str) -> bool {
    let Some(end) = text.find('>') else { return false };
    let n = text[1..end].parse().unwrap_or(0);
    text == value(n)
}

fn body(n: u64, nodes: &[String]) -> (Value, String, Option<String>) {
    let key = format!("key/{}", fastrand::u64(..KEYS));
    let value = (!n.is_multiple_of(7)).then(|| value(n));
    let body = json!({
        "key": key,
        "value": value,
        "value_encoding": "raw",
        "operation": if value.is_some() { "SET" } else { "DELETE" },
        "consistency": if n.is_multiple_of(11) { "strong" } else { "eventual" },
        "replica_nodes": nodes,
    });
    (body, key, value)
}

/// Posts until it is told to stop or the daemon is gone.
async fn write(
    url: String,
    nodes: Vec<String>,
    numbers: Arc<AtomicU64>,
    accepted: Arc<Mutex<Vec<Accepted>>>,
) {
    let client = client();
    loop {
        let n = numbers.fetch_add(1, Ordering::Relaxed);
        let (body, key, value) = body(n, &nodes);
        let Ok(answer) = client.post(&url).json(&body).send().await else { return };
        let Ok(answer) = answer.json::<Value>().await else { return };
        if let Some(task) = answer["task_id"].as_str() {
            let task = task.parse().unwrap();
            accepted.lock().unwrap().push(Accepted { key, task, value });
        }
    }
}

/// Fails a tenth of the time, in every way there is.
async fn moody_replica(seed: usize) -> Replica {
    let calls = AtomicUsize::new(seed);
    Replica::with(move |_| match calls.fetch_add(7, Ordering::Relaxed) % 100 {
        0..3 => Behaviour::Answer(503, "", "busy"),
        3..6 => Behaviour::ApplyAndReset,
        6..8 => Behaviour::Reset,
        8..10 => Behaviour::Garbage,
        10..40 => Behaviour::ApplyAfter(Duration::from_millis(1)),
        _ => Behaviour::Apply,
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_was_accepted_survives_every_kill_and_nothing_stale_wins() {
    let rounds = std::env::var("CRASH_ROUNDS").map_or(10, |rounds| rounds.parse().unwrap());
    let replicas = [Replica::start().await, moody_replica(0).await, moody_replica(3).await];
    let nodes: Vec<_> = replicas.iter().map(Replica::url).collect();
    let mut daemon = Daemon::start(ARGS).await;
    let numbers = Arc::new(AtomicU64::new(1));
    let accepted = Arc::new(Mutex::new(Vec::new()));
    // Where in each replica's memory a life of the daemon began.
    let mut lives = vec![vec![0; replicas.len()]];

    for round in 0..rounds {
        let before = accepted.lock().unwrap().len();
        let writers: Vec<_> = (0..WRITERS)
            .map(|_| {
                let (url, nodes) = (daemon.url("/replicate"), nodes.clone());
                tokio::spawn(write(url, nodes, Arc::clone(&numbers), Arc::clone(&accepted)))
            })
            .collect();
        let enough = before + 40 + fastrand::usize(..400);
        wait_until("enough is accepted", || async {
            (accepted.lock().unwrap().len() >= enough).then_some(())
        })
        .await;
        if round % 4 == 3 {
            replicas[2].stop();
        }
        daemon.kill();
        for writer in writers {
            writer.await.unwrap();
        }
        for replica in &replicas {
            replica.until_quiet().await;
        }
        lives.push(replicas.iter().map(|replica| replica.seen().len()).collect());
        if round % 4 == 3 {
            replicas[2].come_back().await;
        }
        daemon.restart().await;
    }

    wait_until("everything is delivered", || async {
        let metrics = daemon.metrics().await;
        let left = ["queue_size", "retries_in_progress", "dead_letters"];
        left.iter().all(|name| metrics[name] == 0).then_some(())
    })
    .await;
    assert_eq!(daemon.metrics().await["permanent_failures"], 0);
    let accepted = accepted.lock().unwrap().clone();
    eprintln!("{rounds} kills, {} writes accepted", accepted.len());
    for (n, replica) in replicas.iter().enumerate() {
        let lives: Vec<_> = lives.iter().map(|life| life[n]).collect();
        judge(replica, &accepted, &lives);
    }
}

fn judge(replica: &Replica, accepted: &[Accepted], lives: &[usize]) {
    let seen = replica.seen();
    for request in seen.iter().filter(|request| request.method == "PUT") {
        assert!(is_whole(&request.text()), "torn: {:.60}", request.text());
    }
    for (n, &begin) in lives.iter().enumerate() {
        let end = lives.get(n + 1).copied().unwrap_or(seen.len());
        let mut newest = HashMap::new();
        for request in &seen[begin..end] {
            let newest = newest.entry(request.key()).or_insert(0);
            assert!(
                request.sequence() >= *newest,
                "{} is sent {} after {newest}, in life {n}",
                request.key(),
                request.sequence(),
            );
            *newest = request.sequence();
        }
    }
    let mut newest: HashMap<&str, &Accepted> = HashMap::new();
    for write in accepted {
        let newest = newest.entry(&write.key).or_insert(write);
        if write.task > newest.task {
            *newest = write;
        }
    }
    for (key, write) in newest {
        let applied = seen.iter().filter(|request| request.applied && request.key() == key);
        let last = applied.clone().next_back().unwrap_or_else(|| panic!("{key} never arrived"));
        let highest = applied.map(support::replica::Seen::sequence).max().unwrap();
        assert_eq!(last.sequence(), highest, "{key}: a stale write came last");
        // A newer one may have been accepted without its answer reaching anyone.
        assert!(last.sequence() >= write.task, "{key}: {} was lost", write.task);
        if last.sequence() == write.task {
            let held = (last.method == "PUT").then(|| last.text());
            assert_eq!(held, write.value, "{key}");
        }
    }
}
