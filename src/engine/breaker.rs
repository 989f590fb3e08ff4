//! The breaker of a replica: whether it is worth a connection.
//!
//! ```text
//!            failures in a row, or most of the last attempts
//!   Closed ────────────────────────────────────────────────► Open ◄────────┐
//!     ▲                                                        │           │
//!     │ as many at once as ever              an attempt succeeded          │ a failure
//!     │                                                        ▼           │
//!     └──────────────────────── Ramp: 1, 2, 4, … at once ──────┴───────────┘
//! ```
//!
//! While it is open, deliveries fail without being sent, but for one probe at a time.
//!
//! Dead letters that are redriven count, but not as much: that they fail again can be their own fault.
//! On the way back they do not open it at once, and while it is open on their account alone any
//! other delivery may be the next probe.

use std::time::Duration;

use crate::engine::Moment;

/// The wait before the first probe; it doubles with each that fails.
const FIRST_PROBE: Duration = Duration::from_secs(1);
/// The longest wait between two probes: how long a replica can be back without being noticed.
const LAST_PROBE: Duration = Duration::from_secs(30);

/// The last attempts that the failure rate is counted over, and how many of them open the breaker.
/// A replica that fails now and then, even half the time, is still worth trying.
const WINDOW: u32 = u64::BITS;
const WINDOW_FAILURES: u32 = 48;

/// Whether a replica is worth a connection, and how many.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Failures since the last success.
    in_a_row: u32,
    /// One of them was no dead letter's.
    others_failed: bool,
    /// The last attempts, one bit each, set for a failure.
    window: u64,
    seen: u32,
    /// The wait for the next probe, without jitter.
    interval: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    /// The next probe goes out at `probe_at`, or at `live_at` if it is no dead letter.
    Open {
        probe_at: Moment,
        live_at: Moment,
        probing: bool,
    },
    Ramp {
        limit: u32,
        successes: u32,
    },
}

/// What may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// So many at once.
    Pass(u32),
    /// One, to see how the replica is.
    Probe,
    /// Nothing.
    Shut,
}

/// What has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Tried {
    /// A first attempt.
    First,
    /// Another one.
    Again,
    /// A dead letter's that is redriven.
    Letter,
}

/// How a breaker stands, for operators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreakerState {
    /// Deliveries go out.
    #[default]
    Closed,
    /// The replica answers again, and gets more by and by.
    HalfOpen,
    /// Deliveries fail without being sent, but for a probe now and then.
    Open,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: State::Closed,
            in_a_row: 0,
            others_failed: false,
            window: 0,
            seen: 0,
            interval: FIRST_PROBE,
        }
    }
}

