//! The cost of a task in the engine, from admission to its last acknowledgement, compared with as many
//! insertions into and removals from a `HashMap`.
//!
//! `cargo bench --bench engine -- flaky` instead prints the deliveries to a replica that fails at
//! random, with and without a breaker. Its clock is virtual.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::collections::HashMap;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group};
use replicator::testing::engine::{
    Arrived, Engine, EngineAction, EngineSettings, KeyHasher, Origin, Workers,
};
use replicator::testing::task::{
    AttemptOutcome, Consistency, DeliveryId, Moment, Node, Now, Partition, TaskId, Timestamp,
    Verdict,
};

#[path = "../src/engine/tests/flaky/replica.rs"]
mod replica;

const TASKS: u64 = 1000;

fn settings() -> EngineSettings {
    EngineSettings {
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
    }
}

/// Runs a batch of tasks for two replicas through the engine and acknowledges every delivery.
fn run_batch(engine: &mut Engine, keys: &KeyHasher, nodes: &[Node], first: u64) {
    let now = Now { moment: Moment(0), wall: Timestamp(0) };
    for id in first..first + TASKS {
        let key = keys.id(&id.to_string());
        let (id, consistency) = (TaskId(id), Consistency::Eventual);
        let reservation = engine.reserve(now, key, nodes, 100, consistency, None).unwrap();
        let partition = Partition::default();
        let task = Arrived {
            id,
            partition,
            key,
            replicas: nodes,
            bytes: 100,
            client: None,
            accepted_at: now.wall,
        };
        engine.arrive(now, task, Origin::Written(Some(reservation)));
    }
    let mut sent = Vec::new();
    loop {
        while let Some(action) = engine.next_action() {
            if let EngineAction::Send { delivery, .. } = action {
                sent.push(delivery);
            }
        }
        if sent.is_empty() {
            break;
        }
        for delivery in sent.drain(..) {
            let outcome = AttemptOutcome::certain(Verdict::Delivered, Duration::from_millis(1));
            engine.answered(now, delivery, outcome);
        }
    }
}

fn bench(criterion: &mut Criterion) {
    let nodes = ["http://a", "http://b"].map(|node| Node::parse(node).unwrap());
    let keys = KeyHasher::default();
    let mut group = criterion.benchmark_group("engine");
    group.throughput(Throughput::Elements(TASKS));
    group.bench_function("a task to two replicas", |bencher| {
        let (mut engine, mut first) = (Engine::new(settings()), 1);
        bencher.iter(|| {
            run_batch(&mut engine, &keys, &nodes, first);
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

/// Prints means over all seeds, and the worst seed.
#[expect(clippy::print_stdout, reason = "prints results")]
#[expect(clippy::cast_precision_loss, reason = "the numbers are small")]
fn flaky() {
    const SEEDS: u64 = 20;
    println!(
        "writes of {:?}, means of {SEEDS} seeds\n\nworkers  fails  written  without breaker  with  ratio  worst seed  opened  dead letters (without)",
        replica::TIME
    );
    for workers in [5, 16, 64].map(|workers| NonZeroU32::new(workers).unwrap()) {
        for percent in [10, 20, 30, 40, 50, 60] {
            let (mut sums, mut worst) = ([0; 6], f64::MAX);
            for seed in 0..SEEDS {
                let settings = EngineSettings {
                    workers: Workers::Fixed(workers),
                    queue_capacity: 20_000,
                    retry_capacity: 500,
                    seed,
                    ..settings()
                };
                let fails = f64::from(percent) / 100.0;
                let never = EngineSettings { breaker_failures: 0, ..settings.clone() };
                let (without, with) = (replica::run(never, fails), replica::run(settings, fails));
                worst = worst.min(with.delivered as f64 / without.delivered as f64);
                let all = [
                    with.written,
                    without.delivered,
                    with.delivered,
                    with.opened,
                    with.dead_letters,
                    without.dead_letters,
                ];
                sums.iter_mut().zip(all).for_each(|(sum, one)| *sum += one);
            }
            let [written, without, with, opened, dead, dead_without] =
                sums.map(|sum| sum as f64 / SEEDS as f64);
            println!(
                "{workers:>7} {percent:>5} % {written:>8.0} {without:>16.0} {with:>5.0} {:>6.3} {worst:>11.3} {opened:>7.1} {dead:>8.0} ({dead_without:.0})",
                with / without
            );
        }
    }
}

criterion_group!(benches, bench);

fn main() {
    if std::env::args().any(|argument| argument == "flaky") {
        return flaky();
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
}
