//! What operators do.

use super::*;

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
fn nothing_is_sent_to_a_paused_replica_and_all_of_it_afterwards() {
    let mut f = Fixture::new(settings());
    f.engine.pause(f.now, &node("a"), Some(f.now.wall));
    let ids = [f.eventual("k", &["a", "b"]), f.eventual("l", &["a"])];
    let strong = f.strong("m", &["a"]);
    assert_eq!(f.sent(), [(ids[0], 1, 1)]);
    f.engine.pause(f.now, &node("a"), None);
    assert_eq!(f.sent(), [(strong, 0, 1), (ids[0], 0, 1), (ids[1], 0, 1)]);
}

#[test]
fn a_pause_keeps_the_lane_of_a_replica_with_nothing_to_do() {
    let mut f = Fixture::new(EngineSettings { max_known_replicas: 1, ..settings() });
    f.engine.pause(f.now, &node("a"), Some(f.now.wall));
    assert!(matches!(f.append("k", &["b"], Consistency::Eventual), Err(Full::Replicas(1))));
    f.engine.pause(f.now, &node("a"), None);
    f.eventual("k", &["b"]);
}

#[test]
fn a_probe_that_an_operator_asks_for_goes_out_at_once() {
    let mut f = Fixture::new(EngineSettings { breaker_failures: 1, ..settings() });
    let id = f.eventual("k", &["a"]);
    f.sent();
    f.answer(id, 0, failed());
    assert_eq!(f.engine.probe(f.now, &node("b")), None);
    let asked = f.engine.probe(f.now, &node("a")).unwrap();
    assert_eq!(asked, Probed { breaker: BreakerState::Open, probing: false }, "nothing is due");
    let other = f.eventual("l", &["a"]);
    assert_eq!(f.sent(), [(other, 0, 1)]);
}

#[test]
fn a_rejected_write_is_redriven_when_an_operator_says_so() {
    let mut f = Fixture::new(settings());
    let id = gave_up(&mut f, "k", &["a"]);
    assert_eq!(f.engine.would_redrive(letter(id)), AdminOutcome::Done);
    assert_eq!(f.engine.redrive_letter(f.now, letter(id)), AdminOutcome::Done);
    assert_eq!(f.engine.redrive_letter(f.now, letter(id)), AdminOutcome::Gone);
    assert_eq!(f.sent(), [(id, 0, 1)]);
    f.answer(id, 0, Verdict::Delivered);
    let counters = counters(&f, "a");
    assert_eq!((counters.delivered, counters.dead, counters.redriven), (1, 0, 1));
}

#[test]
fn a_dead_letter_is_not_redriven_while_a_newer_write_of_its_key_is_on_its_way() {
    let mut f = Fixture::new(settings());
    let id = gave_up(&mut f, "k", &["a"]);
    let newer = f.eventual("k", &["a"]);
    assert_eq!(f.engine.redrive_letter(f.now, letter(id)), AdminOutcome::LeftOut);
    assert_eq!(f.sent(), [(newer, 0, 1)]);
}

#[test]
fn a_letter_of_a_replica_that_does_not_answer_is_not_said_to_be_redriven() {
    let mut f = Fixture::new(EngineSettings { hinted_handoff: false, ..settings() });
    let ids: Vec<_> = (0..5).map(|n| gave_up(&mut f, &n.to_string(), &["a"])).collect();
    for n in 0..5 {
        let id = f.eventual(&format!("other{n}"), &["a"]);
        f.answer(id, 0, failed());
    }
    f.sent();
    for id in ids {
        assert_eq!(f.engine.would_redrive(letter(id)), AdminOutcome::HeldBack);
        assert_eq!(f.engine.redrive_letter(f.now, letter(id)), AdminOutcome::HeldBack);
    }
    assert_eq!(f.sent(), []);
    assert_eq!(counters(&f, "a").redriven, 0);
}

