//! Every metric with its name, unit and help text, rendered as JSON and as Prometheus text.
//!
//! The dispatcher takes a [`Snapshot`] between two events, so its figures are consistent. Metric
//! names appear only in the tables here.

use std::num::NonZeroU64;

use serde_json::{Value, json};

use crate::engine::{LaneView, Levels};
use crate::store::{ClusterStatus, Stats};
use crate::task::Counters;

mod cluster;
mod counts;
mod histogram;
mod process;
mod text;
mod users;

pub use counts::{Counts, NoticeOutcome, Reason};
pub use histogram::{
    ATTEMPT_SECONDS, COMMIT_SECONDS, COMMIT_TASKS, DELIVERY_SECONDS, Histogram,
    REPLICA_ATTEMPT_SECONDS, REPLICA_DELIVERY_SECONDS,
};
pub use process::ProcessFigures;
pub use users::Users;

/// All figures at one moment. The tables below contain the help text of each field.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Not a metric: `process_start_time_seconds` has it.
    pub uptime_seconds: f64,
    pub total_replications: u64,
    /// Of all replicas, including removed ones.
    pub totals: Counters,
    pub levels: Levels,
    pub queue_capacity: usize,
    pub retry_capacity: usize,
    /// A write was refused in the last minute because it named a new replica.
    pub replicas_refused: bool,
    pub waiting_requests: u64,
    pub average_ack_seconds: f64,
    pub max_lag_seconds: f64,
    pub store: Stats,
    /// `None` for a store of one process.
    pub cluster: Option<ClusterStatus>,
    pub quarantined_rows: u64,
    pub store_failed: bool,
    pub store_stalled_seconds: f64,
    pub log_lines_dropped: u64,
    /// Refused writes by reason.
    pub refusals: Vec<(&'static str, u64)>,
    /// Responses to writes by status.
    pub answers: Vec<(&'static str, u64)>,
    /// Notifications by outcome.
    pub notifications: Vec<(&'static str, u64)>,
    /// Comparisons with the primary by result.
    pub verify_results: Vec<(&'static str, u64)>,
    pub accept_seconds: Histogram,
    pub delivery_seconds: Histogram,
    pub attempt_seconds: Histogram,
    pub commit_seconds: Histogram,
    pub commit_tasks: Histogram,
    /// `None` if the system does not report it.
    pub process: Option<ProcessFigures>,
    pub replicas: Vec<ReplicaSnapshot>,
}

/// The figures of one replica.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaSnapshot {
    pub lane: LaneView,
    pub lag_seconds: f64,
    pub outage_headroom_seconds: f64,
    pub verified: VerifiedRange,
    pub delivery_seconds: Histogram,
    pub attempt_seconds: Histogram,
}

/// The writes with these sequences whose values the background verification has proven.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VerifiedRange {
    /// The write before the first of them.
    pub after: u64,
    /// The last of them.
    pub through: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MetricKind {
    Counter,
    Gauge,
}

use MetricKind::{Counter, Gauge};
use cluster::CLUSTER_METRICS;

/// Name, kind, help text and value.
type Metric = (&'static str, MetricKind, &'static str, fn(&Snapshot) -> f64);

/// A metric with the label `replica`.
type ReplicaMetric = (&'static str, MetricKind, &'static str, fn(&ReplicaSnapshot) -> u64);

/// A metric that the system may not report.
type ProcessMetric = (&'static str, MetricKind, &'static str, fn(&ProcessFigures) -> Option<f64>);

type HistogramMetric<Of> = (&'static str, &'static str, fn(&Of) -> &Histogram);

/// Counters with a label: name, label, help text, and a count for each value of the label.
type Labelled = (&'static str, &'static str, &'static str, fn(&Snapshot) -> &[(&'static str, u64)]);

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53, which no counter reaches")]
const METRICS: &[Metric] = &[
    ("replicator_replications_total", Counter, "Write requests received and valid.", |s| {
        s.total_replications as f64
    }),
    (
        "replicator_queue_tasks",
        Gauge,
        "Tasks in the eventual queue, including tasks in flight.",
        |s| s.levels.queue as f64,
    ),
    ("replicator_queue_capacity_tasks", Gauge, "Capacity of the eventual queue.", |s| {
        s.queue_capacity as f64
    }),
    ("replicator_queue_bytes", Gauge, "Bytes charged for queued tasks.", |s| s.levels.bytes as f64),
    (
        "replicator_dead_letter_bytes",
        Gauge,
        "Bytes charged for tasks that have only dead letters or parked deliveries left.",
        |s| s.levels.dead_letter_bytes as f64,
    ),
    ("replicator_retry_tasks", Gauge, "Deliveries in the retry queue.", |s| s.levels.retry as f64),
    ("replicator_retry_capacity_tasks", Gauge, "Capacity of the retry queue.", |s| {
        s.retry_capacity as f64
    }),
    ("replicator_waiting_requests", Gauge, "Requests waiting for capacity.", |s| {
        s.waiting_requests as f64
    }),
    ("replicator_dead_letters", Gauge, "Dead letters, including parked deliveries.", |s| {
        s.levels.dead_letters as f64
    }),
    (
        "replicator_ack_time_mean_seconds",
        Gauge,
        "Mean time of the last 1000 acknowledged attempts.",
        |s| s.average_ack_seconds,
    ),
    (
        "replicator_lag_max_seconds",
        Gauge,
        "Longest time from acceptance to acknowledgement since the start.",
        |s| s.max_lag_seconds,
    ),
    (
        "replicator_quarantined_rows",
        Gauge,
        "Unreadable rows moved to the quarantine of the data directory at the start.",
        |s| s.quarantined_rows as f64,
    ),
    ("replicator_disk_free_bytes", Gauge, "Free bytes on the disk of the data directory.", |s| {
        s.store.free_bytes.unwrap_or_default() as f64
    }),
    ("replicator_store_live_bytes", Gauge, "Bytes of live keys and rows in the store.", |s| {
        s.store.live_bytes as f64
    }),
    ("replicator_store_rewrites_total", Counter, "Compactions of the store.", |s| {
        s.store.compactions as f64
    }),
    ("replicator_store_file_bytes", Gauge, "Size of the files of the store.", |s| {
        s.store.file_bytes as f64
    }),
    (
        "replicator_store_failed",
        Gauge,
        "1 once the store has failed and nothing is accepted until a restart.",
        |s| f64::from(u8::from(s.store_failed)),
    ),
    (
        "replicator_store_stalled_seconds",
        Gauge,
        "How long the store has not responded and new writes are refused; 0 while it responds.",
        |s| s.store_stalled_seconds,
    ),
    (
        "replicator_log_lines_dropped_total",
        Counter,
        "Log lines that were dropped because they could not be written.",
        |s| s.log_lines_dropped as f64,
    ),
    (
        "replicator_disk_low",
        Gauge,
        "1 while new writes are refused because the disk is nearly full (--min-free-disk).",
        |s| f64::from(u8::from(s.store.is_full)),
    ),
];

