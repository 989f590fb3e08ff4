//! `replicator export` and `import` of a cluster that no instance serves. `src/store/lines.rs` has the
//! format.
//!
//! An export keeps the ids. An import gives new ones, above all of the store that was exported, in the
//! same order: the streams number the tasks. It makes a new cluster, whose record tells that it is not
//! complete until the last line is there. Instances do not serve such a cluster, and an import that
//! was interrupted starts again from nothing.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, Write};
use std::time::Duration;

use thiserror::Error;
use tokio::runtime::Runtime;
use tokio::time::sleep;

use super::checkpoint::Checkpoint;
use super::connect::{ConnectError, JetStreamSettings, Store};
use super::idempotency::ClusterKeys;
use super::lookup::ReadFailure;
use super::message::{self, Nonce, TaskMessages};
use super::meta;
use super::names::task_id;
use super::protocol::{Outgoing, StoreRequestError};
use super::reader::PartitionRecovery;
use super::rows::{self, Put};
use super::streams::Purpose;
use crate::store::lines::format::{self, EndLine, HeadLine};
use crate::store::lines::{self, Exported, ImportTarget, Imported, VERSION, WrongLine, write_line};
use crate::store::records::{IdempotencyRow, ReplicaRow};
use crate::task::{Consistency, Idempotency, Node, Partition, Progress, Task, TaskId};

/// Values that are read at the same time.
const READS_AT_ONCE: usize = 32;

/// Tasks and bytes that are stored at once.
const GROUP_TASKS: usize = 200;
const GROUP_BYTES: usize = 8 << 20;

/// An export reads again what a server does not have yet.
const READ_AGAIN: Duration = Duration::from_millis(100);

/// So often in a row. Then no server has the last messages.
const MAX_EMPTY_READS: u32 = 100;

#[derive(Debug, Error)]
pub enum TransferError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error(transparent)]
    Input(#[from] WrongLine),
    #[error(
        "the instance {node:?} serves the cluster {cluster:?} (partition {partition}): stop every instance first"
    )]
    Served { cluster: String, node: String, partition: u16 },
    #[error("the cluster store cannot be read or written: {0}")]
    Unanswered(String),
    #[error("the message {sequence} of {stream} {problem}")]
    Unreadable { stream: String, sequence: u64, problem: String },
    #[error("cannot start the runtime: {0}")]
    Runtime(#[from] std::io::Error),
}

impl From<StoreRequestError> for TransferError {
    fn from(error: StoreRequestError) -> Self {
        Self::Unanswered(error.to_string())
    }
}

fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()
}

/// Writes all unsettled tasks of a cluster to `out`. The inner error is that of `out`.
///
/// # Errors
///
/// An instance owns a partition, or the servers do not answer.
pub fn export(
    settings: &JetStreamSettings,
    out: &mut dyn Write,
) -> Result<std::io::Result<Exported>, TransferError> {
    let runtime = runtime()?;
    let content = runtime.block_on(Content::read(settings))?;
    Ok(content.write(&runtime, out))
}

/// A cluster without the values of its tasks.
struct Content {
    store: Store,
    next_id: TaskId,
    tasks: BTreeMap<TaskId, Vec<Progress>>,
    replicas: BTreeMap<Node, ReplicaRow>,
    keys: Vec<(Box<str>, IdempotencyRow)>,
    problems: Vec<String>,
}

impl Content {
    async fn read(settings: &JetStreamSettings) -> Result<Self, TransferError> {
        let store = Store::open(settings, Purpose::Export).await?;
        let checkpoints = unserved(&store).await?;
        let (next_id, tasks, problems) = (TaskId(0), BTreeMap::new(), Vec::new());
        let replicas = meta::read_all(&store).await?;
        let keys = ClusterKeys::new(&store).read_all().await.map_err(TransferError::Unanswered)?;
        let mut content = Self { store, next_id, tasks, replicas, keys, problems };
        content.keys.sort_by(|a, b| a.0.cmp(&b.0));
        for (partition, checkpoint) in checkpoints {
            content.read_partition(partition, checkpoint.as_ref()).await?;
        }
        Ok(content)
    }

