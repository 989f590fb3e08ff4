//! Barriers: whether the replicas have everything that was accepted before, as far as this process
//! knows. A barrier is only its id, which the daemon does not remember.

use std::time::Duration;

use crate::api;
use crate::dispatcher::messages::{
    AdminError, AdminReply, BarrierRequest, CountedBarrier, Request,
};
use crate::dispatcher::{Core, Handle, view};
use crate::engine::BarrierEnd;
use crate::task::Node;

/// How often a waiting request checks its barrier.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// A barrier whose deliveries are being counted.
#[derive(Debug)]
pub(super) struct CountingBarrier {
    end: BarrierEnd,
    nodes: Vec<Node>,
    reply: AdminReply<CountedBarrier>,
}

impl Handle {
    /// Makes a barrier behind everything that is accepted, for these replicas, or for all.
    pub(in crate::dispatcher) async fn barrier_here(
        &self,
        nodes: Vec<Node>,
    ) -> Result<api::Barrier, AdminError> {
        self.count_barrier(None, nodes).await.map(view::barrier)
    }

    /// The state of a barrier. Waits up to `wait` until it is reached.
    pub(in crate::dispatcher) async fn barrier_state_here(
        &self,
        end: BarrierEnd,
        nodes: Vec<Node>,
        wait: Duration,
    ) -> Result<api::Barrier, AdminError> {
        let check = async || {
            let counted = self.count_barrier(Some(end.clone()), nodes.clone()).await;
            counted.map(view::barrier)
        };
        for _ in 0..wait.as_millis() / CHECK_EVERY.as_millis() {
            let barrier = check().await?;
            if barrier.reached {
                return Ok(barrier);
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
        check().await
    }

    pub(in crate::dispatcher) async fn count_barrier(
        &self,
        end: Option<BarrierEnd>,
        nodes: Vec<Node>,
    ) -> Result<CountedBarrier, AdminError> {
        self.ask(|reply| Request::Barrier(BarrierRequest { end, nodes, reply })).await
    }
}

impl Core {
    pub(in crate::dispatcher) fn serve_barrier(&mut self, request: BarrierRequest) {
        let BarrierRequest { end, nodes, reply } = request;
        let unknown = |node: &&Node| end.is_none() && !self.registry.knows(node);
        if let Some(node) = nodes.iter().find(unknown) {
            let error = format!(
                "field \"replicas\": nothing was ever accepted for {node}, so there is nothing to wait for"
            );
            let _ = reply.send(Err(AdminError::Invalid(error)));
            return;
        }
        let newest = self.intake.newest;
        let end = match end {
            None => BarrierEnd::Task(newest),
            Some(BarrierEnd::Task(up_to)) => BarrierEnd::Task(up_to.min(newest)),
            Some(end) => end,
        };
        let mut nodes: Vec<_> =
            nodes.iter().map(|node| self.registry.resolve(node).clone()).collect();
        nodes.sort();
        nodes.dedup();
        self.admin.counting.push_back(CountingBarrier { end, nodes, reply });
        self.answer_counted();
    }

    /// Answers for the barriers that are counted.
    pub(in crate::dispatcher) fn answer_counted(&mut self) {
        while let Some(barrier) = self.admin.counting.pop_front() {
            if barrier.reply.is_closed() {
                continue;
            }
            let Some(counts) = self.engine.barrier(barrier.end.clone(), &barrier.nodes) else {
                return self.admin.counting.push_front(barrier);
            };
            let CountingBarrier { end, nodes, reply } = barrier;
            let replicas = view::barrier_replicas(&nodes, counts);
            // As of now, like the counts.
            let partitions = match &end {
                BarrierEnd::Task(_) => Vec::new(),
                BarrierEnd::Partitions { last, .. } => self.caught_up(last),
            };
            let _ = reply.send(Ok(CountedBarrier { end, nodes, replicas, partitions }));
        }
    }
}