const LABELLED: &[Labelled] = &[
    (
        "replicator_requests_total",
        "status",
        "Responses to writes by status. Each write of a batch counts.",
        |s| &s.answers,
    ),
    (
        "replicator_refusals_total",
        "reason",
        "Writes refused with a 503 and not accepted, by reason.",
        |s| &s.refusals,
    ),
    (
        "replicator_notifications_total",
        "outcome",
        "Notifications by outcome, for each receiver of --notify-url. A retried one counts again.",
        |s| &s.notifications,
    ),
    (
        "replicator_verify_results_total",
        "result",
        "Values of replicas compared with those of their primary, by result.",
        |s| &s.verify_results,
    ),
];

const HISTOGRAMS: &[HistogramMetric<Snapshot>] = &[
    (
        "replicator_accept_seconds",
        "Time from the arrival of a write until it is durable, including a wait for capacity.",
        |s| &s.accept_seconds,
    ),
    (
        "replicator_delivery_seconds",
        "Time from a durable write to the acknowledgement of a replica.",
        |s| &s.delivery_seconds,
    ),
    (
        "replicator_attempt_seconds",
        "Duration of attempts that were sent, whatever their outcome.",
        |s| &s.attempt_seconds,
    ),
    ("replicator_commit_seconds", "Time to write and flush a group of accepted tasks.", |s| {
        &s.commit_seconds
    }),
    ("replicator_commit_tasks", "Tasks per flush.", |s| &s.commit_tasks),
];