    async fn read_partition(
        &mut self,
        partition: Partition,
        checkpoint: Option<&Checkpoint>,
    ) -> Result<(), TransferError> {
        let stream = self.store.names().stream(partition);
        let info = self.store.jetstream().get_stream(&stream).await;
        let info = info.map_err(|error| TransferError::Unanswered(error.to_string()))?;
        let state = &info.cached_info().state;
        let (first, last) = (state.first_sequence, state.last_sequence);
        let settled = checkpoint.map(|checkpoint| checkpoint.settled.index()).unwrap_or_default();
        let mut recovery = PartitionRecovery::default();
        let (mut next, mut empty_reads) = (first, 0);
        while next <= last {
            let read = self.store.read_from(partition, next).await?;
            let Some(end) = read.last().map(|stored| stored.sequence) else {
                empty_reads += 1;
                if state.messages == 0 {
                    break;
                }
                if empty_reads > MAX_EMPTY_READS {
                    let problem =
                        format!("no server has the messages {next} to {last} of {stream}");
                    self.problems.push(problem);
                    break;
                }
                sleep(READ_AGAIN).await;
                continue;
            };
            for stored in &read {
                recovery.read(self.store.names(), partition, stored, &settled).map_err(
                    |problem| TransferError::Unreadable {
                        stream: stream.clone(),
                        sequence: stored.sequence,
                        problem: problem.to_string(),
                    },
                )?;
            }
            (next, empty_reads) = (end + 1, 0);
        }
        loop {
            let missing = recovery.missing(&settled);
            if missing.is_empty() {
                break;
            }
            for stored in self.store.read_missing(partition, &missing).await? {
                let read = recovery.read(self.store.names(), partition, &stored, &settled);
                read.map_err(|problem| TransferError::Unreadable {
                    stream: stream.clone(),
                    sequence: stored.sequence,
                    problem: problem.to_string(),
                })?;
            }
            let lost = recovery.looked_for(&missing);
            if lost > 0 {
                let problem = format!("{lost} messages of tasks are missing from {stream}");
                self.problems.push(problem);
            }
        }
        for (sequence, task) in recovery.finish(&settled) {
            match task.task {
                Ok((recovered, _)) => {
                    self.tasks.insert(recovered.header.id, recovered.progress);
                }
                Err(problem) => {
                    let id = task_id(sequence, partition);
                    self.problems.push(format!("the message of task {id} {problem}"));
                }
            }
        }
        let after = task_id(last.max(first) + 1, Partition(0));
        self.next_id = self.next_id.max(after);
        Ok(())
    }

    fn write(mut self, runtime: &Runtime, out: &mut dyn Write) -> std::io::Result<Exported> {
        let expected = (self.tasks.len() + self.problems.len()) as u64;
        let head = HeadLine { export: VERSION, tasks: expected, next_id: self.next_id.0 };
        write_line(out, &head)?;
        let mut written = 0;
        let tasks: Vec<_> = std::mem::take(&mut self.tasks).into_iter().collect();
        for group in tasks.chunks(READS_AT_ONCE) {
            let ids = group.iter().map(|(id, _)| *id).collect();
            let values = runtime.block_on(self.values(ids));
            for ((id, progress), value) in group.iter().zip(values) {
                match value {
                    Ok(Some(task)) => {
                        write_line(out, &format::line(&task, progress))?;
                        written += 1;
                    }
                    Ok(None) => self.problems.push(format!("task {id} is missing")),
                    Err(error) => self.problems.push(format!("task {id}: {error}")),
                }
            }
        }
        for (node, row) in &self.replicas {
            write_line(out, &format::replica_line(node, row))?;
        }
        for (key, row) in &self.keys {
            write_line(out, &format::key_line(key, row))?;
        }
        let end = EndLine {
            end: 1,
            tasks: written,
            skipped: expected - written,
            replicas: self.replicas.len() as u64,
            idempotency_keys: self.keys.len() as u64,
        };
        write_line(out, &end)?;
        out.flush()?;
        Ok(Exported { tasks: written, problems: self.problems })
    }

    async fn values(&self, ids: Vec<TaskId>) -> Vec<Result<Option<Task>, ReadFailure>> {
        let reads = ids.into_iter().map(|id| {
            let store = self.store.clone();
            tokio::spawn(async move { store.read_task(id).await })
        });
        let mut values = Vec::new();
        for read in reads.collect::<Vec<_>>() {
            values.push(read.await.unwrap_or(Ok(None)));
        }
        values
    }
}

