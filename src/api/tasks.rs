//! Tasks and their deliveries.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::task::{Cause, Consistency, DeliveryState, Operation};

/// Delivery of a task to one replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Delivery)]
pub struct DeliveryInfo {
    pub replica: String,
    pub state: DeliveryState,
    /// Failed attempts, including those that an open breaker did not send.
    pub failures: u32,
    /// Only if the state is `retrying`.
    pub next_attempt_at: Option<String>,
    pub last_error: Option<String>,
    pub last_failed_at: Option<String>,
    /// Only if the state is `dead` or `parked`.
    pub cause: Option<Cause>,
    /// The last five attempts that were sent, oldest first, if one of them failed. Only in the
    /// answer for a single task. Not kept across a restart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<AttemptInfo>,
}

/// An attempt that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Attempt)]
pub struct AttemptInfo {
    pub ended_at: String,
    pub duration_seconds: f64,
    /// Why it failed; `null` if the replica acknowledged it.
    pub error: Option<String>,
}

/// An accepted write. A settled task may have only its id, deliveries and `settled_at`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[schema(as = Task)]
pub struct TaskInfo {
    /// Increases with the order of acceptance.
    pub task_id: String,
    pub key: Option<String>,
    pub operation: Option<Operation>,
    /// Length of the value.
    pub value_bytes: Option<u64>,
    pub accepted_at: Option<String>,
    pub expires_at: Option<String>,
    pub user_id: Option<String>,
    pub consistency: Option<Consistency>,
    /// When the last delivery was settled; `null` if some are unsettled.
    pub settled_at: Option<String>,
    /// One per replica.
    pub deliveries: Vec<DeliveryInfo>,
    /// Partitions of the cluster without an answer, one of which may know more; missing if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<u16>,
}

/// A page of tasks, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskPage {
    /// May be shorter than the limit, even empty, on a page that is not the last.
    pub tasks: Vec<TaskInfo>,
    /// Cursor of the next page; `null` on the last page.
    pub next_cursor: Option<String>,
    /// Partitions of the cluster without an answer, which are not counted; missing if there are none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub incomplete: Vec<u16>,
}
