//! Servers, instances, replicas and writers.

use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::judge::{
    Figures, first_of_a_new_owner, firsts_of_partitions, hand_overs, judge, until_applied,
};
use crate::proxy::Proxy;
use crate::support::oracle::ARGS;
use crate::support::servers::{SERVERS, Servers};
use crate::support::{Behaviour, Daemon, Replica, wait_until};
use crate::traffic::{Traffic, Writers};

/// The default of a new cluster.
const PARTITIONS: usize = 8;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Three servers and a handful of processes are enough for a small machine.
pub static TURN: Semaphore = Semaphore::const_new(1);

pub struct World {
    name: &'static str,
    pub servers: Servers,
    pub instances: Vec<Daemon>,
    /// Between each instance and the servers.
    pub proxies: Vec<Proxy>,
    pub replicas: Vec<Replica>,
    pub traffic: Traffic,
    writers: Option<Writers>,
    dir: tempfile::TempDir,
    _turn: SemaphorePermit<'static>,
}

impl World {
    /// Three instances, two replicas and writers. Something was delivered already. A replica takes
    /// `answers_after`, so that there is a backlog.
    pub async fn start(name: &'static str, args: &[&str], answers_after: Duration) -> Self {
        let turn = TURN.acquire().await.unwrap();
        let servers = Servers::start().await;
        let mut replicas = Vec::new();
        for _ in 0..2 {
            replicas.push(match answers_after {
                Duration::ZERO => Replica::start().await,
                time => Replica::with(move |_| Behaviour::ApplyAfter(time)).await,
            });
        }
        let dir = tempfile::tempdir().unwrap();
        let (mut instances, mut proxies) = (Vec::new(), Vec::new());
        for name in NAMES {
            let proxy = Proxy::before(&servers.ports()).await;
            let url = proxy.url();
            proxies.push(proxy);
            let of_this = ["--node-id", name, "--store", &url];
            let args = [&of_this, ARGS, args].concat();
            instances.push(Daemon::start_on(&dir.path().join(name), &args).await);
        }
        let urls = instances.iter().map(|instance| instance.url("")).collect();
        let traffic = Traffic::new(urls, replicas.iter().map(Replica::url).collect());
        let writers = Some(traffic.start());
        let world = Self {
            name,
            servers,
            instances,
            proxies,
            replicas,
            traffic,
            writers,
            dir,
            _turn: turn,
        };
        world.traffic.until_more(200).await;
        world.until_shared(&[0, 1, 2]).await;
        world
    }

    /// How many partitions each of these instances owns; `None` unless each one has an owner.
    async fn owned(&self, among: &[usize]) -> Option<Vec<usize>> {
        let mut owned = Vec::new();
        for &at in among {
            let (status, shown) = self.instances[at].try_get("/v1/instance").await.ok()?;
            assert_eq!(status, 200, "{shown}");
            let partitions = shown["cluster"]["partitions"].as_array().unwrap();
            owned.push(partitions.iter().filter(|one| one["here"] == true).count());
        }
        (owned.iter().sum::<usize>() == PARTITIONS).then_some(owned)
    }

    /// Waits until these instances share the partitions. They are all that run.
    pub async fn until_shared(&self, among: &[usize]) {
        let least = PARTITIONS / among.len();
        wait_until("the instances share the partitions", || async {
            let owned = self.owned(among).await?;
            owned.iter().all(|owned| *owned >= least).then_some(())
        })
        .await;
    }

    /// An instance that owns a part of the partitions. All instances run.
    pub async fn owner(&self) -> usize {
        let all = [0, 1, 2];
        let owned = wait_until("every partition has an owner", || self.owned(&all)).await;
        (0..owned.len()).max_by_key(|at| owned[*at]).unwrap()
    }

    /// Prints how long the partitions that changed their owner after `since` waited for the next one.
    pub fn print_hand_overs(&self, what: &str, since: Instant) {
        let mut waits = hand_overs(&self.replicas[0], since);
        waits.sort_unstable();
        let millis = |at: Option<&Duration>| at.map_or(0, Duration::as_millis);
        let (first, last) = (millis(waits.first()), millis(waits.last()));
        let (name, count) = (self.name, waits.len());
        eprintln!("{name}: {what}: {count} changes of an owner, {first} to {last} ms without one");
    }

    /// Starts an instance again after its end. It listens elsewhere.
    pub async fn restart(&mut self, at: usize) {
        self.instances[at].restart().await;
        self.traffic.moved(at, self.instances[at].url(""));
    }

    /// Waits until a later owner delivers than before `since`, and prints how long that took.
    pub async fn until_taken_over(&self, since: Instant) {
        let first = wait_until("another owner delivers", || async {
            first_of_a_new_owner(&self.replicas[0], since)
        })
        .await;
        let took = first.at.duration_since(since);
        eprintln!("{}: the next owner delivers after {:.2} s", self.name, took.as_secs_f64());
    }

    /// Waits until a replica receives something of every partition after `since`, and prints how long
    /// the first and the last one took.
    pub async fn until_delivering(&self, since: Instant) {
        let firsts = wait_until("every partition is delivered again", || async {
            firsts_of_partitions(&self.replicas[0], since)
        })
        .await;
        let took = |at: Option<&Instant>| at.unwrap().duration_since(since).as_secs_f64();
        let (first, last) = (took(firsts.iter().min()), took(firsts.iter().max()));
        eprintln!("{}: the partitions deliver after {first:.2} to {last:.2} s", self.name);
    }

    pub fn kill_all_servers(&mut self) {
        (0..SERVERS).for_each(|at| self.servers.kill(at));
    }

    pub async fn stop_writers(&mut self) {
        if let Some(writers) = self.writers.take() {
            writers.stop().await;
        }
    }

    pub fn write_again(&mut self) {
        self.writers = Some(self.traffic.start());
    }

    /// Ends the traffic, waits until everything is delivered, and judges.
    pub async fn judge(mut self) {
        self.stop_writers().await;
        let acknowledged = self.traffic.acknowledged();
        until_applied(&self.replicas, &acknowledged).await;
        for instance in &self.instances {
            wait_until("everything is settled", || async {
                let metrics = instance.metrics().await;
                let left = ["queue_size", "retries_in_progress", "dead_letters"];
                left.iter().all(|name| metrics[name] == 0).then_some(())
            })
            .await;
        }
        let figures = judge(&self.replicas, &acknowledged);
        let unanswered = self.traffic.unanswered();
        eprintln!("{}: {figures}, without an answer {unanswered}", self.name);
        let Figures { acknowledged, overtaken, repeated, .. } = figures;
        let expected = Figures { acknowledged, overtaken, repeated, ..Figures::default() };
        assert_eq!(figures, expected);
    }
}
