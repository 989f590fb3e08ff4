//! Dead letters and the operations on them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::task::{Cause, Operation};

/// A delivery that was given up, rejected or parked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = DeadLetter)]
pub struct DeadLetterInfo {
    pub task_id: String,
    pub replica: String,
    pub key: String,
    pub operation: Operation,
    /// Length of the value.
    pub value_bytes: u64,
    pub user_id: Option<String>,
    pub accepted_at: String,
    pub cause: Cause,
    /// Number of failed attempts.
    pub failures: u32,
    pub last_error: String,
    /// When it became a dead letter.
    pub since: String,
}

/// A page of dead letters, oldest task first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterPage {
    /// May be shorter than the limit, even empty, on a page that is not the last.
    pub dead_letters: Vec<DeadLetterInfo>,
    /// Cursor of the next page; `null` on the last page.
    pub next_cursor: Option<String>,
    /// Partitions of the cluster without an answer, which are not counted; missing if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<u16>,
}

/// Dead letters of a replica with the same cause and the same kind of error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LetterGroup {
    pub replica: String,
    pub cause: Cause,
    /// The error, with `#` for words that contain digits, except short numbers such as a status.
    pub error: String,
    pub count: u64,
    /// When the first of them became a dead letter.
    pub oldest: String,
    /// When the last of them became a dead letter.
    pub newest: String,
}

/// All dead letters by replica, cause and error, parked deliveries included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LetterSummary {
    pub dead_letters: u64,
    /// The 100 largest groups, largest first.
    pub groups: Vec<LetterGroup>,
    /// Dead letters in no listed group.
    pub other: u64,
    /// Partitions of the cluster without an answer, which are not counted; missing if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<u16>,
}

/// Selects one dead letter, or all of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LetterId {
    pub task_id: String,
    /// Address of the replica; every replica of the task if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
}

/// Selects dead letters. Fields are combined with AND. An empty selection is an error; set `all` to
/// select everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Selection {
    /// Selects by id; at most 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<LetterId>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<super::UserId>)]
    pub user_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// Selects all dead letters.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// Request to redrive dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RedriveRequest {
    #[serde(flatten)]
    pub selection: Selection,
    /// Only count the selected dead letters.
    #[serde(default)]
    pub dry_run: bool,
    /// Limit per second; default `--redrive-rate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
}

/// Request to discard dead letters.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiscardRequest {
    #[serde(flatten)]
    pub selection: Selection,
    /// Only count the selected dead letters.
    #[serde(default)]
    pub dry_run: bool,
}

/// Kind of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    Redrive,
    Discard,
}

/// State of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    Running,
    Done,
    Cancelled,
    Failed,
}

/// A background operation on dead letters. It does not survive a restart: dead letters that it has
/// not processed stay unchanged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Operation)]
pub struct BulkOperation {
    pub operation_id: String,
    pub kind: OperationKind,
    pub state: OperationState,
    pub dry_run: bool,
    /// Dead letters examined so far.
    pub examined: u64,
    /// Examined dead letters that match the selection.
    pub matched: u64,
    /// Matching dead letters that were redriven or discarded, or would be with `dry_run`.
    pub done: u64,
    /// Matching dead letters skipped because a newer write of the key is pending.
    pub superseded: u64,
    /// Matching dead letters skipped because the replica is paused or failing, or the retry queue
    /// is full. They stay dead letters.
    #[serde(default)]
    pub held_back: u64,
    /// The present outcome of the `done` dead letters of a redrive; `null` for a discard or a dry
    /// run. Changes after the operation has ended, until no letter is `waiting`.
    #[serde(default)]
    pub outcomes: Option<RedriveOutcomes>,
    /// Number of dead letters at the start, an estimate for the final `examined`.
    pub total: u64,
    /// Limit per second.
    pub rate: Option<u32>,
    pub started_at: String,
    pub ended_at: Option<String>,
    pub error: Option<String>,
    /// Partitions of the cluster whose dead letters may be left out: their instance has no answer,
    /// or they changed their owner meanwhile. Missing if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<u16>,
}

/// Outcomes of redriven dead letters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RedriveOutcomes {
    pub delivered: u64,
    /// Failed again, and dead letters or parked again.
    pub failed: u64,
    /// A newer write of the key made them pointless.
    pub superseded: u64,
    /// Discarded by an operator.
    pub discarded: u64,
    /// Left to the next owner of their partition, which sends them. 0 without a cluster.
    #[serde(default)]
    pub handed_over: u64,
    /// Not settled yet.
    pub waiting: u64,
}

/// Operations, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationPage {
    /// Running and recently ended operations.
    pub operations: Vec<BulkOperation>,
    /// Partitions of the cluster without an answer, which are not counted; missing if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<u16>,
}
