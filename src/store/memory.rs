//! A journal that keeps its tasks in memory, for tests.

use std::collections::BTreeMap;
use std::fmt;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::journal::{
    Append, AppendError, AppendReply, Appended, BoxFuture, Journal, JournalEvent, KeyState, NoRoom,
    Numbered, Reply, Stats,
};
use super::local::{KeyLimits, Keys};
use crate::lease::Fence;
use crate::store::records::{
    CommitError, Header, IdempotencyAnswer, IdempotencyRow, ReadError, RecordCause, Recovered,
    ReplicaRow,
};
use crate::task::{
    Idempotency, Moment, NewTask, Node, Now, Obstacle, Partition, Progress, ReplicaIndex, Task,
    TaskId,
};

/// The contents of a [`MemoryJournal`]. They outlive it, as files outlive a process.
pub(crate) struct MemoryStore {
    next: TaskId,
    tasks: BTreeMap<TaskId, (Arc<Task>, Vec<Progress>)>,
    replicas: BTreeMap<Node, ReplicaRow>,
    keys: Keys<AppendReply>,
}

/// A [`Journal`] in memory, with one partition.
pub(crate) struct MemoryJournal {
    store: Arc<Mutex<MemoryStore>>,
    notify: Mutex<Box<dyn Fn(JournalEvent) + Send>>,
    refuses: Mutex<Option<CommitError>>,
    /// Settlements so far.
    settled: Mutex<u64>,
    /// Numbered and not durable, while commits are held.
    held: Mutex<Option<Vec<HeldWrite>>>,
    /// Of all tasks.
    fence: Mutex<Fence>,
}

struct HeldWrite {
    task: Arc<Task>,
    progress: Vec<Progress>,
    reply: AppendReply,
}

impl MemoryStore {
    /// An empty store, which numbers writes from `next` on.
    pub(crate) fn new(next: TaskId, limits: KeyLimits) -> Arc<Mutex<Self>> {
        let keys = Keys::new(limits.window, limits.most);
        let (tasks, replicas) = (BTreeMap::new(), BTreeMap::new());
        Arc::new(Mutex::new(Self { next, tasks, replicas, keys }))
    }

    fn append(
        &mut self,
        new: NewTask,
        now: Now,
        idempotency: Option<&Idempotency>,
    ) -> Result<Appended, AppendError> {
        if let Some(outcome) = idempotency.and_then(|key| self.keys.look(key).outcome()) {
            return outcome;
        }
        let id = self.next;
        self.next = TaskId(id.0 + 1);
        let task = Arc::new(Task::accepted(new, id, now.wall));
        if let Some(Idempotency { key, fingerprint }) = idempotency {
            let row = IdempotencyRow::of(&task, *fingerprint);
            self.keys.enter(now.moment, key, row, task.consistency);
            // No repeat can wait for it: this call holds the lock.
            self.keys.durable(id);
        }
        let untouched = vec![Progress::Untouched; task.replicas.len()];
        self.tasks.insert(id, (task, untouched));
        Ok(Appended::New(id))
    }
}

impl MemoryJournal {
    /// Claims what the store has, by `notify`.
    pub(crate) fn open(
        store: &Arc<Mutex<MemoryStore>>,
        notify: impl Fn(JournalEvent) + Send + 'static,
    ) -> Self {
        for (node, row) in &store.lock().replicas {
            notify(JournalEvent::Replica { node: node.clone(), row: Some(row.clone()) });
        }
        let (store, notify) = (Arc::clone(store), Mutex::new(Box::new(notify) as _));
        let (settled, held) = (Mutex::new(0), Mutex::new(None));
        let (refuses, fence) = (Mutex::new(None), Mutex::new(Fence::Open));
        let journal = Self { store, notify, refuses, settled, held, fence };
        journal.claim();
        journal.notify(JournalEvent::Settled { through: 0 });
        journal
    }

    /// From now on, writes and settlements are not durable before [`Self::commit`].
    pub(crate) fn hold_commits(&self) {
        self.held.lock().get_or_insert_default();
    }

    /// Makes everything so far durable.
    pub(crate) fn commit(&self) {
        let held = self.held.lock().as_mut().map(std::mem::take).unwrap_or_default();
        let mut tasks = Vec::new();
        for HeldWrite { task, progress, reply } in held {
            self.store.lock().tasks.insert(task.id, (Arc::clone(&task), progress));
            reply(Ok(Appended::New(task.id)));
            tasks.push(task);
        }
        let through = *self.settled.lock();
        self.notify(JournalEvent::Settled { through });
        if !tasks.is_empty() {
            let partition = Partition::default();
            self.notify(JournalEvent::Arrived { partition, tasks, took: Duration::ZERO });
        }
    }

    /// Counts a settlement.
    fn settle(&self) {
        let mut settled = self.settled.lock();
        *settled += 1;
        if self.held.lock().is_none() {
            self.notify(JournalEvent::Settled { through: *settled });
        }
    }

    /// Claims the partition, at the start or again.
    pub(crate) fn claim(&self) {
        let recovered = |(task, progress): &(Arc<Task>, Vec<Progress>)| Recovered {
            header: Header::of(task),
            idempotency: None,
            progress: progress.clone(),
            is_awaited: false,
        };
        let tasks = self.store.lock().tasks.values().map(recovered).collect();
        self.notify(JournalEvent::Claimed { partition: Partition::default(), tasks });
    }

