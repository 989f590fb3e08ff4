//! Monotonic and wall clock time, as passed into calls.

use std::time::Duration;

use super::Timestamp;

/// Monotonic time in microseconds since the daemon started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// `self - duration`, at least the start.
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    pub fn since_start(self) -> Duration {
        Duration::from_micros(self.0)
    }
}

/// When something began, by the monotonic clock: microseconds since the daemon started, negative
/// for earlier. A step of the wall clock does not change its age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Since(i64);

impl Since {
    pub fn aged(age: Duration, now: Moment) -> Self {
        let micros = |moment: u128| i64::try_from(moment).unwrap_or(i64::MAX);
        Self(micros(now.0.into()).saturating_sub(micros(age.as_micros())))
    }

    pub fn age(self, now: Moment) -> Duration {
        let now = i64::try_from(now.0).unwrap_or(i64::MAX);
        Duration::from_micros(u64::try_from(now.saturating_sub(self.0)).unwrap_or(0))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    pub moment: Moment,
    pub wall: Timestamp,
}
