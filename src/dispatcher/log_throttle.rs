//! What the log is told of replicas: an outage has thousands of dead letters, and a replica can go
//! and come back many times a minute. A line for each would bury everything else, and fill a disk.
//!
//! Of one replica and one kind of event so many are told at once, then the others are counted until
//! their time is over. Then the last of them is told with how many there were: the log's last word
//! on a replica is always how it is.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use crate::engine::Moment;
use crate::task::{Cause, DeadLetter, Node, TaskId};

/// Replicas and kinds that are remembered; beyond, those with nothing left to tell are forgotten
/// when their time is over.
const REMEMBERED: usize = 4096;

/// Something that happened to a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A delivery became a dead letter.
    Buried { task: TaskId, letter: DeadLetter },
    /// A delivery that failed before was sent again, after this error.
    Retried { task: TaskId, attempt: u32, error: Arc<str> },
    /// A dead letter's time was over.
    Discarded { task: TaskId },
    /// Its breaker opened, with the error that did it, or the replica is back.
    Breaker { error: Option<Arc<str>> },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Letters(Cause),
    Retries,
    Discarded,
    Breaker,
}

impl Event {
    fn kind(&self) -> Kind {
        match self {
            Self::Buried { letter, .. } => Kind::Letters(letter.cause),
            Self::Retried { .. } => Kind::Retries,
            Self::Discarded { .. } => Kind::Discarded,
            Self::Breaker { .. } => Kind::Breaker,
        }
    }
}

impl Kind {
    /// How many are told at once in a time, and how long that is.
    fn allowance(self) -> (u32, Duration) {
        match self {
            Self::Letters(_) | Self::Retries | Self::Discarded => (1, Duration::from_secs(10)),
            // An outage and its end are told at once, and one that follows on it as well.
            Self::Breaker => (6, Duration::from_secs(60)),
        }
    }
}

/// What has been told, and what is still to be.
#[derive(Debug, Default)]
pub(super) struct LogThrottle {
    kinds: HashMap<(Node, Kind), Lines>,
    /// When the first of what is untold is due.
    due: Option<Moment>,
}

#[derive(Debug)]
struct Lines {
    /// The end of this time.
    until: Moment,
    /// How many may be told at once until then.
    left: u32,
    untold: u64,
    last: Option<Event>,
}

impl LogThrottle {
    /// Something has happened: it is told now or later.
    pub(super) fn tell(&mut self, now: Moment, node: &Node, event: Event) {
        if let Some((event, times)) = self.happened(now, node, event) {
            write(node, &event, times);
        }
    }

    /// Tells what is due.
    pub(super) fn tick(&mut self, now: Moment) {
        for (node, event, times) in self.due(now) {
            write(&node, &event, times);
        }
    }

    /// Tells all that is untold, at the end.
    pub(super) fn tell_all(&mut self) {
        self.tick(Moment(u64::MAX));
    }

    /// When [`Self::tick`] has something to tell.
    pub(super) fn wake_at(&self) -> Option<Moment> {
        self.due
    }

    fn happened(&mut self, now: Moment, node: &Node, event: Event) -> Option<(Event, u64)> {
        if self.kinds.len() >= REMEMBERED {
            self.kinds.retain(|_, lines| lines.until > now || lines.untold > 0);
        }
        let kind = event.kind();
        let (most, time) = kind.allowance();
        let new = Lines { until: now, left: 0, untold: 0, last: None };
        let lines = self.kinds.entry((node.clone(), kind)).or_insert(new);
        if lines.until <= now {
            (lines.until, lines.left) = (now.after(time), most);
        }
        lines.untold += 1;
        if lines.left == 0 {
            lines.last = Some(event);
            self.due = Some(self.due.map_or(lines.until, |due| due.min(lines.until)));
            return None;
        }
        lines.left -= 1;
        lines.last = None;
        Some((event, std::mem::take(&mut lines.untold)))
    }

    fn due(&mut self, now: Moment) -> Vec<(Node, Event, u64)> {
        if self.due.is_none_or(|due| due > now) {
            return Vec::new();
        }
        let mut due = Vec::new();
        for ((node, kind), lines) in &mut self.kinds {
            if lines.until <= now
                && let Some(event) = lines.last.take()
            {
                let (most, time) = kind.allowance();
                (lines.until, lines.left) = (now.after(time), most.saturating_sub(1));
                due.push((node.clone(), event, std::mem::take(&mut lines.untold)));
            }
        }
        let untold = self.kinds.values().filter(|lines| lines.last.is_some());
        self.due = untold.map(|lines| lines.until).min();
        due.sort_by(|a, b| a.0.cmp(&b.0));
        due
    }
}

