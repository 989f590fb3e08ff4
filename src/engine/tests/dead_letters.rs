//! The breaker in its lane, dead letters, and hinted handoff.

use super::isolation::used_up;
use super::*;

/// A lane whose breaker has just opened, with nothing waiting. Returns the dead letters.
fn outage(f: &mut Fixture, writes: u64) -> Vec<u64> {
    let ids: Vec<_> = (0..writes).map(|n| f.eventual(&format!("k{n}"), &["a"])).collect();
    // Long enough for every retry, too short for more than the first probes.
    for _ in 0..40 {
        for (task, replica, _) in f.sent() {
            f.answer(task, replica, failed());
        }
        f.pass(Duration::from_millis(500));
    }
    let in_flight = f.sent();
    in_flight.iter().for_each(|&(task, replica, _)| f.answer(task, replica, failed()));
    assert_eq!(f.engine.levels().dead_letters, writes);
    ids
}

/// Answers everything with success for `time`. Returns the deliveries in their order.
fn recover(f: &mut Fixture, time: Duration) -> Vec<u64> {
    let mut delivered = Vec::new();
    let end = f.now.moment.after(time);
    while f.now.moment < end {
        let sent = f.sent();
        if sent.is_empty() {
            f.pass(Duration::from_millis(5));
        }
        for (task, replica, _) in sent {
            f.answer(task, replica, Verdict::Delivered);
            delivered.push(task);
        }
    }
    delivered
}

fn lane(f: &Fixture) -> LaneView {
    f.engine.lanes().find(|lane| lane.node == node("a")).unwrap()
}

#[test]
fn after_five_failures_nothing_is_sent_but_the_schedule_goes_on() {
    let mut f = Fixture::new(settings());
    let ids: Vec<_> = (0..20).map(|n| f.eventual(&n.to_string(), &["a"])).collect();
    let sent = f.sent();
    assert_eq!(sent.len(), 5);
    sent.iter().for_each(|&(task, replica, _)| f.answer(task, replica, failed()));
    let sent = f.sent();
    assert_eq!(sent.len(), 4, "sent before the breaker opened");
    assert_eq!(lane(&f).breaker, BreakerState::Open);
    sent.iter().for_each(|&(task, replica, _)| f.answer(task, replica, failed()));
    assert_eq!(f.sent(), []);
    // All twenty have failed once and moved to the retry queue.
    assert_eq!((f.engine.levels().queue, f.engine.levels().retry), (0, 20));
    let counters = lane(&f).counters;
    assert_eq!((counters.failed_attempts, counters.unsent_attempts), (9, 11));
    f.pass(Duration::from_secs(3));
    let probes = f.sent();
    assert_eq!(probes.len(), 1, "one due delivery is the probe");
    assert!(ids.contains(&probes[0].0) && probes[0].2 == 2, "{probes:?}");
}

#[test]
fn a_strong_write_to_a_replica_with_an_open_breaker_is_answered_at_once() {
    let mut f = Fixture::new(settings());
    outage(&mut f, 5);
    f.actions();
    f.strong("s", &["a"]);
    let answers = f.actions();
    assert!(
        answers.iter().any(|a| matches!(a, EngineAction::Conclude { success: false, .. })),
        "{answers:?}"
    );
}

#[test]
fn dead_letters_are_redriven_oldest_first_when_the_replica_is_back() {
    let mut f = Fixture::new(settings());
    let ids = outage(&mut f, 50);
    let delivered = recover(&mut f, Duration::from_secs(40));
    let (probe, others) = delivered.split_first().unwrap();
    let rest: Vec<_> = ids.iter().copied().filter(|id| id != probe).collect();
    assert_eq!(others, rest, "without new writes");
    assert_eq!(f.engine.levels(), Levels::default());
    let counters = lane(&f).counters;
    assert_eq!((counters.delivered, counters.dead, counters.gave_up), (50, 0, 50));
    assert!(counters.redriven >= 50 && counters.unaccounted() == 0, "{counters:?}");
}

#[test]
fn a_redrive_keeps_to_its_rate() {
    let redrive_rate = NonZeroU32::new(10).unwrap();
    let mut f = Fixture::new(EngineSettings { redrive_rate, ..settings() });
    outage(&mut f, 100);
    while recover(&mut f, Duration::from_millis(100)).is_empty() {}
    let then = recover(&mut f, Duration::from_secs(2)).len();
    assert!((18..=22).contains(&then), "{then}");
}

