//! Settings that change while the engine runs.

use super::*;

#[test]
fn more_workers_start_what_waits_and_fewer_start_nothing_until_enough_have_ended() {
    let mut f = Fixture::new(EngineSettings { workers: workers(1), ..settings() });
    let ids: Vec<_> = (0..6).map(|n| f.eventual(&format!("k{n}"), &["a"])).collect();
    assert_eq!(f.sent().len(), 1);
    f.engine.reconfigure(f.now, &EngineSettings { workers: workers(4), ..settings() });
    assert_eq!(f.sent().len(), 3);
    f.engine.reconfigure(f.now, &EngineSettings { workers: workers(2), ..settings() });
    for id in &ids[..2] {
        f.answer(*id, 0, Verdict::Delivered);
        assert!(f.sent().is_empty(), "two are still in flight");
    }
    f.answer(ids[2], 0, Verdict::Delivered);
    assert_eq!(f.sent().len(), 1);
}

#[test]
fn new_retries_count_for_the_next_failure() {
    let hour = Duration::from_secs(3600);
    let mut f = Fixture::new(EngineSettings { retry_base: hour, ..settings() });
    let (first, second) = (f.eventual("first", &["a"]), f.eventual("second", &["a"]));
    f.sent();
    f.answer(first, 0, failed());
    let second_long = EngineSettings { retry_base: Duration::from_secs(1), ..settings() };
    f.engine.reconfigure(f.now, &second_long);
    f.answer(second, 0, failed());
    f.pass(Duration::from_secs(2));
    let sent: Vec<_> = f.sent().into_iter().map(|(task, ..)| task).collect();
    assert_eq!(sent, [second], "the first keeps its time");
    f.engine.reconfigure(f.now, &EngineSettings { max_retries: 0, ..second_long });
    f.answer(second, 0, failed());
    assert_eq!(f.engine.levels().dead_letters, 1);
}
