//! Tasks that are over, for those who ask what became of them.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::engine::{DeliveryView, Moment, Now, TaskView};
use crate::store::Header;
use crate::task::{Node, TaskId, Timestamp};

/// The most that are remembered; about 6 MB, of tasks with two replicas and short keys.
const MOST: usize = 10_000;

/// The most bytes of them, about. A task may have a key of kilobytes and a thousand replicas.
const MOST_BYTES: usize = 16 << 20;

/// A task that is over.
#[derive(Clone, Debug)]
pub(super) struct Past {
    /// How each of its deliveries ended.
    pub(super) view: TaskView,
    /// What it was, if that was still in memory.
    pub(super) header: Option<Header>,
    /// When it was over.
    pub(super) settled_at: Timestamp,
}

impl Past {
    /// What it takes in memory, about.
    fn bytes(&self) -> usize {
        let error =
            |delivery: &DeliveryView| delivery.error.as_ref().map_or(0, |(error, _)| error.len());
        let errors: usize = self.view.deliveries.iter().map(error).sum();
        let deliveries = self.view.deliveries.len() * size_of::<DeliveryView>();
        let header = self.header.as_ref().map_or(0, |header| {
            let names = header.replicas.iter().map(|node| size_of::<Node>() + node.as_str().len());
            let user = header.user_id.as_ref().map_or(0, String::len);
            header.key.len() + user + names.sum::<usize>()
        });
        size_of::<Self>() + deliveries + errors + header
    }
}

/// The last tasks that came to their end.
#[derive(Debug)]
pub(crate) struct History {
    keep: Duration,
    tasks: HashMap<TaskId, Past>,
    bytes: usize,
    order: VecDeque<(Moment, TaskId)>,
}

impl History {
    pub(crate) fn new(keep: Duration) -> Self {
        Self { keep, tasks: HashMap::new(), bytes: 0, order: VecDeque::new() }
    }

    /// Whether anything is remembered at all.
    pub(super) fn is_kept(&self) -> bool {
        !self.keep.is_zero()
    }

    pub(super) fn remember(&mut self, now: Now, view: TaskView, header: Option<Header>) {
        self.order.push_back((now.moment.after(self.keep), view.id));
        let past = Past { view, header, settled_at: now.wall };
        self.bytes += past.bytes();
        self.tasks.insert(past.view.id, past);
        while self.order.len() > MOST || self.bytes > MOST_BYTES && !self.order.is_empty() {
            self.forget_first();
        }
    }

    pub(super) fn get(&self, id: TaskId) -> Option<&Past> {
        self.tasks.get(&id)
    }

    /// Lets go of those whose time is over.
    pub(super) fn tick(&mut self, now: Moment) {
        while self.order.front().is_some_and(|&(until, _)| until <= now) {
            self.forget_first();
        }
    }

    fn forget_first(&mut self) {
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
    fn a_task_is_remembered_for_a_while_and_the_oldest_make_way() {
        let mut history = History::new(Duration::from_secs(10));
        let now = |second| {
            let moment = Moment(0).after(Duration::from_secs(second));
            Now { moment, wall: Timestamp(0) }
        };
        let view = |id| TaskView { id: TaskId(id), deliveries: vec![] };
        (1..=MOST as u64 + 1).for_each(|id| history.remember(now(1), view(id), None));
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
    fn of_large_tasks_fewer_are_remembered() {
        let mut history = History::new(Duration::from_secs(10));
        let now = Now { moment: Moment(0), wall: Timestamp(0) };
        let delivery = DeliveryView {
            node: Node::parse("http://a").unwrap(),
            state: DeliveryState::Delivered,
            cause: None,
            failures: 1,
            error: Some(("x".repeat(1 << 10).into(), Timestamp(0))),
            due: None,
        };
        for id in 0..1_000 {
            let deliveries = vec![delivery.clone(); 64];
            history.remember(now, TaskView { id: TaskId(id), deliveries }, None);
        }
        assert!(history.bytes <= MOST_BYTES);
        assert!((100..250).contains(&history.tasks.len()), "{}", history.tasks.len());
        assert!(history.get(TaskId(999)).is_some());
    }
}
