//! Puts the messages of an owned partition into their order: those that this process or, for it, another
//! one has stored, and those that it reads from the log. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::checkpoint::{Deliveries, LogPlace, OpenTask, SettledIndex};
use super::message::{self, MessageError, Nonce, StoredTask, TaskCopy};
use super::names::{StreamNames, task_id};
use super::protocol::LogMessage;
use crate::store::payload::Nodes;
use crate::store::records::Recovered;
use crate::task::{Idempotency, Partition, Progress, Task};

/// The tasks that wait for a gap before them to be read.
const MAX_AHEAD_BYTES: usize = 4 << 20;

/// Sequences that are looked for at the leader at a time, and at all.
pub(super) const MAX_HOLES: usize = 1_000;
const MAX_LOST: usize = 10_000;

/// The messages behind a sequence, each once and in order.
#[derive(Debug)]
pub(super) struct Reader {
    next: u64,
    /// Messages up to it are stored.
    stored: u64,
    /// Messages that do not come from the log, by the first sequence of each group.
    ahead: BTreeMap<u64, Ahead>,
    /// Of the tasks in it.
    ahead_bytes: usize,
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

impl Ahead {
    fn weight(&self) -> usize {
        match self {
            Self::Task { task, .. } => task.task.weight(),
            Self::Other { .. } => 0,
        }
    }
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
            next: sequence.saturating_add(1),
            stored: sequence,
            ahead: BTreeMap::new(),
            ahead_bytes: 0,
            chunks: Vec::new(),
            nodes: Nodes::default(),
        }
    }

    /// The first sequence that was not read.
    pub(super) fn next(&self) -> u64 {
        self.next
    }

    /// Everything up to this message was read, and no value is in part.
    pub(super) fn through(&self) -> u64 {
        self.next - 1 - self.chunks.len() as u64
    }

    /// Whether there are messages that only the log has.
    pub(super) fn has_gap(&self) -> bool {
        let reached =
            self.ahead.first_key_value().map_or(self.stored.saturating_add(1), |(first, _)| *first);
        self.next < reached
    }

    pub(super) fn note_stored(&mut self, sequence: u64) {
        self.stored = self.stored.max(sequence);
    }

    /// A task is stored. Beyond a limit it is read from the log in its turn.
    pub(super) fn acked(&mut self, sequence: u64, task: LoggedTask) {
        self.note_stored(sequence);
        let first = sequence - u64::from(task.chunks);
        // Its turn may have come.
        if first > self.next && self.ahead_bytes > MAX_AHEAD_BYTES {
            return;
        }
        self.put_ahead(first, Ahead::Task { sequence, task });
    }

    /// This process has stored messages that are no tasks.
    pub(super) fn wrote(&mut self, first: u64, last: u64) {
        self.note_stored(last);
        self.put_ahead(first, Ahead::Other { last });
    }

    fn put_ahead(&mut self, first: u64, ahead: Ahead) {
        self.ahead_bytes += ahead.weight();
        let before = self.ahead.insert(first, ahead);
        self.ahead_bytes -= before.map_or(0, |before| before.weight());
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

    /// Sequences before this one that are neither read, nor known to be missing, nor ahead of the log, the
    /// first ones.
    pub(super) fn holes(&self, known: u64, sequence: u64) -> Vec<u64> {
        let (mut next, mut holes) = (self.next.max(known.saturating_add(1)), Vec::new());
        if next - self.next >= MAX_LOST as u64 {
            return holes;
        }
        for (&first, ahead) in self.ahead.range(..sequence) {
            let (Ahead::Task { sequence: last, .. } | Ahead::Other { last }) = ahead;
            holes.extend((next..first).take(MAX_HOLES - holes.len()));
            next = next.max(last + 1);
        }
        holes.extend((next..sequence).take(MAX_HOLES - holes.len()));
        holes
    }

    /// The messages before this one that were not read, and are not ahead of the log, do not exist.
    pub(super) fn skip(&mut self, sequence: u64) {
        let ahead = self.ahead.first_key_value().map_or(sequence, |(first, _)| *first);
        if self.next < ahead.min(sequence) {
            self.next = ahead.min(sequence);
            self.chunks.clear();
        }
    }

    /// The next task that is ahead of the log, if its turn has come.
    pub(super) fn advance(&mut self) -> Option<LogTurn> {
        while let Some(entry) = self.ahead.first_entry() {
            if *entry.key() > self.next {
                return None;
            }
            let (first, ahead) = entry.remove_entry();
            self.ahead_bytes -= ahead.weight();
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
        let task = read.and_then(|task| LoggedTask::of(task, &chunks));
        Some(LogTurn { sequence, task })
    }
}

impl LoggedTask {
    /// Takes the value from the last of these chunks, if it is not in the task's own message.
    pub(super) fn of(task: StoredTask, chunks: &[Bytes]) -> Result<Self, MessageError> {
        let (count, nonce, idempotency) = (task.chunks, task.nonce, task.idempotency.clone());
        let awaited_by = task.awaited_by;
        let task = task.whole().or_else(|task| {
            let count = usize::try_from(count).unwrap_or(usize::MAX);
            let start = chunks.len().checked_sub(count).ok_or(MessageError::Damaged)?;
            task.with_chunks(chunks.get(start..).unwrap_or_default())
        });
        let took = Duration::ZERO;
        let task = Arc::new(task?);
        Ok(Self { task, chunks: count, nonce, idempotency, awaited_by, took })
    }
}

/// The unsettled tasks of a claimed partition, while they are read.
#[derive(Debug, Default)]
pub(super) struct PartitionRecovery {
    tasks: BTreeMap<u64, RecoveredTask>,
    /// Of tasks that were not read, with its place.
    progress: BTreeMap<u64, (u64, Bytes)>,
    /// No server has them.
    lost: BTreeSet<u64>,
    nodes: Nodes,
}

/// What the message of a recovered task says besides.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecoveredHead {
    pub(super) nonce: Nonce,
    pub(super) awaited_by: Option<u64>,
}

