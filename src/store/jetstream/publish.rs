//! Publishes writes.
//!
//! Each write has a nonce, by which the servers store it once, however often it is sent. It is sent
//! again until it is acknowledged or `--store-timeout` is over. Then it may still be stored later.
//!
//! **Order.** Writes of one key are published one after the other: the next one when the one before is
//! acknowledged or given up. So they get ascending sequences in the order of the calls, also when one
//! is sent again. Writes of different keys are on their way at the same time.
//!
//! A write that this process owns arrives in order, from `partition.rs`. The reader may find it in the
//! log before its acknowledgement: then it counts as acknowledged. So the outcome of a write always
//! comes before its arrival.

#![expect(clippy::disallowed_methods, reason = "waits, which the clock of the loop has no part in")]

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_nats::connection::State;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, error};

use super::connect::Store;
use super::idempotency::{ClusterKeys, Reserved};
use super::message::{self, Nonce, TaskMessages};
use super::meta::Meta;
use super::names::task_id;
use super::protocol::{Ack, Outgoing, StoreRequestError};
use super::push::TaskPusher;
use super::reader::LoggedTask;
use super::standing::{Owner, PartitionOrder, Standing};
use crate::store::journal::{Append, AppendError, AppendReply, Appended};
use crate::store::payload::Nodes;
use crate::store::records::{CommitError, Repeated};
use crate::task::{Consistency, Idempotency, Partition, Task, TaskId};

/// How long an attempt may take before the write is sent again.
const ATTEMPT: Duration = Duration::from_secs(2);

/// A quarter of the writes that may wait for room: clients of a partition that does not answer must
/// not take the places of the others.
const MOST_WAITING: u64 = 256;

/// Between two hints for a partition. Its owner has most tasks before, from `push.rs`.
const HINT_EVERY: Duration = Duration::from_millis(50);

/// Between two attempts after a failed one.
const PAUSE: Duration = Duration::from_millis(100);

pub(super) struct Publisher {
    store: Store,
    /// This process.
    process: u64,
    partitions: Vec<Arc<Standing>>,
    /// Keys with a write on its way, and the writes that wait behind it.
    keys: Mutex<HashMap<Box<str>, VecDeque<Submitted>>>,
    on_their_way: Mutex<HashMap<Nonce, OnItsWay>>,
    /// The records of replicas.
    meta: Arc<Meta>,
    idempotency: Arc<ClusterKeys>,
    pusher: Arc<TaskPusher>,
    /// By partition.
    gates: Vec<Arc<PartitionGate>>,
    /// Writes that have no outcome yet, and their bytes.
    open: AtomicU64,
    open_bytes: AtomicU64,
    closed: watch::Sender<bool>,
}

/// The writes of one partition that have no outcome yet.
#[derive(Default)]
struct PartitionGate {
    open: AtomicU64,
    /// The last attempt to store one has failed.
    is_silent: AtomicBool,
    hints: AtomicBool,
}

/// A write and when it must have an outcome.
pub(super) struct Submitted {
    pub(super) append: Append,
    pub(super) deadline: Instant,
}

/// A write that may be stored.
struct OnItsWay {
    partition: Partition,
    task: Task,
    /// As it is in the log.
    message: Bytes,
    chunks: u32,
    idempotency: Option<Idempotency>,
    /// The write of an idempotency key that may be stored already.
    is_repeat: bool,
    begun: Instant,
    reply: AppendReply,
    /// Dropped when it is acknowledged.
    _acked: oneshot::Sender<()>,
}

/// How it is known that a task is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Acked {
        is_duplicate: bool,
    },
    /// Its partition has read it.
    InLog,
}

impl Publisher {
    pub(super) fn new(
        store: Store,
        process: u64,
        partitions: Vec<Arc<Standing>>,
        meta: Arc<Meta>,
        idempotency: Arc<ClusterKeys>,
    ) -> Self {
        let gates = partitions.iter().map(|_| Arc::default()).collect();
        Self {
            gates,
            pusher: Arc::new(TaskPusher::new(store.clone())),
            store,
            process,
            partitions,
            keys: Mutex::default(),
            on_their_way: Mutex::default(),
            meta,
            idempotency,
            open: AtomicU64::new(0),
            open_bytes: AtomicU64::new(0),
            closed: watch::Sender::new(false),
        }
    }

