//! Limits of what is sent to a replica.

use std::num::NonZeroU64;

use super::*;
use crate::task::ReplicaLimits;

const SECOND: Duration = Duration::from_secs(1);

fn rate(rate: u32) -> ReplicaLimits {
    ReplicaLimits { rate: NonZeroU32::new(rate), ..ReplicaLimits::default() }
}

fn limit(f: &mut Fixture, name: &str, limits: ReplicaLimits) {
    f.engine.limit(f.now, &node(name), limits);
}

/// Sends and acknowledges for a while, as the engine wakes. Returns what was sent.
fn run(f: &mut Fixture, time: Duration) -> Vec<u64> {
    let end = f.now.moment.after(time);
    let mut all = Vec::new();
    loop {
        let sent = f.sent();
        for &(id, replica, _) in &sent {
            f.answer(id, replica, Verdict::Delivered);
        }
        all.extend(sent.iter().map(|&(id, ..)| id));
        if !sent.is_empty() {
            continue;
        }
        match f.engine.wake_at().filter(|at| *at <= end) {
            Some(at) => f.pass(at.since_start().saturating_sub(f.now.moment.since_start())),
            None => break,
        }
    }
    f.pass(end.since_start().saturating_sub(f.now.moment.since_start()));
    all
}

#[test]
fn a_rate_holds_for_one_replica_and_not_for_another() {
    let mut f = Fixture::new(settings());
    limit(&mut f, "a", rate(10));
    let ids: Vec<_> = (0..40).map(|n| f.eventual(&n.to_string(), &["a", "b"])).collect();
    run(&mut f, SECOND);
    let delivered = |f: &Fixture, name: &str| {
        f.engine.lanes().find(|lane| lane.node == node(name)).unwrap().counters.delivered
    };
    // A tenth of a second and one more at once.
    assert_eq!((delivered(&f, "a"), delivered(&f, "b")), (12, 40));
    assert_eq!(run(&mut f, SECOND), ids[12..22]);
    limit(&mut f, "a", ReplicaLimits::default());
    assert_eq!(run(&mut f, Duration::ZERO), ids[22..]);
    assert_eq!(f.engine.wake_at(), None);
}

#[test]
fn a_bandwidth_sends_a_value_of_any_size_and_then_rests() {
    let mut f = Fixture::new(settings());
    let bandwidth = NonZeroU64::new(10 * (TASK_OVERHEAD_BYTES + 100));
    limit(&mut f, "a", ReplicaLimits { bandwidth, ..ReplicaLimits::default() });
    let sized = |f: &mut Fixture, key: &str, bytes: u64| {
        let id = f.append_sized(None, key, &["a"], Consistency::Eventual, bytes).unwrap();
        f.commit(id);
        id
    };
    let large = sized(&mut f, "large", 99 * (TASK_OVERHEAD_BYTES + 100) + 100);
    let small: Vec<_> = (0..20).map(|n| sized(&mut f, &n.to_string(), 100)).collect();
    assert_eq!(run(&mut f, Duration::ZERO), [large]);
    assert!(run(&mut f, Duration::from_millis(9_800)).is_empty());
    assert_eq!(run(&mut f, SECOND), small[..10]);
}

#[test]
fn a_strong_write_gets_the_next_token_of_a_limited_replica() {
    let mut f = Fixture::new(settings());
    limit(&mut f, "a", rate(1));
    let first: Vec<_> = (0..5).map(|n| f.eventual(&n.to_string(), &["a"])).collect();
    assert_eq!(run(&mut f, Duration::ZERO), first[..1]);
    let strong = f.strong("strong", &["a"]);
    assert!(run(&mut f, Duration::from_millis(800)).is_empty());
    assert_eq!(run(&mut f, SECOND), [strong]);
    assert_eq!(run(&mut f, SECOND), first[1..2]);
}

#[test]
fn processes_share_the_rates_of_a_replica() {
    let mut f = Fixture::new(settings());
    f.engine.share_rates(NonZeroU32::new(4).unwrap());
    limit(&mut f, "a", rate(2));
    (0..20).for_each(|n| {
        f.eventual(&n.to_string(), &["a"]);
    });
    assert_eq!(run(&mut f, SECOND * 10).len(), 6, "one at once, and one every two seconds");
}

#[test]
fn dead_letters_return_at_the_rate_of_their_replica_also_if_an_operator_redrives_all() {
    let mut f = Fixture::new(settings());
    let redrive_rate = NonZeroU32::new(5);
    limit(&mut f, "a", ReplicaLimits { redrive_rate, ..ReplicaLimits::default() });
    (0..30).for_each(|n| {
        f.eventual(&n.to_string(), &["a"]);
    });
    loop {
        let sent = f.sent();
        sent.iter().for_each(|&(id, ..)| f.answer(id, 0, rejected()));
        if sent.is_empty() {
            break;
        }
    }
    let letters = f.engine.find_letters(&DeliveryFilter::default(), None, usize::MAX).items;
    assert_eq!(letters.len(), 30);
    for letter in letters {
        let delivery = DeliveryId { task: letter.task, replica: letter.replica };
        assert_eq!(f.engine.redrive_letter(f.now, delivery, None), AdminOutcome::Done);
    }
    assert_eq!(run(&mut f, SECOND * 2).len(), 11);
    // Other writes do not wait for them.
    let fresh = f.eventual("fresh", &["a"]);
    assert_eq!(run(&mut f, Duration::ZERO), [fresh]);
}

#[test]
fn the_workers_of_a_replica_replace_a_fixed_number_and_bound_auto() {
    let limits = |n| ReplicaLimits { workers: NonZeroU32::new(n), ..ReplicaLimits::default() };
    let auto = Workers::Auto(NonZeroU32::new(256).unwrap());
    for (workers, set, expected) in
        [(settings().workers, 2, 2), (settings().workers, 9, 9), (auto, 2, 2), (auto, 9, 5)]
    {
        let mut f = Fixture::new(EngineSettings { workers, ..settings() });
        limit(&mut f, "a", limits(set));
        (0..20).for_each(|n| {
            f.eventual(&n.to_string(), &["a"]);
        });
        assert_eq!(f.sent().len(), expected, "{workers:?} {set}");
        assert_eq!(f.engine.lanes().next().unwrap().workers, u32::try_from(expected).unwrap());
    }
}

#[test]
fn a_limited_replica_keeps_its_lane_and_a_renamed_one_its_limits() {
    let mut f = Fixture::new(EngineSettings { max_known_replicas: 1, ..settings() });
    limit(&mut f, "a", rate(1));
    assert!(matches!(f.append("k", &["b"], Consistency::Eventual), Err(Full::Replicas(1))));
    assert_eq!(f.engine.rename(f.now, &node("a"), &node("new")), Ok(()));
    assert_eq!(f.engine.lanes().next().unwrap().limits, rate(1));
    limit(&mut f, "new", ReplicaLimits::default());
    f.eventual("k", &["b"]);
}

#[test]
fn the_probe_of_a_limited_replica_waits_for_a_token() {
    let mut f = Fixture::new(EngineSettings { breaker_failures: 1, ..settings() });
    let bandwidth = NonZeroU64::new(100);
    limit(&mut f, "a", ReplicaLimits { bandwidth, ..ReplicaLimits::default() });
    let id = f.eventual("k", &["a"]);
    assert_eq!(f.sent(), [(id, 0, 1)]);
    f.answer(id, 0, failed());
    f.pass(SECOND * 4);
    assert_eq!(f.sent(), [], "522 bytes take 5 s");
    f.pass(SECOND * 2);
    assert_eq!(f.sent(), [(id, 0, 2)]);
}
