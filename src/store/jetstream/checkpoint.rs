//! What a partition has settled, and the checkpoint that says so.
//!
//! Every message of a partition up to a sequence was read. Of those, the tasks that are not settled
//! are listed; all other messages are settled, or are no tasks. The **floor** is the sequence before
//! the first message that is still needed. Messages up to it are purged.
//!
//! A task that holds the floor for long is **copied**: its copy is a message behind, and counts
//! instead of the first one from the checkpoint on that is stored with it. Copies are listed by
//! themselves, by their own places. `copying.rs` says when tasks are copied.
//!
//! A task has the sequence of its first message for ever: it is its id, and orders the tasks of a key.
//!
//! A task that some of its replicas have, and for which nothing has failed, is listed with them here. So
//! a replica that is ahead of another one costs a few numbers, and not a message for each task.

use std::collections::{BTreeMap, BTreeSet};

use bincode::{BorrowDecode, Encode};

use crate::task::Progress;

/// The most runs of tasks in a checkpoint, so that it fits into a message.
const MAX_RUNS: usize = 50_000;

/// The most copies, whose runs a checkpoint has all.
pub(super) const MAX_COPIES: usize = 100_000;

/// The most runs of deliveries. Beyond it the progress of a task is a message of its own.
const MAX_DELIVERY_RUNS: usize = 4_000;

/// Of the messages of a task, besides its content: subjects, headers, what the servers add.
const MESSAGE_BYTES: u64 = 512;

/// A process, as long as it runs.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub(super) struct StoreInstance {
    /// Of this run of the process.
    pub(super) process: u64,
    /// `--node-id`, to be shown.
    pub(super) node: String,
}

/// The state of a partition, in its last message of this kind.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode)]
pub(super) struct Checkpoint {
    pub(super) writer: StoreInstance,
    /// The writer has given the partition up, so that another instance may claim it at once.
    pub(super) is_released: bool,
    /// Counts the owners.
    pub(super) epoch: u64,
    /// Counts the checkpoints of the epoch.
    pub(super) counter: u64,
    pub(super) settled: Settled,
    pub(super) levels: PartitionLevels,
}

/// Which messages are settled.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, BorrowDecode)]
pub(super) struct Settled {
    pub(super) floor: u64,
    tasks: Runs,
    /// By the sequences of the copies themselves.
    copies: Runs,
    /// By the positions of replicas. Of the unsettled tasks, those without and with a delivery, in turn.
    /// They begin with the first task of all, whose id is 1.
    deliveries: Vec<Runs>,
}

/// Lengths of the runs above the floor, in turn: not settled, settled, not settled and so on. Nothing
/// is settled behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, BorrowDecode)]
struct Runs(Vec<u64>);

/// Finds what is settled. The default has nothing.
#[derive(Debug, Default)]
pub(super) struct SettledIndex {
    tasks: RunIndex,
    copies: RunIndex,
    deliveries: Vec<RunIndex>,
}

#[derive(Debug, Default)]
struct RunIndex {
    floor: u64,
    /// The last sequence of each run.
    ends: Vec<u64>,
}

impl Settled {
    pub(super) fn index(&self) -> SettledIndex {
        let [tasks, copies] = [&self.tasks, &self.copies].map(|runs| runs.index(self.floor));
        // Anyone may have written it.
        let deliveries = self.deliveries.iter().take(64).map(|runs| runs.index(0)).collect();
        SettledIndex { tasks, copies, deliveries }
    }
}

impl Runs {
    /// Of these sequences nothing is settled, of the others up to `through` everything.
    fn of(floor: u64, open: impl Iterator<Item = u64>, through: u64, most: usize) -> Self {
        let mut runs = Vec::new();
        // The last message that a run covers.
        let (mut covered, mut run) = (floor, 0);
        for sequence in open {
            if runs.len() >= most {
                return Self(runs);
            }
            let gap = sequence - covered - 1;
            if gap > 0 {
                runs.extend([run, gap]);
                run = 0;
            }
            run += 1;
            covered = sequence;
        }
        let rest = through.saturating_sub(covered);
        if run > 0 || rest > 0 {
            runs.extend([run, rest]);
        }
        Self(runs)
    }

    /// Ends a run with this sequence, as the run before ended with `before`.
    fn end(&mut self, before: &mut u64, sequence: u64) {
        self.0.push(sequence - std::mem::replace(before, sequence));
    }

    fn index(&self, floor: u64) -> RunIndex {
        let ends = self.0.iter().scan(floor, |end, run| {
            *end = end.saturating_add(*run);
            Some(*end)
        });
        RunIndex { floor, ends: ends.collect() }
    }
}

