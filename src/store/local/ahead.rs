//! Tasks that were read beside the one that was asked for.
//!
//! A backlog is sent in the order of its ids, and small tasks share rows. So a read also takes the other
//! tasks of the row, and in a sequence of reads those of the next rows. Each read that is saved is a
//! way to another thread and back, and the decoding of a row.

use std::sync::Arc;

use crate::task::{KeptTasks, Task, TaskId, cost};

const MAX_BYTES: usize = 4 << 20;

/// A larger one would take the place of many, and its reads cost little for each byte.
const MAX_TASK_BYTES: usize = MAX_BYTES / 16;

/// Rows behind that of the task, each of at most 4 KiB.
const ROWS: usize = 4;

/// A read of a task so soon after another one continues a sequence.
const NEAR: u64 = 64;

#[derive(Debug)]
pub(super) struct ReadAhead(KeptTasks);

impl Default for ReadAhead {
    fn default() -> Self {
        Self(KeptTasks::new(MAX_BYTES))
    }
}

impl ReadAhead {
    pub(super) fn get(&self, id: TaskId) -> Option<Task> {
        self.0.get(id).map(Arc::unwrap_or_clone)
    }

    /// How many rows to read behind that of the task.
    pub(super) fn rows(&self, id: TaskId) -> usize {
        if self.0.has_before(id, NEAR) { ROWS } else { 0 }
    }

    pub(super) fn add(&mut self, task: Task) {
        if cost(&task) <= MAX_TASK_BYTES {
            self.0.add(Arc::new(task));
        }
    }

    /// A settled task is not read again.
    pub(super) fn remove(&mut self, id: TaskId) {
        self.0.remove(id);
    }
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
    fn a_large_task_takes_no_place() {
        let mut ahead = ReadAhead::default();
        ahead.add(Task { value: vec![0; MAX_TASK_BYTES].into(), ..small(1) });
        ahead.add(small(2));
        assert_eq!((ahead.get(TaskId(1)), ahead.get(TaskId(2))), (None, Some(small(2))));
    }
}
