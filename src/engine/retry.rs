//! The retry schedule.

use std::time::Duration;

#[derive(Clone, Debug)]
pub(super) struct Schedule {
    pub(super) max_retries: u32,
    pub(super) base: Duration,
}

impl Schedule {
    /// The wait after the `failures`-th failed attempt; `None` gives the delivery up.
    ///
    /// Linear, `failures × base`: 2 s, 4 s, 6 s by default, as promised to clients. Up to 10 % is
    /// added at random, so that the retries of one outage are spread. A longer `Retry-After` is
    /// honoured.
    pub(super) fn wait(
        &self,
        failures: u32,
        retry_after: Option<Duration>,
        rng: &mut fastrand::Rng,
    ) -> Option<Duration> {
        if failures > self.max_retries {
            return None;
        }
        let planned = self.base.saturating_mul(failures);
        let jitter = planned.mul_f64(rng.f64() / 10.0);
        Some(planned.saturating_add(jitter).max(retry_after.unwrap_or_default()))
    }

    /// The wait of a delivery that could not be sent, which is not a failure.
    pub(super) fn pause(&self, rng: &mut fastrand::Rng) -> Duration {
        let planned = self.base.max(Duration::from_secs(1));
        planned.saturating_add(planned.mul_f64(rng.f64() / 10.0))
    }

    /// The minimum time between the first and the last of `failures`.
    pub(super) fn span(&self, failures: u32) -> Duration {
        let waits = failures.saturating_mul(failures.saturating_sub(1)) / 2;
        self.base.saturating_mul(waits)
    }

    /// The longest wait without a `Retry-After`. The retry queue is for waits up to this: with
    /// `Retry-After: 60` a delivery would block a place that several earlier retries could use.
    pub(super) fn longest(&self) -> Duration {
        self.base.saturating_mul(self.max_retries).mul_f64(1.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(failures: u32, retry_after: Option<Duration>) -> Option<Duration> {
        let schedule = Schedule { max_retries: 3, base: Duration::from_secs(2) };
        schedule.wait(failures, retry_after, &mut fastrand::Rng::with_seed(7))
    }

    #[test]
    fn the_waits_are_two_four_and_six_seconds_plus_at_most_a_tenth() {
        for failures in 1..=3 {
            let planned = Duration::from_secs(2) * failures;
            let waited = wait(failures, None).unwrap();
            assert!(waited >= planned && waited <= planned.mul_f64(1.1), "{waited:?}");
        }
    }

    #[test]
    fn four_failures_are_twelve_seconds_apart_at_least() {
        let schedule = Schedule { max_retries: 3, base: Duration::from_secs(2) };
        let waited: Duration = (1..=3).map(|failures| wait(failures, None).unwrap()).sum();
        assert_eq!(schedule.span(4), Duration::from_secs(12));
        assert!(waited >= schedule.span(4));
        assert_eq!(schedule.span(1), Duration::ZERO);
    }

    #[test]
    fn the_fourth_failure_is_the_last() {
        assert_eq!(wait(4, None), None);
        assert_eq!(wait(4, Some(Duration::from_secs(1))), None);
    }

    #[test]
    fn a_replica_may_ask_for_more_time_but_not_for_less() {
        assert_eq!(wait(1, Some(Duration::from_secs(60))), Some(Duration::from_secs(60)));
        assert!(wait(3, Some(Duration::from_secs(1))).unwrap() >= Duration::from_secs(6));
    }
}
