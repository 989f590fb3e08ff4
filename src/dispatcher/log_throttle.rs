//! Throttles the log lines about replicas. An outage makes thousands of dead letters, and a replica can
//! flap many times a minute; a line for each would bury the rest of the log and fill a disk.
//!
//! Each replica may log a few events of each kind at once; further ones are counted until the window
//! ends. Then the last one is logged with the count, so the last line about a replica shows its
//! current state. Shortages of this process share one window, whatever the replica.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::field::display;
use tracing::{info, warn};

use crate::engine::Moment;
use crate::task::{Cause, DeadLetter, Node, TaskId};

/// Beyond this many windows, those that ended and have nothing left to log are dropped.
const MAX_WINDOWS: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ThrottledEvent {
    DeadLetter {
        task: TaskId,
        letter: DeadLetter,
    },
    Retry {
        task: TaskId,
        attempt: u32,
        error: Arc<str>,
    },
    /// A dead letter reached its retention.
    Expired {
        task: TaskId,
    },
    /// The breaker opened with this error, or closed.
    Breaker {
        error: Option<Arc<str>>,
    },
    /// An attempt could not be sent for want of resources of this process.
    Shortage {
        error: Arc<str>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum ThrottledKind {
    DeadLetter(Cause),
    Retry,
    Expired,
    Breaker,
    Shortage,
}

impl ThrottledEvent {
    fn kind(&self) -> ThrottledKind {
        match self {
            Self::DeadLetter { letter, .. } => ThrottledKind::DeadLetter(letter.cause),
            Self::Retry { .. } => ThrottledKind::Retry,
            Self::Expired { .. } => ThrottledKind::Expired,
            Self::Breaker { .. } => ThrottledKind::Breaker,
            Self::Shortage { .. } => ThrottledKind::Shortage,
        }
    }
}

impl ThrottledKind {
    /// Lines that may be logged at once in a window, and the length of the window.
    fn allowance(self) -> (u32, Duration) {
        match self {
            // An outage and its end are logged at once, and so is the next one.
            Self::Breaker => (6, Duration::from_secs(60)),
            // It lasts until a person acts.
            Self::DeadLetter(Cause::Refused) => (1, Duration::from_secs(60)),
            _ => (1, Duration::from_secs(10)),
        }
    }
}

/// `None` for events that do not depend on the replica.
type ThrottleKey = (Option<Node>, ThrottledKind);

#[derive(Debug, Default)]
pub(super) struct LogThrottle {
    windows: HashMap<ThrottleKey, ThrottleWindow>,
    /// The end of the first window with something left to log.
    due: Option<Moment>,
}

#[derive(Debug)]
struct ThrottleWindow {
    until: Moment,
    /// Lines that may still be logged at once.
    left: u32,
    unlogged: u64,
    last: Option<ThrottledEvent>,
}

impl LogThrottle {
    pub(super) fn log(&mut self, now: Moment, replica: &Node, event: ThrottledEvent) {
        self.record(now, Some(replica), event);
    }

    pub(super) fn log_shortage(&mut self, now: Moment, error: &Arc<str>) {
        self.record(now, None, ThrottledEvent::Shortage { error: Arc::clone(error) });
    }

    pub(super) fn tick(&mut self, now: Moment) {
        for (replica, event, times) in self.take_due(now) {
            write(replica.as_ref(), &event, times);
        }
    }

    pub(super) fn flush(&mut self) {
        self.tick(Moment(u64::MAX));
    }

    pub(super) fn wake_at(&self) -> Option<Moment> {
        self.due
    }

    fn record(&mut self, now: Moment, replica: Option<&Node>, event: ThrottledEvent) {
        if let Some((event, times)) = self.admit(now, replica, event) {
            write(replica, &event, times);
        }
    }

    /// Returns the event and its count if it may be logged at once.
    fn admit(
        &mut self,
        now: Moment,
        replica: Option<&Node>,
        event: ThrottledEvent,
    ) -> Option<(ThrottledEvent, u64)> {
        if self.windows.len() >= MAX_WINDOWS {
            self.windows.retain(|_, window| window.until > now || window.unlogged > 0);
        }
        let kind = event.kind();
        let (most, length) = kind.allowance();
        let new = ThrottleWindow { until: now, left: 0, unlogged: 0, last: None };
        let window = self.windows.entry((replica.cloned(), kind)).or_insert(new);
        if window.until <= now {
            (window.until, window.left) = (now.after(length), most);
        }
        window.unlogged += 1;
        if window.left == 0 {
            window.last = Some(event);
            self.due = Some(self.due.map_or(window.until, |due| due.min(window.until)));
            return None;
        }
        window.left -= 1;
        window.last = None;
        Some((event, std::mem::take(&mut window.unlogged)))
    }

    fn take_due(&mut self, now: Moment) -> Vec<(Option<Node>, ThrottledEvent, u64)> {
        if self.due.is_none_or(|due| due > now) {
            return Vec::new();
        }
        let mut due = Vec::new();
        for ((replica, kind), window) in &mut self.windows {
            if window.until <= now
                && let Some(event) = window.last.take()
            {
                let (most, length) = kind.allowance();
                (window.until, window.left) = (now.after(length), most.saturating_sub(1));
                due.push((replica.clone(), event, std::mem::take(&mut window.unlogged)));
            }
        }
        let left = self.windows.values().filter(|window| window.last.is_some());
        self.due = left.map(|window| window.until).min();
        due.sort_by(|a, b| a.0.cmp(&b.0));
        due
    }
}

/// Writes one log line for `times` events, of which `event` is the last.
fn write(replica: Option<&Node>, event: &ThrottledEvent, times: u64) {
    let replica = replica.map(display);
    match event {
        ThrottledEvent::DeadLetter { task, letter } => {
            let (deliveries, failures, error) = (times, letter.failures, &letter.error);
            match letter.cause {
                Cause::RetryOverflow => {
                    warn!(replica, deliveries, %error, "the retry queue has no room for this replica: failed deliveries are parked on disk until it has");
                }
                Cause::Refused => {
                    warn!(replica, deliveries, last_task = %task, %error, "the replica refuses writes: check its credentials (--replica-token-file, --replica-cert) and send SIGHUP; the writes are kept as dead letters and redriven when it accepts writes again");
                }
                Cause::Rejected | Cause::GaveUp => {
                    let cause = letter.cause.as_str();
                    warn!(replica, deliveries, last_task = %task, failures, cause, %error, "rejected or given up: kept as dead letters");
                }
            }
        }
        ThrottledEvent::Retry { task, attempt, error } => {
            info!(replica, retries = times, last_task = %task, attempt, %error, "failed deliveries are sent again");
        }
        ThrottledEvent::Expired { task } => {
            warn!(replica, deliveries = times, last_task = %task, "dead letters discarded: their retention is over (--dead-letter-retention)");
        }
        ThrottledEvent::Breaker { error: Some(error) } => {
            warn!(replica, changes = times, %error, "the replica is failing: its breaker is open; until a probe succeeds, deliveries fail without being sent");
        }
        ThrottledEvent::Breaker { error: None } => {
            info!(replica, changes = times, "the replica answers again");
        }
        ThrottledEvent::Shortage { error } => {
            warn!(attempts = times, %error, "attempts could not be sent: this process is short of resources (file descriptors, ports, memory, name lookups), or the lease of their partition has ended; they do not count as failures and are retried");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::Timestamp;

    fn second(n: u64) -> Moment {
        Moment(0).after(Duration::from_secs(n))
    }

    fn dead_letter(cause: Cause) -> ThrottledEvent {
        let error = "e".into();
        let letter = DeadLetter { cause, failures: 4, error, since: Timestamp(0) };
        ThrottledEvent::DeadLetter { task: TaskId(1), letter }
    }

    fn breaker(open: bool) -> ThrottledEvent {
        ThrottledEvent::Breaker { error: open.then(|| "e".into()) }
    }

    #[test]
    fn thousands_of_dead_letters_are_one_line_per_ten_seconds_with_their_count() {
        let mut throttle = LogThrottle::default();
        let [a, b] = ["http://a", "http://b"].map(|node| Node::parse(node).unwrap());
        let mut times = |n, node, cause| {
            throttle.admit(second(n), Some(node), dead_letter(cause)).map(|line| line.1)
        };
        assert_eq!(times(1, &a, Cause::GaveUp), Some(1));
        (0..1000).for_each(|_| assert_eq!(times(2, &a, Cause::GaveUp), None));
        assert_eq!(times(2, &a, Cause::Rejected), Some(1), "another cause");
        assert_eq!(times(2, &b, Cause::GaveUp), Some(1), "another replica");
        assert_eq!(times(11, &a, Cause::GaveUp), Some(1001));
    }

    #[test]
    fn thousands_of_retries_are_one_line_per_ten_seconds_with_their_count() {
        let mut throttle = LogThrottle::default();
        let a = Node::parse("http://a").unwrap();
        let retry = |n| ThrottledEvent::Retry { task: TaskId(n), attempt: 2, error: "e".into() };
        assert_eq!(throttle.admit(second(1), Some(&a), retry(1)), Some((retry(1), 1)));
        (2..1000).for_each(|n| assert_eq!(throttle.admit(second(2), Some(&a), retry(n)), None));
        assert_eq!(throttle.admit(second(2), Some(&a), dead_letter(Cause::GaveUp)).unwrap().1, 1);
        assert_eq!(throttle.take_due(second(11)), [(Some(a), retry(999), 998)]);
    }

    #[test]
    fn events_that_were_not_logged_at_once_are_logged_when_the_window_ends() {
        let mut throttle = LogThrottle::default();
        let a = Node::parse("http://a").unwrap();
        throttle.admit(second(1), Some(&a), dead_letter(Cause::GaveUp));
        (0..5).for_each(|_| {
            assert!(throttle.admit(second(2), Some(&a), dead_letter(Cause::GaveUp)).is_none());
        });
        assert_eq!(throttle.wake_at(), Some(second(11)));
        assert_eq!(throttle.take_due(second(10)), []);
        assert_eq!(throttle.take_due(second(11)), [(Some(a), dead_letter(Cause::GaveUp), 5)]);
        assert_eq!((throttle.wake_at(), throttle.take_due(second(99))), (None, vec![]));
    }

    #[test]
    fn a_flapping_replica_logs_a_few_lines_a_minute_and_the_last_shows_its_state() {
        let mut throttle = LogThrottle::default();
        let a = Node::parse("http://a").unwrap();
        let mut lines = Vec::new();
        for n in 0..600 {
            lines.extend(throttle.admit(second(n), Some(&a), breaker(n % 2 == 0)));
            lines.extend(
                throttle.take_due(second(n)).into_iter().map(|(_, event, times)| (event, times)),
            );
        }
        lines.extend(
            throttle.take_due(second(700)).into_iter().map(|(_, event, times)| (event, times)),
        );
        assert!((20..=70).contains(&lines.len()), "{}", lines.len());
        assert_eq!(lines.iter().map(|line| line.1).sum::<u64>(), 600);
        assert_eq!(lines.last().unwrap().0, breaker(false));
    }

    #[test]
    fn a_shortage_is_one_line_per_ten_seconds_with_the_number_of_attempts() {
        let mut throttle = LogThrottle::default();
        let shortage = || ThrottledEvent::Shortage { error: "e".into() };
        let mut counts = Vec::new();
        for n in 0..=20 {
            let due = throttle.take_due(second(n));
            counts.extend(due.into_iter().map(|(_, _, times)| times));
            counts.extend(throttle.admit(second(n), None, shortage()).map(|(_, times)| times));
        }
        assert_eq!(counts, [1, 9, 10]);
    }
}
