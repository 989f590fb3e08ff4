//! The instances and partitions of the cluster.

use super::{Question, names};
use crate::api::{self, PartitionState};
use crate::clock::wall_clock;
use crate::dispatcher::messages::AdminError;
use crate::dispatcher::{Handle, view};
use crate::store::{ClusterStatus, Member, PartitionOwner};
use crate::task::{Partition, Timestamp};

impl Handle {
    /// `None` with a store of one process.
    pub async fn cluster(&self) -> Result<Option<api::Cluster>, AdminError> {
        let Some(peers) = &self.operator.peers else { return Ok(None) };
        let snapshot = self.snapshot().await.ok_or(AdminError::Stopped)?;
        Ok(snapshot.cluster.map(|status| shown(status, peers.this(), wall_clock())))
    }

    /// Lets an instance hand its partitions over and claim none, or ends that. `None` if there is no
    /// live instance of this name.
    pub async fn drain(&self, node: &str, drain: bool) -> Result<Option<api::Cluster>, AdminError> {
        let Some(peers) = &self.operator.peers else { return Ok(None) };
        let mut members = peers.members();
        members.retain(|member| member.node == node);
        if members.is_empty() {
            return Ok(None);
        }
        let question = Question::Drain { drain };
        let asked = self.ask_members::<()>(peers, members.clone(), &question).await?;
        if asked.answers.len() < members.len() {
            let nodes = names(&asked.silent);
            return Err(AdminError::Unanswered(format!("the instance {nodes} does not answer")));
        }
        let mut cluster = self.cluster().await?;
        // It announces it in a moment.
        for member in cluster.iter_mut().flat_map(|cluster| &mut cluster.members) {
            if member.node == node {
                member.draining = drain;
            }
        }
        Ok(cluster)
    }
}

fn shown(status: ClusterStatus, this: u64, now: Timestamp) -> api::Cluster {
    let ClusterStatus { cluster, members, partitions, logs, servers, sync_always, .. } = status;
    let owned = |member: &Member| {
        let owners = partitions.iter().filter_map(|(_, owner)| owner.as_ref());
        owners.filter(|owner| owner.process == member.process).count() as u64
    };
    let members = members.iter().map(|member| api::ClusterMember {
        node: member.node.clone(),
        version: member.version.clone(),
        up_for_seconds: member.up_for.as_secs_f64(),
        draining: member.is_draining,
        leaving: member.is_leaving,
        partitions: owned(member),
        here: member.process == this,
    });
    let members = members.collect();
    let partition = |(partition, owner): (Partition, Option<PartitionOwner>)| {
        let log = logs.get(&partition);
        let state = match (log, &owner) {
            (None, _) => PartitionState::NoLeader,
            (Some(_), None) => PartitionState::NoOwner,
            (Some(_), Some(_)) => PartitionState::Owned,
        };
        let since = owner.as_ref().map(|owner| {
            let nanos = u64::try_from(owner.known_for.as_nanos()).unwrap_or(u64::MAX);
            view::time(Timestamp(now.0.saturating_sub(nanos)))
        });
        api::PartitionInfo {
            number: partition.0,
            state,
            epoch: owner.as_ref().map_or(0, |owner| owner.epoch),
            owner: owner.map(|owner| owner.node),
            since,
            leader: log.and_then(|log| log.leader.clone()),
        }
    };
    let servers = servers.into_iter().map(|server| api::ClusterServer {
        name: server.name,
        version: server.version,
        sync_always: server.sync_always,
    });
    let store = api::SharedStore {
        servers: servers.collect(),
        sync_always,
        lag: logs.values().map(|log| log.lag).max(),
    };
    let partitions = partitions.into_iter().map(partition).collect();
    api::Cluster { name: cluster, members, partitions, store }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::store::PartitionLog;

    fn member(process: u64, node: &str) -> Member {
        let is_draining = process == 2;
        let member = Member::for_tests(process, Duration::from_secs(9));
        Member { node: node.to_owned(), is_draining, ..member }
    }

    #[test]
    fn partitions_are_shown_with_their_owners_and_with_what_is_missing() {
        let owner = |process: u64, node: &str| PartitionOwner {
            process,
            node: node.to_owned(),
            epoch: 4,
            is_me: process == 1,
            known_for: Duration::from_secs(2),
        };
        let log = |partition| {
            let (leader, lag) = (Some("s1".to_owned()), u64::from(partition));
            (Partition(partition), PartitionLog { leader, lag, ..PartitionLog::default() })
        };
        let status = ClusterStatus {
            logs: [0, 1, 2].map(log).into(),
            cluster: "queue".to_owned(),
            // Two runs of one name.
            members: vec![member(1, "a"), member(2, "b"), member(3, "b")],
            partitions: vec![
                (Partition(0), Some(owner(1, "a"))),
                (Partition(1), Some(owner(3, "b"))),
                (Partition(2), None),
                (Partition(3), None),
            ],
            ..ClusterStatus::default()
        };
        let shown = shown(status, 1, Timestamp(5_000_000_000));
        let members: Vec<_> = shown
            .members
            .iter()
            .map(|member| (&*member.node, member.partitions, member.draining, member.here))
            .collect();
        assert_eq!(members, [("a", 1, false, true), ("b", 0, true, false), ("b", 1, false, false)]);
        let states: Vec<_> = shown.partitions.iter().map(|one| one.state).collect();
        use PartitionState::{NoLeader, NoOwner, Owned};
        assert_eq!(states, [Owned, Owned, NoOwner, NoLeader]);
        assert_eq!(shown.partitions[0].since.as_deref(), Some("1970-01-01T00:00:03.000Z"));
        assert_eq!((shown.partitions[1].owner.as_deref(), shown.store.lag), (Some("b"), Some(2)));
    }
}
