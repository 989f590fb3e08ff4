//! Who holds the places of the retry queue, and when they are released.

use super::*;

fn fail_all(f: &mut Fixture) {
    for (task, replica, _) in f.sent() {
        f.answer(task, replica, failed());
    }
}

/// Without breakers, which are not under test here.
fn fixture(retry_capacity: usize) -> Fixture {
    Fixture::new(EngineSettings {
        retry_capacity,
        breaker_failures: 0,
        workers: workers(1000),
        ..settings()
    })
}

/// `count` writes of different keys to a replica that fail once.
fn failures(f: &mut Fixture, name: &str, number: usize) {
    for n in 0..number {
        f.eventual(&format!("{name}{n}"), &[name]);
    }
    fail_all(f);
}

fn lane(f: &Fixture, name: &str) -> LaneView {
    f.engine.lanes().find(|lane| lane.node == node(name)).unwrap()
}

#[test]
fn a_place_in_the_retry_queue_belongs_to_one_delivery() {
    let mut f = fixture(3);
    let id = f.eventual("k", &["a", "b", "c", "d"]);
    f.sent();
    (0..4).for_each(|replica| f.answer(id, replica, failed()));
    assert_eq!((f.engine.levels().retry, f.engine.levels().dead_letters), (3, 1));
    assert_eq!([lane(&f, "a").waiting, lane(&f, "d").parked], [1, 1]);
    f.pass(Duration::from_secs(3));
    assert_eq!(f.engine.levels().retry, 3, "a retry keeps its place until it has ended");
    f.answer(id, 0, Verdict::Delivered);
    assert_eq!((f.engine.levels().retry, f.engine.levels().dead_letters), (3, 0), "d has it");
}

#[test]
fn a_replica_that_fails_everything_leaves_a_tenth_of_the_retry_queue_to_the_others() {
    let mut f = fixture(100);
    failures(&mut f, "bad", 300);
    assert_eq!([lane(&f, "bad").waiting, lane(&f, "bad").parked], [90, 210]);
    failures(&mut f, "good", 5);
    assert_eq!([lane(&f, "good").waiting, lane(&f, "good").parked], [5, 0]);
    f.pass(Duration::from_secs(3));
    let retried: Vec<_> = f.sent().into_iter().filter(|&(task, ..)| task > 300).collect();
    assert_eq!(retried.len(), 5, "each when it is due");
}

#[test]
fn pausing_a_replica_frees_its_places_in_the_retry_queue_at_once() {
    let mut f = fixture(100);
    failures(&mut f, "a", 200);
    let on_wire = f.eventual("on the wire", &["a"]);
    f.sent();
    f.engine.pause(f.now, &node("a"), Some(f.now.wall.into()));
    assert_eq!((f.engine.levels().retry, lane(&f, "a").parked), (0, 200));
    f.answer(on_wire, 0, failed());
    assert_eq!((f.engine.levels().retry, lane(&f, "a").parked), (0, 201), "deliveries in flight");
    f.pass(Duration::from_secs(100));
    assert_eq!((f.sent(), f.engine.levels().retry), (vec![], 0));
    let buried = |action: &EngineAction| matches!(action, EngineAction::Buried { .. });
    assert!(!f.actions().iter().any(buried), "parked by a pause, not reported");

    f.engine.pause(f.now, &node("a"), None);
    for _ in 0..400 {
        f.pass(Duration::from_millis(10));
        for (task, replica, attempt) in f.sent() {
            assert_eq!(attempt, 2, "{task} has kept its failures");
            f.answer(task, replica, Verdict::Delivered);
        }
    }
    assert_eq!(f.engine.levels(), Levels::default());
}

#[test]
fn a_due_retry_of_a_replica_that_is_paused_gives_its_place_back() {
    let mut f = Fixture::new(EngineSettings { workers: workers(1), ..settings() });
    let [first, second] = ["k", "l"].map(|key| f.eventual(key, &["a"]));
    f.sent();
    f.answer(first, 0, failed());
    f.answer(second, 0, failed());
    f.sent();
    f.pass(Duration::from_secs(3));
    assert_eq!(f.sent().len(), 1, "the other is ready, without a worker");
    f.engine.pause(f.now, &node("a"), Some(f.now.wall.into()));
    assert_eq!((f.engine.levels().retry, lane(&f, "a").parked), (1, 1));
}

