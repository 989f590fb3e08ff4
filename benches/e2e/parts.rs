//! Throughput of accepts, throughput of deliveries, and the latency of strong writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::load::{Client, Round, post};
use crate::roles::Process;

const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(2);

pub const WIDE: &[&str] = &[
    "--queue-capacity",
    "50000000",
    "--retry-capacity",
    "50000000",
    "--queue-max-bytes",
    "64GiB",
    "--request-timeout",
    "10m",
];

pub fn body(consistency: &str, key: &str, nodes: &[&str]) -> String {
    let nodes: Vec<_> = nodes.iter().map(|node| format!("\"http://{node}\"")).collect();
    let value = "dmFsdWUgdmFsdWUgdmFsdWUgdmFsdWUgdmFsdWUgdmFsdWUgdmFsdWUgdmFsdWUgdmFsdWUgdmFsdWUg";
    format!(
        r#"{{"key":"{key}","value":"{value}","operation":"SET","ttl":0,"consistency":"{consistency}","primary_node":"http://127.0.0.1:1","replica_nodes":[{}],"user_id":"bench"}}"#,
        nodes.join(",")
    )
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The results of `run(false)` and `run(true)`. The order alternates by round, because a run leaves
/// work behind for the next one and the speed of the machine drifts.
pub async fn in_turn<T>(round: usize, run: impl AsyncFn(bool) -> T) -> [T; 2] {
    if round.is_multiple_of(2) {
        let without = run(false).await;
        [without, run(true).await]
    } else {
        let with = run(true).await;
        [run(false).await, with]
    }
}

fn micros(rounds: &[Round], percent: usize) -> f64 {
    median(rounds.iter().map(|r| r.percentile(percent).as_secs_f64() * 1e6).collect())
}

/// Durable `202`s per second, compared with the null handler. The replicas never answer, so that only
/// accepting is measured.
pub async fn accept() {
    println!("\naccept: durable 202s, two silent replicas, {ROUNDS} rounds of {ROUND:?} each");
    println!(
        "{:>11} {:>12} {:>12} {:>7} {:>11} {:>11} {:>11}",
        "connections", "null /s", "durable /s", "ratio", "null p50", "p50", "p99"
    );
    let silent = [Process::role("silent-replica"), Process::role("silent-replica")];
    let nodes: Vec<_> = silent.iter().map(|replica| replica.address.clone()).collect();
    for connections in [1, 16, 64, 256] {
        let null = Process::role("null-handler");
        let daemon = Process::daemon(WIDE);
        let (mut nulls, mut durables) = (vec![], vec![]);
        for round in 0..ROUNDS {
            for (address, rounds) in [(&null.address, &mut nulls), (&daemon.address, &mut durables)]
            {
                let nodes = nodes.clone();
                let make = move |connection: usize, n: u64| {
                    let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
                    body("eventual", &format!("k-{round}-{connection}-{n}"), &nodes)
                };
                rounds.push(post(address, connections, ROUND, make).await);
            }
        }
        assert!(durables.iter().all(|round| round.refused == 0), "no write is rejected");
        let rate = |rounds: &[Round]| median(rounds.iter().map(|round| round.rate).collect());
        let ratio = nulls.iter().zip(&durables).map(|(null, ours)| ours.rate / null.rate);
        println!(
            "{connections:>11} {:>12.0} {:>12.0} {:>7.2} {:>8.0} us {:>8.0} us {:>8.0} us",
            rate(&nulls),
            rate(&durables),
            median(ratio.collect()),
            micros(&nulls, 50),
            micros(&durables, 50),
            micros(&durables, 99),
        );
    }
}

/// Deliveries per second to two replicas under full load, compared with a bare client against the same
/// null replica.
pub async fn deliver() {
    println!(
        "\ndeliver: two null replicas, 64 connections posting, {ROUNDS} rounds of {ROUND:?} each"
    );
    let replicas = [Process::role("null-replica"), Process::role("null-replica")];
    let nodes: Vec<_> = replicas.iter().map(|replica| replica.address.clone()).collect();
    let (mut bare, mut ours, mut accepted) = (vec![], vec![], vec![]);
    for round in 0..ROUNDS {
        bare.push(bare_client(&nodes[0], 64).await);
        let daemon = Process::daemon(&[]);
        let before = answered(&nodes).await;
        let started = Instant::now();
        let make = {
            let nodes = nodes.clone();
            move |connection: usize, n: u64| {
                let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
                body("eventual", &format!("k-{round}-{connection}-{n}"), &nodes)
            }
        };
        let load = post(&daemon.address, 64, ROUND, make).await;
        let writes = (answered(&nodes).await - before) as f64 / started.elapsed().as_secs_f64();
        ours.push(writes);
        accepted.push(load.rate);
    }
    let ratio = bare.iter().zip(&ours).map(|(bare, ours)| ours / bare).collect();
    println!("  bare reqwest client, 64 at once   {:>9.0} writes/s", median(bare));
    println!(
        "  replicator, default flags         {:>9.0} writes/s, accepting {:.0} tasks/s",
        median(ours),
        median(accepted)
    );
    println!("  ratio                             {:>9.2}", median(ratio));
}

async fn answered(nodes: &[String]) -> u64 {
    let mut sum = 0;
    for node in nodes {
        sum += Client::connect(node).await.get("/").await.parse::<u64>().unwrap();
    }
    sum
}

async fn bare_client(node: &str, at_once: usize) -> f64 {
    let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build().unwrap();
    let (stop, count) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let started = Instant::now();
    let loops: Vec<_> = (0..at_once)
        .map(|connection| {
            let (client, stop, count) = (client.clone(), Arc::clone(&stop), Arc::clone(&count));
            let url = format!("http://{node}/store/k-{connection}");
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let answer = client.put(&url).body(&b"value"[..]).send().await.unwrap();
                    assert!(answer.status().is_success());
                    answer.bytes().await.unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    tokio::time::sleep(ROUND).await;
    stop.store(true, Ordering::Relaxed);
    for one in loops {
        one.await.unwrap();
    }
    count.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64()
}

/// Latency of strong writes to two replicas, compared with a bare client that writes to both at once.
pub async fn strong() {
    println!(
        "\nstrong: two null replicas, beside a bare parallel fan-out, {ROUNDS} rounds of {ROUND:?} each"
    );
    println!(
        "{:>11} {:>11} {:>11} {:>11} {:>11} {:>9} {:>9}",
        "connections", "bare p50", "p50", "bare p99", "p99", "p50 ratio", "p99 ratio"
    );
    let replicas = [Process::role("null-replica"), Process::role("null-replica")];
    let nodes: Vec<_> = replicas.iter().map(|replica| replica.address.clone()).collect();
    for connections in [1, 16] {
        let daemon = Process::daemon(&[]);
        let (mut p50, mut p99, mut bare50, mut bare99) = (vec![], vec![], vec![], vec![]);
        for round in 0..ROUNDS {
            let times = fan_out(&nodes, connections).await;
            bare50.push(times[times.len() / 2].as_secs_f64() * 1e6);
            bare99.push(times[times.len() * 99 / 100].as_secs_f64() * 1e6);
            let nodes = nodes.clone();
            let make = move |connection: usize, n: u64| {
                let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
                body("strong", &format!("k-{round}-{connection}-{n}"), &nodes)
            };
            let load = post(&daemon.address, connections, ROUND, make).await;
            assert_eq!(load.refused, 0);
            p50.push(load.percentile(50).as_secs_f64() * 1e6);
            p99.push(load.percentile(99).as_secs_f64() * 1e6);
        }
        let ratio = |ours: &[f64], bare: &[f64]| {
            median(ours.iter().zip(bare).map(|(ours, bare)| ours / bare).collect())
        };
        let (ratio50, ratio99) = (ratio(&p50, &bare50), ratio(&p99, &bare99));
        println!(
            "{connections:>11} {:>8.0} us {:>8.0} us {:>8.0} us {:>8.0} us {ratio50:>9.2} {ratio99:>9.2}",
            median(bare50),
            median(p50),
            median(bare99),
            median(p99),
        );
    }
}

async fn fan_out(nodes: &[String], connections: usize) -> Vec<Duration> {
    let client = reqwest::Client::builder().no_proxy().tcp_nodelay(true).build().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let loops: Vec<_> = (0..connections)
        .map(|connection| {
            let (client, stop) = (client.clone(), Arc::clone(&stop));
            let urls: Vec<_> =
                nodes.iter().map(|node| format!("http://{node}/store/k-{connection}")).collect();
            tokio::spawn(async move {
                let mut times = vec![];
                while !stop.load(Ordering::Relaxed) {
                    let sent = Instant::now();
                    let put = |url: &String| client.put(url).body(&b"value"[..]).send();
                    let (a, b) = tokio::join!(put(&urls[0]), put(&urls[1]));
                    a.unwrap().bytes().await.unwrap();
                    b.unwrap().bytes().await.unwrap();
                    times.push(sent.elapsed());
                }
                times
            })
        })
        .collect();
    tokio::time::sleep(ROUND).await;
    stop.store(true, Ordering::Relaxed);
    let mut times = vec![];
    for one in loops {
        times.extend(one.await.unwrap());
    }
    times.sort_unstable();
    times
}
