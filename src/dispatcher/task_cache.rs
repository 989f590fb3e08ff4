//! Accepted tasks in memory, so that their deliveries need no read from disk.

use std::collections::HashMap;
use std::sync::Arc;

use crate::task::{KeptTasks, Task, TaskId, cost};

/// Tasks up to a budget of bytes. Others are read back when they are sent.
///
/// Most of the budget is for tasks that stay until they are settled, so that a backlog is sent from
/// memory as far as it fits. When that is full, a quarter always has the newest tasks: those that wait
/// for a paused replica must not make the others read their tasks back.
#[derive(Debug)]
pub(crate) struct TaskCache {
    budget: usize,
    used: usize,
    tasks: HashMap<TaskId, Arc<Task>>,
    newest: KeptTasks,
}

impl TaskCache {
    pub(crate) fn new(budget: usize) -> Self {
        let newest = KeptTasks::new(budget / 4);
        Self { budget: budget - budget / 4, used: 0, tasks: HashMap::new(), newest }
    }

    pub(super) fn offer(&mut self, task: &Arc<Task>) {
        if self.used + cost(task) <= self.budget {
            self.used += cost(task);
            self.tasks.insert(task.id, Arc::clone(task));
        } else {
            self.newest.add(Arc::clone(task));
        }
    }

    pub(super) fn get(&self, id: TaskId) -> Option<Arc<Task>> {
        self.tasks.get(&id).cloned().or_else(|| self.newest.get(id))
    }

    pub(super) fn remove(&mut self, id: TaskId) {
        match self.tasks.remove(&id) {
            Some(task) => self.used -= cost(&task),
            None => self.newest.remove(id),
        }
        if self.tasks.is_empty() && self.tasks.capacity() > 1024 {
            self.tasks.shrink_to_fit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::sized_task as task;

    fn cached(cache: &TaskCache, ids: std::ops::Range<u64>) -> Vec<u64> {
        ids.filter(|id| cache.get(TaskId(*id)).is_some()).collect()
    }

    #[test]
    fn the_oldest_tasks_stay_and_the_newest_are_there_in_turn() {
        // Three of a task, and one of the newest.
        let mut cache = TaskCache::new(4 * cost(&task(0, 600)));
        for id in 1..=6 {
            cache.offer(&task(id, 600));
            assert!(cache.get(TaskId(id)).is_some(), "the newest one is always there");
        }
        assert_eq!(cached(&cache, 1..7), [1, 2, 3, 6]);
        cache.remove(TaskId(6));
        cache.remove(TaskId(2));
        cache.offer(&task(7, 600));
        cache.offer(&task(8, 600));
        assert_eq!(cached(&cache, 1..9), [1, 3, 7, 8]);
        (1..9).for_each(|id| cache.remove(TaskId(id)));
        assert_eq!((cache.used, cache.tasks.len()), (0, 0));
    }

    #[test]
    fn a_task_beyond_the_budget_is_not_cached() {
        let mut cache = TaskCache::new(4 * cost(&task(0, 0)));
        cache.offer(&task(1, 2 * cost(&task(0, 0)) + 1));
        assert!(cached(&cache, 1..2).is_empty());
        assert_eq!((cache.used, cache.tasks.len()), (0, 0));
        TaskCache::new(0).offer(&task(1, 0));
    }
}
