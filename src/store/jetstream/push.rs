//! Passes stored tasks on to the owners of their partitions, so that they need not read them from the log.
//! An owner that does not get one reads it there, a little later.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::time::sleep;
use tracing::{debug, error};

use super::connect::Store;
use super::message::{self, PushedTask};
use super::names::place_of;
use super::reader::LoggedTask;
use super::shared::StoreShared;
use super::standing::PartitionOrder;
use crate::store::payload::Nodes;
use crate::task::TaskId;

/// Between two messages to an owner, so that they have several tasks under load.
const EVERY: Duration = Duration::from_millis(5);

/// The most bytes of the tasks in one message.
const GROUP_BYTES: usize = 64 << 10;

/// The most bytes that a message has for a task, besides its own.
const HEAD_BYTES: usize = 18;

/// An owner reads a longer task from the log.
const TASK_BYTES: usize = 32 << 10;

/// While more waits to be sent, further tasks are only announced: an owner that must take so much reads it
/// from the log, at its own pace.
const WAITING_BYTES: usize = 256 << 10;

/// The stored tasks of other owners.
pub(super) struct TaskPusher {
    store: Store,
    /// By the process of the owner. Each has a task that sends, and ends with it.
    queues: Mutex<HashMap<u64, PushQueue>>,
}

#[derive(Debug, Default)]
struct PushQueue {
    tasks: VecDeque<PushedTask>,
    bytes: usize,
}

impl PushQueue {
    fn push(&mut self, mut task: PushedTask) {
        let bytes = task.message.len();
        if bytes > TASK_BYTES || self.bytes + bytes > WAITING_BYTES {
            task.message = Bytes::new();
        }
        self.bytes += task.message.len();
        self.tasks.push_back(task);
    }

    /// Takes the tasks of the next message.
    fn group(&mut self) -> Vec<PushedTask> {
        let mut bytes = 0;
        let fits = |task: &&PushedTask| {
            bytes += HEAD_BYTES + task.message.len();
            bytes <= GROUP_BYTES
        };
        let count = self.tasks.iter().take_while(fits).count();
        let group: Vec<_> = self.tasks.drain(..count).collect();
        self.bytes -= group.iter().map(|task| task.message.len()).sum::<usize>();
        group
    }
}

impl TaskPusher {
    pub(super) fn new(store: Store) -> Self {
        Self { store, queues: Mutex::default() }
    }

    /// Sends the message of a task to the owner of its partition; without it, the owner reads the log.
    pub(super) fn push(self: &Arc<Self>, owner: u64, id: TaskId, message: Bytes) {
        let task = PushedTask { id, message };
        match self.queues.lock().entry(owner) {
            Entry::Occupied(mut queue) => queue.get_mut().push(task),
            Entry::Vacant(free) => {
                free.insert(PushQueue::default()).push(task);
                tokio::spawn(Arc::clone(self).send(owner));
            }
        }
    }

    async fn send(self: Arc<Self>, owner: u64) {
        let subject = self.store.names().pushed(owner);
        loop {
            let group = {
                let mut queues = self.queues.lock();
                let group = queues.get_mut(&owner).map(PushQueue::group).unwrap_or_default();
                if group.is_empty() {
                    queues.remove(&owner);
                    return;
                }
                group
            };
            match message::pushed(&group) {
                Ok(message) => {
                    let sent = self.store.client().publish(subject.clone(), message).await;
                    if let Err(error) = sent {
                        debug!(%error, "tasks are not sent to their owner");
                    }
                }
                Err(error) => error!(%error, "tasks cannot be encoded"),
            }
            sleep(EVERY).await;
        }
    }
}

/// Takes the tasks of this process that other instances have stored.
pub(super) async fn listen(shared: Arc<StoreShared>) {
    let (store, mut nodes) = (shared.store.clone(), Nodes::default());
    let subject = store.names().pushed(shared.this.process);
    let group = move |group: Bytes| match message::read_pushed(&group) {
        Ok(tasks) => take(&shared, tasks, &mut nodes),
        Err(error) => debug!(%error, "a message of another instance is ignored"),
    };
    store.listen(subject, group).await;
}

fn take(shared: &StoreShared, tasks: Vec<PushedTask>, nodes: &mut Nodes) {
    for PushedTask { id, message } in tasks {
        let (partition, sequence) = place_of(id);
        // Others may believe that this process owns a partition that it has released.
        let Some(standing) = shared.standing(partition).filter(|one| one.arrives(sequence)) else {
            continue;
        };
        if message.is_empty() {
            standing.order(PartitionOrder::Hint { sequence });
            continue;
        }
        let read = message::read_task(id, &message, nodes);
        match read.and_then(|task| LoggedTask::of(task, &[])) {
            Ok(task) => standing.order(PartitionOrder::Acked { sequence, task }),
            Err(error) => {
                debug!(task = %id, %error, "a task of another instance is read from the log");
                standing.order(PartitionOrder::Hint { sequence });
            }
        }
    }
}

impl fmt::Debug for TaskPusher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskPusher").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: u64, bytes: usize) -> PushedTask {
        PushedTask { id: TaskId(id), message: vec![0; bytes].into() }
    }

    #[test]
    fn tasks_are_sent_in_order_in_bounded_groups_and_long_ones_only_announced() {
        let mut queue = PushQueue::default();
        (0..3).for_each(|id| queue.push(task(id, TASK_BYTES)));
        (3..10_000).for_each(|id| queue.push(task(id, TASK_BYTES + 1)));
        let mut sent = Vec::new();
        loop {
            let group = queue.group();
            if group.is_empty() {
                break;
            }
            assert!(message::pushed(&group).unwrap().len() <= GROUP_BYTES + 64);
            sent.extend(group);
        }
        assert!(sent.iter().map(|task| task.id.0).eq(0..10_000));
        assert!(sent.iter().all(|task| task.message.is_empty() == (task.id.0 >= 3)));
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn without_a_connection_tasks_are_only_announced_beyond_a_limit() {
        let mut queue = PushQueue::default();
        for id in 0..1_000 {
            queue.push(task(id, TASK_BYTES));
        }
        assert!(queue.bytes <= WAITING_BYTES && queue.bytes > WAITING_BYTES - TASK_BYTES);
        let mut groups =
            std::iter::from_fn(|| Some(queue.group()).filter(|group| !group.is_empty()));
        assert_eq!(groups.by_ref().map(|group| group.len()).sum::<usize>(), 1_000);
    }
}
