//! The journal: where a write becomes a task. It numbers the writes in the order of the calls and
//! makes them durable; what was written before under the same idempotency key stays that task.
//!
//! Above the committer, which it feeds; it never waits for the disk.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::commit::{Committer, Reply};
use super::error::CommitError;
use super::idempotency::{Keys, Repeated, Seen};
use super::rows::{IdempotencyAnswer, IdempotencyRow, ReplicaRow};
use crate::task::{Idempotency, Moment, NewTask, Node, Now, Progress, Task, TaskId, Uptime};

/// A write that is to be made durable.
pub struct Append {
    /// What was asked for.
    pub new: Box<NewTask>,
    /// When it was accepted.
    pub now: Now,
    /// The key that its client gave it.
    pub idempotency: Option<Idempotency>,
    /// Called once. It hands the outcome on and returns.
    pub reply: AppendReply,
}

/// Takes the outcome of an [`Append`].
pub type AppendReply = Box<dyn FnOnce(Result<Appended, AppendError>) + Send>;

/// What a write has become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// A task, which is durable.
    New(TaskId),
    /// It was a task before.
    Repeated(Repeated),
}

/// Why a write has become nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AppendError {
    /// Its idempotency key came with another body before.
    Mismatch,
    /// As many idempotency keys as may be are remembered.
    KeysFull,
    /// The store takes nothing.
    Store(CommitError),
}

/// How long idempotency keys are remembered, and how many.
#[derive(Clone, Copy, Debug)]
pub struct KeyLimits {
    /// Counted from the write.
    pub window: Duration,
    /// At most.
    pub most: usize,
}

/// Writes tasks. Cheap to clone; no call blocks.
#[derive(Clone)]
pub struct Journal {
    committer: Committer,
    /// The number of the next write. Held while writes are numbered and handed over, so that the
    /// committer has them in that order.
    next: Arc<Mutex<TaskId>>,
    keys: Arc<Mutex<Keys<AppendReply>>>,
}

impl Journal {
    /// Numbers writes from `next` on.
    pub(super) fn new(committer: Committer, next: TaskId) -> Self {
        let keys = Keys::new(Duration::ZERO, 0);
        Self { committer, next: Arc::new(Mutex::new(next)), keys: Arc::new(Mutex::new(keys)) }
    }

    /// Takes on the keys found on disk; forgets those whose time is over. `strong` are the strong
    /// writes that are not settled.
    pub fn remember(
        &self,
        limits: KeyLimits,
        now: Now,
        uptime: &Uptime,
        found: Vec<(Box<str>, IdempotencyRow)>,
        strong: &HashSet<TaskId>,
    ) {
        let mut keys = Keys::new(limits.window, limits.most);
        let over = keys.restore(now, uptime, found, strong);
        *lock(&self.keys) = keys;
        self.forget(over);
    }

    /// Makes writes durable, in their order and after those of every call before, in one commit
    /// as far as it holds them. Each has its reply, in the same order but for those that become no
    /// task: these may have it at once.
    ///
    /// The task of a reply arrives by [`super::Event::Arrived`], behind the reply.
    pub fn append(&self, writes: Vec<Append>) {
        let mut next = lock(&self.next);
        let single = writes.len() == 1;
        let append = || writes.into_iter().for_each(|write| self.append_one(&mut next, write));
        if single { append() } else { self.committer.in_one_commit(append) }
    }

    fn append_one(&self, next: &mut TaskId, Append { new, now, idempotency, reply }: Append) {
        if let Some(idempotency) = &idempotency {
            let outcome = match lock(&self.keys).look(idempotency) {
                Seen::New => None,
                Seen::Waits(waiting) => return waiting.push(reply),
                Seen::Repeated(repeated) => Some(Ok(Appended::Repeated(repeated))),
                Seen::Mismatch => Some(Err(AppendError::Mismatch)),
                Seen::Full => Some(Err(AppendError::KeysFull)),
            };
            if let Some(outcome) = outcome {
                return reply(outcome);
            }
        }
        let id = *next;
        *next = TaskId(id.0 + 1);
        let task = Arc::new(Task::accepted(*new, id, now.wall));
        let answer: Reply = match &idempotency {
            None => Box::new(move |committed| reply(of(committed, id))),
            Some(Idempotency { key, fingerprint }) => {
                let row = IdempotencyRow::of(&task, *fingerprint);
                lock(&self.keys).enter(now.moment, key, row, task.consistency);
                let keys = Arc::clone(&self.keys);
                Box::new(move |committed| answer_all(&keys, id, committed, reply))
            }
        };
        self.committer.accept(task, idempotency, Some(answer));
    }

    /// Remembers the answer to a strong write for those who repeat it.
    pub fn conclude(&self, id: TaskId, answer: IdempotencyAnswer) {
        let kept = lock(&self.keys).conclude(id, answer);
        if let Some((key, row)) = kept {
            self.committer.set_idempotency(key, row);
        }
    }

    /// Forgets the idempotency keys whose time is over.
    pub fn tick(&self, now: Moment) {
        let over = lock(&self.keys).tick(now);
        self.forget(over);
    }

    fn forget(&self, over: Vec<Box<str>>) {
        if !over.is_empty() {
            self.committer.forget_idempotency(over);
        }
    }

    /// Remembers what each replica has had of a task: see [`Committer::save`].
    pub fn save(&self, id: TaskId, progress: Vec<Progress>) {
        self.committer.save(id, progress);
    }

    /// Forgets a task: see [`Committer::remove`].
    pub fn remove(&self, id: TaskId) {
        self.committer.remove(id);
    }

    /// Remembers what is said of a replica, before any write that is appended later.
    pub fn set_replica(&self, node: Node, row: Option<ReplicaRow>) {
        self.committer.set_replica(node, row, None);
    }

    /// Calls `reply` once everything that was handed in before is durable.
    pub fn sync(&self, reply: Reply) {
        self.committer.sync(reply);
    }
}

/// A write with a key is durable, or will never be, and with it those that repeat it.
fn answer_all(
    keys: &Mutex<Keys<AppendReply>>,
    id: TaskId,
    committed: Result<(), CommitError>,
    first: AppendReply,
) {
    // Until all are answered: who repeats it from now on has its answer behind these.
    let mut keys = lock(keys);
    first(of(committed, id));
    if let Err(error) = committed {
        keys.lost(id).into_iter().for_each(|reply| reply(Err(AppendError::Store(error))));
    } else if let Some((waiting, repeated)) = keys.durable(id) {
        waiting.into_iter().for_each(|reply| reply(Ok(Appended::Repeated(repeated.clone()))));
    }
}

/// A panic leaves both right: a number is given out at once, and each change of keys is one key's.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn of(committed: Result<(), CommitError>, id: TaskId) -> Result<Appended, AppendError> {
    committed.map(|()| Appended::New(id)).map_err(AppendError::Store)
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