impl Breaker {
    pub(super) fn view(&self) -> BreakerState {
        match self.state {
            State::Closed => BreakerState::Closed,
            State::Ramp { .. } => BreakerState::HalfOpen,
            State::Open { .. } => BreakerState::Open,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    /// What may be sent; `letter` says that a redriven dead letter would be the next.
    pub(super) fn gate(&self, now: Moment, letter: bool) -> Gate {
        match self.state {
            State::Closed => Gate::Pass(u32::MAX),
            State::Ramp { limit, .. } => Gate::Pass(limit),
            State::Open { probe_at, probing: false, .. } if letter && probe_at <= now => {
                Gate::Probe
            }
            State::Open { live_at, probing: false, .. } if !letter && live_at <= now => Gate::Probe,
            State::Open { .. } => Gate::Shut,
        }
    }

    /// When the next probe may go out, if it is open and none is on its way.
    pub(super) fn probe_at(&self) -> Option<Moment> {
        match self.state {
            State::Open { probe_at, probing: false, .. } => Some(probe_at),
            State::Open { .. } | State::Closed | State::Ramp { .. } => None,
        }
    }

    /// Lets the next probe go out at once, if it is open and none is on its way.
    pub(super) fn probe_now(&mut self, now: Moment) {
        if let State::Open { probe_at, live_at, probing: false } = &mut self.state {
            (*probe_at, *live_at) = (now, now);
        }
    }

    /// Whether a probe is on its way.
    pub(super) fn is_probing(&self) -> bool {
        matches!(self.state, State::Open { probing: true, .. })
    }

    /// Whether the last attempt that ended has not failed.
    pub(super) fn answers(&self) -> bool {
        self.in_a_row == 0
    }

    /// A probe goes out.
    pub(super) fn probe(&mut self) {
        if let State::Open { probing, .. } = &mut self.state {
            *probing = true;
        }
    }

    /// The replica answered an attempt, whatever it said of the write. Says whether it has just
    /// come back. `most` is how many it has at once when all is well.
    pub(super) fn succeeded(&mut self, most: u32) -> bool {
        (self.in_a_row, self.others_failed) = (0, false);
        self.note(false);
        match &mut self.state {
            State::Closed => {}
            State::Ramp { limit, successes } => {
                *successes += 1;
                if *successes >= *limit {
                    (*limit, *successes) = (limit.saturating_mul(2), 0);
                }
                if *limit >= most {
                    *self = Self::default();
                }
            }
            // Not only the probe: one that was on its way before says the same.
            State::Open { .. } => {
                self.state = State::Ramp { limit: 1, successes: 0 };
                return true;
            }
        }
        false
    }

    /// A replica that came back has had all that waited: there is nothing left to be careful with.
    pub(super) fn has_all(&mut self) {
        if let State::Ramp { .. } = self.state {
            *self = Self::default();
        }
    }

    /// An attempt failed in a way that another may not. Says whether that has opened the breaker.
    /// `threshold` is how many failures in a row do; `jitter` is from 0 to 1.
    pub(super) fn failed(
        &mut self,
        now: Moment,
        (tried, probe): (Tried, bool),
        threshold: u32,
        jitter: f64,
    ) -> bool {
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.others_failed |= tried != Tried::Letter;
        self.note(true);
        let opens = match self.state {
            State::Closed => {
                let mostly = self.seen >= WINDOW && self.window.count_ones() >= WINDOW_FAILURES;
                self.in_a_row >= threshold || mostly
            }
            // What has failed before may fail again on a replica that is well.
            State::Ramp { .. } if tried != Tried::First && self.in_a_row < threshold => false,
            State::Ramp { .. } => {
                self.slow_down();
                true
            }
            State::Open { live_at, .. } if probe && tried == Tried::Letter => {
                self.slow_down();
                self.open(now, jitter, Some(live_at));
                false
            }
            State::Open { .. } if probe => {
                self.slow_down();
                self.open(now, jitter, None);
                false
            }
            // It was on its way when the breaker opened.
            State::Open { .. } => false,
        };
        if opens {
            self.open(now, jitter, (!self.others_failed).then_some(now));
        }
        opens
    }

    /// A delivery was given up after so many failures. If nothing was answered between them, nobody
    /// knows that the replica is there, however few they were. Says whether that has opened the
    /// breaker.
    pub(super) fn given_up(&mut self, now: Moment, failures: u32, jitter: f64) -> bool {
        let opens = !self.is_open() && self.in_a_row >= failures;
        if opens {
            // It may have been the delivery's own fault.
            self.open(now, jitter, Some(now));
        }
        opens
    }

    fn open(&mut self, now: Moment, jitter: f64, live_at: Option<Moment>) {
        // Up to a fifth more, so that the replicas of one outage are not all probed at once.
        let wait = self.interval + self.interval.mul_f64(jitter / 5.0);
        let probe_at = now.after(wait);
        self.state = State::Open { probe_at, live_at: live_at.unwrap_or(probe_at), probing: false };
    }

    fn slow_down(&mut self) {
        self.interval = (self.interval * 2).min(LAST_PROBE);
    }

    fn note(&mut self, failed: bool) {
        self.window = self.window << 1 | u64::from(failed);
        self.seen = self.seen.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(n: u64) -> Moment {
        Moment(0).after(Duration::from_secs(n))
    }

    fn open() -> Breaker {
        let mut breaker = Breaker::default();
        for n in 1..=5 {
            assert_eq!(breaker.gate(second(0), false), Gate::Pass(u32::MAX));
            assert_eq!(breaker.failed(second(0), (Tried::First, false), 5, 0.0), n == 5);
        }
        breaker
    }

    #[test]
    fn it_opens_after_failures_in_a_row_and_a_success_starts_the_count_anew() {
        assert_eq!(open().view(), BreakerState::Open);
        let mut breaker = Breaker::default();
        for _ in 0..10 {
            (0..4).for_each(|_| assert!(!breaker.failed(second(0), (Tried::First, false), 5, 0.0)));
            breaker.succeeded(5);
        }
    }

    #[test]
    fn it_opens_when_most_of_the_last_attempts_failed() {
        let mut breaker = Breaker::default();
        let opened = (0..200).any(|n| match n % 5 {
            4 => breaker.succeeded(5),
            _ => breaker.failed(second(0), (Tried::First, false), 5, 0.0),
        });
        assert!(opened, "four in five failed all the time");
    }

    #[test]
    fn a_replica_that_fails_every_other_time_stays_in_use() {
        let mut breaker = Breaker::default();
        for _ in 0..1_000 {
            breaker.failed(second(0), (Tried::First, false), 5, 0.0);
            breaker.succeeded(5);
            assert_eq!(breaker.view(), BreakerState::Closed);
        }
    }

    #[test]
    fn probes_go_out_one_at_a_time_and_ever_more_seldom() {
        let mut breaker = open();
        let mut now = 0;
        for wait in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(breaker.gate(second(now + wait - 1), false), Gate::Shut);
            now += wait;
            assert_eq!(breaker.gate(second(now), false), Gate::Probe);
            breaker.probe();
            assert_eq!(breaker.gate(second(now + 100), false), Gate::Shut);
            assert!(!breaker.failed(second(now), (Tried::First, true), 5, 0.0));
        }
    }

    #[test]
    fn what_was_on_its_way_when_it_opened_does_not_put_off_the_probe() {
        let mut breaker = open();
        breaker.failed(second(0), (Tried::First, false), 5, 0.0);
        assert_eq!(breaker.gate(second(1), false), Gate::Probe);
    }

    #[test]
    fn a_replica_that_comes_back_gets_one_two_four_and_then_all() {
        let mut breaker = open();
        breaker.probe();
        assert!(breaker.succeeded(5));
        let mut limits = Vec::new();
        while breaker.view() == BreakerState::HalfOpen {
            let Gate::Pass(limit) = breaker.gate(second(1), false) else { panic!("{breaker:?}") };
            limits.push(limit);
            assert!(!breaker.succeeded(5), "it is back already");
        }
        assert_eq!(limits, [1, 2, 2, 4, 4, 4, 4]);
        assert_eq!(breaker.view(), BreakerState::Closed);
    }

    #[test]
    fn a_failure_on_the_way_back_opens_it_for_longer() {
        let mut breaker = open();
        breaker.probe();
        breaker.succeeded(5);
        assert!(breaker.failed(second(1), (Tried::First, false), 5, 0.0));
        assert_eq!(breaker.probe_at(), Some(second(3)));
    }

    #[test]
    fn the_jitter_only_adds() {
        let mut breaker = Breaker::default();
        breaker.failed(second(0), (Tried::First, false), 1, 1.0);
        assert_eq!(breaker.probe_at(), Some(Moment(0).after(Duration::from_millis(1_200))));
    }

    #[test]
    fn a_letter_that_fails_again_on_the_way_back_does_not_open_it_and_five_do() {
        let mut breaker = open();
        breaker.probe();
        breaker.succeeded(5);
        for n in 1..=5 {
            let opened = breaker.failed(second(1), (Tried::Letter, false), 5, 0.0);
            assert_eq!(opened, n == 5);
        }
        assert_eq!(breaker.gate(second(1), true), Gate::Shut);
        assert_eq!(breaker.gate(second(1), false), Gate::Probe, "they say nothing of others");
    }

    #[test]
    fn letters_that_fail_as_probes_do_not_put_off_others() {
        let mut breaker = open();
        assert_eq!(breaker.gate(second(0), false), Gate::Shut);
        for at in [1, 3, 7] {
            assert_eq!(breaker.gate(second(at), true), Gate::Probe);
            breaker.probe();
            assert_eq!(breaker.gate(second(at), false), Gate::Shut, "one at a time");
            breaker.failed(second(at), (Tried::Letter, true), 5, 0.0);
            assert_eq!(breaker.gate(second(at), true), Gate::Shut);
            assert_eq!(breaker.gate(second(at), false), Gate::Probe);
        }
        breaker.probe();
        breaker.failed(second(7), (Tried::First, true), 5, 0.0);
        assert_eq!(breaker.gate(second(8), false), Gate::Shut);
    }

    #[test]
    fn a_delivery_that_is_given_up_unanswered_opens_it_however_few_the_failures() {
        let mut breaker = Breaker::default();
        breaker.failed(second(0), (Tried::First, false), 5, 0.0);
        breaker.succeeded(5);
        breaker.failed(second(2), (Tried::Again, false), 5, 0.0);
        assert!(!breaker.given_up(second(2), 2, 0.0), "others were answered in between");
        breaker.failed(second(4), (Tried::Again, false), 5, 0.0);
        assert!(breaker.given_up(second(4), 2, 0.0));
        assert_eq!(breaker.gate(second(4), false), Gate::Probe);
    }
}
