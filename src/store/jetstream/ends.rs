//! The ends of the streams of partitions, for barriers and for operators.

#![expect(clippy::disallowed_methods, reason = "waits, which the clock of the loop has no part in")]

use std::time::Duration;

use async_nats::Request;
use bytes::Bytes;
use futures_util::future::join_all;
use serde::Deserialize;
use tokio::time::{Instant, sleep, timeout};

use super::connect::Store;
use super::names::task_id;
use super::peers::Peers;
use super::protocol::Outgoing;
use crate::task::{Partition, TaskId};

const ONE_TRY: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(100);

/// For what operators see.
const LOOK: Duration = Duration::from_secs(1);

/// The stream of a partition, as its leader says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartitionStream {
    pub partition: Partition,
    /// The server that leads it. A single server has no name here.
    pub leader: Option<String>,
    /// Operations that the slowest copy lacks.
    pub lag: u64,
}

#[derive(Deserialize)]
struct InfoAnswer {
    #[serde(default)]
    cluster: StreamCluster,
    state: Option<serde::de::IgnoredAny>,
}

#[derive(Default, Deserialize)]
struct StreamCluster {
    leader: Option<String>,
    #[serde(default)]
    replicas: Vec<StreamCopy>,
}

#[derive(Deserialize)]
struct StreamCopy {
    #[serde(default)]
    lag: u64,
}

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

    async fn stream(&self, partition: Partition) -> Option<PartitionStream> {
        let subject = format!("$JS.API.STREAM.INFO.{}", self.names().stream(partition));
        let answer = self.client().send_request(subject, Request::new().timeout(None));
        let answer = timeout(LOOK, answer).await.ok()?.ok()?;
        let InfoAnswer { cluster, state } = serde_json::from_slice(&answer.payload).ok()?;
        state?;
        let lag = cluster.replicas.iter().map(|copy| copy.lag).max().unwrap_or(0);
        Some(PartitionStream { partition, leader: cluster.leader, lag })
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

    /// The streams whose leader answers.
    pub async fn streams(&self) -> Vec<PartitionStream> {
        let store = &self.shared.store;
        let streams = store.record().partitions().map(|partition| store.stream(partition));
        join_all(streams).await.into_iter().flatten().collect()
    }
}
