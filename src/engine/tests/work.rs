//! Every call is short: the tests count steps, not time.

use super::*;

/// A chain of one key for a paused replica.
fn chain(f: &mut Fixture, length: u64) {
    f.engine.pause(f.now, &node("a"), Some(f.now.wall.into()));
    for _ in 0..length {
        let id = f.append("hot", &["a"], Consistency::Eventual).unwrap();
        f.commit(id);
    }
    f.actions();
}

fn fixture() -> Fixture {
    Fixture::new(EngineSettings { queue_capacity: 1_000_000, ..settings() })
}

/// Ticks as long as something is due. Returns the steps and the maximum actions of one call.
fn run(f: &mut Fixture) -> (u64, usize) {
    let (before, mut most) = (f.engine.steps, f.actions().len());
    while f.engine.wake_at().is_some_and(|at| at <= f.now.moment) {
        f.engine.tick(f.now);
        most = most.max(f.actions().len());
    }
    (f.engine.steps - before, most)
}

#[test]
fn forgetting_a_replica_with_one_hot_key_takes_as_many_steps_as_it_has_deliveries() {
    let mut f = fixture();
    chain(&mut f, 20_000);
    assert!(f.engine.forget(f.now, &node("a")).is_some());
    let (steps, most) = run(&mut f);
    assert!(!f.engine.is_forgetting(&node("a")));
    assert_eq!(f.engine.totals().discarded, 20_000);
    assert!(steps <= 2 * 20_000, "{steps}");
    assert!(most <= 4096, "a call must be short: {most} at once");
}

#[test]
fn discarding_the_tasks_of_one_hot_key_one_by_one_is_linear_in_either_order() {
    for newest_first in [false, true] {
        let mut f = fixture();
        chain(&mut f, 5_000);
        let before = f.engine.steps;
        let mut ids: Vec<_> = (1..=5_000).map(TaskId).collect();
        if newest_first {
            ids.reverse();
        }
        for id in ids {
            f.engine.discard_task(f.now, id);
        }
        assert_eq!(f.engine.totals().pending, 0);
        let steps = f.engine.steps - before;
        assert!(steps <= 2 * 5_000, "{steps}, newest first: {newest_first}");
    }
}

#[test]
fn a_strong_write_overtakes_a_long_chain_once() {
    let mut f = fixture();
    chain(&mut f, 5_000);
    let before = f.engine.steps;
    for _ in 0..100 {
        f.strong("hot", &["a"]);
    }
    let steps = f.engine.steps - before;
    assert!(steps <= 2 * 5_000, "{steps}");
}

#[test]
fn pausing_a_replica_with_many_retries_parks_them_in_parts() {
    let mut f = Fixture::new(EngineSettings {
        queue_capacity: 1_000_000,
        retry_capacity: 100_000,
        breaker_failures: 0,
        workers: workers(1_000),
        ..settings()
    });
    for n in 0..20_000 {
        f.eventual(&n.to_string(), &["a"]);
    }
    let mut on_wire = f.sent();
    while !on_wire.is_empty() {
        on_wire.iter().for_each(|&(task, replica, _)| f.answer(task, replica, failed()));
        on_wire = f.sent();
    }
    assert_eq!(f.engine.levels().retry, 20_000);
    f.engine.pause(f.now, &node("a"), Some(f.now.wall.into()));
    let (_, most) = run(&mut f);
    assert_eq!(f.engine.levels().retry, 0);
    assert!(most <= 3 * 4096, "{most} actions of one call");
}

#[test]
fn an_open_breaker_fails_a_full_queue_in_parts() {
    let mut f = Fixture::new(EngineSettings {
        queue_capacity: 1_000_000,
        retry_capacity: 100_000,
        ..settings()
    });
    for n in 0..10_000 {
        f.eventual(&n.to_string(), &["a"]);
    }
    for (task, replica, _) in f.sent() {
        f.answer(task, replica, failed());
    }
    let (_, most) = run(&mut f);
    assert_eq!((f.engine.levels().queue, f.engine.levels().retry), (4, 9_996));
    assert!(most <= 300, "a call must be short: {most} at once");
}

#[test]
fn an_old_barrier_is_counted_in_parts_and_correctly_while_deliveries_change() {
    let mut f = fixture();
    let ids: Vec<_> = (0..50_000).map(|n| f.eventual(&n.to_string(), &["a"])).collect();
    let mut on_wire = f.sent();
    let up_to = TaskId(ids[40_000]);
    assert_eq!(f.engine.barrier(up_to, &[]), None);
    let mut delivered = 0;
    let view = loop {
        assert!(f.engine.wake_at().is_some_and(|at| at <= f.now.moment), "it is due at once");
        // Both counted deliveries and uncounted ones.
        for (task, replica, _) in std::mem::take(&mut on_wire) {
            f.answer(task, replica, Verdict::Delivered);
            delivered += 1;
        }
        on_wire = f.sent();
        f.engine.discard_task(f.now, TaskId(ids[39_000 - delivered]));
        f.engine.discard_task(f.now, TaskId(ids[45_000 + delivered]));
        f.engine.tick(f.now);
        if let Some(view) = f.engine.barrier(up_to, &[]) {
            break view;
        }
    };
    let fresh = f.engine.count(up_to.into(), &[]);
    assert_eq!(view.lanes[0].pending, fresh.lanes[0].1.pending);
    assert!(delivered > 0 && view.lanes[0].pending < 40_001 - delivered as u64);
}
