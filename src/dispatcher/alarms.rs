//! Decides what operators are notified of.
//!
//! Once a second the states of replicas, dead letters and the store are compared with those that were
//! reported last. A state that ends within the second is not reported, and the last notification of a
//! replica or a condition always shows its current state. Each of them has a limit of notifications
//! per minute, because a replica can flap.

use std::collections::HashMap;
use std::time::Duration;

use crate::engine::{LaneView, Moment};
use crate::notify::{Condition, NewLetters, Notifier, NotifyEvent};
use crate::task::{BreakerState, Counters, Node};

/// Notifications about the state of a replica or a condition per [`WINDOW`]: an outage and its end are
/// reported at once, and so are the next ones.
const PER_WINDOW: u32 = 6;
const WINDOW: Duration = Duration::from_secs(60);

/// The shortest and the longest time between two notifications of new dead letters of a replica. It
/// doubles while there are new ones: a replica that refuses writes refuses its probes for hours.
const LETTERS_EVERY: Duration = Duration::from_secs(60);
const LETTERS_EVERY_AT_MOST: Duration = Duration::from_secs(60 * 60);

/// Letters that are gone this long are reported as cleared: a redrive may fail again.
const CLEARED_AFTER: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(in crate::dispatcher) struct Alarms {
    notifier: Notifier,
    replicas: HashMap<Node, ReplicaAlarm>,
    conditions: HashMap<Condition, ConditionAlarm>,
    has_store_failed: bool,
}

#[derive(Default)]
struct ReplicaAlarm {
    /// Reported and not reported as recovered.
    is_failing: bool,
    budget: Budget,
    letters: LetterAlarm,
}

#[derive(Default)]
struct LetterAlarm {
    /// The counters of the last notification.
    reported: NewLetters,
    /// The next notification is not sent before this moment.
    next: Moment,
    every: Duration,
    /// Reported and not reported as cleared.
    is_open: bool,
    /// Without dead letters since.
    none_since: Option<Moment>,
}

#[derive(Default)]
struct ConditionAlarm {
    since: Option<Moment>,
    /// Since when the reported state lasts.
    reported: Option<Moment>,
    budget: Budget,
}

#[derive(Default)]
struct Budget {
    until: Moment,
    used: u32,
}

impl Budget {
    fn spend(&mut self, now: Moment) -> bool {
        if self.until <= now {
            *self = Self { until: now.after(WINDOW), used: 0 };
        }
        self.used += 1;
        self.used <= PER_WINDOW
    }
}

/// How long a condition lasts before it is reported.
fn patience(condition: Condition) -> Duration {
    Duration::from_secs(match condition {
        Condition::StoreStalled | Condition::DiskFull | Condition::ReplicasFull => 0,
        Condition::StoreUnreachable | Condition::QueueFull => 10,
        // Longer than an election and a takeover.
        Condition::PartitionsUnavailable => 30,
    })
}

impl Alarms {
    pub(in crate::dispatcher) fn new(notifier: Notifier) -> Self {
        Self { notifier, ..Self::default() }
    }

    pub(in crate::dispatcher) fn is_off(&self) -> bool {
        self.notifier.is_off()
    }

    /// Reports what has changed. At the end of the process, `is_last`, counts that wait for their time
    /// are reported too.
    pub(in crate::dispatcher) fn observe(
        &mut self,
        now: Moment,
        lanes: &[LaneView],
        is_last: bool,
    ) {
        for event in self.changes(now, lanes, is_last) {
            self.notifier.send(event);
        }
    }

    /// `holds` has the conditions that are known.
    pub(in crate::dispatcher) fn observe_conditions(
        &mut self,
        now: Moment,
        holds: &[(Condition, bool)],
    ) {
        for &(condition, holds) in holds {
            if let Some(event) = self.condition(now, condition, holds) {
                self.notifier.send(event);
            }
        }
    }

    pub(in crate::dispatcher) fn store_failed(&mut self) {
        if !std::mem::replace(&mut self.has_store_failed, true) {
            self.notifier.send(NotifyEvent::StoreFailed);
        }
    }

