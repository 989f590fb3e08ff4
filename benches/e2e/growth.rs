//! The cost of a task by the number of queued tasks: accepts, deliveries, restart and memory.

use std::time::{Duration, Instant};

use crate::load::{Client, post};
use crate::parts::{WIDE, answered, in_turn, of};
use crate::roles::Process;

const LEVELS: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];
const ROUNDS: usize = 5;
const RESTARTS: usize = 3;
const CONNECTIONS: u64 = 64;
const ROUND: Duration = Duration::from_secs(1);

/// Tasks of the backlog that a round delivers: what the lowest level has, with a margin.
const DRAINED: u64 = 500;

/// The replicas of both daemons.
struct Replicas {
    live: [Process; 2],
    /// Of the backlog: paused in both daemons.
    paused: [Process; 2],
    /// Never answers. A delivery to it after a restart shows when deliveries begin.
    silent: Process,
}

fn addresses(replicas: &[Process]) -> Vec<String> {
    replicas.iter().map(|replica| replica.address.clone()).collect()
}

/// Tasks of 1 KiB for two paused replicas fill one daemon to each level, while another one stays at the
/// lowest. At each level both get the same work in turn, so that the ratios show the growth and not the
/// drift of the machine.
pub async fn growth() {
    let began = Instant::now();
    println!(
        "\ngrowth: tasks of 1 KiB for two paused replicas, {ROUNDS} rounds at each level beside {} tasks, medians of {RESTARTS} restarts",
        LEVELS[0]
    );
    println!(
        "{:>9} {:>15} {:>15} {:>15} {:>9} {:>8} {:>9} {:>17} {:>17}",
        "queued",
        "accepts/s",
        "deliveries/s",
        "of backlog/s",
        "ready",
        "a task",
        "first",
        "resident, a task",
        "after a restart"
    );
    let replicas = Replicas {
        live: [(); 2].map(|()| Process::role("null-replica")),
        paused: [(); 2].map(|()| Process::role("null-replica")),
        silent: Process::role("silent-replica"),
    };
    let mut daemons = [Daemon::start(&replicas).await, Daemon::start(&replicas).await];
    let (empty, empty_restart) = (daemons[1].process.resident_mib(), daemons[1].restart().await);
    daemons[0].fill(LEVELS[0]).await;
    for level in LEVELS {
        daemons[1].fill(level).await;
        let mut pairs = vec![];
        for round in 0..ROUNDS {
            let pair = in_turn(round, async |grown| daemons[usize::from(grown)].round().await);
            pairs.push(pair.await);
            daemons[0].fill(LEVELS[0]).await;
            daemons[1].fill(level).await;
        }
        let queued = queued(&daemons[1].process.address).await;
        let mib = daemons[1].process.resident_mib();
        let mut restarts = vec![];
        for _ in 0..RESTARTS {
            restarts.push(daemons[1].restart().await);
            assert_eq!(self::queued(&daemons[1].process.address).await, queued, "a task was lost");
        }
        let figure = |at: fn(&Round) -> f64| {
            let of_level = of(&pairs, |[_, grown]| at(grown));
            format!("{of_level:.0} {:.2} x", of(&pairs, |[base, grown]| at(grown) / at(base)))
        };
        let a_task = |mib: f64, empty: f64| {
            format!("{mib:.0} MiB {:.0} B", (mib - empty) * 1024.0 * 1024.0 / queued as f64)
        };
        let ready = of(&restarts, |restart| restart.ready);
        println!(
            "{queued:>9} {:>15} {:>15} {:>15} {:>6.0} ms {:>5.1} us {:>6.0} ms {:>17} {:>17}",
            figure(|round| round.accepts),
            figure(|round| round.deliveries),
            figure(|round| round.of_backlog),
            ready * 1e3,
            (ready - empty_restart.ready) * 1e6 / queued as f64,
            of(&restarts, |restart| restart.first_delivery) * 1e3,
            a_task(mib as f64, empty as f64),
            a_task(of(&restarts, |restart| restart.mib), empty_restart.mib),
        );
    }
    println!(
        "  an empty daemon: ready in {:.0} ms, {empty} MiB; the run took {:.0} s",
        empty_restart.ready * 1e3,
        began.elapsed().as_secs_f64()
    );
}

/// Figures per second.
struct Round {
    accepts: f64,
    deliveries: f64,
    of_backlog: f64,
}

/// In seconds and MiB.
struct Restart {
    ready: f64,
    first_delivery: f64,
    mib: f64,
}

