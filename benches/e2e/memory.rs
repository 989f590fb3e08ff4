//! A million queued tasks: their memory, and the time of a restart.

use std::time::{Duration, Instant};

use crate::load::{Client, post};
use crate::roles::Process;

const TASKS: u64 = 1_000_000;

/// Fills the queue with tasks of 1 KiB for two silent replicas, measures the daemon's memory, kills
/// and restarts it.
pub async fn memory() {
    println!("\nmemory: {TASKS} queued tasks of 1 KiB to two silent replicas");
    let silent = [Process::role("silent-replica"), Process::role("silent-replica")];
    let nodes: Vec<_> = silent.iter().map(|replica| replica.address.clone()).collect();
    let mut daemon = Process::daemon(crate::parts::WIDE);
    let idle = daemon.resident_mib();
    let value = "x".repeat(1024);
    let started = Instant::now();
    let mut made = 0;
    while made < TASKS {
        let (nodes, value) = (nodes.clone(), value.clone());
        let make = move |connection: usize, n: u64| {
            format!(
                r#"{{"key":"user/{made}/{connection}/{n}","value":"{value}","value_encoding":"raw","operation":"SET","replica_nodes":["http://{}","http://{}"]}}"#,
                nodes[0], nodes[1]
            )
        };
        post(&daemon.address, 64, Duration::from_secs(5), make).await;
        made = queued(&daemon.address).await;
    }
    let took = started.elapsed();
    println!("  {made} accepted in {:.0} s", took.as_secs_f64());
    println!("  resident: {idle} MiB empty, {} MiB with all of them", daemon.resident_mib());
    let started = Instant::now();
    daemon.kill_and_restart();
    let took = started.elapsed();
    let restored = queued(&daemon.address).await;
    assert_eq!(restored, made, "tasks were lost in the restart");
    println!("  restart after kill -9: ready in {:.1} s with {restored} tasks", took.as_secs_f64());
    println!("  resident after the restart: {} MiB", daemon.resident_mib());
}

async fn queued(address: &str) -> u64 {
    let metrics = Client::connect(address).await.get("/metrics").await;
    let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap();
    metrics["queue_size"].as_u64().unwrap()
}
