//! The one place where the time is read.

#![expect(clippy::disallowed_methods, reason = "everyone else is handed the time from here")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

use crate::engine::{Moment, Now};
use crate::faults;
use crate::task::Timestamp;

/// A loop that wakes later than this after the moment that it waited for did not run: its process
/// was stopped or suspended, or had no processor.
const PAUSE: Duration = Duration::from_secs(1);

/// How long moments stand still after a pause. What arrived during it is in sockets and queues by
/// then, and is seen before anything is overdue.
const GRACE: Duration = Duration::from_millis(500);

/// The daemon's clock: monotonic for waiting, the wall clock for records and times to live.
///
/// Moments do not pass while the process does not run: a deadline that was ten seconds away before
/// a pause is ten seconds away after it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    /// The time that did not pass.
    lost: Duration,
    /// The moment of the last pause.
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

    /// The moment as the runtime's timers want it.
    pub(crate) fn instant(&self, moment: Moment) -> Instant {
        self.start + moment.since_start() + self.lost
    }

    /// A loop wakes that ran last at `last` and waited until `planned` at the latest. If it is much
    /// too late, the time since `last` did not pass; gives how long that was.
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

/// The wall clock; 1970 if it is set to before that.
#[must_use]
pub fn wall_clock() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Timestamp(0).saturating_add(since).saturating_add(faults::clock_ahead())
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn moments_stand_still_in_a_pause_of_the_process_and_a_little_after_it() {
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
        assert_eq!(clock.now().moment, last, "what arrived meanwhile is seen first");
        advance(seconds(1)).await;
        assert_eq!(clock.now().moment, planned);
        assert_eq!(clock.woke(last, planned), None);
        assert_eq!(clock.instant(planned), clock.start + seconds(15) + GRACE);
    }
}