/// A line of the log for `times` events, the last of which is this one.
fn write(replica: &Node, event: &Event, times: u64) {
    match event {
        Event::Buried { task, letter } => {
            let (deliveries, failures, error) = (times, letter.failures, &letter.error);
            if letter.cause == Cause::RetryOverflow {
                warn!(%replica, deliveries, %error, "the retry queue has no room for this replica: failed deliveries are parked on disk and come back when it has");
            } else {
                let cause = letter.cause.as_str();
                warn!(%replica, deliveries, last_task = %task, failures, cause, %error, "rejected or given up: kept as dead letters");
            }
        }
        Event::Retried { task, attempt, error } => {
            info!(%replica, retries = times, last_task = %task, attempt, %error, "failed deliveries are sent again");
        }
        Event::Discarded { task } => {
            warn!(%replica, deliveries = times, last_task = %task, "dead letters discarded: their time is over (--dead-letter-retention)");
        }
        Event::Breaker { error: Some(error) } => {
            warn!(%replica, changes = times, %error, "the replica does not answer: its breaker is open, deliveries to it fail without being sent until a probe succeeds");
        }
        Event::Breaker { error: None } => {
            info!(%replica, changes = times, "the replica answers again");
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

    fn buried(cause: Cause) -> Event {
        let error = "e".into();
        let letter = DeadLetter { cause, failures: 4, error, since: Timestamp(0) };
        Event::Buried { task: TaskId(1), letter }
    }

    fn breaker(open: bool) -> Event {
        Event::Breaker { error: open.then(|| "e".into()) }
    }

    #[test]
    fn thousands_of_letters_are_a_line_each_ten_seconds_with_their_number() {
        let mut throttle = LogThrottle::default();
        let [a, b] = ["http://a", "http://b"].map(|node| Node::parse(node).unwrap());
        let mut times =
            |n, node, cause| throttle.happened(second(n), node, buried(cause)).map(|told| told.1);
        assert_eq!(times(1, &a, Cause::GaveUp), Some(1));
        (0..1000).for_each(|_| assert_eq!(times(2, &a, Cause::GaveUp), None));
        assert_eq!(times(2, &a, Cause::Rejected), Some(1), "another cause");
        assert_eq!(times(2, &b, Cause::GaveUp), Some(1), "another replica");
        assert_eq!(times(11, &a, Cause::GaveUp), Some(1001));
    }

    #[test]
    fn thousands_of_retries_are_a_line_each_ten_seconds_with_their_number() {
        let mut throttle = LogThrottle::default();
        let a = Node::parse("http://a").unwrap();
        let retried = |n| Event::Retried { task: TaskId(n), attempt: 2, error: "e".into() };
        assert_eq!(throttle.happened(second(1), &a, retried(1)), Some((retried(1), 1)));
        (2..1000).for_each(|n| assert_eq!(throttle.happened(second(2), &a, retried(n)), None));
        assert_eq!(throttle.happened(second(2), &a, buried(Cause::GaveUp)).unwrap().1, 1);
        assert_eq!(throttle.due(second(11)), [(a, retried(999), 998)]);
    }

    #[test]
    fn what_was_not_told_at_once_is_told_when_its_time_is_over() {
        let mut throttle = LogThrottle::default();
        let a = Node::parse("http://a").unwrap();
        throttle.happened(second(1), &a, buried(Cause::GaveUp));
        (0..5).for_each(|_| {
            assert!(throttle.happened(second(2), &a, buried(Cause::GaveUp)).is_none());
        });
        assert_eq!(throttle.wake_at(), Some(second(11)));
        assert_eq!(throttle.due(second(10)), []);
        assert_eq!(throttle.due(second(11)), [(a, buried(Cause::GaveUp), 5)]);
        assert_eq!((throttle.wake_at(), throttle.due(second(99))), (None, vec![]));
    }

    #[test]
    fn a_replica_that_flaps_is_a_few_lines_a_minute_and_the_last_is_how_it_is() {
        let mut throttle = LogThrottle::default();
        let a = Node::parse("http://a").unwrap();
        let mut lines = Vec::new();
        for n in 0..600 {
            lines.extend(throttle.happened(second(n), &a, breaker(n % 2 == 0)));
            lines.extend(
                throttle.due(second(n)).into_iter().map(|(_, event, times)| (event, times)),
            );
        }
        lines.extend(throttle.due(second(700)).into_iter().map(|(_, event, times)| (event, times)));
        assert!((20..=70).contains(&lines.len()), "{}", lines.len());
        assert_eq!(lines.iter().map(|line| line.1).sum::<u64>(), 600);
        assert_eq!(lines.last().unwrap().0, breaker(false));
    }
}
