//! Writes: one in a request, or many.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::tasks::{Consistency, Write};

/// How the text of a value stands for its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ValueEncoding {
    /// Standard base64 with padding.
    Base64,
    /// The text itself, in UTF-8.
    Raw,
}

/// A user: an integer or a text. It is kept and shown as text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum UserId {
    /// An integer of 64 bits.
    Integer(i64),
    /// Any text.
    Text(String),
}

/// A write, as a client asks for it. Fields that are not named here are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WriteRequest {
    /// Any text but the empty one, `.` and `..`.
    pub key: String,
    /// What becomes of the key.
    pub operation: Write,
    /// `http` or `https` URLs; a node that is named twice counts once.
    #[schema(min_items = 1)]
    pub replica_nodes: Vec<String>,
    /// Base64, or any other text as it is; `null` or nothing is the empty value. Not looked at for
    /// a DELETE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Says which, where a text could be both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_encoding: Option<ValueEncoding>,
    /// Nanoseconds from acceptance; 0 or nothing is for ever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// `eventual` where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// Not used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary_node: Option<String>,
    /// Whose write it is: an integer of 64 bits or a text of up to 256 bytes, kept and shown as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
}

/// A write of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchWrite {
    /// The write.
    #[serde(flatten)]
    pub write: WriteRequest,
    /// The same key with the same bytes again is the same task and not a second one: 1 to 255
    /// visible ASCII characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

/// What a client hears of a write that was accepted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WriteAccepted {
    /// Always `true`.
    pub success: bool,
    /// The name of this replicator.
    pub node_id: String,
    /// The task that it became.
    pub task_id: String,
    /// Of a strong write: who has acknowledged, as the client spelled them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked_nodes: Option<Vec<String>>,
}

/// A strong write that is durable here, but has no majority yet; delivery goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NoMajority {
    /// Always `false`.
    pub success: bool,
    /// How many have acknowledged, how many make a majority, and which are paused or failing.
    pub error: String,
    /// The task that it became.
    pub task_id: String,
    /// Who has acknowledged, as the client spelled them.
    pub acked_nodes: Vec<String>,
    /// Who has not.
    pub failed_nodes: Vec<String>,
}

/// What one write of a batch was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchAnswer {
    /// What `POST /replicate` would have answered: 202, 200, 400, 413, 422 or 503.
    pub status: u16,
    /// Its body.
    #[schema(value_type = Object)]
    pub body: serde_json::Value,
    /// It was accepted before, under the same idempotency key.
    #[serde(default)]
    pub replayed: bool,
}

/// One answer for each write, in their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchAnswers {
    /// Writes accepted; a strong one without its majority is.
    pub accepted: usize,
    /// Writes refused.
    pub refused: usize,
    /// The answers.
    pub answers: Vec<BatchAnswer>,
}
