//! The figures of the last hour, of several instances.

use std::collections::BTreeSet;

use crate::api::PastFigures;

/// Adds the figures of the instances at each time. Each instance has its own times: in a step without a
/// value it has that of the step before.
pub(in crate::dispatcher::cluster) fn pasts(
    pasts: Vec<Option<PastFigures>>,
) -> Option<PastFigures> {
    let pasts: Vec<_> = pasts.into_iter().flatten().collect();
    let first = pasts.first()?;
    let (replica, step_seconds) = (first.replica.clone(), first.step_seconds.max(1));
    let step = u64::from(step_seconds);
    let steps: BTreeSet<_> = pasts.iter().flat_map(|past| &past.at).map(|at| at / step).collect();
    let mut merged = PastFigures { replica, step_seconds, ..PastFigures::default() };
    for time in steps {
        let samples = pasts.iter().filter_map(|past| sample_at(past, time, step));
        let mut sum = Sample::default();
        for (past, at) in samples {
            sum.add(past, at);
        }
        sum.push(&mut merged, time * step);
    }
    Some(merged)
}

/// The last value of a step, or of the one before.
fn sample_at(past: &PastFigures, time: u64, step: u64) -> Option<(&PastFigures, usize)> {
    let at = past.at.partition_point(|at| at / step <= time).checked_sub(1)?;
    (past.at.get(at)? / step + 1 >= time).then_some((past, at))
}

#[derive(Default)]
struct Sample {
    rates: [f32; 3],
    counts: [u32; 4],
    lag: f32,
}

impl Sample {
    fn add(&mut self, past: &PastFigures, at: usize) {
        let rates =
            [&past.accepted_per_second, &past.delivered_per_second, &past.failed_per_second];
        let counts =
            [&past.queue_tasks, &past.retry_tasks, &past.dead_letters, &past.backlog_tasks];
        for (sum, rate) in self.rates.iter_mut().zip(rates) {
            *sum += rate.get(at).copied().unwrap_or_default();
        }
        for (sum, count) in self.counts.iter_mut().zip(counts) {
            *sum = sum.saturating_add(count.get(at).copied().unwrap_or_default());
        }
        self.lag = self.lag.max(past.lag_seconds.get(at).copied().unwrap_or_default());
    }

    fn push(self, merged: &mut PastFigures, at: u64) {
        let [accepted, delivered, failed] = self.rates;
        let [queue, retry, dead, backlog] = self.counts;
        merged.at.push(at);
        merged.accepted_per_second.push(accepted);
        merged.delivered_per_second.push(delivered);
        merged.failed_per_second.push(failed);
        merged.queue_tasks.push(queue);
        merged.retry_tasks.push(retry);
        merged.dead_letters.push(dead);
        merged.backlog_tasks.push(backlog);
        merged.lag_seconds.push(self.lag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(at: &[u64], backlog: &[u32], lag: f32) -> PastFigures {
        let zeros = vec![0; at.len()];
        PastFigures {
            step_seconds: 1,
            at: at.to_vec(),
            accepted_per_second: vec![1.5; at.len()],
            delivered_per_second: vec![0.5; at.len()],
            failed_per_second: vec![0.0; at.len()],
            queue_tasks: backlog.to_vec(),
            retry_tasks: zeros.clone(),
            dead_letters: zeros,
            backlog_tasks: backlog.to_vec(),
            lag_seconds: vec![lag; at.len()],
            ..PastFigures::default()
        }
    }

    #[test]
    fn figures_are_added_at_each_time_and_the_largest_lag_is_kept() {
        let merged = pasts(vec![
            None,
            Some(past(&[10, 11, 12], &[1, 2, 3], 4.0)),
            // It started later.
            Some(past(&[12, 13], &[20, 30], 9.0)),
        ]);
        let merged = merged.unwrap();
        assert_eq!(merged.at, [10, 11, 12, 13]);
        assert_eq!(merged.backlog_tasks, [1, 2, 23, 33], "the last value counts for a step more");
        assert_eq!(merged.accepted_per_second, [1.5, 1.5, 3.0, 3.0]);
        assert_eq!(merged.lag_seconds, [4.0, 4.0, 9.0, 9.0]);
        assert_eq!(pasts(vec![None, None]), None);
    }

    #[test]
    fn two_values_of_one_instance_in_one_step_are_not_added() {
        let slow = PastFigures { step_seconds: 10, ..past(&[100, 109, 121], &[5, 6, 7], 0.0) };
        let other = PastFigures { step_seconds: 10, ..past(&[105, 115, 125], &[1, 1, 1], 0.0) };
        let merged = pasts(vec![Some(slow), Some(other)]).unwrap();
        assert_eq!(merged.at, [100, 110, 120]);
        assert_eq!(merged.backlog_tasks, [7, 7, 8]);
    }
}
