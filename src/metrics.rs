//! Every metric: name, unit, help, in one table; rendered as JSON and as Prometheus text.
//!
//! A [`Snapshot`] is plain numbers, taken by the daemon between two events, so that its figures
//! belong together. The tables in here say what each is called; nothing else names a metric.

use serde_json::{Value, json};

mod counts;
mod histogram;
mod process;
mod text;
mod users;
mod window;

pub use counts::{Counts, Reason};
pub use histogram::{
    ATTEMPT_SECONDS, COMMIT_SECONDS, COMMIT_TASKS, DELIVERY_SECONDS, Histogram,
    REPLICA_ATTEMPT_SECONDS, REPLICA_DELIVERY_SECONDS,
};
pub use process::ProcessFigures;
pub use users::{UserFigures, Users};
pub use window::AckWindow;

/// The figures of one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// Requests received and valid.
    pub total_replications: u64,
    /// Deliveries acknowledged.
    pub delivered: u64,
    /// Failed attempts that were sent.
    pub failed_attempts: u64,
    /// Attempts that failed without being sent, as a breaker was open.
    pub unsent_attempts: u64,
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
    /// Deliveries in the retry queue.
    pub retry_tasks: u64,
    /// The capacity of the retry queue, in deliveries.
    pub retry_capacity: u64,
    /// Bytes charged for the tasks that wait.
    pub queue_bytes: u64,
    /// Bytes charged for the tasks of which only dead letters are left.
    pub dead_letter_bytes: u64,
    /// Dead letters made ready again.
    pub redriven: u64,
    /// Dead letters thrown away.
    pub discarded: u64,
    /// Requests that wait for room.
    pub waiting_requests: u64,
    /// Mean time of the last 1000 acknowledged attempts, in seconds.
    pub average_ack_seconds: f64,
    /// The longest time from acceptance to acknowledgement since the start, in seconds.
    pub max_lag_seconds: f64,
    /// Size of the store's files, in bytes.
    pub store_file_bytes: u64,
    /// What lives in them, in bytes.
    pub store_live_bytes: u64,
    /// Free on the disk of the data directory, in bytes; 0 where the system does not say.
    pub disk_free_bytes: u64,
    /// New writes are refused for want of room on the disk.
    pub disk_low: bool,
    /// How often the store was rewritten since the start.
    pub store_rewrites: u64,
    /// Rows in the quarantine at the start.
    pub quarantined_rows: u64,
    /// The store has failed.
    pub store_failed: bool,
    /// For how long the store has not answered; 0 while it does.
    pub store_stalled_seconds: f64,
    /// Lines of the log that nothing took, since the start.
    pub log_lines_dropped: u64,
    /// Refused writes by reason.
    pub refusals: Vec<(&'static str, u64)>,
    /// Answers to writes by status.
    pub answers: Vec<(&'static str, u64)>,
    /// From a request's arrival until its write was durable.
    pub accept_seconds: Histogram,
    /// From durable to acknowledged.
    pub delivery_seconds: Histogram,
    /// Attempts, however they ended.
    pub attempt_seconds: Histogram,
    /// Writing and flushing a group of tasks.
    pub commit_seconds: Histogram,
    /// Tasks in such a group.
    pub commit_tasks: Histogram,
    /// What the process costs, where the system says.
    pub process: Option<ProcessFigures>,
    /// One entry a replica.
    pub replicas: Vec<ReplicaSnapshot>,
}

/// The books of one replica. Accepted = delivered + superseded + dead + discarded + pending, at
/// every moment; dead are those that were rejected or given up and are kept.
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
    /// Kept as dead letters now.
    pub dead: u64,
    /// Dead letters thrown away.
    pub discarded: u64,
    /// Events: refused by the replica for good.
    pub rejected: u64,
    /// Events: given up after the last retry.
    pub gave_up: u64,
    /// Events: a dead letter made ready again.
    pub redriven: u64,
    /// Bytes charged for its dead letters, parked ones included.
    pub dead_letter_bytes: u64,
    /// Deliveries that it may have at once.
    pub workers: u64,
    /// Its breaker: 0 closed, 1 half open, 2 open.
    pub breaker: u64,
    /// Not settled yet.
    pub pending: u64,
    /// Of those, on the wire now.
    pub in_flight: u64,
    /// Of those, waiting for a retry.
    pub waiting: u64,
    /// Of those, parked by `retry_overflow`.
    pub parked: u64,
    /// Bytes charged for the tasks of those.
    pub backlog_bytes: u64,
    /// How long ago the oldest of those was accepted.
    pub lag_seconds: f64,
    /// 1 while an operator has it paused.
    pub paused: u64,
    /// Failed attempts that were sent.
    pub failed_attempts: u64,
    /// Attempts that failed without being sent, as its breaker was open.
    pub unsent_attempts: u64,
    /// From durable to acknowledged.
    pub delivery_seconds: Histogram,
    /// Attempts, however they ended.
    pub attempt_seconds: Histogram,
}

