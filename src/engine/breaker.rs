//! The circuit breaker of a replica.
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
//! probe closes it: an attempt that was in flight when it opened is old evidence.
//!
//! **When it opens.** `--breaker-failures` in a row are evidence against a replica that hardly ever
//! fails, but not against one that fails 40 % at random: at a few hundred attempts a second that
//! one has such a run every second, and blocking it loses far more than it saves. So the run must
//! also be improbable at the failure rate before it. A dead replica gets there after 5 failures if
//! it was healthy or is new, after about 7 if it failed 20 % before, after about 13 if 40 %.
//!
//! **One client's writes.** A client whose writes all fail, while those of others succeed, is no
//! evidence against the replica, however many there are: it may write what the replica rejects.
//!
//! Redriven dead letters count less, because their failures can be their own fault: they do not
//! slow a ramp, and if only they failed, any other delivery may be the next probe.

use std::time::Duration;

use smallvec::SmallVec;

use crate::engine::Moment;
use crate::engine::claims::ClientId;
use crate::task::BreakerState;

/// The wait before the first probe. It doubles with each failed probe.
const FIRST_PROBE: Duration = Duration::from_secs(1);
/// The maximum wait: how long a replica can be back without being noticed.
const LAST_PROBE: Duration = Duration::from_secs(30);

/// The attempts that the failure rate covers, and how many of them open the breaker. A replica that
/// fails more than half the time is still worth trying: with 48, one that fails 60 % at random
/// opened it every 660 attempts; with 56, every 900,000.
const WINDOW: u32 = u64::BITS;
const WINDOW_FAILURES: u32 = 56;

/// How improbable a run must be at the failure rate before it. At 1000 attempts a second, a replica
/// that fails at random has such a run about every two minutes, and loses a second or two.
const CHANCE: f64 = 1e-5;

/// Successes in a ramp that earn one place which failures do not take away. Without it, a replica
/// that fails at random never gets beyond two or three.
const EARNED: u32 = 16;

