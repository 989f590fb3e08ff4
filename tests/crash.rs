//! Kills the daemon repeatedly during traffic. An oracle checks the requests to the replicas.
//!
//! `CRASH_ROUNDS=200 cargo test --release --test crash` runs more rounds.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stderr,
    dead_code,
    reason = "tests fail by panicking"
)]

#[path = "it"]
mod it {
    pub mod support;
}

use std::path::Path;
use std::process::{Output, Stdio};

use it::support;

use support::daemon::command;
use support::oracle::{ARGS, Accepted, Traffic, judge, moody_replica, until_all_is_delivered};
use support::replica::Seen;
use support::{Daemon, Replica};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn accepted_writes_survive_every_kill_and_nothing_stale_wins() {
    let rounds = std::env::var("CRASH_ROUNDS").map_or(10, |rounds| rounds.parse().unwrap());
    let replicas = [Replica::start().await, moody_replica(0).await, moody_replica(3).await];
    let nodes: Vec<_> = replicas.iter().map(Replica::url).collect();
    let mut daemon = Daemon::start(ARGS).await;
    let traffic = Traffic::default();
    // The number of requests to each replica at the start of each life of the daemon.
    let mut lives = vec![vec![0; replicas.len()]];

    for round in 0..rounds {
        let before = traffic.count();
        let writers = traffic.start(&daemon, &nodes).await;
        traffic.until_accepted(before + 40 + fastrand::usize(..400)).await;
        if round % 4 == 3 {
            replicas[2].stop();
        }
        daemon.kill();
        for writer in writers {
            writer.await.unwrap();
        }
        for replica in &replicas {
            replica.until_quiet().await;
        }
        lives.push(replicas.iter().map(|replica| replica.seen().len()).collect());
        if round % 4 == 3 {
            replicas[2].come_back().await;
        }
        daemon.restart().await;
    }

    until_all_is_delivered(&daemon).await;
    let accepted = traffic.accepted();
    eprintln!("{rounds} kills, {} writes accepted", accepted.len());
    for (n, replica) in replicas.iter().enumerate() {
        let lives: Vec<_> = lives.iter().map(|life| life[n]).collect();
        judge(replica, &accepted, &lives);
    }
}

/// A copy of the store, taken while writers write.
struct Copy {
    text: Vec<u8>,
    /// Accepted before it was asked for.
    accepted: Vec<Accepted>,
    /// The requests to each replica before it was asked for, and when it had begun.
    before: Vec<usize>,
    begun: Vec<usize>,
}

