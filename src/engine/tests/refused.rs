//! Refused dead letters: kept, tried now and then, and redriven when the replica accepts writes.

use super::*;

fn lane(f: &Fixture) -> LaneView {
    f.engine.lanes().find(|lane| lane.node == node("a")).unwrap()
}

/// Writes of different keys that the replica refused.
fn refuse(f: &mut Fixture, writes: u64) -> Vec<u64> {
    let ids: Vec<_> = (0..writes).map(|n| f.eventual(&format!("k{n}"), &["a"])).collect();
    answer_all(f, Duration::ZERO, |_| refused());
    assert_eq!(lane(f).refused_letters, writes);
    ids
}

/// Answers everything that is sent within `time`. Returns the tasks in the order of sending.
fn answer_all(f: &mut Fixture, time: Duration, how: impl Fn(u64) -> Verdict) -> Vec<u64> {
    let mut tasks = Vec::new();
    let end = f.now.moment.after(time);
    loop {
        let sent = f.sent();
        for &(task, replica, _) in &sent {
            f.answer(task, replica, how(task));
            tasks.push(task);
        }
        if sent.is_empty() {
            let Some(due) = f.engine.wake_at().filter(|&at| at <= end) else { break };
            f.pass(due.since_start().saturating_sub(f.now.moment.since_start()));
        }
    }
    f.pass(end.since_start().saturating_sub(f.now.moment.since_start()));
    tasks
}

fn refused() -> Verdict {
    Verdict::Refused { error: "403 Forbidden".into() }
}

fn accept(f: &mut Fixture, time: Duration) -> Vec<u64> {
    answer_all(f, time, |_| Verdict::Delivered)
}

fn letter(cause: Cause) -> Vec<Progress> {
    let error = "403 Forbidden".into();
    vec![Progress::Dead(DeadLetter { cause, failures: 1, error, since: Timestamp(0) })]
}

#[test]
fn a_refused_write_is_a_dead_letter_at_once_and_not_retried() {
    let mut f = Fixture::new(settings());
    let id = f.eventual("k", &["a"]);
    f.sent();
    f.answer(id, 0, refused());
    let buried = |action| match action {
        EngineAction::Buried { letter, .. } => Some(letter),
        _ => None,
    };
    let letter = f.actions().into_iter().find_map(buried).unwrap();
    assert_eq!(
        (letter.cause, letter.failures, &*letter.error),
        (Cause::Refused, 1, "403 Forbidden")
    );
    let counters = lane(&f).counters;
    assert_eq!((counters.dead, counters.refused, counters.rejected), (1, 1, 0));
    assert_eq!((f.engine.levels().retry, lane(&f).breaker), (0, BreakerState::Closed));
}

#[test]
fn refused_letters_follow_oldest_first_after_the_first_write_that_is_accepted() {
    let mut f = Fixture::new(settings());
    let ids = refuse(&mut f, 50);
    let newer = f.eventual("k7", &["a"]);
    let order = accept(&mut f, Duration::from_millis(900));
    let rest = ids.iter().copied().filter(|&id| id != ids[7]);
    assert_eq!(order, [newer].into_iter().chain(rest).collect::<Vec<_>>());
    assert_eq!(f.engine.levels(), Levels::default());
    assert_eq!(lane(&f).counters.superseded, 1, "the older value of the key is not sent");
}

#[test]
fn a_pass_over_refused_letters_keeps_to_the_redrive_rate() {
    let redrive_rate = NonZeroU32::new(10).unwrap();
    let mut f = Fixture::new(EngineSettings { redrive_rate, ..settings() });
    refuse(&mut f, 100);
    f.eventual("other", &["a"]);
    let redriven = accept(&mut f, Duration::from_secs(2)).len() - 1;
    assert!((18..=22).contains(&redriven), "{redriven}");
}

