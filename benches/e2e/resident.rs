//! Resident memory over compactions of the store and after an outage.

use std::time::Duration;

use crate::load::{Client, post};
use crate::roles::Process;

const COMPACTIONS: f64 = 20.0;
const ROUND: Duration = Duration::from_millis(500);
/// Time for the memory to settle after the last delivery.
const QUIET: Duration = Duration::from_secs(15);
const SMALL: u64 = 20_000;
const BACKLOG: u64 = 200_000;

const FLAGS: &[&str] =
    &["--queue-capacity", "50000000", "--retry-capacity", "50000000", "--queue-max-bytes", "64GiB"];

/// Backlogs of 4 KiB writes until the store was compacted 20 times, then an outage of one replica with
/// a backlog of 200,000 writes, and the memory after its recovery.
pub async fn resident() {
    println!("\nresident: {COMPACTIONS} compactions, then an outage with {BACKLOG} writes queued");
    if let Ok(baseline) = std::env::var("E2E_BASELINE") {
        one(&baseline).await;
    }
    one(env!("CARGO_BIN_EXE_replicator")).await;
}

async fn one(binary: &str) {
    println!("  {binary}");
    let replicas = [Process::role("null-replica"), Process::role("null-replica")];
    let nodes: Vec<_> = replicas.iter().map(|replica| replica.address.clone()).collect();
    let daemon = Process::daemon_at(binary, FLAGS);
    let mut client = Client::connect(&daemon.address).await;
    println!("    at the start: {} MiB", daemon.resident_mib());
    let value = "x".repeat(4096);
    let paused = format!("/v1/replicas/{}/", nodes[0].replace(':', "%3A"));
    // A replica that no write has named cannot be paused.
    write(&daemon, &nodes, &value, 0, Duration::from_millis(10)).await;
    let mut round = 1;
    let mut shown = 0.0;
    while shown < COMPACTIONS {
        // A compaction is due when the file is much larger than its contents.
        backlog(&daemon, &mut client, &paused, &nodes, &value, &mut round, SMALL).await;
        let compactions = compacted(&mut client, shown).await;
        if (compactions / 5.0).floor() > (shown / 5.0).floor() {
            println!("    after {compactions} compactions: {} MiB", daemon.resident_mib());
        }
        shown = compactions;
    }
    drained(&mut client).await;
    tokio::time::sleep(QUIET).await;
    let before = daemon.resident_mib();
    println!("    before the outage, all delivered: {before} MiB");
    // The daemon has closed the idle connection by now.
    let mut client = Client::connect(&daemon.address).await;

    let peak = backlog(&daemon, &mut client, &paused, &nodes, &value, &mut round, BACKLOG).await;
    println!("    with {BACKLOG} deliveries pending: {peak} MiB");
    tokio::time::sleep(QUIET).await;
    let after = daemon.resident_mib();
    println!(
        "    after the outage, all delivered: {after} MiB, {:.2} times what it was before",
        after as f64 / before as f64
    );
}

/// Pauses a replica until `size` deliveries are pending, resumes it and waits until all are
/// delivered. Returns the resident memory at the peak, in MiB.
async fn backlog(
    daemon: &Process,
    client: &mut Client,
    paused: &str,
    nodes: &[String],
    value: &str,
    round: &mut u64,
    size: u64,
) -> u64 {
    assert!(client.post(&format!("{paused}pause"), "{}").await < 300, "the replica is paused");
    while (client.figure("replicator_deliveries_pending").await as u64) < size {
        write(daemon, nodes, value, *round, ROUND).await;
        *round += 1;
    }
    let resident = daemon.resident_mib();
    assert!(client.post(&format!("{paused}resume"), "{}").await < 300, "it is resumed");
    drained(client).await;
    resident
}

async fn compacted(client: &mut Client, before: f64) -> f64 {
    loop {
        let compactions = client.figure("replicator_store_rewrites_total").await;
        if compactions > before {
            return compactions;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn write(daemon: &Process, nodes: &[String], value: &str, round: u64, time: Duration) {
    let (nodes, value) = (nodes.to_vec(), value.to_owned());
    let make = move |connection: usize, n: u64| {
        format!(
            r#"{{"key":"user/{round}/{connection}/{n}","value":"{value}","value_encoding":"raw","operation":"SET","replica_nodes":["http://{}","http://{}"]}}"#,
            nodes[0], nodes[1]
        )
    };
    post(&daemon.address, 64, time, make).await;
}

async fn drained(client: &mut Client) {
    while client.figure("replicator_deliveries_pending").await > 0.0 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
