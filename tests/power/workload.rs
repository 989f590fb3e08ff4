//! The recorded workloads. A new workload is a variant of [`Workload`].

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::{Value, json};

use super::disk::{Disk, files};
use super::older::downgrade;
use super::record::{Control, Entry, MARK, Mark, Recording, SYNC, entries};
use super::support::{Behaviour, Daemon, client, wait_until};
use super::world::{Mood, Witness, start, value};

const WRITERS: u64 = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Small values on a few keys, so that the log is reused; kill -9 and restarts.
    Churn,
    /// Values up to 300 KiB, a replica that fails every fourth first attempt, and dead letters.
    Large,
    /// Eventual and strong writes, a replica that goes down and comes back, and clean restarts.
    Strong,
    /// Strong writes over older values of the same keys, so that some are sent and not durable at every
    /// cut; clean restarts.
    Early,
    /// A start on a store of this older format that contains tasks, then writes.
    Migration(u32),
    /// A backlog is drained, so that the store is compacted during traffic, with pending tasks.
    Rewrite,
}

impl Workload {
    fn keys(self) -> u64 {
        match self {
            Self::Churn => 12,
            Self::Large => 40,
            Self::Early => 400,
            Self::Strong | Self::Migration(_) | Self::Rewrite => 30,
        }
    }

    /// The number of writes in each life of the daemon.
    fn lives(self) -> &'static [u64] {
        match self {
            Self::Churn => &[900, 900, 900],
            Self::Large => &[130, 130],
            Self::Strong => &[300, 300, 300],
            Self::Early => &[700, 700],
            Self::Migration(_) => &[150],
            Self::Rewrite => &[500, 60],
        }
    }

    fn bytes(self, n: u64) -> usize {
        let bytes = match self {
            Self::Large => [20, 9_000, 70_000, 300_000, 4_070][n as usize % 5],
            Self::Rewrite => [20, 9_000, 30_000, 600][n as usize % 4],
            Self::Churn | Self::Strong | Self::Early | Self::Migration(_) => {
                [10, 600, 200, 5_000][n as usize % 4]
            }
        };
        bytes + n as usize % 97
    }

    fn max_retries(self) -> &'static str {
        if self == Self::Large { "2" } else { "1000" }
    }

    fn mood(self, replica: usize) -> Mood {
        Arc::new(move |seen, attempt| {
            let key = seen.key();
            match (self, replica) {
                (Self::Large, 2) if key.starts_with("dead/refused") => {
                    Behaviour::Answer(400, "", "no")
                }
                (Self::Large, 2) if key.starts_with("dead/") => Behaviour::Answer(503, "", "busy"),
                (Self::Rewrite, 1) if key.starts_with("held/") => {
                    Behaviour::Answer(503, "", "busy")
                }
                (Self::Large, 1) | (Self::Churn, 2) if attempt == 1 => match seen.sequence() % 8 {
                    0 => Behaviour::Answer(503, "", "busy"),
                    1 => Behaviour::ApplyAndReset,
                    _ => Behaviour::Apply,
                },
                _ => Behaviour::Apply,
            }
        })
    }

    /// The mood while the backlog is drained at the end.
    fn final_mood(self, replica: usize) -> Mood {
        if self == Self::Rewrite { Arc::new(|_, _| Behaviour::Apply) } else { self.mood(replica) }
    }

    fn write(self, n: u64) -> (String, Value) {
        let key = match n {
            n if self == Self::Large && n % 9 == 0 => format!("dead/refused/{n}"),
            n if self == Self::Large && n % 9 == 1 => format!("dead/tried/{n}"),
            n if self == Self::Rewrite && n % 20 == 2 => format!("held/{n}"),
            _ => format!("key/{}", fastrand::u64(..self.keys())),
        };
        let is_set = !key.starts_with("key") || !n.is_multiple_of(7);
        let is_strong = match self {
            Self::Strong => n.is_multiple_of(3),
            Self::Early => n.is_multiple_of(2),
            _ => false,
        };
        let body = json!({
            "key": key,
            "value": is_set.then(|| value(n, self.bytes(n))),
            "value_encoding": "raw",
            "operation": if is_set { "SET" } else { "DELETE" },
            "consistency": if is_strong { "strong" } else { "eventual" },
        });
        (key, body)
    }
}