impl ReplicaSnapshot {
    /// By how much the books are out of balance: always 0.
    #[must_use]
    pub fn unaccounted(&self) -> u64 {
        let told = self.delivered + self.superseded + self.dead + self.discarded + self.pending;
        self.accepted.abs_diff(told)
    }
}

/// How a metric moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MetricKind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Level,
}

use MetricKind::{Counter, Level};

/// A metric of the whole daemon: its Prometheus name, kind, help, and where its number is.
type Metric = (&'static str, MetricKind, &'static str, fn(&Snapshot) -> f64);

/// A metric of each replica, with the label `replica`.
type ReplicaMetric = (&'static str, MetricKind, &'static str, fn(&ReplicaSnapshot) -> u64);

/// A metric of the process, which the system may not give.
type ProcessMetric = (&'static str, MetricKind, &'static str, fn(&ProcessFigures) -> Option<f64>);

/// A histogram of the daemon or of each replica: name, help, and where it is.
type HistogramMetric<Of> = (&'static str, &'static str, fn(&Of) -> &Histogram);

/// Counters with a label: name, label, help, and the count for each of its values.
type Labelled = (&'static str, &'static str, &'static str, fn(&Snapshot) -> &[(&'static str, u64)]);

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53, which no counter reaches")]
const METRICS: &[Metric] = &[
    ("replicator_replications_total", Counter, "Write requests received and valid.", |s| {
        s.total_replications as f64
    }),
    (
        "replicator_queue_tasks",
        Level,
        "Tasks in the eventual queue, in flight ones included.",
        |s| s.queue_tasks as f64,
    ),
    ("replicator_queue_capacity_tasks", Level, "Capacity of the eventual queue.", |s| {
        s.queue_capacity as f64
    }),
    ("replicator_queue_bytes", Level, "Bytes charged for the tasks that wait.", |s| {
        s.queue_bytes as f64
    }),
    (
        "replicator_dead_letter_bytes",
        Level,
        "Bytes charged for the tasks of which only dead letters are left, parked ones included.",
        |s| s.dead_letter_bytes as f64,
    ),
    ("replicator_retry_tasks", Level, "Deliveries in the retry queue.", |s| s.retry_tasks as f64),
    ("replicator_retry_capacity_tasks", Level, "Capacity of the retry queue.", |s| {
        s.retry_capacity as f64
    }),
    ("replicator_waiting_requests", Level, "Requests that wait for room.", |s| {
        s.waiting_requests as f64
    }),
    (
        "replicator_dead_letters",
        Level,
        "Deliveries kept as dead letters, the parked ones included.",
        |s| s.dead_letters as f64,
    ),
    (
        "replicator_ack_time_mean_seconds",
        Level,
        "Mean time of the last 1000 acknowledged attempts.",
        |s| s.average_ack_seconds,
    ),
    (
        "replicator_lag_max_seconds",
        Level,
        "Longest time from acceptance to acknowledgement since the start.",
        |s| s.max_lag_seconds,
    ),
    (
        "replicator_quarantined_rows",
        Level,
        "Rows that could not be read, set aside in the data directory's quarantine by the start.",
        |s| s.quarantined_rows as f64,
    ),
    ("replicator_disk_free_bytes", Level, "Free on the disk of the data directory.", |s| {
        s.disk_free_bytes as f64
    }),
    ("replicator_store_live_bytes", Level, "Keys and rows that live in the store.", |s| {
        s.store_live_bytes as f64
    }),
    (
        "replicator_store_rewrites_total",
        Counter,
        "Rewrites of the store that gave space back.",
        |s| s.store_rewrites as f64,
    ),
    ("replicator_store_file_bytes", Level, "Size of the files of the store.", |s| {
        s.store_file_bytes as f64
    }),
    (
        "replicator_store_failed",
        Level,
        "1 once the store has failed and nothing is accepted until a restart.",
        |s| f64::from(u8::from(s.store_failed)),
    ),
    (
        "replicator_store_stalled_seconds",
        Level,
        "For how long the store has not answered and new writes are refused; 0 while it answers.",
        |s| s.store_stalled_seconds,
    ),
    (
        "replicator_log_lines_dropped_total",
        Counter,
        "Lines of the log that were dropped, because nothing read them or they could not be written.",
        |s| s.log_lines_dropped as f64,
    ),
    (
        "replicator_disk_low",
        Level,
        "1 while new writes are refused for want of room on the disk (--min-free-disk).",
        |s| f64::from(u8::from(s.disk_low)),
    ),
];

