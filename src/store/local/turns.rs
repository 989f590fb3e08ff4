//! Whether the committer is at work, for those who must not wait for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The turns of the committer: each is a commit or the like, and takes milliseconds. One that does
/// not end is held up by the disk.
#[derive(Clone, Debug, Default)]
pub struct Turns(
    /// Odd while a turn is in progress.
    Arc<AtomicU64>,
);

impl Turns {
    /// The number of the turn that is in progress; `None` between two.
    #[must_use]
    pub fn in_progress(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Acquire)).filter(|number| number % 2 == 1)
    }

    /// A turn is in progress until what this gives is dropped.
    #[must_use = "it ends at once"]
    pub(crate) fn begin(&self) -> Turn {
        self.0.fetch_add(1, Ordering::Release);
        Turn(self.clone())
    }
}

/// A turn in progress.
#[derive(Debug)]
pub(crate) struct Turn(Turns);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.0.fetch_add(1, Ordering::Release);
    }
}
