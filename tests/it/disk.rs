//! Disk space after an outage, a full disk, and a data directory that disappears.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::oracle::{Traffic, judge};
use crate::support::{Daemon, PATIENCE, Replica, set, wait_until};

const ARGS: &[&str] = &["--retry-base", "100ms", "--max-retries", "10000"];

/// A process can still write to removed files, so every commit would succeed and be lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_is_accepted_after_the_data_directory_was_removed_or_replaced() {
    type Harm = fn(&Path);
    let harms: [(Harm, &str); 4] = [
        (|dir| std::fs::remove_dir_all(dir).unwrap(), "LOCK is gone"),
        (|dir| std::fs::remove_dir_all(dir.join("store-000001")).unwrap(), "db is gone"),
        (|dir| std::fs::rename(dir, dir.with_extension("moved")).unwrap(), "LOCK is gone"),
        (
            |dir| {
                let other = dir.with_extension("other");
                std::fs::create_dir(&other).unwrap();
                std::fs::write(other.join("LOCK"), "1\n").unwrap();
                std::fs::rename(dir, dir.with_extension("moved")).unwrap();
                std::fs::rename(&other, dir).unwrap();
            },
            // "LOCK is another file", or "is gone" if the check comes between the two renames.
            "LOCK is ",
        ),
    ];
    for (harm, why) in harms {
        // Detected by the next write, and without a write.
        for writes in [true, false] {
            let temp = tempfile::tempdir().unwrap();
            let path = temp.path().join("data");
            let replica = Replica::start().await;
            let mut daemon = Daemon::start_on(&path, &[]).await;
            daemon.accept(&set("before", "value", &[&replica])).await;
            harm(&path);
            if writes
                && let Ok((status, answer)) = daemon.try_post(&set("k", "v", &[&replica])).await
            {
                assert_eq!(status, 503, "{answer}");
                let error = answer["error"].as_str().unwrap();
                assert!(error.contains("the store has failed"), "{error}");
            }
            assert_eq!(daemon.ended().await.code(), Some(1), "{why}");
            let log = daemon.log();
            assert!(log.contains("was removed or replaced while it was in use"), "{log}");
            assert!(log.contains(why), "{log}");
        }
    }
}

/// The size of all files below a directory.
fn size_of(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let size = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(data) if data.is_dir() => size_of(&entry.path()),
        Ok(data) => data.len(),
        Err(_) => 0,
    };
    entries.map(size).sum()
}