const LABELLED: &[Labelled] = &[
    (
        "replicator_requests_total",
        "status",
        "Answers to writes, those of a batch each, by status.",
        |s| &s.answers,
    ),
    (
        "replicator_refusals_total",
        "reason",
        "Writes refused with a 503 of which nothing was accepted, by the limit or state that was in the way.",
        |s| &s.refusals,
    ),
];

const HISTOGRAMS: &[HistogramMetric<Snapshot>] = &[
    (
        "replicator_accept_seconds",
        "From the arrival of a write until it was durable, a wait for room included.",
        |s| &s.accept_seconds,
    ),
    (
        "replicator_delivery_seconds",
        "From a write being durable to a replica's acknowledgement.",
        |s| &s.delivery_seconds,
    ),
    ("replicator_attempt_seconds", "Attempts that were sent, however they ended.", |s| {
        &s.attempt_seconds
    }),
    ("replicator_commit_seconds", "Writing and flushing a group of accepted tasks.", |s| {
        &s.commit_seconds
    }),
    ("replicator_commit_tasks", "Tasks that shared one flush.", |s| &s.commit_tasks),
];

const REPLICA_HISTOGRAMS: &[HistogramMetric<ReplicaSnapshot>] = &[
    (
        "replicator_replica_delivery_seconds",
        "From a write being durable to the acknowledgement of this replica.",
        |r| &r.delivery_seconds,
    ),
    (
        "replicator_replica_attempt_seconds",
        "Attempts that were sent to this replica, however they ended.",
        |r| &r.attempt_seconds,
    ),
];

#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53, which no figure reaches")]
const PROCESS_METRICS: &[ProcessMetric] = &[
    ("process_cpu_seconds_total", Counter, "User and system time spent.", |p| Some(p.cpu_seconds)),
    ("process_resident_memory_bytes", Level, "Memory in RAM.", |p| Some(p.resident_bytes as f64)),
    ("process_virtual_memory_bytes", Level, "Memory mapped.", |p| Some(p.virtual_bytes as f64)),
    ("process_open_fds", Level, "Open file descriptors.", |p| Some(p.open_fds as f64)),
    ("process_max_fds", Level, "File descriptors that may be open.", |p| {
        p.max_fds.map(|most| most as f64)
    }),
    ("process_threads", Level, "Threads.", |p| Some(p.threads as f64)),
    ("process_start_time_seconds", Level, "When the process began, since 1970.", |p| {
        Some(p.start_seconds)
    }),
];

