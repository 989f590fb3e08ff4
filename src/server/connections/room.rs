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
//! A connection with a complete, unanswered request is never evicted. While all places have one, or
//! all that a client may have, a new connection gets a place for probes: a supervisor must not take a
//! full daemon for a dead one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::share::SharedPool;
use crate::task::Client;

/// Places beyond the limit. More than one, so that connections that are slow to send their request
/// do not take the place of a probe.
const PROBE_PLACES: usize = 32;

/// Bytes of a body that count as progress. Single bytes do not: they cost a client nothing.
pub(super) const PROGRESS_BYTES: usize = 16 * 1024;

/// A client that keeps more than one in this many places waiting has many.
const MANY: usize = 10;

#[derive(Debug)]
pub(super) struct ConnectionSlots(Mutex<ConnectionTable>);

#[derive(Debug)]
struct ConnectionTable {
    limit: usize,
    /// An upload makes progress if it receives [`PROGRESS_BYTES`] in this time.
    progress_pause: Duration,
    /// By number; `None` if free.
    places: Vec<Option<Place>>,
    free: Vec<usize>,
    /// Places in use, without the evicted ones.
    ordinary: usize,
    probes: usize,
    clients: HashMap<Client, HeldPlaces>,
}

#[derive(Debug, Default)]
struct HeldPlaces {
    ordinary: usize,
    /// Those that wait for the client.
    waiting: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionLane {
    Ordinary,
    /// Beyond the limit: only probes are answered.
    Probes,
}

#[derive(Debug)]
struct Place {
    client: Client,
    lane: ConnectionLane,
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
        Arc::new(Self(Mutex::new(ConnectionTable {
            limit,
            progress_pause,
            places: Vec::new(),
            free: Vec::new(),
            ordinary: 0,
            probes: 0,
            clients: HashMap::new(),
        })))
    }

    /// A place for a new connection, another one is evicted for it if needed. `None` if even the
    /// places for probes are busy.
    pub(super) fn enter(self: &Arc<Self>, client: Client) -> Option<ConnectionSlot> {
        let mut room = self.room();
        let lane = if room.has_share(&client) {
            room.make_room(ConnectionLane::Ordinary, 1)
        } else {
            room.evict(ConnectionLane::Ordinary, Some(&client))
        };
        let lane = match lane {
            true => ConnectionLane::Ordinary,
            false if room.make_room(ConnectionLane::Probes, 1) => ConnectionLane::Probes,
            false => return None,
        };
        let number = room.free.pop().unwrap_or(room.places.len());
        let place = Place {
            client,
            lane,
            busy: true,
            stalled: false,
            // Counted when it changes.
            evicted: true,
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
        room.change(number, |place| (place.busy, place.evicted) = (false, false));
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
        self.room().evict(ConnectionLane::Ordinary, None);
    }

    fn room(&self) -> MutexGuard<'_, ConnectionTable> {
        self.0.lock()
    }
}

impl ConnectionTable {
    /// Whether a client may have another place, perhaps that of another client. Nine tenths are the
    /// most while there are others, so that one client whose requests all wait for the daemon locks
    /// no other out.
    fn has_share(&self, client: &Client) -> bool {
        let held = self.clients.get(client).map_or(0, |held| held.ordinary);
        let alone = self.clients.keys().all(|other| other == client);
        alone || SharedPool::new(self.limit, held).has_room_for(held as u64)
    }

    /// Whether the lane has room for `more`, by an eviction if needed.
    fn make_room(&mut self, lane: ConnectionLane, more: usize) -> bool {
        let (count, limit) = match lane {
            ConnectionLane::Ordinary => (self.ordinary, self.limit),
            ConnectionLane::Probes => (self.probes, PROBE_PLACES),
        };
        count + more <= limit || self.evict(lane, None)
    }

    /// Evicts a connection that waits, of one client or of any.
    fn evict(&mut self, lane: ConnectionLane, of: Option<&Client>) -> bool {
        let (now, many) = (now(), self.limit / MANY);
        let large = self.clients.iter().filter(|(_, held)| held.waiting > many);
        let large: Vec<_> = large.map(|(client, _)| client).collect();
        let places = self.places.iter().enumerate();
        let waiting = places
            .filter_map(|(number, place)| Some((number, place.as_ref()?)))
            .filter(|(_, place)| place.lane == lane && place.is_waiting())
            .filter(|(_, place)| of.is_none_or(|client| *client == place.client));
        let victim = waiting.min_by_key(|(_, place)| {
            let is_large = large.contains(&&place.client);
            let is_uploading = place.is_uploading(now, self.progress_pause);
            (is_uploading, !is_large, place.authenticated, place.since)
        });
        let Some((number, place)) = victim else { return false };
        place.evict.notify_one();
        self.change(number, |place| place.evicted = true);
        true
    }

    /// Changes a place, and the counts that depend on it.
    fn change(&mut self, number: usize, change: impl FnOnce(&mut Place)) {
        let Some(place) = self.places.get_mut(number).and_then(Option::as_mut) else { return };
        let before = (!place.evicted, place.is_waiting());
        change(place);
        let after = (!place.evicted, place.is_waiting());
        if before == after {
            return;
        }
        if !before.1 && after.1 {
            place.since = now();
        }
        let in_lane = match place.lane {
            ConnectionLane::Ordinary => &mut self.ordinary,
            ConnectionLane::Probes => &mut self.probes,
        };
        moved(in_lane, before.0, after.0);
        let held = self.clients.entry(place.client.clone()).or_default();
        if place.lane == ConnectionLane::Ordinary {
            moved(&mut held.ordinary, before.0, after.0);
        }
        moved(&mut held.waiting, before.1, after.1);
        if (held.ordinary, held.waiting) == (0, 0) {
            self.clients.remove(&place.client);
        }
    }
}

/// Counts one that was or is now among the counted.
fn moved(count: &mut usize, before: bool, after: bool) {
    *count = *count + usize::from(after) - usize::from(before);
}

/// The place of one connection, released on drop.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    number: usize,
    lane: ConnectionLane,
    evict: Arc<Notify>,
}

impl ConnectionSlot {
    pub(super) fn is_for_probes(&self) -> bool {
        self.lane == ConnectionLane::Probes
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
        room.change(self.number, |place| place.evicted = true);
        if let Some(place) = room.places.get_mut(self.number) {
            *place = None;
            room.free.push(self.number);
        }
    }
}

#[cfg(test)]
mod tests;
