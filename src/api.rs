//! What operators see and say: the JSON of `/v1`, as types.
//!
//! The daemon makes them, the server sends them, the command line reads them, and the API's
//! description is generated from them, so that the four cannot differ. They hold texts and
//! numbers alone and know nobody.
//!
//! Conventions: a moment is RFC 3339 in UTC with milliseconds; a duration is in seconds; a size is
//! in bytes; an id is a text. A field that is `null` is not known or does not apply.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod barriers;
mod dead_letters;
mod events;
mod replicas;
mod tasks;
mod writes;

pub use barriers::{Barrier, BarrierReplica, NewBarrier};
pub use dead_letters::{
    Cause, DeadLetter, DeadLetterPage, DiscardRequest, LetterId, Operation, OperationKind,
    OperationPage, OperationState, RedriveRequest, Selection,
};
pub use events::{Figures, ReplicaChange, ReplicaEvent, ReplicaFigures, TaskChange, TaskEvent};
pub use replicas::{
    Books, BreakerState, Convergence, Forgotten, LastError, Probed, Rename, Replica, ReplicaPage,
};
pub use tasks::{Consistency, Delivery, DeliveryState, Task, TaskPage, Write};
pub use writes::{
    BatchAnswer, BatchAnswers, BatchWrite, NoMajority, UserId, ValueEncoding, WriteAccepted,
    WriteRequest,
};

/// Every error of the API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Error {
    /// A sentence that names the field or the limit.
    pub error: String,
}
