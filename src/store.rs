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
//! What the daemon needs of it is the trait [`Journal`]. `local.rs` is the store on the local disk,
//! `memory.rs` one that keeps nothing, for tests.

#[cfg(test)]
mod conformance;
mod journal;
mod local;
#[cfg(test)]
mod memory;

pub use journal::{
    Append, AppendError, AppendReply, Appended, BoxFuture, Journal, JournalEvent, KeyState, NoRoom,
    Notify, Reply, Stats,
};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use local::fuzzing;
pub use local::{
    Checked, CommitError, Committer, Damage, Exported, Gone, Handed, Header, IdempotencyAnswer,
    IdempotencyRow, ImportError, Imported, KeyLimits, LocalJournal, MAX_IDEMPOTENCY_KEY_BYTES,
    OpenError, Opened, ReadError, Reader, Recovered, RecoveryReport, Repeated, ReplicaRow,
    SetAside, Settings, Store, Turns, UptimeFile, check, export, import,
};
#[cfg(test)]
pub(crate) use memory::{MemoryJournal, MemoryStore};