const REPLICA_METRICS: &[ReplicaMetric] = &[
    (
        "replicator_deliveries_accepted_total",
        Counter,
        "Deliveries taken on, those found on disk at the start included. Always the sum of delivered, superseded, kept as dead letters, discarded and pending.",
        |r| r.accepted,
    ),
    ("replicator_deliveries_delivered_total", Counter, "Deliveries acknowledged.", |r| r.delivered),
    (
        "replicator_deliveries_superseded_total",
        Counter,
        "Deliveries made pointless by a newer write of the key.",
        |r| r.superseded,
    ),
    (
        "replicator_deliveries_discarded_total",
        Counter,
        "Deliveries thrown away: dead letters whose time is over, and by operators.",
        |r| r.discarded,
    ),
    (
        "replicator_deliveries_redriven_total",
        Counter,
        "Times that a dead letter was made ready again.",
        |r| r.redriven,
    ),
    (
        "replicator_deliveries_rejected_total",
        Counter,
        "Deliveries refused by the replica for good.",
        |r| r.rejected,
    ),
    (
        "replicator_deliveries_given_up_total",
        Counter,
        "Deliveries given up after the last retry.",
        |r| r.gave_up,
    ),
    (
        "replicator_attempts_failed_total",
        Counter,
        "Failed attempts that were sent; one delivery can have several.",
        |r| r.failed_attempts,
    ),
    (
        "replicator_attempts_unsent_total",
        Counter,
        "Attempts that were not sent: the breaker was open, or the process was short of resources.",
        |r| r.unsent_attempts,
    ),
    (
        "replicator_deliveries_dead",
        Level,
        "Deliveries that were rejected or given up and are kept as dead letters.",
        |r| r.dead,
    ),
    (
        "replicator_replica_dead_letter_bytes",
        Level,
        "Bytes charged for the dead letters of the replica, parked ones included.",
        |r| r.dead_letter_bytes,
    ),
    (
        "replicator_replica_workers",
        Level,
        "Deliveries that the replica may have at once: --workers, or what auto has found.",
        |r| r.workers,
    ),
    (
        "replicator_replica_breaker_state",
        Level,
        "The breaker of the replica: 0 closed, 1 half open, 2 open.",
        |r| r.breaker,
    ),
    ("replicator_deliveries_pending", Level, "Deliveries not settled yet.", |r| r.pending),
    (
        "replicator_deliveries_in_flight",
        Level,
        "Of the pending deliveries, those on the wire.",
        |r| r.in_flight,
    ),
    (
        "replicator_deliveries_waiting",
        Level,
        "Of the pending deliveries, those that wait for a retry.",
        |r| r.waiting,
    ),
    (
        "replicator_deliveries_parked",
        Level,
        "Of the pending deliveries, those that failed and have no place in the retry queue.",
        |r| r.parked,
    ),
    (
        "replicator_replica_backlog_bytes",
        Level,
        "Bytes charged for the tasks of the pending deliveries.",
        |r| r.backlog_bytes,
    ),
    ("replicator_replica_paused", Level, "1 while an operator has it paused.", |r| r.paused),
    (
        "replicator_deliveries_unaccounted",
        Level,
        "By how much the books of the replica are out of balance. Anything but 0 is a bug.",
        ReplicaSnapshot::unaccounted,
    ),
];

/// How far behind each replica is: name, help, seconds.
const LAG: (&str, &str, fn(&ReplicaSnapshot) -> f64) = (
    "replicator_replica_lag_seconds",
    "How long ago the oldest delivery that is pending was accepted; 0 with none.",
    |r| r.lag_seconds,
);

