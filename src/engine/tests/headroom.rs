//! The room of a replica is what it gets.

use super::*;

#[test]
fn the_room_of_a_replica_is_what_one_client_with_a_token_gets_for_it() {
    let mut f = Fixture::new(settings());
    let client = Client::Token("ann".into());
    f.append_of(Some(&client), "k", &["other"], Consistency::Eventual).unwrap();
    f.append_of(Some(&client), "l", &["away"], Consistency::Eventual).unwrap();
    let room = f.engine.outage_room(&node("away")).unwrap();
    assert_eq!(room.queue.held, 1);
    let write = |n: &u64| {
        let key = format!("k{n}");
        f.append_of(Some(&client), &key, &["away"], Consistency::Eventual).is_ok()
    };
    let taken = (0..2000).take_while(write).count() as u64;
    // The client also holds the write for the other replica.
    assert!(taken.abs_diff(room.queue.free) <= 2, "{room:?}, {taken}");
    let room = f.engine.outage_room(&node("away")).unwrap();
    assert!(room.queue.free <= 2, "{room:?}");
    assert_eq!(f.engine.outage_room(&node("unknown")), None);
}

#[test]
fn a_paused_replica_and_one_without_a_breaker_keep_their_deliveries_in_the_queue() {
    let stays = |settings: EngineSettings, paused: bool| {
        let mut f = Fixture::new(settings);
        f.append_of(None, "k", &["a"], Consistency::Eventual).unwrap();
        f.engine.pause(f.now, &node("a"), paused.then_some(Timestamp(1).into()));
        f.engine.outage_room(&node("a")).unwrap().stays
    };
    let schedule = || EngineSettings {
        retry_base: Duration::from_secs(2),
        max_retries: 3,
        breaker_failures: 5,
        ..settings()
    };
    assert_eq!(stays(schedule(), false), Some(Duration::from_secs(12)));
    assert_eq!(stays(schedule(), true), None);
    assert_eq!(stays(EngineSettings { breaker_failures: 0, ..schedule() }, false), None);
}

#[test]
fn a_key_at_a_paused_or_forgotten_replica_is_not_compared() {
    let mut f = Fixture::new(settings());
    let task = f.eventual("k", &["a"]);
    let standing = |f: &mut Fixture| {
        let key = f.keys.id("k");
        f.engine.key_standing(key, &node("a"))
    };
    assert_eq!(standing(&mut f), KeyStanding::Pending);
    f.sent();
    f.answer(task, 0, Verdict::Delivered);
    assert_eq!(standing(&mut f), KeyStanding::Settled);
    f.engine.pause(f.now, &node("a"), Some(Timestamp(1).into()));
    assert_eq!(standing(&mut f), KeyStanding::Paused);
    f.engine.pause(f.now, &node("a"), None);
    f.engine.forget(f.now, &node("a"));
    assert_eq!(standing(&mut f), KeyStanding::Unknown);
}
