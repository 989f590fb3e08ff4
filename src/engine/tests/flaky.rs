//! A replica that fails at random stays in use. `cargo bench --bench engine -- flaky` prints the
//! figures for more failure rates.

use super::*;

mod replica;

/// The deliveries to a replica that fails this share of its attempts, relative to a breaker that
/// never opens.
fn delivered(fails: f64, number: u32) -> f64 {
    let (mut with, mut without) = (0, 0);
    for seed in 0..2 {
        let settings =
            EngineSettings { queue_capacity: 20_000, workers: workers(number), seed, ..settings() };
        without += replica::run(EngineSettings { breaker_failures: 0, ..settings.clone() }, fails)
            .delivered;
        with += replica::run(settings, fails).delivered;
    }
    with as f64 / without as f64
}

#[test]
fn a_replica_that_fails_a_fifth_of_its_attempts_gets_nearly_all_that_it_would_without_a_breaker() {
    for workers in [5, 64] {
        let share = delivered(0.2, workers);
        assert!(share >= 0.95, "{workers} workers: {share:.3}");
    }
}

#[test]
fn a_replica_that_fails_two_in_five_attempts_gets_most_of_what_it_would_without_a_breaker() {
    for workers in [5, 64] {
        let share = delivered(0.4, workers);
        assert!(share >= 0.85, "{workers} workers: {share:.3}");
    }
}