#[derive(Debug)]
pub(super) struct RecoveredTask {
    pub(super) open: OpenTask,
    pub(super) task: Result<(Recovered, RecoveredHead), MessageError>,
    /// The place of its progress, and its bytes.
    pub(super) progress: Option<(u64, usize)>,
}

impl PartitionRecovery {
    /// Takes a message of the log, unless it is settled. They come in order. Returns the id and the nonce
    /// of a task.
    pub(super) fn read(
        &mut self,
        names: &StreamNames,
        partition: Partition,
        stored: &LogMessage,
        settled: &SettledIndex,
    ) -> Result<Option<(u64, Nonce)>, MessageError> {
        let LogMessage { sequence, subject, payload } = stored;
        let sequence = *sequence;
        if *subject == names.task(partition) {
            let copy = Ok(TaskCopy { chunks: None, message: payload.clone() });
            return self.take(sequence, partition, sequence, copy, settled.has_task(sequence));
        } else if let Some(id) = names.task_of_copy(partition, subject) {
            let copy = message::read_copy(id, payload);
            return self.take(id, partition, sequence, copy, settled.has_copy(sequence));
        } else if let Some(id) = names.task_of_progress(partition, subject) {
            match self.tasks.get_mut(&id) {
                Some(task) => task.add_progress(sequence, payload)?,
                // It is behind its task: that is settled, or missing.
                None => _ = self.progress.insert(id, (sequence, payload.clone())),
            }
        }
        Ok(None)
    }

    /// Messages of unsettled tasks that were not read, the first ones.
    pub(super) fn missing(&self, settled: &SettledIndex) -> Vec<u64> {
        if self.lost.len() >= MAX_LOST {
            return Vec::new();
        }
        let places = self.tasks.values().filter_map(|task| match task.open.place {
            LogPlace::At(sequence) => Some(sequence),
            LogPlace::Sent | LogPlace::Lost => None,
        });
        let known = places.chain(self.lost.iter().copied()).collect();
        settled.missing(&known, MAX_HOLES)
    }

    /// These were looked for on all servers. Returns how many none has.
    pub(super) fn looked_for(&mut self, sequences: &[u64]) -> usize {
        let before = self.lost.len();
        let found: BTreeSet<_> = self.tasks.values().map(|task| task.open.place).collect();
        self.lost
            .extend(sequences.iter().filter(|sequence| !found.contains(&LogPlace::At(**sequence))));
        self.lost.len() - before
    }

