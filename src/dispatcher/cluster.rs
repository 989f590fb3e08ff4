//! Answers of operators' requests for the whole cluster.
//!
//! A request is a [`Question`]. Each live instance answers it for itself, by the methods of
//! [`Handle`] that end in `_here`, and says which partitions it owned all the while. The instance that
//! was asked merges the answers. A partition that not exactly one answer is for is `incomplete`: its
//! owner has no answer, or it changed its owner meanwhile. A store of one process has no peers, and its
//! answers are not merged.
//!
//! `question.rs` has the requests and answers them for this instance, `merge.rs` merges, `lists.rs` and
//! `replicas.rs` have the requests for each resource, `operations.rs` redrives and discards of many
//! dead letters, `barriers.rs` barriers, `overview.rs` the instances and partitions. `ownership.rs`
//! knows the partitions of this instance.

use std::time::Duration;

use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use crate::dispatcher::Handle;
use crate::dispatcher::messages::{AdminError, Request};
use crate::store::{Member, PeerSilence, Peers};

mod barriers;
mod lists;
mod merge;
mod operations;
mod overview;
pub(super) mod ownership;
mod question;
mod replicas;

use ownership::Claim;
use question::{PeerAnswer, Question};

/// How long an answer that is only read may take, of an instance that works on it.
const READING: Duration = Duration::from_secs(5);

/// The same for a change, which waits for deliveries in flight and for the store.
const CHANGING: Duration = Duration::from_secs(60);

/// The answers of all instances.
struct ClusterAnswers<T> {
    answers: Vec<(Member, T)>,
    refused: Vec<(Member, AdminError)>,
    silent: Vec<Member>,
    /// Partitions that not exactly one answer is for.
    incomplete: Vec<u16>,
}

impl<T> ClusterAnswers<T> {
    /// The answers, and the partitions without one. An instance that refuses, because it stops or
    /// cannot read, has no answer.
    fn into_answers(self) -> (Vec<T>, Vec<u16>) {
        (self.answers.into_iter().map(|(_, answer)| answer).collect(), self.incomplete)
    }
}

impl Handle {
    /// The partitions of this instance.
    pub(super) async fn claims(&self) -> Result<Vec<Claim>, AdminError> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Claims { reply }).map_err(|_| AdminError::Stopped)?;
        answer.await.map_err(|_| AdminError::Stopped)
    }

    /// Answers the questions of other instances from now on.
    pub(crate) async fn serve_peers(&self) {
        if let Some(peers) = &self.operator.peers {
            let handle = self.clone();
            let answer = move |question: bytes::Bytes| {
                let handle = handle.clone();
                let answer = async move { handle.answer_question(&question).await };
                Box::pin(answer) as crate::store::BoxFuture<'static, _>
            };
            peers.serve(std::sync::Arc::new(answer)).await;
        }
    }

    /// Asks all instances, this one included.
    async fn ask_all<T: DeserializeOwned>(
        &self,
        peers: &Peers,
        question: &Question,
    ) -> Result<ClusterAnswers<T>, AdminError> {
        self.ask_members(peers, peers.members(), question).await
    }

    async fn ask_members<T: DeserializeOwned>(
        &self,
        peers: &Peers,
        members: Vec<Member>,
        question: &Question,
    ) -> Result<ClusterAnswers<T>, AdminError> {
        // Before anyone is asked: some would carry it out, and others would not.
        let bytes = question.to_bytes().len();
        if !peers.takes(bytes) {
            return Err(AdminError::Invalid(PeerSilence::TooLarge.to_string()));
        }
        let answers = members.into_iter().map(async |member| {
            let answer = self.ask_one::<T>(peers, &member, question).await;
            (member, answer)
        });
        let (mut answers_of, mut refused, mut silent) = (Vec::new(), Vec::new(), Vec::new());
        let mut times = vec![0_u32; peers.partitions().into()];
        for (member, answer) in join_all(answers).await {
            match answer {
                Ok(PeerAnswer { partitions, answer: Ok(answer) }) => {
                    for partition in partitions {
                        if let Some(times) = times.get_mut(usize::from(partition)) {
                            *times += 1;
                        }
                    }
                    answers_of.push((member, answer));
                }
                Ok(PeerAnswer { answer: Err(error), .. }) if member.process == peers.this() => {
                    return Err(error);
                }
                Ok(PeerAnswer { answer: Err(error), .. }) => refused.push((member, error)),
                Err(why) => {
                    let node = member.node.escape_debug().to_string();
                    if why == PeerSilence::Unknown {
                        warn!(node, "an instance of another version does not know a request");
                    } else {
                        debug!(node, %why, "an instance has no answer");
                    }
                    silent.push(member);
                }
            }
        }
        let incomplete = (0..).zip(times).filter(|(_, times)| *times != 1);
        let incomplete = incomplete.map(|(partition, _)| partition).collect();
        Ok(ClusterAnswers { answers: answers_of, refused, silent, incomplete })
    }

    async fn ask_one<T: DeserializeOwned>(
        &self,
        peers: &Peers,
        member: &Member,
        question: &Question,
    ) -> Result<PeerAnswer<T>, PeerSilence> {
        let bytes = question.to_bytes();
        let answer = if member.process == peers.this() {
            self.answer_question(&bytes).await.ok_or(PeerSilence::Unknown)?
        } else {
            let longest = if question.changes() { CHANGING } else { READING };
            peers.ask(member.process, bytes.into(), longest).await?
        };
        serde_json::from_slice(&answer).map_err(|_| PeerSilence::Unknown)
    }
}

/// The names of instances, for a sentence.
fn names(members: &[Member]) -> String {
    let names: Vec<_> = members.iter().map(|member| member.node.as_str()).collect();
    names.join(", ")
}

/// For an object that was not found while not everyone has answered.
fn unanswered(incomplete: &[u16]) -> AdminError {
    let partitions: Vec<_> = incomplete.iter().map(u16::to_string).collect();
    let partitions = partitions.join(", ");
    AdminError::Unanswered(format!(
        "it is not known: the partitions {partitions} of the cluster have no answer"
    ))
}
