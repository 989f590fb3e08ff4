//! The figures of the last hour, so that an operator who opens the page after an outage sees it.
//!
//! A sample is 36 bytes. The daemon has one per second: 130 KB. Each replica has one per ten seconds:
//! 13 KB, so 13 MB with 1024 replicas. They begin with the start of the daemon, and a replica loses
//! its own with its lane.

use std::collections::{HashMap, VecDeque};

use crate::api;
use crate::engine::{LaneView, Now};
use crate::task::{Counters, Node};

const SAMPLES: usize = 3600;
/// Seconds in a sample of a replica.
const REPLICA_STEP: u32 = 10;
const REPLICA_SAMPLES: usize = SAMPLES / REPLICA_STEP as usize;

#[derive(Clone, Copy, Debug, Default)]
struct FigureSample {
    /// Seconds since 1970.
    at: u32,
    accepted: f32,
    delivered: f32,
    failed: f32,
    queue: u32,
    retry: u32,
    dead: u32,
    backlog: u32,
    lag: f32,
}

#[derive(Debug, Default)]
pub(super) struct FigureHistory {
    totals: VecDeque<FigureSample>,
    replicas: HashMap<Node, ReplicaFigureHistory>,
}

#[derive(Debug)]
struct ReplicaFigureHistory {
    samples: VecDeque<FigureSample>,
    /// At the end of the last sample.
    counters: Counters,
    /// Seconds since then, and the largest backlog and lag in them.
    seconds: u32,
    backlog: u32,
    lag: f32,
    is_there: bool,
}

impl FigureHistory {
    /// Once a second, with the figures of the daemon and the lag of each replica.
    pub(super) fn add(
        &mut self,
        now: Now,
        totals: &api::Figures,
        lanes: &[LaneView],
        lag: impl Fn(&LaneView) -> f64,
    ) {
        let at = u32::try_from(now.wall.0 / 1_000_000_000).unwrap_or(u32::MAX);
        push(
            &mut self.totals,
            SAMPLES,
            FigureSample {
                at,
                accepted: short(totals.accepted_per_second),
                delivered: short(totals.delivered_per_second),
                failed: short(totals.failed_per_second),
                queue: count(totals.queue_tasks),
                retry: count(totals.retry_tasks),
                dead: count(totals.dead_letters),
                backlog: count(totals.backlog_tasks),
                lag: short(totals.lag_seconds),
            },
        );
        for lane in lanes {
            let replica = self.replicas.entry(lane.node.clone()).or_insert_with(|| {
                let counters = lane.counters;
                ReplicaFigureHistory {
                    samples: VecDeque::new(),
                    counters,
                    seconds: 0,
                    backlog: 0,
                    lag: 0.0,
                    is_there: true,
                }
            });
            replica.add(at, lane, short(lag(lane)));
        }
        self.replicas.retain(|_, replica| std::mem::take(&mut replica.is_there));
    }

    pub(super) fn rename(&mut self, from: &Node, to: &Node) {
        if let Some(replica) = self.replicas.remove(from) {
            self.replicas.insert(to.clone(), replica);
        }
    }

    /// The past of the daemon, or of one replica; `None` if it is unknown.
    pub(super) fn shown(&self, node: Option<&Node>) -> Option<api::PastFigures> {
        let (samples, step_seconds) = match node {
            None => (&self.totals, 1),
            Some(node) => (&self.replicas.get(node)?.samples, REPLICA_STEP),
        };
        fn all<T>(samples: &VecDeque<FigureSample>, of: impl Fn(&FigureSample) -> T) -> Vec<T> {
            samples.iter().map(of).collect()
        }
        Some(api::PastFigures {
            replica: node.map(Node::to_string),
            step_seconds,
            at: all(samples, |sample| sample.at.into()),
            accepted_per_second: all(samples, |sample| sample.accepted),
            delivered_per_second: all(samples, |sample| sample.delivered),
            failed_per_second: all(samples, |sample| sample.failed),
            queue_tasks: all(samples, |sample| sample.queue),
            retry_tasks: all(samples, |sample| sample.retry),
            dead_letters: all(samples, |sample| sample.dead),
            backlog_tasks: all(samples, |sample| sample.backlog),
            lag_seconds: all(samples, |sample| sample.lag),
            incomplete: Vec::new(),
        })
    }
}

