//! Accepts beside Redis with `appendfsync always`, behind Webdis as its HTTP front.

use std::fs;
use std::net::TcpListener;
use std::process::Command;

use crate::load::{Client, Target};
use crate::parts::{ROUND, ROUNDS, WIDE, in_rotation, micros, of, write};
use crate::roles::Process;

/// `USER_HZ` is 100.
const TICK_MICROS: u64 = 10_000;

/// Webdis appends the body of the request to the command.
const APPEND: &str = "PUT /XADD/queue/*/task";

/// Writes with the same body to the null handler, to the daemon and to Redis. Redis answers an `XADD`
/// after the fsync of its log, Webdis after Redis. The ratios are medians of pairs. The CPU is that of a
/// write in Redis, in Webdis and in the daemon.
pub async fn redis() {
    println!("\nredis: durable writes, two silent replicas, {ROUNDS} rounds of {ROUND:?} each");
    if let Err(missing) = installed() {
        println!("  skipped: {missing}");
        return;
    }
    println!(
        "{:>11} {:>9} {:>9} {:>9} {:>7} {:>8} {:>11} {:>11}   CPU",
        "connections", "null /s", "redis /s", "ours /s", "/ null", "/ redis", "redis p50", "p50"
    );
    let silent = [Process::role("silent-replica"), Process::role("silent-replica")];
    let nodes: Vec<_> = silent.iter().map(|replica| replica.address.clone()).collect();
    for connections in [1, 16, 64] {
        let (null, redis) = (Process::role("null-handler"), Redis::start());
        let daemon = Process::daemon(WIDE);
        let targets = [Target::from(&null.address), redis.target(), Target::from(&daemon.address)];
        let (mut rounds, mut stored, mut accepted) = (vec![], 0, 0);
        let processes = [&redis.redis, &redis.webdis, &daemon];
        let before = processes.map(Process::cpu_ticks);
        for round in 0..ROUNDS {
            let run = in_rotation::<_, 3>(round, async |which| {
                write(targets[which].clone(), connections, "eventual", &nodes, round).await
            });
            let run = run.await;
            assert_eq!(run[2].refused, 0, "no write is rejected");
            stored += run[1].times.len();
            accepted += run[2].times.len();
            rounds.push(run);
        }
        let mut cpu = processes.map(Process::cpu_ticks);
        let writes = [stored, stored, accepted];
        for ((ticks, before), writes) in cpu.iter_mut().zip(before).zip(writes) {
            *ticks = (*ticks - before) * TICK_MICROS / writes as u64;
        }
        redis.has_stored(stored).await;
        println!(
            "{connections:>11} {:>9.0} {:>9.0} {:>9.0} {:>7.2} {:>8.2} {:>8.0} us {:>8.0} us   {cpu:?} us",
            of(&rounds, |[null, _, _]| null.rate),
            of(&rounds, |[_, redis, _]| redis.rate),
            of(&rounds, |[_, _, ours]| ours.rate),
            of(&rounds, |[null, _, ours]| ours.rate / null.rate),
            of(&rounds, |[_, redis, ours]| ours.rate / redis.rate),
            of(&rounds, |[_, redis, _]| micros(redis, 50)),
            of(&rounds, |[_, _, ours]| micros(ours, 50)),
        );
    }
}

fn installed() -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let is_missing =
        |program: &&str| !std::env::split_paths(&path).any(|dir| dir.join(program).is_file());
    let missing: Vec<_> = ["redis-server", "webdis"].into_iter().filter(is_missing).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let missing = missing.join(" and ");
    Err(format!("there is no {missing} in PATH: apt-get install redis-server webdis"))
}

struct Redis {
    // In this order: Webdis is stopped first.
    webdis: Process,
    redis: Process,
}

impl Redis {
    fn start() -> Self {
        // On the disk of the daemon's directory.
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let redis_port = free_port();
        let mut command = Command::new("redis-server");
        command.current_dir(&dir).args(["--bind", "127.0.0.1", "--port", &redis_port.to_string()]);
        command.args(["--save", "", "--appendonly", "yes", "--appendfsync", "always"]);
        command.args(["--auto-aof-rewrite-percentage", "0"]);
        let redis = Process::listening(command, dir, format!("127.0.0.1:{redis_port}"));

        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let port = free_port();
        let config = serde_json::json!({
            "redis_host": "127.0.0.1",
            "redis_port": redis_port,
            "http_host": "127.0.0.1",
            "http_port": port,
            "threads": std::thread::available_parallelism().unwrap(),
            "daemonize": false,
            "verbosity": 0,
            "logfile": "webdis.log",
        });
        fs::write(dir.path().join("webdis.json"), config.to_string()).unwrap();
        let mut command = Command::new("webdis");
        command.current_dir(&dir).arg("webdis.json");
        let webdis = Process::listening(command, dir, format!("127.0.0.1:{port}"));
        Self { webdis, redis }
    }

    fn target(&self) -> Target {
        Target { write: APPEND, ..Target::from(&self.webdis.address) }
    }

    /// Webdis answers an error of Redis with a 200.
    async fn has_stored(&self, writes: usize) {
        let answer = Client::connect(&self.webdis.address).await.get("/XLEN/queue").await;
        assert_eq!(answer, format!(r#"{{"XLEN":{writes}}}"#), "Redis has each write");
        let answer =
            Client::connect(&self.webdis.address).await.get("/CONFIG/GET/appendfsync").await;
        assert!(answer.contains("always"), "{answer}");
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
