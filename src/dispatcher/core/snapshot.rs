//! The figures for the metrics.

use super::Core;
use crate::dispatcher::messages::Health;
use crate::dispatcher::view;
use crate::engine::{Headroom, Inflow};
use crate::metrics::{ReplicaSnapshot, Snapshot};
use crate::task::Node;

impl Core {
    pub(super) fn snapshot(&self) -> Snapshot {
        let (engine, now) = (&self.engine, self.clock.now());
        let mut replicas: Vec<_> = engine
            .lanes()
            .map(|lane| {
                let lag_seconds = view::lag(&lane, now);
                let (delivery_seconds, attempt_seconds) =
                    self.observed.latency.histograms(&lane.node);
                let headroom = self.headroom(&lane.node);
                let verified = self.verified.range(&lane.node);
                ReplicaSnapshot {
                    outage_headroom_seconds: Headroom::seconds_or_most(headroom),
                    verified,
                    lane,
                    lag_seconds,
                    delivery_seconds,
                    attempt_seconds,
                }
            })
            .collect();
        replicas.sort_by(|a, b| a.lane.node.cmp(&b.lane.node));
        let mut snapshot = Snapshot {
            uptime_seconds: now.moment.since_start().as_secs_f64(),
            total_replications: self.intake.received,
            totals: engine.totals(),
            levels: engine.levels(),
            replicas_refused: engine.refuses_replicas(now.moment),
            waiting_requests: self.intake.admission.len() as u64,
            store: self.journal.stats(),
            cluster: self.journal.cluster(),
            store_failed: self.store_has_failed(),
            store_stalled_seconds: match &*self.health.borrow() {
                Health::Stalled { since } => since.elapsed().as_secs_f64(),
                _ => 0.0,
            },
            log_lines_dropped: crate::log::dropped_lines(),
            refusals: self.observed.counts.refusals(),
            answers: self.observed.counts.answers(),
            notifications: self.observed.counts.notices(),
            verify_results: self.verified.results(),
            replicas,
            ..self.observed.constants.clone()
        };
        self.observed.latency.fill(&mut snapshot);
        snapshot
    }

    /// How long a replica may stay away before writes for it are refused.
    pub(in crate::dispatcher) fn headroom(&self, node: &Node) -> Option<Headroom> {
        let rate = self.observed.latency.rate(node);
        let inflow = Inflow { tasks: rate.accepted, bytes: rate.accepted_bytes };
        let store = self.journal.stats();
        let disk = store.free_bytes.map(|free| free.saturating_sub(store.reserved_bytes));
        Headroom::estimate(&self.engine.outage_room(node)?, inflow, disk)
    }
}
