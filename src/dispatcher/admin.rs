//! What operators ask and order, as methods of the [`Handle`].
//!
//! A question goes to the loop as a [`Query`] and comes back as what the API shows; the loop looks
//! at the engine, and whatever has to be read from the disk for it is read elsewhere. A list is
//! looked for in steps, so that no question holds up the loop for long.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::api;
use crate::dispatcher::Handle;
use crate::dispatcher::bulk::Work;
use crate::dispatcher::event_bus::{EventKinds, Events};
use crate::dispatcher::messages::{
    AdminError, Answer, Letter, LetterCursor, LetterFilter, Order, Query, Request, Step, TaskFilter,
};
use crate::engine::AdminOutcome;
use crate::task::{DeliveryId, Node, TaskId};

/// The steps that one request for a list may take: a few hundred thousand tasks.
const STEPS: usize = 16;
/// How often a barrier is looked at for someone who waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Handle {
    async fn ask<T>(&self, query: impl FnOnce(Answer<T>) -> Query) -> Result<T, AdminError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Admin(query(reply));
        self.requests.send(request).map_err(|_| AdminError::Stopped)?;
        answer.await.map_err(|_| AdminError::Stopped)?
    }

    /// Unsettled tasks, oldest first. The page may be short and still not be the last.
    ///
    /// # Errors
    ///
    /// An [`AdminError`], as of all questions here.
    pub async fn tasks(
        &self,
        filter: TaskFilter,
        limit: usize,
        mut after: Option<TaskId>,
    ) -> Result<api::TaskPage, AdminError> {
        let mut tasks = Vec::new();
        for _ in 0..STEPS {
            let (filter, limit) = (filter.clone(), limit.saturating_sub(tasks.len()));
            let ask = |reply| Query::Tasks { filter, limit, after, reply };
            let step = self.ask(ask).await?;
            let full = step.items.len() >= limit;
            tasks.extend(step.items);
            after = step.next;
            if after.is_none() || full {
                break;
            }
        }
        Ok(api::TaskPage { tasks, next_cursor: after.map(|id| id.to_string()) })
    }

    /// One task, also one that was settled lately.
    ///
    /// # Errors
    ///
    /// An [`AdminError`].
    pub async fn task(&self, id: TaskId) -> Result<Option<api::TaskInfo>, AdminError> {
        self.ask(|reply| Query::Task { id, reply }).await
    }

    /// Throws away what is left of a task: what is not on the wire is discarded, durably, the rest
    /// is not tried again. Gives the task as it stands then.
    ///
    /// # Errors
    ///
    /// An [`AdminError`].
    pub async fn discard_task(&self, id: TaskId) -> Result<Option<api::TaskInfo>, AdminError> {
        // What a dead letter was is on the disk alone, and not there any more once it is discarded.
        let before = self.task(id).await?;
        let discarded = self.ask(|reply| Query::DiscardTask { id, reply }).await?;
        Ok(discarded.map(|task| match before {
            Some(before) if task.key.is_none() => {
                let api::TaskInfo { settled_at, deliveries, .. } = task;
                api::TaskInfo { settled_at, deliveries, ..before }
            }
            _ => task,
        }))
    }

    /// All replicas, by address.
    ///
    /// # Errors
    ///
    /// An [`AdminError`].
    pub async fn replicas(&self) -> Result<Vec<api::Replica>, AdminError> {
        self.ask(|reply| Query::Replicas { node: None, reply }).await
    }

    /// One replica.
    ///
    /// # Errors
    ///
    /// An [`AdminError`].
    pub async fn replica(&self, node: &Node) -> Result<Option<api::Replica>, AdminError> {
        let node = Some(node.clone());
        let found = self.ask(|reply| Query::Replicas { node, reply }).await?;
        Ok(found.into_iter().next())
    }

    /// Sends nothing to a replica any more, over restarts too, or goes on. Durable when answered.
    ///
    /// # Errors
    ///
    /// An [`AdminError`].
    pub async fn pause(
        &self,
        node: &Node,
        paused: bool,
    ) -> Result<Option<api::Replica>, AdminError> {
        let node = node.clone();
        self.ask(|reply| Query::Pause { node, paused, reply }).await
    }

    /// Lets an open breaker send its next probe now.
    ///
    /// # Errors
    ///
    /// An [`AdminError`].
    pub async fn probe(&self, node: &Node) -> Result<Option<api::Probed>, AdminError> {
        let node = node.clone();
        self.ask(|reply| Query::Probe { node, reply }).await
    }

    /// Throws away everything for a replica that is gone.
    ///
    /// # Errors
    ///
    /// An [`AdminError`].
    pub async fn forget(&self, node: &Node) -> Result<Option<api::Forgotten>, AdminError> {
        let node = node.clone();
        self.ask(|reply| Query::Forget { node, reply }).await
    }

    /// Has everything for a replica go to another address from now on, over restarts too.
    ///
    /// # Errors
    ///
    /// [`AdminError::Conflict`] if something was ever sent there, [`AdminError::Forbidden`] if
    /// nothing may be.
    pub async fn rename(&self, node: &Node, to: Node) -> Result<Option<api::Replica>, AdminError> {
        if let Err(why) = self.operator.policy.admit(&to) {
            return Err(AdminError::Forbidden(format!("{to} {why}")));
        }
        let node = node.clone();
        self.ask(|reply| Query::Rename { node, to, reply }).await
    }

    /// Dead letters, oldest task first. The page may be short and still not be the last.
    ///
    /// # Errors
    ///
    /// An [`AdminError`].
    pub async fn dead_letters(
        &self,
        filter: LetterFilter,
        limit: usize,
        mut after: Option<LetterCursor>,
    ) -> Result<api::DeadLetterPage, AdminError> {
        let mut dead_letters = Vec::new();
        for _ in 0..STEPS {
            let (filter, limit) = (filter.clone(), limit.saturating_sub(dead_letters.len()));
            let step = self.letters(filter, limit, after).await?;
            let full = step.items.len() >= limit;
            dead_letters.extend(step.items.into_iter().map(|letter| letter.shown));
            after = step.next;
            if after.is_none() || full {
                break;
            }
        }
        let next_cursor = after.map(|cursor| cursor.to_string());
        Ok(api::DeadLetterPage { dead_letters, next_cursor })
    }

    pub(super) async fn letters(
        &self,
        filter: LetterFilter,
        limit: usize,
        after: Option<LetterCursor>,
    ) -> Result<Step<Letter, LetterCursor>, AdminError> {
        self.ask(|reply| Query::Letters { filter, limit, after, reply }).await
    }

    pub(super) async fn steer(
        &self,
        letters: Vec<DeliveryId>,
        order: Order,
    ) -> Result<Vec<AdminOutcome>, AdminError> {
        self.ask(|reply| Query::Steer { letters, order, reply }).await
    }

    /// Begins to make dead letters ready again, at most `rate` a second. A letter with a newer
    /// write of its key on its way is left out.
    ///
    /// # Errors
    ///
    /// [`AdminError::TooMany`] if as many operations run as may.
    pub async fn redrive(
        &self,
        filter: LetterFilter,
        dry_run: bool,
        rate: Option<NonZeroU32>,
    ) -> Result<api::BulkOperation, AdminError> {
        let rate = Some(rate.unwrap_or(self.operator.redrive_rate));
        self.begin(Work { kind: api::OperationKind::Redrive, filter, dry_run, rate }).await
    }

    /// Begins to throw dead letters away.
    ///
    /// # Errors
    ///
    /// [`AdminError::TooMany`] if as many operations run as may.
    pub async fn discard(
        &self,
        filter: LetterFilter,
        dry_run: bool,
    ) -> Result<api::BulkOperation, AdminError> {
        let kind = api::OperationKind::Discard;
        self.begin(Work { kind, filter, dry_run, rate: None }).await
    }

    async fn begin(&self, work: Work) -> Result<api::BulkOperation, AdminError> {
        let replicas = self.replicas().await?;
        let total = replicas.iter().map(|replica| replica.dead_letters + replica.parked).sum();
        self.operator.operations.begin(self.clone(), work, total)
    }

    /// The operations that are remembered, newest first.
    #[must_use]
    pub fn operations(&self) -> Vec<api::BulkOperation> {
        self.operator.operations.all()
    }

    /// One operation.
    #[must_use]
    pub fn operation(&self, id: &str) -> Option<api::BulkOperation> {
        self.operator.operations.get(id)
    }

    /// Ends an operation; what it has done stays done.
    pub async fn cancel(&self, id: &str) -> Option<api::BulkOperation> {
        self.operator.operations.cancel(id).await
    }

    /// A barrier behind everything that has been accepted, for these replicas, or for all.
    ///
    /// # Errors
    ///
    /// An [`AdminError`].
    pub async fn barrier(&self, nodes: Vec<Node>) -> Result<api::Barrier, AdminError> {
        self.ask(|reply| Query::Barrier { up_to: None, nodes, reply }).await
    }

    /// How a barrier stands; waits up to `wait` for it to be reached. `None` if this is no id of a
    /// barrier.
    ///
    /// # Errors
    ///
    /// An [`AdminError`].
    pub async fn barrier_state(
        &self,
        id: &str,
        wait: Duration,
    ) -> Result<Option<api::Barrier>, AdminError> {
        let Some((up_to, nodes)) = super::view::read_barrier_id(id) else { return Ok(None) };
        let looks = wait.as_millis() / LOOK_EVERY.as_millis();
        for _ in 0..looks {
            let barrier = self.barrier_now(up_to, &nodes).await?;
            if barrier.reached {
                return Ok(Some(barrier));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        self.barrier_now(up_to, &nodes).await.map(Some)
    }

    async fn barrier_now(&self, up_to: TaskId, nodes: &[Node]) -> Result<api::Barrier, AdminError> {
        let nodes = nodes.to_vec();
        self.ask(|reply| Query::Barrier { up_to: Some(up_to), nodes, reply }).await
    }

    /// What happens from now on, or after an event that was seen before.
    #[must_use]
    pub fn events(&self, after: Option<u64>, kinds: EventKinds) -> Events {
        self.operator.bus.watch(after, kinds)
    }
}