    pub(super) fn open_bytes(&self) -> (u64, u64) {
        (self.open.load(Ordering::Relaxed), self.open_bytes.load(Ordering::Relaxed))
    }

    /// Takes a write. Must be called in the order of the writes, on the runtime of the store.
    pub(super) fn submit(self: &Arc<Self>, mut write: Submitted) {
        if *self.closed.borrow() {
            return (write.append.reply)(Err(AppendError::Store(CommitError::Closed)));
        }
        let partition = self.store.record().partition_of(&write.append.new.key);
        let Some(gate) = self.gates.get(usize::from(partition.0)) else {
            return (write.append.reply)(Err(AppendError::Unconfirmed));
        };
        let is_silent = gate.is_silent.load(Ordering::Relaxed);
        if is_silent && gate.open.load(Ordering::Relaxed) >= MOST_WAITING {
            return (write.append.reply)(Err(AppendError::TooManyWait));
        }
        self.count(&mut write.append, gate);
        match self.keys.lock().entry(write.append.new.key.as_str().into()) {
            Entry::Occupied(mut waiting) => waiting.get_mut().push_back(write),
            Entry::Vacant(free) => {
                free.insert(VecDeque::new());
                tokio::spawn(Arc::clone(self).publish_key(write));
            }
        }
    }

    /// Counts a write until it has its outcome.
    fn count(self: &Arc<Self>, append: &mut Append, gate: &Arc<PartitionGate>) {
        let bytes = append.new.weight() as u64;
        self.open.fetch_add(1, Ordering::Relaxed);
        gate.open.fetch_add(1, Ordering::Relaxed);
        self.open_bytes.fetch_add(bytes, Ordering::Relaxed);
        let (this, gate) = (Arc::clone(self), Arc::clone(gate));
        let reply = std::mem::replace(&mut append.reply, Box::new(drop));
        append.reply = Box::new(move |outcome| {
            this.open.fetch_sub(1, Ordering::Relaxed);
            gate.open.fetch_sub(1, Ordering::Relaxed);
            this.open_bytes.fetch_sub(bytes, Ordering::Relaxed);
            reply(outcome);
        });
    }

    /// Publishes a write, and then those of its key that came after it.
    async fn publish_key(self: Arc<Self>, first: Submitted) {
        let key: Box<str> = first.append.new.key.as_str().into();
        let mut write = first;
        loop {
            self.publish(write).await;
            let mut keys = self.keys.lock();
            match keys.get_mut(&key).and_then(VecDeque::pop_front) {
                Some(next) => write = next,
                None => {
                    keys.remove(&key);
                    return;
                }
            }
        }
    }

    async fn publish(&self, write: Submitted) {
        let Submitted { append: Append { new, now, idempotency, reply, .. }, deadline } = write;
        let partition = self.store.record().partition_of(&new.key);
        let Some(standing) = self.partitions.get(usize::from(partition.0)) else {
            return reply(Err(AppendError::Unconfirmed));
        };
        if new.consistency == Consistency::Strong
            && let Err(error) = self.wait_for_owner(standing, deadline).await
        {
            return reply(Err(error));
        }
        // A replica's first write comes after its record.
        let recorded = self.meta.written_of(&new.replicas);
        if !matches!(timeout_at(deadline, recorded).await, Ok(Ok(()))) {
            return reply(Err(AppendError::Unconfirmed));
        }
        let mut nonce = Nonce::random();
        let task = Task::accepted(*new, TaskId(0), now.wall);
        let mut is_repeat = false;
        if let Some(key) = &idempotency {
            let reserved = self.idempotency.reserve(key, task.consistency, partition, nonce.0);
            let reserved = timeout_at(deadline, reserved).await.unwrap_or(Reserved::Unanswered);
            let resumed = timeout_at(deadline, self.resume(reserved, key, &task, &mut nonce)).await;
            match resumed.unwrap_or(ControlFlow::Break(Err(AppendError::Unconfirmed))) {
                ControlFlow::Break(Ok(Appended::Repeated(repeated))) => {
                    return self.answer_repeat(key.clone(), repeated, reply, deadline);
                }
                ControlFlow::Break(outcome) => return reply(outcome),
                ControlFlow::Continue(resumed) => is_repeat = resumed,
            }
        }
        let awaited_by = (task.consistency == Consistency::Strong).then_some(self.process);
        let messages = match TaskMessages::of(&task, idempotency.as_ref(), nonce, awaited_by) {
            Ok(messages) => messages,
            Err(error) => {
                error!(%error, "a write cannot be encoded");
                return reply(Err(AppendError::Unconfirmed));
            }
        };
        let chunks = u32::try_from(messages.chunks.len()).unwrap_or(u32::MAX);
        let begun = Instant::now();
        let (acked, found) = oneshot::channel();
        let on_its_way = OnItsWay {
            partition,
            task,
            message: messages.task.clone(),
            chunks,
            idempotency,
            is_repeat,
            begun,
            reply,
            _acked: acked,
        };
        self.on_their_way.lock().insert(nonce, on_its_way);
        let failure = match self.store_within(standing, &messages, deadline, found).await {
            Ok(Some(Ack { sequence, is_duplicate })) => {
                return self.stored(nonce, sequence, Found::Acked { is_duplicate });
            }
            Ok(None) => return,
            Err(failure) => failure,
        };
        if let Some(write) = self.on_their_way.lock().remove(&nonce) {
            (write.reply)(Err(failure));
        }
    }