impl ReplicaFigureHistory {
    fn add(&mut self, at: u32, lane: &LaneView, lag: f32) {
        self.is_there = true;
        self.seconds += 1;
        self.backlog = self.backlog.max(count(lane.counters.pending));
        self.lag = self.lag.max(lag);
        if self.seconds < REPLICA_STEP {
            return;
        }
        let before = std::mem::replace(&mut self.counters, lane.counters);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = |now: u64, before: u64| {
            short(now.saturating_sub(before) as f64 / f64::from(REPLICA_STEP))
        };
        let sample = FigureSample {
            at,
            accepted: rate(lane.counters.accepted, before.accepted),
            delivered: rate(lane.counters.delivered, before.delivered),
            failed: rate(lane.counters.failed_attempts, before.failed_attempts),
            queue: count(lane.in_flight),
            retry: count(lane.waiting + lane.parked),
            dead: count(lane.counters.dead),
            backlog: self.backlog,
            lag: self.lag,
        };
        push(&mut self.samples, REPLICA_SAMPLES, sample);
        (self.seconds, self.backlog, self.lag) = (0, 0, 0.0);
    }
}

fn push(samples: &mut VecDeque<FigureSample>, most: usize, sample: FigureSample) {
    if samples.len() == most {
        samples.pop_front();
    } else if samples.len() == samples.capacity() {
        // No more than `most` in the end.
        samples.reserve_exact((samples.len().max(32)).min(most - samples.len()));
    }
    samples.push_back(sample);
}

fn count(figure: u64) -> u32 {
    u32::try_from(figure).unwrap_or(u32::MAX)
}

/// Three decimals, which is enough for a plot.
#[expect(clippy::cast_possible_truncation, reason = "a figure for people")]
fn short(figure: f64) -> f32 {
    ((figure * 1e3).round() / 1e3) as f32
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::engine::Moment;
    use crate::task::Timestamp;

    fn second(n: u64) -> Now {
        let moment = Moment(0).after(Duration::from_secs(n));
        Now { moment, wall: Timestamp(n * 1_000_000_000) }
    }

    fn totals(backlog_tasks: u64) -> api::Figures {
        api::Figures {
            at: String::new(),
            accepted_per_second: 1.0,
            delivered_per_second: 0.0,
            failed_per_second: 0.0,
            queue_tasks: 0,
            retry_tasks: 0,
            dead_letters: 0,
            backlog_tasks,
            lag_seconds: 0.0,
            replicas: vec![],
        }
    }

    #[test]
    fn an_hour_is_kept_within_the_stated_memory() {
        let node = Node::parse("http://a").unwrap();
        let mut history = FigureHistory::default();
        for n in 0..4_000 {
            // The first second of each step has the largest backlog.
            let pending = if n % 10 == 0 { 7 } else { 1 };
            let counters = Counters { pending, delivered: 20 * n, ..Counters::default() };
            history.add(second(n), &totals(n), &[LaneView::idle("http://a", counters)], |_| 2.0);
        }
        let shown = history.shown(None).unwrap();
        assert_eq!((shown.at.len(), shown.at[0], shown.step_seconds), (3600, 400, 1));
        assert_eq!(shown.backlog_tasks.last(), Some(&3_999));
        let shown = history.shown(Some(&node)).unwrap();
        assert_eq!((shown.at.len(), shown.step_seconds), (360, 10));
        assert_eq!(shown.delivered_per_second.last(), Some(&20.0));
        assert!(shown.backlog_tasks.iter().all(|&backlog| backlog == 7));
        assert!(history.totals.capacity() * size_of::<FigureSample>() <= 130_000);
        let replica = &history.replicas[&node];
        assert!(replica.samples.capacity() * size_of::<FigureSample>() <= 13_000);
    }

    #[test]
    fn a_replica_keeps_its_past_under_a_new_name_and_loses_it_with_its_lane() {
        let [a, b] = ["http://a", "http://b"].map(|name| Node::parse(name).unwrap());
        let mut history = FigureHistory::default();
        for n in 0..10 {
            let lanes = [LaneView::idle("http://a", Counters::default())];
            history.add(second(n), &totals(0), &lanes, |_| 0.0);
        }
        history.rename(&a, &b);
        assert_eq!(history.shown(Some(&a)), None);
        assert_eq!(history.shown(Some(&b)).unwrap().at.len(), 1);
        history.add(second(10), &totals(0), &[], |_| 0.0);
        assert_eq!(history.shown(Some(&b)), None);
    }
}
