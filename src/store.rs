//! What survives: accepted tasks and what their replicas have had, past kill -9 and power cuts.
//!
//! A store is opened in two steps that the types keep in order. [`Store::open`] locks the data
//! directory, makes it if need be, and brings it to the newest format. [`Store::recover`] hands
//! over every task that is not settled, and only then is there a [`Committer`] to write with and
//! a [`Reader`] to read values with.
//!
//! It guarantees that a task whose commit was answered is there after any crash, that what
//! survives is always a prefix of what was written, and that ids never come again. It decides
//! nothing about deliveries: it remembers what it is told. It has no clock for that and no
//! opinion on how much it should hold.
//!
//! `local.rs` is the store on the local disk.

mod local;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use local::fuzzing;
pub use local::{
    Append, AppendError, AppendReply, Appended, Checked, CommitError, Committer, Damage, Event,
    Exported, Gone, Handed, Header, IdempotencyAnswer, IdempotencyRow, ImportError, Imported,
    Journal, KeyLimits, MAX_IDEMPOTENCY_KEY_BYTES, Notify, OpenError, Opened, ReadError, Reader,
    Recovered, RecoveryReport, Repeated, ReplicaRow, Reply, SetAside, Settings, Store, Turns,
    UptimeFile, check, export, import,
};
