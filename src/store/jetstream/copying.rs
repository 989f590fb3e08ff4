//! Keeps the log of a partition short although old tasks are in it.
//!
//! A log is purged up to its floor, which the first message that is needed holds: one dead letter from
//! yesterday holds all that came after it. So its owner looks at the size of the log every second. If
//! less than half of it is needed, the oldest tasks are copied to its end, the first ones first,
//! until that is no longer so. A log that is short in any case is left alone.
//!
//! A step copies some tasks. Their messages are read. A value in chunks is copied at once, in a batch
//! of its own. The copies and the progress of their tasks are stored in the batch of the next
//! checkpoint, so they count together with it or not at all, and a former owner stores none. Then the
//! messages before the new floor are purged, and the size is looked at again.
//!
//! Until the checkpoint is stored, the task that is copied holds the floor, and chunks behind it stay.
//!
//! **Missing messages.** A task whose message no server has is lost: it is reported, and holds the
//! floor no longer. One that lacks only its progress or a part of its value is copied, and cannot be read
//! by the next owner. A task that cannot be copied yet holds the floor, so nothing behind it is copied:
//! that would only make the log longer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, future, stream};
use tokio::time::Instant;
use tracing::debug;

use super::checkpoint::{LogPlace, MAX_COPIES, OpenTask, Unsettled};
use super::connect::Store;
use super::message::{self, TaskCopy};
use super::names::task_id;
use super::protocol::{Outgoing, StoreRequestError};
use super::shared::StoreShared;
use super::standing::PartitionOrder;
use crate::store::payload::Nodes;
use crate::task::Partition;

/// Between two looks at the size of a log.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// After tasks could not be read, besides.
const REST: Duration = Duration::from_secs(10);

/// Logs are not cleaned below this size, all together and each.
const LEAST_TOGETHER: u64 = 64 << 20;
const LEAST_EACH: u64 = 8 << 20;

/// Tasks of one step, and their bytes.
const TASKS: usize = 256;
const TASK_BYTES: u64 = 1 << 20;

/// Messages of a batch, without its checkpoint.
const MAX_ROWS: usize = 999;

/// Messages that are read at the same time.
const READS_AT_ONCE: usize = 32;

/// The size below which the log of a partition is left alone.
pub(super) fn least(store: &Store) -> u64 {
    let each = LEAST_EACH.max(LEAST_TOGETHER / u64::from(store.record().partitions));
    store.settings().clean_above.unwrap_or(each)
}

/// A task that was read, to be copied.
#[derive(Clone, Debug)]
pub(super) struct CopiedTask {
    pub(super) id: u64,
    pub(super) read: ReadFrom,
    /// The first of the copied chunks, and their number.
    pub(super) chunks: Option<(u64, u32)>,
    pub(super) message: Bytes,
    pub(super) progress: Option<Bytes>,
    /// No server has its progress or a part of its value.
    pub(super) is_incomplete: bool,
}

/// Where the messages of a task were.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ReadFrom {
    place: u64,
    progress: Option<u64>,
}

impl ReadFrom {
    /// Whether nothing has changed since the task was read.
    pub(super) fn is_current(self, task: &OpenTask) -> bool {
        let progress = self.progress.map(LogPlace::At);
        task.place == LogPlace::At(self.place) && task.progress == progress
    }
}

/// The outcome of reading a task.
#[derive(Debug)]
pub(super) enum ReadTask {
    Copied(CopiedTask),
    /// No server has its message.
    Missing(u64, ReadFrom),
}

