//! The latency of one write at a time, compared with a bare commit of the store.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use bytes::Bytes;
use replicator::testing::store::{LocalStore, Opened, StoreSettings};
use replicator::testing::task::{Consistency, Node, Operation, Task, TaskId, Timestamp};

use crate::parts::{WIDE, body, in_turn, median};
use crate::roles::Process;

const ROUNDS: usize = 9;
const ROUND: Duration = Duration::from_secs(1);

/// The p50 of a bare commit and of a write, in microseconds, and the median ratio of pairs.
pub struct Latency {
    pub bare: f64,
    pub ours: f64,
    pub ratio: f64,
}

pub async fn latency() {
    println!("\nlatency: one write at a time, {ROUNDS} rounds of {ROUND:?} each");
    let Latency { bare, ours, ratio } = beside_bare_commits(ROUNDS).await;
    println!("  a bare commit of the store, p50   {bare:>6.0} us");
    println!("  a write at one connection, p50    {ours:>6.0} us");
    println!("  ratio                             {ratio:>6.2}   (aim: at most 1.5)");
}

/// Compares the p50 of a write over one connection with that of the store's committer in this process,
/// on the same disk, with tasks of the same size. The replicas never answer, so that only accepting is
/// measured.
pub async fn beside_bare_commits(rounds: usize) -> Latency {
    let silent = [Process::role("silent-replica"), Process::role("silent-replica")];
    let nodes: Vec<_> = silent.iter().map(|replica| replica.address.clone()).collect();
    let daemon = Process::daemon(WIDE);
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let store = std::sync::Mutex::new(Bare::open(dir.path(), &nodes));
    let (mut bare, mut ours) = (vec![], vec![]);
    for round in 0..rounds {
        let [commit, write] = in_turn(round, async |through_the_daemon| {
            if !through_the_daemon {
                return store.lock().unwrap().round(round);
            }
            writes(&daemon.address, &nodes, round)
        })
        .await;
        bare.push(commit.as_secs_f64() * 1e6);
        ours.push(write.as_secs_f64() * 1e6);
    }
    let ratio = median(bare.iter().zip(&ours).map(|(bare, ours)| ours / bare).collect());
    Latency { bare: median(bare), ours: median(ours), ratio }
}

fn key(round: usize, n: u64) -> String {
    format!("k-{round}-0-{n}")
}

/// The p50 of sequential writes over one connection. The calls block, because the reference blocks too
/// and a runtime would add to the time.
fn writes(address: &str, nodes: &[String], round: usize) -> Duration {
    let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_nodelay(true).unwrap();
    let (started, mut times, mut answer) = (Instant::now(), vec![], [0; 4096]);
    while started.elapsed() < ROUND {
        let body = body("eventual", &key(round, times.len() as u64), &nodes);
        let head = "POST /replicate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json";
        let request = format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let sent = Instant::now();
        stream.write_all(request.as_bytes()).unwrap();
        // A 202 fits into one read.
        let read = stream.read(&mut answer).unwrap();
        times.push(sent.elapsed());
        assert!(answer[..read].starts_with(b"HTTP/1.1 202 "));
        assert!(answer[..read].ends_with(b"}"));
    }
    times.sort_unstable();
    times[times.len() / 2]
}

struct Bare {
    opened: Opened,
    next: u64,
    replicas: Vec<Node>,
}

impl Bare {
    fn open(dir: &Path, nodes: &[String]) -> Self {
        let settings = StoreSettings {
            dir: dir.join("data"),
            cache_bytes: 64 << 20,
            min_free_bytes: 0,
            now: Timestamp(0),
        };
        let store = LocalStore::open(&settings).unwrap();
        let (opened, _) = store.recover(&mut drop, Box::new(drop)).unwrap();
        let replicas = nodes.iter().map(|node| Node::parse(&format!("http://{node}")).unwrap());
        Self { next: opened.next_id.0, opened, replicas: replicas.collect() }
    }

    fn round(&mut self, round: usize) -> Duration {
        let (started, mut times) = (Instant::now(), vec![]);
        while started.elapsed() < ROUND {
            let task = Arc::new(self.task(round));
            let (reply, answer) = mpsc::channel();
            let sent = Instant::now();
            let reply = Box::new(move |result| reply.send(result).unwrap());
            self.opened.committer.accept(task, None, Some(reply));
            answer.recv().unwrap().unwrap();
            times.push(sent.elapsed());
        }
        times.sort_unstable();
        times[times.len() / 2]
    }

    fn task(&mut self, round: usize) -> Task {
        self.next += 1;
        Task {
            id: TaskId(self.next),
            key: key(round, self.next),
            operation: Operation::Set,
            value: Bytes::from("value ".repeat(10)),
            accepted_at: Timestamp(self.next),
            expires_at: None,
            replicas: self.replicas.clone(),
            user_id: Some("bench".to_owned()),
            client: None,
            consistency: Consistency::Eventual,
            primary: None,
            trace: None,
        }
    }
}
