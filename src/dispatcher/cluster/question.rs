//! The requests between instances, and the answers of this one.
//!
//! A field or request that this version does not know makes the whole unknown: a selection without one
//! of its filters would select too much.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::oneshot;

use crate::dispatcher::Handle;
use crate::dispatcher::bulk::{BulkWork, SharedOperation};
use crate::dispatcher::messages::{
    AdminError, LetterCursor, LetterFilter, ReplicaRecord, Request, TaskFilter,
};
use crate::engine::BarrierEnd;
use crate::store::MAX_PARTITIONS;
use crate::task::{Node, TaskId};

const FORMAT: u32 = 1;

/// How long an owner may take to read a task that was just accepted.
const READ_WITHIN: Duration = Duration::from_secs(1);

const LOOK_EVERY: Duration = Duration::from_millis(10);

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Question {
    Replicas {
        node: Option<Node>,
    },
    Past {
        node: Option<Node>,
    },
    Tasks {
        filter: TaskFilter,
        limit: usize,
        after: Option<TaskId>,
    },
    Task {
        id: TaskId,
    },
    DiscardTask {
        id: TaskId,
    },
    Key {
        key: String,
    },
    Letters {
        filter: LetterFilter,
        limit: usize,
        after: Option<LetterCursor>,
    },
    LetterSummary,
    /// Whether this record is applied.
    Applied {
        record: ReplicaRecord,
    },
    Probe {
        node: Node,
    },
    Forget {
        node: Node,
        keeps_record: bool,
    },
    StartOperation {
        work: BulkWork,
        shared: SharedOperation,
    },
    /// One, or all.
    Operations {
        id: Option<String>,
    },
    CancelOperation {
        id: String,
    },
    /// The last id of each partition.
    Barrier {
        last: Vec<TaskId>,
        nodes: Vec<Node>,
    },
    Drain {
        drain: bool,
    },
}

/// The bytes of a question.
#[derive(Serialize, Deserialize)]
struct Envelope<Q> {
    format: u32,
    question: Q,
}

/// The answer of one instance.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct PeerAnswer<T> {
    /// Those that it owned all the while.
    pub(super) partitions: Vec<u16>,
    pub(super) answer: Result<T, AdminError>,
}

impl Question {
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        // Nothing fails: there is no map with other keys than strings.
        serde_json::to_vec(&Envelope { format: FORMAT, question: self }).unwrap_or_default()
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let envelope = serde_json::from_slice::<Envelope<&RawValue>>(bytes).ok()?;
        if envelope.format != FORMAT {
            return None;
        }
        serde_json::from_str(envelope.question.get()).ok()
    }

    pub(super) fn changes(&self) -> bool {
        matches!(
            self,
            Self::DiscardTask { .. } | Self::Forget { .. } | Self::CancelOperation { .. }
        )
    }
}

impl Handle {
    /// `None` if the question is not known.
    pub(super) async fn answer_question(&self, question: &[u8]) -> Option<Vec<u8>> {
        let question = Question::parse(question)?;
        let before = self.claims().await;
        let unread = match question {
            Question::Task { id } | Question::DiscardTask { id } => self.unread(id).await,
            _ => None,
        };
        let answer = self.answer_here(question).await;
        let after = self.claims().await.unwrap_or_default();
        let kept = before.unwrap_or_default().into_iter().filter(|claim| after.contains(claim));
        let partitions = kept.map(|claim| claim.partition.0);
        let partitions = partitions.filter(|partition| Some(*partition) != unread).collect();
        serde_json::to_vec(&PeerAnswer { partitions, answer }).ok()
    }

