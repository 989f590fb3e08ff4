//! Operator actions.

use super::*;
use crate::task::ReplicaPause;

fn gave_up(f: &mut Fixture, key: &str, nodes: &[&str]) -> u64 {
    let id = f.eventual(key, nodes);
    f.sent();
    for replica in (0..).take(nodes.len()) {
        f.answer(id, replica, rejected());
    }
    f.actions();
    id
}

fn letter(id: u64) -> DeliveryId {
    DeliveryId { task: TaskId(id), replica: ReplicaIndex(0) }
}

fn counters(f: &Fixture, name: &str) -> Counters {
    f.engine.lanes().find(|lane| lane.node == node(name)).unwrap().counters
}

#[test]
fn a_paused_replica_gets_nothing_until_it_is_resumed() {
    let mut f = Fixture::new(settings());
    f.engine.pause(f.now, &node("a"), Some(f.now.wall.into()));
    let ids = [f.eventual("k", &["a", "b"]), f.eventual("l", &["a"])];
    let strong = f.strong("m", &["a"]);
    assert_eq!(f.sent(), [(ids[0], 1, 1)]);
    f.engine.pause(f.now, &node("a"), None);
    assert_eq!(f.sent(), [(strong, 0, 1), (ids[0], 0, 1), (ids[1], 0, 1)]);
}

fn ended(f: &mut Fixture) -> Vec<Node> {
    let ended = f.actions().into_iter().filter_map(|action| match action {
        EngineAction::PauseEnded { node, .. } => Some(node),
        _ => None,
    });
    ended.collect()
}

#[test]
fn a_pause_with_an_end_ends_by_itself_at_that_moment() {
    let mut f = Fixture::new(settings());
    let (since, hour) = (f.now.wall, Duration::from_secs(3600));
    let pause = ReplicaPause { since, until: Some(since.saturating_add(hour)) };
    f.engine.pause(f.now, &node("a"), Some(pause));
    let id = f.eventual("k", &["a"]);
    f.pass(hour - Duration::from_millis(1));
    assert_eq!(
        (f.sent(), f.engine.wake_at()),
        (vec![], Some(f.now.moment.after(Duration::from_millis(1))))
    );
    f.pass(Duration::from_millis(1));
    let actions = f.actions();
    assert_eq!(actions.first(), Some(&EngineAction::PauseEnded { node: node("a"), pause }));
    assert!(
        matches!(actions.get(1), Some(EngineAction::Send { delivery, .. }) if delivery.task.0 == id)
    );
}

#[test]
fn a_wall_clock_that_is_set_ends_no_pause_and_prolongs_none() {
    let mut f = Fixture::new(settings());
    let (since, hour) = (f.now.wall, Duration::from_secs(3600));
    let pause = ReplicaPause { since, until: Some(since.saturating_add(hour)) };
    f.engine.pause(f.now, &node("a"), Some(pause));
    f.now.wall = since.saturating_add(hour * 24);
    // As when its record is read again.
    f.engine.pause(f.now, &node("a"), Some(pause));
    f.pass(hour / 2);
    assert_eq!(ended(&mut f), []);
    f.now.wall = Timestamp(0);
    f.pass(hour / 2);
    assert_eq!(ended(&mut f), [node("a")]);
    // After a restart, for no longer than it was meant to last.
    f.engine.pause(f.now, &node("a"), Some(pause));
    f.pass(hour);
    assert_eq!(ended(&mut f), [node("a")]);
}

#[test]
fn a_pause_that_ended_while_no_daemon_ran_ends_at_once() {
    let mut f = Fixture::new(settings());
    let pause = ReplicaPause { since: Timestamp(0), until: Some(Timestamp(1)) };
    f.now.wall = Timestamp(2);
    f.engine.pause(f.now, &node("a"), Some(pause));
    f.pass(Duration::ZERO);
    assert_eq!(ended(&mut f), [node("a")]);
}

#[test]
fn a_pause_keeps_the_lane_of_a_replica_with_nothing_to_do() {
    let mut f = Fixture::new(EngineSettings { max_known_replicas: 1, ..settings() });
    f.engine.pause(f.now, &node("a"), Some(f.now.wall.into()));
    assert!(matches!(f.append("k", &["b"], Consistency::Eventual), Err(Full::Replicas(1))));
    f.engine.pause(f.now, &node("a"), None);
    f.eventual("k", &["b"]);
}