#[test]
fn parked_deliveries_return_at_the_redrive_rate_after_the_dead_letters() {
    let redrive_rate = NonZeroU32::new(10).unwrap();
    let mut f = Fixture::new(EngineSettings { redrive_rate, retry_capacity: 5, ..settings() });
    let ids: Vec<_> = (0..100).map(|n| f.eventual(&format!("k{n}"), &["a"])).collect();
    for _ in 0..40 {
        for (task, replica, _) in f.sent() {
            f.answer(task, replica, failed());
        }
        f.pass(Duration::from_millis(500));
    }
    for (task, replica, _) in f.sent() {
        f.answer(task, replica, failed());
    }
    let (dead, parked) = (lane(&f).counters.dead, lane(&f).parked);
    assert!(dead > 0 && parked > 50, "{dead} dead, {parked} parked");
    while recover(&mut f, Duration::from_millis(100)).is_empty() {}
    let then = recover(&mut f, Duration::from_secs(2)).len() as u64;
    // Plus the few in the retry queue.
    assert!((10..=27).contains(&then), "{then}");
    assert!(lane(&f).parked > 50);
    let more = recover(&mut f, Duration::from_secs(20)).len();
    assert!(more > 50 && f.engine.levels() == Levels::default(), "{more} of {}", ids.len());
}

#[test]
fn with_hinted_handoff_off_dead_letters_stay() {
    let mut f = Fixture::new(EngineSettings { hinted_handoff: false, ..settings() });
    outage(&mut f, 10);
    f.eventual("live", &["a"]);
    recover(&mut f, Duration::from_secs(60));
    assert_eq!(f.engine.levels().dead_letters, 10);
}

#[test]
fn a_rejected_write_is_not_redriven() {
    let mut f = Fixture::new(settings());
    let id = f.eventual("bad", &["a"]);
    f.answer(id, 0, rejected());
    outage_of_others(&mut f);
    f.actions();
    let delivered = recover(&mut f, Duration::from_secs(60));
    assert!(!delivered.contains(&id));
    assert_eq!(f.engine.levels().dead_letters, 1);
}

fn outage_of_others(f: &mut Fixture) {
    for n in 0..5 {
        let id = f.eventual(&format!("other{n}"), &["a"]);
        f.answer(id, 0, failed());
    }
    assert_eq!(lane(f).breaker, BreakerState::Open);
}

#[test]
fn a_write_that_fails_alone_on_a_healthy_replica_is_not_redriven() {
    let mut f = Fixture::new(settings());
    let poison = f.eventual("poison", &["a"]);
    for n in 0..200 {
        f.eventual(&n.to_string(), &["a"]);
        for (task, replica, _) in f.sent() {
            let verdict = if task == poison { failed() } else { Verdict::Delivered };
            f.answer(task, replica, verdict);
        }
        f.pass(Duration::from_millis(500));
    }
    assert_eq!((lane(&f).counters.gave_up, lane(&f).counters.redriven), (1, 0));
    assert_eq!(f.engine.levels().dead_letters, 1);
}

/// Answers everything with success except the `poison` deliveries, with a write every five seconds.
/// Returns how many of these were delivered by their first attempt, and all deliveries.
fn trickle(f: &mut Fixture, seconds: u64, poison: impl Fn(u64) -> bool) -> (u64, Vec<u64>) {
    let (mut at_once, mut delivered, mut live) = (0, Vec::new(), 0);
    for tick in 0..seconds * 20 {
        if tick % 100 == 99 {
            live = f.eventual(&format!("live{tick}"), &["a"]);
        }
        for (task, replica, attempt) in f.sent() {
            let verdict = if poison(task) { failed() } else { Verdict::Delivered };
            at_once += u64::from(task == live && attempt == 1 && !poison(task));
            delivered.extend((!poison(task)).then_some(task));
            f.answer(task, replica, verdict);
        }
        f.pass(Duration::from_millis(50));
    }
    (at_once, delivered)
}

#[test]
fn a_single_write_of_an_outage_is_redriven_as_well() {
    for live in [false, true] {
        let mut f = Fixture::new(settings());
        outage(&mut f, 1);
        assert_eq!(lane(&f).breaker, BreakerState::Open, "the replica does not answer");
        if live {
            trickle(&mut f, 40, |_| false);
        } else {
            recover(&mut f, Duration::from_secs(40));
        }
        assert_eq!((lane(&f).counters.dead, lane(&f).breaker), (0, BreakerState::Closed));
    }
}

#[test]
fn an_idle_replica_that_is_back_does_not_stay_half_open() {
    for hinted_handoff in [true, false] {
        let mut f = Fixture::new(EngineSettings { hinted_handoff, ..settings() });
        outage_of_others(&mut f);
        f.eventual("k", &["a"]);
        recover(&mut f, Duration::from_secs(40));
        assert_eq!(lane(&f).breaker, BreakerState::Closed);
    }
}