/// For a larger backlog: `BACKLOG_MIB=900 cargo test --release --test it disk -- --nocapture`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_backlog_frees_its_disk_space_without_a_restart() {
    let mib = std::env::var("BACKLOG_MIB").map_or(200, |mib| mib.parse().unwrap());
    let (dead, alive) = (Replica::start().await, Replica::start().await);
    let daemon = Daemon::start(ARGS).await;
    dead.stop();
    let traffic = Traffic::default();
    traffic.write_large(&daemon, &[dead.url()], mib).await;
    let full = size_of(daemon.dir());
    assert!(full > mib << 20, "{full} bytes");

    // Writes for another replica continue meanwhile.
    dead.come_back().await;
    let mut times = vec![];
    let started = Instant::now();
    let mut shown = started;
    loop {
        let asked = Instant::now();
        daemon.accept(&set(&format!("small/{}", times.len() % 100), "value", &[&alive])).await;
        times.push(asked.elapsed());
        let metrics = daemon.metrics().await;
        let (file, live) = (size_of(daemon.dir()), metrics["store_live_bytes"].as_u64().unwrap());
        if shown.elapsed() > Duration::from_secs(1) {
            shown = Instant::now();
            println!("{:?}: {} MiB, {} live", started.elapsed(), file >> 20, live >> 20);
        }
        let drained = metrics["dead_letters"] == 0 && metrics["retries_in_progress"] == 0;
        // Settled tasks stay live for a moment, so the bound depends on the live bytes.
        let rewritten = metrics["store_rewrites_total"].as_u64().unwrap() >= 1;
        if drained && rewritten && file < (64 << 20) + 2 * live {
            break;
        }
        // This is work, not a wait, and takes longer on a busy machine.
        assert!(started.elapsed() < 5 * PATIENCE, "{file} bytes, {metrics}");
    }
    println!(
        "{} MiB -> {} MiB in {:?}",
        full >> 20,
        size_of(daemon.dir()) >> 20,
        started.elapsed()
    );
    times.sort_unstable();
    let at = |permille: usize| times[(times.len() - 1) * permille / 1000];
    println!("accepting: p50 {:?}, p99.9 {:?}, longest {:?}", at(500), at(999), at(1000));
    for line in daemon.log().lines().filter(|line| line.contains("rewrit")) {
        println!("{line}");
    }
    judge(&dead, &traffic.accepted(), &[0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_deliveries_survive_a_compaction_and_are_read_back() {
    let (dead, alive) = (Replica::start().await, Replica::start().await);
    let mut daemon = Daemon::start(&[ARGS, &["--memory-budget", "0B"]].concat()).await;
    let (kept, drained) = (Traffic::default(), Traffic::default());
    dead.stop();
    kept.write_large(&daemon, &[dead.url()], 4).await;
    // These writes are delivered and leave garbage in the file.
    alive.stop();
    drained.write_large(&daemon, &[alive.url()], 80).await;
    alive.come_back().await;
    wait_until("the store is compacted", || async {
        (daemon.metrics().await["store_rewrites_total"] == 1).then_some(())
    })
    .await;
    // The compaction may have begun before all of them were delivered.
    let drains = || async { (alive.data().len() == 80).then_some(()) };
    wait_until("all writes of the healthy replica arrive", drains).await;
    dead.come_back().await;
    let arrived = || async { (dead.data().len() == 4).then_some(()) };
    wait_until("the waiting writes arrive", arrived).await;
    judge(&dead, &kept.accepted(), &[0]);
    judge(&alive, &drained.accepted(), &[0]);
    let current = std::fs::read_to_string(daemon.dir().join("CURRENT")).unwrap();
    assert_eq!(current, "store-000002\n");
    wait_until("the old store is gone", || async {
        (!daemon.dir().join("store-000001").exists()).then_some(())
    })
    .await;
    daemon.kill_and_restart().await;
    daemon.accept(&set("k", "v", &[&alive])).await;
    daemon.until_drained().await;
}

/// A small file system that is unmounted at the end of the test.
struct Small {
    dir: tempfile::TempDir,
}

impl Small {
    /// `None` if this user cannot mount one.
    fn mount(size: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mount = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(dir.path())
            .output();
        mount.is_ok_and(|out| out.status.success()).then_some(Self { dir })
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily, because the daemon may still be stopping.
        let _ = std::process::Command::new("umount").arg("-l").arg(self.dir.path()).status();
    }
}

#[tokio::test]
async fn on_a_full_disk_new_writes_are_rejected_and_deliveries_free_space() {
    let Some(small) = Small::mount("48M") else {
        println!("skipped: this user may not mount a tmpfs");
        return;
    };
    let args = [ARGS, &["--min-free-disk", "16MiB", "--settle-after", "500ms"]].concat();
    let mut daemon = Daemon::start_on(&small.dir.path().join("data"), &args).await;
    let (down, healthy) = (Replica::start().await, Replica::start().await);
    down.stop();
    let value = "0123456789abcde!".repeat(16 << 10);
    let mut accepted = 0;
    let refused = loop {
        let (status, answer) = daemon.post(&set(&format!("k{accepted}"), &value, &[&down])).await;
        match status {
            202 => accepted += 1,
            503 => break answer,
            other => panic!("{other}: {answer}"),
        }
        assert!(accepted < 200, "no write was rejected");
    };
    assert!(accepted > 10, "{accepted}");
    assert!(refused["error"].as_str().unwrap().contains("--min-free-disk"), "{refused}");
    let (status, health) = daemon.get("/health").await;
    assert_eq!((status, &health["status"]), (200, &"degraded".into()), "{health}");
    assert!(health["reason"].as_str().unwrap().contains("--min-free-disk"), "{health}");
    // Writes that were not durable yet counted too: up to two values, twice.
    assert!(daemon.metrics().await["disk_free_bytes"].as_u64().unwrap() < 18 << 20);

    // The daemon starts on a disk that is this full. It rejects a write that is too large even if
    // no other write is in progress.
    daemon.kill_and_restart().await;
    let larger = value.repeat(8);
    assert_eq!(daemon.post(&set("larger", &larger, &[&healthy])).await.0, 503);

    down.come_back().await;
    for n in 0..accepted {
        down.until_holds(&format!("k{n}"), &value).await;
    }
    wait_until("there is room again", || async {
        let (status, _) = daemon.post(&set("more", &value, &[&healthy])).await;
        (status == 202).then_some(())
    })
    .await;
    healthy.until_holds("more", &value).await;
    assert_eq!(daemon.get("/health").await.1["status"], "healthy");
    let log = daemon.log();
    assert!(log.contains("nearly full") && log.contains("room on the disk again"), "{log}");
}
