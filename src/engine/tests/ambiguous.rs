//! Attempts without an answer that are applied late, over a newer write.

use super::*;

fn progress_of(f: &mut Fixture, task: u64) -> Option<Vec<Progress>> {
    let saved = |action| match action {
        EngineAction::Save { task: id, progress } if id == TaskId(task) => Some(progress),
        _ => None,
    };
    f.actions().into_iter().filter_map(saved).next_back()
}

#[test]
fn a_newer_write_delivered_after_an_attempt_without_an_answer_is_sent_again() {
    let mut f = Fixture::new(settings());
    let old = f.eventual("k", &["a"]);
    f.answer_ambiguously(old, 0, failed());
    let new = f.eventual("k", &["a"]);
    f.actions();
    f.answer(new, 0, Verdict::Delivered);
    assert_eq!(progress_of(&mut f, new), Some(vec![Progress::Resend]), "the resend is durable");
    let levels = f.engine.levels();
    assert_eq!((levels.queue, levels.retry, levels.dead_letters), (0, 0, 0));
    assert_eq!(f.engine.totals().delivered, 1);
    f.pass(Duration::from_secs(29));
    assert_eq!(f.sent(), []);
    f.pass(Duration::from_secs(2));
    assert_eq!(f.sent(), [(new, 0, 1)]);
    f.answer(new, 0, Verdict::Delivered);
    assert!(f.actions().contains(&EngineAction::Remove { task: TaskId(new) }));
    assert_eq!((f.engine.totals().delivered, f.engine.totals().pending), (1, 0));
    f.pass(Duration::from_secs(300));
    assert_eq!(f.actions(), [], "once");
}

#[test]
fn an_ambiguous_attempt_outlives_the_delivery_of_its_own_task() {
    let mut f = Fixture::new(settings());
    let old = f.eventual("k", &["a"]);
    f.answer_ambiguously(old, 0, failed());
    f.pass(Duration::from_secs(3));
    f.actions();
    f.answer(old, 0, Verdict::Delivered);
    let ambiguous = Progress::Ambiguous { since: Timestamp(0) };
    assert_eq!(progress_of(&mut f, old), Some(vec![ambiguous]), "the attempt stays on disk");
    let new = f.eventual("k", &["a"]);
    f.answer(new, 0, Verdict::Delivered);
    assert_eq!(progress_of(&mut f, new), Some(vec![Progress::Resend]));
    f.pass(Duration::from_secs(28));
    assert!(f.actions().contains(&EngineAction::Remove { task: TaskId(old) }), "its time is over");
}

#[test]
fn an_answer_to_a_repeated_request_leaves_the_first_one_ambiguous() {
    for verdict in [Verdict::Delivered, rejected()] {
        let mut f = Fixture::new(settings());
        let old = f.eventual("k", &["a"]);
        f.answer_ambiguously(old, 0, verdict);
        let new = f.eventual("k", &["a"]);
        f.actions();
        f.answer(new, 0, Verdict::Delivered);
        assert_eq!(progress_of(&mut f, new), Some(vec![Progress::Resend]));
        f.pass(Duration::from_secs(31));
        assert_eq!(f.sent(), [(new, 0, 1)]);
    }
}

#[test]
fn without_an_ambiguous_attempt_nothing_is_sent_twice() {
    let mut f = Fixture::new(settings());
    let old = f.eventual("k", &["a"]);
    f.answer_ambiguously(old, 0, failed());
    f.pass(Duration::from_secs(31));
    f.answer(old, 0, Verdict::Delivered);
    for key in ["k", "other"] {
        let new = f.eventual(key, &["a"]);
        f.actions();
        f.answer(new, 0, Verdict::Delivered);
        assert!(f.actions().contains(&EngineAction::Remove { task: TaskId(new) }), "{key}");
    }
    // A refused connection is not ambiguous.
    let old = f.eventual("k", &["a"]);
    f.answer(old, 0, failed());
    let new = f.eventual("k", &["a"]);
    f.actions();
    f.answer(new, 0, Verdict::Delivered);
    assert!(f.actions().contains(&EngineAction::Remove { task: TaskId(new) }));
}

