//! The limits of replicas in a history.

use std::num::{NonZeroU32, NonZeroU64};

use super::World;
use crate::engine::Moment;
use crate::engine::lane::limits::BURST;
use crate::engine::model::site;
use crate::task::{Node, ReplicaLimits};

/// What was sent since the limits were set, or since the restart.
pub(super) struct SentWithin {
    pub(super) limits: ReplicaLimits,
    pub(super) sent: Vec<(Moment, u64)>,
}

impl World {
    pub(super) fn limit(&mut self, at: usize, workers: u32, rate: u32, bandwidth: u64) {
        let limits = ReplicaLimits {
            workers: NonZeroU32::new(workers),
            rate: NonZeroU32::new(rate),
            bandwidth: NonZeroU64::new(bandwidth),
            redrive_rate: NonZeroU32::new(rate),
        };
        let name = self.names[at].clone();
        self.engine.limit(self.now, &name, limits);
        let known = self.limits.get(&site(&name)).map(|known| known.limits);
        // Limits that stay as they are keep their buckets.
        if known.unwrap_or_default() != limits {
            self.limits.insert(site(&name), SentWithin { limits, sent: Vec::new() });
        }
        self.act();
    }

    /// After a restart, with new buckets.
    pub(super) fn limit_again(&mut self) {
        for name in &self.names {
            if let Some(within) = self.limits.get_mut(&site(name)) {
                within.sent.clear();
                self.engine.limit(self.now, name, within.limits);
            }
        }
    }

    /// In no time was more sent than its rates give in it, the burst, and one delivery.
    pub(super) fn check_limits(&mut self, place: &Node, bytes: u64) {
        let now = self.now.moment;
        let Some(SentWithin { limits, sent }) = self.limits.get_mut(place) else { return };
        sent.push((now, bytes));
        let (mut requests, mut sum) = (0, 0);
        for &(since, bytes) in sent.iter().rev() {
            let time = u128::from(now.0 - since.0) + BURST.as_micros();
            let most = |rate: u64| time * u128::from(rate) / 1_000_000;
            if let Some(rate) = limits.rate {
                assert!(requests <= most(rate.get().into()), "{requests} to {place} in {time} us");
            }
            if let Some(bandwidth) = limits.bandwidth {
                assert!(sum <= most(bandwidth.get()), "{sum} bytes to {place} in {time} us");
            }
            (requests, sum) = (requests + 1, sum + u128::from(bytes));
        }
    }
}
