//! Latencies of commits, accepted writes, attempts and acknowledgements, in total and per replica,
//! and the rates of each replica.
//!
//! The loop records here as it goes; metrics, figures and `/v1/replicas` read from here. A replica
//! is dropped in the second in which it loses its lane.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::dispatcher::messages::AttemptReport;
use crate::engine::{Engine, LaneView, Moment};
use crate::metrics::{
    ATTEMPT_SECONDS, COMMIT_SECONDS, COMMIT_TASKS, DELIVERY_SECONDS, Histogram,
    REPLICA_ATTEMPT_SECONDS, REPLICA_DELIVERY_SECONDS, Snapshot,
};
use crate::task::{Node, Verdict};

/// A rate covers this many seconds.
const RATE_SECONDS: usize = 60;
/// Quantiles cover the last one to two of these windows.
const QUANTILE_WINDOW: Duration = Duration::from_secs(60);
/// Significant digits of a quantile, in microseconds.
const QUANTILE_DIGITS: u8 = 2;
const MEAN_ACKS: usize = 1000;

#[derive(Debug)]
pub(super) struct Latency {
    accept: Histogram,
    delivery: Histogram,
    attempt: Histogram,
    commit: Histogram,
    commit_tasks: Histogram,
    acks: AckMean,
    /// Longest time from acceptance to acknowledgement since the start.
    max_lag: Duration,
    replicas: HashMap<Node, ReplicaLatency>,
}

impl Default for Latency {
    fn default() -> Self {
        Self {
            accept: Histogram::new(COMMIT_SECONDS),
            delivery: Histogram::new(DELIVERY_SECONDS),
            attempt: Histogram::new(ATTEMPT_SECONDS),
            commit: Histogram::new(COMMIT_SECONDS),
            commit_tasks: Histogram::new(COMMIT_TASKS),
            acks: AckMean::default(),
            max_lag: Duration::ZERO,
            replicas: HashMap::new(),
        }
    }
}

#[derive(Debug)]
struct ReplicaLatency {
    delivery: Histogram,
    attempt: Histogram,
    quantiles: Option<AckQuantiles>,
    /// One per second, the newest last.
    samples: VecDeque<CounterSample>,
}