    /// What the state of an idempotency key means for its write. Continues with whether the write may
    /// be stored already.
    async fn resume(
        &self,
        reserved: Reserved,
        key: &Idempotency,
        task: &Task,
        own: &mut Nonce,
    ) -> ControlFlow<Result<Appended, AppendError>, bool> {
        let (nonce, partition) = match reserved {
            Reserved::New { .. } => return ControlFlow::Continue(false),
            Reserved::Resume { nonce, .. } => {
                *own = Nonce(nonce);
                return ControlFlow::Continue(true);
            }
            Reserved::Lost { nonce, partition } => (Nonce(nonce), partition),
            Reserved::Known(repeated) => {
                return ControlFlow::Break(Ok(Appended::Repeated(repeated)));
            }
            Reserved::Mismatch => return ControlFlow::Break(Err(AppendError::Mismatch)),
            Reserved::Full => return ControlFlow::Break(Err(AppendError::KeysFull)),
            Reserved::Unanswered => return ControlFlow::Break(Err(AppendError::Unconfirmed)),
        };
        // The servers do not know its nonce any more.
        match self.find(partition, nonce, 0).await {
            Ok(Some(sequence)) => {
                let (id, consistency) = (task_id(sequence, partition), task.consistency);
                self.bind(key.clone(), consistency, partition, nonce, id);
                let repeated = Repeated { id, consistency, answer: None };
                ControlFlow::Break(Ok(Appended::Repeated(repeated)))
            }
            Ok(None) => {
                *own = nonce;
                ControlFlow::Continue(false)
            }
            Err(error) => {
                debug!(%error, "the write of an idempotency key cannot be looked for");
                ControlFlow::Break(Err(AppendError::Unconfirmed))
            }
        }
    }

    /// Stores a task. Returns `None` if `found` tells that it is stored.
    async fn store_within(
        &self,
        standing: &Standing,
        messages: &TaskMessages,
        deadline: Instant,
        found: oneshot::Receiver<()>,
    ) -> Result<Option<Ack>, AppendError> {
        if self.store.is_nearly_full(standing.partition) {
            return Err(AppendError::Full);
        }
        // A timeout lets the first attempt begin in any case.
        if Instant::now() >= deadline {
            return Err(AppendError::Unconfirmed);
        }
        tokio::select! {
            biased;
            _ = found => Ok(None),
            // One deadline for all attempts: an attempt that fails at once never reaches its own.
            stored = timeout_at(deadline, self.store_at_last(standing, messages)) => {
                let stored = stored.unwrap_or(Err(AppendError::Unconfirmed));
                self.note_silence(standing.partition, stored.is_err());
                stored.map(Some)
            }
        }
    }