#[test]
fn a_replica_without_other_traffic_is_tried_with_one_letter_now_and_then() {
    let mut f = Fixture::new(settings());
    let ids = refuse(&mut f, 50);
    let tried = answer_all(&mut f, Duration::from_secs(55), |_| refused());
    assert_eq!(tried, [ids[0]; 5], "after 1, 3, 7, 15 and 31 seconds");
    let order = accept(&mut f, Duration::from_secs(60));
    assert_eq!(order, ids);
    assert_eq!(f.engine.levels(), Levels::default());
}

#[test]
fn letters_that_are_refused_for_themselves_do_not_keep_the_others_from_an_idle_replica() {
    let mut f = Fixture::new(settings());
    let ids = refuse(&mut f, 20);
    answer_all(&mut f, Duration::from_secs(600), |_| refused());
    let bad = |task| [ids[0], ids[1], ids[7]].contains(&task);
    let how = |task| if bad(task) { refused() } else { Verdict::Delivered };
    answer_all(&mut f, Duration::from_secs(300), how);
    assert_eq!((lane(&f).counters.delivered, lane(&f).refused_letters), (17, 3));
    let tried = answer_all(&mut f, Duration::from_secs(600), how);
    assert!((9..=11).contains(&tried.len()), "one a minute: {tried:?}");
}

#[test]
fn a_pass_stops_at_a_refusal_and_the_rest_waits_for_the_next_sign() {
    let mut f = Fixture::new(EngineSettings { workers: workers(1), ..settings() });
    let ids = refuse(&mut f, 100);
    f.eventual("other", &["a"]);
    let how = |task| if task <= ids[9] || task > ids[99] { Verdict::Delivered } else { refused() };
    let tried = answer_all(&mut f, Duration::from_millis(900), how);
    assert_eq!(tried.len(), 1 + 10 + 1, "{tried:?}");
    assert_eq!((lane(&f).refused_letters, lane(&f).counters.dead), (90, 90));
    f.eventual("another", &["a"]);
    let order = accept(&mut f, Duration::from_secs(4));
    assert_eq!(order[1..], [&ids[11..], &ids[10..11]].concat(), "from where it stopped");
}

#[test]
fn a_replica_that_refuses_some_keys_for_good_is_not_asked_again_after_each_accepted_write() {
    let mut f = Fixture::new(settings());
    let ids = refuse(&mut f, 3);
    let mut tried = 0;
    for n in 0..6_000 {
        let live = f.eventual(&format!("live{n}"), &["a"]);
        let how = |task| if ids.contains(&task) { refused() } else { Verdict::Delivered };
        let sent = answer_all(&mut f, Duration::from_millis(100), how);
        assert!(sent.contains(&live));
        tried += sent.len() - 1;
    }
    assert!((5..50).contains(&tried), "{tried} in ten minutes");
    assert_eq!(lane(&f).refused_letters, 3);
}

#[test]
fn an_answer_to_a_write_that_was_sent_before_the_refusal_is_no_sign() {
    let mut f = Fixture::new(settings());
    let (old, id) = (f.eventual("old", &["a"]), f.eventual("k", &["a"]));
    f.sent();
    f.pass(Duration::from_millis(500));
    f.answer(id, 0, refused());
    f.pass(Duration::from_millis(100));
    let took = Duration::from_millis(600);
    f.ended(old, 0, AttemptOutcome::certain(Verdict::Delivered, took));
    f.pass(Duration::from_millis(500));
    assert_eq!(f.sent(), []);
}

#[test]
fn new_writes_are_sent_to_a_replica_that_refuses() {
    let mut f = Fixture::new(settings());
    refuse(&mut f, 10);
    let id = f.eventual("new", &["a"]);
    assert_eq!(f.sent(), [(id, 0, 1)]);
}

#[test]
fn a_refusal_fails_a_strong_write_at_once() {
    let mut f = Fixture::new(settings());
    let id = f.strong("s", &["a", "b"]);
    f.sent();
    f.answer(id, 0, refused());
    let answers = f.actions();
    assert!(
        answers.iter().any(|a| matches!(a, EngineAction::Conclude { success: false, .. })),
        "{answers:?}"
    );
}

