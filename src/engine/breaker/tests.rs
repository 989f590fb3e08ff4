//! The rules of the breaker, one test per rule.

use super::*;

fn second(n: u64) -> Moment {
    Moment(0).after(Duration::from_secs(n))
}

/// Sent and ended at once.
fn live(at: Moment) -> EndedAttempt {
    EndedAttempt { sent_at: at, probe: false, letter: false, client: ClientId::default() }
}

fn probe(at: Moment) -> EndedAttempt {
    EndedAttempt { probe: true, ..live(at) }
}

fn letter(at: Moment) -> EndedAttempt {
    EndedAttempt { letter: true, ..live(at) }
}

fn fails(breaker: &mut Breaker, at: Moment) -> bool {
    breaker.failed(at, live(at), 5, 0.0)
}

fn succeeds(breaker: &mut Breaker, at: Moment) -> bool {
    breaker.succeeded(at, live(at), 5)
}

fn open() -> Breaker {
    let mut breaker = Breaker::default();
    for n in 1..=5 {
        assert_eq!(breaker.gate(second(0), false), Gate::Pass(u32::MAX));
        assert_eq!(fails(&mut breaker, second(0)), n == 5);
    }
    breaker
}

/// Open until the probe at this second, which succeeds.
fn back(at: u64) -> Breaker {
    let mut breaker = open();
    breaker.probe();
    assert!(breaker.succeeded(second(at), probe(second(at)), 5));
    breaker
}

fn limit(breaker: &Breaker) -> u32 {
    match breaker.gate(second(1), false) {
        Gate::Pass(limit) => limit,
        gate => panic!("{gate:?} of {breaker:?}"),
    }
}

#[test]
fn it_opens_after_failures_in_a_row_and_a_success_ends_the_run() {
    assert_eq!(open().view(), BreakerState::Open);
    let mut breaker = Breaker::default();
    for _ in 0..10 {
        (0..4).for_each(|_| assert!(!fails(&mut breaker, second(0))));
        succeeds(&mut breaker, second(0));
    }
}

/// The run of failures that opens it, if `in_ten` of ten attempts failed before.
fn run_that_opens(in_ten: u32) -> u32 {
    let mut breaker = Breaker::default();
    for n in 0..WINDOW {
        // Spread out, with a success at the end.
        if (n * in_ten) % 10 + in_ten >= 10 && n + 1 < WINDOW {
            fails(&mut breaker, second(0));
        } else {
            succeeds(&mut breaker, second(0));
        }
    }
    (1..=WINDOW).find(|_| fails(&mut breaker, second(0))).unwrap()
}

#[test]
fn the_more_a_replica_failed_before_the_longer_is_the_run_that_opens_it() {
    assert_eq!([0, 1, 2, 4, 6].map(run_that_opens), [5, 6, 7, 13, 22]);
}

#[test]
fn a_dead_replica_is_noticed_however_often_it_failed_before() {
    for in_ten in 0..=8 {
        assert!(run_that_opens(in_ten) <= WINDOW, "{in_ten}");
    }
}

#[test]
fn outages_do_not_count_in_the_failure_rate() {
    let mut breaker = Breaker::default();
    for outage in 0..20 {
        for _ in 0..WINDOW {
            succeeds(&mut breaker, second(outage));
        }
        let run = (1..=WINDOW).find(|_| fails(&mut breaker, second(outage)));
        assert_eq!(run, Some(5), "outage {outage}");
        breaker.probe();
        breaker.succeeded(second(outage), probe(second(outage)), 5);
    }
}

#[test]
fn it_opens_when_nearly_all_of_the_last_attempts_failed() {
    let mut breaker = Breaker::default();
    let opened = (0..200).any(|n| match n % 10 {
        9 => succeeds(&mut breaker, second(0)),
        _ => breaker.failed(second(0), live(second(0)), 20, 0.0),
    });
    assert!(opened, "nine in ten failed all the time");
    // And takes another window when it is back.
    breaker.probe();
    assert!(breaker.succeeded(second(1), probe(second(1)), 5));
    assert!(!breaker.failed(second(1), live(second(1)), 20, 0.0));
}

