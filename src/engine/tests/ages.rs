//! Ages of pending writes across steps of the wall clock.

use super::*;
use crate::task::Uptime;

const YEARS: Duration = Duration::from_secs(57 * 365 * 24 * 3600);
const HOUR: Duration = Duration::from_secs(3600);

/// The age of the oldest pending delivery, and of the task.
fn ages(f: &Fixture, id: u64) -> (Duration, Duration) {
    let lane = f.engine.lanes().next().unwrap();
    let age = lane.oldest_since.unwrap().age(f.now.moment);
    (age, f.engine.age(TaskId(id), f.now.moment).unwrap())
}

#[test]
fn a_step_of_the_wall_clock_does_not_change_the_age_of_a_write() {
    let mut f = Fixture::new(settings());
    f.now.wall = Timestamp(0).saturating_add(HOUR);
    let id = f.eventual("k", &["a"]);
    f.pass(Duration::from_secs(2));
    f.now.wall = f.now.wall.saturating_add(YEARS);
    f.pass(Duration::from_secs(1));
    assert_eq!(ages(&f, id), (Duration::from_secs(3), Duration::from_secs(3)));
    f.now.wall = Timestamp(0);
    f.pass(Duration::from_secs(4));
    assert_eq!(ages(&f, id), (Duration::from_secs(7), Duration::from_secs(7)));
    f.answer(id, 0, Verdict::Delivered);
    assert_eq!(f.engine.age(TaskId(id), f.now.moment), None);
}

/// The age of a task of the first second in an engine that starts at `now`, and an hour later.
fn restored(uptime: Uptime, now: Timestamp) -> (Duration, Duration) {
    let mut f = Fixture::new(settings());
    f.now.wall = now;
    f.engine.set_uptime(uptime);
    let key = f.keys.id("k");
    let progress = vec![Progress::Untouched];
    let accepted_at = Timestamp(0).saturating_add(Duration::from_secs(1));
    let replicas = &[node("a")];
    let task = Arrived {
        partition: Partition(0),
        id: TaskId(1),
        key,
        replicas,
        bytes: 10,
        client: None,
        accepted_at,
    };
    f.engine.arrive(f.now, task, Origin::Recovered(progress));
    let before = ages(&f, 1).0;
    f.pass(HOUR);
    (before, ages(&f, 1).0)
}

#[test]
fn a_recovered_write_is_as_old_as_before_plus_the_downtime() {
    let at = |hours: u32| Timestamp(0).saturating_add(Duration::from_secs(1) + HOUR * hours);
    // Down from the second hour to the tenth.
    let mut uptime = Uptime { seen: Some(at(2)), gaps: vec![] };
    uptime.see(at(10), Duration::ZERO);
    assert_eq!(restored(uptime, at(10)), (HOUR * 10, HOUR * 11));
}

#[test]
fn a_write_from_before_a_clock_correction_is_not_decades_old() {
    let at = |hours: u32| Timestamp(0).saturating_add(Duration::from_secs(1) + HOUR * hours);
    let right = |hours: u32| at(hours).saturating_add(YEARS);
    // The clock is corrected while the daemon runs, or while it does not.
    let mut ran = Uptime { seen: Some(at(1)), gaps: vec![] };
    ran.see(right(2), HOUR);
    ran.see(right(3), HOUR);
    assert_eq!(restored(ran, right(3)), (HOUR * 3, HOUR * 4));
    let mut away = Uptime { seen: Some(at(1)), gaps: vec![] };
    away.see(right(2), Duration::ZERO);
    assert_eq!(restored(away, right(2)), (HOUR, HOUR * 2));
}
