//! The event stream of `/v1/events`.
//!
//! The loop publishes each event once into a ring of the last events, and each subscriber reads from
//! its own place. A subscriber that is too slow, or resumes too late, gets the number of missed
//! events; the loop does not wait for it. Events without a subscriber are not built.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::sync::watch;

use crate::engine::Moment;

const MAX_EVENTS: usize = 8192;

/// The figures of a thousand replicas are 300 KiB, every second.
const MAX_BYTES: usize = 16 << 20;

/// Events are built for this long after the last subscriber has gone, because it may resume.
const WATCHED_FOR: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Task,
    Replica,
    /// Once a second.
    Figures,
    /// The subscriber has missed events.
    Lagged,
}

impl EventKind {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Task => "task",
            Self::Replica => "replica",
            Self::Figures => "figures",
            Self::Lagged => "lagged",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventKinds {
    /// Thousands a second under load.
    pub task: bool,
    pub replica: bool,
    pub figures: bool,
}

impl EventKinds {
    #[cfg(test)]
    const ALL: Self = Self { task: true, replica: true, figures: true };

    fn want(self, kind: EventKind) -> bool {
        match kind {
            EventKind::Task => self.task,
            EventKind::Replica => self.replica,
            EventKind::Figures => self.figures,
            EventKind::Lagged => true,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamEvent {
    /// Ascending, also across restarts.
    pub id: u64,
    pub kind: EventKind,
    /// JSON.
    pub data: Arc<str>,
}

/// Cheap to clone.
#[derive(Clone)]
pub(crate) struct EventBus {
    ring: Arc<Mutex<EventRing>>,
    newest: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct EventRing {
    events: VecDeque<StreamEvent>,
    bytes: usize,
    /// Ids up to this one belong to earlier processes.
    base: u64,
    newest: u64,
    subscribers: usize,
    task_subscribers: usize,
    watched_until: Moment,
    tasks_watched_until: Moment,
    closed: bool,
}

impl EventBus {
    /// Ids start after `base`. With the start time in microseconds, no process reaches the ids of the
    /// next one, and JavaScript can represent them.
    pub(crate) fn new(base: u64) -> Self {
        let ring = EventRing { base, newest: base, ..EventRing::default() };
        Self { ring: Arc::new(Mutex::new(ring)), newest: Arc::new(watch::Sender::new(base)) }
    }

    fn with<T>(&self, what: impl FnOnce(&mut EventRing) -> T) -> T {
        what(&mut self.ring.lock())
    }

    /// Whether there are subscribers, and subscribers of task events, now or within [`WATCHED_FOR`].
    pub(super) fn watched(&self, now: Moment) -> (bool, bool) {
        self.with(|ring| {
            let until = now.after(WATCHED_FOR);
            if ring.subscribers > 0 {
                ring.watched_until = until;
            }
            if ring.task_subscribers > 0 {
                ring.tasks_watched_until = until;
            }
            (now < ring.watched_until, now < ring.tasks_watched_until)
        })
    }

    /// Adds an event. [`Self::wake`] wakes the subscribers, once per turn of the loop.
    pub(super) fn publish(&self, kind: EventKind, event: &impl Serialize) {
        // No event type can fail to serialize.
        let data: Arc<str> = serde_json::to_string(event).unwrap_or_default().into();
        self.with(|ring| {
            ring.newest += 1;
            ring.bytes += data.len();
            while ring.events.len() >= MAX_EVENTS || ring.bytes > MAX_BYTES {
                let Some(gone) = ring.events.pop_front() else { break };
                ring.bytes -= gone.data.len();
            }
            ring.events.push_back(StreamEvent { id: ring.newest, kind, data });
        });
    }

    pub(super) fn wake(&self) {
        let newest = self.with(|ring| ring.newest);
        self.newest.send_if_modified(|known| std::mem::replace(known, newest) != newest);
    }

    pub(super) fn close(&self) {
        self.with(|ring| ring.closed = true);
        self.newest.send_modify(|_| {});
    }

    /// Subscribes to the events after `after`, or from now on.
    pub(super) fn subscribe(&self, after: Option<u64>, kinds: EventKinds) -> EventSubscription {
        let place = self.with(|ring| {
            ring.subscribers += 1;
            ring.task_subscribers += usize::from(kinds.task);
            after.unwrap_or(ring.newest)
        });
        EventSubscription { bus: self.clone(), newest: self.newest.subscribe(), place, kinds }
    }
}

impl fmt::Debug for EventBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventBus").finish_non_exhaustive()
    }
}

pub struct EventSubscription {
    bus: EventBus,
    newest: watch::Receiver<u64>,
    place: u64,
    kinds: EventKinds,
}

impl EventSubscription {
    /// Waits for the next events, up to `most`. Empty at the end of the stream. Cancel safe.
    pub async fn next(&mut self, most: usize) -> Vec<StreamEvent> {
        loop {
            self.newest.borrow_and_update();
            let (found, closed) = self.bus.with(|ring| (self.read(ring, most), ring.closed));
            let (events, place) = found;
            self.place = place;
            if closed || !events.is_empty() {
                return events;
            }
            if self.newest.changed().await.is_err() {
                return Vec::new();
            }
        }
    }

    fn read(&self, ring: &EventRing, most: usize) -> (Vec<StreamEvent>, u64) {
        // The id of another process resumes at the first event of this one.
        let ours = ring.base..=ring.newest;
        let place = if ours.contains(&self.place) { self.place } else { ring.base };
        let oldest = ring.events.front().map_or(ring.newest + 1, |event| event.id);
        let missed = oldest.saturating_sub(place + 1);
        let mut events = Vec::new();
        let mut place = place;
        if missed > 0 {
            place = oldest - 1;
            let data = format!("{{\"missed\":{missed}}}").into();
            events.push(StreamEvent { id: place, kind: EventKind::Lagged, data });
        }
        let skip = usize::try_from(place + 1 - oldest).unwrap_or(usize::MAX);
        for event in ring.events.iter().skip(skip) {
            if events.len() >= most {
                break;
            }
            place = event.id;
            if self.kinds.want(event.kind) {
                events.push(event.clone());
            }
        }
        (events, place)
    }
}

impl Drop for EventSubscription {
    fn drop(&mut self) {
        let task_subscribers = usize::from(self.kinds.task);
        self.bus.with(|ring| {
            ring.subscribers -= 1;
            ring.task_subscribers -= task_subscribers;
        });
    }
}

impl fmt::Debug for EventSubscription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventSubscription").field("place", &self.place).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(events: &[StreamEvent]) -> Vec<u64> {
        events.iter().map(|event| event.id).collect()
    }