#[test]
fn a_requested_probe_is_sent_at_once() {
    let probing = ProbeState { breaker: BreakerState::Open, probing: true };
    let mut f = Fixture::new(EngineSettings { breaker_failures: 1, ..settings() });
    let id = f.eventual("k", &["a"]);
    f.sent();
    f.answer(id, 0, failed());
    f.actions();
    assert_eq!(f.engine.probe(f.now, &node("b")), None);
    assert_eq!(f.engine.probe(f.now, &node("a")), Some(probing), "its retry is not due yet");
    assert_eq!(f.sent(), [(id, 0, 2)]);
    assert_eq!(f.engine.probe(f.now, &node("a")), Some(probing), "it is in flight");
    assert_eq!(f.sent(), []);
}

#[test]
fn without_a_delivery_a_requested_probe_is_the_next_write() {
    let mut f = Fixture::new(EngineSettings { breaker_failures: 1, ..settings() });
    let id = f.eventual("k", &["a"]);
    f.sent();
    f.answer(id, 0, failed());
    assert!(f.engine.discard_task(f.now, TaskId(id)));
    f.actions();
    let state = ProbeState { breaker: BreakerState::Open, probing: false };
    assert_eq!(f.engine.probe(f.now, &node("a")), Some(state));
    let other = f.eventual("l", &["a"]);
    assert_eq!(f.sent(), [(other, 0, 1)]);
}

#[test]
fn a_requested_probe_does_not_wait_for_the_redrive_rate() {
    let redrive_rate = NonZeroU32::MIN;
    let mut f = Fixture::new(EngineSettings {
        breaker_failures: 1,
        max_retries: 0,
        redrive_rate,
        ..settings()
    });
    let id = f.eventual("k", &["a"]);
    f.sent();
    for _ in 0..3 {
        f.answer(id, 0, failed());
        f.actions();
        let probed = f.engine.probe(f.now, &node("a"));
        assert!(probed.is_some_and(|probed| probed.probing));
        assert_eq!(f.sent(), [(id, 0, 1)]);
    }
}

#[test]
fn an_operator_can_redrive_a_rejected_write() {
    let mut f = Fixture::new(settings());
    let id = gave_up(&mut f, "k", &["a"]);
    assert_eq!(f.engine.would_redrive(letter(id)), AdminOutcome::Done);
    assert_eq!(f.engine.redrive_letter(f.now, letter(id), None), AdminOutcome::Done);
    assert_eq!(f.engine.redrive_letter(f.now, letter(id), None), AdminOutcome::Gone);
    assert_eq!(f.sent(), [(id, 0, 1)]);
    f.answer(id, 0, Verdict::Delivered);
    let counters = counters(&f, "a");
    assert_eq!((counters.delivered, counters.dead, counters.redriven), (1, 0, 1));
}

#[test]
fn an_operator_cannot_redrive_a_letter_while_a_newer_write_is_pending() {
    let mut f = Fixture::new(settings());
    let id = gave_up(&mut f, "k", &["a"]);
    let newer = f.eventual("k", &["a"]);
    assert_eq!(f.engine.redrive_letter(f.now, letter(id), None), AdminOutcome::LeftOut);
    assert_eq!(f.sent(), [(newer, 0, 1)]);
}

#[test]
fn a_letter_of_a_failing_replica_is_not_reported_as_redriven() {
    let mut f = Fixture::new(EngineSettings { hinted_handoff: false, ..settings() });
    let ids: Vec<_> = (0..5).map(|n| gave_up(&mut f, &n.to_string(), &["a"])).collect();
    for n in 0..5 {
        let id = f.eventual(&format!("other{n}"), &["a"]);
        f.answer(id, 0, failed());
    }
    f.sent();
    for id in ids {
        assert_eq!(f.engine.would_redrive(letter(id)), AdminOutcome::HeldBack);
        assert_eq!(f.engine.redrive_letter(f.now, letter(id), None), AdminOutcome::HeldBack);
    }
    assert_eq!(f.sent(), []);
    assert_eq!(counters(&f, "a").redriven, 0);
}

