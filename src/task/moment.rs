//! Time as it is handed in: a monotonic moment, and the wall clock.

use std::time::Duration;

use super::Timestamp;

/// A moment, in microseconds since the daemon started. Never goes back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// The moment `duration` later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The moment `duration` earlier, but not before the start.
    #[must_use]
    pub fn before(self, duration: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The time since the daemon started.
    #[must_use]
    pub fn since_start(self) -> Duration {
        Duration::from_micros(self.0)
    }
}

/// Since when something is there, by the same clock, which nobody sets: in microseconds since the
/// daemon started, below zero for what is older. The wall clock would make it years older or younger
/// by one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Since(i64);

impl Since {
    /// What is `age` old at `now`.
    #[must_use]
    pub fn aged(age: Duration, now: Moment) -> Self {
        let micros = |moment: u128| i64::try_from(moment).unwrap_or(i64::MAX);
        Self(micros(now.0.into()).saturating_sub(micros(age.as_micros())))
    }

    /// How old it is at `now`.
    #[must_use]
    pub fn age(self, now: Moment) -> Duration {
        let now = i64::try_from(now.0).unwrap_or(i64::MAX);
        Duration::from_micros(u64::try_from(now.saturating_sub(self.0)).unwrap_or(0))
    }
}

/// The moment of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For waiting.
    pub moment: Moment,
    /// For the records that people read.
    pub wall: Timestamp,
}
