//! The stream of events: what happens, for those who watch.
//!
//! The loop says what happened, once; every watcher reads on from its own place in a ring of the
//! last events. A watcher that is too slow, or comes back after too long, is told how many it has
//! missed; nobody waits for it. What nobody wants is not even put into words.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;

use crate::engine::Moment;

/// Events that are kept for those who come back.
const KEPT: usize = 8192;

/// As many bytes of them. The figures of a thousand replicas are 300 KiB, every second.
const KEPT_BYTES: usize = 16 << 20;

/// How long what happens is still put into words after the last watcher has gone.
const WATCHED_FOR: Duration = Duration::from_secs(60);

/// What an event is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A task or one of its deliveries.
    Task,
    /// A replica.
    Replica,
    /// How everything stands, once a second.
    Figures,
    /// The reader has missed some.
    Lagged,
}

impl EventKind {
    /// The name on the wire.
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

/// Which events someone wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventKinds {
    /// Of tasks; there are thousands a second under load.
    pub task: bool,
    /// Of replicas.
    pub replica: bool,
    /// The figures.
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

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// Its place in the order. A process begins where no former one has been.
    pub id: u64,
    /// What it is about.
    pub kind: EventKind,
    /// The rest, as JSON.
    pub data: Arc<str>,
}

/// Where the loop says what happens. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Bus {
    ring: Arc<Mutex<Ring>>,
    newest: Arc<watch::Sender<u64>>,
}

#[derive(Default)]
struct Ring {
    events: VecDeque<Event>,
    /// Of all of them together.
    bytes: usize,
    /// What is not above it is another process's id.
    base: u64,
    /// The id of the newest event; `base` before the first.
    newest: u64,
    /// Those who watch: all, and those who want to hear of tasks.
    watchers: usize,
    of_tasks: usize,
    /// Until when things are put into words for them.
    watched_until: Moment,
    tasks_watched_until: Moment,
    closed: bool,
}

impl Bus {
    /// The ids begin behind `base`. The time of the start in microseconds lets no process come to
    /// the ids of the next, and JavaScript can count so far.
    pub(crate) fn new(base: u64) -> Self {
        let ring = Ring { base, newest: base, ..Ring::default() };
        Self { ring: Arc::new(Mutex::new(ring)), newest: Arc::new(watch::Sender::new(base)) }
    }