#[test]
fn letters_that_always_fail_delay_neither_live_writes_nor_other_letters() {
    for poisonous in [1, 4, 20] {
        let mut f = Fixture::new(settings());
        let ids = outage(&mut f, 40);
        // The oldest one, so that all others are behind it.
        let poison = |task| ids.contains(&task) && task <= poisonous;
        let (_, delivered) = trickle(&mut f, 120, poison);
        let good = ids.iter().filter(|&&id| !poison(id));
        assert!(good.clone().all(|id| delivered.contains(id)), "{poisonous}: {delivered:?}");
        assert_eq!(lane(&f).counters.dead + lane(&f).counters.pending, poisonous);
        let (at_once, _) = trickle(&mut f, 600, poison);
        assert_eq!(at_once, 120, "{poisonous}: by the first attempt");
        let redriven = lane(&f).counters.redriven;
        trickle(&mut f, 600, poison);
        assert_eq!(lane(&f).counters.redriven, redriven, "{poisonous}: nor for ever");
        assert_eq!(lane(&f).counters.dead, poisonous);
    }
}

#[test]
fn a_letter_that_always_fails_is_not_the_only_probe_of_an_idle_replica() {
    let mut f = Fixture::new(settings());
    let ids = outage(&mut f, 10);
    for _ in 0..1_200 {
        for (task, replica, _) in f.sent() {
            f.answer(task, replica, if task == ids[0] { failed() } else { Verdict::Delivered });
        }
        f.pass(Duration::from_millis(100));
    }
    assert_eq!(lane(&f).counters.delivered, 9);
}

#[test]
fn a_letter_that_was_the_probe_keeps_its_age() {
    let retention = Some(Duration::from_secs(60));
    let mut f = Fixture::new(EngineSettings { dead_letter_retention: retention, ..settings() });
    outage(&mut f, 5);
    for _ in 0..120 {
        for (task, replica, _) in f.sent() {
            f.answer(task, replica, failed());
        }
        f.pass(Duration::from_millis(500));
    }
    assert_eq!(f.engine.levels(), Levels::default());
    assert_eq!(lane(&f).counters.discarded, 5);
}

#[test]
fn a_dead_letter_is_superseded_as_soon_as_a_newer_write_is_delivered_or_dies() {
    for (verdict, left) in [(Verdict::Delivered, 0), (rejected(), 1)] {
        let mut f = Fixture::new(settings());
        let old = f.eventual("k", &["a"]);
        f.answer(old, 0, rejected());
        let new = f.eventual("k", &["a"]);
        assert_eq!(f.engine.levels().dead_letters, 1, "not before it has been sent");
        f.actions();
        f.answer(new, 0, verdict);
        assert_eq!(f.engine.levels().dead_letters, left);
        assert_eq!(lane(&f).counters.superseded, 1);
        // The end of the older one is written first.
        let removed = f.actions().into_iter().find_map(|action| match action {
            EngineAction::Remove { task } | EngineAction::Save { task, .. } => Some(task),
            _ => None,
        });
        assert_eq!(removed, Some(TaskId(old)));
    }
}

#[test]
fn a_dead_letter_with_a_pending_newer_write_is_not_redriven() {
    let mut f = Fixture::new(settings());
    let ids = outage(&mut f, 5);
    let newer = f.eventual("k0", &["a"]);
    let delivered = recover(&mut f, Duration::from_secs(60));
    assert!(!delivered.contains(&ids[0]), "{delivered:?}");
    assert!(delivered.contains(&newer));
    assert_eq!(f.engine.levels(), Levels::default());
}

#[test]
fn a_write_supersedes_a_redriven_letter_that_has_not_been_sent() {
    let workers = workers(1);
    let mut f = Fixture::new(EngineSettings { workers, ..settings() });
    outage(&mut f, 5);
    // The probe succeeds, and all others become ready behind the one place.
    f.pass(Duration::from_secs(30));
    let probe = f.sent();
    assert_eq!(probe.len(), 1);
    f.answer(probe[0].0, 0, Verdict::Delivered);
    f.pass(Duration::from_millis(50));
    let newer = f.eventual("k3", &["a"]);
    let delivered = recover(&mut f, Duration::from_secs(10));
    assert!(!delivered.contains(&4), "{delivered:?}");
    assert!(delivered.contains(&newer), "{delivered:?}");
}

