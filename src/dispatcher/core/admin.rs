//! What operators ask and order, in the loop.

use std::sync::Arc;

use super::Core;
use crate::api;
use crate::dispatcher::messages::{AdminError, Answer, Letter, LetterCursor, LetterFilter};
use crate::dispatcher::messages::{Order, Query, Step, TaskFilter};
use crate::dispatcher::replica_registry::Change;
use crate::dispatcher::{event_bus::EventKind, view};
use crate::engine::{self, AdminOutcome, DeliveryFilter, LaneView, Now, RenameError};
use crate::store::{Header, Journal};
use crate::task::{BreakerState, Cause, DeliveryId, DeliveryState, Node, TaskId};

/// Tasks whose rows are read for one step of a list.
const READS: usize = 1000;

impl Core {
    pub(super) fn admin(&mut self, now: Now, query: Query) {
        match query {
            Query::Tasks { filter, limit, after, reply } => {
                self.find_tasks(now, filter, limit, after, reply);
            }
            Query::Task { id, reply } => self.show_task(now, id, reply),
            Query::DiscardTask { id, reply } => self.discard_task(now, id, reply),
            Query::Replicas { node, reply } => {
                let _ = reply.send(Ok(self.show_replicas(now, node.as_ref())));
            }
            Query::Pause { node, paused, reply } => self.pause(now, &node, paused, reply),
            Query::Probe { node, reply } => {
                let node = self.steered(&node);
                let paused =
                    self.parts.engine.lanes().any(|l| l.node == node && l.paused.is_some());
                let probed = self.parts.engine.probe(now, &node);
                let _ = reply.send(Ok(probed.map(|probed| show_probed(&node, probed, paused))));
            }
            Query::Forget { node, reply } => self.forget(now, &node, reply),
            Query::Rename { node, to, reply } => self.rename(now, &node, &to, reply),
            Query::Letters { filter, limit, after, reply } => {
                self.find_letters(&filter, limit, after, reply);
            }
            Query::Steer { letters, order, reply } => {
                let steered: Vec<_> =
                    letters.into_iter().map(|letter| self.steer(now, letter, order)).collect();
                self.act(now);
                if order == Order::WouldRedrive {
                    let _ = reply.send(Ok(steered));
                } else {
                    self.once_durable(reply, steered);
                }
            }
            Query::Barrier { up_to, nodes, reply } => {
                let unknown = |node: &&Node| up_to.is_none() && !self.parts.registry.knows(node);
                if let Some(node) = nodes.iter().find(unknown) {
                    let error = format!(
                        "field \"replicas\": nothing was ever accepted for {node}, so there is nothing to wait for"
                    );
                    let _ = reply.send(Err(AdminError::Invalid(error)));
                    return;
                }
                let up_to = up_to.unwrap_or(self.parts.newest).min(self.parts.newest);
                let mut nodes: Vec<_> =
                    nodes.iter().map(|node| self.parts.registry.resolve(node).clone()).collect();
                nodes.sort();
                nodes.dedup();
                self.counting.push_back((up_to, nodes, reply));
                self.answer_counted();
            }
        }
        self.act(now);
    }

    /// Answers those who ask for a barrier, one after the other, as far as it is counted.
    pub(super) fn answer_counted(&mut self) {
        while let Some((up_to, nodes, reply)) = self.counting.pop_front() {
            // Who asked may be gone.
            if reply.is_closed() {
                continue;
            }
            let Some(found) = self.parts.engine.barrier(up_to, &nodes) else {
                return self.counting.push_front((up_to, nodes, reply));
            };
            let _ = reply.send(Ok(view::barrier(up_to, &nodes, found)));
        }
    }

