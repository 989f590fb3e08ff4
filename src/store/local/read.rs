//! Reads single tasks, and the size of the files, while the committer writes.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Files;
use super::error::{Failure, ReadError, guarded};
use super::rows::{Header, Nodes};
use crate::task::{Task, TaskId};

/// A way to read. Cheap to clone; the data directory stays locked until the last one is dropped.
#[derive(Clone)]
pub struct Reader {
    pub(super) files: Arc<Files>,
}

impl Reader {
    /// Reads a task with its value; `None` if it is settled and removed. Blocks on the disk, and
    /// sees a task no earlier than shortly before its commit.
    ///
    /// # Errors
    ///
    /// A [`ReadError`] if a row of it is not what was written, or the database fails. Neither
    /// stops the committer.
    pub fn read(&self, id: TaskId) -> Result<Option<Task>, ReadError> {
        guarded(|| Ok(self.files.database().read(id)?))
    }

    /// Reads a task without its value; `None` if it is settled and removed. Blocks on the disk: a
    /// single row, unless the key or the list of replicas is longer than that.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn header(&self, id: TaskId) -> Result<Option<Header>, ReadError> {
        guarded(|| Ok(self.files.database().header(id, &mut Nodes::default())?))
    }

    /// Reads tasks without their values, one entry for each of `ids`; `None` also for one that
    /// cannot be read whole. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// A [`ReadError`] if the database fails.
    pub fn headers(&self, ids: &[TaskId]) -> Result<Vec<Option<Header>>, ReadError> {
        let mut nodes = Nodes::default();
        let database = self.files.database();
        let header = |&id| match database.header(id, &mut nodes) {
            Err(Failure::Damaged(_)) => Ok(None),
            header => Ok(header?),
        };
        guarded(|| ids.iter().map(header).collect())
    }

    /// The size of the store's file in bytes, as the committer has last seen it; 0 where the
    /// operating system does not say. It grows with the backlog; a compaction makes it small again.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.sizes.file.load(Ordering::Relaxed)
    }

    /// The length of the keys and rows in it, in bytes, seen at the same time.
    #[must_use]
    pub fn live_bytes(&self) -> u64 {
        self.files.sizes.live.load(Ordering::Relaxed)
    }

    /// What is free on its disk, in bytes, after the last flush; `None` where the system does not
    /// say.
    #[must_use]
    pub fn free_bytes(&self) -> Option<u64> {
        Some(self.files.sizes.free.load(Ordering::Relaxed)).filter(|&free| free != u64::MAX)
    }

    /// How often the store was compacted since the start.
    #[must_use]
    pub fn compactions(&self) -> u64 {
        self.files.sizes.compactions.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}
