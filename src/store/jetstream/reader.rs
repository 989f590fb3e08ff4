//! Puts the messages of an owned partition into their order: those that this process has stored, and
//! those that it reads from the log. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;
use tokio::time::sleep;

use super::connect::Store;
use super::message::{self, MessageError, Nonce, StoredTask};
use super::names::{StreamNames, place_of, task_id};
use super::protocol::{LogMessage, StoreRequestError};
use crate::store::payload::Nodes;
use crate::store::records::{Header, Recovered};
use crate::task::{Idempotency, Partition, Progress, Task, TaskId};

/// Before a message is missing.
const LEADER_READS: usize = 3;
const LEADER_PAUSE: Duration = Duration::from_millis(100);

/// The messages behind a sequence, each once and in order.
#[derive(Debug)]
pub(super) struct Reader {
    next: u64,
    /// Messages up to it are stored.
    stored: u64,
    /// Messages of this process, by the first sequence of each group.
    ahead: BTreeMap<u64, Ahead>,
    /// The chunks right before `next`.
    chunks: Vec<Bytes>,
    nodes: Nodes,
}

#[derive(Debug)]
enum Ahead {
    Task {
        sequence: u64,
        task: LoggedTask,
    },
    /// Up to this sequence there is no task.
    Other {
        last: u64,
    },
}

/// A task and what its message says of it.
#[derive(Clone, Debug)]
pub(super) struct LoggedTask {
    pub(super) task: Arc<Task>,
    /// Messages with its value, right before it.
    pub(super) chunks: u32,
    pub(super) nonce: Nonce,
    pub(super) idempotency: Option<Idempotency>,
    /// The process that waits for the answer of a strong write.
    pub(super) awaited_by: Option<u64>,
    /// How long it took to store it; zero if another process did.
    pub(super) took: Duration,
}

/// A task, in its turn.
#[derive(Debug)]
pub(super) struct LogTurn {
    pub(super) sequence: u64,
    pub(super) task: Result<LoggedTask, MessageError>,
}

impl Reader {
    pub(super) fn after(sequence: u64) -> Self {
        Self {
            next: sequence + 1,
            stored: sequence,
            ahead: BTreeMap::new(),
            chunks: Vec::new(),
            nodes: Nodes::default(),
        }
    }

    /// The first sequence that was not read.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Whether there are messages that only the log has.
    pub(super) fn has_gap(&self) -> bool {
        let reached = self.ahead.first_key_value().map_or(self.stored + 1, |(first, _)| *first);
        self.next < reached
    }

    pub(super) fn note_stored(&mut self, sequence: u64) {
        self.stored = self.stored.max(sequence);
    }

    pub(super) fn acked(&mut self, sequence: u64, task: LoggedTask) {
        self.note_stored(sequence);
        let first = sequence - u64::from(task.chunks);
        self.ahead.insert(first, Ahead::Task { sequence, task });
    }

    /// This process has stored messages that are no tasks.
    pub(super) fn wrote(&mut self, first: u64, last: u64) {
        self.note_stored(last);
        self.ahead.insert(first, Ahead::Other { last });
    }

    /// Skips a message of the log. Returns false if it was read already.
    pub(super) fn pass(&mut self, sequence: u64) -> bool {
        let is_new = sequence >= self.next;
        if is_new {
            self.next = sequence + 1;
            self.note_stored(sequence);
        }
        is_new
    }

    /// The next task that this process has stored, if its turn has come.
    pub(super) fn advance(&mut self) -> Option<LogTurn> {
        while let Some(entry) = self.ahead.first_entry() {
            if *entry.key() > self.next {
                return None;
            }
            let (first, ahead) = entry.remove_entry();
            let (Ahead::Task { sequence: last, .. } | Ahead::Other { last }) = ahead;
            // Otherwise it was read from the log.
            let is_next = first == self.next;
            if last < self.next || (!is_next && matches!(ahead, Ahead::Task { .. })) {
                continue;
            }
            self.next = last + 1;
            self.chunks.clear();
            if let Ahead::Task { sequence, task } = ahead {
                return Some(LogTurn { sequence, task: Ok(task) });
            }
        }
        None
    }

    /// A message of the log. They come in order.
    pub(super) fn read(
        &mut self,
        names: &StreamNames,
        partition: Partition,
        stored: LogMessage,
    ) -> Option<LogTurn> {
        let LogMessage { sequence, subject, payload } = stored;
        if sequence < self.next {
            return None;
        }
        self.note_stored(sequence);
        // A sequence that is skipped does not exist.
        if sequence > self.next {
            self.chunks.clear();
        }
        self.next = sequence + 1;
        if subject == names.chunk(partition) {
            self.chunks.push(payload);
            return None;
        }
        let chunks = std::mem::take(&mut self.chunks);
        if subject != names.task(partition) {
            return None;
        }
        let id = task_id(sequence, partition);
        let read = message::read_task(id, &payload, &mut self.nodes);
        let task = read.and_then(|task| logged(task, &chunks));
        Some(LogTurn { sequence, task })
    }
}

/// Takes the value from the last of these chunks, if it is not in the task's own message.
fn logged(task: StoredTask, chunks: &[Bytes]) -> Result<LoggedTask, MessageError> {
    let (count, nonce, idempotency) = (task.chunks, task.nonce, task.idempotency.clone());
    let awaited_by = task.awaited_by;
    let task = task.whole().or_else(|task| {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let start = chunks.len().checked_sub(count).ok_or(MessageError::Damaged)?;
        task.with_chunks(chunks.get(start..).unwrap_or_default())
    });
    let took = Duration::ZERO;
    let task = Arc::new(task?);
    Ok(LoggedTask { task, chunks: count, nonce, idempotency, awaited_by, took })
}