    fn take(
        &mut self,
        id: u64,
        partition: Partition,
        sequence: u64,
        copy: Result<TaskCopy, MessageError>,
        is_settled: bool,
    ) -> Result<Option<(u64, Nonce)>, MessageError> {
        let read = copy.and_then(|copy| {
            let task = message::read_task(task_id(id, partition), &copy.message, &mut self.nodes)?;
            Ok((copy.chunks, task))
        });
        if let Err(error @ MessageError::Version(_)) = read {
            return Err(error);
        }
        let nonce = read.as_ref().ok().map(|(_, task)| (id, task.nonce));
        if is_settled {
            return Ok(nonce);
        }
        let mut open = OpenTask::first(sequence, 0, 0);
        let task = read.map(|(copied, task)| {
            let StoredTask { header, idempotency, nonce, chunks, awaited_by, .. } = task;
            let bytes = header.weight() as u64;
            open = match copied {
                Some(first) => OpenTask::at(sequence, bytes, Some(first)),
                None if sequence == id => OpenTask::first(sequence, bytes, chunks),
                None => OpenTask::at(sequence, bytes, None),
            };
            let progress = vec![Progress::Untouched; header.replicas.len()];
            let is_awaited = awaited_by.is_some();
            let recovered = Recovered { header, idempotency, progress, is_awaited };
            (recovered, RecoveredHead { nonce, awaited_by })
        });
        let mut task = RecoveredTask { open, task, progress: None };
        if let Some((sequence, progress)) = self.progress.remove(&id) {
            task.add_progress(sequence, &progress)?;
        }
        // A copy replaces the first message and older copies.
        self.tasks.insert(id, task);
        Ok(nonce)
    }

    /// All of them, in their order, with their last progress.
    pub(super) fn finish(
        self,
        settled: &SettledIndex,
    ) -> impl Iterator<Item = (u64, RecoveredTask)> {
        self.tasks.into_iter().map(|(id, mut task)| {
            if settled.is_left_out(id) {
                task.forget_deliveries();
            } else {
                task.add_deliveries(settled.deliveries(id));
            }
            (id, task)
        })
    }
}

impl RecoveredTask {
    /// A message with the progress of the task is newer than what is listed.
    fn add_deliveries(&mut self, deliveries: Deliveries) {
        self.open.deliveries = deliveries;
        let (Ok((task, _)), None) = (&mut self.task, self.progress) else { return };
        for (position, progress) in task.progress.iter_mut().enumerate() {
            if deliveries.contains(position) {
                *progress = Progress::Delivered;
            }
        }
    }

    fn forget_deliveries(&mut self) {
        let Ok((task, _)) = &mut self.task else { return };
        for progress in task.progress.iter_mut().filter(|one| **one == Progress::Delivered) {
            *progress = Progress::Untouched;
        }
    }

    fn add_progress(&mut self, sequence: u64, payload: &Bytes) -> Result<(), MessageError> {
        self.progress = Some((sequence, payload.len()));
        match message::read_progress(payload) {
            Err(error @ MessageError::Version(_)) => return Err(error),
            // Without it, an older value could follow a newer one.
            Err(error) => self.task = Err(error),
            Ok(progress) => {
                if let Ok((task, _)) = &mut self.task
                    && task.progress.len() == progress.len()
                {
                    task.progress = progress;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::{Consistency, Node, Operation, TaskId, Timestamp};

    const PARTITION: Partition = Partition(0);

    fn stored(sequence: u64, bytes: usize) -> LoggedTask {
        let task = Task {
            id: TaskId(sequence),
            key: "k".into(),
            operation: Operation::Set,
            value: vec![0; bytes].into(),
            accepted_at: Timestamp(1),
            expires_at: None,
            replicas: vec![Node::parse("http://a").unwrap()],
            user_id: None,
            client: None,
            consistency: Consistency::Eventual,
            primary: None,
            trace: None,
        };
        let (task, took) = (Arc::new(task), Duration::ZERO);
        let (chunks, nonce, idempotency, awaited_by) = (0, Nonce(sequence.into()), None, None);
        LoggedTask { task, chunks, nonce, idempotency, awaited_by, took }
    }

    #[test]
    fn behind_a_gap_a_limited_number_of_bytes_waits_and_the_rest_is_read_from_the_log() {
        let mut reader = Reader::after(0);
        let bytes = MAX_AHEAD_BYTES / 8;
        for sequence in (2..=100).chain([2]) {
            reader.acked(sequence, stored(sequence, bytes));
        }
        assert!(reader.ahead.len() <= 8, "{} tasks wait", reader.ahead.len());
        assert!(reader.advance().is_none() && reader.has_gap());
        reader.acked(1, stored(1, bytes));
        let turns: Vec<_> = std::iter::from_fn(|| reader.advance()).collect();
        assert!(turns.iter().map(|turn| turn.sequence).eq(1..reader.next()));
        assert_eq!((reader.ahead.len(), reader.ahead_bytes), (0, 0));
        assert!(reader.has_gap(), "the others are in the log");
        let names = StreamNames::new("c".parse().unwrap());
        for sequence in reader.next()..=100 {
            let payload = Bytes::new();
            let message = LogMessage { sequence, subject: names.task(PARTITION), payload };
            assert_eq!(reader.read(&names, PARTITION, message).unwrap().sequence, sequence);
        }
        assert!(!reader.has_gap());
    }
}
