//! What the tasks of all partitions share.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::checkpoint::{PartitionLevels, StoreInstance};
use super::connect::Store;
use super::standing::{PartitionOrder, Standing};
use crate::store::journal::{JournalEvent, Notify};
use crate::task::Partition;

pub(super) struct StoreShared {
    pub(super) store: Store,
    pub(super) this: StoreInstance,
    pub(super) partitions: Vec<Arc<Standing>>,
    notify: Mutex<Notify>,
    /// This process owns the first partition, so it may own the others.
    is_leader: AtomicBool,
}

impl StoreShared {
    pub(super) fn new(
        store: Store,
        this: StoreInstance,
        partitions: Vec<Arc<Standing>>,
        notify: Notify,
    ) -> Self {
        Self {
            store,
            this,
            partitions,
            notify: Mutex::new(notify),
            is_leader: AtomicBool::new(false),
        }
    }

    pub(super) fn notify(&self, event: JournalEvent) {
        self.notify.lock().unwrap_or_else(PoisonError::into_inner)(event);
    }

    pub(super) fn standing(&self, partition: Partition) -> Option<&Arc<Standing>> {
        self.partitions.get(usize::from(partition.0))
    }

    pub(super) fn may_own(&self, partition: Partition) -> bool {
        partition == Partition::default() || self.is_leader.load(Ordering::Relaxed)
    }

    /// The first partition was claimed or lost.
    pub(super) fn set_leader(&self, is_leader: bool) {
        self.is_leader.store(is_leader, Ordering::Relaxed);
        self.partitions.iter().for_each(|standing| standing.order(PartitionOrder::Wake));
    }

    /// What the partitions of other owners hold.
    pub(super) fn levels_elsewhere(&self) -> PartitionLevels {
        let mut sum = PartitionLevels::default();
        let elsewhere = self.partitions.iter().filter(|standing| !standing.is_owned());
        elsewhere.for_each(|standing| sum += standing.levels());
        sum
    }
}

impl fmt::Debug for StoreShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreShared").field("this", &self.this).finish_non_exhaustive()
    }
}