const REPLICA_HISTOGRAMS: &[HistogramMetric<ReplicaSnapshot>] = &[
    (
        "replicator_replica_delivery_seconds",
        "Time from a durable write to the acknowledgement of this replica.",
        |r| &r.delivery_seconds,
    ),
    (
        "replicator_replica_attempt_seconds",
        "Duration of attempts that were sent to this replica, whatever their outcome.",
        |r| &r.attempt_seconds,
    ),
];

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53, which no figure reaches")]
const PROCESS_METRICS: &[ProcessMetric] = &[
    ("process_cpu_seconds_total", Counter, "User and system CPU time.", |p| Some(p.cpu_seconds)),
    ("process_resident_memory_bytes", Gauge, "Resident memory.", |p| Some(p.resident_bytes as f64)),
    ("process_virtual_memory_bytes", Gauge, "Virtual memory.", |p| Some(p.virtual_bytes as f64)),
    ("process_open_fds", Gauge, "Open file descriptors.", |p| Some(p.open_fds as f64)),
    ("process_max_fds", Gauge, "Limit of open file descriptors.", |p| {
        p.max_fds.map(|most| most as f64)
    }),
    ("process_threads", Gauge, "Threads.", |p| Some(p.threads as f64)),
    ("process_start_time_seconds", Gauge, "Start time of the process since 1970.", |p| {
        Some(p.start_seconds)
    }),
];

const REPLICA_METRICS: &[ReplicaMetric] = &[
    (
        "replicator_deliveries_accepted_total",
        Counter,
        "Deliveries accepted, including those recovered from disk at the start and those of claimed partitions. Always the sum of delivered, superseded, dead, discarded, handed over and pending.",
        |r| r.lane.counters.accepted,
    ),
    ("replicator_deliveries_delivered_total", Counter, "Deliveries acknowledged.", |r| {
        r.lane.counters.delivered
    }),
    (
        "replicator_deliveries_superseded_total",
        Counter,
        "Deliveries superseded by a newer write of the key.",
        |r| r.lane.counters.superseded,
    ),
    (
        "replicator_deliveries_discarded_total",
        Counter,
        "Deliveries discarded by operators or after their retention.",
        |r| r.lane.counters.discarded,
    ),
    (
        "replicator_deliveries_handed_over_total",
        Counter,
        "Deliveries left, unsettled, to the next owner of their partition. Only in a cluster.",
        |r| r.lane.counters.handed_over,
    ),
    (
        "replicator_deliveries_redriven_total",
        Counter,
        "Dead letters redriven; one can be redriven several times.",
        |r| r.lane.counters.redriven,
    ),
    ("replicator_deliveries_rejected_total", Counter, "Deliveries rejected by the replica.", |r| {
        r.lane.counters.rejected
    }),
    (
        "replicator_deliveries_refused_total",
        Counter,
        "Deliveries refused by the replica with a 401, 403, 407 or 421.",
        |r| r.lane.counters.refused,
    ),
    (
        "replicator_deliveries_given_up_total",
        Counter,
        "Deliveries given up after the last retry.",
        |r| r.lane.counters.gave_up,
    ),
    (
        "replicator_attempts_failed_total",
        Counter,
        "Failed attempts that were sent; one delivery can have several.",
        |r| r.lane.counters.failed_attempts,
    ),
    (
        "replicator_attempts_unsent_total",
        Counter,
        "Attempts that were not sent: the breaker was open, the process was short of resources, or the lease of the partition had ended.",
        |r| r.lane.counters.unsent_attempts,
    ),
    (
        "replicator_deliveries_dead",
        Gauge,
        "Rejected, refused or given up deliveries that are kept as dead letters.",
        |r| r.lane.counters.dead,
    ),
    (
        "replicator_replica_refused_letters",
        Gauge,
        "Dead letters that the replica refused; they return when it accepts writes again.",
        |r| r.lane.refused_letters,
    ),
    (
        "replicator_replica_dead_letter_bytes",
        Gauge,
        "Bytes charged for the dead letters and parked deliveries of the replica.",
        |r| r.lane.dead_letter_bytes,
    ),
    (
        "replicator_replica_workers",
        Gauge,
        "Maximum concurrent deliveries to the replica: its own limit, --workers, or the current limit of auto.",
        |r| r.lane.workers.into(),
    ),
    (
        "replicator_replica_rate_limit",
        Gauge,
        "Requests per second that an operator allows for the replica; 0 without a limit.",
        |r| r.lane.limits.rate.map_or(0, |rate| rate.get().into()),
    ),
    (
        "replicator_replica_bandwidth_limit_bytes",
        Gauge,
        "Bytes per second that an operator allows for the replica; 0 without a limit.",
        |r| r.lane.limits.bandwidth.map_or(0, NonZeroU64::get),
    ),
    (
        "replicator_replica_redrive_rate_limit",
        Gauge,
        "Redriven dead letters per second that an operator allows for the replica; 0 without a limit of its own.",
        |r| r.lane.limits.redrive_rate.map_or(0, |rate| rate.get().into()),
    ),
    ("replicator_deliveries_pending", Gauge, "Deliveries not settled yet.", |r| {
        r.lane.counters.pending
    }),
    ("replicator_deliveries_in_flight", Gauge, "Pending deliveries in flight.", |r| {
        r.lane.in_flight
    }),
    ("replicator_deliveries_waiting", Gauge, "Pending deliveries waiting for a retry.", |r| {
        r.lane.waiting
    }),
    (
        "replicator_deliveries_parked",
        Gauge,
        "Pending deliveries that failed and have no place in the retry queue.",
        |r| r.lane.parked,
    ),
    (
        "replicator_replica_backlog_bytes",
        Gauge,
        "Bytes charged for the tasks of the pending deliveries.",
        |r| r.lane.pending_bytes,
    ),
    (
        "replicator_deliveries_unaccounted",
        Gauge,
        "Imbalance of the books of the replica. Anything but 0 is a bug.",
        |r| r.lane.counters.unaccounted(),
    ),
    (
        "replicator_verified_through_sequence",
        Gauge,
        "Sequence up to which the background verification has proven the values of the replica.",
        |r| r.verified.through,
    ),
    (
        "replicator_verified_after_sequence",
        Gauge,
        "Sequence after which the proven range of the replica begins.",
        |r| r.verified.after,
    ),
];

