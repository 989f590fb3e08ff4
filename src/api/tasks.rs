//! Tasks and their deliveries.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What a write does to its key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Write {
    /// Stores the value.
    Set,
    /// Removes the key.
    Delete,
}

/// When the client has its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// Once durable here.
    Eventual,
    /// Once a majority has acknowledged.
    Strong,
}

/// How a delivery stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// Not sent yet, or about to be sent again.
    Queued,
    /// On the wire.
    InFlight,
    /// Failed, and waiting for its retry.
    Retrying,
    /// Failed, without a place in the retry queue; comes back by itself when it gets one.
    Parked,
    /// A dead letter.
    Dead,
    /// Acknowledged.
    Delivered,
    /// A newer write of the key made it pointless.
    Superseded,
    /// Thrown away, by an operator or after its retention.
    Discarded,
}

/// One task to one replica.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Delivery {
    /// The replica's address.
    pub replica: String,
    /// How it stands.
    pub state: DeliveryState,
    /// Failed attempts so far, those included that an open breaker did not let out.
    pub failures: u32,
    /// When it is tried again; only of one that is retrying.
    pub next_attempt_at: Option<String>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// When that was.
    pub last_failed_at: Option<String>,
    /// Why it is a dead letter; only of one that is dead or parked.
    pub cause: Option<super::Cause>,
}

/// An accepted write.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Task {
    /// Its id, which grows with acceptance.
    pub task_id: String,
    /// The key; `null` for a settled task of which it is not remembered.
    pub key: Option<String>,
    /// SET or DELETE; `null` as the key.
    pub operation: Option<Write>,
    /// The length of the value in bytes; `null` as the key.
    pub value_bytes: Option<u64>,
    /// When it was accepted; `null` as the key.
    pub accepted_at: Option<String>,
    /// From when on the key is to be gone.
    pub expires_at: Option<String>,
    /// Whose write it is.
    pub user_id: Option<String>,
    /// Eventual or strong; `null` as the key.
    pub consistency: Option<Consistency>,
    /// When the last of its deliveries was settled; `null` while one is not.
    pub settled_at: Option<String>,
    /// One for each of its replicas.
    pub deliveries: Vec<Delivery>,
}

/// A part of a list of tasks, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TaskPage {
    /// The tasks; may be fewer than asked for, or none, and still have a cursor.
    pub tasks: Vec<Task>,
    /// Ask with this for what follows; `null` at the end.
    pub next_cursor: Option<String>,
}
