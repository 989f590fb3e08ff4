//! The journal of the cluster store. Its calls only pass orders on to the tasks of the store, which run
//! on a thread of their own.

#![expect(clippy::disallowed_methods, reason = "waits, which the clock of the loop has no part in")]

use std::fmt;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc as blocking;
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::runtime::{Builder, Handle};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep, timeout};
use tracing::debug;

use super::answers;
use super::checkpoint::StoreInstance;
use super::connect::{ConnectError, JetStreamSettings, Store};
use super::idempotency::ClusterKeys;
use super::lookup::ReadFailure;
use super::members::Members;
use super::message::{self, random};
use super::meta::Meta;
use super::names::place_of;
use super::partition::PartitionTask;
use super::peers::Peers;
use super::publish::{Publisher, Submitted};
use super::push;
use super::shared::StoreShared;
use super::sharing::LISTEN;
use super::standing::{PartitionOrder, Standing, TaskSettlement};
use super::status::ClusterStatus;
use crate::lease::Fence;
use crate::store::journal::{
    Append, AppendError, BoxFuture, Journal, KeyState, NoRoom, Notify, Numbered, Reply, Stats,
};
use crate::store::records::{
    CommitError, Header, IdempotencyAnswer, ReadError, RecordCause, ReplicaRow,
};
use crate::task::{
    Idempotency, Moment, Node, Obstacle, Partition, Progress, ReplicaIndex, Task, TaskId,
};

/// How long the last records, and then the last checkpoints, may take at least.
const CLOSE: Duration = Duration::from_secs(10);

/// How long the last hints may take.
const FLUSH: Duration = Duration::from_millis(200);

/// Between two checkpoints of a partition that are read as they pass.
const HEAR_EVERY: Duration = Duration::from_millis(50);

/// How often a read is tried.
const READS: usize = 3;

/// A [`Journal`] on NATS JetStream.
pub struct JetStreamJournal {
    shared: Arc<StoreShared>,
    publisher: Arc<Publisher>,
    meta: Arc<Meta>,
    writes: mpsc::UnboundedSender<Submitted>,
    closed: Arc<AtomicBool>,
    has_ended: Arc<AtomicBool>,
    runtime: Handle,
    /// Ends the thread of the store when it is dropped.
    _running: oneshot::Sender<()>,
}

struct Parts {
    shared: Arc<StoreShared>,
    publisher: Arc<Publisher>,
    meta: Arc<Meta>,
    writes: mpsc::UnboundedSender<Submitted>,
}

impl JetStreamJournal {
    /// Connects, and starts to claim partitions. `notify` gets every event, from now on. Blocks.
    ///
    /// # Errors
    ///
    /// As [`Store::connect`].
    pub fn open(settings: &JetStreamSettings, notify: Notify) -> Result<Self, ConnectError> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| ConnectError::Threads(error.to_string()))?;
        let handle = runtime.handle().clone();
        let settings = settings.clone();
        let (opened, result) = blocking::sync_channel(1);
        let (running, ended) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("store".to_owned()).spawn(move || {
            runtime.block_on(async move {
                // The closed channel reports it if this panics.
                let _ = opened.send(start(&settings, notify).await);
                // Only the drop of the journal ends it.
                let _ = ended.await;
            });
        });
        thread.map_err(|error| ConnectError::Threads(error.to_string()))?;
        let parts = result.recv().map_err(|error| ConnectError::Threads(error.to_string()))??;
        let Parts { shared, publisher, meta, writes } = parts;
        let (closed, has_ended) = Default::default();
        Ok(Self {
            shared,
            publisher,
            meta,
            writes,
            closed,
            has_ended,
            runtime: handle,
            _running: running,
        })
    }

    #[must_use]
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    fn order(&self, partition: Partition, order: PartitionOrder) {
        if let Some(standing) = self.shared.standing(partition) {
            standing.order(order);
        }
    }

    fn settle(&self, id: TaskId, settlement: TaskSettlement) {
        let (partition, sequence) = place_of(id);
        self.order(partition, PartitionOrder::Settle { sequence, settlement });
    }
}

