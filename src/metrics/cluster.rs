//! The metrics of the cluster store.

use super::MetricKind::{self, Counter, Gauge};
use crate::store::ClusterStatus;

/// `None` if there is nothing to report.
type ClusterMetric = (&'static str, MetricKind, &'static str, fn(&ClusterStatus) -> Option<f64>);

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53, which no figure reaches")]
pub(super) const CLUSTER_METRICS: &[ClusterMetric] = &[
    (
        "replicator_store_connected",
        Gauge,
        "1 while a server of the cluster store is connected.",
        |c| Some(f64::from(u8::from(c.is_connected))),
    ),
    (
        "replicator_store_sync_always",
        Gauge,
        "1 if every server of the cluster store syncs each write to disk, 0 if not.",
        |c| c.sync_always.map(|always| f64::from(u8::from(always))),
    ),
    (
        "replicator_partitions_owned",
        Gauge,
        "Partitions of the cluster whose tasks this instance delivers.",
        |c| Some(c.owners().filter(|owner| owner.is_some_and(|owner| owner.is_me)).count() as f64),
    ),
    (
        "replicator_partitions_without_owner",
        Gauge,
        "Partitions of the cluster whose tasks no instance delivers, as far as this one knows.",
        |c| Some(c.without_owner().len() as f64),
    ),
    (
        "replicator_partitions_without_leader",
        Gauge,
        "Partitions of the cluster for which no server answers: they take no writes.",
        |c| Some(c.without_leader().len() as f64),
    ),
    (
        "replicator_partition_takeovers_total",
        Counter,
        "Partitions that this instance took over because their owner was silent.",
        |c| Some(c.figures.take_overs as f64),
    ),
    (
        "replicator_lease_lapses_total",
        Counter,
        "Times that a lease of this instance ended before it was renewed, and no other instance had taken over.",
        |c| Some(c.figures.lapses as f64),
    ),
    (
        "replicator_lease_remaining_seconds",
        Gauge,
        "Time until the first lease of this instance ends, if it is not renewed.",
        |c| c.lease.map(|lease| lease.as_secs_f64()),
    ),
    (
        "replicator_store_publishes_total",
        Counter,
        "Writes that the servers of the cluster store acknowledged.",
        |c| Some(c.figures.publishes as f64),
    ),
    (
        "replicator_store_publish_seconds_total",
        Counter,
        "Time for which acknowledged writes waited for the servers of the cluster store, repeats included.",
        |c| Some(c.figures.publish_time.as_secs_f64()),
    ),
    (
        "replicator_store_fullest_log_ratio",
        Gauge,
        "How full the fullest log of a partition is, from 0 to 1. A full one takes no writes.",
        ClusterStatus::fullest,
    ),
    (
        "replicator_store_copied_tasks_total",
        Counter,
        "Old tasks that were copied to the end of their log, so that it could be purged.",
        |c| Some(c.figures.copies as f64),
    ),
    (
        "replicator_store_missing_messages_total",
        Counter,
        "Messages that are missing from the log of a partition: accepted writes may be lost.",
        |c| Some(c.figures.missing as f64),
    ),
];
