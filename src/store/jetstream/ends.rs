//! The ends of the logs of partitions, for barriers.

#![expect(clippy::disallowed_methods, reason = "waits, which the clock of the loop has no part in")]

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};

use super::connect::Store;
use super::names::task_id;
use super::peers::Peers;
use super::protocol::Outgoing;
use crate::task::{Partition, TaskId};

const ONE_TRY: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);

impl Store {
    /// Stores a mark in a partition. Everything that was acknowledged before is before it. A leader
    /// that was replaced and does not know it cannot store it, while it could still be read from.
    /// `None` if there is no answer until the deadline.
    async fn mark(&self, partition: Partition, deadline: Instant) -> Option<TaskId> {
        loop {
            // The progress of no task, which every reader skips. It does not replace the mark before:
            // a message that is missing is looked for on all servers.
            let subject = self.names().progress(partition, 0);
            let mark = Outgoing::new(subject, Bytes::new());
            let left = deadline.saturating_duration_since(Instant::now());
            if let Ok(ack) = self.publish(mark, ONE_TRY.min(left)).await {
                return Some(task_id(ack.sequence, partition));
            }
            if Instant::now() + PAUSE >= deadline {
                return None;
            }
            sleep(PAUSE).await;
        }
    }
}

impl Peers {
    /// An id in each partition that is above the ids of all tasks accepted before this call, and below
    /// those accepted after it.
    ///
    /// # Errors
    ///
    /// The partitions that have no leader within `--store-timeout`.
    pub async fn mark(&self) -> Result<Vec<TaskId>, Vec<Partition>> {
        let store = &self.shared.store;
        let deadline = Instant::now() + store.settings().timeout;
        let marks = store
            .record()
            .partitions()
            .map(async |partition| store.mark(partition, deadline).await.ok_or(partition));
        let marks = join_all(marks).await;
        let missing: Vec<_> = marks.iter().filter_map(|mark| mark.err()).collect();
        match missing.is_empty() {
            true => Ok(marks.into_iter().flatten().collect()),
            false => Err(missing),
        }
    }
}
