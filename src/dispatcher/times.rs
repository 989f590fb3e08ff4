//! How long things take: what the histograms are made of.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use crate::dispatcher::messages::Answered;
use crate::engine::{Engine, Moment, Now};
use crate::metrics::{
    ATTEMPT_SECONDS, COMMIT_SECONDS, COMMIT_TASKS, DELIVERY_SECONDS, Histogram,
    REPLICA_ATTEMPT_SECONDS, REPLICA_DELIVERY_SECONDS, ReplicaSnapshot, Snapshot,
};
use crate::task::{Node, TaskId, Verdict};

/// Commits whose moment is remembered. That is some seconds of the heaviest load; of a write that
/// is acknowledged later it does not matter by which millisecond it was durable, and the moment of
/// its acceptance is taken instead.
const COMMITS: usize = 4096;

/// Up to so many replicas nobody looks whether they still have a lane.
const LEAST_REPLICAS: usize = 64;

/// The times since the start.
#[derive(Debug)]
pub(super) struct Times {
    /// What was admitted and is not committed, and when its request came.
    arrived: VecDeque<(TaskId, Moment)>,
    /// The last task of each of the last commits, and its moment.
    commits: VecDeque<(TaskId, Moment)>,
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
            arrived: VecDeque::new(),
            commits: VecDeque::new(),
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
    /// A write was admitted whose request came at `arrived`; ids come in ascending order.
    pub(super) fn admitted(&mut self, id: TaskId, arrived: Moment) {
        self.arrived.push_back((id, arrived));
    }

    /// Everything up to `last` is durable; the last so many tasks by one commit that took so long.
    #[expect(clippy::cast_precision_loss, reason = "a commit is of a thousand tasks at the most")]
    pub(super) fn committed(&mut self, now: Now, last: TaskId, tasks: usize, took: Duration) {
        while let Some(&(id, arrived)) = self.arrived.front()
            && id <= last
        {
            self.arrived.pop_front();
            self.accept.record_time(between(arrived, now.moment));
        }
        self.commit.record_time(took);
        self.commit_tasks.record(tasks as f64);
        if self.commits.len() >= COMMITS {
            self.commits.pop_front();
        }
        self.commits.push_back((last, now.moment));
    }

    /// An attempt has ended. `engine` is asked which replicas have a lane.
    pub(super) fn answered(&mut self, now: Now, answered: &Answered, engine: &Engine) {
        // Nothing was sent.
        let Some(node) = &answered.node else { return };
        let task = answered.delivery.task;
        let delivered = match answered.outcome.verdict {
            Verdict::Delivered => match self.durable_at(task) {
                Some(durable) => Some(between(durable, now.moment)),
                None => engine.age(task, now.moment),
            },
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

    /// When a task became durable, if that is remembered.
    fn durable_at(&self, task: TaskId) -> Option<Moment> {
        let place = self.commits.partition_point(|(last, _)| *last < task);
        // What is older than the first of them was durable at a moment before it.
        let known = place > 0 || self.commits.len() < COMMITS;
        self.commits.get(place).filter(|_| known).map(|(_, moment)| *moment)
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
    pub(super) fn show_replica(&self, node: &Node, snapshot: &mut ReplicaSnapshot) {
        let none = ReplicaTimes::default();
        let of = self.replicas.get(node).unwrap_or(&none);
        snapshot.delivery_seconds = of.delivery.clone();
        snapshot.attempt_seconds = of.attempt.clone();
    }
}

fn between(earlier: Moment, later: Moment) -> Duration {
    later.since_start().saturating_sub(earlier.since_start())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Timestamp;

    fn at(millis: u64) -> Now {
        let time = Duration::from_millis(millis);
        Now { moment: Moment(0).after(time), wall: Timestamp(0).saturating_add(time) }
    }

    #[test]
    fn a_write_is_timed_from_its_arrival_to_the_commit_that_covers_it() {
        let mut times = Times::default();
        times.admitted(TaskId(7), at(100).moment);
        times.admitted(TaskId(8), at(102).moment);
        times.admitted(TaskId(9), at(103).moment);
        times.committed(at(104), TaskId(8), 2, Duration::from_millis(1));
        assert_eq!((times.accept.count(), times.accept.sum()), (2, 0.006));
        assert_eq!((times.commit_tasks.count(), times.commit_tasks.sum()), (1, 2.0));
        assert_eq!(times.durable_at(TaskId(7)), Some(at(104).moment));
        assert_eq!(times.durable_at(TaskId(9)), None, "not committed");
    }

    #[test]
    fn the_moments_of_old_commits_are_forgotten_and_not_mistaken() {
        let mut times = Times::default();
        for id in 0..=COMMITS as u64 {
            times.committed(at(id), TaskId(id), 1, Duration::ZERO);
        }
        assert_eq!(times.commits.len(), COMMITS);
        assert_eq!(times.durable_at(TaskId(0)), None);
        assert_eq!(times.durable_at(TaskId(9)), Some(at(9).moment));
    }
}
