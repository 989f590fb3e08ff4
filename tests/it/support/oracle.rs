//! Writers, and an oracle that checks what the replicas received after any number of crashes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::replica::Seen;
use super::{Behaviour, Daemon, Replica, client, wait_until};

/// Number of concurrent writers.
const WRITERS: u64 = 12;

/// Writes per batch.
const BATCH: usize = 40;

/// Number of keys.
const KEYS: u64 = 24;

/// Retries are quick and do not end, so that a missing write is a lost write.
pub const ARGS: &[&str] = &[
    // Short, so that late applies after a restart end soon.
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

/// A write that the daemon accepted.
#[derive(Clone, Debug)]
pub struct Accepted {
    /// The number of the write. A write that was repeated with its idempotency key appears twice.
    pub n: u64,
    pub key: String,
    pub task: u64,
    /// `None` is a DELETE.
    pub value: Option<String>,
}

/// Values from this number on have about 1 MiB.
const LARGE: u64 = 1_000_000_000;

/// A value whose truncation is detectable: it repeats its number that many times.
pub fn value(n: u64) -> String {
    let word = format!("<{n}>");
    let large = if n >= LARGE { 80_000 } else { 1 };
    word.repeat(large + usize::try_from(n * 37 % 4000).unwrap())
}

/// The number of the write with this value; `None` if the value is torn.
fn number(text: &str) -> Option<u64> {
    let n = text.strip_prefix('<')?.split_once('>')?.0.parse().ok()?;
    (text == value(n)).then_some(n)
}

/// A write of a client.
#[derive(Clone)]
struct Write {
    n: u64,
    key: String,
    value: Option<String>,
    body: Value,
}

impl Write {
    fn new(n: u64, key: String, nodes: &[String]) -> Self {
        let value = (!n.is_multiple_of(7)).then(|| value(n));
        let body = json!({
            "key": key,
            "value": value,
            "value_encoding": "raw",
            "operation": if value.is_some() { "SET" } else { "DELETE" },
            "consistency": if n.is_multiple_of(11) { "strong" } else { "eventual" },
            "replica_nodes": nodes,
        });
        Self { n, key, value, body }
    }

    /// The body with its own idempotency key, as a write of a batch.
    fn keyed(mut self) -> Self {
        self.body["idempotency_key"] = json!(format!("write-{}", self.n));
        self
    }
}

/// Several writers and their accepted writes. They write until a stop or the end of the daemon.
#[derive(Clone, Default)]
pub struct Traffic {
    numbers: Arc<AtomicU64>,
    accepted: Arc<Mutex<Vec<Accepted>>>,
    /// The last batch with idempotency keys. It is repeated after the restart, as by a client that
    /// received no answer.
    batch: Arc<Mutex<Vec<Write>>>,
}

impl Traffic {
    /// Repeats the last batch, which a kill may have cut, and starts writers to `daemon`.
    pub async fn start(&self, daemon: &Daemon, nodes: &[String]) -> Vec<JoinHandle<()>> {
        let (single, batch) = (daemon.url("/replicate"), daemon.url("/v1/replicate/batch"));
        let last = self.batch.lock().unwrap().clone();
        if !last.is_empty() {
            // If this batch kills the daemon at a fault point, it is repeated after the next
            // restart.
            let _ = self.post_batch(&client(), &batch, &last).await;
        }
        let mut writers: Vec<_> = (0..WRITERS)
            .map(|_| tokio::spawn(self.clone().write(single.clone(), nodes.to_vec())))
            .collect();
        writers.push(tokio::spawn(self.clone().write_batches(batch, nodes.to_vec())));
        writers
    }

    fn number(&self) -> u64 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// Posts until a stop or the end of the daemon.
    async fn write(self, url: String, nodes: Vec<String>) {
        let client = client();
        loop {
            let key = format!("key/{}", fastrand::u64(..KEYS));
            let write = Write::new(self.number(), key, &nodes);
            let Ok(answer) = client.post(&url).json(&write.body).send().await else { return };
            let Ok(answer) = answer.json::<Value>().await else { return };
            self.note(write, &answer);
        }
    }

    /// The same with batches; each write has an idempotency key.
    async fn write_batches(self, url: String, nodes: Vec<String>) {
        let client = client();
        loop {
            let one = |at| Write::new(self.number(), format!("batch/{at}"), &nodes).keyed();
            let batch: Vec<_> = (0..BATCH).map(one).collect();
            self.batch.lock().unwrap().clone_from(&batch);
            if self.post_batch(&client, &url, &batch).await.is_err() {
                return;
            }
        }
    }

    async fn post_batch(
        &self,
        client: &reqwest::Client,
        url: &str,
        batch: &[Write],
    ) -> reqwest::Result<()> {
        let bodies: Vec<_> = batch.iter().map(|write| &write.body).collect();
        let answer: Value = client.post(url).json(&bodies).send().await?.json().await?;
        let Some(answers) = answer["answers"].as_array() else {
            // Rejected completely, as by a daemon that shuts down.
            assert!(answer["error"].is_string(), "{answer}");
            return Ok(());
        };
        assert_eq!(answers.len(), batch.len());
        for (write, answer) in batch.iter().zip(answers) {
            self.note(write.clone(), &answer["body"]);
        }
        Ok(())
    }

    /// Records the accepted writes.
    fn note(&self, Write { n, key, value, .. }: Write, answer: &Value) {
        if let Some(task) = answer["task_id"].as_str() {
            let task = task.parse().unwrap();
            self.accepted.lock().unwrap().push(Accepted { n, key, task, value });
        }
    }

    /// Writes about `mib` MiB, each write to its own key.
    pub async fn write_large(&self, daemon: &Daemon, nodes: &[String], mib: u64) {
        for n in LARGE..LARGE + mib {
            let (key, value) = (format!("large/{n}"), Some(value(n)));
            let body = json!({
                "key": key, "value": value, "value_encoding": "raw", "operation": "SET",
                "replica_nodes": nodes,
            });
            let task = daemon.accept(&body).await;
            self.accepted.lock().unwrap().push(Accepted { n, key, task, value });
        }
    }

    /// The number of accepted writes.
    pub fn count(&self) -> usize {
        self.accepted.lock().unwrap().len()
    }

    pub async fn until_accepted(&self, count: usize) {
        let enough = || async { (self.count() >= count).then_some(()) };
        wait_until("enough writes are accepted", enough).await;
    }

    /// Every accepted write.
    pub fn accepted(&self) -> Vec<Accepted> {
        self.accepted.lock().unwrap().clone()
    }
}

/// Waits until every delivery is settled, and asserts that none was given up.
pub async fn until_all_is_delivered(daemon: &Daemon) {
    wait_until("everything is delivered", || async {
        let metrics = daemon.metrics().await;
        let left = ["queue_size", "retries_in_progress", "dead_letters"];
        left.iter().all(|name| metrics[name] == 0).then_some(())
    })
    .await;
    assert_eq!(daemon.metrics().await["permanent_failures"], 0);
}

/// Fails one request in ten, in every possible way.
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
    // A write is one task, however often its client repeats it.
    let mut tasks: HashMap<u64, u64> =
        accepted.iter().rev().map(|write| (write.n, write.task)).collect();
    for write in accepted {
        assert_eq!(tasks[&write.n], write.task, "{} was repeated: a second task", write.key);
    }
    for request in seen.iter().filter(|request| request.method == "PUT") {
        let n = number(&request.text()).unwrap_or_else(|| panic!("torn: {:.60}", request.text()));
        let task = *tasks.entry(n).or_insert(request.sequence());
        assert_eq!(task, request.sequence(), "{} arrived as a second task", request.key());
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
        // A newer write may have been accepted without an answer to its client.
        assert!(last.sequence() >= write.task, "{key}: {} was lost", write.task);
        if last.sequence() == write.task {
            let held = (last.method == "PUT").then(|| last.text());
            assert_eq!(held, write.value, "{key}");
        }
    }
}