    /// Answers when everything that was ordered so far is durable.
    fn once_durable<T: Send + 'static>(&self, reply: Answer<T>, answer: T) {
        self.parts.journal.sync(Box::new(move |synced: Result<(), _>| {
            // Who asked may be gone.
            let _ = reply.send(synced.map(|()| answer).map_err(|_| AdminError::Stopped));
        }));
    }

    /// The name that a replica goes by, which is told to the engine if it is used and idle since the
    /// start.
    fn steered(&mut self, node: &Node) -> Node {
        let node = self.parts.registry.resolve(node).clone();
        if self.parts.registry.knows(&node) {
            self.parts.engine.know(&node);
        }
        node
    }

    pub(super) fn write_registry(&self, changes: Vec<Change>) {
        for (node, row) in changes {
            self.parts.journal.set_replica(node, row);
        }
    }

    fn wanted(&self, node: Option<&Node>, key: Option<&String>) -> DeliveryFilter {
        DeliveryFilter {
            state: None,
            node: node.map(|node| self.parts.registry.resolve(node).clone()),
            key: key.map(|key| self.parts.keys.id(key)),
        }
    }

    fn find_tasks(
        &self,
        now: Now,
        filter: TaskFilter,
        limit: usize,
        after: Option<TaskId>,
        reply: Answer<Step<api::TaskInfo, TaskId>>,
    ) {
        let wanted = DeliveryFilter {
            state: filter.state,
            ..self.wanted(filter.replica.as_ref(), filter.key.as_ref())
        };
        let text =
            TextFilter { key: filter.key, key_prefix: filter.key_prefix, user_id: filter.user_id };
        let most = if text.is_empty() { limit } else { READS };
        let found = self.parts.engine.find_tasks(&wanted, after, most);
        let journal = Arc::clone(&self.parts.journal);
        answer_elsewhere(reply, async move {
            let ids: Vec<_> = found.items.iter().map(|task| task.id).collect();
            let examined = ids.len();
            let (mut items, mut next) = (Vec::new(), found.next);
            // One that is not there has been settled, or is not written yet.
            for (task, header) in found.items.into_iter().zip(headers(&*journal, ids).await?) {
                let Some(header) = header.filter(|header| text.fits(header)) else { continue };
                if items.len() == limit {
                    break;
                }
                next = if items.len() + 1 == limit { Some(task.id) } else { next };
                items.push(view::task(task, Some(&header), None, now));
            }
            Ok(Step { items, examined, next })
        });
    }

    fn find_letters(
        &self,
        filter: &LetterFilter,
        limit: usize,
        after: Option<LetterCursor>,
        reply: Answer<Step<Letter, LetterCursor>>,
    ) {
        let wanted = DeliveryFilter {
            state: match filter.cause {
                None => None,
                Some(Cause::RetryOverflow) => Some(DeliveryState::Parked),
                Some(Cause::Rejected | Cause::GaveUp) => Some(DeliveryState::Dead),
            },
            ..self.wanted(filter.replica.as_ref(), filter.key.as_ref())
        };
        let text = TextFilter {
            key: filter.key.clone(),
            key_prefix: filter.key_prefix.clone(),
            user_id: filter.user_id.clone(),
        };
        let cause = filter.cause;
        let limit = if filter.ids.is_some() { usize::MAX } else { limit };
        let engine = &self.parts.engine;
        let found = match &filter.ids {
            None => {
                let most = if text.is_empty() && cause.is_none() { limit } else { READS };
                engine.find_letters(&wanted, after.map(|after| (after.0, after.1)), most)
            }
            // All of them at once: there is a limit to how many can be named.
            Some(ids) => {
                let resolve = |(id, node): &(TaskId, Option<Node>)| {
                    (*id, node.as_ref().map(|node| self.parts.registry.resolve(node).clone()))
                };
                engine.letters_of(&ids.iter().map(resolve).collect::<Vec<_>>(), &wanted)
            }
        };
        let journal = Arc::clone(&self.parts.journal);
        answer_elsewhere(reply, async move {
            let ids: Vec<_> = found.items.iter().map(|letter| letter.task).collect();
            let examined = ids.len();
            let place = |(task, replica)| LetterCursor(task, replica);
            let (mut items, mut next) = (Vec::new(), found.next.map(place));
            let whole = found.next.is_none();
            let letters = found.items.into_iter().zip(headers(&*journal, ids).await?);
            let mut letters = letters.peekable();
            while let Some((letter, header)) = letters.next() {
                let Some(header) = header.filter(|header| text.fits(header)) else { continue };
                let delivery = DeliveryId { task: letter.task, replica: letter.replica };
                let Some(shown) = view::dead_letter(letter, header) else { continue };
                if cause.is_some_and(|cause| cause != shown.cause) {
                    continue;
                }
                items.push(Letter { delivery, shown });
                if items.len() == limit {
                    if letters.peek().is_some() || !whole {
                        next = Some(LetterCursor(delivery.task, delivery.replica));
                    }
                    break;
                }
            }
            Ok(Step { items, examined, next })
        });
    }

    fn show_task(&self, now: Now, id: TaskId, reply: Answer<Option<api::TaskInfo>>) {
        let journal = Arc::clone(&self.parts.journal);
        if let Some(found) = self.parts.engine.view(id) {
            let header = self.task_cache.get(id).map(|task| Header::of(&task));
            return answer_elsewhere(reply, async move {
                let header = match header {
                    Some(header) => Some(header),
                    None => headers(&*journal, vec![id]).await?.pop().flatten(),
                };
                Ok(Some(view::task(found, header.as_ref(), None, now)))
            });
        }
        let past = self.parts.history.get(id);
        let shown = past.map(|past| {
            view::task(past.view.clone(), past.header.as_ref(), Some(past.settled_at), now)
        });
        let _ = reply.send(Ok(shown));
    }

    fn discard_task(&mut self, now: Now, id: TaskId, reply: Answer<Option<api::TaskInfo>>) {
        // Before it is gone.
        let header = self.task_cache.get(id).map(|task| Header::of(&task));
        if !self.parts.engine.discard_task(now, id) {
            return self.show_task(now, id, reply);
        }
        self.act(now);
        let past = self.parts.history.get(id);
        let settled_at = past.map(|past| past.settled_at);
        let found = self.parts.engine.view(id).or_else(|| past.map(|past| past.view.clone()));
        let header = header.or_else(|| past.and_then(|past| past.header.clone()));
        let found = found.map(|found| view::task(found, header.as_ref(), settled_at, now));
        self.once_durable(reply, found);
    }

    fn show_replicas(&self, now: Now, node: Option<&Node>) -> Vec<api::Replica> {
        let node = node.map(|node| self.parts.registry.resolve(node));
        let lanes = self.parts.engine.lanes();
        let mut lanes: Vec<_> =
            lanes.filter(|lane| node.is_none_or(|node| *node == lane.node)).collect();
        lanes.sort_by(|a, b| a.node.cmp(&b.node));
        lanes.iter().map(|lane| self.show_replica(now, lane)).collect()
    }

    fn show_replica(&self, now: Now, lane: &LaneView) -> api::Replica {
        let (rate, latency) = (self.rates.of(&lane.node), self.rates.latency(&lane.node));
        view::replica(lane, rate, latency, self.parts.registry.names_before(&lane.node), now)
    }

    fn pause(&mut self, now: Now, node: &Node, paused: bool, reply: Answer<Option<api::Replica>>) {
        let node = self.steered(node);
        let lane = self.parts.engine.lanes().find(|lane| lane.node == node);
        let Some(lane) = lane else {
            let _ = reply.send(Ok(None));
            return;
        };
        if lane.paused.is_some() != paused {
            let since = paused.then_some(now.wall);
            let change = self.parts.registry.pause(&node, since, now.wall);
            self.write_registry(vec![change]);
            self.parts.engine.pause(now, &node, since);
            self.act(now);
            let change =
                if paused { api::ReplicaChange::Paused } else { api::ReplicaChange::Resumed };
            tracing::info!(replica = %node, paused, "an operator has changed what is sent");
            self.tell_replica(now, &node, change, None);
        }
        let shown = self.show_replicas(now, Some(&node)).pop();
        self.once_durable(reply, shown);
    }

    fn forget(&mut self, now: Now, node: &Node, reply: Answer<Option<api::Forgotten>>) {
        let node = self.steered(node);
        let Some(forgotten) = self.parts.engine.forget(now, &node) else {
            let _ = reply.send(Ok(None));
            return;
        };
        let engine::ForgetCounts { discarded, in_flight } = forgotten;
        tracing::warn!(replica = %node, discarded, in_flight, "an operator has thrown away everything for a replica");
        self.act(now);
        let shown = api::Forgotten { replica: node.to_string(), discarded, in_flight };
        self.forgetting.push((node, reply, shown));
    }

    /// Answers those whose replica has been forgotten to the end.
    ///
    /// Its names and its pause are given up only now: after a restart amid this, what is left must
    /// still be for the same replica, and go out no earlier than it would have.
    pub(super) fn answer_forgotten(&mut self, now: Now) {
        for (node, reply, shown) in std::mem::take(&mut self.forgetting) {
            if self.parts.engine.is_forgetting(&node) {
                self.forgetting.push((node, reply, shown));
                continue;
            }
            let changes = self.parts.registry.forget(&node, now.wall);
            self.write_registry(changes);
            self.parts.engine.pause(now, &node, None);
            self.act(now);
            self.tell_replica(now, &node, api::ReplicaChange::Forgotten, None);
            self.once_durable(reply, Some(shown));
        }
    }

    fn rename(&mut self, now: Now, node: &Node, to: &Node, reply: Answer<Option<api::Replica>>) {
        let node = self.steered(node);
        let used = || {
            AdminError::Conflict(format!(
                "{to} has been sent writes already: what waits for {node} could be older than those"
            ))
        };
        if !self.parts.registry.may_be_named(&node, to) {
            let _ = reply.send(Err(used()));
            return;
        }
        if self.parts.engine.is_forgetting(&node) {
            let error = format!("{node} is being forgotten; rename it when that has ended");
            let _ = reply.send(Err(AdminError::Conflict(error)));
            return;
        }
        match self.parts.engine.rename(now, &node, to) {
            Ok(()) => {}
            Err(RenameError::Unknown) => {
                let _ = reply.send(Ok(None));
                return;
            }
            Err(RenameError::Used) => {
                let _ = reply.send(Err(used()));
                return;
            }
        }
        let changes = self.parts.registry.rename(&node, to, now.wall);
        self.write_registry(changes);
        self.rates.rename(&node, to);
        self.act(now);
        tracing::info!(replica = %node, to = %to, "an operator has renamed a replica");
        self.tell_replica(now, &node, api::ReplicaChange::Renamed, Some(to.to_string()));
        let shown = self.show_replicas(now, Some(to)).pop();
        self.once_durable(reply, shown);
    }

    fn steer(&mut self, now: Now, letter: DeliveryId, order: Order) -> AdminOutcome {
        match order {
            Order::Redrive => self.parts.engine.redrive_letter(now, letter),
            Order::Discard => self.parts.engine.discard_letter(now, letter),
            Order::WouldRedrive => self.parts.engine.would_redrive(letter),
        }
    }

    pub(super) fn tell_replica(
        &self,
        now: Now,
        node: &Node,
        change: api::ReplicaChange,
        detail: Option<String>,
    ) {
        let (at, replica) = (view::time(now.wall), node.to_string());
        self.parts.bus.say(EventKind::Replica, &api::ReplicaEvent { at, replica, change, detail });
    }
}

