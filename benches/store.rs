//! Durable accepts per second of the committer, by the number in flight: with and without the removal
//! of each task after it is accepted.
//!
//! `cargo bench --bench store` writes to the temporary directory. Set `TMPDIR` to a disk: in memory a
//! flush costs nothing.

#![expect(clippy::expect_used, reason = "a benchmark fails by panicking")]

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

criterion_group!(benches, commits);
criterion_main!(benches);