impl RunIndex {
    fn contains(&self, sequence: u64) -> bool {
        let run = self.ends.partition_point(|end| *end < sequence);
        sequence <= self.floor || (run < self.ends.len() && run % 2 == 1)
    }
}

impl SettledIndex {
    /// Whether the task with this sequence is settled, or has a copy.
    pub(super) fn has_task(&self, sequence: u64) -> bool {
        self.tasks.contains(sequence)
    }

    /// Messages of unsettled tasks besides these, the first ones.
    pub(super) fn missing(&self, known: &BTreeSet<u64>, most: usize) -> Vec<u64> {
        let mut missing = Vec::new();
        for runs in [&self.tasks, &self.copies] {
            let mut end = runs.floor;
            for (nth, &last) in runs.ends.iter().enumerate() {
                let run = end.saturating_add(1)..=last;
                end = last;
                if nth % 2 == 1 || run.is_empty() {
                    continue;
                }
                let mut next = *run.start();
                for &sequence in known.range(run).chain([&last.saturating_add(1)]) {
                    missing.extend((next..sequence).take(most - missing.len()));
                    next = sequence.saturating_add(1);
                }
            }
        }
        missing
    }

    /// Whether the copy with this sequence is settled, or has a newer one.
    pub(super) fn has_copy(&self, sequence: u64) -> bool {
        self.copies.contains(sequence)
    }

    /// Whether what became of this task is not in the checkpoint, as it has too many runs. It may be
    /// settled, and a newer task of its key, too: both are sent to all replicas again.
    pub(super) fn is_left_out(&self, id: u64) -> bool {
        self.tasks.ends.last().is_some_and(|end| id > *end)
    }

    /// The replicas that have this unsettled task, unless a message has its progress.
    pub(super) fn deliveries(&self, id: u64) -> Deliveries {
        let mut deliveries = Deliveries::default();
        for (position, _) in
            self.deliveries.iter().enumerate().filter(|(_, runs)| runs.contains(id))
        {
            deliveries.insert(position);
        }
        deliveries
    }
}

/// A set of the replicas of a task: a bit for each of the first 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Deliveries(u64);

impl Deliveries {
    /// `None` if there is more to say than which of the first 64 replicas have the task.
    pub(super) fn of(progress: &[Progress]) -> Option<Self> {
        let mut deliveries = Self::default();
        for (position, progress) in progress.iter().enumerate() {
            match progress {
                Progress::Untouched => {}
                Progress::Delivered if position < 64 => deliveries.insert(position),
                _ => return None,
            }
        }
        Some(deliveries)
    }

    fn insert(&mut self, position: usize) {
        self.0 |= u32::try_from(position).ok().and_then(|bit| 1_u64.checked_shl(bit)).unwrap_or(0);
    }

    pub(super) fn contains(self, position: usize) -> bool {
        position < 64 && self.0 >> position & 1 == 1
    }

    /// The most numbers that this adds to the runs of all replicas.
    fn runs_after(self, before: Self) -> usize {
        2 * usize::try_from((self.0 ^ before.0).count_ones()).unwrap_or(0)
    }
}

/// How much a partition holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, BorrowDecode)]
pub(super) struct PartitionLevels {
    /// Tasks with deliveries that are pending.
    pub(super) queued: u64,
    pub(super) queued_bytes: u64,
    /// Tasks with only dead letters left.
    pub(super) dead: u64,
    pub(super) dead_bytes: u64,
}

impl PartitionLevels {
    fn count(&mut self, task: &OpenTask, change: i64) {
        let (tasks, bytes) = match task.is_dead {
            true => (&mut self.dead, &mut self.dead_bytes),
            false => (&mut self.queued, &mut self.queued_bytes),
        };
        *tasks = tasks.saturating_add_signed(change);
        let bytes_change = i64::try_from(task.bytes).unwrap_or(i64::MAX);
        *bytes = bytes.saturating_add_signed(change * bytes_change);
    }
}

impl std::ops::AddAssign for PartitionLevels {
    fn add_assign(&mut self, other: Self) {
        self.queued += other.queued;
        self.queued_bytes += other.queued_bytes;
        self.dead += other.dead;
        self.dead_bytes += other.dead_bytes;
    }
}

/// Where a message is, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LogPlace {
    At(u64),
    /// Its batch is on its way.
    Sent,
    /// No server has it.
    Lost,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OpenTask {
    pub(super) bytes: u64,
    /// Its message: the first one, or a copy.
    pub(super) place: LogPlace,
    /// The first of the messages with its value, which are next to one another; none if its own
    /// message has it.
    pub(super) chunks: Option<u64>,
    pub(super) progress: Option<LogPlace>,
    progress_bytes: u64,
    is_dead: bool,
    pub(super) deliveries: Deliveries,
}