/// 1 for the state of a replica and 0 for the others, with the label `state`.
const STATE: (&str, &str) =
    ("replicator_replica_state", "1 for the state that the replica is in, 0 for each other one.");

/// Gauges of a replica in seconds.
type ReplicaSeconds = (&'static str, &'static str, fn(&ReplicaSnapshot) -> f64);

/// Separate from [`REPLICA_METRICS`] because they are not integers.
const REPLICA_SECONDS: &[ReplicaSeconds] = &[
    ("replicator_replica_lag_seconds", "Age of the oldest pending delivery; 0 without any.", |r| {
        r.lag_seconds
    }),
    (
        "replicator_outage_headroom_seconds",
        "How long the replica may stay away at the present rate before writes are refused; at most 30 days.",
        |r| r.outage_headroom_seconds,
    ),
];

/// The JSON of SERVICE.md, which clients depend on, with more fields.
#[must_use]
pub fn to_json(snapshot: &Snapshot) -> Value {
    let Snapshot { totals, levels, store, .. } = snapshot;
    json!({
        "total_replications": snapshot.total_replications,
        "successful_replicas": totals.delivered,
        "failed_replicas": totals.failed_attempts,
        "unsent_replicas": totals.unsent_attempts,
        "queue_size": levels.queue,
        "average_ack_time_ms": millis(snapshot.average_ack_seconds),
        "max_replication_lag_ms": millis(snapshot.max_lag_seconds),
        "retries_in_progress": levels.retry,
        "superseded_replicas": totals.superseded,
        "permanent_failures": totals.rejected + totals.refused + totals.gave_up,
        "dead_letters": levels.dead_letters,
        "queue_capacity": snapshot.queue_capacity,
        "queue_bytes": levels.bytes,
        "dead_letter_bytes": levels.dead_letter_bytes,
        "redriven_replicas": totals.redriven,
        "discarded_replicas": totals.discarded,
        "retry_capacity": snapshot.retry_capacity,
        "waiting_requests": snapshot.waiting_requests,
        "store_file_bytes": store.file_bytes,
        "disk_free_bytes": store.free_bytes.unwrap_or_default(),
        "store_live_bytes": store.live_bytes,
        "store_rewrites_total": store.compactions,
        "quarantined_rows": snapshot.quarantined_rows,
        "log_lines_dropped_total": snapshot.log_lines_dropped,
    })
}

