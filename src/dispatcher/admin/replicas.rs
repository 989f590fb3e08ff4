//! Replicas: list, pause, probe, forget, rename.

use tracing::{info, warn};

use crate::api;
use crate::dispatcher::messages::{AdminError, AdminReply, ReplicaRecord, ReplicaRequest, Request};
use crate::dispatcher::{Core, Handle, view};
use crate::engine::{ForgetCounts, Now, ProbeState, RenameError};
use crate::task::{BreakerState, Counters, Node, ReplicaState};

/// A replica that is being forgotten, and the operator that waits for it.
#[derive(Debug)]
pub(super) struct Forgetting {
    node: Node,
    keeps_record: bool,
    reply: AdminReply<Option<api::Forgotten>>,
    answer: api::Forgotten,
}

impl Handle {
    /// One replica, or all, ordered by address.
    pub(in crate::dispatcher) async fn replicas_here(
        &self,
        node: Option<Node>,
    ) -> Result<Vec<api::Replica>, AdminError> {
        self.ask(|reply| Request::Replicas(ReplicaRequest::List { node, reply })).await
    }

    /// Pauses or resumes the deliveries to a replica, durably.
    pub(in crate::dispatcher) async fn pause_here(
        &self,
        node: &Node,
        paused: bool,
    ) -> Result<Option<api::Replica>, AdminError> {
        let node = node.clone();
        self.ask(|reply| Request::Replicas(ReplicaRequest::Pause { node, paused, reply })).await
    }

    /// Lets an open breaker send its next probe now.
    pub(in crate::dispatcher) async fn probe_here(
        &self,
        node: Node,
    ) -> Result<Option<api::Probed>, AdminError> {
        self.ask(|reply| Request::Replicas(ReplicaRequest::Probe { node, reply })).await
    }

    /// Discards all deliveries to a replica that does not exist any more.
    pub(in crate::dispatcher) async fn forget_here(
        &self,
        node: Node,
        keeps_record: bool,
    ) -> Result<Option<api::Forgotten>, AdminError> {
        self.ask(|reply| Request::Replicas(ReplicaRequest::Forget { node, keeps_record, reply }))
            .await
    }

    /// Ends the pause and the former names of a replica, durably. Its deliveries stay.
    pub(in crate::dispatcher) async fn end_record(&self, node: Node) -> Result<(), AdminError> {
        self.ask(|reply| Request::Replicas(ReplicaRequest::EndRecord { node, reply })).await
    }

    /// Whether this process applies what was changed of a replica.
    pub(in crate::dispatcher) async fn applies(
        &self,
        record: ReplicaRecord,
    ) -> Result<bool, AdminError> {
        self.ask(|reply| Request::Replicas(ReplicaRequest::Applied { record, reply })).await
    }

    /// Moves a replica to another address, durably. [`AdminError::Conflict`] if that address was
    /// used before, [`AdminError::Forbidden`] if the policy does not allow it.
    pub(in crate::dispatcher) async fn rename_here(
        &self,
        node: Node,
        to: Node,
        is_settled_elsewhere: bool,
    ) -> Result<Option<api::Replica>, AdminError> {
        if let Err(why) = self.operator.policy.admit(&to) {
            return Err(AdminError::Forbidden(format!("{to} {why}")));
        }
        let request = |reply| ReplicaRequest::Rename { node, to, is_settled_elsewhere, reply };
        self.ask(|reply| Request::Replicas(request(reply))).await
    }
}

/// The refusal of a rename to an address that has a replica.
pub(in crate::dispatcher) fn used_before(node: &Node, to: &Node) -> AdminError {
    AdminError::Conflict(format!(
        "{to} was sent writes before, and the pending writes for {node} could be older than those: forget {to}, and rename when nothing is pending for {node}"
    ))
}

impl Core {
    pub(in crate::dispatcher) fn serve_replicas(&mut self, now: Now, request: ReplicaRequest) {
        match request {
            ReplicaRequest::List { node, reply } => {
                let _ = reply.send(Ok(self.list_replicas(now, node.as_ref())));
            }
            ReplicaRequest::Pause { node, paused, reply } => {
                let paused = self.pause(now, &node, paused);
                self.answer_change(reply, Ok(paused));
            }
            ReplicaRequest::Probe { node, reply } => {
                let _ = reply.send(Ok(self.probe(now, &node)));
            }
            ReplicaRequest::Forget { node, keeps_record, reply } => {
                self.forget(now, &node, keeps_record, reply);
            }
            ReplicaRequest::EndRecord { node, reply } => {
                let node = self.registry.resolve(&node).clone();
                self.end_record(now, &node);
                self.answer_when_durable(reply, ());
            }
            ReplicaRequest::Applied { record, reply } => {
                let applied = match record {
                    ReplicaRecord::Paused { node, paused } => {
                        self.registry.is_paused(self.registry.resolve(&node)) == paused
                    }
                    ReplicaRecord::Renamed { node, to } => {
                        let is_left = self.engine.lanes().any(|lane| lane.node == node);
                        *self.registry.resolve(&node) == to && !is_left
                    }
                };
                let _ = reply.send(Ok(applied));
            }
            ReplicaRequest::Rename { node, to, is_settled_elsewhere, reply } => {
                let renamed = self.rename(now, &node, &to, is_settled_elsewhere);
                self.answer_change(reply, renamed);
            }
        }
    }

