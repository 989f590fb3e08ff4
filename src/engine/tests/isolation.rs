//! A failing replica does not affect others, and one kind of delivery does not starve another.

use super::*;

pub(super) fn used_up(host: &str, limit: SharedLimit, held: u64) -> Full {
    Full::Share { claimant: Claimant::Replica(node(host)), limit, held }
}

/// Sends a stream of first attempts to `a` and answers each at once. Returns the attempts that were
/// not first ones.
fn keep_busy(f: &mut Fixture, writes: u64) -> Vec<(u64, u16, u32)> {
    let mut retries = Vec::new();
    let mut on_wire = f.sent();
    for n in 0..writes {
        f.eventual(&format!("fresh{n}"), &["a"]);
        on_wire.extend(f.sent());
        let (task, replica, attempt) = on_wire.remove(0);
        if attempt > 1 {
            retries.push((task, replica, attempt));
        }
        f.answer(task, replica, Verdict::Delivered);
        on_wire.extend(f.sent());
    }
    retries
}

#[test]
fn due_retries_have_their_turn_in_a_lane_that_is_never_idle() {
    let workers = workers(1);
    let mut f = Fixture::new(EngineSettings { workers, ..settings() });
    let failing = f.eventual("k", &["a"]);
    f.answer(failing, 0, failed());
    f.sent();
    // A standing backlog, so that a first attempt is always ready.
    for n in 0..20 {
        f.eventual(&format!("backlog{n}"), &["a"]);
    }
    f.pass(Duration::from_secs(3));
    assert_eq!(keep_busy(&mut f, 10), [(failing, 0, 2)]);
}

#[test]
fn strong_writes_to_a_replica_that_hangs_do_not_pile_up_on_the_wire() {
    let mut f = Fixture::new(EngineSettings { queue_capacity: 10_000, ..settings() });
    for n in 0..1_000 {
        f.strong(&n.to_string(), &["a"]);
    }
    let sent = f.sent();
    assert!((1..=256).contains(&sent.len()), "{}", sent.len());
    // Their clients are answered at the timeout; the attempts stay in flight.
    f.pass(Duration::from_secs(11));
    assert_eq!(f.engine.levels().strong, 0);
    f.strong("late", &["a"]);
    assert_eq!(f.sent(), []);
    // Each one that ends makes room for the next, and none is lost.
    let mut on_wire = sent;
    let mut delivered = 0;
    while let Some((task, replica, _)) = on_wire.pop() {
        f.answer(task, replica, Verdict::Delivered);
        delivered += 1;
        on_wire.extend(f.sent());
    }
    assert_eq!(delivered, 1_001);
}

#[test]
fn a_hanging_replica_leaves_room_in_the_queue_for_the_others() {
    let mut f = Fixture::new(settings());
    f.eventual("k", &["healthy"]);
    f.answer(1, 0, Verdict::Delivered);
    let full = loop {
        let n = f.next_id;
        match f.append(&n.to_string(), &["hangs"], Consistency::Eventual) {
            Ok(_) => {}
            Err(full) => break full,
        }
    };
    assert_eq!(full, used_up("hangs", SharedLimit::Queue, 900));
    assert!(full.to_string().contains("http://hangs"), "{full}");
    f.eventual("k", &["other"]);
    let both = f.append("k", &["healthy", "hangs"], Consistency::Eventual);
    assert!(matches!(both, Err(Full::Share { .. })), "{both:?}");
    for n in 0..50 {
        f.append(&n.to_string(), &["healthy"], Consistency::Eventual).unwrap();
    }
    // Strong writes have their own queue.
    f.append("k", &["hangs"], Consistency::Strong).unwrap();
}

#[test]
fn several_hanging_replicas_leave_room_too() {
    let mut f = Fixture::new(settings());
    for n in 0..5_000 {
        // They take whatever they can get.
        let _ = f.append(&n.to_string(), &[["h1", "h2", "h3"][n % 3]], Consistency::Eventual);
    }
    for n in 0..20 {
        f.append(&n.to_string(), &["healthy"], Consistency::Eventual).unwrap();
    }
}

#[test]
fn where_there_are_no_others_a_replica_may_have_the_whole_queue() {
    let mut f = Fixture::new(settings());
    f.eventual("k", &["elsewhere"]);
    f.answer(1, 0, Verdict::Delivered);
    f.pass(Duration::from_secs(120));
    for n in 0..1_000 {
        f.append(&n.to_string(), &["a", "b"], Consistency::Eventual).unwrap();
    }
    let full = f.append("k", &["a"], Consistency::Eventual).unwrap_err();
    assert_eq!(full, Full::Queue(1000));
}

#[test]
fn retries_found_on_disk_are_spread_over_one_retry_base() {
    let mut f = Fixture::new(EngineSettings { workers: workers(1_000), ..settings() });
    for id in 1..=400 {
        f.recover(
            id,
            &id.to_string(),
            &["a"],
            vec![Progress::Failed { failures: 1, error: "down".into() }],
        );
    }
    let mut sent = Vec::new();
    for _ in 0..4 {
        f.pass(Duration::from_millis(500));
        sent.push(f.sent().len());
    }
    assert_eq!(sent.iter().sum::<usize>(), 400);
    assert!(sent.iter().all(|&quarter| (50..150).contains(&quarter)), "{sent:?}");
}
