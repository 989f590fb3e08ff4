//! Tasks that are kept in memory up to a number of bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Task, TaskId};

/// The cost of a task beyond its weight, measured with two replicas.
const OVERHEAD_BYTES: usize = 400;

/// Those that were added last. The ones before go when there is too much.
#[derive(Debug)]
pub(crate) struct KeptTasks {
    most_bytes: usize,
    bytes: usize,
    /// With their place in `order`.
    tasks: BTreeMap<TaskId, (u64, Arc<Task>)>,
    order: BTreeMap<u64, TaskId>,
    added: u64,
}

impl KeptTasks {
    pub(crate) fn new(most_bytes: usize) -> Self {
        let (tasks, order) = Default::default();
        Self { most_bytes, bytes: 0, tasks, order, added: 0 }
    }

    /// Unless it is larger than all of the room.
    pub(crate) fn add(&mut self, task: Arc<Task>) {
        self.remove(task.id);
        if cost(&task) > self.most_bytes {
            return;
        }
        self.bytes += cost(&task);
        self.added += 1;
        self.order.insert(self.added, task.id);
        self.tasks.insert(task.id, (self.added, task));
        while self.bytes > self.most_bytes
            && let Some((_, first)) = self.order.pop_first()
        {
            self.remove(first);
        }
    }

    pub(crate) fn get(&self, id: TaskId) -> Option<Arc<Task>> {
        self.tasks.get(&id).map(|(_, task)| Arc::clone(task))
    }

    /// Whether a task is there whose id is at most `near` below this one.
    pub(crate) fn has_before(&self, id: TaskId, near: u64) -> bool {
        self.tasks.range(TaskId(id.0.saturating_sub(near))..id).next().is_some()
    }

    pub(crate) fn remove(&mut self, id: TaskId) {
        if let Some((place, task)) = self.tasks.remove(&id) {
            self.order.remove(&place);
            self.bytes -= cost(&task);
        }
    }
}

/// The bytes of a task in memory.
pub(crate) fn cost(task: &Task) -> usize {
    task.weight() + OVERHEAD_BYTES
}

/// A task with a value of this size, and otherwise empty.
#[cfg(test)]
pub(crate) fn sized_task(id: u64, bytes: usize) -> Arc<Task> {
    use super::{Consistency, Operation, Timestamp};
    Arc::new(Task {
        id: TaskId(id),
        key: String::new(),
        operation: Operation::Set,
        value: vec![0; bytes].into(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_first_goes_when_there_is_too_much() {
        let mut kept = KeptTasks::new(10 * (600 + OVERHEAD_BYTES));
        for id in (1..200).chain(1..100) {
            kept.add(sized_task(id, 600));
            assert!(kept.bytes <= kept.most_bytes);
            assert_eq!(kept.tasks.len(), kept.order.len());
            assert!(kept.get(TaskId(id)).is_some(), "also one with a low id");
        }
        assert!(kept.get(TaskId(50)).is_none() && kept.get(TaskId(199)).is_none());
        assert!(kept.has_before(TaskId(100), 1) && !kept.has_before(TaskId(101), 1));
        (1..200).for_each(|id| kept.remove(TaskId(id)));
        assert_eq!((kept.bytes, kept.order.len()), (0, 0));
        kept.add(sized_task(1, 600));
        kept.add(sized_task(2, 1 << 20));
        assert!(kept.get(TaskId(1)).is_some() && kept.get(TaskId(2)).is_none(), "it is too large");
    }
}