    fn changes(&mut self, now: Moment, lanes: &[LaneView], is_last: bool) -> Vec<NotifyEvent> {
        let mut events = Vec::new();
        for lane in lanes {
            let alarm = self.replicas.entry(lane.node.clone()).or_default();
            events.extend(alarm.state(now, lane));
            events.extend(alarm.letters.appeared(now, lane, is_last));
            events.extend(alarm.letters.cleared(now, lane));
        }
        if self.replicas.len() > lanes.len() {
            let known: std::collections::HashSet<_> = lanes.iter().map(|lane| &lane.node).collect();
            self.replicas.retain(|node, alarm| {
                let is_known = known.contains(node);
                if !is_known && alarm.letters.is_open {
                    events.push(NotifyEvent::LettersCleared { replica: node.clone() });
                }
                if !is_known && alarm.is_failing {
                    events.push(NotifyEvent::ReplicaRemoved { replica: node.clone() });
                }
                is_known
            });
        }
        events
    }

    fn condition(&mut self, now: Moment, condition: Condition, holds: bool) -> Option<NotifyEvent> {
        let alarm = self.conditions.entry(condition).or_default();
        if !holds {
            alarm.since = None;
            let since = alarm.reported.filter(|_| alarm.budget.spend(now))?;
            alarm.reported = None;
            return Some(NotifyEvent::Ended { condition, seconds: between(since, now).as_secs() });
        }
        let since = *alarm.since.get_or_insert(now);
        let is_due = alarm.reported.is_none() && between(since, now) >= patience(condition);
        if !is_due || !alarm.budget.spend(now) {
            return None;
        }
        alarm.reported = Some(since);
        Some(NotifyEvent::Began(condition))
    }
}

impl ReplicaAlarm {
    fn state(&mut self, now: Moment, lane: &LaneView) -> Option<NotifyEvent> {
        let is_failing = match lane.breaker {
            BreakerState::Open => true,
            BreakerState::Closed => false,
            BreakerState::HalfOpen => self.is_failing,
        };
        if is_failing == self.is_failing || !self.budget.spend(now) {
            return None;
        }
        self.is_failing = is_failing;
        let (replica, backlog) = (lane.node.clone(), lane.counters.pending);
        Some(if is_failing {
            let error = lane.last_error.as_ref().map(|(error, _)| error.clone());
            NotifyEvent::ReplicaFailing { replica, error: error.unwrap_or_default(), backlog }
        } else {
            NotifyEvent::ReplicaRecovered { replica, backlog }
        })
    }
}

impl LetterAlarm {
    fn appeared(&mut self, now: Moment, lane: &LaneView, is_last: bool) -> Option<NotifyEvent> {
        let Counters { rejected, refused, gave_up, dead, .. } = lane.counters;
        let total = NewLetters { rejected, refused, given_up: gave_up };
        // A replica that leaves the list and returns counts from zero.
        let new = NewLetters {
            rejected: rejected.saturating_sub(self.reported.rejected),
            refused: refused.saturating_sub(self.reported.refused),
            given_up: gave_up.saturating_sub(self.reported.given_up),
        };
        if new.sum() == 0 || (now < self.next && !is_last) {
            return None;
        }
        let is_quiet = between(self.next, now) >= self.every;
        self.every = if is_quiet { LETTERS_EVERY } else { self.every * 2 };
        self.every = self.every.clamp(LETTERS_EVERY, LETTERS_EVERY_AT_MOST);
        self.next = now.after(self.every);
        self.reported = total;
        self.is_open = true;
        self.none_since = None;
        Some(NotifyEvent::LettersAppeared { replica: lane.node.clone(), new, kept: dead })
    }

    fn cleared(&mut self, now: Moment, lane: &LaneView) -> Option<NotifyEvent> {
        if !self.is_open || lane.counters.dead > 0 {
            self.none_since = None;
            return None;
        }
        let since = *self.none_since.get_or_insert(now);
        if between(since, now) < CLEARED_AFTER {
            return None;
        }
        self.is_open = false;
        Some(NotifyEvent::LettersCleared { replica: lane.node.clone() })
    }
}