/// The cleaning of the log of an owned partition.
#[derive(Debug, Default)]
pub(super) struct Cleaning {
    phase: Phase,
    next_look: Option<Instant>,
    ready: VecDeque<CopiedTask>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Phase {
    #[default]
    Idle,
    Looking,
    /// More than half of the log is garbage.
    Needed,
    Reading,
    /// The copies wait for a checkpoint, or are on their way with it.
    Writing,
    /// The log can be purged.
    Written,
    /// Everything before this message must be gone.
    Purging(u64),
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum CleaningStep {
    Nothing,
    /// Ask for the size of the log, then call [`Cleaning::looked`].
    Look,
    /// Read these tasks, then call [`Cleaning::read`].
    Read(Vec<(u64, OpenTask)>),
    /// Purge now.
    Purge,
}

impl Cleaning {
    /// `is_written` tells that no copy is on its way. The log is purged before the message `purged`, and
    /// may be before the message `wanted`.
    pub(super) fn step(
        &mut self,
        now: Instant,
        unsettled: &Unsettled,
        must_stay: impl Fn(u64) -> bool,
        is_written: bool,
        (purged, wanted): (u64, u64),
    ) -> CleaningStep {
        if self.phase == Phase::Writing && self.ready.is_empty() && is_written {
            self.phase = Phase::Written;
        }
        match self.phase {
            Phase::Idle if self.next_look.is_some_and(|next| now < next) => CleaningStep::Nothing,
            Phase::Written => {
                self.phase = Phase::Purging(wanted);
                CleaningStep::Purge
            }
            Phase::Purging(until) if purged < until => CleaningStep::Nothing,
            Phase::Idle | Phase::Purging(_) => {
                self.phase = Phase::Looking;
                self.next_look = Some(now + LOOK_EVERY);
                CleaningStep::Look
            }
            Phase::Needed => {
                let tasks = choose(unsettled, must_stay);
                self.phase = if tasks.is_empty() { Phase::Idle } else { Phase::Reading };
                if tasks.is_empty() { CleaningStep::Nothing } else { CleaningStep::Read(tasks) }
            }
            Phase::Looking | Phase::Reading | Phase::Writing => CleaningStep::Nothing,
        }
    }

    /// The size of the log, `None` if it is not known.
    pub(super) fn looked(&mut self, bytes: Option<u64>, live: u64, least: u64) {
        let is_needed = bytes.is_some_and(|bytes| bytes > least && bytes / 2 > live);
        self.phase = if is_needed { Phase::Needed } else { Phase::Idle };
    }

    /// The chosen tasks were read, as far as they could be.
    pub(super) fn read(&mut self, tasks: Vec<CopiedTask>, has_failed: bool) {
        self.ready.extend(tasks);
        self.phase = if self.ready.is_empty() { Phase::Idle } else { Phase::Writing };
        if has_failed {
            self.next_look = self.next_look.map(|next| next + REST);
        }
    }

    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// The next task for a batch that has this many rows, and may have no more than `most`.
    pub(super) fn next(&mut self, rows: usize, most: usize) -> Option<CopiedTask> {
        // With its progress.
        if rows + 2 > MAX_ROWS.min(most) { None } else { self.ready.pop_front() }
    }
}

/// The first tasks of the log, up to the first one that cannot be copied now.
fn choose(unsettled: &Unsettled, must_stay: impl Fn(u64) -> bool) -> Vec<(u64, OpenTask)> {
    if unsettled.copies() >= MAX_COPIES {
        return Vec::new();
    }
    let begins = unsettled.tasks().filter_map(|(id, task)| Some((task.begin()?, id, *task)));
    let mut tasks: Vec<_> = begins.collect();
    if tasks.len() > TASKS {
        tasks.select_nth_unstable_by_key(TASKS, |(begin, ..)| *begin);
        tasks.truncate(TASKS);
    }
    tasks.sort_unstable_by_key(|(begin, ..)| *begin);
    let mut bytes = 0;
    let can_move = tasks.into_iter().take_while(|(_, id, task)| {
        let fits = bytes == 0 || bytes + task.bytes <= TASK_BYTES;
        bytes += task.bytes.max(1);
        let is_stored =
            matches!(task.place, LogPlace::At(_)) && task.progress != Some(LogPlace::Sent);
        fits && is_stored && !must_stay(*id)
    });
    can_move.map(|(_, id, task)| (id, task)).collect()
}

impl StoreShared {
    /// Begins a look at the size of a log.
    pub(super) fn look_at_log(self: Arc<Self>, partition: Partition, epoch: u64) {
        let Some(standing) = self.standing(partition).cloned() else { return };
        tokio::spawn(async move {
            let result = self.store.log(partition).await;
            if let Err(error) = &result {
                debug!(%error, partition = partition.0, "the size of a log is not known");
            }
            let bytes = result.ok().map(|log| log.bytes);
            standing.order(PartitionOrder::Sized { epoch, bytes });
        });
    }

    /// Begins to read tasks that are copied.
    pub(super) fn read_to_copy(
        self: Arc<Self>,
        partition: Partition,
        epoch: u64,
        tasks: Vec<(u64, OpenTask)>,
    ) {
        let Some(standing) = self.standing(partition).cloned() else { return };
        tokio::spawn(async move {
            let store = &self.store;
            let reads = tasks.into_iter().map(|(id, task)| store.read_to_copy(partition, id, task));
            let mut has_failed = false;
            let reads = stream::iter(reads).buffered(READS_AT_ONCE).map(|read| {
                let read = read.inspect_err(|error| {
                    debug!(%error, partition = partition.0, "a task cannot be copied yet");
                });
                has_failed |= read.is_err();
                read.ok()
            });
            // It holds the floor, so those behind it wait, too.
            let tasks = reads.take_while(|read| future::ready(read.is_some()));
            let tasks = tasks.filter_map(future::ready).collect().await;
            standing.order(PartitionOrder::Copied { epoch, tasks, has_failed });
        });
    }
}

impl Store {
    /// Reads a task, and copies the chunks of its value.
    async fn read_to_copy(
        &self,
        partition: Partition,
        id: u64,
        task: OpenTask,
    ) -> Result<ReadTask, StoreRequestError> {
        let not_stored = || StoreRequestError::Unanswered("it is not stored yet".to_owned());
        let LogPlace::At(place) = task.place else { return Err(not_stored()) };
        let progress = match task.progress {
            Some(LogPlace::At(sequence)) => Some(sequence),
            Some(LogPlace::Sent | LogPlace::Lost) => return Err(not_stored()),
            None => None,
        };
        let read = ReadFrom { place, progress };
        let Some(found) = self.find(partition, place).await? else {
            return Ok(ReadTask::Missing(id, read));
        };
        let mut is_incomplete = false;
        let mut copy = match message::read_copy(id, &found.payload) {
            _ if place == id => TaskCopy { chunks: None, message: found.payload },
            Ok(copy) => copy,
            // It is as damaged at its new place.
            Err(_) => TaskCopy { chunks: None, message: found.payload },
        };
        let mut chunks = None;
        if let Some(first) = task.chunks {
            let read =
                message::read_task(task_id(id, partition), &copy.message, &mut Nodes::default());
            let count = read.map_or(0, |task| task.chunks);
            if let Some(read) = self.read_chunks(partition, first, count).await? {
                let chunk = |chunk| Outgoing::new(self.names().chunk(partition), chunk);
                let batch = read.into_iter().map(chunk).collect();
                let stored = self.publish_batch(batch, self.settings().timeout).await?;
                chunks = Some((stored.sequence + 1 - u64::from(count), count));
            } else {
                is_incomplete = true;
            }
            copy.chunks = chunks.map(|(first, _)| first);
        }
        let progress = match progress {
            // Without any progress, an older value could follow a newer one. This one cannot be read.
            Some(sequence) => Some(self.find(partition, sequence).await?.map_or_else(
                || {
                    is_incomplete = true;
                    Bytes::new()
                },
                |found| found.payload,
            )),
            None => None,
        };
        let message = message::copy(id, &copy);
        let message = message.map_err(|error| StoreRequestError::Unanswered(error.to_string()))?;
        Ok(ReadTask::Copied(CopiedTask { id, read, chunks, message, progress, is_incomplete }))
    }
}

#[cfg(test)]
mod tests;