#[test]
fn a_reload_of_the_credentials_tries_one_letter_of_each_replica_at_once() {
    let mut f = Fixture::new(settings());
    let ids: Vec<_> = (0..20).map(|n| f.eventual(&format!("k{n}"), &["a", "b"])).collect();
    answer_all(&mut f, Duration::from_secs(20), |_| refused());
    f.engine.credentials_renewed(f.now);
    f.pass(Duration::ZERO);
    let mut sent = f.sent();
    sent.sort_unstable();
    assert_eq!(sent, [(ids[0], 0, 1), (ids[0], 1, 1)]);
    f.answer(ids[0], 0, Verdict::Delivered);
    f.answer(ids[0], 1, refused());
    answer_all(&mut f, Duration::from_millis(900), |_| Verdict::Delivered);
    let delivered = |name| {
        let lane = f.engine.lanes().find(|lane| lane.node == node(name)).unwrap();
        lane.counters.delivered
    };
    assert_eq!((delivered("a"), delivered("b")), (20, 0));
}

#[test]
fn refused_letters_found_on_disk_are_tried_one_by_one_until_one_is_accepted() {
    for accepts in [false, true] {
        let mut f = Fixture::new(settings());
        for id in 1..=30 {
            let cause = if id % 3 == 0 { Cause::GaveUp } else { Cause::Refused };
            f.recover(id, &id.to_string(), &["a"], letter(cause));
        }
        let how = |_| if accepts { Verdict::Delivered } else { refused() };
        let sent = answer_all(&mut f, Duration::from_secs(2), how);
        if accepts {
            assert_eq!(sent, (1..=30).collect::<Vec<_>>());
        } else {
            assert_eq!(sent, [1], "one probe");
            assert_eq!((lane(&f).counters.dead, lane(&f).refused_letters), (30, 20));
        }
    }
}

#[test]
fn a_refused_letter_never_expires_whatever_becomes_of_its_redrives() {
    let retention = Some(Duration::from_secs(60));
    let mut f = Fixture::new(EngineSettings { dead_letter_retention: retention, ..settings() });
    let ids = refuse(&mut f, 3);
    answer_all(&mut f, Duration::from_secs(3600), |_| refused());
    let delivery = DeliveryId { task: TaskId(ids[0]), replica: ReplicaIndex(0) };
    assert_eq!(f.engine.redrive_letter(f.now, delivery, None), AdminOutcome::Done);
    answer_all(&mut f, Duration::from_secs(3600), |_| refused());
    assert_eq!((lane(&f).refused_letters, lane(&f).counters.discarded), (3, 0));
    let letters = f.engine.find_letters(&DeliveryFilter::default(), None, 10).items;
    assert!(letters.iter().all(|letter| letter.delivery.cause == Some(Cause::Refused)));
    assert_eq!(lane(&f).counters.refused, 3, "a try is not another refused delivery");
}

#[test]
fn a_refused_letter_stays_one_when_its_replica_is_down_while_it_is_tried() {
    let mut f = Fixture::new(EngineSettings { breaker_failures: 1, ..settings() });
    let ids = refuse(&mut f, 1);
    f.pass(Duration::from_secs(1));
    assert_eq!(f.sent(), [(ids[0], 0, 1)]);
    f.answer(ids[0], 0, failed());
    let saved = |action| match action {
        EngineAction::Save { progress, .. } => Some(progress),
        _ => None,
    };
    let progress = f.actions().into_iter().filter_map(saved).next_back().unwrap();
    let [Progress::Dead(letter)] = &*progress else { panic!("{progress:?}") };
    assert_eq!((letter.cause, letter.failures), (Cause::Refused, 2));
    assert_eq!((lane(&f).breaker, lane(&f).refused_letters), (BreakerState::Open, 1));
    assert_eq!(accept(&mut f, Duration::from_secs(5)), ids);
}