/// Starts the tasks of the store on the runtime of the caller.
async fn start(settings: &JetStreamSettings, notify: Notify) -> Result<Parts, ConnectError> {
    let store = Store::connect(settings).await?;
    let notify: Arc<Mutex<Notify>> = Arc::new(Mutex::new(notify));
    let of_meta = Arc::clone(&notify);
    let pass = move |event| of_meta.lock()(event);
    let meta = Arc::new(Meta::start(&store, pass).await?);
    let keys = Arc::new(ClusterKeys::new(&store));
    let process = u64::from_be_bytes(random());
    let this = StoreInstance { process, node: settings.node_id.clone() };
    let members = Members::start(&store, &this).await;
    let (standings, receivers): (Vec<_>, Vec<_>) =
        store.record().partitions().map(Standing::new).unzip();
    let pass: Notify = Box::new(move |event| notify.lock()(event));
    let shared = StoreShared::new(store.clone(), this, members, standings.clone(), pass);
    let shared = Arc::new(shared);
    answers::listen(Arc::clone(&shared)).await;
    push::listen(Arc::clone(&shared)).await;
    let publisher = Publisher::new(
        store.clone(),
        shared.this.process,
        standings.clone(),
        Arc::clone(&meta),
        Arc::clone(&keys),
    );
    let publisher = Arc::new(publisher);
    for (standing, orders) in standings.iter().zip(receivers) {
        let (shared, publisher) = (Arc::clone(&shared), Arc::clone(&publisher));
        listen(&store, Arc::clone(standing)).await;
        let keys = Arc::clone(&keys);
        let task = PartitionTask::new(shared, publisher, keys, Arc::clone(standing));
        tokio::spawn(task.run(orders));
    }
    tokio::spawn(follow_members(Arc::downgrade(&shared)));
    let (writes, mut submitted) = mpsc::unbounded_channel();
    let publishing = Arc::clone(&publisher);
    tokio::spawn(async move {
        while let Some(write) = submitted.recv().await {
            publishing.submit(write);
        }
    });
    Ok(Parts { shared, publisher, meta, writes })
}