#[test]
fn without_handoff_a_letter_is_a_probe_only_on_request() {
    let mut f = Fixture::new(EngineSettings { hinted_handoff: false, ..settings() });
    let id = f.eventual("k", &["a"]);
    for _ in 0..40 {
        f.sent().iter().for_each(|&(task, replica, _)| f.answer(task, replica, failed()));
        f.pass(Duration::from_secs(1));
    }
    assert_eq!((counters(&f, "a").dead, counters(&f, "a").redriven), (1, 0));
    let probed = f.engine.probe(f.now, &node("a")).unwrap();
    assert_eq!((probed.probing, f.sent()), (true, vec![(id, 0, 1)]));
}

#[test]
fn a_letter_that_is_named_twice_is_listed_once() {
    let mut f = Fixture::new(settings());
    let id = TaskId(gave_up(&mut f, "k", &["a", "b"]));
    let named = [(id, None), (id, Some(node("a"))), (id, None)];
    assert_eq!(f.engine.letters_of(&named, &DeliveryFilter::default()).items.len(), 2);
}

#[test]
fn an_older_letter_is_not_redriven_after_a_newer_write_was_discarded() {
    let mut f = Fixture::new(settings());
    let id = gave_up(&mut f, "k", &["a"]);
    let newer = f.eventual("k", &["a"]);
    f.sent();
    f.answer_ambiguously(newer, 0, failed());
    assert!(f.engine.discard_task(f.now, TaskId(newer)));
    assert_eq!(f.engine.redrive_letter(f.now, letter(id), None), AdminOutcome::Gone);
    let counters = counters(&f, "a");
    assert_eq!((counters.superseded, counters.discarded), (1, 1));
}

#[test]
fn a_delivery_in_flight_is_not_retried_after_its_task_is_discarded() {
    let mut f = Fixture::new(settings());
    let id = f.eventual("k", &["a", "b"]);
    f.sent();
    assert!(f.engine.discard_task(f.now, TaskId(id)));
    f.answer_ambiguously(id, 0, failed());
    f.answer(id, 1, Verdict::Delivered);
    assert_eq!((counters(&f, "a").discarded, counters(&f, "b").delivered), (1, 1));
    f.pass(Duration::from_secs(60));
    assert_eq!(f.sent(), []);
    assert!(!f.engine.discard_task(f.now, TaskId(id)), "the task is gone");
}

#[test]
fn the_next_write_of_the_key_follows_a_discarded_task() {
    let mut f = Fixture::new(settings());
    let [first, second, third] = ["1", "2", "3"].map(|_| f.eventual("k", &["a"]));
    assert_eq!(f.sent(), [(first, 0, 1)]);
    f.engine.discard_task(f.now, TaskId(second));
    f.answer(first, 0, Verdict::Delivered);
    assert_eq!(f.sent(), [(third, 0, 1)]);
}

#[test]
fn a_forgotten_replica_has_nothing_left_and_can_be_used_again() {
    let mut f = Fixture::new(EngineSettings { queue_capacity: 10_000, ..settings() });
    gave_up(&mut f, "dead", &["a"]);
    let ids: Vec<_> =
        (0..9_000).map(|n| f.append(&n.to_string(), &["a", "b"], Consistency::Eventual)).collect();
    let admitted = ids.iter().filter(|id| id.is_ok()).count() as u64;
    f.commit(f.next_id - 1);
    assert_eq!(f.engine.forget(f.now, &node("c")), None);
    let forgotten = f.engine.forget(f.now, &node("a")).unwrap();
    assert_eq!(forgotten, ForgetCounts { discarded: admitted + 1 - 5, in_flight: 5 });
    f.sent();
    while f.engine.is_forgetting(&node("a")) {
        f.pass(Duration::from_millis(1));
    }
    let a = counters(&f, "a");
    assert_eq!((a.discarded, a.pending, a.dead), (admitted + 1 - 5, 5, 0));
    assert_eq!(counters(&f, "b").pending, admitted);
    let new = f.eventual("new", &["a"]);
    (1..=admitted + 1).for_each(|id| {
        f.answer(id, 0, failed());
    });
    assert!(f.sent().contains(&(new, 0, 1)));
}