/// The last checkpoint of each partition, if none of them is being written any more.
async fn unserved(store: &Store) -> Result<Vec<(Partition, Option<Checkpoint>)>, TransferError> {
    let before = last_checkpoints(store).await?;
    let is_released = |last: &Option<(u64, Checkpoint)>| {
        last.as_ref().is_none_or(|(_, checkpoint)| checkpoint.is_released)
    };
    if !before.iter().all(|(_, last)| is_released(last)) {
        // An owner writes one at least every fifth of a lease.
        sleep(store.settings().lease * 2).await;
    }
    let after = last_checkpoints(store).await?;
    for ((partition, before), (_, after)) in before.iter().zip(&after) {
        let before = before.as_ref().map(|(sequence, _)| *sequence);
        if let Some((sequence, checkpoint)) = after
            && before != Some(*sequence)
        {
            return Err(TransferError::Served {
                cluster: store.settings().cluster.to_string(),
                node: checkpoint.writer.node.clone(),
                partition: partition.0,
            });
        }
    }
    Ok(after
        .into_iter()
        .map(|(partition, last)| (partition, last.map(|(_, checkpoint)| checkpoint)))
        .collect())
}

async fn last_checkpoints(
    store: &Store,
) -> Result<Vec<(Partition, Option<(u64, Checkpoint)>)>, TransferError> {
    let mut found = Vec::new();
    for partition in store.record().partitions() {
        let subject = store.names().checkpoint(partition);
        let last = store.last_of_leader(partition, &subject).await?;
        let checkpoint = last.map(|stored| {
            let read = message::read_checkpoint(&stored.payload);
            read.map(|checkpoint| (stored.sequence, checkpoint)).map_err(|problem| {
                TransferError::Unreadable {
                    stream: store.names().stream(partition),
                    sequence: stored.sequence,
                    problem: problem.to_string(),
                }
            })
        });
        found.push((partition, checkpoint.transpose()?));
    }
    Ok(found)
}

/// Makes a new cluster from an export.
///
/// # Errors
///
/// The cluster exists, a line is wrong, or the servers do not answer. Nothing can be served then.
pub fn import(
    settings: &JetStreamSettings,
    input: &mut dyn BufRead,
) -> Result<Imported, TransferError> {
    let runtime = runtime()?;
    let mut target = ClusterTarget { runtime, settings: settings.clone(), filling: None };
    lines::import(input, &mut target)
}

struct ClusterTarget {
    runtime: Runtime,
    settings: JetStreamSettings,
    /// From the first line on.
    filling: Option<Filling>,
}

struct Filling {
    store: Store,
    /// Tasks that are not stored yet.
    groups: HashMap<Partition, ImportGroup>,
    /// New ids by the old ones.
    ids: HashMap<TaskId, (TaskId, Consistency)>,
}

#[derive(Default)]
struct ImportGroup {
    tasks: Vec<(Task, Vec<Progress>)>,
    bytes: usize,
}

impl ClusterTarget {
    fn run<T>(
        &mut self,
        step: impl AsyncFnOnce(&mut Filling) -> Result<T, TransferError>,
    ) -> Result<T, TransferError> {
        let Some(filling) = &mut self.filling else {
            return Err(TransferError::Unanswered("there is no connection".to_owned()));
        };
        self.runtime.block_on(step(filling))
    }
}

impl ImportTarget for ClusterTarget {
    type Error = TransferError;

    fn begin(&mut self, next_id: TaskId) -> Result<(), TransferError> {
        let ids_after = self.settings.ids_after.max(next_id);
        let settings = JetStreamSettings { ids_after, ..self.settings.clone() };
        let store = self.runtime.block_on(Store::open(&settings, Purpose::Import))?;
        let (groups, ids) = (HashMap::new(), HashMap::new());
        self.filling = Some(Filling { store, groups, ids });
        Ok(())
    }

    fn task(&mut self, task: Task, progress: Vec<Progress>) -> Result<(), TransferError> {
        self.run(async |filling| filling.add(task, progress).await)
    }

