//! What the tasks of all partitions share.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use super::checkpoint::{PartitionLevels, StoreInstance};
use super::connect::Store;
use super::members::Members;
use super::standing::{PartitionOrder, Standing};
use crate::store::journal::{JournalEvent, Notify};
use crate::task::Partition;

pub(super) struct StoreShared {
    pub(super) store: Store,
    pub(super) this: StoreInstance,
    pub(super) members: Arc<Members>,
    pub(super) partitions: Vec<Arc<Standing>>,
    notify: Mutex<Notify>,
}

impl StoreShared {
    pub(super) fn new(
        store: Store,
        this: StoreInstance,
        members: Arc<Members>,
        partitions: Vec<Arc<Standing>>,
        notify: Notify,
    ) -> Self {
        Self { store, this, members, partitions, notify: Mutex::new(notify) }
    }

    pub(super) fn notify(&self, event: JournalEvent) {
        self.notify.lock()(event);
    }

    pub(super) fn standing(&self, partition: Partition) -> Option<&Arc<Standing>> {
        self.partitions.get(usize::from(partition.0))
    }

    /// Lets every partition decide again: the members have changed.
    pub(super) fn wake(&self) {
        self.partitions.iter().for_each(|standing| standing.order(PartitionOrder::Wake));
    }

    /// What all partitions hold, as their last checkpoints say.
    pub(super) fn levels(&self) -> PartitionLevels {
        let mut sum = PartitionLevels::default();
        self.partitions.iter().for_each(|standing| sum += standing.levels());
        sum
    }
}

impl fmt::Debug for StoreShared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreShared").field("this", &self.this).finish_non_exhaustive()
    }
}