#[test]
fn a_forgotten_replica_is_not_shown_as_failing() {
    let mut f = Fixture::new(settings());
    let ids: Vec<_> = (0..20).map(|n| f.eventual(&n.to_string(), &["a"])).collect();
    ids[..5].iter().for_each(|&id| f.answer(id, 0, failed()));
    let lane = |f: &Fixture| f.engine.lanes().next().unwrap();
    assert_eq!(lane(&f).breaker, BreakerState::Open);
    f.engine.forget(f.now, &node("a"));
    f.pass(Duration::from_millis(100));
    // The deliveries that were in flight.
    ids.iter().for_each(|&id| f.answer(id, 0, failed()));
    assert_eq!(f.engine.lanes().count(), 0);
    f.eventual("again", &["a"]);
    assert_eq!((lane(&f).breaker, lane(&f).last_error), (BreakerState::Closed, None));
    assert_eq!(lane(&f).counters.pending, 1);
}

#[test]
fn a_rename_by_another_process_is_followed_when_the_pause_of_the_new_address_came_first() {
    let mut f = Fixture::new(settings());
    f.eventual("k", &["a", "b"]);
    f.sent();
    let pause = Some(f.now.wall.into());
    f.engine.pause(f.now, &node("a"), pause);
    f.engine.pause(f.now, &node("new"), pause);
    assert_eq!(f.engine.rename(f.now, &node("a"), &node("new")), Err(RenameError::Used));
    assert_eq!(f.engine.follow_rename(f.now, &node("a"), &node("b")), Err(RenameError::Used));
    assert_eq!(f.engine.follow_rename(f.now, &node("a"), &node("new")), Ok(()));
    let lanes: Vec<_> = f.engine.lanes().map(|lane| (lane.node, lane.paused)).collect();
    assert!(lanes.contains(&(node("new"), pause)), "{lanes:?}");
    assert!(lanes.iter().all(|(lane, _)| *lane != node("a")), "{lanes:?}");
}

#[test]
fn a_rename_by_another_process_is_followed_when_only_the_new_address_has_deliveries() {
    let mut f = Fixture::new(settings());
    let old = f.eventual("k", &["a"]);
    let new = f.eventual("k", &["new"]);
    f.sent();
    assert_eq!(f.engine.follow_rename(f.now, &node("a"), &node("new")), Err(RenameError::Used));
    f.answer(old, 0, Verdict::Delivered);
    assert_eq!(f.engine.follow_rename(f.now, &node("a"), &node("new")), Ok(()));
    let lanes: Vec<_> = f.engine.lanes().map(|lane| lane.node).collect();
    assert_eq!(lanes, [node("new")]);
    f.answer(new, 0, Verdict::Delivered);
    assert_eq!(f.engine.totals().unaccounted(), 0);
}

#[test]
fn a_renamed_replica_keeps_its_backlog_and_dead_letters() {
    let mut f = Fixture::new(settings());
    let dead = gave_up(&mut f, "dead", &["a"]);
    f.engine.pause(f.now, &node("a"), Some(f.now.wall.into()));
    let waits = f.eventual("k", &["a"]);
    assert_eq!(f.engine.rename(f.now, &node("x"), &node("y")), Err(RenameError::Unknown));
    f.eventual("k", &["b"]);
    assert_eq!(f.engine.rename(f.now, &node("a"), &node("b")), Err(RenameError::Used));
    assert_eq!(f.engine.rename(f.now, &node("a"), &node("new")), Ok(()));
    f.sent();
    f.engine.pause(f.now, &node("new"), None);
    let sent = f.actions().into_iter().filter_map(|action| match action {
        EngineAction::Send { delivery, node, .. } => Some((delivery.task.0, node)),
        _ => None,
    });
    assert_eq!(sent.collect::<Vec<_>>(), [(waits, node("new"))]);
    let found = f.engine.find_letters(&DeliveryFilter::default(), None, 10);
    assert_eq!(found.items[0].task, TaskId(dead));
    assert_eq!(found.items[0].delivery.node, node("new"));
}

