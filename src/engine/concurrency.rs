//! The limit of concurrent deliveries per replica: `--workers`, a number or `auto`.
//!
//! `auto` follows the round-trip time, like TCP Vegas, BBR, Netflix's concurrency-limits and
//! Vector's adaptive requests: while latency stays flat, more concurrency is more throughput; once
//! latency grows, requests only queue at the replica.
//!
//! After each round (as many answers as the limit) the mean latency is compared with the shortest
//! recent mean: 1/8 more while it is close, 1/5 less when it has doubled, half on a failure. The
//! shortest mean expires and is measured again at half the limit, so that a replica that became
//! slower for good is not held to its past.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::engine::Moment;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workers {
    Fixed(NonZeroU32),
    Auto(NonZeroU32),
}

impl Workers {
    /// With the limit of a replica: instead of a fixed number, or as the maximum of `auto`, which
    /// still follows the latency.
    pub(super) fn limited(self, limit: Option<NonZeroU32>) -> Self {
        match (self, limit) {
            (_, None) => self,
            (Self::Fixed(_), Some(limit)) => Self::Fixed(limit),
            (Self::Auto(_), Some(limit)) => Self::Auto(limit),
        }
    }
}

/// The initial limit of `auto`, fair for an unknown replica.
const FIRST: u32 = 5;
/// Rounds with fewer answers are too small to compare.
const LEAST_ROUND: u32 = 4;
/// The latency of fast replicas more than doubles at random.
const SLACK: Duration = Duration::from_millis(1);
/// Minimum time until the shortest mean expires; the maximum is twice that.
const MEMORY: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Concurrency {
    limit: u32,
    answers: u32,
    total: Duration,
    /// The limit was reached in this round, so a larger one would have been used.
    reached: bool,
    /// Attempts that were in flight at the last failure; their outcomes are the same evidence.
    stale: u32,
    /// The shortest mean since `remembered_since`, and of the period before.
    shortest: Duration,
    shortest_before: Duration,
    remembered_since: Moment,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self {
            limit: FIRST,
            answers: 0,
            total: Duration::ZERO,
            reached: false,
            stale: 0,
            shortest: Duration::MAX,
            shortest_before: Duration::MAX,
            remembered_since: Moment(0),
        }
    }
}

impl Concurrency {
    pub(super) fn limit(&self, workers: Workers) -> u32 {
        match workers {
            Workers::Fixed(limit) => limit.get(),
            Workers::Auto(most) => self.limit.min(most.get()),
        }
    }

    pub(super) fn answered(
        &mut self,
        now: Moment,
        workers: Workers,
        took: Duration,
        failed: bool,
        in_flight: u32,
    ) {
        let Workers::Auto(most) = workers else { return };
        // The maximum may have been lowered.
        self.limit = self.limit.min(most.get());
        self.reached |= in_flight >= self.limit;
        if self.stale > 0 {
            self.stale -= 1;
            return;
        }
        if failed {
            self.limit = (self.limit / 2).max(1);
            self.stale = in_flight.saturating_sub(1);
            return self.next_round();
        }
        self.answers += 1;
        self.total = self.total.saturating_add(took);
        if self.answers < self.limit.max(LEAST_ROUND) {
            return;
        }
        let mean = self.total / self.answers;
        self.shortest = self.shortest.min(mean);
        let base = self.shortest.min(self.shortest_before);
        if mean > base.saturating_mul(2).saturating_add(SLACK) {
            self.limit = (self.limit * 4 / 5).max(1);
        } else if self.reached && mean <= base.mul_f64(1.5).saturating_add(SLACK) {
            self.limit = self.limit.saturating_add((self.limit / 8).max(1)).min(most.get());
        }
        if now >= self.remembered_since.after(MEMORY) {
            (self.shortest_before, self.shortest) = (self.shortest, Duration::MAX);
            self.remembered_since = now;
            if mean > base.mul_f64(1.25).saturating_add(SLACK) {
                self.limit = (self.limit / 2).max(1);
            }
        }
        self.next_round();
    }

    fn next_round(&mut self) {
        (self.answers, self.total) = (0, Duration::ZERO);
        self.reached = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AUTO: Workers = Workers::Auto(NonZeroU32::new(256).unwrap());

    /// A busy replica with latency `time(n)` at a concurrency of n. Returns the minimum and maximum
    /// limit of the second half.
    fn busy(time: impl Fn(u32) -> Duration, seconds: u64) -> (u32, u32) {
        let mut limits = Concurrency::default();
        let (mut now, mut seen) = (Moment(0), Vec::new());
        let end = now.after(Duration::from_secs(seconds));
        while now < end {
            let at_once = limits.limit(AUTO);
            let took = time(at_once);
            now = now.after(took);
            for _ in 0..at_once {
                limits.answered(now, AUTO, took, false, at_once);
            }
            seen.push((now, limits.limit(AUTO)));
        }
        let half = Moment(end.0 / 2);
        let late = seen.iter().filter(|(at, _)| *at > half).map(|(_, limit)| *limit);
        (late.clone().min().unwrap(), late.max().unwrap())
    }

    #[test]
    fn a_distant_replica_gets_the_maximum() {
        assert_eq!(busy(|_| Duration::from_millis(20), 30), (256, 256));
    }

    #[test]
    fn a_replica_that_slows_down_under_load_gets_what_it_can_take() {
        // It serves ten at once in 10 ms; more have to wait.
        let time = |n: u32| Duration::from_millis(10) * n.div_ceil(10).max(1);
        let (least, most) = busy(time, 120);
        assert!(least >= 5 && most <= 40, "{least} to {most}");
    }

    #[test]
    fn a_replica_that_becomes_slower_for_good_is_used_as_before() {
        let mut limits = Concurrency::default();
        let mut now = Moment(0);
        for took in [10, 100].map(Duration::from_millis) {
            for _ in 0..2_000 {
                now = now.after(took);
                let at_once = limits.limit(AUTO);
                (0..at_once).for_each(|_| limits.answered(now, AUTO, took, false, at_once));
            }
            assert!(limits.limit(AUTO) > 200, "{}", limits.limit(AUTO));
        }
    }

    #[test]
    fn failures_bring_it_down_to_one_and_a_fixed_number_stays() {
        let mut limits = Concurrency::default();
        for in_flight in (1..=5).rev() {
            limits.answered(Moment(0), AUTO, Duration::from_millis(1), true, in_flight);
        }
        assert_eq!(limits.limit(AUTO), 2, "failures of one moment count once");
        limits.answered(Moment(0), AUTO, Duration::from_millis(1), true, 1);
        assert_eq!(limits.limit(AUTO), 1);
        assert_eq!(limits.limit(Workers::Fixed(NonZeroU32::new(7).unwrap())), 7);
    }

    #[test]
    fn a_limit_that_is_not_reached_does_not_grow() {
        let mut limits = Concurrency::default();
        for n in 0..1_000 {
            let now = Moment(n * 1_000);
            limits.answered(now, AUTO, Duration::from_millis(1), false, 2);
        }
        assert_eq!(limits.limit(AUTO), FIRST);
    }
}