    /// Another process owns the partition from now on.
    pub(crate) fn release(&self) {
        self.notify(JournalEvent::Released { partition: Partition::default() });
    }

    /// Gives this fence to the attempts that start from now on.
    pub(crate) fn set_fence(&self, fence: Fence) {
        *self.fence.lock() = fence;
    }

    /// Fails as a disk does.
    pub(crate) fn fail(&self) {
        *self.refuses.lock() = Some(CommitError::StoreFailed);
        self.notify(JournalEvent::Failed("a failure".into()));
    }

    fn notify(&self, event: JournalEvent) {
        self.notify.lock()(event);
    }

    fn refuses(&self) -> Result<(), CommitError> {
        self.refuses.lock().map_or(Ok(()), Err)
    }
}

impl Journal for MemoryJournal {
    fn append(&self, writes: Vec<Append>) -> Vec<Option<Numbered>> {
        let mut numbered = Vec::new();
        // Held to the end, so that all outcomes and arrivals are in the order of the ids.
        let notify = self.notify.lock();
        let mut held = self.held.lock();
        let mut tasks = Vec::new();
        for Append { new, now, idempotency, reply, .. } in writes {
            let outcome = match self.refuses() {
                Err(error) => Err(AppendError::Store(error)),
                Ok(()) => self.store.lock().append(*new, now, idempotency.as_ref()),
            };
            let Ok(Appended::New(id)) = outcome else {
                numbered.push(None);
                reply(outcome);
                continue;
            };
            let stored = &mut self.store.lock().tasks;
            let Some((task, progress)) = stored.get(&id).cloned() else { continue };
            let partition = Partition::default();
            numbered.push(Some(Numbered { partition, task: Arc::clone(&task) }));
            if let Some(held) = held.as_mut() {
                stored.remove(&id);
                held.push(HeldWrite { task, progress, reply });
            } else {
                tasks.push(task);
                reply(outcome);
            }
        }
        if !tasks.is_empty() {
            let partition = Partition::default();
            notify(JournalEvent::Arrived { partition, tasks, took: Duration::ZERO });
        }
        numbered
    }

    fn save(&self, id: TaskId, progress: Vec<Progress>) {
        if self.refuses().is_ok() {
            let mut held = self.held.lock();
            let write = held.iter_mut().flatten().find(|write| write.task.id == id);
            if let Some(write) = write {
                write.progress = progress;
            } else if let Some((_, known)) = self.store.lock().tasks.get_mut(&id) {
                *known = progress;
            }
            drop(held);
            self.settle();
        }
    }

    fn remove(&self, id: TaskId) {
        if self.refuses().is_ok() {
            self.store.lock().tasks.remove(&id);
            let mut held = self.held.lock();
            let withdrawn = held.as_mut().and_then(|held| {
                let at = held.iter().position(|write| write.task.id == id)?;
                Some(held.remove(at))
            });
            drop(held);
            if let Some(HeldWrite { reply, .. }) = withdrawn {
                reply(Err(AppendError::Removed(id)));
            }
            self.settle();
        }
    }

    fn set_replica(&self, node: Node, row: Option<ReplicaRow>, _: RecordCause) {
        let replicas = &mut self.store.lock().replicas;
        match row {
            Some(row) => drop(replicas.insert(node, row)),
            None => drop(replicas.remove(&node)),
        }
    }

    fn key(&self, idempotency: &Idempotency) -> KeyState {
        self.store.lock().keys.look(idempotency)
    }

    fn conclude(&self, id: TaskId, answer: IdempotencyAnswer, _: &[(ReplicaIndex, Obstacle)]) {
        self.store.lock().keys.conclude(id, answer);
    }

    fn tick(&self, now: Moment) {
        self.store.lock().keys.tick(now);
    }

    fn sync(&self, reply: Reply) {
        reply(self.refuses());
    }

    fn read(&self, id: TaskId) -> BoxFuture<'static, Result<Option<Task>, ReadError>> {
        let task = self.store.lock().tasks.get(&id).map(|(task, _)| Task::clone(task));
        Box::pin(ready(Ok(task)))
    }

    fn headers(
        &self,
        ids: Vec<TaskId>,
    ) -> BoxFuture<'static, Result<Vec<Option<Header>>, ReadError>> {
        let store = self.store.lock();
        let headers = ids.iter().map(|id| store.tasks.get(id).map(|(task, _)| Header::of(task)));
        Box::pin(ready(Ok(headers.collect())))
    }

    fn fence(&self, _: TaskId) -> Fence {
        self.fence.lock().clone()
    }

    fn room(&self, _: u64) -> Result<(), NoRoom> {
        Ok(())
    }

    fn stats(&self) -> Stats {
        let weights = self.store.lock().tasks.values().map(|(task, _)| task.weight() as u64).sum();
        Stats { file_bytes: weights, live_bytes: weights, ..Stats::default() }
    }

    fn in_progress(&self) -> Option<u64> {
        None
    }

    fn close(&self) -> BoxFuture<'static, Result<(), CommitError>> {
        let refuses = *self.refuses.lock().get_or_insert(CommitError::Closed);
        let closed = if refuses == CommitError::Closed { Ok(()) } else { Err(refuses) };
        Box::pin(ready(closed))
    }
}

impl fmt::Debug for MemoryJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryJournal").finish_non_exhaustive()
    }
}
