//! Settled tasks, which operators can look up for `--task-history`.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::engine::{DeliveryView, EndedSend, Moment, Now, TaskView};
use crate::store::Header;
use crate::task::{Node, TaskId, Timestamp};

/// About 6 MB of tasks with two replicas and short keys.
const MAX_TASKS: usize = 10_000;

/// A task may have a key of kilobytes and a thousand replicas.
const MAX_BYTES: usize = 16 << 20;

#[derive(Clone, Debug)]
pub(super) struct SettledTask {
    pub(super) view: TaskView,
    /// `None` if the task was not in memory when it was settled.
    pub(super) header: Option<Header>,
    pub(super) settled_at: Timestamp,
}

impl SettledTask {
    /// Approximate memory.
    fn bytes(&self) -> usize {
        let error =
            |delivery: &DeliveryView| delivery.error.as_ref().map_or(0, |(error, _)| error.len());
        let errors: usize = self.view.deliveries.iter().map(error).sum();
        let attempts = self.view.deliveries.iter().flat_map(|delivery| &delivery.attempts);
        let attempt = |attempt: &EndedSend| {
            size_of::<EndedSend>() + attempt.error.as_ref().map_or(0, |error| error.len())
        };
        let attempts: usize = attempts.map(attempt).sum();
        let deliveries = self.view.deliveries.len() * size_of::<DeliveryView>();
        let header = self.header.as_ref().map_or(0, |header| {
            let names = header.replicas.iter().map(|node| size_of::<Node>() + node.as_str().len());
            let user = header.user_id.as_ref().map_or(0, String::len);
            header.key.len() + user + names.sum::<usize>()
        });
        size_of::<Self>() + deliveries + errors + attempts + header
    }
}

/// The last settled tasks.
#[derive(Debug)]
pub(crate) struct TaskHistory {
    keep: Duration,
    tasks: HashMap<TaskId, SettledTask>,
    bytes: usize,
    order: VecDeque<(Moment, TaskId)>,
}

impl TaskHistory {
    pub(crate) fn new(keep: Duration) -> Self {
        Self { keep, tasks: HashMap::new(), bytes: 0, order: VecDeque::new() }
    }

    pub(super) fn is_enabled(&self) -> bool {
        !self.keep.is_zero()
    }

    pub(super) fn remember(&mut self, now: Now, view: TaskView, header: Option<Header>) {
        self.order.push_back((now.moment.after(self.keep), view.id));
        let past = SettledTask { view, header, settled_at: now.wall };
        self.bytes += past.bytes();
        self.tasks.insert(past.view.id, past);
        while self.order.len() > MAX_TASKS || self.bytes > MAX_BYTES && !self.order.is_empty() {
            self.drop_oldest();
        }
    }

    pub(super) fn get(&self, id: TaskId) -> Option<&SettledTask> {
        self.tasks.get(&id)
    }

    pub(super) fn of_key(&self, key: &str) -> Vec<&SettledTask> {
        let is_of_key = |past: &&SettledTask| past.header.as_ref().is_some_and(|of| of.key == key);
        self.tasks.values().filter(is_of_key).collect()
    }

    /// Drops tasks at the end of their time.
    pub(super) fn tick(&mut self, now: Moment) {
        while self.order.front().is_some_and(|&(until, _)| until <= now) {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        if let Some((_, id)) = self.order.pop_front()
            && let Some(past) = self.tasks.remove(&id)
        {
            self.bytes -= past.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::DeliveryState;

    #[test]
    fn the_oldest_tasks_are_dropped_at_the_limit_and_all_after_their_time() {
        let mut history = TaskHistory::new(Duration::from_secs(10));
        let now = |second| {
            let moment = Moment(0).after(Duration::from_secs(second));
            Now { moment, wall: Timestamp(0) }
        };
        let view = |id| TaskView { id: TaskId(id), deliveries: vec![] };
        (1..=MAX_TASKS as u64 + 1).for_each(|id| history.remember(now(1), view(id), None));
        assert!(history.get(TaskId(1)).is_none());
        assert!(history.get(TaskId(2)).is_some());
        history.tick(now(10).moment);
        assert!(history.get(TaskId(2)).is_some());
        history.tick(now(11).moment);
        assert!(history.get(TaskId(2)).is_none());
        assert!(history.order.is_empty() && history.tasks.is_empty());
        assert_eq!(history.bytes, 0);
    }

    #[test]
    fn fewer_large_tasks_are_remembered() {
        let mut history = TaskHistory::new(Duration::from_secs(10));
        let now = Now { moment: Moment(0), wall: Timestamp(0) };
        let delivery = DeliveryView {
            node: Node::parse("http://a").unwrap(),
            state: DeliveryState::Delivered,
            cause: None,
            failures: 1,
            error: Some(("x".repeat(1 << 10).into(), Timestamp(0))),
            due: None,
            attempts: vec![],
        };
        for id in 0..1_000 {
            let deliveries = vec![delivery.clone(); 64];
            history.remember(now, TaskView { id: TaskId(id), deliveries }, None);
        }
        assert!(history.bytes <= MAX_BYTES);
        assert!((100..250).contains(&history.tasks.len()), "{}", history.tasks.len());
        assert!(history.get(TaskId(999)).is_some());
    }
}