impl Copy {
    /// Reads the copy only when the writers have written `meanwhile` more.
    async fn take(
        daemon: &Daemon,
        traffic: &Traffic,
        replicas: &[Replica],
        meanwhile: usize,
    ) -> Self {
        let seen = || replicas.iter().map(|replica| replica.seen().len()).collect();
        let (accepted, before) = (traffic.accepted(), seen());
        let answer = daemon.client().post(daemon.url("/v1/snapshot")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        let begun = seen();
        traffic.until_accepted(traffic.count() + meanwhile).await;
        let text = answer.bytes().await.unwrap().to_vec();
        Self { text, accepted, before, begun }
    }

    /// The newest task of the copy.
    fn newest(&self) -> Option<u64> {
        let lines = self.text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let lines = lines.map(|line| serde_json::from_slice::<serde_json::Value>(line).unwrap());
        lines
            .filter(|line| line["key"].is_string())
            .map(|line| line["task"].as_u64().unwrap())
            .max()
    }

    /// A daemon on the copy must bring each write to its replicas that was accepted before it, or that is
    /// not newer than its newest one, and send nothing older after it.
    async fn judge(&self, accepted: &[Accepted], replicas: &[Replica]) {
        let newest = self.newest();
        let meanwhile = accepted.iter().filter(|write| Some(write.task) <= newest);
        let accepted: Vec<_> = self.accepted.iter().chain(meanwhile).collect();
        let temp = tempfile::tempdir().unwrap();
        let (file, dir) = (temp.path().join("copy"), temp.path().join("data"));
        std::fs::write(&file, &self.text).unwrap();
        let imported = import(&file, &dir);
        assert!(imported.status.success(), "{imported:?}");
        let starts: Vec<_> = replicas.iter().map(|replica| replica.seen().len()).collect();
        let mut daemon = Daemon::start_on(&dir, ARGS).await;
        until_all_is_delivered(&daemon).await;
        daemon.kill();
        for ((replica, start), (before, begun)) in
            replicas.iter().zip(starts).zip(self.before.iter().zip(&self.begun))
        {
            replica.until_quiet().await;
            let seen = replica.seen();
            let mut keys: Vec<_> = accepted.iter().map(|write| &write.key).collect();
            keys.sort_unstable();
            keys.dedup();
            for key in keys {
                let applied = |from: usize, to: usize| {
                    let requests = seen[from..to].iter();
                    let requests = requests.filter(|request| request.applied);
                    requests.filter(|request| request.key() == *key).map(Seen::sequence)
                };
                let of_key = accepted.iter().filter(|write| write.key == *key);
                let newest = of_key.map(|write| write.task).max().unwrap();
                let sent: Vec<_> = applied(start, seen.len()).collect();
                assert!(sent.is_sorted(), "{key}: {sent:?}");
                let held = applied(0, *begun).chain(sent.last().copied()).max();
                assert!(held >= Some(newest), "{key}: {newest} was lost, {held:?} is there");
                if let Some(last) = sent.last() {
                    let older = applied(0, *before).max();
                    assert!(Some(*last) >= older, "{key}: {last} is sent over {older:?}");
                }
            }
        }
    }
}

fn import(file: &Path, dir: &Path) -> Output {
    let mut import = command();
    import.args(["import", "--input"]).arg(file).arg("--data-dir").arg(dir);
    import.stdin(Stdio::null()).output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn copies_taken_during_traffic_lose_nothing_and_bring_nothing_stale_back() {
    let replicas = [Replica::start().await, moody_replica(0).await, moody_replica(3).await];
    let nodes: Vec<_> = replicas.iter().map(Replica::url).collect();
    let mut daemon = Daemon::start(ARGS).await;
    let traffic = Traffic::default();
    let mut copies = Vec::new();
    for round in 0..4 {
        // With a backlog of a replica that is down, and without.
        if round % 2 == 0 {
            replicas[2].stop();
            traffic.write_large(&daemon, &nodes, 2).await;
        }
        let writers = traffic.start(&daemon, &nodes).await;
        traffic.until_accepted(traffic.count() + 300).await;
        copies.push(Copy::take(&daemon, &traffic, &replicas, round * 100).await);
        let cut = (round == 3).then(|| {
            let (client, url) = (daemon.client().clone(), daemon.url("/v1/snapshot"));
            async move { client.post(url).send().await.unwrap() }
        });
        let cut = match cut {
            Some(begin) => Some(begin.await),
            None => None,
        };
        daemon.kill();
        if let Some(cut) = cut {
            // What a client has of it when the daemon dies is refused.
            let mut cut = cut;
            let mut text = Vec::new();
            while let Ok(Some(part)) = cut.chunk().await {
                text.extend_from_slice(&part);
            }
            if !text.ends_with(b"}\n") || !String::from_utf8_lossy(&text).contains("{\"end\"") {
                let temp = tempfile::tempdir().unwrap();
                std::fs::write(temp.path().join("cut"), &text).unwrap();
                let refused = import(&temp.path().join("cut"), &temp.path().join("data"));
                assert_eq!(refused.status.code(), Some(1), "{refused:?}");
            }
        }
        for writer in writers {
            writer.await.unwrap();
        }
        if round % 2 == 0 {
            replicas[2].come_back().await;
        }
        for replica in &replicas {
            replica.until_quiet().await;
        }
        daemon.restart().await;
    }
    until_all_is_delivered(&daemon).await;
    daemon.kill();
    for replica in &replicas {
        replica.until_quiet().await;
    }
    for copy in &copies {
        copy.judge(&traffic.accepted(), &replicas).await;
    }
}
