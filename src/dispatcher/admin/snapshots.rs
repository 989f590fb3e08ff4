//! Snapshots of the store, which are read from the store alone.

use crate::dispatcher::messages::{AdminError, AdminReply, Request};
use crate::dispatcher::{Core, Handle};
use crate::store::{SnapshotError, StoreSnapshot};

impl Handle {
    /// Begins a snapshot of everything that was accepted before. It ends when it is dropped.
    pub async fn store_snapshot(&self) -> Result<Box<dyn StoreSnapshot>, AdminError> {
        self.ask(|reply| Request::StoreSnapshot { reply }).await
    }
}

impl Core {
    pub(in crate::dispatcher) fn store_snapshot(&self, reply: AdminReply<Box<dyn StoreSnapshot>>) {
        self.journal.snapshot(Box::new(|begun| {
            // The operator may be gone.
            let _ = reply.send(begun.map_err(|error| match error {
                SnapshotError::Shared => AdminError::Conflict(error.to_string()),
                SnapshotError::Busy => AdminError::TooMany(error.to_string()),
                SnapshotError::Disk(_) => AdminError::Unreadable(error.to_string()),
                SnapshotError::Store(_) => AdminError::Stopped,
            }));
        }));
    }
}
