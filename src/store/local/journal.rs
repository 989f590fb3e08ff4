//! The journal on the local disk: numbers writes and checks idempotency keys. The committer below it
//! makes writes durable.

use std::collections::HashSet;
use std::fmt;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::ahead::ReadAhead;
use super::commit::Committer;
use super::error::OpenError;
use super::idempotency::Keys;
use super::read::StoreReader;
use super::recover::{RecoveryEvent, RecoveryReport};
use super::room::Room;
use super::snapshot::LocalSnapshot;
use super::{LocalStore, Opened};
use crate::lease::Fence;
use crate::store::journal::{
    Append, AppendError, AppendReply, Appended, BoxFuture, Journal, JournalEvent, KeyState, NoRoom,
    Notify, Numbered, Reply, SnapshotError, SnapshotReply, Stats,
};
use crate::store::records::{
    CommitError, Header, IdempotencyAnswer, IdempotencyRow, ReadError, RecordCause, ReplicaRow,
};
use crate::task::{
    Consistency, Idempotency, Moment, Node, Now, Obstacle, Partition, Progress, ReplicaIndex, Task,
    TaskId, Uptime,
};

/// Tasks in one event of a claim.
const CLAIMED_AT_ONCE: usize = 256;

/// Limits of idempotency keys.
#[derive(Clone, Copy, Debug)]
pub struct KeyLimits {
    /// How long a key is kept after its write.
    pub window: Duration,
    pub most: usize,
}

/// A [`Journal`] on the local disk. Cheap to clone.
#[derive(Clone)]
pub struct LocalJournal {
    committer: Committer,
    reader: StoreReader,
    ahead: Arc<Mutex<ReadAhead>>,
    /// The id of the next write. Locked while writes are numbered and handed over, so that the
    /// committer gets them in the order of their ids.
    next: Arc<Mutex<TaskId>>,
    keys: Arc<Mutex<Keys<AppendReply>>>,
    room: Arc<Room>,
}

impl LocalStore {
    /// Recovers the store and opens it as a journal. `claim` gets the events of the recovery: the
    /// records of replicas and the claim of the one partition. `notify` gets every later event.
    ///
    /// # Errors
    ///
    /// As [`Self::recover`].
    pub fn into_journal(
        self,
        limits: KeyLimits,
        now: Now,
        uptime: &Uptime,
        claim: &mut dyn FnMut(JournalEvent),
        notify: Notify,
    ) -> Result<(LocalJournal, RecoveryReport), OpenError> {
        for (node, row) in self.replicas()? {
            claim(JournalEvent::Replica { node, row: Some(row) });
        }
        let partition = Partition::default();
        let mut strong = HashSet::new();
        let mut tasks = Vec::with_capacity(CLAIMED_AT_ONCE);
        let mut each = |handed| match handed {
            RecoveryEvent::Task(task) => {
                if task.header.consistency == Consistency::Strong {
                    strong.insert(task.header.id);
                }
                tasks.push(task);
                if tasks.len() == CLAIMED_AT_ONCE {
                    let tasks = std::mem::replace(&mut tasks, Vec::with_capacity(CLAIMED_AT_ONCE));
                    claim(JournalEvent::Claimed { partition, tasks });
                }
            }
            RecoveryEvent::Restart => {
                strong.clear();
                tasks.clear();
                claim(JournalEvent::Released { partition });
            }
        };
        let (opened, report) = self.recover(&mut each, notify)?;
        claim(JournalEvent::Claimed { partition, tasks });
        let Opened { journal, idempotency, .. } = opened;
        journal.remember(limits, now, uptime, idempotency, &strong);
        Ok((journal, report))
    }
}

impl LocalJournal {
    pub(super) fn new(
        committer: Committer,
        reader: StoreReader,
        next: TaskId,
        reserve: u64,
    ) -> Self {
        let keys = Keys::new(Duration::ZERO, 0);
        Self {
            committer,
            reader,
            ahead: Arc::default(),
            next: Arc::new(Mutex::new(next)),
            keys: Arc::new(Mutex::new(keys)),
            room: Arc::new(Room::new(reserve)),
        }
    }

    /// The id of the newest write, of this process or an earlier one.
    #[must_use]
    pub fn newest(&self) -> TaskId {
        TaskId(self.next.lock().0.saturating_sub(1))
    }

    /// Loads the keys on disk and removes expired ones. `strong` are the unsettled strong writes.
    fn remember(
        &self,
        limits: KeyLimits,
        now: Now,
        uptime: &Uptime,
        found: Vec<(Box<str>, IdempotencyRow)>,
        strong: &HashSet<TaskId>,
    ) {
        let mut keys = Keys::new(limits.window, limits.most);
        let over = keys.restore(now, uptime, found, strong);
        *self.keys.lock() = keys;
        self.forget(over);
    }

    fn append_one(
        &self,
        next: &mut TaskId,
        Append { new, now, idempotency, early, reply }: Append,
    ) -> Option<Numbered> {
        if let Some(idempotency) = &idempotency {
            let state = {
                let mut keys = self.keys.lock();
                match keys.look(idempotency) {
                    KeyState::Pending => {
                        keys.wait(idempotency, reply);
                        return None;
                    }
                    state => state,
                }
            };
            if let Some(outcome) = state.outcome() {
                reply(outcome);
                return None;
            }
        }
        let id = *next;
        *next = TaskId(id.0 + 1);
        let task = Arc::new(Task::accepted(*new, id, now.wall));
        let coming = self.room.enter(task.weight() as u64);
        let answer: Reply = match &idempotency {
            None => Box::new(move |committed| {
                drop(coming);
                reply(of(committed, id));
            }),
            Some(Idempotency { key, fingerprint }) => {
                let row = IdempotencyRow::of(&task, *fingerprint);
                self.keys.lock().enter(now.moment, key, row, task.consistency);
                let keys = Arc::clone(&self.keys);
                Box::new(move |committed| {
                    drop(coming);
                    answer_all(&keys, id, committed, reply);
                })
            }
        };
        if early && idempotency.is_none() {
            self.committer.accept_early(Arc::clone(&task), answer);
        } else {
            self.committer.accept(Arc::clone(&task), idempotency, Some(answer));
        }
        Some(Numbered { partition: Partition::default(), task })
    }

