//! Throughput of accepts, throughput of deliveries, and the latency of strong writes.

use std::cell::Cell;
use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::latency::{Latency, beside_bare_commits};
use crate::load::{Client, Round, Target, post};
use crate::roles::Process;

pub const ROUNDS: usize = 5;
pub const ROUND: Duration = Duration::from_secs(2);

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

/// The results of `run(false)` and `run(true)`.
pub async fn in_turn<T>(round: usize, run: impl AsyncFn(bool) -> T) -> [T; 2] {
    in_rotation(round, async |which| run(which == 1).await).await
}

/// The results of `run(0)` to `run(N - 1)`. The order rotates by round, because a run leaves work
/// behind for the next one and the speed of the machine drifts.
pub async fn in_rotation<T, const N: usize>(round: usize, run: impl AsyncFn(usize) -> T) -> [T; N] {
    let mut results = [const { None }; N];
    for which in (0..N).map(|n| (n + round) % N) {
        results[which] = Some(run(which).await);
    }
    results.map(Option::unwrap)
}

pub fn micros(round: &Round, percent: usize) -> f64 {
    round.percentile(percent).as_secs_f64() * 1e6
}

/// The median of a figure.
pub fn of<T>(rounds: &[T], figure: impl Fn(&T) -> f64) -> f64 {
    median(rounds.iter().map(figure).collect())
}

/// Writes of `connections` for a round. `which` keeps its keys apart from those of other calls.
pub async fn write(
    target: impl Into<Target>,
    connections: usize,
    consistency: &'static str,
    nodes: &[String],
    which: impl Display,
) -> Round {
    let (nodes, which) = (nodes.to_vec(), which.to_string());
    let make = move |connection: usize, n: u64| {
        let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
        body(consistency, &format!("k-{which}-{connection}-{n}"), &nodes)
    };
    post(target, connections, ROUND, make).await
}

/// A round of each of the null handler and the daemon.
pub struct Accepts {
    pub null: Round,
    pub ours: Round,
}

impl Accepts {
    pub fn ratio(&self) -> f64 {
        self.ours.rate / self.null.rate
    }
}

/// Durable `202`s, compared with the null handler. The replicas never answer, so that only accepting
/// is measured.
pub async fn accepts(connections: usize) -> Vec<Accepts> {
    let silent = [Process::role("silent-replica"), Process::role("silent-replica")];
    let nodes: Vec<_> = silent.iter().map(|replica| replica.address.clone()).collect();
    let (null, daemon) = (Process::role("null-handler"), Process::daemon(WIDE));
    let mut rounds = vec![];
    for round in 0..ROUNDS {
        let [null, ours] = in_turn(round, async |ours| {
            let target = if ours { &daemon.address } else { &null.address };
            write(target, connections, "eventual", &nodes, round).await
        })
        .await;
        assert_eq!(ours.refused, 0, "no write is rejected");
        rounds.push(Accepts { null, ours });
    }
    rounds
}

pub async fn accept() {
    println!("\naccept: durable 202s, two silent replicas, {ROUNDS} rounds of {ROUND:?} each");
    println!(
        "{:>11} {:>12} {:>12} {:>7} {:>11} {:>11} {:>11}",
        "connections", "null /s", "durable /s", "ratio", "null p50", "p50", "p99"
    );
    for connections in [1, 16, 64, 256] {
        let rounds = accepts(connections).await;
        println!(
            "{connections:>11} {:>12.0} {:>12.0} {:>7.2} {:>8.0} us {:>8.0} us {:>8.0} us",
            of(&rounds, |round| round.null.rate),
            of(&rounds, |round| round.ours.rate),
            of(&rounds, Accepts::ratio),
            of(&rounds, |round| micros(&round.null, 50)),
            of(&rounds, |round| micros(&round.ours, 50)),
            of(&rounds, |round| micros(&round.ours, 99)),
        );
    }
    let Latency { bare, ours, ratio } = beside_bare_commits(ROUNDS).await;
    println!(
        "  one write at a time, p50 {ours:.0} us beside {bare:.0} us of a bare commit: {ratio:.2}   (aim: at most 1.5)"
    );
}

/// A round of deliveries, in writes per second.
pub struct Delivered {
    /// Of a bare client.
    pub bare: f64,
    /// That the replicas received.
    pub ours: f64,
    /// The same over HTTP/2.
    http2: f64,
    accepted: f64,
}

impl Delivered {
    pub fn ratio(&self) -> f64 {
        self.ours / self.bare
    }
}