impl Default for ReplicaLatency {
    fn default() -> Self {
        Self {
            delivery: Histogram::new(REPLICA_DELIVERY_SECONDS),
            attempt: Histogram::new(REPLICA_ATTEMPT_SECONDS),
            quantiles: None,
            samples: VecDeque::new(),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct CounterSample {
    at: Moment,
    accepted: u64,
    left: u64,
    delivered: u64,
    failed: u64,
}

/// The rates of one replica, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    /// Deliveries accepted, over the last minute.
    pub(super) accepted: f64,
    /// Deliveries that left the backlog, over the last minute.
    pub(super) left: f64,
    /// Deliveries acknowledged in the last second.
    pub(super) delivered_now: f64,
    /// Attempts that failed in the last second.
    pub(super) failed_now: f64,
}

impl Latency {
    #[expect(clippy::cast_precision_loss, reason = "a commit has at most a thousand tasks")]
    pub(super) fn committed(&mut self, tasks: usize, took: Duration) {
        self.commit.record_time(took);
        self.commit_tasks.record(tasks as f64);
    }

    /// A write that arrived at `arrived` is durable.
    pub(super) fn accepted(&mut self, arrived: Moment, now: Moment) {
        self.accept.record_time(now.since_start().saturating_sub(arrived.since_start()));
    }

    /// Records an attempt, if it was sent. The task of a delivery must still be in `engine`.
    pub(super) fn attempt_ended(&mut self, now: Moment, report: &AttemptReport, engine: &Engine) {
        let Some(node) = &report.node else { return };
        let took = report.outcome.took;
        let replica = self.replicas.entry(node.clone()).or_default();
        self.attempt.record_time(took);
        replica.attempt.record_time(took);
        if report.outcome.verdict != Verdict::Delivered {
            return;
        }
        self.acks.record(took);
        replica.acknowledged(now, took);
        if let Some(lag) = engine.age(report.delivery.task, now) {
            self.max_lag = self.max_lag.max(lag);
            self.delivery.record_time(lag);
            replica.delivery.record_time(lag);
        }
    }

    /// Samples the counters, once a second, and drops the replicas without a lane.
    pub(super) fn sample(&mut self, now: Moment, lanes: &[LaneView]) {
        for lane in lanes {
            let counters = &lane.counters;
            let sample = CounterSample {
                at: now,
                accepted: counters.accepted,
                left: counters.accepted.saturating_sub(counters.pending),
                delivered: counters.delivered,
                failed: counters.failed_attempts,
            };
            let samples = &mut self.replicas.entry(lane.node.clone()).or_default().samples;
            samples.push_back(sample);
            if samples.len() > RATE_SECONDS + 1 {
                samples.pop_front();
            }
        }
        self.replicas.retain(|_, replica| {
            if let Some(quantiles) = &mut replica.quantiles {
                quantiles.rotate(now);
            }
            replica.samples.back().is_some_and(|sample| sample.at == now)
        });
    }

    pub(super) fn rename(&mut self, from: &Node, to: &Node) {
        if let Some(replica) = self.replicas.remove(from) {
            self.replicas.insert(to.clone(), replica);
        }
    }

    pub(super) fn rate(&self, node: &Node) -> Rate {
        self.replicas.get(node).map(ReplicaLatency::rate).unwrap_or_default()
    }

    /// The p50 and p99 of the acknowledged attempts of the last minute or two.
    pub(super) fn quantiles(&self, node: &Node) -> Option<(Duration, Duration)> {
        self.replicas.get(node)?.quantiles.as_ref()?.p50_p99()
    }

    pub(super) fn fill(&self, snapshot: &mut Snapshot) {
        snapshot.average_ack_seconds = self.acks.mean().as_secs_f64();
        snapshot.max_lag_seconds = self.max_lag.as_secs_f64();
        snapshot.accept_seconds = self.accept.clone();
        snapshot.delivery_seconds = self.delivery.clone();
        snapshot.attempt_seconds = self.attempt.clone();
        snapshot.commit_seconds = self.commit.clone();
        snapshot.commit_tasks = self.commit_tasks.clone();
    }

    /// The times of the deliveries and of the attempts of a replica.
    pub(super) fn histograms(&self, node: &Node) -> (Histogram, Histogram) {
        let of = |replica: &ReplicaLatency| (replica.delivery.clone(), replica.attempt.clone());
        self.replicas.get(node).map_or_else(|| of(&ReplicaLatency::default()), of)
    }
}

impl ReplicaLatency {
    fn acknowledged(&mut self, now: Moment, took: Duration) {
        if self.quantiles.is_none() {
            self.quantiles = AckQuantiles::new(now);
        }
        if let Some(quantiles) = &mut self.quantiles {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            // Fails only if the histogram cannot grow.
            let _ = quantiles.current.record(micros.max(1));
        }
    }

    fn rate(&self) -> Rate {
        let samples = &self.samples;
        let (Some(first), Some(last)) = (samples.front(), samples.back()) else {
            return Rate::default();
        };
        let before = samples.len().checked_sub(2).and_then(|at| samples.get(at)).unwrap_or(last);
        Rate {
            accepted: per_second(first, last, |sample| sample.accepted),
            left: per_second(first, last, |sample| sample.left),
            delivered_now: per_second(before, last, |sample| sample.delivered),
            failed_now: per_second(before, last, |sample| sample.failed),
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_second(
    first: &CounterSample,
    last: &CounterSample,
    count: impl Fn(&CounterSample) -> u64,
) -> f64 {
    let seconds = last.at.since_start().saturating_sub(first.at.since_start()).as_secs_f64();
    let counted = count(last).saturating_sub(count(first)) as f64;
    if seconds > 0.0 { counted / seconds } else { 0.0 }
}

/// Times of acknowledged attempts in two windows, of which the older one is complete.
#[derive(Debug)]
struct AckQuantiles {
    until: Moment,
    current: hdrhistogram::Histogram<u32>,
    previous: hdrhistogram::Histogram<u32>,
}

impl AckQuantiles {
    fn new(now: Moment) -> Option<Self> {
        let current = hdrhistogram::Histogram::new(QUANTILE_DIGITS).ok()?;
        let previous = current.clone();
        Some(Self { until: now.after(QUANTILE_WINDOW), current, previous })
    }

    fn rotate(&mut self, now: Moment) {
        if self.until <= now {
            self.until = now.after(QUANTILE_WINDOW);
            std::mem::swap(&mut self.current, &mut self.previous);
            self.current.reset();
        }
    }

    fn p50_p99(&self) -> Option<(Duration, Duration)> {
        let mut both = self.previous.clone();
        both.add(&self.current).ok()?;
        let at = |quantile| Duration::from_micros(both.value_at_quantile(quantile));
        (!both.is_empty()).then(|| (at(0.5), at(0.99)))
    }
}

#[derive(Debug, Default)]
struct AckMean {
    times: VecDeque<Duration>,
    sum: Duration,
}

impl AckMean {
    fn record(&mut self, took: Duration) {
        if self.times.len() == MEAN_ACKS {
            self.sum -= self.times.pop_front().unwrap_or_default();
        }
        self.times.push_back(took);
        self.sum += took;
    }

    /// Zero without any acknowledgement.
    fn mean(&self) -> Duration {
        let count = u32::try_from(self.times.len()).unwrap_or(u32::MAX);
        self.sum.checked_div(count).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_covers_the_last_thousand_attempts() {
        let mut acks = AckMean::default();
        assert_eq!(acks.mean(), Duration::ZERO);
        for _ in 0..1000 {
            acks.record(Duration::from_secs(5));
        }
        assert_eq!(acks.mean(), Duration::from_secs(5));
        for _ in 0..1000 {
            acks.record(Duration::from_millis(2));
        }
        assert_eq!(acks.mean(), Duration::from_millis(2));
    }
}
