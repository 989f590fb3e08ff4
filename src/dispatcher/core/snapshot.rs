//! The figures for the metrics.

use super::Core;
use crate::dispatcher::messages::Health;
use crate::dispatcher::view;
use crate::metrics::{Histogram, ReplicaSnapshot, Snapshot};

impl Core {
    pub(super) fn snapshot(&self) -> Snapshot {
        let (engine, now) = (&self.parts.engine, self.parts.clock.now());
        let mut replicas: Vec<_> = engine
            .lanes()
            .map(|lane| {
                let mut replica = ReplicaSnapshot {
                    lag_seconds: view::lag(&lane, now),
                    delivery_seconds: Histogram::default(),
                    attempt_seconds: Histogram::default(),
                    lane,
                };
                self.times.show_replica(&mut replica);
                replica
            })
            .collect();
        replicas.sort_by(|a, b| a.lane.node.cmp(&b.lane.node));
        let mut snapshot = Snapshot {
            total_replications: self.total_replications,
            totals: engine.totals(),
            levels: engine.levels(),
            queue_capacity: self.parts.queue_capacity,
            retry_capacity: self.parts.retry_capacity,
            waiting_requests: self.admission.len() as u64,
            average_ack_seconds: self.acks.mean().as_secs_f64(),
            max_lag_seconds: self.max_lag.as_secs_f64(),
            store: self.parts.journal.stats(),
            quarantined_rows: self.parts.quarantined_rows,
            store_failed: self.store_has_failed(),
            store_stalled_seconds: match &*self.parts.health.borrow() {
                Health::Stalled { since } => since.elapsed().as_secs_f64(),
                _ => 0.0,
            },
            log_lines_dropped: crate::log::dropped_lines(),
            refusals: self.parts.counts.refusals(),
            answers: self.parts.counts.answers(),
            replicas,
            ..Snapshot::default()
        };
        self.times.show(&mut snapshot);
        snapshot
    }
}