#[test]
fn a_newer_write_supersedes_a_resend() {
    let mut f = Fixture::new(settings());
    let old = f.eventual("k", &["a"]);
    f.answer_ambiguously(old, 0, failed());
    let new = f.eventual("k", &["a"]);
    f.answer(new, 0, Verdict::Delivered);
    f.pass(Duration::from_secs(20));
    let newest = f.eventual("k", &["a"]);
    f.actions();
    f.answer(newest, 0, Verdict::Delivered);
    f.pass(Duration::from_secs(29));
    assert_eq!(f.sent(), []);
    f.pass(Duration::from_secs(2));
    assert_eq!(f.sent(), [(newest, 0, 1)]);
    f.answer(newest, 0, Verdict::Delivered);
    let counters = f.engine.totals();
    assert_eq!((counters.delivered, counters.superseded, counters.pending), (2, 1, 0));
}

#[test]
fn ambiguous_attempts_survive_a_restart() {
    let mut f = Fixture::new(settings());
    let since = Timestamp(0).saturating_add(Duration::from_secs(100));
    f.now.wall = since.saturating_add(Duration::from_secs(10));
    for (id, key, progress) in
        [(1, "ambiguous", Progress::Ambiguous { since }), (2, "again", Progress::Resend)]
    {
        f.recover(id, key, &["a"], vec![progress]);
    }
    f.next_id = 3;
    let new = f.eventual("ambiguous", &["a"]);
    f.actions();
    f.answer(new, 0, Verdict::Delivered);
    assert_eq!(progress_of(&mut f, new), Some(vec![Progress::Resend]));
    f.pass(Duration::from_secs(19));
    assert_eq!(f.sent(), []);
    f.pass(Duration::from_secs(12));
    assert_eq!(f.sent(), [(2, 0, 1), (new, 0, 1)]);
}

#[test]
fn a_delivery_that_may_have_been_in_flight_at_a_restart_is_ambiguous() {
    let mut f = Fixture::new(settings());
    f.recover(1, "k", &["a"], vec![Progress::Untouched]);
    f.answer(1, 0, Verdict::Delivered);
    f.next_id = 2;
    let new = f.eventual("k", &["a"]);
    f.actions();
    f.answer(new, 0, Verdict::Delivered);
    assert_eq!(progress_of(&mut f, new), Some(vec![Progress::Resend]));
}

#[test]
fn with_settle_after_zero_nothing_is_sent_again() {
    let mut f = Fixture::new(EngineSettings { settle_after: Duration::ZERO, ..settings() });
    let old = f.eventual("k", &["a"]);
    f.answer_ambiguously(old, 0, failed());
    let new = f.eventual("k", &["a"]);
    f.actions();
    f.answer(new, 0, Verdict::Delivered);
    assert!(f.actions().contains(&EngineAction::Remove { task: TaskId(new) }));
}

#[test]
fn an_ambiguous_attempt_is_not_ended_by_a_clock_step_before_a_restart() {
    let mut f = Fixture::new(settings());
    f.now.wall = f.now.wall.saturating_add(Duration::from_secs(86_400));
    let progress = vec![Progress::Ambiguous { since: Timestamp(0) }];
    let (id, key) = (TaskId(1), f.keys.id("k"));
    let accepted_at = Timestamp(0);
    let restored = Arrived {
        client: None,
        partition: Partition(0),
        id,
        key,
        replicas: &[node("a")],
        bytes: 10,
        accepted_at,
    };
    f.engine.arrive(f.now, restored, Origin::Recovered(progress));
    f.next_id = 2;
    let new = f.eventual("k", &["a"]);
    f.actions();
    f.answer(new, 0, Verdict::Delivered);
    assert_eq!(progress_of(&mut f, new), Some(vec![Progress::Resend]));
}
