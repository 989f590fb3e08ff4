//! A histogram for Prometheus.

use std::time::Duration;

/// Bounds are ascending. A larger value counts only in `count` and `sum`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One per bound, not cumulative.
    counts: Box<[u64]>,
    count: u64,
    sum: f64,
}

/// Buckets for commits, and for the time from a request to its durable write.
pub const COMMIT_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// A commit has at most 1024 tasks.
pub const COMMIT_TASKS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

pub const ATTEMPT_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// Buckets from durable to acknowledged. The upper ones cover retries, outages and retention.
pub const DELIVERY_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0, 3600.0,
    86400.0,
];

/// Fewer buckets per replica, since there may be a thousand replicas.
pub const REPLICA_ATTEMPT_SECONDS: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 5.0];
pub const REPLICA_DELIVERY_SECONDS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0];

impl Histogram {
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: bounds.iter().map(|_| 0).collect(), count: 0, sum: 0.0 }
    }

    pub fn record(&mut self, size: f64) {
        let bucket = self.bounds.partition_point(|&bound| bound < size);
        if let Some(count) = self.counts.get_mut(bucket) {
            *count += 1;
        }
        self.count += 1;
        self.sum += size;
    }

    pub fn record_time(&mut self, took: Duration) {
        self.record(took.as_secs_f64());
    }

    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Each bound with the number of values up to it.
    pub fn cumulative(&self) -> impl Iterator<Item = (f64, u64)> {
        let counts = self.counts.iter().scan(0, |sum: &mut u64, count| {
            *sum += count;
            Some(*sum)
        });
        self.bounds.iter().copied().zip(counts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_is_inclusive_and_larger_values_only_count() {
        let mut histogram = Histogram::new(&[1.0, 2.0]);
        for size in [0.5, 1.0, 1.5, 2.0, 7.0] {
            histogram.record(size);
        }
        assert_eq!(histogram.cumulative().collect::<Vec<_>>(), [(1.0, 2), (2.0, 4)]);
        assert_eq!((histogram.count(), histogram.sum()), (5, 12.0));
    }

    #[test]
    fn all_bounds_are_ascending() {
        for bounds in [
            COMMIT_SECONDS,
            COMMIT_TASKS,
            ATTEMPT_SECONDS,
            DELIVERY_SECONDS,
            REPLICA_ATTEMPT_SECONDS,
            REPLICA_DELIVERY_SECONDS,
        ] {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        }
    }
}
