//! Replicas, and what operators do with them.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::warn;

use super::{Question, merge, unanswered};
use crate::api;
use crate::dispatcher::Handle;
use crate::dispatcher::admin::replicas::used_before;
use crate::dispatcher::messages::{AdminError, LimitsChange, PauseEnd, ReplicaRecord};
use crate::store::{Member, PartitionOwner, Peers};
use crate::task::{Node, ReplicaState};

/// How long a change waits for the confirmation of every instance.
const CONFIRMED_WITHIN: Duration = Duration::from_secs(5);

const ASK_AGAIN: Duration = Duration::from_millis(50);

impl Handle {
    /// All replicas, ordered by address.
    pub async fn replicas(&self) -> Result<api::ReplicaPage, AdminError> {
        let (replicas, incomplete) = self.merged_replicas(None).await?;
        Ok(api::ReplicaPage { replicas, incomplete })
    }

    pub async fn replica(&self, node: &Node) -> Result<Option<api::Replica>, AdminError> {
        let (replicas, incomplete) = self.merged_replicas(Some(node.clone())).await?;
        match replicas.into_iter().next() {
            Some(replica) => Ok(Some(api::Replica { incomplete, ..replica })),
            None if incomplete.is_empty() => Ok(None),
            None => Err(unanswered(&incomplete)),
        }
    }

    async fn merged_replicas(
        &self,
        node: Option<Node>,
    ) -> Result<(Vec<api::Replica>, Vec<u16>), AdminError> {
        let Some(peers) = &self.operator.peers else {
            return Ok((self.replicas_here(node).await?, Vec::new()));
        };
        let asked = self.ask_all(peers, &Question::Replicas { node }).await?;
        let (lists, incomplete) = asked.into_answers();
        Ok((merge::replicas(lists), incomplete))
    }

    /// Pauses the deliveries to a replica until `end`, or resumes them if there is none, durably. Returns
    /// when every live instance applies it, or after 5 s with those that have not confirmed it.
    pub async fn pause(
        &self,
        node: &Node,
        end: Option<PauseEnd>,
    ) -> Result<Option<api::Replica>, AdminError> {
        let others = self.others();
        let Some(here) = self.pause_here(node, end).await? else { return Ok(None) };
        let (paused, until) = (end.is_some(), here.paused_until.clone());
        let record = ReplicaRecord::Paused { node: node.clone(), paused, until };
        self.confirmed(others, here, node, record).await
    }

    /// Changes the limits of a replica, durably. Returns as [`Self::pause`].
    pub async fn limit(
        &self,
        node: &Node,
        change: LimitsChange,
    ) -> Result<Option<api::Replica>, AdminError> {
        let others = self.others();
        let Some(here) = self.limit_here(node, change).await? else { return Ok(None) };
        let record = ReplicaRecord::Limited { node: node.clone(), limits: here.limits };
        self.confirmed(others, here, node, record).await
    }

    /// Moves a replica to another address, durably. Returns as [`Self::pause`].
    /// [`AdminError::Conflict`] if that address was used before, [`AdminError::Forbidden`] if the
    /// policy does not allow it.
    pub async fn rename(&self, node: &Node, to: Node) -> Result<Option<api::Replica>, AdminError> {
        let others = self.others();
        let is_settled_elsewhere = match &self.operator.peers {
            None => true,
            Some(_) => {
                // An instance that has it could not follow. A former name of the replica is shown under the
                // current one.
                let (used, _) = self.merged_replicas(Some(to.clone())).await?;
                if used.iter().any(|one| one.replica == to.as_str()) {
                    return Err(used_before(node, &to));
                }
                let (replicas, incomplete) = self.merged_replicas(Some(node.clone())).await?;
                let is_settled = |one: &api::Replica| one.books.pending + one.books.dead == 0;
                incomplete.is_empty() && replicas.iter().all(is_settled)
            }
        };
        let renamed = self.rename_here(node.clone(), to.clone(), is_settled_elsewhere).await?;
        let Some(here) = renamed else { return Ok(None) };
        let record = ReplicaRecord::Renamed { node: node.clone(), to: to.clone() };
        self.confirmed(others, here, &to, record).await
    }

    /// Lets an open breaker send its next probe now, of every instance.
    pub async fn probe(&self, node: &Node) -> Result<Option<api::Probed>, AdminError> {
        let node = node.clone();
        let Some(peers) = &self.operator.peers else { return self.probe_here(node).await };
        let question = Question::Probe { node };
        let asked = self.ask_all::<Option<api::Probed>>(peers, &question).await?;
        let (probed, incomplete) = asked.into_answers();
        // The one that sends, or else the one that has the most to say.
        let order = |probed: &api::Probed| {
            (!probed.probing, probed.state == ReplicaState::Healthy, probed.state)
        };
        match probed.into_iter().flatten().min_by_key(order) {
            Some(probed) => Ok(Some(api::Probed { incomplete, ..probed })),
            None if incomplete.is_empty() => Ok(None),
            None => Err(unanswered(&incomplete)),
        }
    }