    fn with<T>(&self, what: impl FnOnce(&mut Ring) -> T) -> T {
        // Whole between any two steps, whatever panicked while it was held.
        what(&mut self.ring.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether anyone watches, and whether anyone wants to hear of tasks; or did until a moment
    /// ago: a watcher that has been cut off comes back for what it has missed.
    pub(super) fn watched(&self, now: Moment) -> (bool, bool) {
        self.with(|ring| {
            let until = now.after(WATCHED_FOR);
            if ring.watchers > 0 {
                ring.watched_until = until;
            }
            if ring.of_tasks > 0 {
                ring.tasks_watched_until = until;
            }
            (now < ring.watched_until, now < ring.tasks_watched_until)
        })
    }

    /// Says what happened.
    pub(super) fn say(&self, kind: EventKind, what: &impl Serialize) {
        // Nothing that is said here can fail to be written.
        let data: Arc<str> = serde_json::to_string(what).unwrap_or_default().into();
        // The watchers are woken by `wake`, once for all that a turn of the loop has to say.
        self.with(|ring| {
            ring.newest += 1;
            ring.bytes += data.len();
            while ring.events.len() >= KEPT || ring.bytes > KEPT_BYTES {
                let Some(gone) = ring.events.pop_front() else { break };
                ring.bytes -= gone.data.len();
            }
            ring.events.push_back(Event { id: ring.newest, kind, data });
        });
    }

    /// Wakes the watchers if there is something new.
    pub(super) fn wake(&self) {
        let newest = self.with(|ring| ring.newest);
        self.newest.send_if_modified(|known| std::mem::replace(known, newest) != newest);
    }

    /// No more will be said.
    pub(super) fn close(&self) {
        self.with(|ring| ring.closed = true);
        self.newest.send_modify(|_| {});
    }

    /// Watches from now on, or from after an event that was seen before.
    pub(super) fn watch(&self, after: Option<u64>, kinds: EventKinds) -> Events {
        let place = self.with(|ring| {
            ring.watchers += 1;
            ring.of_tasks += usize::from(kinds.task);
            after.unwrap_or(ring.newest)
        });
        Events { bus: self.clone(), newest: self.newest.subscribe(), place, kinds }
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").finish_non_exhaustive()
    }
}

/// A watcher's place in the stream.
pub struct Events {
    bus: Bus,
    newest: watch::Receiver<u64>,
    /// The last event that was seen.
    place: u64,
    kinds: EventKinds,
}

impl Events {
    /// The next events, at least one and up to `most`; none when there will be no more.
    ///
    /// # Cancel safety
    ///
    /// Nothing is missed when it is dropped before it is done.
    pub async fn next(&mut self, most: usize) -> Vec<Event> {
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

    fn read(&self, ring: &Ring, most: usize) -> (Vec<Event>, u64) {
        // One that resumes from another process's count starts at the beginning of this one's.
        let ours = ring.base..=ring.newest;
        let place = if ours.contains(&self.place) { self.place } else { ring.base };
        let oldest = ring.events.front().map_or(ring.newest + 1, |event| event.id);
        let missed = oldest.saturating_sub(place + 1);
        let mut events = Vec::new();
        let mut place = place;
        if missed > 0 {
            place = oldest - 1;
            let data = format!("{{\"missed\":{missed}}}").into();
            events.push(Event { id: place, kind: EventKind::Lagged, data });
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

impl Drop for Events {
    fn drop(&mut self) {
        let of_tasks = usize::from(self.kinds.task);
        self.bus.with(|ring| {
            ring.watchers -= 1;
            ring.of_tasks -= of_tasks;
        });
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").field("place", &self.place).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(events: &[Event]) -> Vec<u64> {
        events.iter().map(|event| event.id).collect()
    }

    #[tokio::test]
    async fn a_watcher_sees_what_comes_after_it_and_only_what_it_wants() {
        let bus = Bus::new(0);
        bus.say(EventKind::Figures, &1);
        let mut all = bus.watch(None, EventKinds::ALL);
        let mut some = bus.watch(None, EventKinds { task: false, ..EventKinds::ALL });
        bus.say(EventKind::Task, &2);
        bus.say(EventKind::Replica, &3);
        bus.wake();
        assert_eq!(ids(&all.next(10).await), [2, 3]);
        assert_eq!(ids(&some.next(10).await), [3]);
        let later = Moment(0).after(WATCHED_FOR);
        assert_eq!(bus.watched(Moment(0)), (true, true));
        drop(all);
        assert_eq!(bus.watched(Moment(later.0 - 1)), (true, true), "it may come back");
        assert_eq!(bus.watched(later), (true, false));
        bus.close();
        assert_eq!(some.next(10).await, []);
    }

    #[tokio::test]
    async fn who_resumes_sees_what_it_missed_or_how_many() {
        let bus = Bus::new(0);
        for n in 0..KEPT + 5 {
            bus.say(EventKind::Figures, &n);
        }
        let newest = KEPT as u64 + 5;
        let mut late = bus.watch(Some(newest - 2), EventKinds::ALL);
        assert_eq!(ids(&late.next(10).await), [newest - 1, newest]);
        let mut later = bus.watch(Some(2), EventKinds::ALL);
        let events = later.next(3).await;
        assert_eq!((events[0].kind, &*events[0].data), (EventKind::Lagged, "{\"missed\":3}"));
        assert_eq!(ids(&events), [5, 6, 7]);
        assert_eq!(ids(&later.next(1).await), [8]);
    }

    #[tokio::test]
    async fn long_events_are_kept_up_to_so_many_bytes() {
        let bus = Bus::new(0);
        let long = "x".repeat(KEPT_BYTES / 10);
        for _ in 0..100 {
            bus.say(EventKind::Figures, &long);
        }
        let (kept, bytes) = bus.with(|ring| (ring.events.len(), ring.bytes));
        assert!(kept == 9 && bytes <= KEPT_BYTES, "{kept} events of {bytes} bytes");
        let mut late = bus.watch(Some(1), EventKinds::ALL);
        assert_eq!(ids(&late.next(10).await).len(), 10, "these, and how many were missed");
    }

    #[tokio::test]
    async fn who_resumes_from_a_former_process_starts_at_the_beginning() {
        let bus = Bus::new(0);
        bus.say(EventKind::Figures, &1);
        let mut events = bus.watch(Some(77), EventKinds::ALL);
        assert_eq!(ids(&events.next(10).await), [1]);
    }

    #[tokio::test]
    async fn the_ids_of_a_former_process_stand_for_nothing_of_this_one() {
        let bus = Bus::new(1_000);
        for n in 0..10 {
            bus.say(EventKind::Figures, &n);
        }
        for former in [0, 4, 999, 5_000] {
            let mut events = bus.watch(Some(former), EventKinds::ALL);
            assert_eq!(ids(&events.next(1).await), [1_001], "after {former}");
        }
        let mut events = bus.watch(Some(1_004), EventKinds::ALL);
        assert_eq!(ids(&events.next(1).await), [1_005]);
    }
}
