//! Barriers, and writes that supersede others.

use super::*;

/// The pending and dead deliveries to `a` before a barrier.
fn left(f: &mut Fixture, up_to: u64) -> (u64, u64) {
    let lanes = f.engine.barrier(TaskId(up_to), &[]).unwrap().lanes;
    let fresh = f.engine.count(TaskId(up_to).into(), &[]).lanes;
    let sum = |lanes: Vec<BarrierLane>| {
        lanes.iter().fold((0, 0), |sum, lane| (sum.0 + lane.pending, sum.1 + lane.dead))
    };
    let counted = sum(lanes);
    assert_eq!(counted, sum(fresh.into_iter().map(|(_, lane)| lane).collect()));
    counted
}

/// A write that failed, with a barrier behind it.
fn failed_once(f: &mut Fixture) -> u64 {
    let id = f.eventual("k", &["a"]);
    f.sent();
    f.answer(id, 0, failed());
    assert_eq!(left(f, id), (1, 0));
    id
}

#[test]
fn a_superseding_delivery_replaces_the_older_one_in_the_count() {
    let mut f = Fixture::new(settings());
    let first = failed_once(&mut f);
    let second = f.eventual("k", &["a"]);
    assert_eq!(left(&mut f, first), (1, 0));
    f.sent();
    f.answer(second, 0, failed());
    let third = f.eventual("k", &["a"]);
    assert_eq!(left(&mut f, first), (1, 0), "through others");
    f.answer(third, 0, Verdict::Delivered);
    assert_eq!(left(&mut f, first), (0, 0));
}

#[test]
fn a_barrier_counted_after_a_supersession_includes_it() {
    let mut f = Fixture::new(settings());
    let first = f.eventual("k", &["a"]);
    f.sent();
    f.answer(first, 0, failed());
    let second = f.eventual("k", &["a"]);
    f.eventual("other", &["a"]);
    assert_eq!(left(&mut f, first), (1, 0), "the other write is behind the barrier");
    f.answer(second, 0, Verdict::Delivered);
    assert_eq!(left(&mut f, first), (0, 0));
}

#[test]
fn a_write_that_fails_with_a_newer_one_behind_it_is_counted_until_that_is_delivered() {
    let mut f = Fixture::new(settings());
    let first = f.eventual("k", &["a"]);
    assert_eq!(left(&mut f, first), (1, 0));
    let second = f.eventual("k", &["a"]);
    f.sent();
    f.answer(first, 0, failed());
    assert_eq!(left(&mut f, first), (1, 0));
    f.answer(second, 0, rejected());
    assert_eq!(left(&mut f, first), (0, 1), "the replica has neither");
}

#[test]
fn an_overtaken_write_is_counted_until_the_strong_one_is_delivered() {
    let mut f = Fixture::new(settings());
    let on_the_wire = f.eventual("k", &["a"]);
    let queued = f.eventual("k", &["a"]);
    assert_eq!(left(&mut f, queued), (2, 0));
    let strong = f.strong("k", &["a"]);
    assert_eq!(left(&mut f, queued), (2, 0));
    f.answer(on_the_wire, 0, Verdict::Delivered);
    assert_eq!(left(&mut f, queued), (1, 0));
    f.answer(strong, 0, Verdict::Delivered);
    assert_eq!(left(&mut f, queued), (0, 0));
}

#[test]
fn a_dead_letter_that_a_newer_one_replaces_stays_given_up() {
    let mut f = Fixture::new(settings());
    let first = f.eventual("k", &["a"]);
    f.sent();
    f.answer(first, 0, rejected());
    assert_eq!(left(&mut f, first), (0, 1));
    let second = f.eventual("k", &["a"]);
    f.answer(second, 0, rejected());
    assert_eq!(left(&mut f, first), (0, 1));
    let third = f.eventual("k", &["a"]);
    f.answer(third, 0, Verdict::Delivered);
    assert_eq!(left(&mut f, first), (0, 0));
}

#[test]
fn a_discarded_write_is_not_counted() {
    let mut f = Fixture::new(settings());
    let first = failed_once(&mut f);
    let second = f.eventual("k", &["a"]);
    assert_eq!(left(&mut f, first), (1, 0));
    f.engine.discard_task(f.now, TaskId(second));
    f.answer(second, 0, failed());
    assert_eq!(left(&mut f, first), (0, 0));
}

#[test]
fn after_a_restart_a_superseding_write_counts_for_every_older_barrier() {
    let mut f = Fixture::new(settings());
    let first = failed_once(&mut f);
    f.actions();
    let second = f.eventual("k", &["a"]);
    let fresh = f.eventual("other", &["a"]);
    let saved: Vec<_> = f
        .actions()
        .into_iter()
        .filter_map(|action| match action {
            EngineAction::Save { task, progress } => Some((task, progress)),
            _ => None,
        })
        .collect();
    let [(task, progress)] = &saved[..] else { panic!("{saved:?}") };
    assert_eq!(*task, TaskId(second));

    let mut g = Fixture::new(settings());
    for (id, key, progress) in
        [(second, "k", progress.clone()), (fresh, "other", vec![Progress::Untouched])]
    {
        g.recover(id, key, &["a"], progress);
    }
    assert_eq!(left(&mut g, first), (1, 0));
    let mut sent = g.sent();
    sent.sort_unstable();
    assert_eq!(sent, [(second, 0, 1), (fresh, 0, 1)], "both are first attempts, and due");
    g.answer(second, 0, Verdict::Delivered);
    assert_eq!(left(&mut g, first), (0, 0));
}

/// A barrier of two partitions: ids are even or odd.
fn of_partitions(f: &mut Fixture, last: [u64; 2]) -> (u64, u64) {
    let end = BarrierEnd::Partitions { divisor: 2, last: last.map(TaskId).to_vec() };
    let lanes = f.engine.barrier(end.clone(), &[]).unwrap().lanes;
    let sum = |sum: (u64, u64), lane: &BarrierLane| (sum.0 + lane.pending, sum.1 + lane.dead);
    let fresh = f.engine.count(end, &[]).lanes;
    let counted = lanes.iter().fold((0, 0), sum);
    assert_eq!(counted, fresh.iter().map(|(_, lane)| lane).fold((0, 0), sum));
    counted
}

#[test]
fn a_barrier_of_partitions_has_an_end_in_each() {
    let mut f = Fixture::new(settings());
    let ids: Vec<_> = ["a", "b", "c", "d"].map(|key| f.eventual(key, &["a"])).into();
    let even = ids.iter().copied().filter(|id| id % 2 == 0).max().unwrap();
    assert_eq!(of_partitions(&mut f, [even, 0]), (2, 0));
    assert_eq!(of_partitions(&mut f, [0, u64::MAX]), (2, 0));
    assert_eq!(of_partitions(&mut f, [u64::MAX; 2]), (4, 0));
}

#[test]
fn a_barrier_of_partitions_counts_a_task_that_arrives_later_for_a_new_replica() {
    let mut f = Fixture::new(settings());
    f.eventual("k", &["a"]);
    assert_eq!(of_partitions(&mut f, [u64::MAX; 2]), (1, 0));
    f.eventual("l", &["b"]);
    assert_eq!(of_partitions(&mut f, [u64::MAX; 2]), (2, 0));
}