/// How the daemon is started; the queues are larger than what is in them. Without the breaker, which
/// fails deliveries without a call: what was given up is judged by the calls.
pub fn args(max_retries: &str) -> [&str; 12] {
    [
        "--retry-base",
        "5ms",
        "--max-retries",
        max_retries,
        "--queue-capacity",
        "5000",
        "--retry-capacity",
        "5000",
        "--drain-timeout",
        "2m",
        "--breaker-failures",
        "0",
    ]
}

pub struct Recorded {
    pub recording: Arc<Recording>,
    /// The first entry at which the power may be cut.
    pub begin: usize,
    /// The entries that the workload is about, if they are a small part of the record.
    pub focus: Range<usize>,
}

/// Records one run of a workload. Panics if the record is incomplete.
pub async fn record(workload: Workload, world: &[Witness], barrier: bool) -> Recorded {
    let recording = Arc::new(Recording::new());
    for (n, witness) in world.iter().enumerate() {
        witness.behave(Some(Arc::clone(&recording)), workload.mood(n));
    }
    let mut environment = recording.environment();
    if !barrier {
        environment.push(("REPLICATOR_FAULT_BARRIER".to_owned(), "off".to_owned()));
    }
    let args = args(workload.max_retries());
    let numbers = Arc::new(AtomicU64::new(1));
    let mut begin = 0;
    if let Workload::Migration(format) = workload {
        leave_backlog(workload, world, &recording, &numbers).await;
        downgrade(&recording.data_dir(), format);
        begin = recording.adopt();
    }
    if workload == Workload::Rewrite {
        environment.push(("REPLICATOR_FAULT_REWRITE_FLOOR".to_owned(), "1048576".to_owned()));
    }
    let mut daemon = start(&recording.data_dir(), &args, &environment).await.unwrap();
    let started = entries(&recording.bytes()).len();
    for (life, &writes) in workload.lives().iter().enumerate() {
        let is_last = life + 1 == workload.lives().len();
        let until = numbers.load(Ordering::Relaxed) + writes;
        if (workload == Workload::Strong && life == 1)
            || (workload == Workload::Rewrite && !is_last)
        {
            world[2].replica.stop();
        }
        // The kill is armed by the writer of this write, so that writes are still in flight.
        let kill_at = (workload == Workload::Churn && !is_last).then_some(until - writes / 3);
        let writers = start_writers(workload, &daemon, world, &recording, &numbers, until, kill_at);
        if kill_at.is_some() {
            daemon.ended().await;
        }
        if workload == Workload::Rewrite && !is_last {
            until_rewritten(&daemon, world, &numbers, until).await;
        }
        for writer in writers {
            writer.await.unwrap();
        }
        if is_last {
            break;
        }
        match workload {
            Workload::Churn => {}
            Workload::Rewrite => recording.kill(&mut daemon),
            _ => assert!(daemon.terminate().await.success()),
        }
        for witness in world {
            witness.replica.until_quiet().await;
            witness.next_life();
        }
        if workload == Workload::Strong && life == 1 {
            world[2].replica.come_back().await;
        }
        daemon.restart().await;
    }
    for witness in world {
        witness.behave(Some(Arc::clone(&recording)), workload.final_mood(witness.number));
    }
    daemon.until_drained().await;
    assert!(daemon.terminate().await.success());
    for witness in world {
        assert_eq!(witness.wrongs(), Vec::<String>::new());
    }
    is_complete(&recording);
    let focus = match workload {
        Workload::Migration(_) => begin..started,
        Workload::Rewrite => rewrite(&entries(&recording.bytes())),
        _ => 0..0,
    };
    Recorded { recording, begin, focus }
}

/// Creates a data directory, without recording it, that has pending deliveries for a replica.
async fn leave_backlog(
    workload: Workload,
    world: &[Witness],
    recording: &Arc<Recording>,
    numbers: &Arc<AtomicU64>,
) {
    world[2].replica.stop();
    let mut daemon = start(&recording.data_dir(), &args("1000"), &[]).await.unwrap();
    for writer in start_writers(workload, &daemon, world, recording, numbers, 60, None) {
        writer.await.unwrap();
    }
    assert!(daemon.terminate().await.success());
    for witness in world {
        witness.replica.until_quiet().await;
        witness.next_life();
    }
    world[2].replica.come_back().await;
}

