//! What the store counts, since the start.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[derive(Debug, Default)]
pub(super) struct StoreFigures {
    take_overs: AtomicU64,
    lapses: AtomicU64,
    publishes: AtomicU64,
    publish_micros: AtomicU64,
    copies: AtomicU64,
    missing: AtomicU64,
}

/// As of one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClusterFigures {
    /// Partitions that this process claimed because their owner was silent.
    pub take_overs: u64,
    /// Leases that ended before the next checkpoint was stored, and went on then.
    pub lapses: u64,
    /// Writes that were acknowledged by the servers, and the time for it.
    pub publishes: u64,
    pub publish_time: Duration,
    /// Tasks that were copied to the end of their log.
    pub copies: u64,
    /// Messages that are missing from a log.
    pub missing: u64,
}

impl StoreFigures {
    pub(super) fn taken_over(&self) {
        add(&self.take_overs, 1);
    }

    /// A checkpoint is stored.
    pub(super) fn stored(&self, copies: u64, had_lapsed: bool) {
        add(&self.copies, copies);
        add(&self.lapses, u64::from(had_lapsed));
    }

    pub(super) fn published(&self, took: Duration) {
        add(&self.publishes, 1);
        add(&self.publish_micros, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }

    pub(super) fn missing(&self, messages: u64) {
        add(&self.missing, messages);
    }

    pub(super) fn get(&self) -> ClusterFigures {
        let get = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        ClusterFigures {
            take_overs: get(&self.take_overs),
            lapses: get(&self.lapses),
            publishes: get(&self.publishes),
            publish_time: Duration::from_micros(get(&self.publish_micros)),
            copies: get(&self.copies),
            missing: get(&self.missing),
        }
    }
}

fn add(figure: &AtomicU64, by: u64) {
    figure.fetch_add(by, Ordering::Relaxed);
}