    fn replica(&mut self, node: Node, row: ReplicaRow) -> Result<(), TransferError> {
        self.run(async |filling| meta::restore(&filling.store, &node, &row).await)
    }

    fn key(&mut self, key: Box<str>, row: IdempotencyRow) -> Result<(), TransferError> {
        self.run(async |filling| {
            // The keys follow the tasks.
            filling.flush_all().await?;
            let task = filling.ids.get(&row.task).copied();
            let idempotency = Idempotency { key, fingerprint: row.fingerprint };
            let stored = ClusterKeys::new(&filling.store).restore(&idempotency, &row, task).await;
            stored.map_err(TransferError::Unanswered)
        })
    }

    fn end(&mut self, _: TaskId) -> Result<(), TransferError> {
        self.run(async |filling| {
            filling.flush_all().await?;
            filling.complete().await
        })
    }
}

impl Filling {
    async fn add(&mut self, task: Task, progress: Vec<Progress>) -> Result<(), TransferError> {
        let partition = self.store.record().partition_of(&task.key);
        let bytes = task.value.len() + task.key.len();
        // The chunks of the largest value fill a batch.
        if self.groups.get(&partition).is_some_and(|group| group.bytes + bytes > GROUP_BYTES) {
            self.flush(partition).await?;
        }
        let group = self.groups.entry(partition).or_default();
        group.bytes += bytes;
        group.tasks.push((task, progress));
        if group.tasks.len() >= GROUP_TASKS || group.bytes >= GROUP_BYTES {
            self.flush(partition).await?;
        }
        Ok(())
    }

    async fn flush_all(&mut self) -> Result<(), TransferError> {
        let partitions: Vec<_> = self.groups.keys().copied().collect();
        for partition in partitions {
            self.flush(partition).await?;
        }
        Ok(())
    }

    /// Stores the tasks of a group in their order, then their progress.
    async fn flush(&mut self, partition: Partition) -> Result<(), TransferError> {
        let Some(ImportGroup { tasks, .. }) = self.groups.remove(&partition) else { return Ok(()) };
        let timeout = self.store.settings().timeout;
        let names = self.store.names().clone();
        let mut messages = Vec::new();
        // The place of each task behind the first message.
        let mut places = Vec::new();
        for (task, _) in &tasks {
            let encoded = TaskMessages::of(task, None, Nonce::random(), None)
                .map_err(|error| TransferError::Unanswered(error.to_string()))?;
            let chunk = |chunk| Outgoing::new(names.chunk(partition), chunk);
            messages.extend(encoded.chunks.into_iter().map(chunk));
            places.push(messages.len() as u64);
            messages.push(Outgoing::new(names.task(partition), encoded.task));
        }
        let count = messages.len() as u64;
        if count == 0 {
            return Ok(());
        }
        let last = self.store.publish_batch(messages, timeout).await?.sequence;
        let first = last + 1 - count;
        for ((task, progress), place) in tasks.iter().zip(places) {
            let sequence = first + place;
            self.ids.insert(task.id, (task_id(sequence, partition), task.consistency));
            if progress.iter().any(|entry| *entry != Progress::Untouched) {
                let payload = message::progress(progress)
                    .map_err(|error| TransferError::Unanswered(error.to_string()))?;
                let subject = names.progress(partition, sequence);
                self.store.publish(Outgoing::new(subject, payload).replacing(), timeout).await?;
            }
        }
        Ok(())
    }

    /// Marks the cluster as complete.
    async fn complete(&self) -> Result<(), TransferError> {
        let mut record = self.store.record().clone();
        record.importing = false;
        let payload = serde_json::to_vec(&record)
            .map_err(|error| TransferError::Unanswered(error.to_string()))?;
        let (client, timeout) = (self.store.client(), self.store.settings().timeout);
        let subject = self.store.names().record();
        match rows::put(client, subject, payload.into(), None, None, timeout).await {
            Put::Stored(_) => Ok(()),
            Put::Failed(problem) => Err(TransferError::Unanswered(problem)),
            Put::Refused | Put::Full | Put::Unanswered => {
                Err(TransferError::Unanswered("the record is not stored".to_owned()))
            }
        }
    }
}
