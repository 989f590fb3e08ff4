//! What the tests in `tests/`, the benches and `fuzz/` use of the crate. No interface for others.

pub use crate::cli::Cli;
#[cfg(feature = "faults")]
pub use crate::faults::POINTS;
#[cfg(feature = "fuzzing")]
pub use crate::fuzzing::run as fuzz;
pub use crate::replica::install_crypto;
pub use crate::text::is_odd;

pub mod engine {
    pub use crate::engine::{
        Arrived, Engine, EngineAction, EngineSettings, KeyHasher, Origin, Workers,
    };
}

pub mod store {
    pub use crate::store::{
        Damage, IdempotencyAnswer, IdempotencyRow, LocalStore, Opened, Recovered, RecoveryEvent,
        ReplicaRow, StoreSettings, check, export, import,
    };
}

pub mod task {
    pub use crate::task::{
        AttemptOutcome, Cause, Consistency, DeadLetter, DeliveryId, Idempotency, Moment, Node, Now,
        Operation, Partition, Progress, ReplicaLimits, ReplicaPause, Task, TaskId, Timestamp,
        Trace, Verdict,
    };
}