/// Rounds to three decimals.
fn millis(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e3
}

/// Does not fail with the tables here; a test renders them all.
pub fn to_prometheus(snapshot: &Snapshot) -> prometheus::Result<String> {
    text::page(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Partition;

    fn snapshot() -> Snapshot {
        let counters = Counters { accepted: 7, delivered: 5, pending: 2, ..Counters::default() };
        let lane = LaneView { workers: 1, ..LaneView::idle("http://a", counters) };
        let replica = ReplicaSnapshot {
            lane,
            lag_seconds: 0.0,
            outage_headroom_seconds: 2_592_000.0,
            verified: VerifiedRange::default(),
            delivery_seconds: Histogram::default(),
            attempt_seconds: Histogram::default(),
        };
        let mut commit_tasks = Histogram::new(COMMIT_TASKS);
        commit_tasks.record(3.0);
        let mut cluster = ClusterStatus {
            sync_always: Some(true),
            lease: Some(std::time::Duration::from_secs(1)),
            ..ClusterStatus::default()
        };
        cluster.logs.entry(Partition::default()).or_default().max_bytes = Some(1);
        Snapshot {
            total_replications: 4,
            totals: counters,
            average_ack_seconds: 0.001_234_567,
            refusals: vec![("disk", 3)],
            answers: vec![("202", 4)],
            notifications: vec![("delivered", 1)],
            verify_results: vec![("equal", 2)],
            commit_tasks,
            process: Some(ProcessFigures { max_fds: Some(1024), ..ProcessFigures::default() }),
            cluster: Some(cluster),
            replicas: vec![replica],
            ..Snapshot::default()
        }
    }

    #[test]
    fn the_json_uses_the_names_of_the_service() {
        let json = to_json(&snapshot());
        assert_eq!(json["total_replications"], 4);
        assert_eq!(json["successful_replicas"], 5);
        assert_eq!(json["average_ack_time_ms"], 1.235);
    }

    #[test]
    fn the_text_contains_every_metric_of_the_tables() {
        let text = to_prometheus(&snapshot()).unwrap();
        let names = METRICS.iter().map(|metric| metric.0);
        let names = names.chain(REPLICA_METRICS.iter().map(|metric| metric.0));
        let names = names.chain(LABELLED.iter().map(|metric| metric.0));
        let names = names.chain(HISTOGRAMS.iter().map(|metric| metric.0));
        let names = names.chain(REPLICA_HISTOGRAMS.iter().map(|metric| metric.0));
        let names = names.chain(PROCESS_METRICS.iter().map(|metric| metric.0));
        let names = names.chain(CLUSTER_METRICS.iter().map(|metric| metric.0));
        for name in names.chain(["replicator_build_info"]) {
            assert!(text.contains(&format!("# HELP {name} ")), "{name} in {text}");
        }
        for line in [
            "replicator_refusals_total{reason=\"disk\"} 3\n",
            "replicator_commit_tasks_bucket{le=\"4\"} 1\n",
            "replicator_commit_tasks_bucket{le=\"+Inf\"} 1\n",
            "replicator_commit_tasks_sum 3\n",
            "replicator_replica_attempt_seconds_count{replica=\"http://a\"} 0\n",
            "replicator_deliveries_unaccounted{replica=\"http://a\"} 0\n",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(text.contains("replicator_replications_total 4\n"), "{text}");
        let line = "replicator_deliveries_delivered_total{replica=\"http://a\"} 5\n";
        assert!(text.contains(line), "{text}");
    }

    #[test]
    fn only_counters_end_in_total() {
        let kinds = METRICS.iter().map(|m| (m.0, m.1));
        for (name, kind) in kinds.chain(REPLICA_METRICS.iter().map(|m| (m.0, m.1))) {
            assert_eq!(name.ends_with("_total"), kind == Counter, "{name}");
        }
    }
}
