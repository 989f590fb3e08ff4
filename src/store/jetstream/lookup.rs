//! Looks for messages of the log on all servers: one of them may lack some.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use thiserror::Error;
use tokio::time::{sleep, timeout};

use super::connect::Store;
use super::message::{self, MessageError, StoredTask};
use super::names::place_of;
use super::protocol::{LogMessage, StoreRequestError};
use crate::store::payload::Nodes;
use crate::store::records::Header;
use crate::task::{Partition, Task, TaskId};

/// Before a message is missing.
const LEADER_READS: usize = 3;
const LEADER_PAUSE: Duration = Duration::from_millis(100);

/// Any server of three may answer: after this number of reads of a message, one that has it did. Then the
/// leader is asked.
const NEAR_READS: usize = 20;

const LEADER_READS_AT_ONCE: usize = 32;

/// A task in the log: its message, and where its chunks begin.
struct FoundTask {
    task: StoredTask,
    chunks: u64,
}

impl Store {
    /// Reads a task with its value, as the leader has it if no other server does.
    pub(super) async fn read_task(&self, id: TaskId) -> Result<Option<Task>, ReadFailure> {
        for _ in 0..LEADER_READS {
            let Some(FoundTask { task, chunks }) = self.find_task(id).await? else {
                return Ok(None);
            };
            let count = task.chunks;
            let task = match task.whole() {
                Ok(task) => return Ok(Some(task)),
                Err(task) => task,
            };
            if let Some(chunks) = self.read_chunks(place_of(id).0, chunks, count).await? {
                return Ok(Some(task.with_chunks(&chunks)?));
            }
            // They are gone if it was copied meanwhile, or another server has them.
            sleep(LEADER_PAUSE).await;
        }
        Err(MessageError::Damaged.into())
    }

    /// Reads the chunks of a value; `None` if one is missing.
    pub(super) async fn read_chunks(
        &self,
        partition: Partition,
        first: u64,
        count: u32,
    ) -> Result<Option<Vec<Bytes>>, StoreRequestError> {
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        let mut chunks = Vec::new();
        while chunks.len() < count {
            let next = first + chunks.len() as u64;
            let read = self.read_batch(partition, next, count - chunks.len()).await?;
            if read.iter().map(|read| read.sequence).eq(next..next + read.len().max(1) as u64) {
                chunks.extend(read.into_iter().map(|read| read.payload));
            } else {
                match self.in_time(self.find(partition, next)).await? {
                    Some(found) => chunks.push(found.payload),
                    None => return Ok(None),
                }
            }
        }
        Ok(Some(chunks))
    }

    /// Reads a task without its value.
    pub(super) async fn read_header(&self, id: TaskId) -> Result<Option<Header>, ReadFailure> {
        Ok(self.find_task(id).await?.map(|found| found.task.header))
    }

    /// A task, as its first message or as a copy. A former leader may lack the newest messages, so it is
    /// believed only if it says so again.
    async fn find_task(&self, id: TaskId) -> Result<Option<FoundTask>, ReadFailure> {
        self.in_time(self.search_task(id)).await
    }

    /// Ends a search on servers that are silent: it asks each many times.
    async fn in_time<T, E: From<StoreRequestError>>(
        &self,
        search: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        let silent = || StoreRequestError::Unanswered("the servers do not answer".to_owned());
        let found = timeout(self.settings().timeout, search).await;
        found.unwrap_or_else(|_| Err(silent().into()))
    }