#[test]
fn a_barrier_is_reached_when_everything_before_it_is_settled_or_dead() {
    let mut f = Fixture::new(settings());
    let before = f.eventual("k", &["a", "b"]);
    f.sent();
    let lanes = |f: &mut Fixture, nodes: &[Node]| {
        let lanes = f.engine.barrier(TaskId(before), nodes).unwrap().lanes;
        lanes.into_iter().map(|lane| (lane.pending, lane.dead)).collect::<Vec<_>>()
    };
    assert_eq!(lanes(&mut f, &[]), [(1, 0), (1, 0)]);
    f.eventual("after", &["a", "b"]);
    assert_eq!(lanes(&mut f, &[]), [(1, 0), (1, 0)]);
    f.answer(before, 0, Verdict::Delivered);
    f.answer(before, 1, rejected());
    assert_eq!(lanes(&mut f, &[]), [(0, 0), (0, 1)]);
    assert_eq!(lanes(&mut f, &[node("b")]), [(0, 1)], "counted again");
}

#[test]
fn tasks_and_letters_are_found_by_filter_and_in_pages() {
    let mut f = Fixture::new(settings());
    let dead = gave_up(&mut f, "dead", &["a", "b"]);
    let ids: Vec<_> = (0..7).map(|n| f.eventual(&format!("k{n}"), &["a"])).collect();
    f.sent();
    let find = |f: &Fixture, wanted: &DeliveryFilter, after: Option<TaskId>| {
        let found = f.engine.find_tasks(wanted, after, 3);
        (found.items.iter().map(|task| task.id.0).collect::<Vec<_>>(), found.next)
    };
    let in_flight =
        DeliveryFilter { state: Some(DeliveryState::InFlight), ..DeliveryFilter::default() };
    let (first, next) = find(&f, &in_flight, None);
    assert_eq!(first, ids[..3]);
    assert_eq!(find(&f, &in_flight, next), (ids[3..5].to_vec(), None));
    let queued = DeliveryFilter { state: Some(DeliveryState::Queued), ..DeliveryFilter::default() };
    assert_eq!(find(&f, &queued, None), (ids[5..].to_vec(), None));
    let of_b = DeliveryFilter { node: Some(node("b")), ..DeliveryFilter::default() };
    assert_eq!(find(&f, &of_b, None), (vec![dead], None));
    let unknown = DeliveryFilter { node: Some(node("x")), ..DeliveryFilter::default() };
    assert_eq!(find(&f, &unknown, None), (vec![], None));
    let of_key = DeliveryFilter { key: Some(f.keys.id("k4")), ..DeliveryFilter::default() };
    assert_eq!(find(&f, &of_key, None), (vec![ids[4]], None));
    let letters = f.engine.find_letters(&DeliveryFilter::default(), None, 1);
    let rest = f.engine.find_letters(&DeliveryFilter::default(), letters.next, 10);
    let replicas = [&letters, &rest].map(|found| found.items[0].replica.0);
    assert_eq!((replicas, rest.next), ([0, 1], None));
}

#[test]
fn a_watcher_gets_every_change_and_every_end() {
    let mut f = Fixture::new(settings());
    f.engine.watch(true);
    f.engine.report_ends(true);
    let id = f.eventual("k", &["a"]);
    f.sent();
    f.answer(id, 0, Verdict::Delivered);
    let actions: Vec<_> = f.actions();
    let change = EngineAction::Changed {
        task: TaskId(id),
        node: node("a"),
        change: TaskChange::Delivered,
        error: None,
    };
    assert_eq!(actions[0], change);
    let EngineAction::Ended { last } = &actions[1] else { panic!("{actions:?}") };
    assert_eq!(last.deliveries[0].state, DeliveryState::Delivered);
    assert_eq!(actions[2], EngineAction::Remove { task: TaskId(id) });
}

/// The reported outcomes of redriven letters.
fn outcomes(f: &mut Fixture) -> Vec<(u32, RedriveOutcome)> {
    let ended = |action| match action {
        EngineAction::RedriveEnded { operation, outcome } => Some((operation, outcome)),
        _ => None,
    };
    f.actions().into_iter().filter_map(ended).collect()
}

