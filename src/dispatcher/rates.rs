//! How fast each replica goes: what came and went in the last minute, and how long attempts took.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::engine::{LaneView, Moment};
use crate::task::Node;

/// The seconds that a rate is over.
const SAMPLES: usize = 60;
/// Latencies are over the last one to two of these.
const WINDOW: Duration = Duration::from_secs(60);
/// Latencies are told to about so many digits, in microseconds.
const DIGITS: u8 = 2;

/// The rates of all replicas.
#[derive(Debug, Default)]
pub(super) struct Rates {
    replicas: HashMap<Node, ReplicaRates>,
}

#[derive(Debug, Default)]
struct ReplicaRates {
    /// One a second, the newest last.
    samples: VecDeque<Sample>,
    latency: Option<Latency>,
}

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Moment,
    accepted: u64,
    left: u64,
    delivered: u64,
    failed: u64,
}

#[derive(Debug)]
struct Latency {
    until: Moment,
    current: Histogram<u32>,
    before: Histogram<u32>,
}

/// What has come and gone.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rate {
    /// Deliveries accepted in a second, over the last minute.
    pub(super) accepted: f64,
    /// Deliveries that left the backlog in a second, over the last minute.
    pub(super) left: f64,
    /// Acknowledged in the last second.
    pub(super) delivered_now: f64,
    /// Attempts that failed in the last second.
    pub(super) failed_now: f64,
}

impl Rates {
    /// Once a second: how things stand now. Forgets replicas that are gone.
    pub(super) fn sample(&mut self, now: Moment, lanes: &[LaneView]) {
        for lane in lanes {
            let counters = &lane.counters;
            let sample = Sample {
                at: now,
                accepted: counters.accepted,
                left: counters.accepted.saturating_sub(counters.pending),
                delivered: counters.delivered,
                failed: counters.failed_attempts,
            };
            let samples = &mut self.replica(&lane.node).samples;
            samples.push_back(sample);
            if samples.len() > SAMPLES + 1 {
                samples.pop_front();
            }
        }
        self.replicas.retain(|_, replica| {
            if let Some(latency) = &mut replica.latency {
                latency.turn(now);
            }
            replica.samples.back().is_some_and(|sample| sample.at == now)
        });
    }

    /// An attempt has been acknowledged after so long.
    pub(super) fn took(&mut self, now: Moment, node: &Node, took: Duration) {
        let replica = self.replica(node);
        if replica.latency.is_none() {
            replica.latency = Latency::new(now);
        }
        if let Some(latency) = &mut replica.latency {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            // It makes itself larger as far as there is memory.
            let _ = latency.current.record(micros.max(1));
        }
    }

    /// A replica goes by another name.
    pub(super) fn rename(&mut self, from: &Node, to: &Node) {
        if let Some(replica) = self.replicas.remove(from) {
            self.replicas.insert(to.clone(), replica);
        }
    }

    pub(super) fn of(&self, node: &Node) -> Rate {
        let Some(replica) = self.replicas.get(node) else { return Rate::default() };
        let samples = &replica.samples;
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

    /// Half of the attempts took no longer than the first, 99 of 100 no longer than the second.
    pub(super) fn latency(&self, node: &Node) -> Option<(Duration, Duration)> {
        let latency = self.replicas.get(node)?.latency.as_ref()?;
        let mut both = latency.before.clone();
        both.add(&latency.current).ok()?;
        let at = |quantile| Duration::from_micros(both.value_at_quantile(quantile));
        (!both.is_empty()).then(|| (at(0.5), at(0.99)))
    }

    fn replica(&mut self, node: &Node) -> &mut ReplicaRates {
        self.replicas.entry(node.clone()).or_default()
    }
}

impl Latency {
    fn new(now: Moment) -> Option<Self> {
        let current = Histogram::new(DIGITS).ok()?;
        let before = Histogram::new(DIGITS).ok()?;
        Some(Self { until: now.after(WINDOW), current, before })
    }

    fn turn(&mut self, now: Moment) {
        if self.until <= now {
            self.until = now.after(WINDOW);
            std::mem::swap(&mut self.current, &mut self.before);
            self.current.reset();
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "a rate for people")]
fn per_second(first: &Sample, last: &Sample, count: impl Fn(&Sample) -> u64) -> f64 {
    let seconds = last.at.since_start().saturating_sub(first.at.since_start()).as_secs_f64();
    let counted = count(last).saturating_sub(count(first)) as f64;
    if seconds > 0.0 { counted / seconds } else { 0.0 }
}
