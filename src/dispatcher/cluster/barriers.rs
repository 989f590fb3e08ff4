//! Barriers for the whole cluster.
//!
//! A mark is stored in each partition when a barrier is made. Everything that was accepted before is
//! before its mark. A barrier is reached when the owners of all partitions have read up to the marks
//! and have nothing left before them. All its state is in its id.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Question;
use super::question::BarrierPart;
use crate::api;
use crate::dispatcher::messages::AdminError;
use crate::dispatcher::{Handle, view};
use crate::engine::BarrierEnd;
use crate::store::{MAX_PARTITIONS, Peers};
use crate::task::{Node, TaskId};

/// How often a waiting request asks the instances.
const ASK_EVERY: Duration = Duration::from_millis(250);

impl Handle {
    /// Makes a barrier behind everything that is accepted, for these replicas, or for all.
    pub async fn barrier(&self, nodes: Vec<Node>) -> Result<api::Barrier, AdminError> {
        let Some(peers) = &self.operator.peers else { return self.barrier_here(nodes).await };
        // Every instance knows all replicas, and refuses others.
        let nodes = self.count_barrier(None, nodes).await?.nodes;
        let last = peers.mark().await.map_err(|missing| {
            let missing: Vec<_> = missing.iter().map(|one| one.0.to_string()).collect();
            AdminError::Unanswered(format!(
                "the store did not answer within --store-timeout for the partitions {}: there is no barrier",
                missing.join(", ")
            ))
        })?;
        self.whole_barrier(peers, last, nodes).await
    }

    /// The state of a barrier. Waits up to `wait` until it is reached. `None` if the id is invalid.
    pub async fn barrier_state(
        &self,
        id: &str,
        wait: Duration,
    ) -> Result<Option<api::Barrier>, AdminError> {
        let partitions = self.operator.peers.as_ref().map(Peers::partitions);
        let Some((end, nodes)) = view::read_barrier_id(id, partitions) else { return Ok(None) };
        let (peers, last) = match (&self.operator.peers, end) {
            (Some(peers), BarrierEnd::Partitions { last, .. }) => (peers, last),
            (_, end) => return self.barrier_state_here(end, nodes, wait).await.map(Some),
        };
        let waiting = async || {
            loop {
                let barrier = self.whole_barrier(peers, last.clone(), nodes.clone()).await;
                if barrier.as_ref().map_or(true, |barrier| barrier.reached) {
                    return barrier;
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
        };
        if !wait.is_zero()
            && let Ok(barrier) = tokio::time::timeout(wait, waiting()).await
        {
            return barrier.map(Some);
        }
        self.whole_barrier(peers, last, nodes).await.map(Some)
    }

    async fn whole_barrier(
        &self,
        peers: &Peers,
        last: Vec<TaskId>,
        nodes: Vec<Node>,
    ) -> Result<api::Barrier, AdminError> {
        let question = Question::Barrier { last: last.clone(), nodes: nodes.clone() };
        let (parts, _) = self.ask_all(peers, &question).await?.into_answers();
        let end = BarrierEnd::Partitions { divisor: MAX_PARTITIONS.into(), last };
        Ok(merged(&end, &nodes, parts))
    }
}

/// Reached only if some owner has read each partition up to its mark, and nothing is left anywhere.
fn merged(end: &BarrierEnd, nodes: &[Node], parts: Vec<BarrierPart>) -> api::Barrier {
    let mut replicas = BTreeMap::<String, api::BarrierReplica>::new();
    let mut read = Vec::new();
    for part in parts {
        read.extend(part.partitions);
        for one in part.replicas {
            match replicas.get_mut(&one.replica) {
                None => drop(replicas.insert(one.replica.clone(), one)),
                Some(known) => {
                    known.pending += one.pending;
                    known.given_up += one.given_up;
                }
            }
        }
    }
    let partitions = match end {
        BarrierEnd::Task(_) => 0,
        BarrierEnd::Partitions { last, .. } => u16::try_from(last.len()).unwrap_or(u16::MAX),
    };
    let incomplete: Vec<_> = (0..partitions).filter(|one| !read.contains(one)).collect();
    let pending = replicas.values().map(|replica| replica.pending).sum();
    api::Barrier {
        barrier_id: view::barrier_id(end, nodes),
        reached: pending == 0 && incomplete.is_empty(),
        up_to: view::last_of(end).to_string(),
        pending,
        given_up: replicas.values().map(|replica| replica.given_up).sum(),
        replicas: replicas.into_values().collect(),
        incomplete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(pending: u64, given_up: u64, partitions: &[u16]) -> BarrierPart {
        let replica = "http://a".to_owned();
        let replicas = vec![api::BarrierReplica { replica, pending, given_up }];
        BarrierPart { replicas, partitions: partitions.to_vec() }
    }

    #[test]
    fn a_barrier_is_reached_when_every_partition_is_read_and_nothing_is_left_in_any() {
        let last = [2048, 3073, 5122].map(TaskId).to_vec();
        let end = BarrierEnd::Partitions { divisor: 1024, last };
        let merged = |parts| merged(&end, &[], parts);
        let barrier = merged(vec![part(0, 1, &[0, 2]), part(0, 2, &[1])]);
        assert!(barrier.reached);
        assert_eq!((barrier.given_up, barrier.replicas.len()), (3, 1));
        assert_eq!(
            (barrier.up_to.as_str(), barrier.barrier_id.as_str()),
            ("5122", "2048-3073-5122")
        );
        let barrier = merged(vec![part(0, 0, &[0, 2]), part(4, 0, &[1])]);
        assert_eq!((barrier.reached, barrier.pending), (false, 4));
        let barrier = merged(vec![part(0, 0, &[0, 2]), part(0, 0, &[])]);
        assert_eq!((barrier.reached, &barrier.incomplete[..]), (false, &[1][..]));
        assert!(!merged(vec![]).reached, "nobody has answered");
    }
}