    #[tokio::test]
    async fn a_subscriber_gets_later_events_of_the_kinds_it_wants() {
        let bus = EventBus::new(0);
        bus.publish(EventKind::Figures, &1);
        let mut all = bus.subscribe(None, EventKinds::ALL);
        let mut some = bus.subscribe(None, EventKinds { task: false, ..EventKinds::ALL });
        bus.publish(EventKind::Task, &2);
        bus.publish(EventKind::Replica, &3);
        bus.wake();
        assert_eq!(ids(&all.next(10).await), [2, 3]);
        assert_eq!(ids(&some.next(10).await), [3]);
        let later = Moment(0).after(WATCHED_FOR);
        assert_eq!(bus.watched(Moment(0)), (true, true));
        drop(all);
        assert_eq!(bus.watched(Moment(later.0 - 1)), (true, true), "it may resume");
        assert_eq!(bus.watched(later), (true, false));
        bus.close();
        assert_eq!(some.next(10).await, []);
    }

    #[tokio::test]
    async fn a_resumed_subscriber_gets_the_missed_events_or_their_number() {
        let bus = EventBus::new(0);
        for n in 0..MAX_EVENTS + 5 {
            bus.publish(EventKind::Figures, &n);
        }
        let newest = MAX_EVENTS as u64 + 5;
        let mut late = bus.subscribe(Some(newest - 2), EventKinds::ALL);
        assert_eq!(ids(&late.next(10).await), [newest - 1, newest]);
        let mut later = bus.subscribe(Some(2), EventKinds::ALL);
        let events = later.next(3).await;
        assert_eq!((events[0].kind, &*events[0].data), (EventKind::Lagged, "{\"missed\":3}"));
        assert_eq!(ids(&events), [5, 6, 7]);
        assert_eq!(ids(&later.next(1).await), [8]);
    }

    #[tokio::test]
    async fn long_events_are_kept_up_to_a_limit_of_bytes() {
        let bus = EventBus::new(0);
        let long = "x".repeat(MAX_BYTES / 10);
        for _ in 0..100 {
            bus.publish(EventKind::Figures, &long);
        }
        let (kept, bytes) = bus.with(|ring| (ring.events.len(), ring.bytes));
        assert!(kept == 9 && bytes <= MAX_BYTES, "{kept} events of {bytes} bytes");
        let mut late = bus.subscribe(Some(1), EventKinds::ALL);
        assert_eq!(ids(&late.next(10).await).len(), 10, "these and the number of missed events");
    }

    #[tokio::test]
    async fn a_subscriber_of_an_earlier_process_resumes_at_the_first_event() {
        let bus = EventBus::new(0);
        bus.publish(EventKind::Figures, &1);
        let mut events = bus.subscribe(Some(77), EventKinds::ALL);
        assert_eq!(ids(&events.next(10).await), [1]);
    }

    #[tokio::test]
    async fn ids_of_an_earlier_process_mean_no_event_of_this_one() {
        let bus = EventBus::new(1_000);
        for n in 0..10 {
            bus.publish(EventKind::Figures, &n);
        }
        for former in [0, 4, 999, 5_000] {
            let mut events = bus.subscribe(Some(former), EventKinds::ALL);
            assert_eq!(ids(&events.next(1).await), [1_001], "after {former}");
        }
        let mut events = bus.subscribe(Some(1_004), EventKinds::ALL);
        assert_eq!(ids(&events.next(1).await), [1_005]);
    }
}
