//! Every metric: name, unit, help, in one table; rendered as JSON and as Prometheus text.

/// The figures of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Requests received and valid.
    pub total_replications: u64,
    /// Deliveries acknowledged.
    pub delivered: u64,
    /// Failed attempts.
    pub failed_attempts: u64,
    /// Deliveries superseded.
    pub superseded: u64,
    /// Deliveries given up or rejected.
    pub permanent_failures: u64,
    /// Dead letters on disk, those parked by `retry_overflow` included.
    pub dead_letters: u64,
    /// Tasks in the eventual queue, in flight ones included.
    pub queue_tasks: u64,
    /// The capacity of the eventual queue, in tasks.
    pub queue_capacity: u64,
    /// Tasks in the retry queue.
    pub retry_tasks: u64,
    /// The capacity of the retry queue, in tasks.
    pub retry_capacity: u64,
    /// Bytes charged for all tasks on disk.
    pub queue_bytes: u64,
    /// Requests that wait for room.
    pub waiting_requests: u64,
    /// Mean time of the last 1000 acknowledged attempts, in seconds.
    pub average_ack_seconds: f64,
    /// The longest time from acceptance to acknowledgement since the start, in seconds.
    pub max_lag_seconds: f64,
    /// Size of the store's files, in bytes.
    pub store_file_bytes: u64,
    /// One entry a replica.
    pub replicas: Vec<ReplicaSnapshot>,
}

/// The books of one replica. Accepted = delivered + superseded + rejected + given up + discarded
/// + pending, at every moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReplicaSnapshot {
    /// The node.
    pub node: String,
    /// Deliveries accepted since the start, those recovered from disk included.
    pub accepted: u64,
    /// Acknowledged.
    pub delivered: u64,
    /// Superseded by a newer write of the key.
    pub superseded: u64,
    /// Refused by the replica for good.
    pub rejected: u64,
    /// Given up after the last retry.
    pub gave_up: u64,
    /// Not settled yet.
    pub pending: u64,
    /// Of those, on the wire now.
    pub in_flight: u64,
    /// Of those, waiting for a retry.
    pub waiting: u64,
    /// Of those, parked by `retry_overflow`.
    pub parked: u64,
    /// Failed attempts.
    pub failed_attempts: u64,
}
