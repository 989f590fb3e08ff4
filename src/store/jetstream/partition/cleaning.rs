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

/// Between two purges. With one every second, settling took twice the CPU of the servers.
const PURGE_EVERY: Duration = Duration::from_secs(5);

/// Between two purges of many bytes or of a full log, and after a failed one.
const PURGE_SOON: Duration = Duration::from_secs(1);
const PURGE_BYTES: u64 = 4 << 20;

/// More than an election explains.
const MANY_FAILED: u32 = 30;

#[derive(Default)]
pub(super) struct Purge {
    pub(super) is_running: bool,
    /// Everything before it is gone.
    pub(super) done: u64,
    /// Nothing before it is needed.
    pub(super) wanted: u64,
    /// When the last one began.
    pub(super) last: Option<Instant>,
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
            CleaningStep::Purge => self.purge.last = None,
        }
    }

    pub(super) fn purge(&mut self, now: Instant) {
        let Purge { is_running, done, wanted, last, failed } = self.purge;
        let Some(owned) = self.owned.as_mut().filter(|_| !is_running && wanted > done) else {
            return;
        };
        let is_urgent = failed > 0
            || owned.settled_bytes >= PURGE_BYTES
            || self.shared.store.is_nearly_full(self.partition);
        let pause = if is_urgent { PURGE_SOON } else { PURGE_EVERY };
        if last.is_some_and(|last| now < last + pause) {
            return;
        }
        owned.settled_bytes = 0;
        (self.purge.is_running, self.purge.last) = (true, Some(now));
        let (shared, standing) = (Arc::clone(&self.shared), Arc::clone(&self.standing));
        tokio::spawn(async move {
            let result = shared.store.purge_before(standing.partition, wanted).await;
            standing.order(PartitionOrder::Purged { before: wanted, result });
        });
    }
}
