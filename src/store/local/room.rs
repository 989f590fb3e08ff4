//! Whether the disk has room for new writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytesize::ByteSize;
use tracing::{info, warn};

use crate::store::journal::NoRoom;

/// The free space that new writes leave (`--min-free-disk`).
#[derive(Debug)]
pub(super) struct Room {
    reserve: u64,
    /// Bytes of writes that are not durable yet: the disk does not show them.
    coming: AtomicU64,
    low: AtomicBool,
}

/// A write that is not durable yet.
pub(super) struct Coming(Arc<Room>, u64);

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.coming.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl Room {
    pub(super) fn new(reserve: u64) -> Self {
        Self { reserve, coming: AtomicU64::new(0), low: AtomicBool::new(false) }
    }

    pub(super) fn reserve(&self) -> u64 {
        self.reserve
    }

    /// Counts a write until the result is dropped.
    pub(super) fn enter(self: &Arc<Self>, bytes: u64) -> Coming {
        self.coming.fetch_add(bytes, Ordering::Relaxed);
        Coming(Arc::clone(self), bytes)
    }

    /// Whether a write of `bytes` fits. `None` is free space that the system does not report.
    ///
    /// Writes that are not durable yet count twice: rows take more than their length, and a segment
    /// is written whole.
    pub(super) fn check(&self, bytes: u64, free: Option<u64>) -> Result<(), NoRoom> {
        let Some(free) = free else { return Ok(()) };
        let coming = self.coming.load(Ordering::Relaxed).saturating_add(bytes).saturating_mul(2);
        // After a refusal an eighth more must be free. Otherwise small writes are accepted one by
        // one while large ones are refused.
        let margin = if self.low.load(Ordering::Relaxed) { self.reserve / 8 } else { 0 };
        let low = self.reserve > 0 && free < self.reserve.saturating_add(margin.max(coming));
        if low != self.low.swap(low, Ordering::Relaxed) {
            if low {
                warn!(
                    free_bytes = free,
                    "the disk is nearly full (--min-free-disk): new writes are refused, deliveries continue"
                );
            } else {
                info!(
                    free_bytes = free,
                    "there is room on the disk again: new writes are accepted"
                );
            }
        }
        if !low {
            return Ok(());
        }
        let (free, reserve) = (ByteSize(free), ByteSize(self.reserve));
        Err(NoRoom(format!(
            "the disk of the data directory has {free} free, too little above --min-free-disk ({reserve})"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_that_are_not_durable_count_twice_and_until_they_are() {
        let room = Arc::new(Room::new(1000));
        assert!(room.check(100, Some(1200)).is_ok());
        let coming = room.enter(50);
        assert!(room.check(100, Some(1200)).is_err());
        drop(coming);
        assert!(room.check(30, Some(1200)).is_ok());
    }

    #[test]
    fn after_a_refusal_an_eighth_more_must_be_free() {
        let room = Room::new(800);
        assert!(room.check(0, Some(799)).is_err());
        assert!(room.check(0, Some(850)).is_err());
        assert!(room.check(0, Some(900)).is_ok());
        assert!(room.check(0, Some(850)).is_ok());
    }

    #[test]
    fn without_a_reserve_or_a_figure_there_is_room() {
        assert!(Room::new(0).check(u64::MAX, Some(0)).is_ok());
        assert!(Room::new(u64::MAX).check(u64::MAX, None).is_ok());
    }
}
