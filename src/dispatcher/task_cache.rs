//! Accepted tasks in memory, so that their deliveries need no read from disk.

use std::collections::HashMap;
use std::sync::Arc;

use crate::task::{Task, TaskId};

/// The cost of a task beyond its weight, measured with two replicas.
const OVERHEAD_BYTES: usize = 400;

/// Tasks up to a budget of bytes. Others are read back when they are sent.
#[derive(Debug)]
pub(crate) struct TaskCache {
    budget: usize,
    used: usize,
    tasks: HashMap<TaskId, Arc<Task>>,
}

impl TaskCache {
    pub(crate) fn new(budget: usize) -> Self {
        Self { budget, used: 0, tasks: HashMap::new() }
    }

    /// Keeps `task` if there is room.
    pub(super) fn offer(&mut self, task: &Arc<Task>) {
        if self.used + cost(task) <= self.budget {
            self.used += cost(task);
            self.tasks.insert(task.id, Arc::clone(task));
        }
    }

    pub(super) fn get(&self, id: TaskId) -> Option<Arc<Task>> {
        self.tasks.get(&id).cloned()
    }

    pub(super) fn remove(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.remove(&id) {
            self.used -= cost(&task);
        }
        if self.tasks.is_empty() && self.tasks.capacity() > 1024 {
            self.tasks.shrink_to_fit();
        }
    }
}

fn cost(task: &Task) -> usize {
    task.weight() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::task::{Consistency, Operation, Timestamp};

    fn task(id: u64, bytes: usize) -> Arc<Task> {
        Arc::new(Task {
            id: TaskId(id),
            key: String::new(),
            operation: Operation::Set,
            value: Bytes::from(vec![0; bytes]),
            accepted_at: Timestamp(0),
            expires_at: None,
            replicas: vec![],
            user_id: None,
            client: None,
            consistency: Consistency::Eventual,
            primary: None,
            trace: None,
        })
    }

    #[test]
    fn a_task_beyond_the_budget_is_not_cached_until_there_is_room() {
        let mut cache = TaskCache::new(1000 + 2 * OVERHEAD_BYTES);
        cache.offer(&task(1, 600));
        cache.offer(&task(2, 600));
        assert!(cache.get(TaskId(1)).is_some());
        assert!(cache.get(TaskId(2)).is_none());
        cache.remove(TaskId(1));
        cache.offer(&task(3, 600));
        assert!(cache.get(TaskId(3)).is_some());
    }
}