/// Lets the partitions decide again when the members have changed, and once the first ones are known.
async fn follow_members(shared: Weak<StoreShared>) {
    let Some(mut changes) = shared.upgrade().map(|shared| shared.members.changes()) else { return };
    sleep(LISTEN).await;
    loop {
        match shared.upgrade() {
            Some(shared) => shared.wake(),
            None => return,
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Passes on the hints of other processes. A lost one is made up for by the next checkpoint.
async fn listen(store: &Store, standing: Arc<Standing>) {
    let (names, partition) = (store.names(), standing.partition);
    let hinted = Arc::clone(&standing);
    let hint = move |hint: Bytes| {
        let text = std::str::from_utf8(&hint).ok();
        if let Some(sequence) = text.and_then(|text| text.parse().ok()) {
            hinted.order(PartitionOrder::Hint { sequence });
        }
    };
    store.listen(names.hint(partition), hint).await;
    let (heard, mut next) = (Arc::clone(&standing), Instant::now());
    let checkpoint = move |checkpoint: Bytes| {
        if next <= Instant::now() && !heard.is_owned() {
            next = Instant::now() + HEAR_EVERY;
            hear(&heard, &checkpoint);
        }
    };
    store.listen(names.checkpoint(partition), checkpoint).await;
    let news = move |_| standing.order(PartitionOrder::News);
    store.listen(names.released(partition), news).await;
}

/// Takes the levels from a checkpoint that is on its way to the servers. It may never be stored, so it
/// is no proof of who owns the partition.
fn hear(standing: &Standing, payload: &Bytes) {
    let Ok(checkpoint) = message::read_checkpoint(payload) else { return };
    standing.set_levels(checkpoint.levels);
    if !standing.is_owned_by(&checkpoint.writer) {
        standing.order(PartitionOrder::News);
    }
}

impl Journal for JetStreamJournal {
    fn append(&self, writes: Vec<Append>) -> Vec<Option<Numbered>> {
        let deadline = Instant::now() + self.store().settings().timeout;
        let numbered = writes.iter().map(|_| None).collect();
        for append in writes {
            if self.is_closed() {
                (append.reply)(Err(AppendError::Store(CommitError::Closed)));
                continue;
            }
            let submitted = self.writes.send(Submitted { append, deadline });
            if let Err(mpsc::error::SendError(Submitted { append, .. })) = submitted {
                (append.reply)(Err(AppendError::Store(CommitError::Closed)));
            }
        }
        numbered
    }

    fn save(&self, id: TaskId, progress: Vec<Progress>) {
        self.settle(id, TaskSettlement::Save(progress));
    }

    fn remove(&self, id: TaskId) {
        self.settle(id, TaskSettlement::Remove);
    }

    fn set_replica(&self, node: Node, row: Option<ReplicaRow>, cause: RecordCause) {
        self.meta.set_replica(node, row, cause);
    }

    fn key(&self, _: &Idempotency) -> KeyState {
        // Only the servers know. The append decides.
        KeyState::New
    }

    fn conclude(
        &self,
        id: TaskId,
        answer: IdempotencyAnswer,
        obstacles: &[(ReplicaIndex, Obstacle)],
    ) {
        let (partition, sequence) = place_of(id);
        let obstacles = obstacles.to_vec();
        self.order(partition, PartitionOrder::Conclude { sequence, answer, obstacles });
    }

    fn tick(&self, _: Moment) {
        // The servers remove expired keys.
    }

    fn sync(&self, reply: Reply) {
        if self.is_closed() {
            return reply(Err(CommitError::Closed));
        }
        let (meta, partitions) = (Arc::clone(&self.meta), self.shared.partitions.clone());
        let mut syncs = Vec::new();
        for standing in partitions {
            let (synced, result) = oneshot::channel();
            // The caller may be gone.
            let reply = move |result| _ = synced.send(result);
            standing.order(PartitionOrder::Sync(Box::new(reply)));
            syncs.push(result);
        }
        let patience = self.store().settings().timeout;
        self.runtime.spawn(async move {
            let all = async {
                meta.written().await?;
                for sync in syncs {
                    sync.await.unwrap_or(Err(CommitError::Closed))?;
                }
                Ok(())
            };
            reply(timeout(patience, all).await.unwrap_or(Err(CommitError::Stalled)));
        });
    }

    fn sync_replicas(&self, reply: Reply) {
        if self.is_closed() {
            return reply(Err(CommitError::Closed));
        }
        let (meta, patience) = (Arc::clone(&self.meta), self.store().settings().timeout);
        self.runtime.spawn(async move {
            let written = timeout(patience, meta.written()).await;
            reply(written.unwrap_or(Err(CommitError::Stalled)));
        });
    }

    fn read(&self, id: TaskId) -> BoxFuture<'static, Result<Option<Task>, ReadError>> {
        let store = self.store().clone();
        let until = Instant::now() + store.settings().timeout;
        Box::pin(async move {
            for _ in 0..READS {
                match store.read_task(id).await {
                    Ok(task) => return Ok(task),
                    Err(ReadFailure::Message(error)) => {
                        return Err(ReadError::Damaged(format!(
                            "the message of task {id} {error}"
                        )));
                    }
                    Err(error) => debug!(task = %id, %error, "a task is read again"),
                }
                // It holds a worker. The attempt is made again later.
                if Instant::now() >= until {
                    break;
                }
            }
            Err(ReadError::Interrupted)
        })
    }

    fn headers(
        &self,
        ids: Vec<TaskId>,
    ) -> BoxFuture<'static, Result<Vec<Option<Header>>, ReadError>> {
        let store = self.store().clone();
        Box::pin(async move {
            let mut headers = Vec::with_capacity(ids.len());
            for ids in ids.chunks(READS_AT_ONCE) {
                let reads = ids.iter().map(|&id| {
                    let store = store.clone();
                    tokio::spawn(async move { store.read_header(id).await })
                });
                for read in reads.collect::<Vec<_>>() {
                    let read = read.await.map_err(|_| ReadError::Interrupted)?;
                    headers.push(match read {
                        Ok(header) => header,
                        Err(ReadFailure::Message(_)) => None,
                        Err(ReadFailure::Unanswered(_)) => return Err(ReadError::Interrupted),
                    });
                }
            }
            Ok(headers)
        })
    }

    fn fence(&self, id: TaskId) -> Fence {
        let (partition, _) = place_of(id);
        self.shared.standing(partition).map_or(Fence::Lost, |standing| standing.fence())
    }

    fn holds(&self, partition: Partition) -> bool {
        self.shared.standing(partition).is_some_and(|standing| standing.fence().is_held())
    }

    fn partition_of(&self, id: TaskId) -> Partition {
        place_of(id).0
    }

    fn quiet(&self, partition: Partition) {
        self.order(partition, PartitionOrder::Quiet);
    }

    fn given_up(&self, partition: Partition) {
        self.order(partition, PartitionOrder::GivenUp);
    }

    fn room(&self, bytes: u64) -> Result<(), NoRoom> {
        let settings = self.store().settings();
        let is_owner = self.shared.partitions.iter().all(|standing| standing.is_owned());
        // The engine of an owner of everything knows the levels exactly.
        if is_owner {
            return Ok(());
        }
        let (open, open_bytes) = self.publisher.open_bytes();
        let levels = self.shared.levels();
        if levels.queued.saturating_add(open) >= settings.queue_capacity as u64 {
            let capacity = settings.queue_capacity;
            return Err(NoRoom(format!("the queue is full (--queue-capacity {capacity})")));
        }
        let bytes = levels.queued_bytes.saturating_add(open_bytes).saturating_add(bytes);
        if bytes > settings.queue_max_bytes {
            let limit = settings.queue_max_bytes;
            return Err(NoRoom(format!(
                "the queued tasks leave no room for this write (--queue-max-bytes {limit})"
            )));
        }
        Ok(())
    }

    fn stats(&self) -> Stats {
        let mut live = 0;
        for standing in &self.shared.partitions {
            let levels = standing.levels();
            live += levels.queued_bytes + levels.dead_bytes;
        }
        Stats {
            file_bytes: live,
            live_bytes: live,
            is_full: self.room(0).is_err(),
            ..Stats::default()
        }
    }

    /// The wait until some partition takes writes is one operation: its leader answers, or it has an
    /// owner, whose checkpoints are stored.
    fn in_progress(&self) -> Option<u64> {
        let has_ended = self.has_ended.load(Ordering::Acquire);
        let takes_writes = |status: ClusterStatus| {
            !status.logs.is_empty() || status.owners().any(|owner| owner.is_some())
        };
        (!has_ended && !self.cluster().is_some_and(takes_writes)).then_some(0)
    }

    fn processes(&self) -> NonZeroU32 {
        let live = u32::try_from(self.shared.members.live().len()).unwrap_or(u32::MAX);
        NonZeroU32::new(live).unwrap_or(NonZeroU32::MIN)
    }

    fn cluster(&self) -> Option<ClusterStatus> {
        let (mut status, members) = (self.store().status(), self.shared.members.live());
        let lease_of = |partition| match self.shared.standing(partition)?.fence() {
            Fence::Held { lease, .. } => Some(lease.remaining()),
            Fence::Open | Fence::Lost => None,
        };
        for (partition, owner) in &mut status.partitions {
            let lease = lease_of(*partition);
            status.lease = status.lease.into_iter().chain(lease).min();
            // Nothing is delivered without a lease.
            let is_held = lease.is_some_and(|lease| !lease.is_zero());
            *owner = owner.take().filter(|owner| !owner.is_me || is_held);
        }
        Some(ClusterStatus { members, ..status })
    }

    fn peers(&self) -> Option<Peers> {
        Some(Peers::new(Arc::clone(&self.shared)))
    }

    fn report_caught_up(&self, partition: Partition) {
        self.order(partition, PartitionOrder::ReportCaughtUp);
    }

    fn close(&self) -> BoxFuture<'static, Result<(), CommitError>> {
        let first = !self.closed.swap(true, Ordering::AcqRel);
        let (publisher, meta) = (Arc::clone(&self.publisher), Arc::clone(&self.meta));
        let partitions = self.shared.partitions.clone();
        let has_ended = Arc::clone(&self.has_ended);
        let members = Arc::clone(&self.shared.members);
        let patience = self.store().settings().timeout.max(CLOSE);
        let closed = self.runtime.spawn(async move {
            if !first {
                return Ok(());
            }
            members.leave().await;
            publisher.close().await;
            // A stream without a leader must not keep the partitions of the others, nor the process.
            let written = timeout(patience, meta.written()).await;
            let mut ends = Vec::new();
            for standing in partitions {
                let (closed, end) = oneshot::channel();
                standing.order(PartitionOrder::Close(closed));
                ends.push(end);
            }
            // A task that has ended drops its end.
            let ended = timeout(patience, join_all(ends)).await;
            let result = written.unwrap_or(Err(CommitError::Stalled));
            let result = result.and(ended.map(drop).map_err(|_| CommitError::Stalled));
            // The hints of the releases.
            let _ = timeout(FLUSH, members.flush()).await;
            has_ended.store(true, Ordering::Release);
            result
        });
        Box::pin(async move { closed.await.unwrap_or(Err(CommitError::Closed)) })
    }
}

/// Headers that are read at the same time.
const READS_AT_ONCE: usize = 32;

impl fmt::Debug for JetStreamJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JetStreamJournal").field("shared", &self.shared).finish_non_exhaustive()
    }
}
