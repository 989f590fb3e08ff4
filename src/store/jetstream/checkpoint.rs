//! What a partition has settled, and the checkpoint that says so.
//!
//! Every message of a partition up to a sequence was read. Of those, the tasks that are not settled
//! are listed; all other messages are settled, or are no tasks. The **floor** is the sequence before
//! the first message that is still needed. Messages up to it are purged.

use std::collections::BTreeMap;

use bincode::{BorrowDecode, Encode};

/// The most runs in a checkpoint, so that it fits into a message.
const MAX_RUNS: usize = 50_000;

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
    /// Lengths of the runs above the floor, in turn: not settled, settled, not settled and so on.
    /// Nothing is settled behind them.
    runs: Vec<u64>,
}

/// Finds what is settled.
#[derive(Debug)]
pub(super) struct SettledIndex {
    floor: u64,
    /// The last sequence of each run.
    ends: Vec<u64>,
}

impl Settled {
    pub(super) fn index(&self) -> SettledIndex {
        let ends = self.runs.iter().scan(self.floor, |end, run| {
            *end = end.saturating_add(*run);
            Some(*end)
        });
        SettledIndex { floor: self.floor, ends: ends.collect() }
    }
}

impl SettledIndex {
    pub(super) fn contains(&self, sequence: u64) -> bool {
        let run = self.ends.partition_point(|end| *end < sequence);
        sequence <= self.floor || (run < self.ends.len() && run % 2 == 1)
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

#[derive(Clone, Copy, Debug)]
struct OpenTask {
    bytes: u64,
    /// Messages with its value, right before it.
    chunks: u32,
    is_dead: bool,
}

/// The unsettled tasks of an owned partition.
#[derive(Debug, Default)]
pub(super) struct Unsettled {
    /// Every message up to it was read.
    through: u64,
    tasks: BTreeMap<u64, OpenTask>,
    levels: PartitionLevels,
}

impl Unsettled {
    /// Nothing is unsettled up to `through`.
    pub(super) fn after(through: u64) -> Self {
        Self { through, ..Self::default() }
    }

    pub(super) fn read_through(&mut self, sequence: u64) {
        self.through = self.through.max(sequence);
    }

    #[cfg(test)]
    pub(super) fn through(&self) -> u64 {
        self.through
    }

    pub(super) fn add(&mut self, sequence: u64, bytes: u64, chunks: u32) {
        let task = OpenTask { bytes, chunks, is_dead: false };
        self.levels.count(&task, 1);
        self.tasks.insert(sequence, task);
        self.read_through(sequence);
    }

    pub(super) fn contains(&self, sequence: u64) -> bool {
        self.tasks.contains_key(&sequence)
    }

    /// Returns false for a task that is settled.
    pub(super) fn mark(&mut self, sequence: u64, is_dead: bool) -> bool {
        let Some(task) = self.tasks.get_mut(&sequence) else { return false };
        self.levels.count(task, -1);
        task.is_dead = is_dead;
        self.levels.count(task, 1);
        true
    }

    pub(super) fn settle(&mut self, sequence: u64) {
        if let Some(task) = self.tasks.remove(&sequence) {
            self.levels.count(&task, -1);
        }
    }

    pub(super) fn levels(&self) -> PartitionLevels {
        self.levels
    }

    /// The state for a checkpoint.
    ///
    /// If it has too many runs, the last ones are left out: the newest tasks count as unsettled then,
    /// and the next owner repeats them, after every older one.
    pub(super) fn settled(&self) -> Settled {
        let first = |(sequence, task): (&u64, &OpenTask)| sequence - u64::from(task.chunks);
        let floor = self.tasks.first_key_value().map_or(self.through, |task| first(task) - 1);
        let mut runs = Vec::new();
        // The last message that a run covers.
        let mut covered = floor;
        let mut run = 0;
        for &sequence in self.tasks.keys() {
            if runs.len() >= MAX_RUNS {
                return Settled { floor, runs };
            }
            let gap = sequence - covered - 1;
            // The chunks of the first task are behind the floor.
            if gap > 0 && (run > 0 || !runs.is_empty()) {
                runs.extend([run, gap]);
                run = 1;
            } else {
                run += gap + 1;
            }
            covered = sequence;
        }
        if run > 0 {
            runs.extend([run, self.through - covered]);
        }
        Settled { floor, runs }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn unsettled(through: u64, open: &[(u64, u32)]) -> Unsettled {
        let mut unsettled = Unsettled::after(100);
        unsettled.read_through(through);
        open.iter().for_each(|&(sequence, chunks)| unsettled.add(sequence, 10, chunks));
        unsettled
    }

    #[test]
    fn the_floor_is_before_the_first_message_that_is_needed() {
        assert_eq!(unsettled(200, &[]).settled().floor, 200);
        assert_eq!(unsettled(200, &[(150, 0), (160, 0)]).settled().floor, 149);
        assert_eq!(unsettled(200, &[(150, 3), (160, 0)]).settled().floor, 146);
    }

    #[test]
    fn levels_tell_tasks_in_the_queue_from_dead_letters() {
        let mut unsettled = unsettled(200, &[(150, 0), (160, 0), (170, 0)]);
        assert!(unsettled.mark(160, true));
        unsettled.settle(150);
        assert!(!unsettled.mark(150, true));
        let levels = PartitionLevels { queued: 1, queued_bytes: 10, dead: 1, dead_bytes: 10 };
        assert_eq!(unsettled.levels(), levels);
        unsettled.mark(160, false);
        unsettled.settle(160);
        unsettled.settle(170);
        assert_eq!(unsettled.levels(), PartitionLevels::default());
    }

    #[test]
    fn with_too_many_runs_only_the_newest_tasks_count_as_unsettled() {
        let open: Vec<_> = (0..60_000).map(|nth| (101 + nth * 2, 0)).collect();
        let settled = unsettled(200_000, &open).settled().index();
        let last = (101..200_000).rev().find(|sequence| settled.contains(*sequence)).unwrap();
        assert_eq!(last, 100 + MAX_RUNS as u64);
        for sequence in 101..=last {
            assert_eq!(settled.contains(sequence), sequence % 2 == 0, "{sequence}");
        }
    }

    proptest! {
        #[test]
        fn a_checkpoint_says_exactly_which_tasks_are_settled(
            open in proptest::collection::btree_map(101_u64..180, 0_u32..3, 0..40),
            behind in 0_u64..40,
        ) {
            let through = open.keys().max().copied().unwrap_or(100) + behind;
            // A chunk is no task.
            let tasks: BTreeSet<_> = open.keys().copied().collect();
            let open: Vec<_> = open.into_iter().filter(|(sequence, chunks)| {
                *sequence > 104 || *chunks == 0
            }).collect();
            let floor = unsettled(through, &open).settled().floor;
            let settled = unsettled(through, &open).settled().index();
            let open: BTreeSet<_> = open.into_iter().map(|(sequence, _)| sequence).collect();
            for sequence in tasks.iter().copied().chain(90..=through) {
                // Messages before the first task can be its chunks.
                let is_chunk = sequence > floor && open.first().is_some_and(|first| sequence < *first);
                if !is_chunk {
                    prop_assert_eq!(settled.contains(sequence), !open.contains(&sequence));
                }
            }
            prop_assert!((through + 1..through + 9).all(|sequence| !settled.contains(sequence)));
        }
    }
}
