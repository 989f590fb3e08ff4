//! The limits that an operator has set for a replica, and what they let through now.
//!
//! Each rate is a token bucket that holds what [`BURST`] gives, plus one: a delivery is sent when the
//! bucket is not in debt, whatever it costs. So a value of any size is sent, and what follows waits until
//! the bucket has recovered. In any time the requests are at most those of the rate in that time and
//! [`BURST`], plus one. The same holds for the bytes, plus those of the last delivery.

use std::time::Duration;

use crate::engine::Moment;
use crate::engine::table::Priority;
use crate::task::ReplicaLimits;

/// What may be sent at once after a rest. It also lets late timers catch up.
pub(in crate::engine) const BURST: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(in crate::engine) struct LaneLimits {
    set: ReplicaLimits,
    requests: LimitBucket,
    bytes: LimitBucket,
    redrives: LimitBucket,
}

impl LaneLimits {
    /// `None` if nothing is set.
    pub(in crate::engine) fn new(set: ReplicaLimits) -> Option<Box<Self>> {
        let bucket = LimitBucket::default;
        let limits = || Self { set, requests: bucket(), bytes: bucket(), redrives: bucket() };
        (!set.is_none()).then(|| Box::new(limits()))
    }

    pub(in crate::engine) fn set(&self) -> ReplicaLimits {
        self.set
    }

    /// When the next delivery may be sent, if that is not now.
    pub(in crate::engine) fn wait(&self, now: Moment) -> Option<Moment> {
        self.requests.wait(now).max(self.bytes.wait(now))
    }

    /// The same for a redriven dead letter.
    pub(in crate::engine) fn redrive_wait(&self, now: Moment) -> Option<Moment> {
        self.redrives.wait(now)
    }

    /// Counts a delivery. `processes` share the rates.
    pub(in crate::engine) fn spend(
        &mut self,
        now: Moment,
        processes: u32,
        bytes: u64,
        priority: Priority,
    ) {
        let ReplicaLimits { rate, bandwidth, redrive_rate, .. } = self.set;
        if let Some(rate) = rate {
            self.requests.spend(now, cost(1, rate.get().into(), processes));
        }
        if let Some(bandwidth) = bandwidth {
            self.bytes.spend(now, cost(bytes, bandwidth.get(), processes));
        }
        if let (Some(rate), Priority::Redrive) = (redrive_rate, priority) {
            self.redrives.spend(now, cost(1, rate.get().into(), processes));
        }
    }
}

/// A token bucket as the time by which everything sent is paid for.
#[derive(Debug, Default)]
struct LimitBucket {
    paid: Duration,
}

impl LimitBucket {
    fn wait(&self, now: Moment) -> Option<Moment> {
        let due = self.paid.checked_sub(BURST).filter(|due| *due > now.since_start())?;
        // Moments are whole microseconds.
        Some(Moment::default().after(due + Duration::from_nanos(999)))
    }

    fn spend(&mut self, now: Moment, cost: Duration) {
        self.paid = self.paid.max(now.since_start()).saturating_add(cost);
    }
}

/// The time in which a share of `per_second` gives `amount`, rounded up.
fn cost(amount: u64, per_second: u64, processes: u32) -> Duration {
    let whole = u128::from(amount) * u128::from(processes) * 1_000_000_000;
    let nanos = whole.div_ceil(per_second.max(1).into());
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