#[test]
fn the_outcome_of_a_redriven_letter_is_reported_once_to_its_operation() {
    let mut f = Fixture::new(settings());
    let ids =
        ["delivered", "failed", "superseded", "discarded"].map(|key| gave_up(&mut f, key, &["a"]));
    for (operation, id) in (1..).zip(ids) {
        f.engine.redrive_letter(f.now, letter(id), Some(operation));
    }
    assert_eq!(outcomes(&mut f), []);
    f.answer(ids[0], 0, Verdict::Delivered);
    assert_eq!(outcomes(&mut f), [(1, RedriveOutcome::Delivered)]);
    f.answer(ids[1], 0, rejected());
    assert_eq!(outcomes(&mut f), [(2, RedriveOutcome::Failed)]);
    f.answer(ids[2], 0, failed());
    f.eventual("superseded", &["a"]);
    assert_eq!(outcomes(&mut f), [(3, RedriveOutcome::Superseded)]);
    f.answer(ids[3], 0, failed());
    f.engine.discard_task(f.now, TaskId(ids[3]));
    assert_eq!(outcomes(&mut f), [(4, RedriveOutcome::Discarded)]);
    f.engine.discard_letter(f.now, letter(ids[1]));
    assert_eq!(outcomes(&mut f), [], "its redrive ended before");
    let handed_over = gave_up(&mut f, "handed over", &["a"]);
    f.engine.redrive_letter(f.now, letter(handed_over), Some(5));
    f.actions();
    f.engine.release(f.now, Partition(0));
    assert_eq!(outcomes(&mut f), [(5, RedriveOutcome::HandedOver)]);
}

#[test]
fn a_task_shows_the_last_five_attempts_of_a_delivery_that_failed() {
    let mut f = Fixture::new(EngineSettings { breaker_failures: 0, ..settings() });
    let errors = |f: &Fixture, id: u64| {
        let view = f.engine.view(TaskId(id)).unwrap();
        let shown = |attempt: &EndedSend| attempt.error.as_deref().map(str::to_owned);
        view.deliveries[0].attempts.iter().map(shown).collect::<Vec<_>>()
    };
    let id = f.eventual("k", &["a"]);
    f.sent();
    for n in 0..4 {
        f.answer(id, 0, Verdict::Retry { after: None, error: format!("down {n}").into() });
        f.pass(Duration::from_secs(10));
    }
    assert_eq!(
        errors(&f, id),
        ["down 0", "down 1", "down 2", "down 3"].map(|e| Some(e.to_owned()))
    );
    // Given up, and redriven twice.
    for n in 4..6 {
        f.engine.redrive_letter(f.now, letter(id), None);
        f.answer(id, 0, Verdict::Rejected { error: format!("down {n}").into() });
    }
    assert_eq!(errors(&f, id)[0], Some("down 1".to_owned()));
    f.actions();
    f.engine.report_ends(true);
    f.engine.redrive_letter(f.now, letter(id), None);
    f.answer(id, 0, Verdict::Delivered);
    let actions = f.actions();
    let last = actions.iter().find_map(|action| match action {
        EngineAction::Ended { last } => Some(&last.deliveries[0].attempts),
        _ => None,
    });
    let last: Vec<_> = last.unwrap().iter().map(|attempt| attempt.error.as_deref()).collect();
    assert_eq!(last, [Some("down 2"), Some("down 3"), Some("down 4"), Some("down 5"), None]);

    let well = f.eventual("l", &["a", "b"]);
    f.answer(well, 0, Verdict::Delivered);
    assert_eq!(errors(&f, well), [None; 0], "nothing is kept of a delivery that never failed");
}

#[test]
fn deliveries_with_the_same_error_share_its_text() {
    let mut f = Fixture::new(EngineSettings { breaker_failures: 0, ..settings() });
    let ids = ["k", "l"].map(|key| f.eventual(key, &["a"]));
    ids.iter().for_each(|&id| f.answer(id, 0, failed()));
    let [one, two] = ids.map(|id| {
        let mut view = f.engine.view(TaskId(id)).unwrap();
        view.deliveries.remove(0).attempts.remove(0).error.unwrap()
    });
    assert!(Arc::ptr_eq(&one, &two));
}

#[test]
fn a_letter_of_a_paused_replica_is_not_redriven_until_it_is_resumed() {
    let mut f = Fixture::new(settings());
    let id = gave_up(&mut f, "k", &["a"]);
    let levels = f.engine.levels();
    f.engine.pause(f.now, &node("a"), Some(f.now.wall.into()));
    assert_eq!(f.engine.would_redrive(letter(id)), AdminOutcome::HeldBack);
    assert_eq!(f.engine.redrive_letter(f.now, letter(id), None), AdminOutcome::HeldBack);
    assert_eq!(f.engine.levels(), levels, "it is charged as a dead letter");
    f.engine.pause(f.now, &node("a"), None);
    assert_eq!(f.engine.redrive_letter(f.now, letter(id), None), AdminOutcome::Done);
    assert_eq!(f.sent(), [(id, 0, 1)]);
}

