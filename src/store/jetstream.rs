//! The cluster store: a queue that several processes share, on NATS JetStream.
//!
//! A cluster has a fixed number of partitions. Each has a stream, which is a replicated log: a task is
//! a message, its place in the order is the sequence of the message. At most one process owns a
//! partition. Its checkpoints in the same stream are written by compare-and-set, so that a former owner
//! writes nothing more. The stream `C-meta` has what belongs to the whole cluster.
//!
//! `connect.rs` connects, `streams.rs` creates the streams, `record.rs` is the record of the cluster,
//! `names.rs` names streams and subjects, `rows.rs` reads and writes single rows, `meta.rs` has the
//! records of replicas, `idempotency.rs` the idempotency keys, `status.rs` is shown to operators.
//!
//! `journal.rs` is the journal. `publish.rs` stores writes, `push.rs` passes them on to their owners,
//! `answers.rs` the answers to strong ones back, `ends.rs` marks the ends of logs for barriers.
//! `partition.rs` is the task of a partition: `tenure.rs` decides who owns it, `reader.rs` puts its
//! messages into their order, `lookup.rs` looks for those that a server lacks, `owned.rs` and
//! `checkpoint.rs` know what is settled, `copying.rs` keeps the log short, `standing.rs` is what other
//! parts may know of the partition, `shared.rs` what all partitions share. `members.rs` knows which
//! instances live, `placement.rs` which of them should own which partition, `sharing.rs` what this one
//! does about it. `message.rs` is the format, `protocol.rs` has the requests.

mod answers;
mod checkpoint;
mod connect;
mod copying;
mod ends;
mod figures;
mod idempotency;
mod inbox;
mod journal;
mod lookup;
mod members;
mod message;
mod meta;
mod names;
mod owned;
mod partition;
mod peers;
mod placement;
mod protocol;
mod publish;
mod push;
mod reader;
mod record;
mod rows;
mod shared;
mod sharing;
mod standing;
mod status;
mod streams;
mod tenure;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod transfer;

pub use connect::{ConnectError, JetStreamSettings, StoreDurability};
pub use journal::JetStreamJournal;
pub use members::Member;
pub use message::MAX_VALUE_BYTES as MAX_CLUSTER_VALUE_BYTES;
pub use names::{ClusterName, MAX_PARTITIONS};
pub use peers::{PeerSilence, Peers};
#[cfg(test)]
pub use status::PartitionLog;
pub use status::{ClusterStatus, PartitionOwner};
pub use transfer::{export as export_cluster, import as import_cluster};

/// The log target of the NATS library. The store itself logs what an operator needs to know.
pub const CLIENT_LIBRARY: &str = "async_nats";

/// Of a new cluster: each partition has a log of its own, and syncs of its own.
pub const DEFAULT_PARTITIONS: u16 = 8;
