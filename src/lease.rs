//! The lease of a partition: until when this process may send its tasks.
//!
//! In a cluster a partition has one owner at a time. The owner may send only while its lease lasts, and
//! a new owner claims the partition only after the lease has ended. A process that was stopped or
//! suspended must notice this by itself, so the lease is checked right before bytes are written to a
//! replica. It is measured with `CLOCK_BOOTTIME`, which also runs while the machine sleeps.

use std::ops::Add;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use thiserror::Error;
use tokio::sync::Notify;

/// A time of `CLOCK_BOOTTIME`, in nanoseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct BootTime(u64);

/// Counts the time in which the machine sleeps, like that of Linux.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
const CLOCK: ClockId = ClockId::Monotonic;
#[cfg(any(target_os = "linux", target_os = "android"))]
const CLOCK: ClockId = ClockId::Boottime;

impl BootTime {
    pub fn now() -> Self {
        let now = clock_gettime(CLOCK);
        let seconds = u64::try_from(now.tv_sec).unwrap_or_default();
        let nanos = u64::try_from(now.tv_nsec).unwrap_or_default();
        Self(seconds.saturating_mul(1_000_000_000).saturating_add(nanos))
    }

    pub fn saturating_since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for BootTime {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

/// How long this process may send for a partition. Cheap to clone; all clones are the same lease.
///
/// A claim makes a new lease: a lost one stays lost.
#[derive(Clone, Debug)]
pub struct Lease(Arc<LeaseState>);

#[derive(Debug)]
struct LeaseState {
    /// The end as a [`BootTime`]: 0 before the first, [`LOST`] for good.
    until: AtomicU64,
    /// An end was set.
    extended: Notify,
    lost: Notify,
}

const LOST: u64 = u64::MAX;

/// The partition has another owner, or is handed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("another instance owns the partition")]
pub struct LeaseLost;

impl Lease {
    /// A lease that is not held yet.
    #[expect(
        clippy::new_without_default,
        reason = "a lease that nobody extends is no useful default"
    )]
    pub fn new() -> Self {
        let (extended, lost) = (Notify::new(), Notify::new());
        Self(Arc::new(LeaseState { until: AtomicU64::new(0), extended, lost }))
    }

    /// Holds the lease until `until`, or longer if it was already held longer. Has no effect on a
    /// lost lease. Only the task that writes the partition's checkpoints calls it.
    pub fn extend(&self, until: BootTime) {
        let until = until.0.min(LOST - 1);
        let longer = |current| (current < until).then_some(until);
        if self.0.until.fetch_update(Ordering::AcqRel, Ordering::Acquire, longer).is_ok() {
            self.0.extended.notify_waiters();
        }
    }

    /// Ends the lease for good.
    pub fn lose(&self) {
        self.0.until.store(LOST, Ordering::Release);
        self.0.extended.notify_waiters();
        self.0.lost.notify_waiters();
    }

    /// Whether this process may send now. Takes no lock.
    pub fn is_held(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// The time until its end; zero if it is not held.
    pub fn remaining(&self) -> Duration {
        match self.0.until.load(Ordering::Acquire) {
            LOST => Duration::ZERO,
            // After the load: the process may stop between the two.
            until => BootTime(until).saturating_since(BootTime::now()),
        }
    }

    pub fn is_lost(&self) -> bool {
        self.0.until.load(Ordering::Acquire) == LOST
    }

    /// Waits until it is held.
    ///
    /// # Errors
    ///
    /// It is lost, now or while this waits.
    pub async fn held(&self) -> Result<(), LeaseLost> {
        loop {
            let extended = self.0.extended.notified();
            if self.is_lost() {
                return Err(LeaseLost);
            }
            if self.is_held() {
                return Ok(());
            }
            extended.await;
        }
    }

    /// Waits until it is not held: its end has passed, or it is lost.
    pub async fn ended(&self) {
        loop {
            let lost = self.0.lost.notified();
            let remaining = self.remaining();
            if remaining.is_zero() {
                return;
            }
            // It may have been extended meanwhile. A sleep of the machine delays this timer, but not
            // `is_held`.
            let _ = tokio::time::timeout(remaining, lost).await;
        }
    }
}

/// The right to send a task.
#[derive(Clone, Debug)]
pub enum Fence {
    /// Of a store that no other process can own.
    Open,
    Held {
        /// Grows with each owner of the partition.
        epoch: u64,
        lease: Lease,
    },
    /// Another process owns the partition.
    Lost,
}

impl Fence {
    /// Whether this process may send now.
    #[inline]
    pub fn is_held(&self) -> bool {
        match self {
            Self::Open => true,
            Self::Held { lease, .. } => lease.is_held(),
            Self::Lost => false,
        }
    }

    /// Of a store with several owners.
    pub fn epoch(&self) -> Option<u64> {
        match self {
            Self::Held { epoch, .. } => Some(*epoch),
            Self::Open | Self::Lost => None,
        }
    }

    /// Waits until this process may send.
    ///
    /// # Errors
    ///
    /// It never may again.
    pub async fn held(&self) -> Result<(), LeaseLost> {
        match self {
            Self::Open => Ok(()),
            Self::Held { lease, .. } => lease.held().await,
            Self::Lost => Err(LeaseLost),
        }
    }

    /// Waits until this process may not send.
    pub async fn ended(&self) {
        match self {
            Self::Open => std::future::pending().await,
            Self::Held { lease, .. } => lease.ended().await,
            Self::Lost => {}
        }
    }
}

#[cfg(test)]
mod tests;
