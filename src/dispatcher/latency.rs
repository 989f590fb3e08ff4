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
/// A backlog that falls for a shorter time may be one second's jitter.
const FALLING_FOR: Duration = Duration::from_secs(5);
/// Growth is judged by means of this many samples.
const NEAR: usize = 10;
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
    last_sample: Option<Moment>,
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
            last_sample: None,
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

#[derive(Clone, Copy, Debug, Default)]
struct CounterSample {
    at: Moment,
    accepted: u64,
    accepted_bytes: u64,
    pending: u64,
    delivered: u64,
    failed: u64,
}

/// The rates of one replica, per second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    /// Deliveries accepted, over the last minute.
    pub(super) accepted: f64,
    /// Bytes charged for the tasks of these.
    pub(super) accepted_bytes: f64,
    /// Deliveries acknowledged, over the last minute.
    pub(super) delivered: f64,
    pub(super) trend: Trend,
    /// Deliveries acknowledged in the last second.
    pub(super) delivered_now: f64,
    /// Attempts that failed in the last second.
    pub(super) failed_now: f64,
}

/// How the backlog of a replica changed over the last minute, beyond the chance of arrivals.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) enum Trend {
    /// It neither falls nor grows, or nothing is known yet.
    #[default]
    Steady,
    /// It has grown over the whole minute.
    Grows,
    /// It falls, by this number of acknowledged deliveries per second.
    Falls(f64),
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
                accepted_bytes: lane.accepted_bytes,
                pending: counters.pending,
                delivered: counters.delivered,
                failed: counters.failed_attempts,
            };
            let samples = &mut self.replicas.entry(lane.node.clone()).or_default().samples;
            // A new replica has counted from zero. At the first sample, its deliveries may be
            // recovered ones, which did not arrive now.
            if samples.is_empty()
                && let Some(before) = self.last_sample
            {
                samples.push_back(CounterSample { at: before, ..CounterSample::default() });
            }
            samples.push_back(sample);
            if samples.len() > RATE_SECONDS + 1 {
                samples.pop_front();
            }
        }
        self.last_sample = Some(now);
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

impl CounterSample {
    fn time_since(&self, earlier: &Self) -> Duration {
        self.at.since_start().saturating_sub(earlier.at.since_start())
    }

    /// A change of the backlog that can be chance: twice the standard deviation of arrivals.
    fn noise_since(&self, earlier: &Self) -> u64 {
        2 * self.accepted.saturating_sub(earlier.accepted).isqrt()
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
            accepted_bytes: per_second(first, last, |sample| sample.accepted_bytes),
            delivered: per_second(first, last, |sample| sample.delivered),
            trend: trend(samples),
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
    let seconds = last.time_since(first).as_secs_f64();
    let counted = count(last).saturating_sub(count(first)) as f64;
    if seconds > 0.0 { counted / seconds } else { 0.0 }
}

fn trend(samples: &VecDeque<CounterSample>) -> Trend {
    let (Some(first), Some(last)) = (samples.front(), samples.back()) else {
        return Trend::Steady;
    };
    // From its last peak on. Before it, the replica may have been paused or failing.
    let peak = samples.iter().max_by_key(|sample| sample.pending).unwrap_or(last);
    let fallen = peak.pending.saturating_sub(last.pending);
    if last.time_since(peak) >= FALLING_FOR && fallen > last.noise_since(peak) {
        let delivered = per_second(peak, last, |sample| sample.delivered);
        // Deliveries that are given up or superseded also leave the backlog.
        let falls = per_second(peak, last, |sample| peak.pending - sample.pending).min(delivered);
        return if falls > 0.0 { Trend::Falls(falls) } else { Trend::Steady };
    }
    if samples.len() <= RATE_SECONDS {
        return Trend::Steady;
    }
    // In both halves: a burst of writes is not growth over a minute.
    let [before, halfway, now] = [0, (RATE_SECONDS - NEAR) / 2, RATE_SECONDS - NEAR].map(|at| {
        let near = samples.iter().skip(at).take(NEAR);
        near.map(|sample| sample.pending).sum::<u64>() / NEAR as u64
    });
    let grows = before < halfway && halfway < now && now - before > last.noise_since(first);
    if grows { Trend::Grows } else { Trend::Steady }
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

    /// The rate after seconds with these backlogs and the same number of arrivals in each.
    fn rate_of(arrivals: u64, backlogs: impl IntoIterator<Item = u64>) -> Rate {
        let mut replica = ReplicaLatency::default();
        for (second, pending) in (0..).zip(backlogs) {
            let at = Moment(0).after(Duration::from_secs(second));
            let accepted = 100_000 + arrivals * second;
            let delivered = accepted.saturating_sub(pending);
            replica.samples.push_back(CounterSample {
                at,
                accepted,
                pending,
                delivered,
                failed: 0,
                ..CounterSample::default()
            });
            if replica.samples.len() > RATE_SECONDS + 1 {
                replica.samples.pop_front();
            }
        }
        replica.rate()
    }

    #[test]
    fn a_backlog_that_wavers_is_steady() {
        let waver = |second: u64| 40 + second * 7919 % 11;
        for seconds in 0..200 {
            let rate = rate_of(20, (0..seconds).map(waver));
            assert_eq!(rate.trend, Trend::Steady, "{seconds}");
        }
        assert_eq!(rate_of(0, [5; 100]).trend, Trend::Steady);
    }

    #[test]
    fn a_backlog_grows_only_if_it_does_so_for_a_minute() {
        for seconds in [1, 10, 60] {
            assert_eq!(rate_of(20, (0..seconds).map(|s| s * 15)).trend, Trend::Steady);
        }
        let rate = rate_of(20, (0..61).map(|second| second * 15));
        assert_eq!(rate.trend, Trend::Grows);
        assert!((rate.delivered - 5.0).abs() < 1e-9, "{rate:?}");
        let burst = (0..100).map(|second| if second < 97 { 3 } else { 1_000 });
        assert_eq!(rate_of(20, burst).trend, Trend::Steady);
    }

    #[test]
    fn a_backlog_falls_from_its_peak_at_the_rate_of_acknowledgements() {
        let resumed =
            |second: u64| if second < 90 { second * 20 } else { 1_800 - (second - 89) * 80 };
        assert_eq!(rate_of(20, (0..93).map(resumed)).trend, Trend::Grows, "it may be one second's");
        let Trend::Falls(falls) = rate_of(20, (0..100).map(resumed)).trend else { panic!() };
        assert!((75.0..85.0).contains(&falls), "{falls}");
    }

    #[test]
    fn deliveries_that_were_given_up_are_not_in_the_rate() {
        let mut replica = ReplicaLatency::default();
        for second in 0..60 {
            let at = Moment(0).after(Duration::from_secs(second));
            let pending = 600 - second * 10;
            let failed = second;
            let base = CounterSample::default();
            let sample = CounterSample { at, accepted: 600, pending, failed, ..base };
            replica.samples.push_back(sample);
        }
        let Rate { delivered, trend, .. } = replica.rate();
        assert_eq!((delivered, trend), (0.0, Trend::Steady));
    }

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
