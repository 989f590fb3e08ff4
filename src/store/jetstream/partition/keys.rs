//! The ids and the answers that the idempotency keys of a partition get.

use std::sync::Arc;

use tokio::time::sleep;

use super::{PAUSE, PartitionTask};
use crate::store::jetstream::answers;
use crate::store::jetstream::names::task_id;
use crate::store::jetstream::owned::KeyedTask;
use crate::store::jetstream::standing::{PartitionOrder, Standing};
use crate::store::records::IdempotencyAnswer;
use crate::task::{Obstacle, ReplicaIndex};

impl PartitionTask {
    /// Gives an idempotency key the id of its task.
    pub(super) fn bind(&self, sequence: u64, task: KeyedTask) {
        let (keys, standing) = (Arc::clone(&self.keys), Arc::clone(&self.standing));
        let id = task_id(sequence, self.partition);
        let KeyedTask { idempotency, consistency, nonce } = task;
        let epoch = self.standing.fence().epoch();
        tokio::spawn(async move {
            // A repeat needs it, so it is done before the task is settled.
            while !keys.bind(&idempotency, consistency, standing.partition, nonce.0, id).await {
                if !pause_while_owned(&standing, epoch).await {
                    return;
                }
            }
            standing.order(PartitionOrder::Bound { sequence });
        });
    }

    pub(super) fn conclude(
        &mut self,
        sequence: u64,
        answer: IdempotencyAnswer,
        obstacles: &[(ReplicaIndex, Obstacle)],
    ) {
        let Some(owned) = &mut self.owned else { return };
        let id = task_id(sequence, self.partition);
        let this = self.shared.this.process;
        if let Some(process) = owned.take_awaited(sequence).filter(|process| *process != this) {
            answers::send(&self.shared.store, process, id, &answer, obstacles);
        }
        let Some(task) = owned.decided(sequence) else { return };
        let (keys, idempotency) = (Arc::clone(&self.keys), task.idempotency.clone());
        let standing = Arc::clone(&self.standing);
        let epoch = standing.fence().epoch();
        tokio::spawn(async move {
            // A repeat needs it, so it is done before the task is settled.
            while !keys.conclude(&idempotency, id, answer.clone()).await {
                if !pause_while_owned(&standing, epoch).await {
                    return;
                }
            }
            standing.order(PartitionOrder::Answered { sequence });
        });
    }
}

/// Before the next attempt. False if the partition is not owned any more, or owned once more.
async fn pause_while_owned(standing: &Standing, epoch: Option<u64>) -> bool {
    let is_owned = standing.fence().epoch() == epoch;
    if is_owned {
        sleep(PAUSE).await;
    }
    is_owned
}
