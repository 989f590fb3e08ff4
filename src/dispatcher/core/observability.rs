//! What operators see: metrics, log lines, the event stream, and the history of settled tasks.

use std::collections::HashSet;
use std::sync::Arc;

use super::Core;
use crate::api;
use crate::dispatcher::alarms::Alarms;
use crate::dispatcher::event_bus::{EventBus, EventKind};
use crate::dispatcher::history::TaskHistory;
use crate::dispatcher::latency::Latency;
use crate::dispatcher::log_throttle::LogThrottle;
use crate::dispatcher::messages::Health;
use crate::dispatcher::past_figures::FigureHistory;
use crate::dispatcher::view;
use crate::engine::{LaneView, Moment, Now, TaskView};
use crate::metrics::{Counts, Snapshot};
use crate::notify::{Condition, Notifier};
use crate::store::Header;
use crate::task::{BreakerState, Node, Task, TaskChange, TaskId};

pub(crate) struct Observability {
    /// Shared with the server.
    pub(in crate::dispatcher) counts: Arc<Counts>,
    pub(in crate::dispatcher) bus: EventBus,
    pub(in crate::dispatcher) history: TaskHistory,
    /// Figures that do not change after the start.
    pub(super) constants: Snapshot,
    pub(in crate::dispatcher) latency: Latency,
    pub(super) throttle: LogThrottle,
    /// The task of the attempt that has just ended, so that the history needs no read from disk.
    pub(super) last_sent: Option<Arc<Task>>,
    /// The accepted tasks at the time of the last figures.
    last_figures: (u64, Moment),
    /// The figures of the last hour.
    pub(in crate::dispatcher) past: FigureHistory,
    /// Replicas that had a successful probe and are not healthy yet.
    recovering: HashSet<Node>,
    alarms: Alarms,
}

impl Observability {
    pub(crate) fn new(
        counts: Arc<Counts>,
        bus: EventBus,
        history: TaskHistory,
        constants: Snapshot,
        now: Moment,
        notifier: Notifier,
    ) -> Self {
        Self {
            counts,
            bus,
            history,
            constants,
            latency: Latency::default(),
            throttle: LogThrottle::default(),
            last_sent: None,
            last_figures: (0, now),
            past: FigureHistory::default(),
            recovering: HashSet::new(),
            alarms: Alarms::new(notifier),
        }
    }

    pub(super) fn publish_task(
        &self,
        now: Now,
        id: TaskId,
        node: Option<&Node>,
        change: TaskChange,
        error: Option<&str>,
    ) {
        let event = api::TaskEvent {
            at: view::time(now.wall),
            task_id: id.to_string(),
            replica: node.map(Node::to_string),
            change,
            error: error.map(str::to_owned),
        };
        self.bus.publish(EventKind::Task, &event);
    }

    pub(in crate::dispatcher) fn publish_replica(
        &self,
        now: Now,
        node: &Node,
        change: api::ReplicaChange,
        detail: Option<String>,
    ) {
        let (at, replica) = (view::time(now.wall), node.to_string());
        self.bus.publish(EventKind::Replica, &api::ReplicaEvent { at, replica, change, detail });
    }

    /// Publishes that the breaker of a replica opened, with the error, or that a probe succeeded.
    pub(super) fn breaker_changed(&mut self, now: Now, node: &Node, error: Option<&str>) {
        let change = match error {
            Some(_) => api::ReplicaChange::Failing,
            None => api::ReplicaChange::Recovering,
        };
        self.recovering.remove(node);
        if error.is_none() {
            self.recovering.insert(node.clone());
        }
        self.publish_replica(now, node, change, error.map(str::to_owned));
    }

