//! Reads single tasks, and the sizes of the store, while the committer writes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Files;
use super::error::{Failure, guarded};
use super::rows::Nodes;
use crate::store::records::{Header, ReadError};
use crate::task::{Task, TaskId};

/// Reads from the store. Cheap to clone; the data directory stays locked until the last clone is
/// dropped. A read error does not stop the committer.
#[derive(Clone)]
pub struct StoreReader {
    pub(super) files: Arc<Files>,
}

impl StoreReader {
    /// Reads a task with its value; `None` if it is settled and removed. Blocks on the disk. A task
    /// becomes visible shortly before its commit.
    pub fn read(&self, id: TaskId) -> Result<Option<Task>, ReadError> {
        guarded(|| Ok(self.files.database().read(id)?))
    }

    /// Reads the other tasks of the row of a task, and of the `more` rows behind it, as far as they can be
    /// read and have no chunks. Blocks on the disk.
    pub(super) fn read_beside(&self, id: TaskId, more: usize) -> Result<Vec<Task>, ReadError> {
        guarded(|| Ok(self.files.database().read_beside(id, more)?))
    }

    /// Reads a task without its value; `None` if it is settled and removed. Blocks on the disk, for
    /// a single row unless the key or the list of replicas is longer than that.
    #[cfg(test)]
    pub(crate) fn header(&self, id: TaskId) -> Result<Option<Header>, ReadError> {
        guarded(|| Ok(self.files.database().header(id, &mut Nodes::default())?))
    }

    /// Reads tasks without their values, one entry per id; `None` also for a damaged one. Blocks on
    /// the disk.
    pub fn headers(&self, ids: &[TaskId]) -> Result<Vec<Option<Header>>, ReadError> {
        let mut nodes = Nodes::default();
        let database = self.files.database();
        let header = |&id| match database.header(id, &mut nodes) {
            Err(Failure::Damaged(_)) => Ok(None),
            header => Ok(header?),
        };
        guarded(|| ids.iter().map(header).collect())
    }

    /// The size of sled's file, as last seen by the committer; 0 if unknown. It grows with the
    /// backlog until a compaction.
    pub fn file_bytes(&self) -> u64 {
        self.files.sizes.file.load(Ordering::Relaxed)
    }

    /// The size of the keys and rows in the file, as last seen by the committer.
    pub fn live_bytes(&self) -> u64 {
        self.files.sizes.live.load(Ordering::Relaxed)
    }

    /// After the last flush; `None` if unknown.
    pub fn free_bytes(&self) -> Option<u64> {
        Some(self.files.sizes.free.load(Ordering::Relaxed)).filter(|&free| free != u64::MAX)
    }

    /// Since the start.
    pub fn compactions(&self) -> u64 {
        self.files.sizes.compactions.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for StoreReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreReader").finish_non_exhaustive()
    }
}
