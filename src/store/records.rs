//! The data that a journal takes and returns.

use bincode::{BorrowDecode, Encode};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::task::{
    self, Client, Consistency, Idempotency, Node, Operation, Progress, ReplicaLimits, ReplicaPause,
    Task, TaskId, Timestamp, Trace,
};

/// A task without its value. Recovery returns these, because the values of a long queue need not
/// fit into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub id: TaskId,
    pub key: String,
    pub operation: Operation,
    pub accepted_at: Timestamp,
    pub expires_at: Option<Timestamp>,
    pub replicas: Vec<Node>,
    pub user_id: Option<String>,
    pub client: Option<Client>,
    /// Eventual for a task from before format 3, which did not store it.
    pub consistency: Consistency,
    pub trace: Option<Trace>,
    pub value_bytes: usize,
}

impl Header {
    #[must_use]
    pub fn of(task: &Task) -> Self {
        Self {
            id: task.id,
            key: task.key.clone(),
            operation: task.operation,
            accepted_at: task.accepted_at,
            expires_at: task.expires_at,
            replicas: task.replicas.clone(),
            user_id: task.user_id.clone(),
            client: task.client.clone(),
            consistency: task.consistency,
            trace: task.trace.clone(),
            value_bytes: task.value.len(),
        }
    }

    pub(crate) fn into_task(self, value: Bytes) -> Task {
        Task {
            id: self.id,
            key: self.key,
            operation: self.operation,
            value,
            accepted_at: self.accepted_at,
            expires_at: self.expires_at,
            replicas: self.replicas,
            user_id: self.user_id,
            client: self.client,
            consistency: self.consistency,
            primary: None,
            trace: self.trace,
        }
    }

    /// That of its task, value included.
    #[must_use]
    pub fn weight(&self) -> usize {
        let Self { key, value_bytes, replicas, user_id, trace, .. } = self;
        task::weight(key, *value_bytes, replicas, user_id.as_deref(), trace.as_ref())
    }
}

/// An unsettled task of a claimed partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    pub header: Header,
    /// `None` also for a task from before format 4.
    pub idempotency: Option<Idempotency>,
    /// One entry for each of [`Header::replicas`].
    pub progress: Vec<Progress>,
    /// A strong write whose client may still wait, in this process or another one.
    pub is_awaited: bool,
}

/// Kept from the first write to the replica on, or from the first pause or limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaRow {
    /// May have ended.
    pub pause: Option<ReplicaPause>,
    pub limits: ReplicaLimits,
    pub renamed_to: Option<Node>,
    /// When the first write to it was accepted, or when an operator first named it.
    pub first_used: Timestamp,
}

impl ReplicaRow {
    #[must_use]
    pub fn new(first_used: Timestamp) -> Self {
        let limits = ReplicaLimits::default();
        Self { pause: None, limits, renamed_to: None, first_used }
    }

    /// Whether it has only the first use.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        *self == Self::new(self.first_used)
    }
}

/// Why the record of a replica changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordCause {
    /// The first write to it, or the removal of another record to make room for it. Replaces nothing
    /// that an operator has set.
    Use,
    /// An operator's change of one record.
    Operator,
    /// One of several records that an operator has changed together, so that all must be stored.
    Together,
}

/// A token's name (64 bytes), a space, and a client's key of up to 255 bytes, a common limit.
pub(super) const MAX_IDEMPOTENCY_KEY_BYTES: usize = 64 + 1 + 255;

/// Kept for a write with an idempotency key, until the window is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdempotencyRow {
    pub task: TaskId,
    /// Of the write's body: the same key with another body is refused.
    pub fingerprint: [u8; 16],
    /// When the write was accepted.
    pub at: Timestamp,
    /// The answer to a strong write, once there is one.
    pub answer: Option<IdempotencyAnswer>,
}

impl IdempotencyRow {
    #[must_use]
    pub fn of(task: &Task, fingerprint: [u8; 16]) -> Self {
        Self { task: task.id, fingerprint, at: task.accepted_at, answer: None }
    }
}

/// The answer to a strong write. Part of the row format and of the export format: a change is a
/// migration.
#[derive(Clone, Debug, PartialEq, Eq, Encode, BorrowDecode, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdempotencyAnswer {
    /// Whether a majority acknowledged.
    pub success: bool,
    /// Replicas that acknowledged, as positions in the task's list.
    pub acked: Vec<u16>,
    pub failed: Vec<u16>,
    /// The size of the majority.
    pub needed: u16,
}

/// The earlier write with the same key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeated {
    pub id: TaskId,
    /// Eventual if the task is settled and removed, because then it is unknown.
    pub consistency: Consistency,
    /// The answer to a strong write, once there is one.
    pub answer: Option<IdempotencyAnswer>,
}

/// Why a commit is not confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum CommitError {
    /// Final: the store accepts nothing until a restart.
    #[error("the store has failed and nothing can be accepted until a restart")]
    StoreFailed,
    /// The latest writes may or may not be on disk.
    #[error("the store does not answer")]
    Stalled,
    /// The task was removed before its commit began.
    #[error("the task was removed before it was stored")]
    Removed,
    /// Another process owns the partition of the task.
    #[error("another instance owns the partition")]
    Released,
    /// The committer was closed before it got this write.
    #[error("the store is closed")]
    Closed,
}

#[derive(Clone, Debug, Error)]
pub enum ReadError {
    #[error("the store is damaged: {0}")]
    Damaged(String),
    #[error("cannot read from the store: {0}")]
    Database(String),
    /// The process is shutting down.
    #[error("reading from the store was interrupted")]
    Interrupted,
}
