//! A journal that keeps its tasks in memory, for tests.

use std::collections::BTreeMap;
use std::fmt;
use std::future::ready;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::journal::{
    Append, AppendError, AppendReply, Appended, BoxFuture, Journal, JournalEvent, KeyState, Notify,
    Reply, Stats,
};
use super::local::{
    CommitError, Header, IdempotencyAnswer, IdempotencyRow, KeyLimits, Keys, ReadError, ReplicaRow,
};
use crate::task::{Idempotency, Moment, NewTask, Node, Now, Progress, Task, TaskId};

/// A [`Journal`] in memory.
pub(crate) struct MemoryJournal {
    state: Mutex<State>,
    notify: Mutex<Notify>,
}

struct State {
    next: TaskId,
    tasks: BTreeMap<TaskId, Arc<Task>>,
    /// What they weigh.
    bytes: u64,
    keys: Keys<AppendReply>,
    closed: bool,
}

impl MemoryJournal {
    /// An empty one, which numbers from `next` on.
    pub(crate) fn new(next: TaskId, limits: KeyLimits, notify: Notify) -> Self {
        let keys = Keys::new(limits.window, limits.most);
        let state = State { next, tasks: BTreeMap::new(), bytes: 0, keys, closed: false };
        Self { state: Mutex::new(state), notify: Mutex::new(notify) }
    }

    /// Refuses what comes from now on.
    pub(crate) fn close(&self) {
        self.state().closed = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// What becomes of a write; a new task is added to `arrived`.
    fn append(
        &mut self,
        new: NewTask,
        now: Now,
        idempotency: Option<&Idempotency>,
        arrived: &mut Vec<Arc<Task>>,
    ) -> Result<Appended, AppendError> {
        if self.closed {
            return Err(AppendError::Store(CommitError::Closed));
        }
        if let Some(outcome) = idempotency.and_then(|key| self.keys.look(key).outcome()) {
            return outcome;
        }
        let id = self.next;
        self.next = TaskId(id.0 + 1);
        let task = Arc::new(Task::accepted(new, id, now.wall));
        if let Some(Idempotency { key, fingerprint }) = idempotency {
            let row = IdempotencyRow::of(&task, *fingerprint);
            self.keys.enter(now.moment, key, row, task.consistency);
            // Nobody can have waited for that.
            self.keys.durable(id);
        }
        self.bytes += task.weight() as u64;
        self.tasks.insert(id, Arc::clone(&task));
        arrived.push(task);
        Ok(Appended::New(id))
    }
}

impl Journal for MemoryJournal {
    fn append(&self, writes: Vec<Append>) {
        // Held to the end, so that all is heard in the order of the ids.
        let notify = self.notify.lock().unwrap_or_else(PoisonError::into_inner);
        let mut tasks = Vec::new();
        for Append { new, now, idempotency, reply } in writes {
            let outcome = self.state().append(*new, now, idempotency.as_ref(), &mut tasks);
            reply(outcome);
        }
        if !tasks.is_empty() {
            notify(JournalEvent::Arrived { tasks, took: Duration::ZERO });
        }
    }

    fn save(&self, _: TaskId, _: Vec<Progress>) {}

    fn remove(&self, id: TaskId) {
        let mut state = self.state();
        if let Some(task) = state.tasks.remove(&id) {
            state.bytes -= task.weight() as u64;
        }
    }

    fn set_replica(&self, _: Node, _: Option<ReplicaRow>) {}

    fn key(&self, idempotency: &Idempotency) -> KeyState {
        self.state().keys.look(idempotency)
    }

    fn conclude(&self, id: TaskId, answer: IdempotencyAnswer) {
        self.state().keys.conclude(id, answer);
    }

    fn tick(&self, now: Moment) {
        self.state().keys.tick(now);
    }

    fn sync(&self, reply: Reply) {
        let closed = self.state().closed;
        reply(if closed { Err(CommitError::Closed) } else { Ok(()) });
    }

    fn read(&self, id: TaskId) -> BoxFuture<'static, Result<Option<Task>, ReadError>> {
        let task = self.state().tasks.get(&id).map(|task| Task::clone(task));
        Box::pin(ready(Ok(task)))
    }

    fn headers(
        &self,
        ids: Vec<TaskId>,
    ) -> BoxFuture<'static, Result<Vec<Option<Header>>, ReadError>> {
        let state = self.state();
        let headers = ids.iter().map(|id| state.tasks.get(id).map(|task| Header::of(task)));
        Box::pin(ready(Ok(headers.collect())))
    }

    fn stats(&self) -> Stats {
        let bytes = self.state().bytes;
        Stats { file_bytes: bytes, live_bytes: bytes, ..Stats::default() }
    }
}

impl fmt::Debug for MemoryJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryJournal").finish_non_exhaustive()
    }
}
