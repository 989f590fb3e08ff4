//! Writes before they are durable, and recovered tasks.

use super::*;
use crate::engine::lane::Lane;

#[test]
fn an_eventual_write_is_sent_once_it_is_durable_and_not_before() {
    let mut f = Fixture::new(settings());
    let id = f.append("k", &["a", "b"], Consistency::Eventual).unwrap();
    assert_eq!(f.actions(), []);
    f.commit(id);
    assert_eq!(f.sent(), [(id, 0, 1), (id, 1, 1)]);
}

#[test]
fn a_strong_write_is_sent_once_it_is_durable_and_answered_by_its_majority() {
    let mut f = Fixture::new(settings());
    let id = f.append("k", &["a", "b"], Consistency::Strong).unwrap();
    assert_eq!(f.actions(), []);
    f.commit(id);
    assert_eq!(f.sent(), [(id, 0, 1), (id, 1, 1)]);
    f.answer(id, 0, Verdict::Delivered);
    f.actions();
    f.answer(id, 1, Verdict::Delivered);
    let acked = vec![ReplicaIndex(0), ReplicaIndex(1)];
    let (task, missing) = (TaskId(id), vec![]);
    let conclude = EngineAction::Conclude {
        task,
        success: true,
        needed: 2,
        acked,
        missing,
        obstacles: vec![],
    };
    assert_eq!(f.actions(), [conclude, EngineAction::Remove { task }]);
}

#[test]
fn a_write_that_is_not_durable_supersedes_nothing() {
    let mut f = Fixture::new(settings());
    let old = f.eventual("k", &["a"]);
    f.answer(old, 0, failed());
    f.actions();
    let strong = f.append("k", &["a"], Consistency::Strong).unwrap();
    assert_eq!(f.actions(), []);
    f.pass(Duration::from_secs(3));
    assert_eq!(f.sent(), [(old, 0, 2)], "its retry is sent");
    f.commit(strong);
    assert_eq!(f.sent(), []);
    f.answer(old, 0, failed());
    assert_eq!(f.sent(), [(strong, 0, 1)]);
}

#[test]
fn a_cancelled_write_returns_its_places() {
    let mut f = Fixture::new(settings());
    for consistency in [Consistency::Eventual, Consistency::Strong] {
        f.append("k", &["a", "b"], consistency).unwrap();
        assert_ne!(f.engine.levels(), Levels::default());
        let Appended { reservation, .. } = f.appended.pop_front().unwrap();
        f.engine.cancel(f.now, reservation);
        assert_eq!(f.engine.levels(), Levels::default());
    }
    assert!(f.engine.lanes.iter().all(Lane::is_empty));
}

#[test]
fn a_restored_retry_with_a_newer_write_is_superseded() {
    let mut f = Fixture::new(settings());
    let replicas = [node("a")];
    for (id, progress) in
        [(1, Progress::Failed { failures: 1, error: "down".into() }), (2, Progress::Untouched)]
    {
        let key = f.keys.id("k");
        let progress = vec![progress];
        let task = Arrived {
            client: None,
            partition: Partition(0),
            id: TaskId(id),
            key,
            replicas: &replicas,
            bytes: 10,
            accepted_at: Timestamp(0),
        };
        f.engine.arrive(f.now, task, Origin::Recovered(progress));
    }
    f.pass(Duration::from_secs(9));
    assert_eq!(f.sent(), [(2, 0, 1)]);
}

#[test]
fn a_write_reserved_before_its_replica_was_forgotten_is_discarded() {
    let mut f = Fixture::new(settings());
    f.eventual("known", &["a"]);
    let before = f.append("k", &["a", "b"], Consistency::Eventual).unwrap();
    f.engine.forget(f.now, &node("a"));
    let after = f.append("x", &["a"], Consistency::Eventual).unwrap();
    while f.engine.is_forgetting(&node("a")) {
        f.pass(Duration::ZERO);
    }
    f.actions();
    f.commit(after);
    let mut sent = f.sent();
    sent.sort_unstable();
    assert_eq!(sent, [(before, 1, 1), (after, 0, 1)]);
    f.answer(before, 1, Verdict::Delivered);
    assert!(f.actions().contains(&EngineAction::Remove { task: TaskId(before) }));
}