#[test]
fn a_given_up_letter_that_is_refused_stops_the_pass_and_becomes_a_refused_one() {
    let mut f = Fixture::new(settings());
    (1..=10).for_each(|id| f.recover(id, &id.to_string(), &["a"], letter(Cause::GaveUp)));
    let sent = answer_all(&mut f, Duration::from_millis(1_500), |_| refused());
    assert_eq!(sent, [1]);
    assert_eq!((lane(&f).counters.dead, lane(&f).refused_letters), (10, 1));
    assert_eq!(accept(&mut f, Duration::from_secs(5)), (1..=10).collect::<Vec<_>>());
}

#[test]
fn without_handoff_refused_letters_wait_for_the_operator() {
    let mut f = Fixture::new(EngineSettings { hinted_handoff: false, ..settings() });
    let ids = refuse(&mut f, 5);
    let new = f.eventual("new", &["a"]);
    f.engine.credentials_renewed(f.now);
    assert_eq!(accept(&mut f, Duration::from_secs(3600)), [new]);
    assert_eq!(lane(&f).refused_letters, 5);
    let delivery = DeliveryId { task: TaskId(ids[2]), replica: ReplicaIndex(0) };
    assert_eq!(f.engine.redrive_letter(f.now, delivery, None), AdminOutcome::Done);
    assert_eq!(accept(&mut f, Duration::from_secs(10)), [ids[2]]);
}

#[test]
fn a_paused_replica_is_not_tried_until_it_is_resumed() {
    let mut f = Fixture::new(settings());
    let ids = refuse(&mut f, 5);
    f.engine.pause(f.now, &node("a"), Some(f.now.wall.into()));
    f.engine.credentials_renewed(f.now);
    assert!(accept(&mut f, Duration::from_secs(100)).is_empty());
    f.engine.pause(f.now, &node("a"), None);
    assert_eq!(accept(&mut f, Duration::from_secs(1)), ids);
}

#[test]
fn a_resend_that_is_refused_is_sent_again_later() {
    let mut f = Fixture::new(settings());
    let old = f.eventual("k", &["a"]);
    f.sent();
    f.answer_ambiguously(old, 0, failed());
    let new = f.eventual("k", &["a"]);
    f.sent();
    f.answer(new, 0, Verdict::Delivered);
    f.pass(Duration::from_secs(30));
    assert_eq!(f.sent().len(), 1, "the resend");
    f.answer(new, 0, refused());
    assert_eq!(lane(&f).refused_letters, 0);
    assert_eq!(accept(&mut f, Duration::from_secs(60)), [new]);
}

#[test]
fn an_accepted_write_counts_although_others_are_refused_meanwhile() {
    let mut f = Fixture::new(settings());
    let ids = refuse(&mut f, 20);
    let slow = f.eventual("slow", &["a"]);
    f.sent();
    f.pass(Duration::from_millis(50));
    let bad = f.eventual("bad", &["a"]);
    f.sent();
    f.answer(bad, 0, refused());
    f.pass(Duration::from_millis(50));
    f.ended(slow, 0, AttemptOutcome::certain(Verdict::Delivered, Duration::from_millis(100)));
    let good = |task| if task == bad { refused() } else { Verdict::Delivered };
    let order = answer_all(&mut f, Duration::from_millis(900), good);
    assert!(ids.iter().all(|id| order.contains(id)), "{order:?}");
}

#[test]
fn letters_that_were_given_up_do_not_wait_for_one_that_is_refused_for_good() {
    let mut f = Fixture::new(settings());
    f.recover(1, "bad", &["a"], letter(Cause::Refused));
    (2..=4).for_each(|id| f.recover(id, &id.to_string(), &["a"], letter(Cause::GaveUp)));
    let good = |task| if task == 1 { refused() } else { Verdict::Delivered };
    let order = answer_all(&mut f, Duration::from_secs(600), good);
    assert!((2..=4).all(|id| order.contains(&id)), "{order:?}");
}