/// The unsettled tasks of an owned partition, by their ids.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    /// Every message up to it was read.
    through: u64,
    tasks: BTreeMap<u64, OpenTask>,
    /// The ids of those with a copy, by the sequence of the copy.
    copies: BTreeMap<u64, u64>,
    /// Every copy up to it is known.
    copied_through: u64,
    levels: PartitionLevels,
    progress_bytes: u64,
    /// The numbers of the runs of deliveries, and the most that those since the last checkpoint add.
    delivery_runs: usize,
}

impl OpenTask {
    /// A task whose only message has this sequence, right behind its chunks.
    pub(super) fn first(sequence: u64, bytes: u64, chunks: u32) -> Self {
        let chunks = (chunks > 0).then(|| sequence.saturating_sub(u64::from(chunks)));
        Self::at(sequence, bytes, chunks)
    }

    pub(super) fn at(sequence: u64, bytes: u64, chunks: Option<u64>) -> Self {
        Self {
            bytes,
            place: LogPlace::At(sequence),
            chunks,
            progress: None,
            progress_bytes: 0,
            is_dead: false,
            deliveries: Deliveries::default(),
        }
    }

    /// Its first message; `None` if all are on their way or lost.
    pub(super) fn begin(&self) -> Option<u64> {
        match self.place {
            LogPlace::At(sequence) => {
                Some(self.chunks.map_or(sequence, |chunks| chunks.min(sequence)))
            }
            LogPlace::Sent => self.chunks,
            LogPlace::Lost => None,
        }
    }
}

impl Unsettled {
    /// Nothing is unsettled up to `through`.
    pub(super) fn after(through: u64) -> Self {
        Self { through, copied_through: through, ..Self::default() }
    }

    pub(super) fn read_through(&mut self, sequence: u64) {
        self.through = self.through.max(sequence);
    }

    #[cfg(test)]
    pub(super) fn through(&self) -> u64 {
        self.through
    }

    pub(super) fn add(&mut self, id: u64, task: OpenTask) {
        self.levels.count(&task, 1);
        if let LogPlace::At(sequence) = task.place
            && sequence != id
        {
            self.copies.insert(sequence, id);
        }
        self.tasks.insert(id, task);
        self.read_through(id);
    }

    pub(super) fn get(&self, id: u64) -> Option<&OpenTask> {
        self.tasks.get(&id)
    }

    pub(super) fn tasks(&self) -> impl Iterator<Item = (u64, &OpenTask)> {
        self.tasks.iter().map(|(id, task)| (*id, task))
    }

    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    pub(super) fn copies(&self) -> usize {
        self.copies.len()
    }

    /// Returns false for a task that is settled.
    pub(super) fn mark(&mut self, id: u64, is_dead: bool) -> bool {
        let Some(task) = self.tasks.get_mut(&id) else { return false };
        self.levels.count(task, -1);
        task.is_dead = is_dead;
        self.levels.count(task, 1);
        true
    }

    /// A progress of this many bytes replaces the one before.
    pub(super) fn progress(&mut self, id: u64, place: LogPlace, bytes: usize) {
        if let Some(task) = self.tasks.get_mut(&id) {
            self.progress_bytes -= task.progress_bytes;
            task.progress_bytes = bytes as u64;
            self.progress_bytes += task.progress_bytes;
            task.progress = Some(place);
        }
    }

    /// The progress of a task as the next checkpoint can list it; `None` if it needs a message.
    pub(super) fn listed(&self, id: u64, progress: &[Progress]) -> Option<Deliveries> {
        // A message of before would still count.
        let task = self.tasks.get(&id).filter(|task| task.progress.is_none())?;
        let deliveries = Deliveries::of(progress)?;
        let runs = self.delivery_runs + deliveries.runs_after(task.deliveries);
        (runs <= MAX_DELIVERY_RUNS).then_some(deliveries)
    }

    pub(super) fn list(&mut self, id: u64, deliveries: Deliveries) {
        if let Some(task) = self.tasks.get_mut(&id) {
            self.delivery_runs += deliveries.runs_after(task.deliveries);
            task.deliveries = deliveries;
        }
    }

    /// Counts the runs of deliveries again, after tasks were recovered or put back.
    pub(super) fn count_deliveries(&mut self) {
        self.delivery_runs = self.deliveries().iter().map(|runs| runs.0.len()).sum();
    }

