//! Replicas: list, pause, limit, probe, forget, rename.

use std::num::NonZeroU32;

use tracing::{info, warn};

use crate::api;
use crate::dispatcher::messages::{
    AdminError, AdminReply, LimitsChange, PauseEnd, ReplicaRecord, ReplicaRequest, Request,
};
use crate::dispatcher::{Core, Handle, view};
use crate::engine::{ForgetCounts, Now, ProbeState, RenameError};
use crate::store::RecordCause;
use crate::task::{BreakerState, Counters, Node, ReplicaLimits, ReplicaPause, ReplicaState};

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

    /// Pauses the deliveries to a replica, or resumes them without an end, durably.
    pub(in crate::dispatcher) async fn pause_here(
        &self,
        node: &Node,
        end: Option<PauseEnd>,
    ) -> Result<Option<api::Replica>, AdminError> {
        let (node, forbidden) = (node.clone(), self.forbidden(node));
        let request = |reply| ReplicaRequest::Pause { node, end, forbidden, reply };
        self.ask(|reply| Request::Replicas(request(reply))).await
    }

    /// Changes the limits of a replica, durably.
    pub(in crate::dispatcher) async fn limit_here(
        &self,
        node: &Node,
        change: LimitsChange,
    ) -> Result<Option<api::Replica>, AdminError> {
        let (node, forbidden) = (node.clone(), self.forbidden(node));
        let request = |reply| ReplicaRequest::Limit { node, change, forbidden, reply };
        self.ask(|reply| Request::Replicas(request(reply))).await
    }

    /// Why writes for this replica are refused.
    fn forbidden(&self, node: &Node) -> Option<String> {
        self.operator.policy.admit(node).err().map(|why| format!("{node} {why}"))
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
        if let Some(why) = self.forbidden(&to) {
            return Err(AdminError::Forbidden(why));
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
            ReplicaRequest::Pause { node, end: Some(end), forbidden, reply } => {
                let paused = self.pause(now, &node, end, forbidden);
                self.answer_change(reply, paused);
            }
            ReplicaRequest::Pause { node, end: None, reply, .. } => {
                let resumed = self.resume(now, &node);
                self.answer_change(reply, Ok(resumed));
            }
            ReplicaRequest::Limit { node, change, forbidden, reply } => {
                let limited = self.limit(now, &node, change, forbidden);
                self.answer_change(reply, limited);
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
                self.answer_when_recorded(reply, ());
            }
            ReplicaRequest::Applied { record, reply } => {
                let applied = match record {
                    ReplicaRecord::Paused { node, paused, until } => {
                        let pause = self.registry.pause_of(self.registry.resolve(&node));
                        let ends = pause.and_then(|pause| pause.until).map(view::time);
                        pause.is_some() == paused && ends == until
                    }
                    ReplicaRecord::Limited { node, limits } => {
                        self.registry.limits_of(self.registry.resolve(&node)) == limits
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
            let names_before = self.registry.names_before(&lane.node);
            view::replica(lane, rate, quantiles, self.headroom(&lane.node), names_before, now)
        });
        shown.collect()
    }

    fn pause(
        &mut self,
        now: Now,
        node: &Node,
        end: PauseEnd,
        forbidden: Option<String>,
    ) -> Result<Option<api::Replica>, AdminError> {
        let until = match end {
            PauseEnd::Never => None,
            PauseEnd::After(time) => Some(now.wall.saturating_add(time)),
            PauseEnd::At(until) => Some(until),
        };
        let ahead = until.map(|until| until.saturating_since(now.wall));
        if ahead.is_some_and(|ahead| ahead.is_zero() || ahead > ReplicaPause::LONGEST) {
            return Err(AdminError::Invalid(format!(
                "field \"until\" must be in the future, at most {} days ahead: it is now {}",
                ReplicaPause::LONGEST.as_secs() / 86_400,
                view::time(now.wall),
            )));
        }
        let node = self.known_for_admin(now, node, forbidden)?;
        let known = self.registry.pause_of(&node);
        if known.is_none_or(|known| known.until != until) {
            let since = known.map_or(now.wall, |known| known.since.min(now.wall));
            self.set_pause(now, &node, Some(ReplicaPause { since, until }));
            let until = until.map(view::time);
            let shown = until.as_deref().unwrap_or("resumed");
            info!(replica = %node, until = shown, "an operator has paused a replica");
            self.observed.publish_replica(now, &node, api::ReplicaChange::Paused, until);
        }
        Ok(self.list_replicas(now, Some(&node)).pop())
    }

    fn set_pause(&mut self, now: Now, node: &Node, pause: Option<ReplicaPause>) {
        let change = self.registry.pause(node, pause, now.wall);
        self.save_registry(vec![change], RecordCause::Operator);
        self.engine.pause(now, node, pause);
        self.act(now);
    }

    fn resume(&mut self, now: Now, node: &Node) -> Option<api::Replica> {
        let node = self.resolve_for_admin(node);
        let lane = self.engine.lanes().find(|lane| lane.node == node)?;
        if lane.paused.is_some() {
            self.set_pause(now, &node, None);
            info!(replica = %node, "an operator has resumed a replica");
            self.observed.publish_replica(now, &node, api::ReplicaChange::Resumed, None);
        }
        self.list_replicas(now, Some(&node)).pop()
    }

    fn limit(
        &mut self,
        now: Now,
        node: &Node,
        change: LimitsChange,
        forbidden: Option<String>,
    ) -> Result<Option<api::Replica>, AdminError> {
        let sets_any = !change.apply(ReplicaLimits::default()).is_none();
        let node = match sets_any {
            true => self.known_for_admin(now, node, forbidden)?,
            false => self.resolve_for_admin(node),
        };
        if !self.engine.lanes().any(|lane| lane.node == node) {
            return Ok(None);
        }
        let known = self.registry.limits_of(&node);
        let limits = change.apply(known);
        if limits != known {
            let change = self.registry.limit(&node, limits, now.wall);
            self.save_registry(vec![change], RecordCause::Operator);
            self.engine.limit(now, &node, limits);
            self.act(now);
            info!(replica = %node, %limits, "an operator has changed the limits of a replica");
            let detail = Some(limits.to_string());
            self.observed.publish_replica(now, &node, api::ReplicaChange::Limited, detail);
        }
        Ok(self.list_replicas(now, Some(&node)).pop())
    }

    /// A pause has ended by itself.
    pub(in crate::dispatcher) fn pause_ended(
        &mut self,
        now: Now,
        node: &Node,
        pause: ReplicaPause,
    ) {
        let change = self.registry.pause(node, None, now.wall);
        // Another process could have paused it again since, and this would end that pause: there, a
        // record whose time is over is no pause.
        if self.journal.processes() == NonZeroU32::MIN {
            self.save_registry(vec![change], RecordCause::Operator);
        }
        let until = pause.until.map(view::time);
        let shown = until.as_deref().unwrap_or_default();
        info!(replica = %node, until = shown, "the pause of a replica has ended");
        self.observed.publish_replica(now, node, api::ReplicaChange::Resumed, until);
    }

    /// The current name of a replica for which an operator sets something. One that is not known
    /// becomes known, within `--max-known-replicas`: what is set keeps its place.
    fn known_for_admin(
        &mut self,
        now: Now,
        node: &Node,
        forbidden: Option<String>,
    ) -> Result<Node, AdminError> {
        let node = self.registry.resolve(node).clone();
        let is_known =
            self.registry.knows(&node) || self.engine.lanes().any(|lane| lane.node == node);
        if let Some(why) = forbidden.filter(|_| !is_known) {
            return Err(AdminError::Forbidden(why));
        }
        if !self.engine.know(&node) {
            return Err(AdminError::Conflict(format!(
                "{node} cannot become known: all known replicas have pending deliveries or dead \
                letters, or are paused or limited (--max-known-replicas): forget one"
            )));
        }
        let changes = self.registry.note_use(&node, now.wall);
        self.save_registry(changes, RecordCause::Use);
        Ok(node)
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
    /// The names, the pause and the limits of a replica end only here. If the daemon restarts in between, the
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
        self.save_registry(changes, RecordCause::Together);
        self.engine.pause(now, node, None);
        self.engine.limit(now, node, ReplicaLimits::default());
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
        self.resolve_waiting();
        self.save_registry(changes, RecordCause::Together);
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
