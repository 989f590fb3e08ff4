//! The connection limit and its eviction.
//!
//! A connection that waits for its client (handshake, head, rest of a body, next request, reading
//! a response) costs the client nothing, so enough of them would lock everyone else out. At the
//! limit a waiting connection is evicted for a new one, in this order:
//!
//! 1. one without progress before an upload that makes progress,
//! 2. one of a client with many of them before others,
//! 3. an anonymous one before an authenticated one,
//! 4. the one that has waited longest.
//!
//! A connection with a complete, unanswered request is never evicted. While all places have one, a
//! new connection gets a place for probes: a supervisor must not take a full daemon for a dead one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use crate::task::Client;

/// Places beyond the limit. More than one, so that connections that are slow to send their request
/// do not take the place of a probe.
const PROBE_PLACES: usize = 32;

/// Bytes of a body that count as progress. Single bytes do not: they cost a client nothing.
pub(super) const PROGRESS_BYTES: usize = 16 * 1024;

/// A client that keeps more than one in this many places waiting has many.
const MANY: usize = 10;

#[derive(Debug)]
pub(super) struct ConnectionSlots(Mutex<Room>);

#[derive(Debug)]
struct Room {
    limit: usize,
    /// An upload makes progress if it receives [`PROGRESS_BYTES`] in this time.
    progress_pause: Duration,
    /// By number; `None` if free.
    places: Vec<Option<Place>>,
    free: Vec<usize>,
    /// Places in use, without the evicted ones.
    ordinary: usize,
    probes: usize,
    waiting: HashMap<Client, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Ordinary,
    /// Beyond the limit: only probes are answered.
    Probes,
}

#[derive(Debug)]
struct Place {
    client: Client,
    lane: Lane,
    /// The request is complete and not yet answered.
    busy: bool,
    /// The client does not read its response.
    stalled: bool,
    /// Chosen for eviction. Its connection closes soon and no longer counts.
    evicted: bool,
    authenticated: bool,
    uploading: bool,
    /// Last progress: the connection, an answer, or a part of a body.
    since: Instant,
    evict: Arc<Notify>,
}

impl Place {
    fn is_waiting(&self) -> bool {
        !self.evicted && (self.stalled || !self.busy)
    }

    fn is_uploading(&self, now: Instant, pause: Duration) -> bool {
        self.uploading && now.saturating_duration_since(self.since) < pause
    }
}

#[expect(clippy::disallowed_methods, reason = "virtual in tests: the runtime's clock")]
fn now() -> Instant {
    Instant::now()
}

