//! The orderly hand-over of a partition.

use std::time::Duration;

use tokio::time::Instant;
use tracing::debug;

use super::PartitionTask;
use crate::store::jetstream::owned::Owned;
use crate::store::journal::JournalEvent;

/// Between two decisions whether to hand a partition over.
const DECIDE_EVERY: Duration = Duration::from_millis(100);

/// How far the hand-over of an owned partition is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HandOver {
    None,
    /// The engine finishes what is in flight.
    Begun {
        at: Instant,
    },
    /// The last checkpoint may be written.
    Quiet {
        begun: Instant,
    },
}

impl PartitionTask {
    /// Begins to hand the partition over, if it is its turn.
    pub(super) fn decide(&mut self, now: Instant) {
        let is_live = self.owned.as_ref().is_some_and(Owned::is_live);
        let may_begin = is_live && self.hand_over == HandOver::None && self.closing.is_none();
        if !may_begin || self.decide_at.is_some_and(|at| at > now) {
            return;
        }
        self.decide_at = Some(now + DECIDE_EVERY);
        if self.shared.hands_over(self.partition) {
            self.hand_over = HandOver::Begun { at: now };
            debug!(partition = self.partition.0, "a partition is handed over");
            self.shared.notify(JournalEvent::Releasing { partition: self.partition });
        }
    }

    /// Others notice it by themselves, but later.
    pub(super) fn announce_release(&self) {
        let (client, names) = (self.shared.store.client().clone(), self.shared.store.names());
        let subject = names.released(self.partition);
        tokio::spawn(async move { drop(client.publish(subject, Vec::new().into()).await) });
    }
}
