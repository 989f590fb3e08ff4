//! Barriers: whether the replicas have everything that was accepted before. A barrier is only its
//! id, which the daemon does not remember.

use std::time::Duration;

use crate::api;
use crate::dispatcher::messages::{AdminError, AdminReply, BarrierRequest, Request};
use crate::dispatcher::{Core, Handle, view};
use crate::task::{Node, TaskId};

/// How often a waiting request checks its barrier.
const CHECK_EVERY: Duration = Duration::from_millis(50);

/// A barrier whose deliveries are being counted.
#[derive(Debug)]
pub(super) struct CountingBarrier {
    up_to: TaskId,
    nodes: Vec<Node>,
    reply: AdminReply<api::Barrier>,
}

impl Handle {
    /// Makes a barrier behind everything that is accepted, for these replicas, or for all.
    pub async fn barrier(&self, nodes: Vec<Node>) -> Result<api::Barrier, AdminError> {
        self.ask(|reply| Request::Barrier(BarrierRequest { up_to: None, nodes, reply })).await
    }

    /// The state of a barrier. Waits up to `wait` until it is reached. `None` if the id is invalid.
    pub async fn barrier_state(
        &self,
        id: &str,
        wait: Duration,
    ) -> Result<Option<api::Barrier>, AdminError> {
        let Some((up_to, nodes)) = view::read_barrier_id(id) else { return Ok(None) };
        let check = || {
            let (up_to, nodes) = (Some(up_to), nodes.clone());
            self.ask(move |reply| Request::Barrier(BarrierRequest { up_to, nodes, reply }))
        };
        for _ in 0..wait.as_millis() / CHECK_EVERY.as_millis() {
            let barrier = check().await?;
            if barrier.reached {
                return Ok(Some(barrier));
            }
            tokio::time::sleep(CHECK_EVERY).await;
        }
        check().await.map(Some)
    }
}

impl Core {
    pub(in crate::dispatcher) fn serve_barrier(&mut self, request: BarrierRequest) {
        let BarrierRequest { up_to, nodes, reply } = request;
        let unknown = |node: &&Node| up_to.is_none() && !self.registry.knows(node);
        if let Some(node) = nodes.iter().find(unknown) {
            let error = format!(
                "field \"replicas\": nothing was ever accepted for {node}, so there is nothing to wait for"
            );
            let _ = reply.send(Err(AdminError::Invalid(error)));
            return;
        }
        let newest = self.intake.newest;
        let up_to = up_to.unwrap_or(newest).min(newest);
        let mut nodes: Vec<_> =
            nodes.iter().map(|node| self.registry.resolve(node).clone()).collect();
        nodes.sort();
        nodes.dedup();
        self.admin.counting.push_back(CountingBarrier { up_to, nodes, reply });
        self.answer_counted();
    }

    /// Answers for the barriers that are counted.
    pub(in crate::dispatcher) fn answer_counted(&mut self) {
        while let Some(barrier) = self.admin.counting.pop_front() {
            if barrier.reply.is_closed() {
                continue;
            }
            let Some(counts) = self.engine.barrier(barrier.up_to, &barrier.nodes) else {
                return self.admin.counting.push_front(barrier);
            };
            let CountingBarrier { up_to, nodes, reply } = barrier;
            let _ = reply.send(Ok(view::barrier(up_to, &nodes, counts)));
        }
    }
}
