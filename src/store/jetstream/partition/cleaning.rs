//! Keeps the log of an owned partition short.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, warn};

use super::PartitionTask;
use crate::store::jetstream::copying::CleaningStep;
use crate::store::jetstream::protocol::StoreRequestError;
use crate::store::jetstream::standing::PartitionOrder;
use crate::task::Partition;

/// Between two purges.
const PURGE_EVERY: Duration = Duration::from_secs(1);

/// More than an election explains.
const MANY_FAILED: u32 = 30;

#[derive(Default)]
pub(super) struct Purge {
    pub(super) is_running: bool,
    /// Everything before it is gone.
    pub(super) done: u64,
    /// Nothing before it is needed.
    pub(super) wanted: u64,
    pub(super) next: Option<Instant>,
    /// One after the other.
    failed: u32,
}

impl Purge {
    pub(super) fn ended(
        &mut self,
        partition: Partition,
        before: u64,
        result: Result<(), StoreRequestError>,
    ) {
        let partition = partition.0;
        match result {
            Ok(()) => (self.done, self.failed) = (before, 0),
            Err(error) => {
                self.failed = self.failed.saturating_add(1);
                if self.failed == MANY_FAILED {
                    warn!(%error, partition, "the log of a partition cannot be purged, and grows");
                } else {
                    debug!(%error, partition, "a purge failed");
                }
            }
        }
    }
}

impl PartitionTask {
    pub(super) fn clean(&mut self, now: Instant) {
        let Purge { done, wanted, .. } = self.purge;
        let Some(owned) = &mut self.owned else { return };
        let (shared, epoch) = (Arc::clone(&self.shared), owned.epoch);
        match owned.clean(now, done, wanted) {
            CleaningStep::Nothing => {}
            CleaningStep::Look => shared.look_at_log(self.partition, epoch),
            CleaningStep::Read(tasks) => shared.read_to_copy(self.partition, epoch, tasks),
            CleaningStep::Purge => self.purge.next = None,
        }
    }

    pub(super) fn purge(&mut self, now: Instant) {
        let Purge { is_running, done, wanted, next, .. } = self.purge;
        let is_due = next.is_none_or(|next| next <= now);
        if is_running || wanted <= done || !is_due || self.owned.is_none() {
            return;
        }
        (self.purge.is_running, self.purge.next) = (true, Some(now + PURGE_EVERY));
        let (shared, standing) = (Arc::clone(&self.shared), Arc::clone(&self.standing));
        tokio::spawn(async move {
            let result = shared.store.purge_before(standing.partition, wanted).await;
            standing.order(PartitionOrder::Purged { before: wanted, result });
        });
    }
}
