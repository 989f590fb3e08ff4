//! Durable tasks and their progress, across kill -9 and power cuts.
//!
//! The daemon writes and reads through the trait [`Journal`]. `local.rs` implements it on the local
//! disk, `jetstream.rs` on NATS JetStream, `memory.rs` in memory for tests.
//!
//! A local store is opened in two steps, and the types enforce their order. [`LocalStore::open`]
//! locks the data directory, creates it if needed, and migrates it to the newest format.
//! [`LocalStore::recover`] returns every unsettled task; only then is there a [`Committer`] to
//! write with and a [`StoreReader`] to read values with.
//!
//! Guarantees: a committed task survives any crash; the surviving state is always a prefix of the
//! writes; ids are never reused. The store makes no delivery decisions, has no clock and no
//! capacity limit of its own.

#[cfg(test)]
mod conformance;
mod jetstream;
mod journal;
mod lines;
mod local;
#[cfg(test)]
mod memory;
mod payload;
mod records;

#[cfg(test)]
pub(crate) use jetstream::PartitionLog;
pub use jetstream::{
    CLIENT_LIBRARY, ClusterName, ClusterStatus, ConnectError, JetStreamJournal, JetStreamSettings,
    MAX_CLUSTER_VALUE_BYTES, MAX_PARTITIONS, Member, PartitionOwner, PeerSilence, Peers,
    StoreDurability, export_cluster, import_cluster,
};
#[cfg(test)]
pub(crate) use journal::Notify;
pub use journal::{
    Append, AppendError, AppendReply, Appended, BoxFuture, Journal, JournalEvent, KeyState, NoRoom,
    Numbered, SnapshotError, Stats, StoreSnapshot,
};
pub use lines::{Exported, Imported};
#[cfg(test)]
pub(crate) use local::StoreReader;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use local::fuzzing;
pub use local::{
    CheckReport, Damage, KeyLimits, LocalStore, OpenError, Opened, RecoveryEvent, RecoveryReport,
    SetAside, StoreSettings, UptimeFile, check, export, import,
};
#[cfg(test)]
pub(crate) use memory::{MemoryJournal, MemoryStore};
pub use records::{
    CommitError, Header, IdempotencyAnswer, IdempotencyRow, ReadError, RecordCause, Recovered,
    Repeated, ReplicaRow,
};
