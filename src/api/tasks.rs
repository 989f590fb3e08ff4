//! Tasks and their deliveries.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Operation of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Write {
    Set,
    Delete,
}

/// When a write is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// When the write is durable here.
    Eventual,
    /// When a majority of the replicas has acknowledged.
    Strong,
}

/// State of a delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// Waiting to be sent.
    Queued,
    InFlight,
    /// Failed and waiting for its retry.
    Retrying,
    /// Failed and waiting for a place in the retry queue. Comes back automatically.
    Parked,
    Dead,
    Delivered,
    /// A newer write of the key made it pointless.
    Superseded,
    /// Discarded by an operator or after its retention.
    Discarded,
}

/// Delivery of a task to one replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Delivery {
    pub replica: String,
    pub state: DeliveryState,
    /// Failed attempts, including those that an open breaker did not send.
    pub failures: u32,
    /// Only if the state is `retrying`.
    pub next_attempt_at: Option<String>,
    pub last_error: Option<String>,
    pub last_failed_at: Option<String>,
    /// Only if the state is `dead` or `parked`.
    pub cause: Option<super::Cause>,
}

/// An accepted write. A settled task may have only its id, deliveries and `settled_at`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Increases with the order of acceptance.
    pub task_id: String,
    pub key: Option<String>,
    pub operation: Option<Write>,
    /// Length of the value.
    pub value_bytes: Option<u64>,
    pub accepted_at: Option<String>,
    pub expires_at: Option<String>,
    pub user_id: Option<String>,
    pub consistency: Option<Consistency>,
    /// When the last delivery was settled; `null` if some are unsettled.
    pub settled_at: Option<String>,
    /// One per replica.
    pub deliveries: Vec<Delivery>,
}

/// A page of tasks, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskPage {
    /// May be shorter than the limit, even empty, on a page that is not the last.
    pub tasks: Vec<Task>,
    /// Cursor of the next page; `null` on the last page.
    pub next_cursor: Option<String>,
}