    /// Waits a moment until this instance has read a task of its partitions, which another one may just
    /// have accepted. Otherwise the partition.
    async fn unread(&self, id: TaskId) -> Option<u16> {
        for _ in 0..READ_WITHIN.as_millis() / LOOK_EVERY.as_millis() {
            let (reply, answer) = oneshot::channel();
            let asked = self.requests.send(Request::HasRead { id, reply });
            // A loop that has ended answers nothing else, either.
            if asked.is_err() || answer.await.unwrap_or(true) {
                return None;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        u16::try_from(id.0 % u64::from(MAX_PARTITIONS)).ok()
    }

    async fn answer_here(&self, question: Question) -> Result<Box<RawValue>, AdminError> {
        match question {
            Question::Replicas { node } => json(self.replicas_here(node).await),
            Question::Past { node } => json(self.past_figures_here(node).await),
            Question::Tasks { filter, limit, after } => {
                json(self.tasks_here(filter, limit, after).await)
            }
            Question::Task { id } => json(self.task_here(id).await),
            Question::DiscardTask { id } => json(self.discard_task_here(id).await),
            Question::Key { key } => json(self.key_here(key).await),
            Question::Letters { filter, limit, after } => {
                json(self.dead_letters_here(filter, limit, after).await)
            }
            Question::LetterSummary => json(self.dead_letter_summary_here().await),
            Question::Applied { record } => json(self.applies(record).await),
            Question::Probe { node } => json(self.probe_here(node).await),
            Question::Forget { node, keeps_record } => {
                json(self.forget_here(node, keeps_record).await)
            }
            Question::StartOperation { work, shared } => {
                json(self.start_operation_here(work, Some(shared)).await)
            }
            Question::Operations { id } => json(Ok(self.operations_here(id.as_deref()))),
            Question::CancelOperation { id } => json(Ok(self.cancel_here(&id).await)),
            Question::Barrier { last, nodes } => json(self.barrier_part(last, nodes).await),
            Question::Drain { drain } => {
                if let Some(peers) = &self.operator.peers {
                    peers.drain(drain);
                }
                json(Ok(()))
            }
        }
    }

    async fn barrier_part(
        &self,
        last: Vec<TaskId>,
        nodes: Vec<Node>,
    ) -> Result<BarrierPart, AdminError> {
        let end = BarrierEnd::Partitions { divisor: MAX_PARTITIONS.into(), last };
        let counted = self.count_barrier(Some(end), nodes).await?;
        let partitions = counted.partitions.iter().map(|partition| partition.0).collect();
        Ok(BarrierPart { replicas: counted.replicas, partitions })
    }
}

/// What is left before a barrier in the partitions of one instance.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct BarrierPart {
    pub(super) replicas: Vec<crate::api::BarrierReplica>,
    /// Those that are read up to the barrier.
    pub(super) partitions: Vec<u16>,
}

fn json<T: Serialize>(answer: Result<T, AdminError>) -> Result<Box<RawValue>, AdminError> {
    to_raw_value(&answer?).map_err(|error| AdminError::Unreadable(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_is_read_as_it_was_sent() {
        let filter = LetterFilter {
            ids: Some(vec![(TaskId(u64::MAX), Some(Node::parse("http://a").unwrap()))]),
            key_prefix: Some("k\u{1b}".to_owned()),
            ..LetterFilter::default()
        };
        let after = Some(LetterCursor(TaskId(7), crate::task::ReplicaIndex(1)));
        let question = Question::Letters { filter: filter.clone(), limit: 5, after };
        let Some(Question::Letters { filter: read, limit: 5, after: at }) =
            Question::parse(&question.to_bytes())
        else {
            panic!()
        };
        assert_eq!((read, at), (filter, after));
    }

    #[test]
    fn a_question_of_another_version_is_not_taken_for_another_one() {
        for text in [
            "",
            "{}",
            r#"{"format":2,"question":"letter_summary"}"#,
            r#"{"format":1,"question":"summary"}"#,
            r#"{"format":1,"question":{"task":{"id":1,"also":2}}}"#,
            r#"{"format":1,"question":{"tasks":{"filter":{"region":"x"},"limit":1,"after":null}}}"#,
        ] {
            assert!(Question::parse(text.as_bytes()).is_none(), "{text}");
        }
        let known = r#"{"format":1,"question":"letter_summary"}"#;
        assert!(Question::parse(known.as_bytes()).is_some());
    }
}
