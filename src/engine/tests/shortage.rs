//! A missing resource of this process is no evidence against a replica.

use super::*;

fn shortage() -> Verdict {
    Verdict::Shortage { error: "Too many open files".into() }
}

fn lane(f: &Fixture) -> LaneView {
    f.engine.lanes().find(|lane| lane.node == node("a")).unwrap()
}

#[test]
fn attempts_that_could_not_be_sent_open_no_breaker_and_end_no_delivery() {
    let mut f = Fixture::new(settings());
    let ids: Vec<_> = (0..10).map(|n| f.eventual(&n.to_string(), &["a"])).collect();
    for _ in 0..20 {
        for (task, replica, attempt) in f.sent() {
            assert_eq!(attempt, 1, "no attempt is used up");
            f.answer(task, replica, shortage());
        }
        f.pass(Duration::from_secs(3));
    }
    let seen = lane(&f);
    assert_eq!(
        (seen.breaker, seen.counters.dead, seen.counters.failed_attempts),
        (BreakerState::Closed, 0, 0)
    );
    assert!(seen.counters.unsent_attempts >= 10);
    assert_eq!(seen.last_error.unwrap().0.as_ref(), "Too many open files");
    loop {
        let sent = f.sent();
        if sent.is_empty() {
            break;
        }
        sent.iter().for_each(|&(task, replica, _)| f.answer(task, replica, Verdict::Delivered));
    }
    assert_eq!(lane(&f).counters.delivered, ids.len() as u64);
    assert_eq!(f.engine.levels(), Levels::default());
}

#[test]
fn a_probe_that_could_not_be_sent_is_followed_by_another_after_the_same_wait() {
    let mut f = Fixture::new(EngineSettings { breaker_failures: 1, ..settings() });
    let first = f.eventual("k", &["a"]);
    f.sent();
    f.answer(first, 0, failed());
    assert_eq!(lane(&f).breaker, BreakerState::Open);
    let mut probes = 0;
    for _ in 0..40 {
        for (task, replica, _) in f.sent() {
            f.answer(task, replica, shortage());
            probes += 1;
            let wait = lane(&f).next_probe.unwrap().0 - f.now.moment.0;
            assert!((1_000_000..=1_200_000).contains(&wait), "{wait} µs");
        }
        f.pass(Duration::from_millis(500));
    }
    assert!(probes > 5, "{probes}");
    f.pass(Duration::from_secs(3));
    let sent = f.sent();
    f.answer(sent[0].0, 0, Verdict::Delivered);
    assert_ne!(lane(&f).breaker, BreakerState::Open);
}

#[test]
fn the_client_of_a_strong_write_that_could_not_be_sent_is_answered_at_once() {
    let mut f = Fixture::new(settings());
    let id = f.strong("k", &["a", "b"]);
    f.actions();
    f.answer(id, 0, shortage());
    let answers = f.actions();
    let failed = |a: &EngineAction| matches!(a, EngineAction::Conclude { success: false, .. });
    assert!(answers.iter().any(failed), "{answers:?}");
    f.answer(id, 1, Verdict::Delivered);
    f.pass(Duration::from_secs(3));
    assert_eq!(f.sent(), [(id, 0, 1)], "its delivery continues");
}
