//! Keeps the log of an owned partition short.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::PartitionTask;
use crate::store::jetstream::copying::CleaningStep;
use crate::store::jetstream::standing::PartitionOrder;

/// Between two purges.
const PURGE_EVERY: Duration = Duration::from_secs(1);

#[derive(Default)]
pub(super) struct Purge {
    pub(super) is_running: bool,
    /// Everything before it is gone.
    pub(super) done: u64,
    /// Nothing before it is needed.
    pub(super) wanted: u64,
    pub(super) next: Option<Instant>,
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
        let Purge { is_running, done, wanted, next } = self.purge;
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
