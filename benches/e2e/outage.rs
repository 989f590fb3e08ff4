//! A replica that is down for a minute under load.

use std::collections::HashSet;
use std::time::Duration;

use crate::load::{Client, Paced, percentile_ms};
use crate::node::{Node, Seen, Way, since_start, stamped};
use crate::roles::Process;

const A_SECOND: u64 = 500;
/// Longest time to wait until the replica has caught up.
const PATIENCE: Duration = Duration::from_secs(400);

fn down_for() -> Duration {
    let seconds = std::env::var("E2E_OUTAGE_SECONDS").ok().map_or(60, |text| text.parse().unwrap());
    Duration::from_secs(seconds)
}

pub async fn outage() {
    let time = down_for();
    println!(
        "\noutage: {A_SECOND} writes/s, each for three replicas, one of them down for {time:?}"
    );
    one(&[]).await;
    one(&["--redrive-rate", "2000"]).await;
}

async fn one(flags: &[&str]) {
    println!("  flags: {}", if flags.is_empty() { "default".into() } else { flags.join(" ") });
    let healthy = [Node::start(Way::AtOnce).await, Node::start(Way::AtOnce).await];
    let mut node = Node::start(Way::AtOnce).await;
    let nodes: Vec<_> = healthy.iter().chain([&node]).map(|node| node.address.clone()).collect();
    let daemon = Process::daemon(flags);
    let load = Paced::start(&daemon.address, A_SECOND, move |n| {
        let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
        Some(stamped(n, &nodes))
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    let down = since_start();
    node.go_down().await;
    tokio::time::sleep(down_for()).await;
    let mut client = Client::connect(&daemon.address).await;
    let letters = client.figure("replicator_deliveries_dead").await;
    let parked = client.figure("replicator_deliveries_parked").await;
    let pending = client.figure("replicator_deliveries_pending").await;
    println!(
        "    when it is back: {letters:.0} dead letters, {pending:.0} pending, {parked:.0} of them parked"
    );
    node.come_back();
    let back = since_start();
    let caught_up = catch_up(&mut client, back).await;
    let posted = load.stop().await;
    let end = since_start();
    let seen = settled(&node, &posted.iter().map(|one| one.n).collect()).await;

    let accepted: HashSet<_> = posted.iter().filter(|w| w.status == 202).map(|w| w.n).collect();
    println!("    writes refused: {} of {}", posted.len() - accepted.len(), posted.len());
    let missed = |one: &&Seen| one.applied && one.at >= back && one.at - one.since_post < back;
    let first = seen.iter().filter(|one| one.at >= back).map(|one| one.at).min();
    let last = seen.iter().filter(missed).map(|one| one.at).max();
    let late = |at: Option<Duration>| at.map_or(f64::NAN, |at| (at - back).as_secs_f64());
    println!(
        "    first request after {:.1} s, last missed write after {:.1} s, no dead letter left after {:.1} s",
        late(first),
        late(last),
        late(caught_up)
    );
    let had: HashSet<_> = seen.iter().filter(|one| one.applied).map(|one| one.n).collect();
    println!(
        "    accepted writes that it lacks: {}; requests per applied write: {:.2}",
        accepted.difference(&had).count(),
        seen.len() as f64 / had.len() as f64
    );
    let mut seconds = vec![0_u64; (end - back).as_secs() as usize + 1];
    for one in seen.iter().filter(|one| one.at >= back) {
        if let Some(second) = seconds.get_mut((one.at - back).as_secs() as usize) {
            *second += 1;
        }
    }
    let busiest = seconds.iter().max().unwrap();
    println!(
        "    requests per second: at most {busiest}; the first seconds: {:?}",
        &seconds[..seconds.len().min(15)]
    );
    let seen_by_healthy: Vec<_> = healthy.iter().flat_map(Node::take_seen).collect();
    for (phase, from, to) in
        [("before", Duration::ZERO, down), ("during", down, back), ("after", back, end)]
    {
        let of = |seen: &[Seen]| -> Vec<Duration> {
            let within = seen.iter().filter(|one| {
                let posted = one.at.saturating_sub(one.since_post);
                posted >= from && posted < to
            });
            within.map(|one| one.since_post).collect()
        };
        let answers = posted.iter().filter(|one| one.at >= from && one.at < to);
        println!(
            "    {phase:<7} healthy replicas: delivered p50 {:>7.2} ms, p99 {:>7.2} ms; accepted p99 {:>7.2} ms{}",
            percentile_ms(of(&seen_by_healthy), 50),
            percentile_ms(of(&seen_by_healthy), 99),
            percentile_ms(answers.map(|one| one.took).collect(), 99),
            if phase == "after" {
                format!(
                    "; the replica that is back, new writes: p50 {:.2} ms, p99 {:.2} ms",
                    percentile_ms(of(&seen), 50),
                    percentile_ms(of(&seen), 99)
                )
            } else {
                String::new()
            }
        );
    }
}

async fn catch_up(client: &mut Client, back: Duration) -> Option<Duration> {
    while since_start() - back < PATIENCE {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let dead = client.figure("replicator_deliveries_dead").await;
        let waiting = client.figure("replicator_deliveries_waiting").await;
        let parked = client.figure("replicator_deliveries_parked").await;
        let pending = client.figure("replicator_deliveries_pending").await;
        if dead + waiting + parked == 0.0 && pending < 50.0 {
            return Some(since_start());
        }
    }
    None
}

/// The requests of the replica, until it has all `wanted` writes or 5 s have passed.
async fn settled(node: &Node, wanted: &HashSet<u64>) -> Vec<Seen> {
    let mut seen = node.take_seen();
    for _ in 0..50 {
        let had: HashSet<_> = seen.iter().map(|one| one.n).collect();
        if wanted.is_subset(&had) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        seen.extend(node.take_seen());
    }
    seen
}
