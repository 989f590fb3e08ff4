//! Durable accepts per second of the committer, by the number in flight: with and without the removal
//! of each task after it is accepted. Before that, the CPU time of a task, accepted and settled: of bare
//! sled with a row for each task, of bare sled with rows of 4 KiB, and of the store.
//!
//! `cargo bench --bench store` writes to the temporary directory. Set `TMPDIR` to a disk: in memory a
//! flush costs nothing.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a benchmark prints, and fails by panicking"
)]

use std::fmt::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use replicator::testing::store::{LocalStore, Opened, StoreSettings};
use replicator::testing::task::{Consistency, Node, Operation, Task, TaskId, Timestamp};
use tokio::sync::oneshot;

fn open(dir: &std::path::Path) -> Opened {
    let settings = StoreSettings {
        dir: dir.to_owned(),
        cache_bytes: 64 << 20,
        min_free_bytes: 0,
        now: Timestamp(0),
    };
    let store = LocalStore::open(&settings).expect("a new store");
    store.recover(&mut drop, Box::new(drop)).expect("nothing to recover").0
}

/// A task for two replicas whose row has about 300 bytes.
fn task(id: u64) -> Arc<Task> {
    let node = |name| Node::parse(name).expect("an address");
    Arc::new(Task {
        id: TaskId(id),
        key: format!("bench/key/{id:012}"),
        operation: Operation::Set,
        value: Bytes::from_static(&[7; 200]),
        accepted_at: Timestamp(id),
        expires_at: None,
        replicas: vec![node("http://10.0.0.1:8080"), node("http://10.0.0.2:8080")],
        user_id: None,
        client: None,
        consistency: Consistency::Eventual,
        primary: None,
        trace: None,
    })
}

fn commits(criterion: &mut Criterion) {
    for (name, settle) in [("accept", false), ("accept_and_remove", true)] {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let opened = open(dir.path());
        let mut id = opened.next_id.0;
        let mut group = criterion.benchmark_group(name);
        for in_flight in [1, 16, 64, 256, 1024] {
            group.throughput(Throughput::Elements(in_flight));
            group.bench_function(BenchmarkId::from_parameter(in_flight), |bencher| {
                let next = || {
                    id += in_flight;
                    (id - in_flight..id).map(task).collect::<Vec<_>>()
                };
                let commit = |tasks: Vec<_>| commit(&opened, &tasks, settle);
                bencher.iter_batched(next, commit, BatchSize::PerIteration);
            });
        }
        group.finish();
    }
}

fn commit(opened: &Opened, tasks: &[Arc<Task>], settle: bool) {
    let submit = |task: &Arc<Task>| {
        let (reply, answer) = oneshot::channel();
        opened.committer.accept(
            Arc::clone(task),
            None,
            Some(Box::new(|result| reply.send(result).expect("the receiver is alive"))),
        );
        answer
    };
    let answers: Vec<_> = tasks.iter().map(submit).collect();
    for answer in answers {
        answer.blocking_recv().expect("an answer").expect("a commit");
    }
    if settle {
        tasks.iter().for_each(|task| opened.committer.remove(task.id));
    }
}

/// User and system time of the process, in microseconds.
fn cpu_micros() -> f64 {
    let stat = procfs::process::Process::myself().and_then(|process| process.stat());
    let stat = stat.expect("the process");
    let ticks = u32::try_from(stat.utime + stat.stime).expect("few ticks");
    let per_second = u32::try_from(procfs::ticks_per_second()).expect("few ticks");
    f64::from(ticks) * 1e6 / f64::from(per_second)
}

const TASKS: u32 = 64_000;

/// CPU time per task, of `turn` for each commit.
fn per_task(per_commit: u32, mut turn: impl FnMut(u64)) -> f64 {
    let begun = cpu_micros();
    (0..TASKS / per_commit).for_each(|commit| turn(u64::from(commit * per_commit) + 1));
    (cpu_micros() - begun) / f64::from(TASKS)
}

/// Rows of 300 bytes for each task, `per_row` of them together. The removal leaves out one task at a
/// time if `apart`, as when the tasks of a row are settled at different times.
fn bare(per_commit: u32, per_row: usize, apart: bool) -> f64 {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let config = sled::Config::new().path(dir.path()).mode(sled::Mode::HighThroughput);
    let db = config.flush_every_ms(None).cache_capacity(64 << 20).open().expect("a database");
    let put = |key: u64, tasks: usize| {
        db.insert(key.to_be_bytes(), vec![7; tasks * 300]).expect("a write");
    };
    per_task(per_commit, |first| {
        let ids: Vec<_> = (first..first + u64::from(per_commit)).collect();
        ids.chunks(per_row).for_each(|row| put(row[0], row.len()));
        db.flush().expect("a flush");
        for row in ids.chunks(per_row) {
            if apart {
                (1..row.len()).rev().for_each(|left| put(row[0], left));
            }
            db.remove(row[0].to_be_bytes()).expect("a removal");
        }
    })
}

fn store(per_commit: u32) -> f64 {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let opened = open(dir.path());
    let before = opened.next_id.0;
    per_task(per_commit, |first| {
        let first = before + first;
        let tasks: Vec<_> = (first..first + u64::from(per_commit)).map(task).collect();
        commit(&opened, &tasks, true);
    })
}

fn cpu(_: &mut Criterion) {
    let mut table = String::from(
        "CPU us per task, accepted and settled\n\
         commit | bare, a row each | bare, 13 a row | 13 a row, settled apart | the store\n",
    );
    for per_commit in [1, 8, 64, 256] {
        let [alone, shared, apart] =
            [(1, false), (13, false), (13, true)].map(|(row, apart)| bare(per_commit, row, apart));
        let store = store(per_commit);
        writeln!(
            table,
            "{per_commit:6} | {alone:16.1} | {shared:14.1} | {apart:23.1} | {store:9.1}"
        )
        .expect("a string");
    }
    eprint!("{table}");
}

criterion_group!(benches, cpu, commits);
criterion_main!(benches);
