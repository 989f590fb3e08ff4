//! A strong write is answered as soon as its majority is out of reach.

use super::*;
use crate::task::Obstacle;

/// The answer to a strong write, if there is one: whether it has its majority, and the obstacles.
fn answer(f: &mut Fixture) -> Option<(bool, Vec<(ReplicaIndex, Obstacle)>)> {
    f.actions().into_iter().find_map(|action| match action {
        EngineAction::Conclude { success, obstacles, .. } => Some((success, obstacles)),
        _ => None,
    })
}

fn pause(f: &mut Fixture, name: &str) {
    f.engine.pause(f.now, &node(name), Some(f.now.wall.into()));
}

#[test]
fn a_strong_write_that_needs_a_paused_replica_is_answered_when_it_is_durable() {
    let mut f = Fixture::new(settings());
    pause(&mut f, "b");
    let id = f.append("k", &["a", "b"], Consistency::Strong).unwrap();
    assert_eq!(answer(&mut f), None);
    f.commit(id);
    let paused = vec![(ReplicaIndex(1), Obstacle::Paused)];
    assert_eq!(answer(&mut f), Some((false, paused)));
    // Its deliveries continue.
    f.answer(id, 0, Verdict::Delivered);
    f.engine.pause(f.now, &node("b"), None);
    assert_eq!(f.sent(), [(id, 1, 1)]);
    f.answer(id, 1, Verdict::Delivered);
    assert_eq!(f.engine.levels(), Levels::default());
}

#[test]
fn a_strong_write_that_waits_is_answered_when_a_replica_that_it_needs_is_paused() {
    let mut f = Fixture::new(settings());
    let older = f.eventual("k", &["b"]);
    let id = f.strong("k", &["a", "b"]);
    f.answer(id, 0, Verdict::Delivered);
    assert_eq!(answer(&mut f), None, "it waits for the older write of its key");
    pause(&mut f, "b");
    assert_eq!(answer(&mut f), Some((false, vec![(ReplicaIndex(1), Obstacle::Paused)])));
    f.answer(older, 0, Verdict::Delivered);
    assert_eq!(f.sent(), []);
}

#[test]
fn an_attempt_in_flight_to_a_paused_replica_can_still_make_the_majority() {
    let mut f = Fixture::new(settings());
    let id = f.strong("k", &["a", "b"]);
    pause(&mut f, "b");
    f.answer(id, 0, Verdict::Delivered);
    assert_eq!(answer(&mut f), None);
    f.answer(id, 1, Verdict::Delivered);
    assert_eq!(answer(&mut f), Some((true, vec![])));
}

#[test]
fn a_strong_write_waits_for_a_majority_without_the_paused_replica() {
    let mut f = Fixture::new(settings());
    pause(&mut f, "c");
    let id = f.strong("k", &["a", "b", "c"]);
    f.answer(id, 0, Verdict::Delivered);
    assert_eq!(answer(&mut f), None);
    f.answer(id, 1, Verdict::Delivered);
    assert_eq!(answer(&mut f), Some((true, vec![])));
}

#[test]
fn a_strong_write_that_waits_is_answered_when_the_replica_is_forgotten() {
    let mut f = Fixture::new(settings());
    f.eventual("k", &["b"]);
    f.strong("k", &["b"]);
    f.engine.forget(f.now, &node("b"));
    assert_eq!(answer(&mut f), Some((false, vec![])));
}

#[test]
fn a_strong_write_behind_its_key_is_answered_when_the_breaker_opens() {
    let mut f = Fixture::new(settings());
    let probe = f.eventual("k", &["b"]);
    let id = f.strong("k", &["b"]);
    let others: Vec<_> = (0..4).map(|n| f.eventual(&n.to_string(), &["b"])).collect();
    let more = f.eventual("more", &["b"]);
    f.sent();
    others.iter().chain([&more]).for_each(|&other| f.answer(other, 0, failed()));
    f.pass(Duration::ZERO);
    assert_eq!(answer(&mut f), Some((false, vec![(ReplicaIndex(0), Obstacle::BreakerOpen)])));
    f.answer(probe, 0, Verdict::Delivered);
    assert!(f.engine.view(TaskId(id)).is_some(), "its deliveries continue");
}
