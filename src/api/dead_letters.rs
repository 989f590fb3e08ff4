//! Dead letters, and the operations on them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::tasks::Write;

/// Why a delivery became a dead letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The replica refused it for good.
    Rejected,
    /// All attempts failed.
    GaveUp,
    /// It has no place in the retry queue: that is full, the replica holds its share of it or is
    /// paused, or asked for a long wait. Comes back by itself.
    RetryOverflow,
}

/// One dead letter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeadLetter {
    /// Its task.
    pub task_id: String,
    /// Its replica.
    pub replica: String,
    /// The key.
    pub key: String,
    /// SET or DELETE.
    pub operation: Write,
    /// The length of the value in bytes.
    pub value_bytes: u64,
    /// Whose write it is.
    pub user_id: Option<String>,
    /// When it was accepted.
    pub accepted_at: String,
    /// Why it lies here.
    pub cause: Cause,
    /// Failed attempts before that.
    pub failures: u32,
    /// Why the last of them failed.
    pub last_error: String,
    /// Since when it lies here.
    pub since: String,
}

/// A part of the list of dead letters, oldest task first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DeadLetterPage {
    /// May be fewer than asked for, or none, and still have a cursor.
    pub dead_letters: Vec<DeadLetter>,
    /// Ask with this for what follows; `null` at the end.
    pub next_cursor: Option<String>,
}

/// Names one dead letter, or all of one task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LetterId {
    /// Its task.
    pub task_id: String,
    /// Its replica; without it, every replica of the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
}

/// Which dead letters. What is given narrows it down; nothing at all selects nothing and is an
/// error, all of them have to be asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Selection {
    /// These, up to 1000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ids: Option<Vec<LetterId>>,
    /// Those of this replica.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica: Option<String>,
    /// Those of this key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Those of the keys that begin so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_prefix: Option<String>,
    /// Those of this user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<super::UserId>)]
    pub user_id: Option<String>,
    /// Those with this cause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// All of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all: bool,
}

/// Make dead letters ready again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct RedriveRequest {
    /// Which.
    #[serde(flatten)]
    pub selection: Selection,
    /// Only count.
    #[serde(default)]
    pub dry_run: bool,
    /// At most so many in a second; `--redrive-rate` where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<u32>,
}

/// Throw dead letters away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiscardRequest {
    /// Which.
    #[serde(flatten)]
    pub selection: Selection,
    /// Only count.
    #[serde(default)]
    pub dry_run: bool,
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Makes dead letters ready again.
    Redrive,
    /// Throws dead letters away.
    Discard,
}

/// How an operation stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// It goes on.
    Running,
    /// It has come to its end.
    Done,
    /// An operator ended it.
    Cancelled,
    /// It could not go on.
    Failed,
}

/// Work over many dead letters. It does not survive a restart: what it had not come to stays as it
/// was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Operation {
    /// Its id.
    pub operation_id: String,
    /// What it does.
    pub kind: OperationKind,
    /// How it stands.
    pub state: OperationState,
    /// It only counts.
    pub dry_run: bool,
    /// Dead letters looked at so far.
    pub examined: u64,
    /// Of them, those that are selected.
    pub matched: u64,
    /// Of those, made ready again, or thrown away; with `dry_run`, those that would be.
    pub done: u64,
    /// Of those, left out as a newer write of the key is on its way.
    pub superseded: u64,
    /// Of those, left out as their replica is paused or does not answer, or as the retry queue has
    /// no room: they lie where they were.
    #[serde(default)]
    pub held_back: u64,
    /// Dead letters there were at its beginning: what `examined` goes up to, about.
    pub total: u64,
    /// At most so many in a second.
    pub rate: Option<u32>,
    /// When it began.
    pub started_at: String,
    /// When it came to its end.
    pub ended_at: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
}

/// The operations that are remembered, newest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct OperationPage {
    /// Running ones, and the last ones that ended.
    pub operations: Vec<Operation>,
}
