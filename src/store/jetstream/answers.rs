//! The answers to strong writes, from the owner of a partition to the process that has accepted the
//! write. They are not stored: a client whose answer is lost gets the error that it is not known.

use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tracing::debug;

use super::connect::Store;
use super::shared::StoreShared;
use crate::store::journal::JournalEvent;
use crate::store::records::IdempotencyAnswer;
use crate::task::{Obstacle, ReplicaIndex, TaskId};

const FORMAT: u32 = 1;

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct StrongAnswer {
    format: u32,
    /// Decimal.
    task: String,
    success: bool,
    needed: u16,
    acked: Vec<u16>,
    failed: Vec<u16>,
    /// Failed replicas to which nothing is sent, and whether they are paused.
    obstacles: Vec<(u16, bool)>,
}

/// Sends an answer to the process that has accepted the write.
pub(super) fn send(
    store: &Store,
    process: u64,
    task: TaskId,
    answer: &IdempotencyAnswer,
    obstacles: &[(ReplicaIndex, Obstacle)],
) {
    let Ok(payload) = serde_json::to_vec(&StrongAnswer::of(task, answer, obstacles)) else {
        return;
    };
    let (client, subject) = (store.client().clone(), store.names().answers(process));
    tokio::spawn(async move {
        if let Err(error) = client.publish(subject, payload.into()).await {
            debug!(%error, %task, "the answer to a strong write cannot be sent");
        }
    });
}

/// Passes on the answers to the strong writes of this process.
pub(super) async fn listen(shared: Arc<StoreShared>) {
    let store = shared.store.clone();
    let subject = store.names().answers(shared.this.process);
    let take = move |answer: Bytes| match StrongAnswer::parse(&answer)
        .and_then(StrongAnswer::into_event)
    {
        Some(event) => shared.notify(event),
        None => debug!("the answer to a strong write cannot be read"),
    };
    store.listen(subject, take).await;
}

impl StrongAnswer {
    fn of(
        task: TaskId,
        answer: &IdempotencyAnswer,
        obstacles: &[(ReplicaIndex, Obstacle)],
    ) -> Self {
        let obstacle = |(replica, why): &(ReplicaIndex, Obstacle)| {
            let is_paused = match why {
                Obstacle::Paused => true,
                Obstacle::BreakerOpen => false,
            };
            (replica.0, is_paused)
        };
        Self {
            format: FORMAT,
            task: task.to_string(),
            success: answer.success,
            needed: answer.needed,
            acked: answer.acked.clone(),
            failed: answer.failed.clone(),
            obstacles: obstacles.iter().map(obstacle).collect(),
        }
    }

    fn parse(payload: &[u8]) -> Option<Self> {
        serde_json::from_slice(payload).ok().filter(|parsed: &Self| parsed.format <= FORMAT)
    }

    fn into_event(self) -> Option<JournalEvent> {
        let Self { task, success, needed, acked, failed, obstacles, .. } = self;
        let task = TaskId(u64::from_str(&task).ok()?);
        let obstacle = |(replica, is_paused)| {
            let why = if is_paused { Obstacle::Paused } else { Obstacle::BreakerOpen };
            (ReplicaIndex(replica), why)
        };
        let obstacles = obstacles.into_iter().map(obstacle).collect();
        let answer = IdempotencyAnswer { success, acked, failed, needed };
        Some(JournalEvent::Concluded { task, answer, obstacles })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_as_it_was_sent() {
        let answer =
            IdempotencyAnswer { success: false, acked: vec![1], failed: vec![0, 2], needed: 2 };
        let obstacles =
            vec![(ReplicaIndex(0), Obstacle::Paused), (ReplicaIndex(2), Obstacle::BreakerOpen)];
        let task = TaskId(u64::MAX);
        let payload = serde_json::to_vec(&StrongAnswer::of(task, &answer, &obstacles)).unwrap();
        let read = StrongAnswer::parse(&payload).and_then(StrongAnswer::into_event);
        assert_eq!(read, Some(JournalEvent::Concluded { task, answer, obstacles }));
    }

    #[test]
    fn an_answer_without_sense_is_left_out() {
        assert_eq!(StrongAnswer::parse(b"{}"), None);
        let answer = IdempotencyAnswer { success: true, acked: vec![], failed: vec![], needed: 0 };
        let sent =
            StrongAnswer { task: "x".to_owned(), ..StrongAnswer::of(TaskId(1), &answer, &[]) };
        assert_eq!(sent.into_event(), None);
    }
}