    async fn search_task(&self, id: TaskId) -> Result<Option<FoundTask>, ReadFailure> {
        let (partition, sequence) = place_of(id);
        let names = self.names();
        let copies = names.copy(partition, sequence);
        let is_task = |found: &LogMessage| {
            found.sequence == sequence && found.subject == names.task(partition)
        };
        // A server that does not answer is like one that has nothing.
        for _ in 0..NEAR_READS {
            let near = self.read_batch(partition, sequence, 1).await.unwrap_or_default();
            if let Some(found) = near.into_iter().find(is_task) {
                return found_task(id, &found.payload).map(Some);
            }
            if let Ok(Some(found)) = self.last(partition, &copies).await {
                return found_copy(id, &found.payload).map(Some);
            }
        }
        for _ in 0..LEADER_READS {
            // In this order: the copy is stored before the first message is purged.
            if let Some(found) = self.of_leader(partition, sequence).await?.filter(is_task) {
                return found_task(id, &found.payload).map(Some);
            }
            if let Some(found) = self.last_of_leader(partition, &copies).await? {
                return found_copy(id, &found.payload).map(Some);
            }
            sleep(LEADER_PAUSE).await;
        }
        Ok(None)
    }

    /// The message with this sequence; `None` if every server has answered that it has none.
    pub(super) async fn find(
        &self,
        partition: Partition,
        sequence: u64,
    ) -> Result<Option<LogMessage>, StoreRequestError> {
        let mut unanswered = Ok(None);
        for _ in 0..NEAR_READS {
            match self.read_batch(partition, sequence, 1).await {
                Ok(read) => {
                    let found = read.into_iter().next().filter(|read| read.sequence == sequence);
                    if found.is_some() {
                        return Ok(found);
                    }
                }
                Err(error) => unanswered = Err(error),
            }
        }
        let found = self.find_at_leader(partition, sequence).await?;
        if found.is_some() { Ok(found) } else { unanswered }
    }

    /// These messages, in order, as far as a server has them. One with damaged files lacks some, and
    /// may be the leader; another one may have them.
    pub(super) async fn read_missing(
        &self,
        partition: Partition,
        sequences: &[u64],
    ) -> Result<Vec<LogMessage>, StoreRequestError> {
        let mut missing: BTreeSet<_> = sequences.iter().copied().collect();
        let mut found = BTreeMap::new();
        for _ in 0..NEAR_READS {
            let mut next = 0;
            while let Some(&first) = missing.range(next..).next() {
                let read = self.read_from(partition, first).await?;
                next = read.last().map_or(u64::MAX, |last| last.sequence + 1).max(first + 1);
                for message in read.into_iter().filter(|read| missing.remove(&read.sequence)) {
                    found.insert(message.sequence, message);
                }
            }
        }
        let reads = missing.into_iter().map(|one| self.find_at_leader(partition, one));
        let last: Vec<_> = stream::iter(reads).buffered(LEADER_READS_AT_ONCE).try_collect().await?;
        found.extend(last.into_iter().flatten().map(|message| (message.sequence, message)));
        Ok(found.into_values().collect())
    }

    /// A former leader may lack the newest messages, so it is believed only if it says so again.
    async fn find_at_leader(
        &self,
        partition: Partition,
        sequence: u64,
    ) -> Result<Option<LogMessage>, StoreRequestError> {
        for _ in 0..LEADER_READS {
            if let Some(found) = self.of_leader(partition, sequence).await? {
                return Ok(Some(found));
            }
            sleep(LEADER_PAUSE).await;
        }
        Ok(None)
    }
}

fn found_task(id: TaskId, message: &Bytes) -> Result<FoundTask, ReadFailure> {
    let task = message::read_task(id, message, &mut Nodes::default())?;
    let (_, sequence) = place_of(id);
    let chunks = sequence.saturating_sub(u64::from(task.chunks));
    Ok(FoundTask { task, chunks })
}

fn found_copy(id: TaskId, message: &Bytes) -> Result<FoundTask, ReadFailure> {
    let (_, sequence) = place_of(id);
    let copy = message::read_copy(sequence, message)?;
    let task = message::read_task(id, &copy.message, &mut Nodes::default())?;
    Ok(FoundTask { task, chunks: copy.chunks.unwrap_or(0) })
}

/// Why a task cannot be read.
#[derive(Debug, Error)]
pub(super) enum ReadFailure {
    #[error("the message {0}")]
    Message(#[from] MessageError),
    #[error("the store does not answer: {0}")]
    Unanswered(#[from] StoreRequestError),
}