struct Daemon {
    process: Process,
    live: Vec<String>,
    paused: Vec<String>,
    silent: Vec<String>,
    /// Keeps the keys of its rounds apart.
    made: std::cell::Cell<u64>,
}

impl Daemon {
    async fn start(replicas: &Replicas) -> Self {
        let [live, paused] = [&replicas.live, &replicas.paused].map(|replicas| addresses(replicas));
        let silent = vec![replicas.silent.address.clone()];
        let (process, made) = (Process::daemon(WIDE), std::cell::Cell::new(0));
        let daemon = Self { process, live, paused, silent, made };
        let mut client = Client::connect(&daemon.process.address).await;
        let mut write = async |key: u64, nodes: &[String]| {
            assert_eq!(client.post("/replicate", &body(0, 0, key, nodes)).await, 202);
        };
        // As many as it sends at the same time, and more.
        for key in 0..10 {
            write(key, &daemon.silent).await;
        }
        // A replica that no write has named cannot be paused.
        let seen = answered(&daemon.paused).await;
        write(10, &daemon.paused).await;
        until(&daemon.paused, seen + 2).await;
        daemon.tell_paused("pause").await;
        daemon
    }

    async fn tell_paused(&self, action: &str) {
        let mut client = Client::connect(&self.process.address).await;
        for node in &self.paused {
            let path = format!("/v1/replicas/{}/{action}", node.replace(':', "%3A"));
            assert!(client.post(&path, "{}").await < 300, "{action}");
        }
    }

    /// Posts for `time` over `connections`.
    async fn post(
        &self,
        connections: usize,
        time: Duration,
        nodes: &[String],
    ) -> crate::load::Round {
        let (nodes, round) = (nodes.to_vec(), self.made.replace(self.made.get() + 1) + 1);
        let make = move |connection: usize, n: u64| body(round, connection, n, &nodes);
        post(&self.process.address, connections, time, make).await
    }

    async fn fill(&self, level: u64) {
        let mut made = queued(&self.process.address).await;
        while made < level {
            // Short enough not to overshoot on any machine.
            let rest = Duration::from_micros((level - made) * 40);
            let time = rest.clamp(Duration::from_millis(10), Duration::from_secs(5));
            let at_once = (level - made).min(CONNECTIONS) as usize;
            self.post(at_once, time, &self.paused).await;
            made = queued(&self.process.address).await;
        }
    }

    async fn round(&self) -> Round {
        let seen = answered(&self.live).await;
        let started = Instant::now();
        let load = self.post(CONNECTIONS as usize, ROUND, &self.live).await;
        let writes = 2 * load.times.len() as u64;
        until(&self.live, seen + writes).await;
        let deliveries = writes as f64 / started.elapsed().as_secs_f64();

        let seen = answered(&self.paused).await;
        let started = Instant::now();
        self.tell_paused("resume").await;
        until(&self.paused, seen + 2 * DRAINED).await;
        let of_backlog = (2 * DRAINED) as f64 / started.elapsed().as_secs_f64();
        self.tell_paused("pause").await;
        Round { accepts: load.rate, deliveries, of_backlog }
    }

    /// Kills it and starts it again.
    async fn restart(&mut self) -> Restart {
        let seen = answered(&self.silent).await;
        let started = Instant::now();
        self.process.kill_and_restart();
        let ready = started.elapsed().as_secs_f64();
        until(&self.silent, seen + 1).await;
        let first_delivery = started.elapsed().as_secs_f64();
        Restart { ready, first_delivery, mib: self.process.resident_mib() as f64 }
    }
}

fn body(round: u64, connection: usize, n: u64, nodes: &[String]) -> String {
    let nodes: Vec<_> = nodes.iter().map(|node| format!("\"http://{node}\"")).collect();
    let value = "x".repeat(1024);
    format!(
        r#"{{"key":"user/{round}/{connection}/{n}","value":"{value}","value_encoding":"raw","operation":"SET","replica_nodes":[{}]}}"#,
        nodes.join(",")
    )
}

async fn queued(address: &str) -> u64 {
    let metrics = Client::connect(address).await.get("/metrics").await;
    let metrics: serde_json::Value = serde_json::from_str(&metrics).unwrap();
    metrics["queue_size"].as_u64().unwrap()
}

/// Waits until these replicas have received `writes` together.
async fn until(nodes: &[String], writes: u64) {
    while answered(nodes).await < writes {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}
