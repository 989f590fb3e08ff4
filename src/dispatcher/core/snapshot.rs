//! How things stand, for the metrics.

use super::Core;
use crate::dispatcher::messages::Health;
use crate::dispatcher::view;
use crate::engine::BreakerState;
use crate::metrics::{ReplicaSnapshot, Snapshot};

impl Core {
    pub(super) fn snapshot(&self) -> Snapshot {
        let (engine, now) = (&self.engine, self.clock.now());
        let (levels, totals) = (engine.levels(), engine.totals());
        let mut replicas: Vec<_> = engine
            .lanes()
            .map(|lane| {
                let mut replica = ReplicaSnapshot {
                    node: lane.node.to_string(),
                    accepted: lane.counters.accepted,
                    delivered: lane.counters.delivered,
                    superseded: lane.counters.superseded,
                    dead: lane.counters.dead,
                    discarded: lane.counters.discarded,
                    rejected: lane.counters.rejected,
                    gave_up: lane.counters.gave_up,
                    redriven: lane.counters.redriven,
                    dead_letter_bytes: lane.dead_letter_bytes,
                    workers: lane.workers.into(),
                    breaker: match lane.breaker {
                        BreakerState::Closed => 0,
                        BreakerState::HalfOpen => 1,
                        BreakerState::Open => 2,
                    },
                    pending: lane.counters.pending,
                    in_flight: lane.in_flight,
                    waiting: lane.waiting,
                    parked: lane.parked,
                    backlog_bytes: lane.pending_bytes,
                    lag_seconds: view::lag(&lane, now),
                    paused: lane.paused.is_some().into(),
                    failed_attempts: lane.counters.failed_attempts,
                    unsent_attempts: lane.counters.unsent_attempts,
                    ..ReplicaSnapshot::default()
                };
                self.observed.latency.fill_replica(&lane.node, &mut replica);
                replica
            })
            .collect();
        replicas.sort_by(|a, b| a.node.cmp(&b.node));
        let store = self.journal.stats();
        let mut snapshot = Snapshot {
            total_replications: self.intake.received,
            delivered: totals.delivered,
            failed_attempts: totals.failed_attempts,
            unsent_attempts: totals.unsent_attempts,
            superseded: totals.superseded,
            permanent_failures: totals.rejected + totals.gave_up,
            dead_letters: levels.dead_letters,
            queue_tasks: levels.queue as u64,
            retry_tasks: levels.retry as u64,
            queue_bytes: levels.bytes,
            dead_letter_bytes: levels.dead_letter_bytes,
            redriven: totals.redriven,
            discarded: totals.discarded,
            waiting_requests: self.intake.admission.len() as u64,
            store_file_bytes: store.file_bytes,
            disk_free_bytes: store.free_bytes.unwrap_or_default(),
            disk_low: store.is_full,
            store_live_bytes: store.live_bytes,
            store_rewrites: store.compactions,
            store_failed: self.store_has_failed(),
            store_stalled_seconds: match &*self.health.borrow() {
                Health::Stalled { since } => since.elapsed().as_secs_f64(),
                _ => 0.0,
            },
            log_lines_dropped: crate::log::dropped_lines(),
            refusals: self.observed.counts.refusals(),
            answers: self.observed.counts.answers(),
            replicas,
            ..self.observed.constants.clone()
        };
        self.observed.latency.fill(&mut snapshot);
        snapshot
    }
}