    /// Publishes which replicas have recovered.
    pub(super) fn publish_recovered(&mut self, now: Now, lanes: &[LaneView]) {
        if self.recovering.is_empty() {
            return;
        }
        for lane in lanes.iter().filter(|lane| lane.breaker == BreakerState::Closed) {
            if self.recovering.remove(&lane.node) {
                self.publish_replica(now, &lane.node, api::ReplicaChange::Healthy, None);
            }
        }
        self.recovering.retain(|node| lanes.iter().any(|lane| lane.node == *node));
    }

    /// Keeps a settled task in the history.
    pub(super) fn remember(&mut self, now: Now, last: TaskView, cached: Option<Arc<Task>>) {
        let sent = self.last_sent.take().filter(|task| task.id == last.id);
        let header = cached.or(sent).map(|task| Header::of(&task));
        self.history.remember(now, last, header);
    }
}

impl Core {
    /// Notifies operators of what has changed. `is_last` at the end of the loop.
    pub(super) fn raise_alarms(&mut self, now: Now, lanes: &[LaneView], is_last: bool) {
        if self.observed.alarms.is_off() {
            return;
        }
        let (stats, cluster) = (self.journal.stats(), self.journal.cluster());
        let queue_is_full = self.engine.is_nearly_full() || (cluster.is_some() && stats.is_full);
        let mut holds = vec![
            (Condition::QueueFull, queue_is_full),
            (Condition::ReplicasFull, self.engine.refuses_replicas(now.moment)),
        ];
        match cluster {
            None => holds.push((Condition::DiskFull, stats.is_full)),
            Some(status) => {
                let is_connected = status.is_connected;
                let unavailable =
                    !status.without_owner().is_empty() || !status.without_leader().is_empty();
                holds.push((Condition::StoreUnreachable, !is_connected));
                // Without a connection this is not known.
                if is_connected {
                    holds.push((Condition::PartitionsUnavailable, unavailable));
                }
            }
        }
        let health = self.health.borrow().clone();
        match health {
            Health::Serving => holds.push((Condition::StoreStalled, false)),
            Health::Stalled { .. } => holds.push((Condition::StoreStalled, true)),
            // A drain hides whether the store answers.
            Health::Draining => {}
            Health::StoreFailed(_) => self.observed.alarms.store_failed(),
        }
        self.observed.alarms.observe_conditions(now.moment, &holds);
        self.observed.alarms.observe(now.moment, lanes, is_last);
    }

    /// Keeps the figures of a second, and publishes them if they are watched.
    pub(super) fn note_figures(&mut self, now: Now, lanes: &[LaneView], watched: bool) {
        let figures = |lane: &LaneView| {
            view::replica_figures(lane, self.observed.latency.rate(&lane.node), now)
        };
        let mut replicas: Vec<_> = lanes.iter().map(figures).collect();
        replicas.sort_by(|a, b| a.replica.cmp(&b.replica));
        let levels = self.engine.levels();
        let sum = |of: fn(&api::ReplicaFigures) -> f64| replicas.iter().map(of).sum();
        let lag = replicas.iter().map(|replica| replica.lag_seconds);
        let accepted = self.intake.accepted;
        let (before, since) =
            std::mem::replace(&mut self.observed.last_figures, (accepted, now.moment));
        let seconds =
            now.moment.since_start().saturating_sub(since.since_start()).as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let accepted = accepted.saturating_sub(before) as f64;
        let figures = api::Figures {
            at: view::time(now.wall),
            accepted_per_second: accepted / seconds,
            delivered_per_second: sum(|replica| replica.delivered_per_second),
            failed_per_second: sum(|replica| replica.failed_per_second),
            queue_tasks: levels.queue as u64,
            retry_tasks: levels.retry as u64,
            dead_letters: levels.dead_letters,
            backlog_tasks: replicas.iter().map(|replica| replica.backlog_tasks).sum(),
            lag_seconds: lag.fold(0.0, f64::max),
            replicas,
        };
        self.observed.past.add(now, &figures, lanes, |lane| view::lag(lane, now));
        if watched {
            self.observed.bus.publish(EventKind::Figures, &figures);
        }
    }
}
