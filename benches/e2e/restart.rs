//! The time of a restart after `kill -9`, by queue size: until ready, and until the first delivery.

use std::time::{Duration, Instant};

use crate::load::{Client, post};
use crate::parts::{WIDE, median};
use crate::roles::Process;

const DEPTHS: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];
const ROUNDS: usize = 3;
const CONNECTIONS: u64 = 64;

/// Fills the queue to each depth with tasks of 1 KiB for two silent replicas, then kills and restarts
/// the daemon in each round.
pub async fn restart() {
    println!("\nrestart: tasks of 1 KiB to two silent replicas, medians of {ROUNDS} restarts");
    println!(
        "{:>10} {:>12} {:>16} {:>10} {:>12}",
        "queued", "ready", "first delivery", "resident", "before kill"
    );
    let silent = [Process::role("silent-replica"), Process::role("silent-replica")];
    let nodes: Vec<_> = silent.iter().map(|replica| replica.address.clone()).collect();
    let mut daemon = Process::daemon(WIDE);
    for depth in DEPTHS {
        fill(&daemon.address, &nodes, depth).await;
        let queued = queued(&daemon.address).await;
        let before = daemon.resident_mib();
        let (mut ready, mut first, mut resident) = (vec![], vec![], vec![]);
        for _ in 0..ROUNDS {
            let seen = seen(&nodes).await;
            let started = Instant::now();
            daemon.kill_and_restart();
            ready.push(started.elapsed().as_secs_f64());
            until_more(&nodes, seen).await;
            first.push(started.elapsed().as_secs_f64());
            resident.push(daemon.resident_mib() as f64);
            let restored = self::queued(&daemon.address).await;
            assert_eq!(restored, queued, "tasks were lost in the restart");
        }
        println!(
            "{queued:>10} {:>9.0} ms {:>13.0} ms {:>6.0} MiB {before:>8} MiB",
            median(ready) * 1e3,
            median(first) * 1e3,
            median(resident)
        );
    }
}

async fn fill(address: &str, nodes: &[String], depth: u64) {
    let value = "x".repeat(1024);
    let mut made = queued(address).await;
    while made < depth {
        let (nodes, value) = (nodes.to_vec(), value.clone());
        let make = move |connection: usize, n: u64| {
            format!(
                r#"{{"key":"user/{made}/{connection}/{n}","value":"{value}","value_encoding":"raw","operation":"SET","replica_nodes":["http://{}","http://{}"]}}"#,
                nodes[0], nodes[1]
            )
        };
        // Short enough not to overshoot on any machine.
        let rest = Duration::from_micros((depth - made) * 40);
        let time = rest.clamp(Duration::from_millis(10), Duration::from_secs(5));
        let at_once = (depth - made).min(CONNECTIONS) as usize;
        post(address, at_once, time, make).await;
        made = queued(address).await;
    }
}

async fn queued(address: &str) -> u64 {
    let metrics = Client::connect(address).await.get("/metrics").await;
    let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap();
    metrics["queue_size"].as_u64().unwrap()
}

async fn seen(nodes: &[String]) -> u64 {
    let mut sum = 0;
    for node in nodes {
        sum += Client::connect(node).await.get("/").await.parse::<u64>().unwrap();
    }
    sum
}

async fn until_more(nodes: &[String], than: u64) {
    while seen(nodes).await <= than {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