/// The unsettled tasks of a claimed partition, while they are read.
#[derive(Debug, Default)]
pub(super) struct PartitionRecovery {
    tasks: Vec<RecoveredTask>,
    progress: BTreeMap<u64, Vec<Progress>>,
    nodes: Nodes,
}

/// What the message of a recovered task says besides.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecoveredHead {
    pub(super) chunks: u32,
    pub(super) nonce: Nonce,
    pub(super) awaited_by: Option<u64>,
}

#[derive(Debug)]
pub(super) struct RecoveredTask {
    pub(super) sequence: u64,
    pub(super) task: Result<(Recovered, RecoveredHead), MessageError>,
}

impl PartitionRecovery {
    /// Takes a message of the log, unless it is settled. They come in order. Returns the nonce of a task.
    pub(super) fn read(
        &mut self,
        names: &StreamNames,
        partition: Partition,
        stored: &LogMessage,
        is_settled: impl Fn(u64) -> bool,
    ) -> Result<Option<Nonce>, MessageError> {
        let LogMessage { sequence, subject, payload } = stored;
        if *subject == names.task(partition) {
            let id = task_id(*sequence, partition);
            let read = message::read_task(id, payload, &mut self.nodes);
            if let Err(error @ MessageError::Version(_)) = read {
                return Err(error);
            }
            let nonce = read.as_ref().ok().map(|task| task.nonce);
            if is_settled(*sequence) {
                return Ok(nonce);
            }
            let task = read.map(|task| {
                let StoredTask { header, idempotency, nonce, chunks, awaited_by, .. } = task;
                let is_awaited = awaited_by.is_some();
                let progress = vec![Progress::Untouched; header.replicas.len()];
                let recovered = Recovered { header, idempotency, progress, is_awaited };
                (recovered, RecoveredHead { chunks, nonce, awaited_by })
            });
            self.tasks.push(RecoveredTask { sequence: *sequence, task });
            return Ok(nonce);
        } else if let Some(of) = names.task_of_progress(partition, subject)
            && !is_settled(of)
        {
            let progress = message::read_progress(payload)?;
            self.progress.insert(of, progress);
        }
        Ok(None)
    }

    /// All of them, with their last progress.
    pub(super) fn finish(self) -> Vec<RecoveredTask> {
        let Self { mut tasks, mut progress, .. } = self;
        for RecoveredTask { sequence, task } in &mut tasks {
            let saved = progress.remove(sequence);
            if let (Ok((task, ..)), Some(saved)) = (task, saved)
                && task.progress.len() == saved.len()
            {
                task.progress = saved;
            }
        }
        tasks
    }
}

impl Store {
    /// Reads a task with its value, as the leader has it if no other server does.
    pub(super) async fn read_task(&self, id: TaskId) -> Result<Option<Task>, ReadFailure> {
        let (partition, sequence) = place_of(id);
        let found = self.find(partition, sequence).await?;
        let Some(found) = found.filter(|found| found.subject == self.names().task(partition))
        else {
            return Ok(None);
        };
        let task = message::read_task(id, &found.payload, &mut Nodes::default())?;
        let count = task.chunks;
        match task.whole() {
            Ok(task) => Ok(Some(task)),
            Err(task) => {
                let first = sequence - u64::from(count);
                let count = usize::try_from(count).unwrap_or(usize::MAX);
                let mut chunks = Vec::new();
                while chunks.len() < count {
                    let next = first + chunks.len() as u64;
                    let read = self.read_batch(partition, next, count - chunks.len()).await?;
                    if read.is_empty() || read.first().is_some_and(|read| read.sequence != next) {
                        return Err(MessageError::Damaged.into());
                    }
                    chunks.extend(read.into_iter().map(|read| read.payload));
                }
                Ok(Some(task.with_chunks(&chunks)?))
            }
        }
    }

    /// Reads a task without its value.
    pub(super) async fn read_header(&self, id: TaskId) -> Result<Option<Header>, ReadFailure> {
        let (partition, sequence) = place_of(id);
        let found = self.find(partition, sequence).await?;
        let found = found.filter(|found| found.subject == self.names().task(partition));
        let read =
            |found: LogMessage| message::read_task(id, &found.payload, &mut Nodes::default());
        Ok(found.map(read).transpose()?.map(|task| task.header))
    }

    async fn find(
        &self,
        partition: Partition,
        sequence: u64,
    ) -> Result<Option<LogMessage>, ReadFailure> {
        let read = self.read_batch(partition, sequence, 1).await.unwrap_or_default();
        match read.into_iter().next().filter(|read| read.sequence == sequence) {
            Some(found) => Ok(Some(found)),
            None => self.find_at_leader(partition, sequence).await,
        }
    }

    /// A former leader may lack the newest messages, so it is believed only if it says so again.
    async fn find_at_leader(
        &self,
        partition: Partition,
        sequence: u64,
    ) -> Result<Option<LogMessage>, ReadFailure> {
        for _ in 0..LEADER_READS {
            if let Some(found) = self.of_leader(partition, sequence).await? {
                return Ok(Some(found));
            }
            sleep(LEADER_PAUSE).await;
        }
        Ok(None)
    }
}

/// Why a task cannot be read.
#[derive(Debug, Error)]
pub(super) enum ReadFailure {
    #[error("the message {0}")]
    Message(#[from] MessageError),
    #[error("the store does not answer: {0}")]
    Unanswered(#[from] StoreRequestError),
}