fn restore_failed(f: &mut Fixture, id: u64, name: &str) {
    f.recover(
        id,
        &id.to_string(),
        &[name],
        vec![Progress::Failed { failures: 1, error: "down".into() }],
    );
}

#[test]
fn after_a_restart_places_are_shared_by_the_same_rule_and_a_paused_replica_has_none() {
    let mut f = fixture(100);
    f.engine.pause(f.now, &node("paused"), Some(f.now.wall.into()));
    (1..=200).for_each(|id| restore_failed(&mut f, id, "paused"));
    (201..=400).for_each(|id| restore_failed(&mut f, id, "bad"));
    (401..=405).for_each(|id| restore_failed(&mut f, id, "good"));
    let places = ["paused", "bad", "good"].map(|name| lane(&f, name).waiting);
    assert_eq!(places, [0, 90, 5]);
    assert_eq!(lane(&f, "paused").parked, 200);
}

#[test]
fn a_long_retry_after_is_waited_for_outside_of_the_retry_queue() {
    let mut f = fixture(2);
    let id = f.eventual("k", &["busy"]);
    f.sent();
    f.answer(id, 0, busy(Duration::from_secs(60)));
    assert_eq!((f.engine.levels().retry, lane(&f, "busy").parked), (0, 1));
    failures(&mut f, "other", 2);
    assert_eq!(f.engine.levels().retry, 2);
    f.pass(Duration::from_millis(59_999));
    let sent = f.sent();
    assert!(sent.iter().all(|&(task, ..)| task != id), "{sent:?}");
    for (task, replica, _) in sent {
        f.answer(task, replica, Verdict::Delivered);
    }
    f.pass(Duration::from_millis(1));
    assert_eq!(f.sent(), [(id, 0, 2)]);
    f.answer(id, 0, Verdict::Delivered);
    assert_eq!(f.engine.levels(), Levels::default());
}

#[test]
fn a_retry_after_within_the_schedule_keeps_its_place() {
    let mut f = fixture(2);
    let id = f.eventual("k", &["a"]);
    f.sent();
    f.answer(id, 0, busy(Duration::from_secs(6)));
    assert_eq!((f.engine.levels().retry, lane(&f, "a").parked), (1, 0));
}

#[test]
fn a_newer_write_supersedes_one_whose_replica_asked_for_a_long_wait() {
    let mut f = fixture(2);
    let old = f.eventual("k", &["a"]);
    f.sent();
    f.answer(old, 0, busy(Duration::from_secs(600)));
    let new = f.eventual("k", &["a"]);
    f.answer(new, 0, Verdict::Delivered);
    f.pass(Duration::from_secs(700));
    assert_eq!((f.sent(), f.engine.levels()), (vec![(new, 0, 1)], Levels::default()));
}

#[test]
fn an_operator_can_redrive_before_a_long_wait_is_over() {
    let mut f = fixture(2);
    let id = f.eventual("k", &["a"]);
    f.sent();
    f.answer(id, 0, busy(Duration::from_secs(600)));
    let letter = DeliveryId { task: TaskId(id), replica: ReplicaIndex(0) };
    assert_eq!(f.engine.redrive_letter(f.now, letter, None), AdminOutcome::Done);
    assert_eq!(f.sent(), [(id, 0, 2)]);
}

#[test]
fn a_delivery_is_not_redriven_beyond_the_share_of_its_replica() {
    let mut f = fixture(10);
    failures(&mut f, "a", 12);
    assert_eq!([lane(&f, "a").waiting, lane(&f, "a").parked], [9, 3]);
    let letters = f.engine.find_letters(&DeliveryFilter::default(), None, 1).items;
    let letter = DeliveryId { task: letters[0].task, replica: letters[0].replica };
    assert_eq!(f.engine.would_redrive(letter), AdminOutcome::HeldBack);
    assert_eq!(f.engine.redrive_letter(f.now, letter, None), AdminOutcome::HeldBack);
}
