//! The breaker of a replica: whether it is worth a connection.
//!
//! ```text
//!            a run of failures that the replica has not shown before,
//!            or nearly all of the last attempts
//!   Closed ─────────────────────────────────────────────────► Open ◄──┐
//!     ▲                                                       │  │    │ the probe failed:
//!     │ as many in flight as ever         the probe succeeded │  └────┘ twice the wait
//!     │                                                       ▼
//!     └─────────────────── Ramp: 1, 2, 4, … in flight ────────┘
//!                          a failure halves that; it opens as if closed
//! ```
//!
//! While it is open, deliveries fail without being sent, except for one probe at a time. Only the
//! probe moves it: an attempt that was in flight when it opened says how the replica was then.
//!
//! **Which run opens it.** `--breaker-failures` in a row are evidence against a replica that hardly
//! ever fails, and none against one that fails two in five at random: among a few hundred attempts a
//! second it has such a run every second, and to shut it out loses far more than it saves. So the
//! run must also be improbable at the failure rate that the replica had before it. A replica that is
//! dead fails all, so it gets there: after 5 failures where it was healthy or is new, after about 7
//! where one in five failed before, after about 13 where two in five did.
//!
//! Redriven dead letters count, but less: that one fails again can be its own fault. They do not slow
//! down a ramp, and while the breaker is open because of them alone any other delivery may be the
//! next probe.

use std::time::Duration;

use crate::engine::Moment;

/// The wait before the first probe; it doubles with each that fails.
const FIRST_PROBE: Duration = Duration::from_secs(1);
/// The longest wait between two probes: how long a replica can be back without being noticed.
const LAST_PROBE: Duration = Duration::from_secs(30);

/// The last attempts that the failure rate is counted over, and how many of them open the breaker.
/// A replica that fails more than half the time is still worth trying: with 48 one that fails three
/// in five at random opened it every 660 attempts, with 56 every 900,000.
const WINDOW: u32 = u64::BITS;
const WINDOW_FAILURES: u32 = 56;

/// How improbable a run must be at the failure rate before it. At a thousand attempts a second a
/// replica that fails at random has one about every two minutes, which costs it a second or two.
const CHANCE: f64 = 1e-5;

/// In a ramp so many successes earn one place that failures do not take away, or a replica that
/// fails at random would never get beyond two or three.
const EARNED: u32 = 16;

/// Whether a replica is worth a connection, and how many.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Failures since the last success.
    in_a_row: u32,
    /// When the first of them ended.
    failing_since: Moment,
    /// One of them was not a redriven dead letter.
    others_failed: bool,
    /// The last attempts, one bit each, set for a failure; without the runs that opened it.
    window: u64,
    seen: u32,
    /// When the replica came back. Attempts sent before say nothing.
    back_since: Moment,
    /// The wait for the next probe, without jitter.
    interval: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    /// The next probe goes out at `probe_at`, or at `live_at` if it is not a dead letter.
    Open {
        probe_at: Moment,
        live_at: Moment,
        probing: bool,
    },
    Ramp {
        limit: u32,
        /// Since the limit changed.
        successes: u32,
        /// Since the ramp began.
        all: u32,
    },
}

/// What may be sent now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    /// This many at once.
    Pass(u32),
    /// One, to see how the replica is.
    Probe,
    /// Nothing.
    Shut,
}

/// An attempt that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) sent_at: Moment,
    /// It was the probe.
    pub(super) probe: bool,
    /// It was that of a redriven dead letter.
    pub(super) letter: bool,
}