/// Lets the backlog of the stopped replica drain during traffic, and waits until the store is
/// compacted.
async fn until_rewritten(daemon: &Daemon, world: &[Witness], numbers: &AtomicU64, until: u64) {
    wait_until("there is a backlog", || async {
        (numbers.load(Ordering::Relaxed) > until / 2).then_some(())
    })
    .await;
    world[2].replica.come_back().await;
    wait_until("the store is rewritten", || async {
        (daemon.metrics().await["store_rewrites_total"].as_u64() > Some(0)).then_some(())
    })
    .await;
}

/// The deliveries that were applied before anything was synced after their write was sent: the write
/// was not durable.
pub fn early(recording: &Recording) -> usize {
    let (mut sent, mut syncs, mut early) = (HashMap::new(), 0, 0);
    for entry in entries(&recording.bytes()) {
        match entry.mark() {
            Some(Mark::Sent { n, .. }) => drop(sent.insert(n, syncs)),
            Some(Mark::Applied { n: Some(n), .. }) if sent.get(&n) == Some(&syncs) => early += 1,
            _ if entry.kind == SYNC => syncs += 1,
            _ => {}
        }
    }
    early
}

/// The entries from the creation of the new store to the removal of the old one.
fn rewrite(entries: &[Entry<'_>]) -> Range<usize> {
    let fresh = entries.iter().position(|entry| entry.path.ends_with("/store-000002.new"));
    let old = entries.iter().rposition(|entry| entry.path.contains("/store-000001"));
    fresh.unwrap()..old.unwrap()
}

/// Writers that post until `numbers` reaches `until` or the daemon has ended. The writer of number
/// `kill_at` arms a kill a few changes later.
pub fn start_writers(
    workload: Workload,
    daemon: &Daemon,
    world: &[Witness],
    recording: &Arc<Recording>,
    numbers: &Arc<AtomicU64>,
    until: u64,
    kill_at: Option<u64>,
) -> Vec<tokio::task::JoinHandle<()>> {
    let nodes: Vec<_> = world.iter().map(|witness| witness.replica.url()).collect();
    let write = || {
        let (url, nodes) = (daemon.url("/replicate"), nodes.clone());
        let (recording, numbers) = (Arc::clone(recording), Arc::clone(numbers));
        async move {
            let client = client();
            loop {
                let n = numbers.fetch_add(1, Ordering::Relaxed);
                if n >= until {
                    return;
                }
                if Some(n) == kill_at {
                    recording.set(Control::Kill, fastrand::u32(1..60));
                }
                let (key, mut body) = workload.write(n);
                body["replica_nodes"] = json!(nodes);
                recording.mark(&Mark::Sent { n, key: key.clone() });
                let Ok(answer) = client.post(&url).json(&body).send().await else { return };
                let Ok(answer) = answer.json::<Value>().await else { return };
                let Some(task) = answer["task_id"].as_str() else { continue };
                let n = (body["operation"] == "SET").then_some(n);
                recording.mark(&Mark::Accepted { task: task.parse().unwrap(), n, key });
            }
        }
    };
    (0..WRITERS).map(|_| tokio::spawn(write())).collect()
}

/// Checks that the record reproduces the current contents of the disk.
fn is_complete(recording: &Recording) {
    let bytes = recording.bytes();
    let mut disk = Disk::new(&recording.data_dir());
    for entry in entries(&bytes).iter().filter(|entry| entry.kind != MARK) {
        disk.apply(entry);
    }
    let again = tempfile::tempdir().unwrap();
    disk.image(super::disk::Luck::Everything, &mut fastrand::Rng::with_seed(0), again.path());
    let (made, real) = (files(again.path()), files(&recording.data_dir()));
    assert!(made.keys().eq(real.keys()), "{:?} {:?}", made.keys(), real.keys());
    for (path, bytes) in &real {
        assert!(made[path] == *bytes, "the record lacks a change to {path}");
    }
}