#[test]
fn an_expired_dead_letter_is_discarded_counted_and_reported() {
    let retention = Some(Duration::from_secs(3600));
    let mut f = Fixture::new(EngineSettings { dead_letter_retention: retention, ..settings() });
    let id = f.eventual("k", &["a"]);
    f.answer(id, 0, rejected());
    f.pass(Duration::from_secs(3599));
    assert_eq!(f.engine.levels().dead_letters, 1);
    f.actions();
    f.pass(Duration::from_secs(1));
    assert_eq!(f.engine.levels(), Levels::default());
    assert_eq!(lane(&f).counters.discarded, 1);
    let delivery = DeliveryId { task: TaskId(id), replica: ReplicaIndex(0) };
    assert_eq!(
        f.actions(),
        [
            EngineAction::Discarded { delivery, node: node("a") },
            EngineAction::Remove { task: TaskId(id) }
        ]
    );
}

#[test]
fn a_step_of_the_wall_clock_discards_nothing() {
    let retention = Some(Duration::from_secs(3600));
    let mut f = Fixture::new(EngineSettings { dead_letter_retention: retention, ..settings() });
    let id = f.eventual("k", &["a"]);
    f.answer(id, 0, rejected());
    f.now.wall = f.now.wall.saturating_add(Duration::from_secs(1_000_000));
    f.pass(Duration::from_secs(60));
    assert_eq!(f.engine.levels().dead_letters, 1);
}

#[test]
fn a_replica_with_its_share_of_dead_letters_is_refused_and_others_are_not() {
    let max_dead_letter_bytes = 10 * (TASK_OVERHEAD_BYTES + 10);
    let mut f = Fixture::new(EngineSettings { max_dead_letter_bytes, ..settings() });
    f.eventual("k", &["b"]);
    f.answer(1, 0, Verdict::Delivered);
    let full = loop {
        let n = f.next_id;
        match f.append(&n.to_string(), &["a"], Consistency::Eventual) {
            Ok(id) => {
                f.commit(id);
                f.answer(id, 0, rejected());
            }
            Err(full) => break full,
        }
    };
    let bytes = 9 * (TASK_OVERHEAD_BYTES + 10);
    assert_eq!(full, used_up("a", SharedLimit::DeadLetters, bytes));
    assert!(full.to_string().contains("--dead-letter-max-bytes"), "{full}");
    f.eventual("k", &["b"]);
}

#[test]
fn dead_letters_found_on_disk_are_redriven_after_the_start() {
    let mut f = Fixture::new(settings());
    let letter =
        |cause| DeadLetter { cause, failures: 4, error: "down".into(), since: Timestamp(0) };
    for (id, cause) in [(1, Cause::GaveUp), (2, Cause::Rejected)] {
        f.engine.arrive(
            f.now,
            Arrived {
                client: None,
                partition: Partition(0),
                id: TaskId(id),
                key: f.keys.id(&id.to_string()),
                replicas: &[node("a")],
                bytes: 10,
                accepted_at: Timestamp(0),
            },
            Origin::Recovered(vec![Progress::Dead(letter(cause))]),
        );
    }
    assert_eq!(f.actions(), []);
    assert_eq!(recover(&mut f, Duration::from_secs(5)), [1]);
    assert_eq!(f.engine.levels().dead_letters, 1);
}

#[test]
fn with_coalesce_only_the_newest_that_waits_is_sent() {
    let mut f = Fixture::new(EngineSettings { coalesce: true, ..settings() });
    let first = f.eventual("k", &["a"]);
    let ids: Vec<_> = (0..5).map(|_| f.eventual("k", &["a"])).collect();
    assert_eq!(f.sent(), [(first, 0, 1)]);
    f.answer(first, 0, Verdict::Delivered);
    assert_eq!(f.sent(), [(ids[4], 0, 1)]);
    assert_eq!(lane(&f).counters.superseded, 4);
}

