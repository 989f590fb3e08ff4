//! Kills the daemon at every fault point of its store. After a restart an oracle checks the requests to
//! the replicas.
//!
//! `src/faults.rs` lists the points. A point that is never reached fails the test.

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

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::ExitStatus;

use replicator::testing::POINTS;
use serde_json::{Value, json};
use support::oracle::{ARGS, Traffic, judge, moody_replica, until_all_is_delivered};
use support::{Daemon, Replica, daemon, set};

struct World {
    dir: tempfile::TempDir,
    replicas: [Replica; 3],
    traffic: Traffic,
    /// The number of requests to each replica at the start of each life of the daemon.
    lives: Vec<Vec<usize>>,
}

impl World {
    async fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            replicas: [Replica::start().await, moody_replica(0).await, moody_replica(3).await],
            traffic: Traffic::default(),
            lives: vec![vec![0; 3]],
        }
    }

    fn path(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    fn nodes(&self) -> Vec<String> {
        self.replicas.iter().map(Replica::url).collect()
    }

    /// Runs the daemon with traffic until it dies at `point`.
    async fn die_at(&mut self, point: &str) {
        let terminated = point.starts_with("shutdown.");
        let down = point.starts_with("settle.letter-written");
        if down {
            self.replicas[2].stop();
        }
        let env = [("REPLICATOR_FAULT_POINT", point)];
        // A small retry queue, so that failed deliveries are parked.
        let args: Vec<_> = ARGS.iter().map(|arg| if *arg == "40" { "4" } else { arg }).collect();
        let status = match Daemon::try_start_on(&self.path(), &args, &env).await {
            Err(status) => status,
            Ok(mut daemon) => {
                let writers = self.traffic.start(&daemon, &self.nodes()).await;
                if terminated {
                    self.traffic.until_accepted(self.traffic.count() + 100).await;
                    daemon.signal("-TERM");
                }
                let status = daemon.ended().await;
                for writer in writers {
                    writer.await.unwrap();
                }
                status
            }
        };
        if down {
            self.replicas[2].come_back().await;
        }
        assert_killed_at(point, status, &self.path());
        for replica in &self.replicas {
            replica.until_quiet().await;
        }
        self.lives.push(self.replicas.iter().map(|replica| replica.seen().len()).collect());
    }

    /// Leaves the chunks of a large value on disk without their task: sled writes a segment of its log
    /// when it is full.
    async fn leave_orphans(&mut self) {
        let env = [("REPLICATOR_FAULT_POINT", "commit.chunks-written")];
        let mut daemon = Daemon::try_start_on(&self.path(), ARGS, &env).await.unwrap();
        let body = json!({
            "key": "large", "value": "x".repeat(6 << 20), "value_encoding": "raw",
            "operation": "SET", "replica_nodes": self.nodes(),
        });
        daemon.client().post(daemon.url("/replicate")).json(&body).send().await.unwrap_err();
        let status = daemon.ended().await;
        assert_killed_at("commit.chunks-written", status, &self.path());
    }

    /// Leaves a backlog for a stopped replica. When it is drained, the store is due for a compaction.
    async fn leave_backlog(&mut self) {
        self.replicas[0].stop();
        let mut daemon = Daemon::start_on(&self.path(), ARGS).await;
        self.traffic.write_large(&daemon, &self.nodes(), 64).await;
        daemon.kill();
        self.replicas[0].come_back().await;
        self.lives.push(self.replicas.iter().map(|replica| replica.seen().len()).collect());
    }

    /// Leaves an invalid row, so that the next start rebuilds the store.
    async fn leave_stray_row(&mut self) {
        self.leave_backlog().await;
        let store = std::fs::read_to_string(self.path().join("CURRENT")).unwrap();
        let db = sled::open(self.path().join(store.trim_end())).unwrap();
        db.open_tree("values").unwrap().insert(b"odd", b"bytes").unwrap();
        db.flush().unwrap();
    }

    /// Restarts the daemon, writes more, and checks everything that was ever accepted.
    async fn judge(self) {
        let mut daemon = Daemon::start_on(&self.path(), ARGS).await;
        let writers = self.traffic.start(&daemon, &self.nodes()).await;
        self.traffic.until_accepted(self.traffic.count() + 50).await;
        // A write whose client is aborted may still be accepted.
        writers.iter().for_each(tokio::task::JoinHandle::abort);
        until_all_is_delivered(&daemon).await;
        let accepted = self.traffic.accepted();
        for (n, replica) in self.replicas.iter().enumerate() {
            let lives: Vec<_> = self.lives.iter().map(|life| life[n]).collect();
            judge(replica, &accepted, &lives);
        }
        assert!(daemon.terminate().await.success());
    }
}