fn show_probed(node: &Node, probed: engine::ProbeState, paused: bool) -> api::Probed {
    let reason = match (probed.probing, probed.breaker) {
        (true, _) => None,
        (false, _) if paused => Some("it is paused"),
        (false, BreakerState::Open) => Some("nothing is due that could be the probe"),
        (false, _) => Some("the breaker is not open"),
    };
    api::Probed {
        replica: node.to_string(),
        breaker: probed.breaker,
        probing: probed.probing,
        reason: reason.map(str::to_owned),
    }
}

/// What is looked for in the rows.
struct TextFilter {
    key: Option<String>,
    key_prefix: Option<String>,
    user_id: Option<String>,
}

impl TextFilter {
    fn is_empty(&self) -> bool {
        self.key.is_none() && self.key_prefix.is_none() && self.user_id.is_none()
    }

    fn fits(&self, header: &Header) -> bool {
        self.key.as_ref().is_none_or(|key| *key == header.key)
            && self.key_prefix.as_ref().is_none_or(|prefix| header.key.starts_with(prefix))
            && (self.user_id.is_none() || self.user_id == header.user_id)
    }
}

async fn headers(
    journal: &dyn Journal,
    ids: Vec<TaskId>,
) -> Result<Vec<Option<Header>>, AdminError> {
    let headers = journal.headers(ids).await;
    headers.map_err(|error| AdminError::Unreadable(error.to_string()))
}

/// Answers beside the loop, where the disk may be waited for.
fn answer_elsewhere<T: Send + 'static>(
    reply: Answer<T>,
    answer: impl Future<Output = Result<T, AdminError>> + Send + 'static,
) {
    tokio::spawn(async move {
        // Who asked may be gone.
        let _ = reply.send(answer.await);
    });
}
