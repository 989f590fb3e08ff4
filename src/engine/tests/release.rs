//! Releases and claims of a partition.

use super::*;
use crate::engine::lane::Lane;

const RELEASED: Partition = Partition(0);

#[test]
fn a_released_partition_leaves_nothing_behind() {
    let mut f = Fixture::new(settings());
    let (a, b, c) = (
        f.eventual("in flight", &["a", "b"]),
        f.eventual("retried", &["a"]),
        f.eventual("rejected", &["a"]),
    );
    f.eventual("in flight", &["a"]);
    f.actions();
    f.answer(b, 0, failed());
    f.answer(c, 0, rejected());
    f.answer_ambiguously(a, 1, failed());
    f.actions();
    f.engine.release(f.now, RELEASED);
    assert_eq!(f.actions(), [], "nothing is settled");
    assert_eq!(f.engine.levels(), Levels { in_flight: 1, ..Levels::default() });
    let totals = f.engine.totals();
    assert_eq!(totals.unaccounted(), 0);
    assert_eq!((totals.accepted, totals.handed_over), (5, 5));
    // The attempt that was in flight.
    f.answer(a, 0, Verdict::Delivered);
    assert_eq!(f.engine.levels(), Levels::default());
    f.pass(Duration::from_secs(3_600));
    assert_eq!((f.sent(), f.engine.wake_at()), (vec![], None));
    assert!(f.engine.lanes.iter().all(Lane::is_empty));
}

#[test]
fn a_task_that_is_claimed_again_waits_for_its_earlier_attempt() {
    let mut f = Fixture::new(settings());
    let id = f.eventual("k", &["a"]);
    assert_eq!(f.sent(), [(id, 0, 1)]);
    f.engine.release(f.now, RELEASED);
    f.recover(id, "k", &["a"], vec![Progress::Untouched]);
    let newer = f.eventual("k", &["a"]);
    assert_eq!(f.sent(), [(id, 0, 1)], "there are two attempts now");
    f.answer(id, 0, Verdict::Delivered);
    assert_eq!(f.sent(), [], "the other attempt may still be applied");
    f.answer(id, 0, Verdict::Delivered);
    assert_eq!(f.sent(), [(newer, 0, 1)]);
}

#[test]
fn a_release_answers_the_client_of_a_strong_write_with_the_acknowledgements_so_far() {
    let mut f = Fixture::new(settings());
    let id = f.append("k", &["a", "b", "c"], Consistency::Strong).unwrap();
    f.commit(id);
    f.actions();
    f.answer(id, 1, Verdict::Delivered);
    f.actions();
    f.engine.release(f.now, RELEASED);
    let actions = f.actions();
    let [EngineAction::Conclude { success: false, acked, .. }] = &actions[..] else {
        panic!("{actions:?}")
    };
    assert_eq!(acked, &[ReplicaIndex(1)]);
}

#[test]
fn a_new_probe_is_sent_after_the_task_of_the_last_one_was_released() {
    let mut f = Fixture::new(EngineSettings { breaker_failures: 1, ..settings() });
    let id = f.eventual("k", &["a"]);
    f.sent();
    f.answer(id, 0, failed());
    f.pass(Duration::from_secs(10));
    assert_eq!(f.sent().len(), 1, "the probe");
    f.engine.release(f.now, RELEASED);
    f.recover(id, "k", &["a"], vec![Progress::Untouched]);
    f.pass(Duration::from_secs(60));
    assert_eq!(f.sent().len(), 1);
}

#[test]
fn a_barrier_counts_claimed_tasks() {
    let mut f = Fixture::new(settings());
    let id = f.eventual("k", &["a"]);
    f.sent();
    let pending = |f: &mut Fixture| {
        let barrier = f.engine.barrier(TaskId(id), &[]).unwrap();
        barrier.lanes.iter().map(|lane| lane.pending).sum::<u64>()
    };
    assert_eq!(pending(&mut f), 1);
    f.engine.release(f.now, RELEASED);
    assert_eq!(pending(&mut f), 0);
    f.recover(id, "k", &["a"], vec![Progress::Untouched]);
    assert_eq!(pending(&mut f), 1);
}

#[test]
fn a_claim_while_the_breaker_is_open_does_not_block_parked_deliveries() {
    let settings = EngineSettings { breaker_failures: 1, retry_capacity: 1, ..settings() };
    let mut f = Fixture::new(settings);
    f.eventual("first", &["a"]);
    f.actions();
    f.answer(1, 0, failed());
    f.actions();
    f.engine.release(f.now, RELEASED);
    let letter =
        DeadLetter { cause: Cause::GaveUp, failures: 4, error: "down".into(), since: Timestamp(0) };
    let parked = DeadLetter { cause: Cause::RetryOverflow, ..letter.clone() };
    f.recover(2, "given up", &["a"], vec![Progress::Dead(letter)]);
    f.recover(3, "parked", &["a"], vec![Progress::Dead(parked)]);
    for _ in 0..100 {
        f.pass(Duration::from_secs(1));
        for (id, ..) in f.sent() {
            f.answer(id, 0, Verdict::Delivered);
        }
    }
    assert_eq!((f.engine.levels(), f.engine.totals().delivered), (Levels::default(), 2));
}