    /// A message of a batch is stored: a progress.
    pub(super) fn progress_stored(&mut self, id: u64, sequence: u64) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.progress = Some(LogPlace::At(sequence));
        }
    }

    /// A copy is on its way, whose value, if it is not in the copy, is behind the first message.
    pub(super) fn copy(&mut self, id: u64, chunks: Option<u64>) {
        if let Some(task) = self.tasks.get_mut(&id) {
            if let LogPlace::At(sequence) = task.place {
                self.copies.remove(&sequence);
            }
            (task.place, task.chunks) = (LogPlace::Sent, chunks);
        }
    }

    /// No server has the message of the task, so it does not hold the floor. The next owner will not
    /// find it.
    pub(super) fn lose(&mut self, id: u64) {
        self.copy(id, None);
        if let Some(task) = self.tasks.get_mut(&id) {
            task.place = LogPlace::Lost;
        }
    }

    pub(super) fn copy_stored(&mut self, id: u64, sequence: u64) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.place = LogPlace::At(sequence);
            self.copies.insert(sequence, id);
        }
    }

    /// All copies up to this checkpoint are stored.
    pub(super) fn copied_through(&mut self, sequence: u64) {
        self.copied_through = sequence;
    }

    /// Returns the bytes that are not needed any more, about.
    pub(super) fn settle(&mut self, id: u64) -> u64 {
        let Some(task) = self.tasks.remove(&id) else { return 0 };
        self.levels.count(&task, -1);
        self.progress_bytes -= task.progress_bytes;
        if let LogPlace::At(sequence) = task.place {
            self.copies.remove(&sequence);
        }
        task.bytes + MESSAGE_BYTES
    }

    /// A task is as it was before.
    pub(super) fn put_back(&mut self, id: u64, task: OpenTask) {
        self.settle(id);
        self.add(id, task);
        self.progress_bytes += task.progress_bytes;
    }

    pub(super) fn levels(&self) -> PartitionLevels {
        self.levels
    }

    /// The bytes of all messages that are needed, about.
    pub(super) fn live_bytes(&self) -> u64 {
        let PartitionLevels { queued_bytes, dead_bytes, .. } = self.levels;
        queued_bytes + dead_bytes + self.progress_bytes + self.tasks.len() as u64 * MESSAGE_BYTES
    }

    /// The state for a checkpoint.
    ///
    /// If the tasks have too many runs, the last ones are left out: the newest tasks count as unsettled
    /// then, and the next owner repeats them to all of their replicas, after every older one. Runs of
    /// copies are never left out: a copy is older than tasks before it. Nor are runs of deliveries, of
    /// which there are never too many.
    pub(super) fn settled(&mut self) -> Settled {
        let begins = self.tasks.values().filter_map(OpenTask::begin);
        let floor =
            begins.min().map_or(self.through, |first| self.through.min(first.saturating_sub(1)));
        let firsts = self.tasks.iter().filter(|(id, task)| task.place == LogPlace::At(**id));
        let firsts = firsts.map(|(id, _)| *id);
        let tasks = Runs::of(floor, firsts, self.through, MAX_RUNS);
        let copies = Runs::of(floor, self.copies.keys().copied(), self.copied_through, usize::MAX);
        let deliveries = self.deliveries();
        self.delivery_runs = deliveries.iter().map(|runs| runs.0.len()).sum();
        Settled { floor, tasks, copies, deliveries }
    }

    /// A run ends at a task that has another state. Between two unsettled tasks there is no third one, so
    /// whatever is there may be in any run.
    fn deliveries(&self) -> Vec<Runs> {
        let all = self.tasks.values().fold(0, |all, task| all | task.deliveries.0);
        let positions = usize::try_from(u64::BITS - all.leading_zeros()).unwrap_or(0);
        let mut runs = vec![(Runs::default(), 0); positions];
        let (mut before, mut last) = (Deliveries::default(), 0);
        // Behind the last task nothing is delivered.
        let end = (u64::MAX, Deliveries::default());
        let tasks = self.tasks.iter().map(|(id, task)| (*id, task.deliveries));
        for (id, deliveries) in tasks.chain([end]) {
            if deliveries != before {
                for (position, (runs, end)) in runs.iter_mut().enumerate() {
                    match (before.contains(position), deliveries.contains(position)) {
                        (false, true) => runs.end(end, id.saturating_sub(1)),
                        (true, false) => runs.end(end, last),
                        _ => {}
                    }
                }
            }
            (before, last) = (deliveries, id);
        }
        runs.into_iter().map(|(runs, _)| runs).collect()
    }
}

#[cfg(test)]
mod tests;