/// The JSON of the service. Its names are older than this daemon: a client depends on them.
#[must_use]
pub fn to_json(snapshot: &Snapshot) -> Value {
    json!({
        "total_replications": snapshot.total_replications,
        "successful_replicas": snapshot.delivered,
        "failed_replicas": snapshot.failed_attempts,
        "unsent_replicas": snapshot.unsent_attempts,
        "queue_size": snapshot.queue_tasks,
        "average_ack_time_ms": millis(snapshot.average_ack_seconds),
        "max_replication_lag_ms": millis(snapshot.max_lag_seconds),
        "retries_in_progress": snapshot.retry_tasks,
        "superseded_replicas": snapshot.superseded,
        "permanent_failures": snapshot.permanent_failures,
        "dead_letters": snapshot.dead_letters,
        "queue_capacity": snapshot.queue_capacity,
        "queue_bytes": snapshot.queue_bytes,
        "dead_letter_bytes": snapshot.dead_letter_bytes,
        "redriven_replicas": snapshot.redriven,
        "discarded_replicas": snapshot.discarded,
        "retry_capacity": snapshot.retry_capacity,
        "waiting_requests": snapshot.waiting_requests,
        "store_file_bytes": snapshot.store_file_bytes,
        "disk_free_bytes": snapshot.disk_free_bytes,
        "store_live_bytes": snapshot.store_live_bytes,
        "store_rewrites_total": snapshot.store_rewrites,
        "quarantined_rows": snapshot.quarantined_rows,
        "log_lines_dropped_total": snapshot.log_lines_dropped,
    })
}

/// Milliseconds with three decimals.
fn millis(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e3
}

/// Prometheus text, format 0.0.4.
///
/// # Errors
///
/// None that the tables in here can cause; a test renders them all.
pub fn to_prometheus(snapshot: &Snapshot) -> prometheus::Result<String> {
    text::page(snapshot)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot() -> Snapshot {
        let replica = ReplicaSnapshot {
            node: "http://a".into(),
            accepted: 7,
            delivered: 5,
            pending: 2,
            ..ReplicaSnapshot::default()
        };
        let mut commit_tasks = Histogram::new(COMMIT_TASKS);
        commit_tasks.record(3.0);
        Snapshot {
            total_replications: 4,
            delivered: 5,
            average_ack_seconds: 0.001_234_567,
            refusals: vec![("disk", 3)],
            answers: vec![("202", 4)],
            commit_tasks,
            process: Some(ProcessFigures { max_fds: Some(1024), ..ProcessFigures::default() }),
            replicas: vec![replica],
            ..Snapshot::default()
        }
    }

    #[test]
    fn the_json_has_the_names_of_the_service() {
        let json = to_json(&snapshot());
        assert_eq!(json["total_replications"], 4);
        assert_eq!(json["successful_replicas"], 5);
        assert_eq!(json["average_ack_time_ms"], 1.235);
    }

    #[test]
    fn the_text_has_every_metric_of_the_tables() {
        let text = to_prometheus(&snapshot()).unwrap();
        let names = METRICS.iter().map(|metric| metric.0);
        let names = names.chain(REPLICA_METRICS.iter().map(|metric| metric.0));
        let names = names.chain(LABELLED.iter().map(|metric| metric.0));
        let names = names.chain(HISTOGRAMS.iter().map(|metric| metric.0));
        let names = names.chain(REPLICA_HISTOGRAMS.iter().map(|metric| metric.0));
        let names = names.chain(PROCESS_METRICS.iter().map(|metric| metric.0));
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
    fn counters_end_in_total_and_levels_do_not() {
        let kinds = METRICS.iter().map(|m| (m.0, m.1));
        for (name, kind) in kinds.chain(REPLICA_METRICS.iter().map(|m| (m.0, m.1))) {
            assert_eq!(name.ends_with("_total"), kind == Counter, "{name}");
        }
    }
}