fn assert_killed_at(point: &str, status: ExitStatus, path: &Path) {
    let name = point.split(':').next().unwrap();
    assert_eq!(status.signal(), Some(9), "{point} is never reached: {status}");
    let log = daemon::log(path);
    assert!(log.contains(&format!("name=\"{name}\"")), "killed, but not at {point}:\n{log}");
}

fn points(group: &str) -> impl Iterator<Item = &'static str> {
    POINTS.iter().copied().filter(move |point| point.starts_with(group))
}

async fn die_at_each(group: &str) {
    for point in points(group) {
        eprintln!("{point}");
        let mut world = World::new().await;
        if point.starts_with("recover.orphan") {
            world.leave_orphans().await;
        }
        if point == "recover.key-written" {
            world.die_at("commit.key-unwritten").await;
        }
        if group == "rewrite." {
            world.leave_backlog().await;
        }
        if group == "rebuild." {
            world.leave_stray_row().await;
        }
        if group == "clear." {
            world.leave_backlog().await;
            world.die_at("rewrite.renamed").await;
        }
        world.die_at(point).await;
        // Also at a later pass, with more on the disk.
        if group == "commit." || group == "settle." {
            world.die_at(&format!("{point}:{}", 20 + fastrand::u64(..60))).await;
        }
        world.judge().await;
    }
}