    /// Attempts to store a task until it is stored, or the log is full.
    async fn store_at_last(
        &self,
        standing: &Standing,
        messages: &TaskMessages,
    ) -> Result<Ack, AppendError> {
        let (partition, before) = (standing.partition, standing.stored());
        loop {
            // The client would keep it, and send it long after the write was given up.
            let result = if self.store.client().connection_state() == State::Connected {
                self.attempt(partition, messages, before).await
            } else {
                Err(StoreRequestError::Unanswered("there is no connection".to_owned()))
            };
            match result {
                Ok(ack) => return Ok(ack),
                Err(StoreRequestError::Full(why)) => {
                    debug!(why, "a stream is full");
                    return Err(AppendError::Full);
                }
                Err(error) => debug!(%error, ?partition, "a write is published again"),
            }
            self.note_silence(partition, true);
            sleep(PAUSE).await;
        }
    }

    fn note_silence(&self, partition: Partition, is_silent: bool) {
        if let Some(gate) = self.gates.get(usize::from(partition.0)) {
            gate.is_silent.store(is_silent, Ordering::Relaxed);
        }
    }

    async fn attempt(
        &self,
        partition: Partition,
        messages: &TaskMessages,
        before: u64,
    ) -> Result<Ack, StoreRequestError> {
        let names = self.store.names();
        let task = Outgoing::new(names.task(partition), messages.task.clone());
        let task = task.with_id(&messages.nonce.text());
        if messages.chunks.is_empty() {
            return self.store.publish(task, ATTEMPT).await;
        }
        let chunk = |chunk: &Bytes| Outgoing::new(names.chunk(partition), chunk.clone());
        let batch = messages.chunks.iter().map(chunk).chain([task]).collect();
        match self.store.publish_batch(batch, ATTEMPT).await {
            // A batch is not stored twice, but the answer does not say where it is.
            Err(StoreRequestError::Duplicate) => {
                let found = self.find(partition, messages.nonce, before).await?;
                let missing = || StoreRequestError::Unanswered("it is not found".to_owned());
                let sequence = found.ok_or_else(missing)?;
                Ok(Ack { sequence, is_duplicate: true })
            }
            result => result,
        }
    }

    /// The sequence of a stored task behind `before`.
    async fn find(
        &self,
        partition: Partition,
        nonce: Nonce,
        before: u64,
    ) -> Result<Option<u64>, StoreRequestError> {
        let subject = self.store.names().task(partition);
        let newest = self.store.last_of_leader(partition, &subject).await?;
        let newest = newest.map_or(0, |newest| newest.sequence);
        let mut next = before + 1;
        while next <= newest {
            let messages = self.store.read_from(partition, next).await?;
            let Some(last) = messages.last() else {
                return Err(StoreRequestError::Unanswered("a server is behind".to_owned()));
            };
            next = last.sequence + 1;
            let mut tasks = messages.iter().filter(|message| message.subject == subject);
            let found = tasks.find(|message| {
                let task = message::read_task(TaskId(0), &message.payload, &mut Nodes::default());
                task.is_ok_and(|task| task.nonce == nonce)
            });
            if let Some(found) = found {
                return Ok(Some(found.sequence));
            }
        }
        Ok(None)
    }

    /// A task is stored. If it is a write of this process without an outcome, it gets one.
    pub(super) fn stored(&self, nonce: Nonce, sequence: u64, found: Found) {
        let Some(write) = self.on_their_way.lock().remove(&nonce) else { return };
        let OnItsWay {
            partition,
            mut task,
            message,
            chunks,
            idempotency,
            is_repeat,
            begun,
            reply,
            ..
        } = write;
        let id = task_id(sequence, partition);
        task.id = id;
        self.store.figures().published(begun.elapsed());
        let Some(standing) = self.partitions.get(usize::from(partition.0)) else { return };
        standing.note_stored(sequence);
        let arrives = standing.arrives(sequence);
        if !arrives && let Some(key) = &idempotency {
            self.bind(key.clone(), task.consistency, partition, nonce, id);
        }
        if is_repeat && found == (Found::Acked { is_duplicate: true }) {
            let consistency = task.consistency;
            standing.order(PartitionOrder::Hint { sequence });
            let repeated = Repeated { id, consistency, answer: None };
            let Some(key) = idempotency else { return reply(Ok(Appended::Repeated(repeated))) };
            let deadline = begun + self.store.settings().timeout;
            return self.answer_repeat(key, repeated, reply, deadline);
        }
        if !arrives {
            if let Owner::Other(owner) = &*standing.owner.borrow() {
                // The stored one may differ from that of a repeat.
                let is_own = chunks == 0 && found == (Found::Acked { is_duplicate: false });
                let message = if is_own { message } else { Bytes::new() };
                self.pusher.push(owner.process, id, message);
            }
            self.hint(standing);
            return reply(Ok(Appended::Elsewhere(id)));
        }
        // Before the reply, so that it is known before it can be settled. Its partition handles it
        // later, on this thread.
        if found != Found::InLog {
            let (task, took) = (Arc::new(task), begun.elapsed());
            let awaited_by = None;
            let task = LoggedTask { task, chunks, nonce, idempotency, awaited_by, took };
            standing.order(PartitionOrder::Acked { sequence, task });
        }
        reply(Ok(Appended::New(id)));
    }