#[test]
fn a_replica_that_fails_every_other_time_stays_in_use() {
    let mut breaker = Breaker::default();
    for _ in 0..1_000 {
        fails(&mut breaker, second(0));
        succeeds(&mut breaker, second(0));
        assert_eq!(breaker.view(), BreakerState::Closed);
    }
}

#[test]
fn probes_go_out_one_at_a_time_and_the_wait_doubles_with_each_that_fails() {
    let mut breaker = open();
    let mut now = 0;
    for wait in [1, 2, 4, 8, 16, 30, 30] {
        assert_eq!(breaker.gate(second(now + wait - 1), false), Gate::Blocked);
        now += wait;
        assert_eq!(breaker.gate(second(now), false), Gate::Probe);
        breaker.probe();
        assert_eq!(breaker.gate(second(now + 100), false), Gate::Blocked);
        assert!(!breaker.failed(second(now), probe(second(now)), 5, 0.0));
    }
}

#[test]
fn attempts_in_flight_when_it_opened_neither_close_it_nor_delay_the_probe() {
    let mut breaker = open();
    for _ in 0..20 {
        assert!(!fails(&mut breaker, second(0)));
        assert!(!succeeds(&mut breaker, second(0)));
    }
    assert_eq!(breaker.view(), BreakerState::Open);
    assert_eq!(breaker.probe_at(), Some(second(1)));
    // Nor does it while the probe is in flight.
    breaker.probe();
    assert!(!succeeds(&mut breaker, second(1)));
    assert!(breaker.is_probing());
}

#[test]
fn attempts_sent_before_the_replica_came_back_are_ignored() {
    let mut breaker = back(3);
    succeeds(&mut breaker, second(3));
    for _ in 0..20 {
        assert!(!breaker.failed(second(4), live(second(2)), 5, 0.0), "it timed out");
    }
    assert_eq!((breaker.view(), limit(&breaker)), (BreakerState::HalfOpen, 2));
    assert!(breaker.last_succeeded());
}

#[test]
fn a_probe_that_succeeds_resets_the_wait() {
    let mut breaker = open();
    for _ in 0..4 {
        breaker.probe();
        breaker.failed(second(20), probe(second(20)), 5, 0.0);
    }
    breaker.probe();
    breaker.succeeded(second(40), probe(second(40)), 5);
    for _ in 0..5 {
        fails(&mut breaker, second(40));
    }
    assert_eq!(breaker.probe_at(), Some(second(41)));
}

#[test]
fn a_replica_that_comes_back_gets_one_two_four_and_then_all() {
    let mut breaker = back(1);
    let mut limits = Vec::new();
    while breaker.view() == BreakerState::HalfOpen {
        limits.push(limit(&breaker));
        assert!(!succeeds(&mut breaker, second(1)), "it was back before");
    }
    assert_eq!(limits, [1, 2, 2, 4, 4, 4, 4]);
    assert_eq!(breaker.view(), BreakerState::Closed);
}

#[test]
fn a_failure_in_the_ramp_halves_what_is_in_flight_and_five_in_a_row_open_it() {
    let mut breaker = back(1);
    for _ in 0..3 {
        succeeds(&mut breaker, second(1));
    }
    let mut limits = vec![limit(&breaker)];
    for _ in 0..4 {
        assert!(!fails(&mut breaker, second(1)));
        limits.push(limit(&breaker));
    }
    assert_eq!(limits, [4, 2, 1, 1, 1]);
    assert!(fails(&mut breaker, second(1)));
    assert_eq!(breaker.probe_at(), Some(second(2)), "not later than the first time");
}

#[test]
fn a_replica_that_fails_at_random_gets_through_the_ramp() {
    let mut breaker = back(1);
    let closed = (0..4_000).find(|n| {
        match n % 5 {
            1 | 3 => fails(&mut breaker, second(1)),
            _ => breaker.succeeded(second(1), live(second(1)), 64),
        };
        breaker.view() == BreakerState::Closed
    });
    assert!(closed.is_some(), "{breaker:?}");
}

