//! What is told of what happens: the events, and the history of what is over.

use super::Core;
use crate::api;
use crate::dispatcher::event_bus::EventKind;
use crate::dispatcher::view;
use crate::engine::{LaneView, Now, TaskView};
use crate::store::Header;
use crate::task::{Node, TaskChange, TaskId};

impl Core {
    pub(super) fn tell_accepted(&self, now: Now, id: TaskId) {
        if self.parts.engine.is_watched() {
            self.tell_task(now, id, None, TaskChange::Accepted, None);
        }
    }

    pub(super) fn tell_change(
        &self,
        now: Now,
        id: TaskId,
        node: &Node,
        change: TaskChange,
        error: Option<&str>,
    ) {
        self.tell_task(now, id, Some(node), change, error);
    }

    fn tell_task(
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
        self.parts.bus.say(EventKind::Task, &event);
    }

    /// How everything stands, once a second.
    pub(super) fn tell_figures(&mut self, now: Now, lanes: &[LaneView]) {
        let figures = |lane| {
            let lane: &LaneView = lane;
            view::replica_figures(lane, self.rates.of(&lane.node), now)
        };
        let mut replicas: Vec<_> = lanes.iter().map(figures).collect();
        replicas.sort_by(|a, b| a.replica.cmp(&b.replica));
        let levels = self.parts.engine.levels();
        let sum = |of: fn(&api::ReplicaFigures) -> f64| replicas.iter().map(of).sum();
        let lag = replicas.iter().map(|replica| replica.lag_seconds);
        let accepted = self.parts.newest.0.saturating_sub(self.accepted_before.0.0);
        let since = self.accepted_before.1.since_start();
        let seconds = now.moment.since_start().saturating_sub(since).as_secs_f64();
        self.accepted_before = (self.parts.newest, now.moment);
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let accepted_per_second = accepted as f64 / seconds.max(0.001);
        let figures = api::Figures {
            at: view::time(now.wall),
            accepted_per_second,
            delivered_per_second: sum(|replica| replica.delivered_per_second),
            failed_per_second: sum(|replica| replica.failed_per_second),
            queue_tasks: levels.queue as u64,
            retry_tasks: levels.retry as u64,
            dead_letters: levels.dead_letters,
            backlog_tasks: replicas.iter().map(|replica| replica.backlog_tasks).sum(),
            lag_seconds: lag.fold(0.0, f64::max),
            replicas,
        };
        self.parts.bus.say(EventKind::Figures, &figures);
    }

    /// A task is over: what became of it is remembered for a while.
    pub(super) fn remember(&mut self, now: Now, last: TaskView) {
        let sent = self.last_sent.take().filter(|task| task.id == last.id);
        let task = self.task_cache.get(last.id).or(sent);
        let header = task.map(|task| Header::of(&task));
        self.parts.history.remember(now, last, header);
    }
}