    /// Writes the id of a task to its idempotency key. The owner of the task does so, too.
    fn bind(
        &self,
        key: Idempotency,
        consistency: Consistency,
        partition: Partition,
        nonce: Nonce,
        id: TaskId,
    ) {
        let keys = Arc::clone(&self.idempotency);
        tokio::spawn(async move { keys.bind(&key, consistency, partition, nonce.0, id).await });
    }

    /// Tells the owner of a partition up to where tasks are stored, soon: it may lack some of them.
    fn hint(&self, standing: &Arc<Standing>) {
        let Some(gate) = self.gates.get(usize::from(standing.partition.0)) else { return };
        if gate.hints.swap(true, Ordering::SeqCst) {
            return;
        }
        let (gate, standing) = (Arc::clone(gate), Arc::clone(standing));
        let (client, mut closed) = (self.store.client().clone(), self.closed.subscribe());
        let subject = self.store.names().hint(standing.partition);
        tokio::spawn(async move {
            let mut sent = 0;
            loop {
                while standing.stored() > sent {
                    let _ = timeout(HINT_EVERY, closed.wait_for(|is_closed| *is_closed)).await;
                    sent = standing.stored();
                    drop(client.publish(subject.clone(), sent.to_string().into()).await);
                }
                gate.hints.store(false, Ordering::SeqCst);
                // A write may have come between the two.
                if standing.stored() <= sent || gate.hints.swap(true, Ordering::SeqCst) {
                    break;
                }
            }
        });
    }

    /// Answers the repeat of a write. One of a strong write waits until its owner has decided it.
    fn answer_repeat(
        &self,
        key: Idempotency,
        mut repeated: Repeated,
        reply: AppendReply,
        deadline: Instant,
    ) {
        if repeated.consistency == Consistency::Eventual || repeated.answer.is_some() {
            return reply(Ok(Appended::Repeated(repeated)));
        }
        let keys = Arc::clone(&self.idempotency);
        // Beside the writes of its key, which do not wait for it.
        tokio::spawn(async move {
            // Also by this process: it may not have read the write yet.
            loop {
                let answer = timeout_at(deadline, keys.answer(&key, repeated.id)).await;
                if let Some(answer) = answer.ok().flatten() {
                    repeated.answer = Some(answer);
                    break;
                }
                if Instant::now() >= deadline {
                    return reply(Ok(Appended::Elsewhere(repeated.id)));
                }
                sleep(PAUSE).await;
            }
            reply(Ok(Appended::Repeated(repeated)));
        });
    }

    /// A strong write waits until an instance owns its partition.
    async fn wait_for_owner(
        &self,
        standing: &Standing,
        deadline: Instant,
    ) -> Result<(), AppendError> {
        let mut owner = standing.owner.subscribe();
        let known = owner.wait_for(|owner| *owner != Owner::Unknown);
        match timeout_at(deadline, known).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(AppendError::NoOwner),
        }
    }

    /// Refuses new writes, and waits until all others have an outcome.
    pub(super) async fn close(&self) {
        self.closed.send_replace(true);
        while self.open.load(Ordering::Relaxed) > 0 {
            sleep(Duration::from_millis(5)).await;
        }
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}
