//! The JSON of `/v1`, as types.
//!
//! The daemon builds them, the server sends them, the command line parses them, and the API
//! description is generated from them, so that these cannot differ. They depend on
//! the vocabulary alone.
//!
//! Times are RFC 3339 in UTC with milliseconds, durations are in seconds, sizes in bytes, ids are
//! strings. A `null` field is unknown or does not apply.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

mod barriers;
mod cluster;
mod dead_letters;
mod events;
mod history;
mod keys;
mod replicas;
mod tasks;
mod verify;
mod writes;

pub use barriers::{Barrier, BarrierReplica, NewBarrier};
pub use cluster::{
    Cluster, ClusterDrain, ClusterMember, PartitionInfo, PartitionState, SharedStore,
};
pub use dead_letters::{
    BulkOperation, DeadLetterInfo, DeadLetterPage, DiscardRequest, LetterGroup, LetterId,
    LetterSummary, OperationKind, OperationPage, OperationState, RedriveOutcomes, RedriveRequest,
    Selection,
};
pub use events::{Figures, ReplicaChange, ReplicaEvent, ReplicaFigures, TaskEvent};
pub use history::{
    ClusterPartition, ClusterServer, ClusterStore, Instance, PastFigures, StoreState,
};
pub use keys::{KeyInfo, KeyReplica};
pub use replicas::{
    Convergence, Forgotten, LastError, PauseRequest, Probed, Rename, Replica, ReplicaPage,
};
pub use tasks::{AttemptInfo, DeliveryInfo, TaskInfo, TaskPage};
pub use verify::{
    NewVerification, Verification, VerifiedReplica, VerifyCounts, VerifyFinding, VerifyResult,
};
pub use writes::{
    BatchAnswer, BatchAnswers, BatchWrite, NoMajority, UserId, WriteAccepted, WriteRequest,
};

/// The error of a path that the daemon does not have.
pub const NO_SUCH_PATH: &str = "this path does not exist";

/// Body of every error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Error {
    /// One sentence that names the field or the limit.
    pub error: String,
}