#[test]
fn the_jitter_only_adds() {
    let mut breaker = Breaker::default();
    breaker.failed(second(0), live(second(0)), 1, 1.0);
    assert_eq!(breaker.probe_at(), Some(Moment(0).after(Duration::from_millis(1_200))));
}

#[test]
fn letters_that_fail_again_do_not_slow_the_ramp_down_and_five_of_them_open_it() {
    let mut breaker = back(1);
    succeeds(&mut breaker, second(1));
    for n in 1..=5 {
        assert_eq!(limit(&breaker), 2);
        let opened = breaker.failed(second(1), letter(second(1)), 5, 0.0);
        assert_eq!(opened, n == 5);
    }
    assert_eq!(breaker.gate(second(1), true), Gate::Blocked);
    assert_eq!(
        breaker.gate(second(1), false),
        Gate::Probe,
        "letters say nothing about other deliveries"
    );
}

#[test]
fn letters_that_fail_as_probes_do_not_delay_others() {
    let mut breaker = open();
    assert_eq!(breaker.gate(second(0), false), Gate::Blocked);
    for at in [1, 3, 7] {
        assert_eq!(breaker.gate(second(at), true), Gate::Probe);
        breaker.probe();
        assert_eq!(breaker.gate(second(at), false), Gate::Blocked, "one at a time");
        let ended = EndedAttempt { probe: true, ..letter(second(at)) };
        breaker.failed(second(at), ended, 5, 0.0);
        assert_eq!(breaker.gate(second(at), true), Gate::Blocked);
        assert_eq!(breaker.gate(second(at), false), Gate::Probe);
    }
    breaker.probe();
    breaker.failed(second(7), probe(second(7)), 5, 0.0);
    assert_eq!(breaker.gate(second(8), false), Gate::Blocked);
}

#[test]
fn a_delivery_that_is_given_up_unanswered_opens_it_however_few_the_failures() {
    let wait = Duration::from_secs(2);
    let mut breaker = Breaker::default();
    fails(&mut breaker, second(0));
    succeeds(&mut breaker, second(0));
    fails(&mut breaker, second(2));
    assert!(!breaker.given_up(second(2), 2, wait, 0.0), "others were answered in between");
    fails(&mut breaker, second(4));
    assert!(breaker.given_up(second(4), 2, wait, 0.0));
    assert_eq!(breaker.gate(second(4), false), Gate::Probe);
}

#[test]
fn failures_of_other_deliveries_do_not_count_for_a_given_up_one() {
    let mut breaker = Breaker::default();
    succeeds(&mut breaker, second(11));
    for _ in 0..4 {
        fails(&mut breaker, second(12));
    }
    assert!(!breaker.given_up(second(12), 4, Duration::from_secs(12), 0.0));
}

#[test]
fn one_failure_of_a_replica_that_fails_now_and_then_is_no_outage() {
    let given_up = |breaker: &mut Breaker| {
        fails(breaker, second(1));
        breaker.given_up(second(1), 1, Duration::ZERO, 0.0)
    };
    assert!(given_up(&mut Breaker::default()), "a new replica");
    let mut flaky = Breaker::default();
    (0..64).for_each(|n| match n % 5 {
        0 => drop(fails(&mut flaky, second(0))),
        _ => drop(succeeds(&mut flaky, second(0))),
    });
    assert!(!given_up(&mut flaky));
}

#[test]
fn a_client_whose_writes_all_fail_does_not_open_it_for_the_others() {
    let mut breaker = Breaker::default();
    let of = |client| EndedAttempt { client: ClientId(client), ..live(second(0)) };
    for n in 0..1_000 {
        match n % 20 {
            0 => drop(breaker.succeeded(second(0), of(1), 5)),
            _ => assert!(!breaker.failed(second(0), of(2), 5, 0.0), "{n}"),
        }
    }
    // It is down: the others fail as well.
    assert!((0..5).any(|_| breaker.failed(second(0), of(1), 5, 0.0)));
}