#[test]
fn time_that_the_clock_skips_does_not_count_for_the_retention() {
    let day = Duration::from_secs(86_400);
    let settings = EngineSettings { dead_letter_retention: Some(day), ..settings() };
    let restored = |skips: Option<Duration>, wall: Timestamp| {
        let mut engine = Engine::new(settings.clone());
        let now = Now { moment: Moment(0), wall };
        if let Some(skipped) = skips {
            let from = Timestamp(0).saturating_add(day);
            let gaps = vec![(from, from.saturating_add(skipped))];
            engine.set_uptime(Uptime { seen: Some(wall), gaps });
        }
        let letter = DeadLetter {
            cause: Cause::Rejected,
            failures: 1,
            error: "no".into(),
            since: Timestamp(0).saturating_add(day / 2),
        };
        let task = Arrived {
            client: None,
            partition: Partition(0),
            id: TaskId(1),
            key: KeyHasher::default().id("k"),
            replicas: &[node("a")],
            bytes: 1,
            accepted_at: Timestamp(0),
        };
        engine.arrive(now, task, Origin::Recovered(vec![Progress::Dead(letter)]));
        let expiry = engine.timers.first().unwrap().0;
        expiry.since_start()
    };
    let later = Timestamp(0).saturating_add(day * 4);
    assert_eq!(restored(None, later), Duration::ZERO, "older than a day by the wall clock");
    assert_eq!(restored(Some(day * 3), later), day / 2);
    // The age of a letter that is made a dead letter again after a step is by the uptime too.
    let mut f =
        Fixture::new(EngineSettings { breaker_failures: 1, max_retries: 0, ..settings.clone() });
    let id = f.eventual("k", &["a"]);
    f.sent();
    f.answer(id, 0, failed());
    let (before, after) = (f.now.wall, f.now.wall.saturating_add(day * 9));
    f.now.wall = after;
    f.engine.set_uptime(Uptime { seen: Some(after), gaps: vec![(before, after)] });
    f.pass(Duration::from_secs(2));
    assert_eq!(f.sent(), [(id, 0, 1)], "it is the probe");
    f.answer(id, 0, failed());
    f.pass(Duration::from_millis(1));
    assert_eq!(f.engine.levels().dead_letters, 1, "a dead letter again");
}

/// A lane with an open breaker and a write that waits for a long `Retry-After`, among others.
fn deferred(f: &mut Fixture, key: &str) -> u64 {
    let id = f.eventual(key, &["a"]);
    for _ in 0..100 {
        if f.sent().contains(&(id, 0, 1)) {
            f.answer(id, 0, busy(Duration::from_secs(600)));
            f.actions();
            assert_eq!((lane(f).breaker, lane(f).parked), (BreakerState::Open, 1));
            return id;
        }
        f.pass(Duration::from_secs(1));
    }
    panic!("{id} was never the probe");
}

#[test]
fn a_write_that_waits_for_minutes_leaves_the_probe_to_a_dead_letter() {
    let mut f = Fixture::new(settings());
    let letter = outage(&mut f, 1)[0];
    deferred(&mut f, "other");
    f.pass(Duration::from_secs(40));
    f.pass(Duration::ZERO);
    assert!(f.sent().iter().any(|&(task, ..)| task == letter));
}

#[test]
fn a_dead_letter_is_no_probe_while_a_newer_write_of_its_key_waits() {
    let mut f = Fixture::new(settings());
    outage(&mut f, 1);
    let newer = deferred(&mut f, "k0");
    for _ in 0..500 {
        f.pass(Duration::from_secs(1));
        assert_eq!(f.sent(), []);
    }
    f.pass(Duration::from_secs(100));
    assert_eq!(f.sent(), [(newer, 0, 2)]);
}

#[test]
fn a_requested_probe_ends_a_long_wait() {
    let mut f = Fixture::new(settings());
    outage(&mut f, 1);
    let newer = deferred(&mut f, "k0");
    let probed = f.engine.probe(f.now, &node("a"));
    assert!(probed.is_some_and(|probed| probed.probing));
    assert_eq!(f.sent(), [(newer, 0, 2)]);
}

#[test]
fn a_dead_letter_that_could_not_be_sent_stays_one_on_disk_and_behind_live_writes() {
    let mut f =
        Fixture::new(EngineSettings { workers: workers(1), breaker_failures: 0, ..settings() });
    let letter = outage(&mut f, 1)[0];
    let delivery = DeliveryId { task: TaskId(letter), replica: ReplicaIndex(0) };
    assert_eq!(f.engine.redrive_letter(f.now, delivery, None), AdminOutcome::Done);
    assert_eq!(f.sent(), [(letter, 0, 1)]);
    f.answer(letter, 0, Verdict::Shortage { error: "no file descriptor".into() });
    let saved = f.actions().into_iter().find_map(|action| match action {
        EngineAction::Save { progress, .. } => Some(progress),
        _ => None,
    });
    assert!(matches!(saved.as_deref(), Some([Progress::Dead(_)])), "{saved:?}");
    let live: Vec<_> = (0..3).map(|n| f.eventual(&format!("live{n}"), &["a"])).collect();
    f.pass(Duration::from_secs(10));
    assert_eq!(recover(&mut f, Duration::from_secs(1)), [live.as_slice(), &[letter]].concat());
}
