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

use it::support;

use support::oracle::{ARGS, Traffic, judge, moody_replica, until_all_is_delivered};
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