/// How a breaker stands, for operators.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BreakerState {
    /// Deliveries go out.
    #[default]
    Closed,
    /// The replica answers again, and the number of deliveries in flight grows.
    HalfOpen,
    /// Deliveries fail without being sent, except for a probe now and then.
    Open,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: State::Closed,
            in_a_row: 0,
            failing_since: Moment(0),
            others_failed: false,
            window: 0,
            seen: 0,
            back_since: Moment(0),
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

    /// What may be sent; `letter` is set where a redriven dead letter would be the next.
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

    /// The replica answered an attempt, whatever it answered. Returns whether it has just come
    /// back. `most` is how many it has in flight when all is well.
    pub(super) fn succeeded(&mut self, now: Moment, ended: Ended, most: u32) -> bool {
        match &mut self.state {
            State::Open { .. } if ended.probe => {
                self.state = State::Ramp { limit: 1, successes: 0, all: 0 };
                self.interval = FIRST_PROBE;
                self.back_since = now;
                (self.in_a_row, self.others_failed) = (0, false);
                return true;
            }
            State::Open { .. } => return false,
            State::Closed | State::Ramp { .. } if ended.sent_at < self.back_since => {
                return false;
            }
            State::Closed => {}
            State::Ramp { limit, successes, all } => {
                (*successes, *all) = (*successes + 1, *all + 1);
                if *successes >= *limit {
                    (*limit, *successes) = (limit.saturating_mul(2), 0);
                }
                *limit = (*limit).max(*all / EARNED);
                if *limit >= most {
                    self.state = State::Closed;
                }
            }
        }
        (self.in_a_row, self.others_failed) = (0, false);
        self.note(false);
        false
    }

    /// A replica that came back has had all that waited: there is nothing left to be careful with.
    pub(super) fn has_all(&mut self) {
        if let State::Ramp { .. } = self.state {
            self.state = State::Closed;
        }
    }

    /// An attempt failed that may succeed another time. Returns whether that has opened the
    /// breaker. `threshold` is the least run of failures that does; `jitter` is from 0 to 1.
    pub(super) fn failed(
        &mut self,
        now: Moment,
        ended: Ended,
        threshold: u32,
        jitter: f64,
    ) -> bool {
        match &mut self.state {
            State::Open { live_at, .. } => {
                if ended.probe {
                    let live_at = ended.letter.then_some(*live_at);
                    self.interval = (self.interval * 2).min(LAST_PROBE);
                    self.open(now, jitter, live_at);
                }
                return false;
            }
            State::Closed | State::Ramp { .. } if ended.sent_at < self.back_since => {
                return false;
            }
            State::Ramp { limit, successes, all } if !ended.letter => {
                (*limit, *successes) = ((*limit / 2).max(*all / EARNED).max(1), 0);
            }
            State::Closed | State::Ramp { .. } => {}
        }
        if self.in_a_row == 0 {
            self.failing_since = now;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.others_failed |= !ended.letter;
        self.note(true);
        let opens = self.in_a_row >= threshold && self.is_improbable() || self.mostly_fails();
        if opens {
            self.shut(now, jitter, (!self.others_failed).then_some(now));
        }
        opens
    }

    /// The probe was not sent: the next one goes out after the same wait.
    pub(super) fn not_probed(&mut self, now: Moment, jitter: f64) {
        if self.is_probing() {
            self.open(now, jitter, None);
        }
    }

    /// A delivery was given up after `failures`, the first of them at least `span` ago. If nothing
    /// was answered between them the replica may be gone, however few they were. Returns whether
    /// that has opened the breaker.
    pub(super) fn given_up(
        &mut self,
        now: Moment,
        failures: u32,
        span: Duration,
        jitter: f64,
    ) -> bool {
        // With traffic there is a run of a few failures all the time; without any answer for the
        // whole time there is none.
        let unanswered = self.in_a_row >= failures && self.failing_since.after(span) <= now;
        // A single failure (`--max-retries 0`) says nothing of a replica that fails now and then.
        let opens = !self.is_open() && unanswered && (!span.is_zero() || self.is_improbable());
        if opens {
            // It may have been the delivery's own fault.
            self.shut(now, jitter, Some(now));
        }
        opens
    }

    /// Whether the failures in a row are not what the replica does anyway.
    fn is_improbable(&self) -> bool {
        let before = self.seen.saturating_sub(self.in_a_row);
        // The whole window has failed, or there is none.
        let Some(window) = self.window.checked_shr(self.in_a_row).filter(|_| before > 0) else {
            return true;
        };
        let rate = f64::from(window.count_ones()) / f64::from(before);
        rate.powf(f64::from(self.in_a_row)) <= CHANCE
    }

    fn mostly_fails(&self) -> bool {
        self.seen >= WINDOW && self.window.count_ones() >= WINDOW_FAILURES
    }

    fn shut(&mut self, now: Moment, jitter: f64, live_at: Option<Moment>) {
        // What the replica did before is what it is held to when it is back.
        if self.mostly_fails() {
            (self.window, self.seen) = (0, 0);
        } else {
            self.window = self.window.checked_shr(self.in_a_row).unwrap_or(0);
            self.seen = self.seen.saturating_sub(self.in_a_row);
        }
        self.open(now, jitter, live_at);
    }

    fn open(&mut self, now: Moment, jitter: f64, live_at: Option<Moment>) {
        // Up to a fifth more, so that the replicas of one outage are not all probed at once.
        let wait = self.interval + self.interval.mul_f64(jitter / 5.0);
        let probe_at = now.after(wait);
        self.state = State::Open { probe_at, live_at: live_at.unwrap_or(probe_at), probing: false };
    }

    fn note(&mut self, failed: bool) {
        self.window = self.window << 1 | u64::from(failed);
        self.seen = (self.seen + 1).min(WINDOW);
    }
}

#[cfg(test)]
mod tests;
