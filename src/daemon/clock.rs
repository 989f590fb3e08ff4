//! The one place where the time is read.

#![expect(clippy::disallowed_methods, reason = "everyone else is handed the time from here")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::engine::{Moment, Now};
use crate::faults;
use crate::task::Timestamp;

/// The daemon's clock: monotonic for waiting, the wall clock for records and times to live.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    start: Instant,
}

impl Clock {
    pub(super) fn start() -> Self {
        Self { start: Instant::now() }
    }

    pub(super) fn now(&self) -> Now {
        let moment = Moment::default().after(self.start.elapsed());
        Now { moment, wall: wall() }
    }

    /// The moment as the runtime's timers want it.
    pub(super) fn instant(&self, moment: Moment) -> Instant {
        self.start + moment.since_start()
    }
}

/// The wall clock; 1970 if it is set to before that.
#[must_use]
pub fn wall() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp(0).saturating_add(since).saturating_add(faults::clock_ahead())
}
