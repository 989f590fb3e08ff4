//! Requests and responses of single writes and batches.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::task::{Consistency, Operation};

/// Encoding of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum ValueEncoding {
    /// Standard base64 with padding.
    Base64,
    /// The UTF-8 text itself.
    Raw,
}

/// A user id: an integer or a string. Stored and shown as a string.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum UserId {
    /// A 64-bit integer.
    Integer(i64),
    Text(String),
}

/// A write. Unknown fields are ignored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WriteRequest {
    /// Must not be empty, `.` or `..`.
    pub key: String,
    pub operation: Operation,
    /// `http` or `https` URLs. Duplicates count once.
    #[schema(min_items = 1)]
    pub replica_nodes: Vec<String>,
    /// Base64; text that is not valid base64 is taken as raw UTF-8. `null` or missing is the empty
    /// value. Ignored for a DELETE.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Encoding of `value`, for text that could be both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_encoding: Option<ValueEncoding>,
    /// Time to live in nanoseconds from acceptance; 0 or missing means no expiration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// Default `eventual`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consistency: Option<Consistency>,
    /// Ignored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub primary_node: Option<String>,
    /// A 64-bit integer or a string of up to 256 bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_id: Option<UserId>,
}

/// A write of a batch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchWrite {
    #[serde(flatten)]
    pub write: WriteRequest,
    /// 1 to 255 visible ASCII characters. A repeated key with the same bytes refers to the same
    /// task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idempotency_key: Option<String>,
}

/// Response to an accepted write.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct WriteAccepted {
    /// Always `true`.
    pub success: bool,
    /// Name of this replicator.
    pub node_id: String,
    pub task_id: String,
    /// Only for a strong write: replicas that acknowledged, as the client spelled them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acked_nodes: Option<Vec<String>>,
}

/// Response to a strong write that is durable here but has no majority. Deliveries continue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NoMajority {
    /// Always `false`.
    pub success: bool,
    /// Number of acknowledgements, size of a majority, and paused or failing replicas.
    pub error: String,
    pub task_id: String,
    /// Replicas that acknowledged, as the client spelled them.
    pub acked_nodes: Vec<String>,
    /// Replicas that did not.
    pub failed_nodes: Vec<String>,
}

/// Answer to one write of a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchAnswer {
    /// Status that `POST /replicate` would return.
    pub status: u16,
    /// Body that `POST /replicate` would return.
    #[schema(value_type = Object)]
    pub body: serde_json::Value,
    /// The write was accepted before under the same idempotency key.
    #[serde(default)]
    pub replayed: bool,
}

/// Answers to a batch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchAnswers {
    /// Accepted writes, including strong ones without a majority.
    pub accepted: usize,
    pub refused: usize,
    /// One per write, in order.
    pub answers: Vec<BatchAnswer>,
}
