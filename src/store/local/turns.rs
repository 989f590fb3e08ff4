//! Whether the committer is busy, without waiting for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the committer's turns. A turn takes milliseconds; one that does not end is held up by the
/// disk.
#[derive(Clone, Debug, Default)]
pub struct CommitterTurns(
    /// Odd while a turn is in progress.
    Arc<AtomicU64>,
);

impl CommitterTurns {
    /// The number of the turn in progress.
    pub fn in_progress(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Acquire)).filter(|number| number % 2 == 1)
    }

    /// Starts a turn, which ends when the result is dropped.
    #[must_use = "the turn ends when this is dropped"]
    pub(crate) fn begin(&self) -> Turn {
        self.0.fetch_add(1, Ordering::Release);
        Turn(self.clone())
    }
}

#[derive(Debug)]
pub(crate) struct Turn(CommitterTurns);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Release);
    }
}