    fn list_replicas(&self, now: Now, node: Option<&Node>) -> Vec<api::Replica> {
        let node = node.map(|node| self.registry.resolve(node));
        let lanes = self.engine.lanes();
        let mut lanes: Vec<_> =
            lanes.filter(|lane| node.is_none_or(|node| *node == lane.node)).collect();
        lanes.sort_by(|a, b| a.node.cmp(&b.node));
        let shown = lanes.iter().map(|lane| {
            let (rate, quantiles) = (
                self.observed.latency.rate(&lane.node),
                self.observed.latency.quantiles(&lane.node),
            );
            view::replica(lane, rate, quantiles, self.registry.names_before(&lane.node), now)
        });
        shown.collect()
    }

    fn pause(&mut self, now: Now, node: &Node, paused: bool) -> Option<api::Replica> {
        let node = self.resolve_for_admin(node);
        let lane = self.engine.lanes().find(|lane| lane.node == node)?;
        if lane.paused.is_some() != paused {
            let since = paused.then_some(now.wall);
            let change = self.registry.pause(&node, since, now.wall);
            self.save_registry(vec![change]);
            self.engine.pause(now, &node, since);
            self.act(now);
            let change =
                if paused { api::ReplicaChange::Paused } else { api::ReplicaChange::Resumed };
            info!(replica = %node, paused, "an operator has paused or resumed a replica");
            self.observed.publish_replica(now, &node, change, None);
        }
        self.list_replicas(now, Some(&node)).pop()
    }

    fn probe(&mut self, now: Now, node: &Node) -> Option<api::Probed> {
        let node = self.resolve_for_admin(node);
        let lane = self.engine.lanes().find(|lane| lane.node == node);
        let (is_paused, refused) =
            lane.map_or((false, 0), |lane| (lane.paused.is_some(), lane.refused_letters));
        let ProbeState { probing, breaker } = self.engine.probe(now, &node)?;
        let state = ReplicaState::of(is_paused, breaker, refused);
        let reason = match state {
            _ if probing => None,
            ReplicaState::Paused => Some("it is paused"),
            _ if self.engine.is_forgetting(&node) => Some("it is being forgotten"),
            ReplicaState::Failing if breaker == BreakerState::Closed => {
                Some("it answers, and refuses writes; one is tried again every minute by itself")
            }
            ReplicaState::Failing => {
                Some("it has no delivery that can be sent now; its next write is the probe")
            }
            ReplicaState::Recovering | ReplicaState::Healthy => Some("it is not failing"),
        };
        Some(api::Probed {
            replica: node.to_string(),
            state,
            probing,
            reason: reason.map(str::to_owned),
            incomplete: Vec::new(),
        })
    }

    fn forget(
        &mut self,
        now: Now,
        node: &Node,
        keeps_record: bool,
        reply: AdminReply<Option<api::Forgotten>>,
    ) {
        let node = self.resolve_for_admin(node);
        let Some(forgotten) = self.engine.forget(now, &node) else {
            let _ = reply.send(Ok(None));
            return;
        };
        let ForgetCounts { discarded, in_flight } = forgotten;
        warn!(replica = %node, discarded, in_flight, "an operator has discarded all deliveries to a replica");
        self.act(now);
        let (replica, incomplete) = (node.to_string(), Vec::new());
        let answer = api::Forgotten { replica, discarded, in_flight, incomplete };
        self.admin.forgetting.push(Forgetting { node, keeps_record, reply, answer });
    }

    /// Answers for the replicas whose deliveries are all discarded.
    ///
    /// The names and the pause of a replica end only here. If the daemon restarts in between, the
    /// remaining deliveries must still be for the same replica, and still paused.
    pub(in crate::dispatcher) fn answer_forgotten(&mut self, now: Now) {
        for forgetting in std::mem::take(&mut self.admin.forgetting) {
            if self.engine.is_forgetting(&forgetting.node) {
                self.admin.forgetting.push(forgetting);
                continue;
            }
            let Forgetting { node, keeps_record, reply, answer } = forgetting;
            if !keeps_record {
                self.end_record(now, &node);
            }
            self.observed.publish_replica(now, &node, api::ReplicaChange::Forgotten, None);
            self.answer_when_durable(reply, Some(answer));
        }
    }

    fn end_record(&mut self, now: Now, node: &Node) {
        let changes = self.registry.forget(node, now.wall);
        self.save_registry(changes);
        self.engine.pause(now, node, None);
        self.act(now);
    }

    fn rename(
        &mut self,
        now: Now,
        node: &Node,
        to: &Node,
        is_settled_elsewhere: bool,
    ) -> Result<Option<api::Replica>, AdminError> {
        let node = self.resolve_for_admin(node);
        let used = || used_before(&node, to);
        let is_settled = |counters: Counters| counters.pending + counters.dead == 0;
        let has_nothing = is_settled_elsewhere
            && self.engine.lanes().any(|lane| lane.node == node && is_settled(lane.counters));
        let may_be_named =
            self.registry.may_be_named(&node, to) || (has_nothing && self.registry.is_free(to));
        if !may_be_named {
            return Err(used());
        }
        if self.engine.is_forgetting(&node) {
            let error = format!("{node} is being forgotten; rename it when that has ended");
            return Err(AdminError::Conflict(error));
        }
        match self.engine.rename(now, &node, to) {
            Ok(()) => {}
            Err(RenameError::Unknown) => return Ok(None),
            Err(RenameError::Used) => return Err(used()),
        }
        let changes = self.registry.rename(&node, to, now.wall);
        self.save_registry(changes);
        self.observed.latency.rename(&node, to);
        self.observed.past.rename(&node, to);
        self.act(now);
        info!(replica = %node, to = %to, "an operator has renamed a replica");
        self.observed.publish_replica(
            now,
            &node,
            api::ReplicaChange::Renamed,
            Some(to.to_string()),
        );
        Ok(self.list_replicas(now, Some(to)).pop())
    }
}
