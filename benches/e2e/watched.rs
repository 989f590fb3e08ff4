//! The cost of observers: a scrape every second, a stream of events, and the page.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::load::{Client, post};
use crate::parts::{WIDE, body, in_turn, median};
use crate::roles::Process;

pub const ROUNDS: usize = 9;
pub const ROUND: Duration = Duration::from_secs(3);
pub const CONNECTIONS: usize = 64;

pub async fn watched() {
    println!(
        "\nwatched: {CONNECTIONS} connections, two null replicas, {ROUNDS} rounds of {ROUND:?}"
    );
    let replicas = [Process::role("null-replica"), Process::role("null-replica")];
    let nodes: Vec<_> = replicas.iter().map(|replica| replica.address.clone()).collect();
    let daemon = Process::daemon(WIDE);
    for (name, of_tasks) in [("figures and replicas", false), ("tasks as well", true)] {
        let (mut alone, mut watched, mut ratios) = (vec![], vec![], vec![]);
        // Warm-up.
        load(&daemon.address, &nodes, "warm").await;
        drained(&daemon.address).await;
        for round in 0..ROUNDS {
            let [bare, seen] = in_turn(round, async |seen| {
                let observers =
                    if seen { observers(&daemon.address, of_tasks) } else { Vec::new() };
                let name = format!("{seen}{of_tasks}{round}");
                let rate = load(&daemon.address, &nodes, &name).await;
                observers.into_iter().for_each(|observer| observer.abort());
                drained(&daemon.address).await;
                rate
            })
            .await;
            alone.push(bare);
            watched.push(seen);
            ratios.push(seen / bare);
        }
        println!(
            "  events of {name:<21} {:>8.0}/s watched, {:>8.0}/s alone, ratio {:.3}",
            median(watched),
            median(alone),
            median(ratios)
        );
    }
}

pub async fn load(address: &str, nodes: &[String], round: &str) -> f64 {
    let (nodes, round) = (nodes.to_vec(), round.to_owned());
    let make = move |connection: usize, n: u64| {
        let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
        body("eventual", &format!("k-{round}-{connection}-{n}"), &nodes)
    };
    let seen = post(address, CONNECTIONS, ROUND, make).await;
    assert_eq!(seen.refused, 0);
    seen.rate
}

pub async fn drained(address: &str) {
    let mut client = Client::connect(address).await;
    while client.figure("replicator_queue_tasks").await > 0.0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A scrape every second, a stream of events, and the requests of the page: another stream and the
/// replicas every few seconds.
fn observers(address: &str, of_tasks: bool) -> Vec<JoinHandle<()>> {
    let every = |path: &'static str, accept: &'static str, seconds| {
        let address = address.to_owned();
        tokio::spawn(async move {
            let mut client = Client::connect(&address).await;
            let mut tick = tokio::time::interval(Duration::from_secs(seconds));
            loop {
                tick.tick().await;
                client.get_as(path, accept).await;
            }
        })
    };
    let kinds = if of_tasks { "task,replica,figures" } else { "replica,figures" };
    vec![
        every("/metrics", "text/plain", 1),
        every("/v1/replicas", "application/json", 5),
        tokio::spawn(stream(address.to_owned(), kinds)),
        tokio::spawn(stream(address.to_owned(), "replica,figures")),
    ]
}

async fn stream(address: String, kinds: &'static str) {
    let mut stream = TcpStream::connect(&address).await.unwrap();
    let request = format!("GET /v1/events?types={kinds} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut held = vec![0; 1 << 16];
    while stream.read(&mut held).await.unwrap() > 0 {}
}
