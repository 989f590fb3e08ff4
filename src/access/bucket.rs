//! Rate limiting with a token bucket.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

/// A bucket that refills at `rate` per second, up to one second's worth.
///
/// A batch may take more than the level. The debt must be refilled before the next request, so the
/// long-term mean never exceeds the rate and no batch is too large.
#[derive(Debug)]
pub struct Bucket {
    rate: f64,
    /// Negative during a debt.
    level: f64,
    /// Time of `level`.
    at: Option<Instant>,
}

impl Bucket {
    pub fn new(rate: NonZeroU32) -> Self {
        let rate = f64::from(rate.get());
        Self { rate, level: rate, at: None }
    }

    /// Takes 1 if the level is at least 1. Otherwise fails with the time until it is.
    pub fn spend(&mut self, now: Instant) -> Result<(), Duration> {
        self.take(1, 1.0, now)
    }

    /// Takes `count` more for a batch whose first request was admitted, even into debt, unless there
    /// is a debt already. So of batches at the same time only one gets the bucket into debt.
    pub fn spend_more(&mut self, count: u32, now: Instant) -> Result<(), Duration> {
        self.take(count, 0.0, now)
    }

    fn take(&mut self, count: u32, needed: f64, now: Instant) -> Result<(), Duration> {
        let passed = self.at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.at = Some(self.at.map_or(now, |at| at.max(now)));
        self.level = (self.level + passed.as_secs_f64() * self.rate).min(self.rate);
        if self.level < needed {
            return Err(Duration::from_secs_f64((1.0 - self.level) / self.rate));
        }
        self.level -= f64::from(count);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::disallowed_methods, reason = "any moment is as good")]
    fn now() -> Instant {
        Instant::now()
    }

    fn bucket(rate: u32) -> Bucket {
        Bucket::new(NonZeroU32::new(rate).unwrap())
    }

    #[test]
    fn a_burst_of_one_second_is_allowed_and_then_the_rate_applies() {
        let (mut bucket, start) = (bucket(10), now());
        for _ in 0..10 {
            bucket.spend(start).unwrap();
        }
        assert_eq!(bucket.spend(start), Err(Duration::from_millis(100)));
        bucket.spend(start + Duration::from_millis(101)).unwrap();
        assert!(bucket.spend(start + Duration::from_millis(101)).is_err());
    }

    #[test]
    fn a_batch_is_a_debt_that_must_be_refilled_first() {
        let (mut bucket, start) = (bucket(10), now());
        bucket.spend(start).unwrap();
        bucket.spend_more(999, start).unwrap();
        let wait = bucket.spend(start).unwrap_err();
        assert!((wait.as_secs_f64() - 99.1).abs() < 0.01, "{wait:?}");
        assert!(bucket.spend(start + Duration::from_secs(99)).is_err());
        bucket.spend(start + Duration::from_millis(99_101)).unwrap();
    }

    #[test]
    fn a_day_without_requests_saves_up_no_more_than_one_second() {
        let (mut bucket, start) = (bucket(2), now());
        bucket.spend(start).unwrap();
        let later = start + Duration::from_secs(86_400);
        assert!(bucket.spend(later).is_ok() && bucket.spend(later).is_ok());
        assert!(bucket.spend(later).is_err());
    }

    #[test]
    fn of_batches_at_the_same_time_one_is_admitted() {
        let (mut bucket, start) = (bucket(10), now());
        for _ in 0..10 {
            bucket.spend(start).unwrap();
        }
        bucket.spend_more(999, start).unwrap();
        for _ in 1..10 {
            let wait = bucket.spend_more(999, start).unwrap_err();
            assert!((wait.as_secs_f64() - 100.0).abs() < 0.01, "{wait:?}");
        }
        bucket.spend(start + Duration::from_millis(100_001)).unwrap();
    }
}
