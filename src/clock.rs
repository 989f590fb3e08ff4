//! The only module that reads the time.

#![expect(clippy::disallowed_methods, reason = "all other modules get the time from here")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::engine::{Moment, Now};
use crate::faults;
use crate::task::Timestamp;

/// A loop that wakes this much too late did not run: its process was stopped, suspended or starved.
const PAUSE: Duration = Duration::from_secs(1);

/// After a pause the clock stands still this long, so that everything that arrived during the pause
/// is processed before anything times out.
const GRACE: Duration = Duration::from_millis(500);

/// Monotonic time for waiting, and the wall clock for records and ttls.
///
/// The monotonic time stops while the process does not run: a deadline that was 10 s away before a
/// pause is 10 s away after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    /// The sum of all pauses.
    lost: Duration,
    /// The moment at which the last pause began.
    floor: Moment,
}

impl Clock {
    pub(crate) fn start() -> Self {
        Self { start: Instant::now(), lost: Duration::ZERO, floor: Moment::default() }
    }

    pub(crate) fn now(&self) -> Now {
        let elapsed = self.start.elapsed().saturating_sub(self.lost);
        Now { moment: Moment::default().after(elapsed).max(self.floor), wall: wall_clock() }
    }

    /// Converts a moment for tokio's timers.
    pub(crate) fn instant(&self, moment: Moment) -> Instant {
        self.start + moment.since_start() + self.lost
    }

    /// Reports that a loop woke. It last ran at `last` and planned to wake at `planned` or earlier.
    /// If it is much too late, the time since `last` is removed from the clock and returned.
    pub(crate) fn woke(&mut self, last: Moment, planned: Moment) -> Option<Duration> {
        let now = Instant::now();
        if now <= self.instant(planned.max(last)) + PAUSE {
            return None;
        }
        let gap = now.saturating_duration_since(self.instant(last));
        self.lost += gap + GRACE;
        self.floor = last;
        Some(gap)
    }
}

/// The wall clock; 1970 if it is set to an earlier time.
pub fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp(0).saturating_add(since).saturating_add(faults::clock_ahead())
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_clock_stands_still_during_a_pause_of_the_process_and_shortly_after() {
        let seconds = Duration::from_secs;
        let mut clock = Clock::start();
        advance(seconds(5)).await;
        let last = clock.now().moment;
        let planned = last.after(seconds(1));
        advance(seconds(1)).await;
        assert_eq!(clock.woke(last, planned), None, "in time");
        advance(seconds(8)).await;
        assert_eq!(clock.woke(last, planned), Some(seconds(9)));
        assert_eq!(clock.now().moment, last);
        advance(GRACE).await;
        assert_eq!(clock.now().moment, last, "the grace period has not ended");
        advance(seconds(1)).await;
        assert_eq!(clock.now().moment, planned);
        assert_eq!(clock.woke(last, planned), None);
        assert_eq!(clock.instant(planned), clock.start + seconds(15) + GRACE);
    }
}