fn between(earlier: Moment, later: Moment) -> Duration {
    later.since_start().saturating_sub(earlier.since_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(n: u64) -> Moment {
        Moment(0).after(Duration::from_secs(n))
    }

    fn lane(breaker: BreakerState, counters: Counters) -> LaneView {
        LaneView { breaker, ..LaneView::idle("http://a", counters) }
    }

    fn names(events: &[NotifyEvent]) -> Vec<String> {
        let name =
            |event: &NotifyEvent| format!("{event:?}").split([' ', '(']).next().unwrap().to_owned();
        events.iter().map(name).collect()
    }

    /// One observation each second.
    fn run(breakers: &[BreakerState]) -> Vec<String> {
        let mut alarms = Alarms::default();
        let observe = |(n, breaker): (u64, &BreakerState)| {
            alarms.changes(second(n), &[lane(*breaker, Counters::default())], false)
        };
        names(&(0..).zip(breakers).flat_map(observe).collect::<Vec<_>>())
    }

    #[test]
    fn a_failing_replica_and_its_recovery_are_reported_once() {
        use BreakerState::{Closed, HalfOpen, Open};
        let states = [Closed, Open, Open, HalfOpen, Open, HalfOpen, Closed, Closed];
        assert_eq!(run(&states), ["ReplicaFailing", "ReplicaRecovered"]);
        assert_eq!(run(&[Closed, HalfOpen, Closed]).len(), 0);
    }

    #[test]
    fn a_flapping_replica_is_reported_a_few_times_a_minute_and_last_in_its_state() {
        use BreakerState::{Closed, Open};
        let mut states: Vec<_> = (0..600).map(|n| if n % 2 == 0 { Open } else { Closed }).collect();
        states.extend([Open; 61]);
        let events = run(&states);
        assert!((60..=67).contains(&events.len()), "{}", events.len());
        assert_eq!(events.last().unwrap(), "ReplicaFailing");
    }

    #[test]
    fn a_failing_replica_that_is_forgotten_is_reported_as_removed() {
        let mut alarms = Alarms::default();
        alarms.changes(second(0), &[lane(BreakerState::Open, Counters::default())], false);
        assert_eq!(names(&alarms.changes(second(1), &[], false)), ["ReplicaRemoved"]);
        assert_eq!(alarms.changes(second(2), &[], false), []);
    }

    #[test]
    fn dead_letters_are_reported_at_once_and_then_with_their_count_ever_more_seldom() {
        let mut alarms = Alarms::default();
        let mut reported = Vec::new();
        for n in 0..7 * 60 {
            let counters = Counters { gave_up: n + 1, dead: n + 1, ..Counters::default() };
            let events = alarms.changes(second(n), &[lane(BreakerState::Closed, counters)], false);
            reported.extend(events.into_iter().map(|event| match event {
                NotifyEvent::LettersAppeared { new, kept, .. } => (n, new.sum(), kept),
                other => panic!("{other:?}"),
            }));
        }
        assert_eq!(reported, [(0, 1, 1), (60, 60, 61), (180, 120, 181)]);
        let counters = Counters { gave_up: 420, dead: 420, ..Counters::default() };
        let lanes = [lane(BreakerState::Closed, counters)];
        let last = alarms.changes(second(419), &lanes, true);
        assert_eq!(names(&last), ["LettersAppeared"], "at the end of the process");
        assert_eq!(alarms.changes(second(420), &lanes, true), []);
    }

    #[test]
    fn dead_letters_that_are_gone_for_a_minute_are_reported_as_cleared() {
        let mut alarms = Alarms::default();
        let mut observe = |n, dead| {
            let counters = Counters { rejected: 3, dead, ..Counters::default() };
            names(&alarms.changes(second(n), &[lane(BreakerState::Closed, counters)], false))
        };
        assert_eq!(observe(0, 3), ["LettersAppeared"]);
        assert_eq!(observe(1, 0).len(), 0);
        assert_eq!(observe(2, 1).len(), 0, "a redrive failed");
        assert_eq!(observe(3, 0).len(), 0);
        assert_eq!(observe(62, 0).len(), 0);
        assert_eq!(observe(63, 0), ["LettersCleared"]);
        assert_eq!(observe(200, 0).len(), 0);
    }

    #[test]
    fn a_condition_is_reported_when_it_has_lasted_and_when_it_ends() {
        let mut alarms = Alarms::default();
        let mut observe = |n, condition, holds| alarms.condition(second(n), condition, holds);
        let full = Condition::DiskFull;
        assert_eq!(observe(5, full, true), Some(NotifyEvent::Began(full)));
        assert_eq!(observe(6, full, true), None);
        let ended = NotifyEvent::Ended { condition: full, seconds: 7 };
        assert_eq!(observe(12, full, false), Some(ended));
        let queue = Condition::QueueFull;
        assert_eq!(observe(20, queue, true), None);
        assert_eq!(observe(29, queue, false), None, "too short");
        assert_eq!(observe(30, queue, true), None);
        assert_eq!(observe(40, queue, true), Some(NotifyEvent::Began(queue)));
    }
}