#[test]
fn nothing_is_sent_of_a_partition_that_is_held_back() {
    let mut f = Fixture::new(settings());
    let (first, other) = (f.eventual("k", &["a"]), f.eventual("other", &["a"]));
    let failing = f.eventual("failing", &["a"]);
    let behind = f.eventual("k", &["a"]);
    f.actions();
    f.answer(failing, 0, failed());
    f.actions();
    f.engine.hold_back(RELEASED);
    assert!(!f.engine.is_quiet(RELEASED));
    f.answer(first, 0, Verdict::Delivered);
    assert_eq!(f.actions(), [EngineAction::Remove { task: TaskId(first) }], "{behind} stays");
    f.eventual("new", &["a"]);
    f.pass(Duration::from_secs(3_600));
    assert_eq!(f.sent(), []);
    assert!(!f.engine.is_quiet(RELEASED));
    f.answer(other, 0, Verdict::Delivered);
    assert!(f.engine.is_quiet(RELEASED));
    f.actions();
    f.engine.release(f.now, RELEASED);
    assert!(!f.engine.is_quiet(RELEASED), "it is not held back any more");
    f.recover(behind, "k", &["a"], vec![Progress::Untouched]);
    assert_eq!(f.sent(), [(behind, 0, 1)]);
}

/// Whether strong writes were decided with success, and by which acknowledgements.
fn decided(f: &mut Fixture) -> Vec<(bool, Vec<ReplicaIndex>)> {
    let decided = |action| match action {
        EngineAction::Conclude { success, acked, .. } => Some((success, acked)),
        _ => None,
    };
    f.actions().into_iter().filter_map(decided).collect()
}

#[test]
fn a_strong_write_that_another_process_accepted_is_decided_here() {
    let mut f = Fixture::new(settings());
    let replicas = ["a", "b", "c"].map(node);
    let task = arrived(1, f.keys.id("k"), &replicas, f.now.wall);
    f.engine.arrive(f.now, task, Origin::Awaited);
    assert_eq!(f.sent().len(), 3);
    f.answer(1, 2, Verdict::Delivered);
    assert_eq!(decided(&mut f), []);
    f.answer(1, 0, Verdict::Delivered);
    let [(success, acked)] = &decided(&mut f)[..] else { panic!("it is not decided") };
    assert!(success & acked.contains(&ReplicaIndex(0)) & acked.contains(&ReplicaIndex(2)));
    f.answer(1, 1, Verdict::Delivered);
    assert_eq!(f.engine.levels(), Levels::default());
}

#[test]
fn a_claimed_strong_write_counts_the_acknowledgements_of_its_former_owner() {
    let mut f = Fixture::new(settings());
    let replicas = ["a", "b", "c"].map(node);
    let task = arrived(1, f.keys.id("k"), &replicas, f.now.wall);
    let progress = vec![Progress::Delivered, Progress::Untouched, Progress::Untouched];
    f.engine.arrive(f.now, task, Origin::RecoveredAwaited(progress));
    assert_eq!(f.sent().len(), 2);
    f.answer(1, 1, Verdict::Delivered);
    assert_eq!(decided(&mut f), [(true, vec![ReplicaIndex(0), ReplicaIndex(1)])]);
}

#[test]
fn the_time_of_a_claimed_strong_write_counts_from_its_acceptance() {
    let mut f = Fixture::new(settings());
    let replicas = ["a", "b"].map(node);
    let accepted_at = f.now.wall;
    f.pass(settings().strong_timeout / 2);
    let task = arrived(1, f.keys.id("k"), &replicas, accepted_at);
    f.engine.arrive(f.now, task, Origin::RecoveredAwaited(vec![Progress::Untouched; 2]));
    assert_eq!(decided(&mut f), []);
    f.pass(settings().strong_timeout / 2);
    assert_eq!(decided(&mut f), [(false, vec![])]);
    // No client waits for this one any more.
    let task = arrived(2, f.keys.id("other"), &replicas, accepted_at);
    f.engine.arrive(f.now, task, Origin::RecoveredAwaited(vec![Progress::Untouched; 2]));
    f.pass(settings().strong_timeout);
    assert_eq!(decided(&mut f), []);
}