#[test]
fn without_handoff_no_letter_is_a_probe_but_for_an_operator() {
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
fn a_letter_that_is_named_twice_is_one() {
    let mut f = Fixture::new(settings());
    let id = TaskId(gave_up(&mut f, "k", &["a", "b"]));
    let named = [(id, None), (id, Some(node("a"))), (id, None)];
    assert_eq!(f.engine.letters_of(&named, &DeliveryFilter::default()).items.len(), 2);
}

#[test]
fn an_older_letter_is_not_redriven_after_a_newer_write_that_was_thrown_away() {
    let mut f = Fixture::new(settings());
    let id = gave_up(&mut f, "k", &["a"]);
    let newer = f.eventual("k", &["a"]);
    f.sent();
    f.answer_ambiguously(newer, 0, failed());
    assert!(f.engine.discard_task(f.now, TaskId(newer)));
    assert_eq!(f.engine.redrive_letter(f.now, letter(id)), AdminOutcome::Gone);
    let counters = counters(&f, "a");
    assert_eq!((counters.superseded, counters.discarded), (1, 1));
}

#[test]
fn what_is_on_the_wire_when_its_task_is_thrown_away_is_not_tried_again() {
    let mut f = Fixture::new(settings());
    let id = f.eventual("k", &["a", "b"]);
    f.sent();
    assert!(f.engine.discard_task(f.now, TaskId(id)));
    f.answer_ambiguously(id, 0, failed());
    f.answer(id, 1, Verdict::Delivered);
    assert_eq!((counters(&f, "a").discarded, counters(&f, "b").delivered), (1, 1));
    f.pass(Duration::from_secs(60));
    assert_eq!(f.sent(), []);
    assert!(!f.engine.discard_task(f.now, TaskId(id)), "nothing is left of it");
}

#[test]
fn the_next_of_its_key_follows_a_task_that_is_thrown_away() {
    let mut f = Fixture::new(settings());
    let [first, second, third] = ["1", "2", "3"].map(|_| f.eventual("k", &["a"]));
    assert_eq!(f.sent(), [(first, 0, 1)]);
    f.engine.discard_task(f.now, TaskId(second));
    f.answer(first, 0, Verdict::Delivered);
    assert_eq!(f.sent(), [(third, 0, 1)]);
}

#[test]
fn a_replica_that_is_forgotten_has_nothing_left_and_may_begin_anew() {
    let mut f = Fixture::new(EngineSettings { queue_capacity: 10_000, ..settings() });
    gave_up(&mut f, "dead", &["a"]);
    let ids: Vec<_> =
        (0..9_000).map(|n| f.append(&n.to_string(), &["a", "b"], Consistency::Eventual)).collect();
    let admitted = ids.iter().filter(|id| id.is_ok()).count() as u64;
    f.commit(f.next_id - 1);
    assert_eq!(f.engine.forget(f.now, &node("c")), None);
    let forgotten = f.engine.forget(f.now, &node("a")).unwrap();
    assert_eq!(forgotten, Forgotten { discarded: admitted + 1 - 5, in_flight: 5 });
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
fn a_replica_that_is_forgotten_is_not_one_that_does_not_answer() {
    let mut f = Fixture::new(settings());
    let ids: Vec<_> = (0..20).map(|n| f.eventual(&n.to_string(), &["a"])).collect();
    ids[..5].iter().for_each(|&id| f.answer(id, 0, failed()));
    let lane = |f: &Fixture| f.engine.lanes().next().unwrap();
    assert_eq!(lane(&f).breaker, BreakerState::Open);
    f.engine.forget(f.now, &node("a"));
    f.pass(Duration::from_millis(100));
    // Those on the wire meanwhile.
    ids.iter().for_each(|&id| f.answer(id, 0, failed()));
    assert_eq!(f.engine.lanes().count(), 0);
    f.eventual("again", &["a"]);
    assert_eq!((lane(&f).breaker, lane(&f).last_error), (BreakerState::Closed, None));
    assert_eq!(lane(&f).counters.pending, 1);
}

#[test]
fn a_renamed_replica_has_its_backlog_and_its_letters_under_the_new_name() {
    let mut f = Fixture::new(settings());
    let dead = gave_up(&mut f, "dead", &["a"]);
    f.engine.pause(f.now, &node("a"), Some(f.now.wall));
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
    assert_eq!(lanes(&mut f, &[node("b")]), [(0, 1)], "counted anew");
}

#[test]
fn tasks_and_letters_are_found_by_what_is_wanted_and_in_parts() {
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
fn who_watches_is_told_of_every_change_and_of_every_end() {
    let mut f = Fixture::new(settings());
    f.engine.watch(true);
    f.engine.report_ends(true);
    let id = f.eventual("k", &["a"]);
    f.sent();
    f.answer(id, 0, Verdict::Delivered);
    let told: Vec<_> = f.actions();
    let change = EngineAction::Changed {
        task: TaskId(id),
        node: node("a"),
        change: DeliveryChange::Delivered,
        error: None,
    };
    assert_eq!(told[0], change);
    let EngineAction::Ended { last } = &told[1] else { panic!("{told:?}") };
    assert_eq!(last.deliveries[0].state, DeliveryState::Delivered);
    assert_eq!(told[2], EngineAction::Remove { task: TaskId(id) });
}

#[test]
fn a_letter_of_a_paused_replica_stays_one_until_it_is_resumed() {
    let mut f = Fixture::new(settings());
    let id = gave_up(&mut f, "k", &["a"]);
    let levels = f.engine.levels();
    f.engine.pause(f.now, &node("a"), Some(f.now.wall));
    assert_eq!(f.engine.would_redrive(letter(id)), AdminOutcome::HeldBack);
    assert_eq!(f.engine.redrive_letter(f.now, letter(id)), AdminOutcome::HeldBack);
    assert_eq!(f.engine.levels(), levels, "it is charged as a dead letter");
    f.engine.pause(f.now, &node("a"), None);
    assert_eq!(f.engine.redrive_letter(f.now, letter(id)), AdminOutcome::Done);
    assert_eq!(f.sent(), [(id, 0, 1)]);
}

#[test]
fn what_is_parked_for_a_paused_replica_takes_no_place_of_the_retry_queue() {
    let mut f =
        Fixture::new(EngineSettings { retry_capacity: 1, breaker_failures: 0, ..settings() });
    let ids = ["k", "l"].map(|key| f.eventual(key, &["a"]));
    f.sent();
    ids.iter().for_each(|&id| f.answer(id, 0, failed()));
    assert_eq!((f.engine.levels().retry, f.engine.levels().dead_letters), (1, 1));
    f.engine.pause(f.now, &node("a"), Some(f.now.wall));
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
fn a_forgotten_replica_is_seen_no_more_once_nothing_of_it_is_left_until_a_write_names_it() {
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
    assert_eq!(nodes(&f), [node("a"), node("b")], "one is on the wire");
    let barrier = f.engine.barrier(TaskId(99), &[]).unwrap();
    assert_eq!(barrier.lanes.len(), 2);
    f.answer(on_the_wire, 0, failed());
    assert_eq!(nodes(&f), [node("b")]);
    assert_eq!(f.engine.barrier(TaskId(98), &[]).unwrap().lanes.len(), 1);
    let view = f.engine.view(TaskId(on_the_wire)).unwrap();
    assert_eq!(view.deliveries[0].node, node("a"), "the task still tells of it");
    let again = f.eventual("k", &["a"]);
    assert_eq!(f.sent(), [(again, 0, 1)]);
    assert_eq!(nodes(&f), [node("a"), node("b")]);
    f.answer(again, 0, Verdict::Delivered);
    f.pass(Duration::from_secs(100));
    assert_eq!(nodes(&f), [node("a"), node("b")], "it is as any other again");
}

#[test]
fn a_forgotten_replica_keeps_no_write_from_its_majority_whoever_has_its_lane_now() {
    let mut f = Fixture::new(EngineSettings { max_known_replicas: 3, ..settings() });
    // Nothing is sent to it, so that nothing may be applied late.
    f.engine.pause(f.now, &node("a"), Some(f.now.wall));
    f.strong("k", &["a", "b", "c"]);
    f.engine.forget(f.now, &node("a"));
    f.pass(Duration::from_millis(100));
    f.engine.pause(f.now, &node("a"), None);
    f.eventual("l", &["d"]);
    f.engine.pause(f.now, &node("d"), Some(f.now.wall));
    f.actions();
    f.pass(settings().strong_timeout);
    let obstacles = f.actions().into_iter().find_map(|action| match action {
        EngineAction::Conclude { obstacles, .. } => Some(obstacles),
        _ => None,
    });
    assert_eq!(obstacles, Some(vec![]));
}