/// Deliveries per second to two replicas under full load, compared with a bare client against the same
/// null replica.
pub async fn deliveries() -> Vec<Delivered> {
    let replicas = [Process::role("null-replica"), Process::role("null-replica")];
    let nodes: Vec<_> = replicas.iter().map(|replica| replica.address.clone()).collect();
    let mut rounds = vec![];
    for round in 0..ROUNDS {
        let accepted = Cell::new(0.0);
        let [bare, ours, http2] = in_rotation(round, async |which| {
            if which == 0 {
                return bare_client(&nodes[0], 64).await;
            }
            let http2 = ["--replica-http2", "prior-knowledge"];
            let daemon = Process::daemon(if which == 2 { &http2 } else { &[] });
            let before = answered(&nodes).await;
            let started = Instant::now();
            let load = write(&daemon.address, 64, "eventual", &nodes, round).await;
            if which == 1 {
                accepted.set(load.rate);
            }
            (answered(&nodes).await - before) as f64 / started.elapsed().as_secs_f64()
        })
        .await;
        rounds.push(Delivered { bare, ours, http2, accepted: accepted.get() });
    }
    rounds
}

pub async fn deliver() {
    println!(
        "\ndeliver: two null replicas, 64 connections posting, {ROUNDS} rounds of {ROUND:?} each"
    );
    let rounds = deliveries().await;
    let rate = |figure: fn(&Delivered) -> f64| of(&rounds, figure);
    println!("  bare reqwest client, 64 at once   {:>9.0} writes/s", rate(|round| round.bare));
    println!(
        "  replicator, default flags         {:>9.0} writes/s, accepting {:.0} tasks/s",
        rate(|round| round.ours),
        rate(|round| round.accepted)
    );
    println!("  over HTTP/2                       {:>9.0} writes/s", rate(|round| round.http2));
    println!("  ratio                             {:>9.2}", rate(Delivered::ratio));
    println!("  ratio of HTTP/2 to HTTP/1.1       {:>9.2}", rate(|round| round.http2 / round.ours));
}

/// The number of writes that null replicas have received.
pub async fn answered(nodes: &[String]) -> u64 {
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

/// A round of strong writes, and of what they cannot do without, in microseconds.
pub struct Strong {
    /// p50 and p99 of a bare parallel write to both replicas.
    bare: [f64; 2],
    /// p50 and p99 of a request to the null handler.
    null: [f64; 2],
    ours: [f64; 2],
}

impl Strong {
    /// The p50, relative to a bare write plus a request to the null handler.
    pub fn ratio(&self) -> f64 {
        self.ours[0] / (self.bare[0] + self.null[0])
    }
}

/// Strong writes to two replicas.
pub async fn strong_writes(connections: usize) -> Vec<Strong> {
    let replicas = [Process::role("null-replica"), Process::role("null-replica")];
    let nodes: Vec<_> = replicas.iter().map(|replica| replica.address.clone()).collect();
    let (null, daemon) = (Process::role("null-handler"), Process::daemon(&[]));
    let mut rounds = vec![];
    for round in 0..ROUNDS {
        let [bare, null, ours] = in_rotation(round, async |which| {
            if which == 0 {
                let times = fan_out(&nodes, connections).await;
                let at = |percent: usize| times[times.len() * percent / 100].as_secs_f64() * 1e6;
                return [at(50), at(99)];
            }
            let target = if which == 1 { &null.address } else { &daemon.address };
            let load = write(target, connections, "strong", &nodes, round).await;
            assert_eq!(load.refused, 0);
            [micros(&load, 50), micros(&load, 99)]
        })
        .await;
        rounds.push(Strong { bare, null, ours });
    }
    rounds
}

pub async fn strong() {
    println!(
        "\nstrong: two null replicas, beside a bare parallel fan-out and a request to the null handler, {ROUNDS} rounds of {ROUND:?} each"
    );
    println!(
        "{:>11} {:>11} {:>11} {:>11} {:>11} {:>11} {:>14}",
        "connections", "bare p50", "null p50", "p50", "bare p99", "p99", "/ (bare+null)"
    );
    for connections in [1, 16] {
        let rounds = strong_writes(connections).await;
        println!(
            "{connections:>11} {:>8.0} us {:>8.0} us {:>8.0} us {:>8.0} us {:>8.0} us {:>14.2}   (aim: at most 1.5)",
            of(&rounds, |round| round.bare[0]),
            of(&rounds, |round| round.null[0]),
            of(&rounds, |round| round.ours[0]),
            of(&rounds, |round| round.bare[1]),
            of(&rounds, |round| round.ours[1]),
            of(&rounds, Strong::ratio),
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
