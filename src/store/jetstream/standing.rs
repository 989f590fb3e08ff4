//! What the rest of the process may know of a partition. Only the partition's task changes it.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use super::checkpoint::{PartitionLevels, StoreInstance};
use super::copying::ReadTask;
use super::protocol::{Ack, LogMessage, StoreRequestError};
use super::reader::LoggedTask;
use crate::lease::{BootTime, Fence};
#[cfg(doc)]
use crate::store::journal::JournalEvent;
use crate::store::journal::Reply;
use crate::store::records::IdempotencyAnswer;
use crate::task::{Obstacle, Partition, Progress, ReplicaIndex};

/// Who owns a partition, as far as this process knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Owner {
    /// Nothing is known yet, or no instance owns it.
    #[default]
    Unknown,
    /// This process. What is behind the claim arrives as it is stored.
    This {
        claim: u64,
    },
    Other(StoreInstance),
}

#[derive(Debug)]
pub(super) struct Standing {
    pub(super) partition: Partition,
    pub(super) owner: watch::Sender<Owner>,
    orders: mpsc::UnboundedSender<PartitionOrder>,
    details: Mutex<Details>,
}

#[derive(Debug)]
struct Details {
    fence: Fence,
    levels: PartitionLevels,
    /// Messages up to it are stored.
    stored: u64,
}

/// An input of the task of a partition.
pub(super) enum PartitionOrder {
    /// A task is stored, by this process or by another one for it.
    Acked {
        sequence: u64,
        task: LoggedTask,
    },
    /// The messages up to this one are stored.
    Hint {
        sequence: u64,
    },
    /// Report up to where the tasks have arrived.
    ReportCaughtUp,
    Settle {
        sequence: u64,
        settlement: TaskSettlement,
    },
    /// The answer to a strong write.
    Conclude {
        sequence: u64,
        answer: IdempotencyAnswer,
        obstacles: Vec<(ReplicaIndex, Obstacle)>,
    },
    /// The idempotency key of this task has its id.
    Bound {
        sequence: u64,
    },
    /// Nothing of the partition is in flight, after [`JournalEvent::Releasing`].
    Quiet,
    /// Its last owner has given it up, or another one has written: look at the last checkpoint.
    News,
    /// The idempotency key of this task has its answer.
    Answered {
        sequence: u64,
    },
    /// The tasks of the partition have left the engine.
    GivenUp,
    Sync(Reply),
    /// Look again whether to claim or release it.
    Wake,
    /// Settle, give the partition up and end.
    Close(oneshot::Sender<()>),
    /// The end of a read of the log, for the owner with this epoch.
    Read {
        epoch: u64,
        result: Result<Vec<LogMessage>, StoreRequestError>,
    },
    /// The end of a read of the last checkpoint.
    Looked {
        at: BootTime,
        result: Result<Option<LogMessage>, StoreRequestError>,
    },
    /// The end of the write of a checkpoint.
    Written {
        result: Result<Ack, StoreRequestError>,
    },
    /// The size of the log, for the owner with this epoch.
    Sized {
        epoch: u64,
        bytes: Option<u64>,
    },
    /// Tasks were read to be copied, for the owner with this epoch, up to the first read that failed.
    Copied {
        epoch: u64,
        tasks: Vec<ReadTask>,
        has_failed: bool,
    },
    Purged {
        before: u64,
        result: Result<(), StoreRequestError>,
    },
}

pub(super) enum TaskSettlement {
    Save(Vec<Progress>),
    Remove,
}

impl Standing {
    pub(super) fn new(
        partition: Partition,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<PartitionOrder>) {
        let (orders, receiver) = mpsc::unbounded_channel();
        let levels = PartitionLevels::default();
        let details = Mutex::new(Details { fence: Fence::Lost, levels, stored: 0 });
        let owner = watch::Sender::default();
        (Arc::new(Self { partition, owner, orders, details }), receiver)
    }

    /// The task of the partition may have ended: then there is nothing left to do.
    pub(super) fn order(&self, order: PartitionOrder) {
        drop(self.orders.send(order));
    }

    /// Whether this process owns the partition, and a message with this sequence arrives.
    pub(super) fn arrives(&self, sequence: u64) -> bool {
        matches!(*self.owner.borrow(), Owner::This { claim } if sequence > claim)
    }

    pub(super) fn is_owned(&self) -> bool {
        matches!(*self.owner.borrow(), Owner::This { .. })
    }

    /// Whether this other instance is known to own it.
    pub(super) fn is_owned_by(&self, instance: &StoreInstance) -> bool {
        matches!(&*self.owner.borrow(), Owner::Other(owner) if owner == instance)
    }

    pub(super) fn set_owner(&self, owner: Owner) {
        self.owner.send_if_modified(|current| {
            let differs = *current != owner;
            *current = owner;
            differs
        });
    }

    pub(super) fn fence(&self) -> Fence {
        self.details.lock().fence.clone()
    }

    pub(super) fn set_fence(&self, fence: Fence) {
        self.details.lock().fence = fence;
    }

    pub(super) fn levels(&self) -> PartitionLevels {
        self.details.lock().levels
    }

    pub(super) fn set_levels(&self, levels: PartitionLevels) {
        self.details.lock().levels = levels;
    }

    pub(super) fn stored(&self) -> u64 {
        self.details.lock().stored
    }

    pub(super) fn note_stored(&self, sequence: u64) {
        let mut details = self.details.lock();
        details.stored = details.stored.max(sequence);
    }
}
