//! Writers that post to several instances and go on when one of them does not answer.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::support::wait_until;

const WRITERS: usize = 8;

/// Of each writer. No other one writes them, so the order of their writes is known.
const KEYS: u64 = 8;

/// A write that was acknowledged.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    /// Grows with each write of a writer.
    pub n: u64,
    pub key: String,
    pub task: u64,
    /// `None` is a DELETE.
    pub value: Option<String>,
}

/// Several writers and their acknowledged writes.
#[derive(Clone)]
pub struct Traffic {
    /// Where each instance listens.
    urls: Arc<Mutex<Vec<String>>>,
    nodes: Vec<String>,
    numbers: Arc<AtomicU64>,
    acknowledged: Arc<Mutex<Vec<Acknowledged>>>,
    unanswered: Arc<AtomicUsize>,
    stopped: Arc<AtomicBool>,
}

/// Writers that run until they are stopped.
pub struct Writers(Vec<JoinHandle<()>>, Arc<AtomicBool>);

impl Traffic {
    pub fn new(urls: Vec<String>, nodes: Vec<String>) -> Self {
        Self {
            urls: Arc::new(Mutex::new(urls)),
            nodes,
            numbers: Arc::default(),
            acknowledged: Arc::default(),
            unanswered: Arc::default(),
            stopped: Arc::default(),
        }
    }

    /// An instance listens elsewhere now.
    pub fn moved(&self, at: usize, url: String) {
        self.urls.lock().unwrap()[at] = url;
    }

    pub fn start(&self) -> Writers {
        self.stopped.store(false, Ordering::Relaxed);
        let writers = (0..WRITERS).map(|at| tokio::spawn(self.clone().write(at)));
        Writers(writers.collect(), Arc::clone(&self.stopped))
    }

    /// Each writer begins with another instance and keeps it until it does not answer.
    async fn write(self, writer: usize) {
        let mut at = writer;
        // A write that waits for a leader is answered after up to 10 s.
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .timeout(Duration::from_secs(15))
            .build()
            .unwrap();
        while !self.stopped.load(Ordering::Relaxed) {
            let n = self.numbers.fetch_add(1, Ordering::Relaxed);
            let key = format!("key/{writer}/{}", fastrand::u64(..KEYS));
            let value = (!n.is_multiple_of(9)).then(|| n.to_string());
            let body = json!({
                "key": key,
                "value": value,
                "value_encoding": "raw",
                "operation": if value.is_some() { "SET" } else { "DELETE" },
                "replica_nodes": self.nodes,
            });
            let url = {
                let urls = self.urls.lock().unwrap();
                format!("{}/replicate", urls[at % urls.len()])
            };
            let answer = match client.post(url).json(&body).send().await {
                Ok(answer) => answer.json::<Value>().await.unwrap_or_default(),
                Err(_) => Value::Null,
            };
            if let Some(task) = answer["task_id"].as_str() {
                let task = task.parse().unwrap();
                let mut acknowledged = self.acknowledged.lock().unwrap();
                acknowledged.push(Acknowledged { n, key, task, value });
            } else {
                self.unanswered.fetch_add(1, Ordering::Relaxed);
                // One of the others, so that not all writers end up at the same instance.
                at += 1 + fastrand::usize(..2);
                // A dead instance refuses at once.
                tokio::task::yield_now().await;
            }
        }
    }

    pub fn count(&self) -> usize {
        self.acknowledged.lock().unwrap().len()
    }

    /// Waits until this many more writes are acknowledged.
    pub async fn until_more(&self, more: usize) {
        let enough = self.count() + more;
        wait_until("more writes are acknowledged", || async {
            (self.count() >= enough).then_some(())
        })
        .await;
    }

    pub fn acknowledged(&self) -> Vec<Acknowledged> {
        self.acknowledged.lock().unwrap().clone()
    }

    /// Writes that may have been accepted without an answer, or were refused.
    pub fn unanswered(&self) -> usize {
        self.unanswered.load(Ordering::Relaxed)
    }
}

impl Writers {
    pub async fn stop(self) {
        self.1.store(true, Ordering::Relaxed);
        for writer in self.0 {
            writer.await.unwrap();
        }
    }
}
