//! Tasks that were read beside the one that was asked for.
//!
//! A backlog is sent in the order of its ids, and small tasks share rows. So a read also takes the other
//! tasks of the row, and in a sequence of reads those of the next rows. Each read that is saved is a
//! way to another thread and back, and the decoding of a row.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::task::{Task, TaskId};

/// Of the tasks, with [`OVERHEAD_BYTES`] each.
const MAX_BYTES: usize = 4 << 20;
const OVERHEAD_BYTES: usize = 400;

/// A larger one would take the place of many, and its reads cost little for each byte.
const MAX_TASK_BYTES: usize = MAX_BYTES / 16;

/// Rows behind that of the task, each of at most 4 KiB.
const ROWS: usize = 4;

/// A read of a task so soon after another one continues a sequence.
const NEAR: u64 = 64;

#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    tasks: BTreeMap<TaskId, (u64, Arc<Task>)>,
    /// In the order of their reads.
    order: BTreeMap<u64, TaskId>,
    reads: u64,
    bytes: usize,
}

impl ReadAhead {
    pub(super) fn get(&self, id: TaskId) -> Option<Task> {
        self.tasks.get(&id).map(|(_, task)| Task::clone(task))
    }

    /// How many rows to read behind that of the task.
    pub(super) fn rows(&self, id: TaskId) -> usize {
        let before = TaskId(id.0.saturating_sub(NEAR))..id;
        if self.tasks.range(before).next().is_some() { ROWS } else { 0 }
    }

    pub(super) fn add(&mut self, task: Task) {
        if cost(&task) > MAX_TASK_BYTES {
            return;
        }
        self.remove(task.id);
        self.bytes += cost(&task);
        self.reads += 1;
        self.order.insert(self.reads, task.id);
        self.tasks.insert(task.id, (self.reads, Arc::new(task)));
        while self.bytes > MAX_BYTES
            && let Some((_, first)) = self.order.pop_first()
        {
            self.remove(first);
        }
    }

    /// A settled task is not read again.
    pub(super) fn remove(&mut self, id: TaskId) {
        if let Some((read, task)) = self.tasks.remove(&id) {
            self.order.remove(&read);
            self.bytes -= cost(&task);
        }
    }
}

fn cost(task: &Task) -> usize {
    task.weight() + OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::local::LocalJournal;
    use crate::store::local::tests::{accept_all, close, open, small, sync};
    use crate::store::{Journal as _, ReadError};

    fn read(journal: &LocalJournal, id: u64) -> Result<Option<Task>, ReadError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(journal.read(TaskId(id)))
    }

    #[test]
    fn a_sequence_of_reads_finds_the_next_tasks_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let (opened, ..) = open(dir.path());
        let commit = |ids: std::ops::Range<u64>| {
            accept_all(&opened, &ids.map(small).collect::<Vec<_>>());
        };
        (0..20).for_each(|nth| commit(nth * 10 + 1..nth * 10 + 11));
        let journal = &opened.journal;
        assert_eq!(read(journal, 1).unwrap(), Some(small(1)));
        assert_eq!(read(journal, 11).unwrap(), Some(small(11)));
        // Only what is in memory can be read now.
        (0..20).for_each(|nth| opened.reader.lose(TaskId(nth * 10 + 1)));
        for id in 2..=50 {
            assert_eq!(read(journal, id).unwrap(), Some(small(id)), "{id}");
        }
        assert_eq!(read(journal, 71).unwrap(), None);
        drop(opened);
    }

    #[test]
    fn a_settled_task_is_not_read_from_memory() {
        let dir = tempfile::tempdir().unwrap();
        let (opened, ..) = open(dir.path());
        accept_all(&opened, &[small(1), small(2)]);
        assert!(read(&opened.journal, 1).unwrap().is_some());
        opened.journal.remove(TaskId(2));
        sync(&opened);
        assert_eq!(read(&opened.journal, 2).unwrap(), None);
        assert_eq!(read(&opened.journal, 1).unwrap(), Some(small(1)));
        close(opened);
    }

    #[test]
    fn damage_beside_a_task_is_found_only_when_that_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (opened, ..) = open(dir.path());
        for id in 1..=4 {
            accept_all(&opened, &[small(id)]);
        }
        opened.reader.damage(TaskId(3));
        for id in [1, 2] {
            assert_eq!(read(&opened.journal, id).unwrap(), Some(small(id)));
        }
        assert!(matches!(read(&opened.journal, 3), Err(ReadError::Damaged(_))));
        assert_eq!(read(&opened.journal, 4).unwrap(), Some(small(4)));
        drop(opened);
    }

    #[test]
    fn what_was_read_first_goes_when_there_is_too_much() {
        let mut ahead = ReadAhead::default();
        let task = |id, bytes| Task { value: vec![0; bytes].into(), ..small(id) };
        ahead.add(task(1, MAX_TASK_BYTES));
        assert_eq!(ahead.get(TaskId(1)), None);
        for id in (1..200).chain(1..100) {
            ahead.add(task(id, 100_000));
            assert!(ahead.bytes <= MAX_BYTES);
            assert_eq!(ahead.tasks.len(), ahead.order.len());
            assert!(ahead.get(TaskId(id)).is_some());
        }
        assert!(ahead.get(TaskId(50)).is_none() && ahead.get(TaskId(199)).is_none());
        (1..200).for_each(|id| ahead.remove(TaskId(id)));
        assert_eq!((ahead.bytes, ahead.order.len()), (0, 0));
    }
}
