//! What operators ask and order, as methods of the [`Handle`].
//!
//! A question goes to the loop as a [`Query`] and comes back as what the API shows; the loop looks
//! at the engine, and whatever has to be read from the disk for it is read elsewhere. A list is
//! looked for in steps, so that no question holds up the loop for long.

use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::oneshot;

use crate::api;
use crate::dispatcher::Handle;
use crate::dispatcher::bulk::Work;
use crate::dispatcher::event_bus::{EventKinds, Events};
use crate::dispatcher::handle::Request;
use crate::engine::Steered;
use crate::task::{Delivery, Node, ReplicaIndex, TaskId};

/// The steps that one request for a list may take: a few hundred thousand tasks.
const STEPS: usize = 16;
/// How often a barrier is looked at for someone who waits for it.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Why a question has no answer, or an order was not carried out.
#[derive(Debug, Error)]
pub enum AdminError {
    /// The daemon has stopped, or its store has failed.
    #[error("the replicator is shutting down, or its store has failed")]
    Stopped,
    /// What it is about cannot be read from the store.
    #[error("cannot be read from the store: {0}")]
    Unreadable(String),
    /// As much of it goes on as may. The text names the limit.
    #[error("{0}")]
    TooMany(String),
    /// It makes no sense as it is. The text says why.
    #[error("{0}")]
    Invalid(String),
    /// It would write to where it may not. The text names the address.
    #[error("{0}")]
    Forbidden(String),
    /// It cannot be done as things are. The text says why.
    #[error("{0}")]
    Conflict(String),
}

/// Which tasks; what is not said does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TaskFilter {
    /// A delivery stands so: queued, in flight, retrying, parked or dead.
    pub state: Option<api::DeliveryState>,
    /// That delivery, or any, is to this replica.
    pub replica: Option<Node>,
    /// Of this key.
    pub key: Option<String>,
    /// Of the keys that begin so.
    pub key_prefix: Option<String>,
    /// Of this user.
    pub user_id: Option<String>,
}

/// Which dead letters; what is not said does not matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LetterFilter {
    /// These alone, each to one replica or to all of its task.
    pub ids: Option<Vec<(TaskId, Option<Node>)>>,
    /// To this replica.
    pub replica: Option<Node>,
    /// Of this key.
    pub key: Option<String>,
    /// Of the keys that begin so.
    pub key_prefix: Option<String>,
    /// Of this user.
    pub user_id: Option<String>,
    /// With this cause.
    pub cause: Option<api::Cause>,
}

/// A place in the list of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LetterCursor(pub(super) TaskId, pub(super) ReplicaIndex);

impl fmt::Display for LetterCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1.0)
    }
}

impl FromStr for LetterCursor {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (task, replica) = text.split_once('.').unwrap_or((text, ""));
        Ok(Self(task.parse()?, ReplicaIndex(replica.parse()?)))
    }
}

/// Where an answer goes.
pub(crate) type Answer<T> = oneshot::Sender<Result<T, AdminError>>;

/// What the loop is asked.
#[derive(Debug)]
pub(crate) enum Query {
    Tasks {
        filter: TaskFilter,
        limit: usize,
        after: Option<TaskId>,
        reply: Answer<Step<api::Task, TaskId>>,
    },
    Task {
        id: TaskId,
        reply: Answer<Option<api::Task>>,
    },
    DiscardTask {
        id: TaskId,
        reply: Answer<Option<api::Task>>,
    },
    Replicas {
        /// This one alone.
        node: Option<Node>,
        reply: Answer<Vec<api::Replica>>,
    },
    Pause {
        node: Node,
        paused: bool,
        reply: Answer<Option<api::Replica>>,
    },
    Probe {
        node: Node,
        reply: Answer<Option<api::Probed>>,
    },
    Forget {
        node: Node,
        reply: Answer<Option<api::Forgotten>>,
    },
    Rename {
        node: Node,
        to: Node,
        reply: Answer<Option<api::Replica>>,
    },
    Letters {
        filter: LetterFilter,
        limit: usize,
        after: Option<LetterCursor>,
        reply: Answer<Step<Letter, LetterCursor>>,
    },
    Steer {
        letters: Vec<Delivery>,
        order: Order,
        reply: Answer<Vec<Steered>>,
    },
    Barrier {
        /// Up to here; to the last that was accepted where nothing is said.
        up_to: Option<TaskId>,
        nodes: Vec<Node>,
        reply: Answer<api::Barrier>,
    },
}

/// A dead letter, and what the loop knows it by.
#[derive(Clone, Debug)]
pub(crate) struct Letter {
    pub(crate) delivery: Delivery,
    pub(crate) shown: api::DeadLetter,
}

/// What becomes of dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    Redrive,
    Discard,
    /// Nothing, but say what a redrive would do.
    WouldRedrive,
}

/// A part of a list.
#[derive(Debug)]
pub(crate) struct Step<T, C> {
    pub(crate) items: Vec<T>,
    /// How many were looked at for these.
    pub(crate) examined: usize,
    /// Where to go on; `None` at the end.
    pub(crate) next: Option<C>,
}

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
    pub async fn task(&self, id: TaskId) -> Result<Option<api::Task>, AdminError> {
        self.ask(|reply| Query::Task { id, reply }).await
    }

    /// Throws away what is left of a task: what is not on the wire is discarded, durably, the rest
    /// is not tried again. Gives the task as it stands then.
    ///
    /// # Errors
    ///
    /// An [`AdminError`].
    pub async fn discard_task(&self, id: TaskId) -> Result<Option<api::Task>, AdminError> {
        // What a dead letter was is on the disk alone, and not there any more once it is discarded.
        let before = self.task(id).await?;
        let discarded = self.ask(|reply| Query::DiscardTask { id, reply }).await?;
        Ok(discarded.map(|task| match before {
            Some(before) if task.key.is_none() => {
                let api::Task { settled_at, deliveries, .. } = task;
                api::Task { settled_at, deliveries, ..before }
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
        letters: Vec<Delivery>,
        order: Order,
    ) -> Result<Vec<Steered>, AdminError> {
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
    ) -> Result<api::Operation, AdminError> {
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
    ) -> Result<api::Operation, AdminError> {
        let kind = api::OperationKind::Discard;
        self.begin(Work { kind, filter, dry_run, rate: None }).await
    }

    async fn begin(&self, work: Work) -> Result<api::Operation, AdminError> {
        let replicas = self.replicas().await?;
        let total = replicas.iter().map(|replica| replica.dead_letters + replica.parked).sum();
        self.operator.operations.begin(self.clone(), work, total)
    }

    /// The operations that are remembered, newest first.
    #[must_use]
    pub fn operations(&self) -> Vec<api::Operation> {
        self.operator.operations.all()
    }

    /// One operation.
    #[must_use]
    pub fn operation(&self, id: &str) -> Option<api::Operation> {
        self.operator.operations.get(id)
    }

    /// Ends an operation; what it has done stays done.
    pub async fn cancel(&self, id: &str) -> Option<api::Operation> {
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
