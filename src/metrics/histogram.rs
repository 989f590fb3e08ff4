//! How often something was how large.

use std::time::Duration;

/// Counts by size, for Prometheus. The bounds are those of its kind of figure, in ascending order;
/// what is larger than all of them only counts as one more.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, not cumulative.
    counts: Box<[u64]>,
    count: u64,
    sum: f64,
}

/// From a request's arrival until its write is durable, and for a commit, in seconds.
pub const COMMIT_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// For tasks in one commit; the most is 1024.
pub const COMMIT_TASKS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0];

/// For one attempt, in seconds.
pub const ATTEMPT_SECONDS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// From durable to acknowledged, in seconds: up to the retries, an outage, the retention.
pub const DELIVERY_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 600.0, 3600.0,
    86400.0,
];

/// The same two for one replica. Few, as there can be a thousand replicas.
pub const REPLICA_ATTEMPT_SECONDS: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.25, 1.0, 5.0];
/// See [`REPLICA_ATTEMPT_SECONDS`].
pub const REPLICA_DELIVERY_SECONDS: &[f64] = &[0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0];

impl Histogram {
    /// An empty one with these bounds.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: bounds.iter().map(|_| 0).collect(), count: 0, sum: 0.0 }
    }

    /// Adds one of this size.
    pub fn record(&mut self, size: f64) {
        let place = self.bounds.partition_point(|&bound| bound < size);
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
        self.count += 1;
        self.sum += size;
    }

    /// Adds one that took so long, in seconds.
    pub fn record_time(&mut self, took: Duration) {
        self.record(took.as_secs_f64());
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Their sum.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum
    }

    /// Each bound, and how many are no larger.
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
    fn a_bound_belongs_to_what_is_below_it_and_the_largest_only_count() {
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