#[test]
fn parked_deliveries_of_a_paused_replica_take_no_retry_places() {
    let mut f =
        Fixture::new(EngineSettings { retry_capacity: 1, breaker_failures: 0, ..settings() });
    let ids = ["k", "l"].map(|key| f.eventual(key, &["a"]));
    f.sent();
    ids.iter().for_each(|&id| f.answer(id, 0, failed()));
    assert_eq!((f.engine.levels().retry, f.engine.levels().dead_letters), (1, 1));
    f.engine.pause(f.now, &node("a"), Some(f.now.wall.into()));
    assert_eq!(f.engine.would_redrive(letter(ids[1])), AdminOutcome::HeldBack);
    f.engine.discard_task(f.now, TaskId(ids[0]));
    f.pass(Duration::from_secs(60));
    assert_eq!((f.engine.levels().retry, f.engine.levels().dead_letters), (0, 1));
    let other = f.eventual("m", &["b"]);
    f.answer(other, 0, failed());
    assert_eq!((f.engine.levels().retry, f.engine.levels().dead_letters), (1, 1), "b has it");
    f.answer(other, 0, failed());
    f.engine.discard_task(f.now, TaskId(other));
    f.engine.pause(f.now, &node("a"), None);
    f.pass(Duration::from_secs(60));
    assert_eq!(f.sent().last(), Some(&(ids[1], 0, 2)));
}

#[test]
fn a_forgotten_replica_is_hidden_once_it_is_empty_until_a_write_names_it() {
    let nodes = |f: &Fixture| {
        let mut nodes: Vec<_> = f.engine.lanes().map(|lane| lane.node).collect();
        nodes.sort();
        nodes
    };
    let mut f = Fixture::new(settings());
    let on_the_wire = f.eventual("k", &["a", "b"]);
    f.sent();
    f.engine.forget(f.now, &node("a"));
    f.pass(Duration::from_millis(100));
    assert_eq!(nodes(&f), [node("a"), node("b")], "one delivery is in flight");
    let barrier = f.engine.barrier(TaskId(99), &[]).unwrap();
    assert_eq!(barrier.lanes.len(), 2);
    f.answer(on_the_wire, 0, failed());
    assert_eq!(nodes(&f), [node("b")]);
    assert_eq!(f.engine.barrier(TaskId(98), &[]).unwrap().lanes.len(), 1);
    let view = f.engine.view(TaskId(on_the_wire)).unwrap();
    assert_eq!(view.deliveries[0].node, node("a"), "the task still shows it");
    let again = f.eventual("k", &["a"]);
    assert_eq!(f.sent(), [(again, 0, 1)]);
    assert_eq!(nodes(&f), [node("a"), node("b")]);
    f.answer(again, 0, Verdict::Delivered);
    f.pass(Duration::from_secs(100));
    assert_eq!(nodes(&f), [node("a"), node("b")], "it is used again");
}

#[test]
fn a_forgotten_replica_blocks_no_majority_even_if_its_lane_is_reused() {
    let mut f = Fixture::new(EngineSettings { max_known_replicas: 3, ..settings() });
    // Nothing was sent to it, so nothing can be applied late.
    f.engine.pause(f.now, &node("a"), Some(f.now.wall.into()));
    f.strong("k", &["a", "b", "c"]);
    f.engine.forget(f.now, &node("a"));
    f.pass(Duration::from_millis(100));
    f.engine.pause(f.now, &node("a"), None);
    f.eventual("l", &["d"]);
    f.engine.pause(f.now, &node("d"), Some(f.now.wall.into()));
    f.actions();
    f.pass(settings().strong_timeout);
    let obstacles = f.actions().into_iter().find_map(|action| match action {
        EngineAction::Conclude { obstacles, .. } => Some(obstacles),
        _ => None,
    });
    assert_eq!(obstacles, Some(vec![]));
}