impl ConnectionSlots {
    pub(super) fn new(limit: usize, progress_pause: Duration) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Room {
            limit,
            progress_pause,
            places: Vec::new(),
            free: Vec::new(),
            ordinary: 0,
            probes: 0,
            waiting: HashMap::new(),
        })))
    }

    /// A place for a new connection, another one is evicted for it if needed. `None` if even the
    /// places for probes are busy.
    pub(super) fn enter(self: &Arc<Self>, client: Client) -> Option<ConnectionSlot> {
        let mut room = self.room();
        let lane =
            [Lane::Ordinary, Lane::Probes].into_iter().find(|lane| room.make_room(*lane, 1))?;
        *room.count(lane) += 1;
        let number = room.free.pop().unwrap_or(room.places.len());
        let place = Place {
            client,
            lane,
            busy: true,
            stalled: false,
            evicted: false,
            authenticated: false,
            uploading: false,
            since: now(),
            evict: Arc::default(),
        };
        let evict = Arc::clone(&place.evict);
        match room.places.get_mut(number) {
            Some(free) => *free = Some(place),
            None => room.places.push(Some(place)),
        }
        room.change(number, |place| place.busy = false);
        drop(room);
        Some(ConnectionSlot { slots: Arc::clone(self), number, lane, evict })
    }

    /// Whether the next connection needs the place of another one.
    pub(super) fn is_full(&self) -> bool {
        let room = self.room();
        room.ordinary >= room.limit
    }

    /// Evicts a connection that waits, if there is one.
    pub(super) fn evict_one(&self) {
        self.room().evict(Lane::Ordinary);
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        // No holder can panic in the middle of a change.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn count(&mut self, lane: Lane) -> &mut usize {
        match lane {
            Lane::Ordinary => &mut self.ordinary,
            Lane::Probes => &mut self.probes,
        }
    }

    /// Whether the lane has room for `more`, by an eviction if needed.
    fn make_room(&mut self, lane: Lane, more: usize) -> bool {
        let limit = match lane {
            Lane::Ordinary => self.limit,
            Lane::Probes => PROBE_PLACES,
        };
        *self.count(lane) + more <= limit || self.evict(lane)
    }

    fn evict(&mut self, lane: Lane) -> bool {
        let (now, many) = (now(), self.limit / MANY);
        let large: Vec<_> =
            self.waiting.iter().filter(|(_, waiting)| **waiting > many).map(|(c, _)| c).collect();
        let places = self.places.iter().enumerate();
        let waiting = places
            .filter_map(|(number, place)| Some((number, place.as_ref()?)))
            .filter(|(_, place)| place.lane == lane && place.is_waiting());
        let victim = waiting.min_by_key(|(_, place)| {
            let is_large = large.contains(&&place.client);
            (
                place.is_uploading(now, self.progress_pause),
                !is_large,
                place.authenticated,
                place.since,
            )
        });
        let Some((number, place)) = victim else { return false };
        place.evict.notify_one();
        self.change(number, |place| place.evicted = true);
        *self.count(lane) -= 1;
        true
    }

    /// Changes a place and keeps the number of waiting connections of its client.
    fn change(&mut self, number: usize, change: impl FnOnce(&mut Place)) {
        let Some(place) = self.places.get_mut(number).and_then(Option::as_mut) else { return };
        let before = place.is_waiting();
        change(place);
        match (before, place.is_waiting()) {
            (false, true) => {
                place.since = now();
                *self.waiting.entry(place.client.clone()).or_default() += 1;
            }
            (true, false) => {
                if let Some(waiting) = self.waiting.get_mut(&place.client) {
                    *waiting -= 1;
                    if *waiting == 0 {
                        self.waiting.remove(&place.client);
                    }
                }
            }
            (false, false) | (true, true) => {}
        }
    }
}

/// The place of one connection, released on drop.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    number: usize,
    lane: Lane,
    evict: Arc<Notify>,
}

impl ConnectionSlot {
    pub(super) fn is_for_probes(&self) -> bool {
        self.lane == Lane::Probes
    }

    pub(super) fn waits(&self) {
        self.change(|place| place.busy = false);
    }

    /// The request is complete. If this connection was just chosen for eviction, it stays and
    /// another one is evicted instead.
    pub(super) fn busy(&self) {
        let mut room = self.slots.room();
        let mut stays = false;
        room.change(self.number, |place| {
            stays = std::mem::take(&mut place.evicted);
            (place.busy, place.uploading) = (true, false);
        });
        if stays {
            *room.count(self.lane) += 1;
            room.make_room(self.lane, 0);
        }
    }

    pub(super) fn stalls(&self) {
        self.change(|place| place.stalled = true);
    }

    pub(super) fn flows(&self) {
        self.change(|place| place.stalled = false);
    }

    /// Another [`PROGRESS_BYTES`] of a body are here.
    pub(super) fn progresses(&self) {
        self.change(|place| (place.uploading, place.since) = (true, now()));
    }

    pub(super) fn authenticated(&self) {
        self.change(|place| place.authenticated = true);
    }

    fn change(&self, change: impl FnOnce(&mut Place)) {
        self.slots.room().change(self.number, change);
    }

    /// Resolves when the connection must close for another one.
    pub(super) async fn evicted(&self) {
        loop {
            self.evict.notified().await;
            let room = self.slots.room();
            // It may have become busy since the notification.
            if room.places.get(self.number).and_then(Option::as_ref).is_some_and(|p| p.evicted) {
                return;
            }
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut room = self.slots.room();
        let mut held = false;
        room.change(self.number, |place| held = !std::mem::replace(&mut place.evicted, true));
        if held {
            *room.count(self.lane) -= 1;
        }
        if let Some(place) = room.places.get_mut(self.number) {
            *place = None;
            room.free.push(self.number);
        }
    }
}

#[cfg(test)]
mod tests;
