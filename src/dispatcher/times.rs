//! How long things take: what the histograms are made of.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use crate::dispatcher::messages::Answered;
use crate::engine::{Engine, Moment, Now};
use crate::metrics::{
    ATTEMPT_SECONDS, COMMIT_SECONDS, COMMIT_TASKS, DELIVERY_SECONDS, Histogram,
    REPLICA_ATTEMPT_SECONDS, REPLICA_DELIVERY_SECONDS, ReplicaSnapshot, Snapshot,
};
use crate::task::{Node, Verdict};

/// Up to so many replicas nobody looks whether they still have a lane.
const LEAST_REPLICAS: usize = 64;

/// The times since the start.
#[derive(Debug)]
pub(super) struct Times {
    accept: Histogram,
    delivery: Histogram,
    attempt: Histogram,
    commit: Histogram,
    commit_tasks: Histogram,
    /// Of replicas that have a lane, and some that had one.
    replicas: HashMap<Node, ReplicaTimes>,
    /// With so many of them it is looked at who still has one.
    most: usize,
}

#[derive(Debug)]
struct ReplicaTimes {
    delivery: Histogram,
    attempt: Histogram,
}

impl Default for ReplicaTimes {
    fn default() -> Self {
        Self {
            delivery: Histogram::new(REPLICA_DELIVERY_SECONDS),
            attempt: Histogram::new(REPLICA_ATTEMPT_SECONDS),
        }
    }
}

impl Default for Times {
    fn default() -> Self {
        Self {
            accept: Histogram::new(COMMIT_SECONDS),
            delivery: Histogram::new(DELIVERY_SECONDS),
            attempt: Histogram::new(ATTEMPT_SECONDS),
            commit: Histogram::new(COMMIT_SECONDS),
            commit_tasks: Histogram::new(COMMIT_TASKS),
            replicas: HashMap::new(),
            most: LEAST_REPLICAS,
        }
    }
}

impl Times {
    /// A write is durable whose request came at `arrived`.
    pub(super) fn accepted(&mut self, arrived: Moment, now: Moment) {
        self.accept.record_time(between(arrived, now));
    }

    /// So many tasks were made durable by a commit that took so long.
    #[expect(clippy::cast_precision_loss, reason = "a commit is of a thousand tasks at the most")]
    pub(super) fn committed(&mut self, tasks: usize, took: Duration) {
        self.commit.record_time(took);
        self.commit_tasks.record(tasks as f64);
    }

    /// An attempt has ended. `engine` is asked which replicas have a lane.
    pub(super) fn answered(&mut self, now: Now, answered: &Answered, engine: &Engine) {
        // Nothing was sent.
        let Some(node) = &answered.node else { return };
        let task = answered.delivery.task;
        let delivered = match answered.outcome.verdict {
            Verdict::Delivered => engine.age(task, now.moment),
            _ => None,
        };
        self.attempt.record_time(answered.outcome.took);
        let of = self.of(node, engine);
        of.attempt.record_time(answered.outcome.took);
        if let Some(took) = delivered {
            of.delivery.record_time(took);
            self.delivery.record_time(took);
        }
    }

    /// The times of a replica. There are at most twice as many of them as lanes: then those that
    /// have lost their lane go, all at once, for looking at each for every new one would be slow.
    fn of(&mut self, node: &Node, engine: &Engine) -> &mut ReplicaTimes {
        if !self.replicas.contains_key(node) && self.replicas.len() >= self.most {
            let lanes: HashSet<_> = engine.lanes().map(|lane| lane.node).collect();
            self.replicas.retain(|node, _| lanes.contains(node));
            self.most = LEAST_REPLICAS.max(2 * lanes.len());
        }
        self.replicas.entry(node.clone()).or_default()
    }

    /// Puts the times where they are shown.
    pub(super) fn show(&self, snapshot: &mut Snapshot) {
        snapshot.accept_seconds = self.accept.clone();
        snapshot.delivery_seconds = self.delivery.clone();
        snapshot.attempt_seconds = self.attempt.clone();
        snapshot.commit_seconds = self.commit.clone();
        snapshot.commit_tasks = self.commit_tasks.clone();
    }

    /// The same for a replica.
    pub(super) fn show_replica(&self, snapshot: &mut ReplicaSnapshot) {
        let none = ReplicaTimes::default();
        let of = self.replicas.get(&snapshot.lane.node).unwrap_or(&none);
        snapshot.delivery_seconds = of.delivery.clone();
        snapshot.attempt_seconds = of.attempt.clone();
    }
}

fn between(earlier: Moment, later: Moment) -> Duration {
    later.since_start().saturating_sub(earlier.since_start())
}
