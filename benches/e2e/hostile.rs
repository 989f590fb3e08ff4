//! The accept rate of honest clients beside hostile ones.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::load::Client;
use crate::parts::{WIDE, in_turn, median};
use crate::roles::Process;
use crate::watched::{CONNECTIONS, ROUND, ROUNDS, drained, load};

/// Open hostile connections: more than the daemon allows.
const HELD: usize = 6_000;
/// New hostile connections per second. Each replaces an open one.
const A_SECOND: usize = 500;

const POST: &str = "POST /replicate HTTP/1.1\r\nhost: localhost\r\n";

pub async fn hostile() {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
    let held = usize::try_from(maximum.unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
    let held = HELD.min(held.saturating_sub(1_000));
    println!(
        "\nhostile: {CONNECTIONS} connections, two null replicas, {ROUNDS} rounds of {ROUND:?}; beside them {held} slow or silent connections, {A_SECOND} new ones a second"
    );
    let replicas = [Process::role("null-replica"), Process::role("null-replica")];
    let nodes: Vec<_> = replicas.iter().map(|replica| replica.address.clone()).collect();
    let daemon = Process::daemon(WIDE);
    let (mut alone, mut attacked, mut ratios) = (vec![], vec![], vec![]);
    load(&daemon.address, &nodes, "warm").await;
    drained(&daemon.address).await;
    for round in 0..ROUNDS {
        let [bare, with] = in_turn(round, async |hostile| {
            let clients =
                if hostile { Some(Hostile::start(&daemon.address, held).await) } else { None };
            let rate = load(&daemon.address, &nodes, &format!("{hostile}{round}")).await;
            drop(clients);
            settled(&daemon.address).await;
            drained(&daemon.address).await;
            rate
        })
        .await;
        alone.push(bare);
        attacked.push(with);
        ratios.push(with / bare);
    }
    println!(
        "  {:>8.0}/s beside hostile clients, {:>8.0}/s alone, ratio {:.3}",
        median(attacked),
        median(alone),
        median(ratios)
    );
}

async fn settled(address: &str) {
    let mut client = Client::connect(address).await;
    while client.figure("process_open_fds").await > 1_000.0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Hostile clients, stopped on drop.
struct Hostile {
    clients: Vec<JoinHandle<()>>,
}

impl Hostile {
    /// Returns when `held` connections are open.
    async fn start(address: &str, held: usize) -> Self {
        let mut streams = Vec::new();
        for n in 0..held {
            streams.extend(open(address, n).await);
        }
        let streams = Arc::new(Mutex::new(streams));
        let opening = {
            let (address, streams) = (address.to_owned(), Arc::clone(&streams));
            async move {
                let mut tick = tokio::time::interval(Duration::from_secs(1) / A_SECOND as u32);
                for n in 0.. {
                    tick.tick().await;
                    let next = open(&address, n).await;
                    let mut streams = streams.lock().unwrap();
                    let place = n % streams.len();
                    streams.splice(place..=place, next);
                }
            }
        };
        let dribbling = async move {
            let mut tick = tokio::time::interval(Duration::from_secs(1));
            loop {
                tick.tick().await;
                for stream in &*streams.lock().unwrap() {
                    // The daemon may have closed it.
                    let _ = stream.try_write(b"x");
                }
            }
        };
        Self { clients: vec![tokio::spawn(opening), tokio::spawn(dribbling)] }
    }
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.clients.iter().for_each(JoinHandle::abort);
    }
}

/// A hostile connection that costs its client almost nothing.
async fn open(address: &str, n: usize) -> Option<TcpStream> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let begin = match n % 6 {
        0 => String::new(),
        1 => "POST /repl".to_owned(),
        2 => format!("{POST}content-length: 100000\r\n\r\n{{"),
        3 => format!("{POST}a: {}", "x".repeat(10_000)),
        4 => format!("{POST}{}\r\n", "a: b\r\n".repeat(200)),
        _ => "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_owned(),
    };
    // The daemon may have closed it.
    let _ =
        tokio::time::timeout(Duration::from_millis(100), stream.write_all(begin.as_bytes())).await;
    Some(stream)
}
