//! `--workers auto` against fixed numbers, for a distant, a near and an easily overloaded replica.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::load::{Client, percentile_ms, post};
use crate::node::{Node, Way, since_start, stamped};
use crate::roles::Process;

const TIME: Duration = Duration::from_secs(15);
/// Time before the measurement, in which `auto` finds its limit.
const SETTLING: Duration = Duration::from_secs(7);

pub async fn auto() {
    println!(
        "\nauto: one replica, all that 64 connections can post, {TIME:?} each, counted after {SETTLING:?}"
    );
    println!(
        "  {:<32} {:>8} {:>13} {:>13} {:>13} {:>6}",
        "the replica", "workers", "deliveries/s", "its p50 ms", "its p99 ms", "limit"
    );
    for (name, way) in [
        ("20 ms away", Way::After(Duration::from_millis(20))),
        ("at once, 0.1 ms over loopback", Way::AtOnce),
        ("8 at once for 10 ms, others wait", overloaded()),
    ] {
        for workers in ["5", "64", "auto"] {
            // Each run with its own semaphore.
            let way = if matches!(way, Way::Limited(..)) { overloaded() } else { way.clone() };
            one(name, way, workers).await;
        }
    }
}

fn overloaded() -> Way {
    Way::Limited(Arc::new(Semaphore::new(8)), Duration::from_millis(10))
}

async fn one(name: &str, way: Way, workers: &str) {
    let node = Node::start(way).await;
    let daemon = Process::daemon(&["--workers", workers, "--queue-wait", "10s"]);
    let (address, started) = (node.address.clone(), since_start());
    let load = post(&daemon.address, 64, TIME, move |connection, n| {
        stamped((connection as u64) << 32 | n, &[&address])
    });
    let limit = async {
        tokio::time::sleep(TIME - Duration::from_secs(1)).await;
        Client::connect(&daemon.address).await.figure("replicator_replica_workers").await
    };
    let (_, limit) = tokio::join!(load, limit);
    let counted = started + SETTLING..started + TIME;
    let mut seen = node.take_seen();
    seen.retain(|one| counted.contains(&one.at));
    let took: Vec<_> = seen.iter().map(|one| one.took).collect();
    println!(
        "  {name:<32} {workers:>8} {:>13.0} {:>13.2} {:>13.2} {limit:>6.0}",
        seen.len() as f64 / (TIME - SETTLING).as_secs_f64(),
        percentile_ms(took.clone(), 50),
        percentile_ms(took, 99),
    );
}
