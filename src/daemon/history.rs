//! Tasks that are over, for those who ask what became of them.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::engine::{Moment, Now, TaskView};
use crate::store::Header;
use crate::task::{TaskId, Timestamp};

/// The most that are remembered; about 6 MB.
const MOST: usize = 10_000;

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

/// The last tasks that came to their end.
#[derive(Debug)]
pub(super) struct History {
    keep: Duration,
    tasks: HashMap<TaskId, Past>,
    order: VecDeque<(Moment, TaskId)>,
}

impl History {
    pub(super) fn new(keep: Duration) -> Self {
        Self { keep, tasks: HashMap::new(), order: VecDeque::new() }
    }

    /// Whether anything is remembered at all.
    pub(super) fn is_kept(&self) -> bool {
        !self.keep.is_zero()
    }

    pub(super) fn remember(&mut self, now: Now, view: TaskView, header: Option<Header>) {
        self.order.push_back((now.moment.after(self.keep), view.id));
        self.tasks.insert(view.id, Past { view, header, settled_at: now.wall });
        if self.order.len() > MOST {
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
        if let Some((_, id)) = self.order.pop_front() {
            self.tasks.remove(&id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    }
}