    /// Discards all deliveries to a replica that does not exist any more.
    pub async fn forget(&self, node: &Node) -> Result<Option<api::Forgotten>, AdminError> {
        let Some(peers) = &self.operator.peers else {
            return self.forget_here(node.clone(), false).await;
        };
        // Its pause and its names end last, and not while an instance may have deliveries for it.
        let question = Question::Forget { node: node.clone(), keeps_record: true };
        let asked = self.ask_all::<Option<api::Forgotten>>(peers, &question).await?;
        let (found, incomplete) = asked.into_answers();
        let forgotten: Vec<_> = found.into_iter().flatten().collect();
        let Some(first) = forgotten.first() else {
            return if incomplete.is_empty() { Ok(None) } else { Err(unanswered(&incomplete)) };
        };
        if incomplete.is_empty() {
            self.end_record(node.clone()).await?;
        }
        Ok(Some(api::Forgotten {
            replica: first.replica.clone(),
            discarded: forgotten.iter().map(|one| one.discarded).sum(),
            in_flight: forgotten.iter().map(|one| one.in_flight).sum(),
            incomplete,
        }))
    }

    fn others(&self) -> Vec<Member> {
        let Some(peers) = &self.operator.peers else { return Vec::new() };
        others_of(peers.members(), peers.owners(), peers.this())
    }

    /// The replica after a change that this instance has applied.
    async fn confirmed(
        &self,
        others: Vec<Member>,
        here: api::Replica,
        node: &Node,
        record: ReplicaRecord,
    ) -> Result<Option<api::Replica>, AdminError> {
        let Some(peers) = &self.operator.peers else { return Ok(Some(here)) };
        let question = Question::Applied { record };
        let confirmed = others.into_iter().map(async |member| {
            let confirmed = self.until_applied(peers, &member, &question).await;
            (!confirmed).then_some(member)
        });
        let missing: Vec<_> =
            futures_util::future::join_all(confirmed).await.into_iter().flatten().collect();
        let unconfirmed: Vec<_> = missing.iter().map(|member| member.node.clone()).collect();
        if !missing.is_empty() {
            let nodes = super::names(&missing).escape_debug().to_string();
            warn!(replica = %node, nodes, "instances have not confirmed a change of a replica");
        }
        // They are not waited for again.
        let mut members = peers.members();
        members.retain(|member| !missing.iter().any(|one| one.process == member.process));
        let question = Question::Replicas { node: Some(node.clone()) };
        let asked = self.ask_members(peers, members, &question).await?;
        let (lists, incomplete) = asked.into_answers();
        let merged = merge::replicas(lists).into_iter().next().unwrap_or(here);
        Ok(Some(api::Replica { incomplete, unconfirmed, ..merged }))
    }

    #[expect(clippy::disallowed_methods, reason = "a limit of waiting, which no test owns")]
    async fn until_applied(&self, peers: &Peers, member: &Member, question: &Question) -> bool {
        let deadline = Instant::now() + CONFIRMED_WITHIN;
        let was_live = peers.members().iter().any(|one| one.process == member.process);
        let asking = async {
            loop {
                // The lease of a silent owner has ended: it sends nothing, and reads this before it can.
                if !was_live && !peers.owners().iter().any(|owner| owner.process == member.process)
                {
                    return;
                }
                if let Ok(answer) = self.ask_one::<bool>(peers, member, question).await
                    && answer.answer == Ok(true)
                {
                    return;
                }
                sleep(ASK_AGAIN).await;
            }
        };
        tokio::time::timeout_at(deadline, asking).await.is_ok()
    }
}

/// The other instances that may send: those that are live, and owners that are not heard any more, whose
/// leases may still run.
fn others_of(members: Vec<Member>, owners: Vec<PartitionOwner>, this: u64) -> Vec<Member> {
    let mut others: Vec<_> = members.into_iter().filter(|one| one.process != this).collect();
    for owner in owners {
        if owner.process != this && !others.iter().any(|one| one.process == owner.process) {
            others.push(Member::silent(owner));
        }
    }
    others
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_that_is_not_heard_any_more_must_confirm_a_change_once() {
        let owner = |process: u64| PartitionOwner {
            process,
            node: format!("n{process}"),
            epoch: 1,
            is_me: process == 1,
            known_for: Duration::ZERO,
        };
        let members = [1, 2].map(|process| Member::for_tests(process, Duration::ZERO)).to_vec();
        let others = others_of(members, [1, 2, 3, 3].map(owner).to_vec(), 1);
        let nodes: Vec<_> = others.iter().map(|one| (one.process, one.node.as_str())).collect();
        assert_eq!(nodes, [(2, "n2"), (3, "n3")]);
    }
}