#[derive(Debug)]
pub(super) struct Breaker {
    state: BreakerPhase,
    in_a_row: u32,
    failing_since: Moment,
    /// At least one of them was not a redriven dead letter.
    others_failed: bool,
    /// The last attempts, one bit each, set for a failure. Runs that opened the breaker are left
    /// out.
    window: u64,
    seen: u32,
    successes: LastSuccesses,
    /// When the replica came back. Attempts sent before are ignored.
    back_since: Moment,
    interval: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum BreakerPhase {
    Closed,
    /// The next probe is due at `live_at`, or at `probe_at` if it is a dead letter.
    Open {
        probe_at: Moment,
        live_at: Moment,
        probing: bool,
    },
    Ramp {
        limit: u32,
        successes: u32,
        all: u32,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gate {
    Pass(u32),
    Probe,
    Blocked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EndedAttempt {
    pub(super) sent_at: Moment,
    pub(super) probe: bool,
    pub(super) letter: bool,
    /// The client of the write.
    pub(super) client: ClientId,
}

/// When the last clients had a success: how many attempts ago, within the window.
#[derive(Debug, Default)]
struct LastSuccesses(SmallVec<[(ClientId, u32); 2]>);

impl LastSuccesses {
    /// Clients that are remembered.
    const MOST: usize = 8;

    fn note(&mut self, client: ClientId, failed: bool) {
        for (_, ago) in &mut self.0 {
            *ago += 1;
        }
        self.0.retain(|&mut (of, ago)| ago < WINDOW && (failed || of != client));
        if !failed {
            self.0.truncate(Self::MOST - 1);
            self.0.insert(0, (client, 0));
        }
    }

    /// Whether a client had none and another one did, in the last `attempts`.
    fn only_of_others(&self, client: ClientId, attempts: u32) -> bool {
        self.0.iter().all(|&(of, _)| of != client) && self.0.iter().any(|&(_, ago)| ago < attempts)
    }
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            state: BreakerPhase::Closed,
            in_a_row: 0,
            failing_since: Moment(0),
            others_failed: false,
            window: 0,
            seen: 0,
            successes: LastSuccesses::default(),
            back_since: Moment(0),
            interval: FIRST_PROBE,
        }
    }
}

impl Breaker {
    pub(super) fn view(&self) -> BreakerState {
        match self.state {
            BreakerPhase::Closed => BreakerState::Closed,
            BreakerPhase::Ramp { .. } => BreakerState::HalfOpen,
            BreakerPhase::Open { .. } => BreakerState::Open,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, BreakerPhase::Open { .. })
    }

    /// `letter`: the next delivery would be a redriven dead letter.
    pub(super) fn gate(&self, now: Moment, letter: bool) -> Gate {
        match self.state {
            BreakerPhase::Closed => Gate::Pass(u32::MAX),
            BreakerPhase::Ramp { limit, .. } => Gate::Pass(limit),
            BreakerPhase::Open { probe_at, probing: false, .. } if letter && probe_at <= now => {
                Gate::Probe
            }
            BreakerPhase::Open { live_at, probing: false, .. } if !letter && live_at <= now => {
                Gate::Probe
            }
            BreakerPhase::Open { .. } => Gate::Blocked,
        }
    }

    /// When the next probe may be sent, if the breaker is open and no probe is in flight.
    pub(super) fn probe_at(&self) -> Option<Moment> {
        match self.state {
            BreakerPhase::Open { probe_at, probing: false, .. } => Some(probe_at),
            BreakerPhase::Open { .. } | BreakerPhase::Closed | BreakerPhase::Ramp { .. } => None,
        }
    }

    pub(super) fn probe_now(&mut self, now: Moment) {
        if let BreakerPhase::Open { probe_at, live_at, probing: false } = &mut self.state {
            (*probe_at, *live_at) = (now, now);
        }
    }

    pub(super) fn is_probing(&self) -> bool {
        matches!(self.state, BreakerPhase::Open { probing: true, .. })
    }

    pub(super) fn last_succeeded(&self) -> bool {
        self.in_a_row == 0
    }

    pub(super) fn probe(&mut self) {
        if let BreakerPhase::Open { probing, .. } = &mut self.state {
            *probing = true;
        }
    }

    /// The replica answered an attempt, even if it rejected the write. Returns whether this closed
    /// an open breaker. `most` is the limit at which a ramp ends.
    pub(super) fn succeeded(&mut self, now: Moment, ended: EndedAttempt, most: u32) -> bool {
        match &mut self.state {
            BreakerPhase::Open { .. } if ended.probe => {
                self.state = BreakerPhase::Ramp { limit: 1, successes: 0, all: 0 };
                self.interval = FIRST_PROBE;
                self.back_since = now;
                (self.in_a_row, self.others_failed) = (0, false);
                return true;
            }
            BreakerPhase::Open { .. } => return false,
            BreakerPhase::Closed | BreakerPhase::Ramp { .. } if ended.sent_at < self.back_since => {
                return false;
            }
            BreakerPhase::Closed => {}
            BreakerPhase::Ramp { limit, successes, all } => {
                (*successes, *all) = (*successes + 1, *all + 1);
                if *successes >= *limit {
                    (*limit, *successes) = (limit.saturating_mul(2), 0);
                }
                *limit = (*limit).max(*all / EARNED);
                if *limit >= most {
                    self.state = BreakerPhase::Closed;
                }
            }
        }
        (self.in_a_row, self.others_failed) = (0, false);
        self.note(ended.client, false);
        false
    }

    /// The replica has everything that waited.
    pub(super) fn finish_ramp(&mut self) {
        if let BreakerPhase::Ramp { .. } = self.state {
            self.state = BreakerPhase::Closed;
        }
    }

    /// An attempt failed and may be retried. Returns whether this opened the breaker. `threshold`
    /// is the minimum run of failures; `jitter` is from 0 to 1.
    pub(super) fn failed(
        &mut self,
        now: Moment,
        ended: EndedAttempt,
        threshold: u32,
        jitter: f64,
    ) -> bool {
        match &mut self.state {
            BreakerPhase::Open { live_at, .. } => {
                if ended.probe {
                    let live_at = ended.letter.then_some(*live_at);
                    self.interval = (self.interval * 2).min(LAST_PROBE);
                    self.open(now, jitter, live_at);
                }
                return false;
            }
            BreakerPhase::Closed | BreakerPhase::Ramp { .. } if ended.sent_at < self.back_since => {
                return false;
            }
            BreakerPhase::Ramp { limit, successes, all } if !ended.letter => {
                (*limit, *successes) = ((*limit / 2).max(*all / EARNED).max(1), 0);
            }
            BreakerPhase::Closed | BreakerPhase::Ramp { .. } => {}
        }
        if self.in_a_row == 0 {
            self.failing_since = now;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        self.others_failed |= !ended.letter;
        self.note(ended.client, true);
        let run = self.in_a_row >= threshold && self.is_improbable();
        let only_its = |attempts| self.successes.only_of_others(ended.client, attempts);
        let opens = run && !only_its(WINDOW / 2) || self.mostly_fails() && !only_its(WINDOW);
        if opens {
            self.trip(now, jitter, (!self.others_failed).then_some(now));
        }
        opens
    }

    /// The next probe is due after the same wait.
    pub(super) fn probe_unsent(&mut self, now: Moment, jitter: f64) {
        if self.is_probing() {
            self.open(now, jitter, None);
        }
    }

    /// A delivery was given up after `failures`, the first at least `span` ago. If nothing was
    /// answered since, the replica may be down, however few failures there were. Returns whether
    /// this opened the breaker.
    pub(super) fn given_up(
        &mut self,
        now: Moment,
        failures: u32,
        span: Duration,
        jitter: f64,
    ) -> bool {
        // Under traffic, short runs of failures are common; a whole `span` without an answer is
        // not.
        let unanswered = self.in_a_row >= failures && self.failing_since.after(span) <= now;
        // A single failure (`--max-retries 0`) is no evidence against a replica that fails at
        // times.
        let opens = !self.is_open() && unanswered && (!span.is_zero() || self.is_improbable());
        if opens {
            // The delivery itself may be at fault, so any other one may be the probe at once.
            self.trip(now, jitter, Some(now));
        }
        opens
    }

    /// Whether the current run of failures is improbable at the failure rate before it.
    fn is_improbable(&self) -> bool {
        let before = self.seen.saturating_sub(self.in_a_row);
        // Without attempts before the run there is no rate to compare with.
        let Some(window) = self.window.checked_shr(self.in_a_row).filter(|_| before > 0) else {
            return true;
        };
        let rate = f64::from(window.count_ones()) / f64::from(before);
        rate.powf(f64::from(self.in_a_row)) <= CHANCE
    }

    fn mostly_fails(&self) -> bool {
        self.seen >= WINDOW && self.window.count_ones() >= WINDOW_FAILURES
    }

    fn trip(&mut self, now: Moment, jitter: f64, live_at: Option<Moment>) {
        // Keeps the record from before the run, to judge the replica by when it is back.
        if self.mostly_fails() {
            (self.window, self.seen) = (0, 0);
        } else {
            self.window = self.window.checked_shr(self.in_a_row).unwrap_or(0);
            self.seen = self.seen.saturating_sub(self.in_a_row);
        }
        self.open(now, jitter, live_at);
    }

    fn open(&mut self, now: Moment, jitter: f64, live_at: Option<Moment>) {
        // Up to 20 % more, so that the replicas of one outage are not all probed at once.
        let wait = self.interval + self.interval.mul_f64(jitter / 5.0);
        let probe_at = now.after(wait);
        self.state =
            BreakerPhase::Open { probe_at, live_at: live_at.unwrap_or(probe_at), probing: false };
    }

    fn note(&mut self, client: ClientId, failed: bool) {
        self.successes.note(client, failed);
        self.window = self.window << 1 | u64::from(failed);
        self.seen = (self.seen + 1).min(WINDOW);
    }
}

#[cfg(test)]
mod tests;
