//! Reads single tasks, and the size of the files, while the committer writes.

use std::fmt;
use std::sync::Arc;

use super::Files;
use super::error::{ReadError, guarded};
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
        guarded(|| Ok(self.files.database.read(id)?))
    }

    /// The size of the store's files in bytes, 0 where the operating system does not say. They
    /// grow with the backlog and do not shrink with it.
    #[must_use]
    pub fn file_bytes(&self) -> u64 {
        self.files.database.file_bytes().unwrap_or_default()
    }
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}