/// A daemon whose disk hangs while a file exists, and a write that waits for it.
async fn with_a_disk_that_hangs(
    dir: &Path,
    args: &[&str],
    replica: &Replica,
) -> (Daemon, std::path::PathBuf, tokio::task::JoinHandle<Option<u16>>) {
    let hangs = dir.join("hangs");
    let env = [("REPLICATOR_FAULT_HANG", hangs.to_str().unwrap())];
    let daemon = Daemon::try_start_on(&dir.join("data"), args, &env).await.unwrap();
    daemon.accept(&set("before", "value", &[replica])).await;
    std::fs::write(&hangs, b"").unwrap();
    let (client, url) = (daemon.client().clone(), daemon.url("/replicate"));
    let body = set("waits", "value", &[replica]);
    let waits = tokio::spawn(async move {
        let answer = client.post(url).json(&body).send().await.ok()?;
        Some(answer.status().as_u16())
    });
    daemon.until_logged("the store does not answer").await;
    (daemon, hangs, waits)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_is_reported_and_new_writes_are_rejected_until_it_answers() {
    let dir = tempfile::tempdir().unwrap();
    let replica = Replica::start().await;
    let (daemon, hangs, waits) = with_a_disk_that_hangs(dir.path(), ARGS, &replica).await;
    let (status, health) = daemon.get("/health").await;
    assert_eq!((status, &health["status"]), (200, &json!("degraded")), "{health}");
    assert!(health["reason"].as_str().unwrap().contains("the store does not answer"), "{health}");
    let (status, ready) = daemon.get("/readyz").await;
    assert_eq!(status, 503, "{ready}");
    assert!(ready["error"].as_str().unwrap().contains("the store does not answer"), "{ready}");
    let (status, refused) = daemon.post(&set("new", "value", &[&replica])).await;
    assert_eq!(status, 503, "{refused}");
    assert!(refused["error"].as_str().unwrap().contains("the store does not answer"), "{refused}");
    let metrics = daemon.metrics_page().await;
    let line = metrics.lines().find(|line| line.starts_with("replicator_store_stalled_seconds"));
    let seconds: f64 = line.unwrap().rsplit(' ').next().unwrap().parse().unwrap();
    assert!(seconds >= 4.0, "{line:?}");

    std::fs::remove_file(&hangs).unwrap();
    daemon.until_logged("the store answers again").await;
    // The waiting write and new ones are accepted.
    assert_eq!(waits.await.unwrap(), Some(202));
    assert_eq!(daemon.get("/readyz").await.0, 200);
    daemon.accept(&set("after", "value", &[&replica])).await;
    replica.until_holds("waits", "value").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_hangs_delays_a_stop_no_longer_than_the_drain_timeout() {
    let dir = tempfile::tempdir().unwrap();
    let replica = Replica::start().await;
    let args: Vec<_> = ARGS.iter().copied().chain(["--drain-timeout", "1s"]).collect();
    let (mut daemon, _hangs, waits) = with_a_disk_that_hangs(dir.path(), &args, &replica).await;
    daemon.signal("-TERM");
    // The disk never recovers.
    assert_eq!(daemon.ended().await.code(), Some(1), "{}", daemon.log());
    let log = daemon.log();
    assert!(log.contains("stopped, but the store could not be closed"), "{log}");
    assert_eq!(waits.await.unwrap(), None);
}

#[test]
fn every_fault_point_belongs_to_a_test() {
    let groups = [
        "create.",
        "current.",
        "rewrite.",
        "clear.",
        "migrate.",
        "rebuild.",
        "recover.",
        "commit.",
        "settle.",
        "shutdown.",
    ];
    for point in POINTS {
        assert!(groups.iter().any(|group| point.starts_with(group)), "{point}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_creation_is_repeated() {
    die_at_each("create.").await;
    die_at_each("current.").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_compaction_leaves_one_complete_store() {
    die_at_each("rewrite.").await;
    die_at_each("clear.").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_migration_is_repeated() {
    for point in points("migrate.") {
        // The migration to each format.
        for step in 1..=4 {
            let point = format!("{point}:{step}");
            eprintln!("{point}");
            let mut world = World::new().await;
            world.die_at(&point).await;
            world.judge().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_recovery_is_repeated() {
    die_at_each("recover.").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_rebuild_of_a_damaged_store_is_repeated() {
    die_at_each("rebuild.").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_commit_loses_no_accepted_write() {
    die_at_each("commit.").await;
}

/// The kill between a row of tasks and the rows of their keys leaves the beginning of the batch: three
/// tasks fit into a row.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_repeated_batch_is_not_applied_twice_after_a_kill_left_a_part_of_it() {
    const KEPT: usize = 9;
    let replica = Replica::start().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("data");
    let point = format!("commit.key-unwritten:{}", KEPT - 2);
    let env = [("REPLICATOR_FAULT_POINT", &*point)];
    let old = |n: usize| format!("old {n} {}", "v".repeat(1_100));
    let batch: Vec<_> = (0..20)
        .map(|n| {
            let mut write = set(&format!("k{n}"), &old(n), &[&replica]);
            write["idempotency_key"] = json!(format!("write-{n}"));
            write
        })
        .collect();
    let mut daemon = Daemon::try_start_on(&path, ARGS, &env).await.unwrap();
    let post = |daemon: &Daemon| {
        daemon.client().post(daemon.url("/v1/replicate/batch")).json(&batch).send()
    };
    post(&daemon).await.unwrap_err();
    assert_killed_at(&point, daemon.ended().await, &path);

    let daemon = Daemon::start_on(&path, ARGS).await;
    until_all_is_delivered(&daemon).await;
    let mut first: Vec<_> =
        replica.seen().iter().map(|seen| (seen.key(), seen.sequence())).collect();
    first.sort_by_key(|(_, task)| *task);
    assert_eq!(first.len(), KEPT);
    // Another client overwrites the last key of that part, then the batch is repeated.
    let last = format!("k{}", KEPT - 1);
    daemon.accept(&set(&last, "newer", &[&replica])).await;
    let answer: Value = post(&daemon).await.unwrap().json().await.unwrap();
    until_all_is_delivered(&daemon).await;
    for (n, answer) in answer["answers"].as_array().unwrap().iter().enumerate() {
        assert_eq!(answer["replayed"], n < KEPT, "{n}: {answer}");
        if let Some((key, task)) = first.get(n) {
            assert_eq!(
                (key, &answer["body"]["task_id"]),
                (&format!("k{n}"), &json!(task.to_string()))
            );
        }
    }
    let of_last: Vec<_> = replica.seen().into_iter().filter(|seen| seen.key() == last).collect();
    let texts: Vec<_> = of_last.iter().map(support::replica::Seen::text).collect();
    assert_eq!(texts, [old(KEPT - 1), "newer".to_owned()]);
    // The rest of the batch was delivered once.
    assert_eq!(replica.seen().len(), batch.len() + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_settlement_brings_nothing_stale_back() {
    die_at_each("settle.").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_shutdown_loses_no_accepted_write() {
    die_at_each("shutdown.").await;
}
