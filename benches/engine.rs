//! What the engine costs a task, from admission to its last acknowledgement.
//!
//! Reference in the same run: the same number of insertions into and removals from a `HashMap`.

#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark fails by panicking")]

use std::collections::HashMap;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use replicator::engine::{Action, Arrival, Engine, KeyHasher, Moment, Now, Settings, Workers};
use replicator::task::{Consistency, Node, TaskId, Timestamp, Verdict};

const TASKS: u64 = 1000;

fn engine() -> Engine {
    Engine::new(Settings {
        workers: Workers::Fixed(NonZeroU32::new(5).unwrap()),
        queue_capacity: 10_000,
        retry_capacity: 10_000,
        max_bytes: 1 << 40,
        max_dead_letter_bytes: 1 << 30,
        dead_letter_retention: None,
        hinted_handoff: true,
        redrive_rate: NonZeroU32::new(200).unwrap(),
        breaker_failures: 5,
        settle_after: Duration::from_secs(30),
        coalesce: false,
        max_known_replicas: 16,
        max_retries: 3,
        retry_base: Duration::from_secs(2),
        strong_timeout: Duration::from_secs(10),
        seed: 1,
    })
}

/// A batch of tasks for two replicas through the engine, every delivery acknowledged.
fn through(engine: &mut Engine, keys: &KeyHasher, nodes: &[Node], first: u64) {
    let now = Now { moment: Moment(0), wall: Timestamp(0) };
    for id in first..first + TASKS {
        let key = keys.id(&id.to_string());
        let (id, consistency) = (TaskId(id), Consistency::Eventual);
        let arrival = Arrival { id, key, replicas: nodes, bytes: 100, consistency };
        engine.admit(now, &arrival).unwrap();
    }
    engine.committed(now, TaskId(first + TASKS));
    let mut sent = Vec::new();
    loop {
        while let Some(action) = engine.next_action() {
            if let Action::Send { delivery, .. } = action {
                sent.push(delivery);
            }
        }
        if sent.is_empty() {
            break;
        }
        for delivery in sent.drain(..) {
            engine.answered(now, delivery, Verdict::Delivered, Duration::from_millis(1));
        }
    }
}

fn bench(criterion: &mut Criterion) {
    let nodes = ["http://a", "http://b"].map(|node| Node::parse(node).unwrap());
    let keys = KeyHasher::default();
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(TASKS));
    group.bench_function("a task to two replicas", |bencher| {
        let (mut engine, mut first) = (engine(), 1);
        bencher.iter(|| {
            through(&mut engine, &keys, &nodes, first);
            first += TASKS;
        });
    });
    group.bench_function("reference: into a map and out", |bencher| {
        let mut map = HashMap::new();
        bencher.iter(|| {
            for id in 0..TASKS {
                map.insert(black_box(id), [id; 16]);
            }
            for id in 0..TASKS {
                black_box(map.remove(&id));
            }
        });
    });
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