    fn forget(&self, over: Vec<Box<str>>) {
        if !over.is_empty() {
            self.committer.forget_idempotency(over);
        }
    }
}

impl Journal for LocalJournal {
    fn append(&self, writes: Vec<Append>) -> Vec<Option<Numbered>> {
        let mut next = self.next.lock();
        let single = writes.len() == 1;
        let append = || writes.into_iter().map(|write| self.append_one(&mut next, write)).collect();
        if single { append() } else { self.committer.in_one_commit(append) }
    }

    fn key(&self, idempotency: &Idempotency) -> KeyState {
        self.keys.lock().look(idempotency)
    }

    fn conclude(&self, id: TaskId, answer: IdempotencyAnswer, _: &[(ReplicaIndex, Obstacle)]) {
        let kept = self.keys.lock().conclude(id, answer);
        if let Some((key, row)) = kept {
            self.committer.set_idempotency(key, row);
        }
    }

    fn tick(&self, now: Moment) {
        let over = self.keys.lock().tick(now);
        self.forget(over);
    }

    fn save(&self, id: TaskId, progress: Vec<Progress>) {
        self.committer.save(id, progress);
    }

    fn remove(&self, id: TaskId) {
        self.ahead.lock().remove(id);
        self.committer.remove(id);
    }

    fn set_replica(&self, node: Node, row: Option<ReplicaRow>, _: RecordCause) {
        self.committer.set_replica(node, row, None);
    }

    fn sync(&self, reply: Reply) {
        self.committer.sync(reply);
    }

    fn snapshot(&self, begun: SnapshotReply) {
        let files = Arc::clone(&self.reader.files);
        self.committer.after_commit(move |database| {
            let snapshot = database.map_err(SnapshotError::Store);
            begun(snapshot.and_then(|database| LocalSnapshot::begin(files, database)));
        });
    }

    fn read(&self, id: TaskId) -> BoxFuture<'static, Result<Option<Task>, ReadError>> {
        if let Some(task) = self.ahead.lock().get(id) {
            return Box::pin(ready(Ok(Some(task))));
        }
        let (reader, ahead) = (self.reader.clone(), Arc::clone(&self.ahead));
        Box::pin(off_the_loop(move || {
            let read = reader.read(id)?;
            if let Some(task) = &read {
                let more = ahead.lock().rows(id);
                // The task itself was read.
                let beside = reader.read_beside(id, more).unwrap_or_default();
                let mut ahead = ahead.lock();
                beside.into_iter().chain([task.clone()]).for_each(|task| ahead.add(task));
            }
            Ok(read)
        }))
    }

    fn headers(
        &self,
        ids: Vec<TaskId>,
    ) -> BoxFuture<'static, Result<Vec<Option<Header>>, ReadError>> {
        let reader = self.reader.clone();
        Box::pin(off_the_loop(move || reader.headers(&ids)))
    }

    fn fence(&self, _: TaskId) -> Fence {
        Fence::Open
    }

    fn room(&self, bytes: u64) -> Result<(), NoRoom> {
        self.room.check(bytes, self.reader.free_bytes())
    }

    fn in_progress(&self) -> Option<u64> {
        self.committer.turns().in_progress()
    }

    fn close(&self) -> BoxFuture<'static, Result<(), CommitError>> {
        let closed = self.committer.close();
        Box::pin(async { closed.await.unwrap_or(Err(CommitError::Closed)) })
    }

    fn stats(&self) -> Stats {
        let is_full = self.room(0).is_err();
        Stats {
            is_full,
            file_bytes: self.reader.file_bytes(),
            live_bytes: self.reader.live_bytes(),
            free_bytes: self.reader.free_bytes(),
            reserved_bytes: self.room.reserve(),
            compactions: self.reader.compactions(),
        }
    }
}

/// Runs a read on a thread that may block.
async fn off_the_loop<T: Send + 'static>(
    read: impl FnOnce() -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ReadError> {
    tokio::task::spawn_blocking(read).await.unwrap_or(Err(ReadError::Interrupted))
}

/// Answers a write with a key and its repeats, once its commit has succeeded or failed.
fn answer_all(
    keys: &Mutex<Keys<AppendReply>>,
    id: TaskId,
    committed: Result<(), CommitError>,
    first: AppendReply,
) {
    // Locked to the end: a later repeat is answered after these.
    let mut keys = keys.lock();
    first(of(committed, id));
    if let Err(error) = committed {
        keys.lost(id).into_iter().for_each(|reply| reply(Err(AppendError::Store(error))));
    } else if let Some((waiting, repeated)) = keys.durable(id) {
        waiting.into_iter().for_each(|reply| reply(Ok(Appended::Repeated(repeated.clone()))));
    }
}

fn of(committed: Result<(), CommitError>, id: TaskId) -> Result<Appended, AppendError> {
    committed.map(|()| Appended::New(id)).map_err(|error| match error {
        CommitError::Removed => AppendError::Removed(id),
        error => AppendError::Store(error),
    })
}

impl fmt::Debug for LocalJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalJournal").finish_non_exhaustive()
    }
}
