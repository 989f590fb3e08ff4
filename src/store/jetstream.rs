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

#![allow(dead_code, reason = "the daemon uses it when all parts are there")]

mod connect;
mod idempotency;
mod meta;
mod names;
mod record;
mod rows;
mod status;
mod streams;

pub use connect::{ConnectError, JetStreamSettings, Store, StoreDurability, StoreServer};
pub use names::{ClusterName, MAX_PARTITIONS};
pub use status::{ClusterStatus, PartitionOwner};

/// Of a new cluster: each partition has a log of its own, and syncs of its own.
pub const DEFAULT_PARTITIONS: u16 = 8;
