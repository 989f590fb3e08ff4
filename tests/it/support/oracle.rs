//! Writers, and an oracle that looks at what the replicas were told after any number of crashes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::replica::Seen;
use super::{Behaviour, Daemon, Replica, client, wait_until};

/// So many write at once.
const WRITERS: u64 = 12;

/// So many keys are written to.
const KEYS: u64 = 24;

/// Retries are quick and do not end, so that whatever is missing in the end was lost.
pub const ARGS: &[&str] = &[
    // Short, so that what is left of a restart is soon over.
    "--settle-after",
    "500ms",
    "--retry-base",
    "20ms",
    "--max-retries",
    "1000",
    "--retry-capacity",
    "40",
    "--queue-wait",
    "5s",
];

/// A write that the daemon said it has.
#[derive(Clone, Debug)]
pub struct Accepted {
    pub key: String,
    pub task: u64,
    /// `None` is a DELETE.
    pub value: Option<String>,
}

/// From here on values have about 1 MiB.
const LARGE: u64 = 1_000_000_000;

/// A value that shows where it is torn: its number as often as its number says.
pub fn value(n: u64) -> String {
    let word = format!("<{n}>");
    let large = if n >= LARGE { 80_000 } else { 1 };
    word.repeat(large + usize::try_from(n * 37 % 4000).unwrap())
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

/// Several writers, until they are told to stop or the daemon is gone; what they had accepted.
#[derive(Clone, Default)]
pub struct Traffic {
    numbers: Arc<AtomicU64>,
    accepted: Arc<Mutex<Vec<Accepted>>>,
}

impl Traffic {
    /// Starts writers to `daemon`.
    pub fn start(&self, daemon: &Daemon, nodes: &[String]) -> Vec<JoinHandle<()>> {
        let one = || {
            let (numbers, accepted) = (Arc::clone(&self.numbers), Arc::clone(&self.accepted));
            tokio::spawn(write(daemon.url("/replicate"), nodes.to_vec(), numbers, accepted))
        };
        (0..WRITERS).map(|_| one()).collect()
    }

    /// Writes about so many MiB, a key each.
    pub async fn write_large(&self, daemon: &Daemon, nodes: &[String], mib: u64) {
        for n in LARGE..LARGE + mib {
            let (key, value) = (format!("large/{n}"), Some(value(n)));
            let body = json!({
                "key": key, "value": value, "value_encoding": "raw", "operation": "SET",
                "replica_nodes": nodes,
            });
            let task = daemon.accept(&body).await;
            self.accepted.lock().unwrap().push(Accepted { key, task, value });
        }
    }

    /// How many writes were accepted.
    pub fn count(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }

    pub async fn until_accepted(&self, count: usize) {
        let enough = || async { (self.count() >= count).then_some(()) };
        wait_until("enough is accepted", enough).await;
    }

    /// Every write that was accepted.
    pub fn accepted(&self) -> Vec<Accepted> {
        self.accepted.lock().unwrap().clone()
    }
}

/// Waits until every delivery is settled, and none of them by giving up.
pub async fn until_all_is_delivered(daemon: &Daemon) {
    wait_until("everything is delivered", || async {
        let metrics = daemon.metrics().await;
        let left = ["queue_size", "retries_in_progress", "dead_letters"];
        left.iter().all(|name| metrics[name] == 0).then_some(())
    })
    .await;
    assert_eq!(daemon.metrics().await["permanent_failures"], 0);
}

/// Fails a tenth of the time, in every way there is.
pub async fn moody_replica(seed: usize) -> Replica {
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

pub fn judge(replica: &Replica, accepted: &[Accepted], lives: &[usize]) {
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
        let highest = applied.map(Seen::sequence).max().unwrap();
        assert_eq!(last.sequence(), highest, "{key}: a stale write came last");
        // A newer one may have been accepted without its answer reaching anyone.
        assert!(last.sequence() >= write.task, "{key}: {} was lost", write.task);
        if last.sequence() == write.task {
            let held = (last.method == "PUT").then(|| last.text());
            assert_eq!(held, write.value, "{key}");
        }
    }
}
