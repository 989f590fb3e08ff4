//! Room for connections: a place each, and who gives up theirs when there is none.
//!
//! A connection that waits for its client (for a handshake, a head, the rest of a body, the next
//! request, or for it to read its answer) costs the client nothing, so that whoever opens enough of
//! them would keep everyone else out. When all places are taken, the one that has waited longest is
//! closed for the next. One whose request is whole and not yet answered is never closed for another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// All places.
#[derive(Debug)]
pub(super) struct Room {
    slots: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    /// Grows: the smallest has waited longest. 0 is never used.
    last: u64,
    ends: BTreeMap<u64, Arc<Notify>>,
    /// A place is wanted, and nobody waited who could give up theirs.
    wanted: bool,
}

impl Waiting {
    /// Asks the connection that has waited longest to end.
    fn want(&mut self) {
        self.wanted = match self.ends.pop_first() {
            Some((_, end)) => {
                end.notify_one();
                false
            }
            None => true,
        };
    }
}

impl Room {
    pub(super) fn new(places: usize) -> Arc<Self> {
        let slots = Arc::new(Semaphore::new(places.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { slots, waiting: Mutex::default() })
    }

    /// A place if there is one.
    pub(super) fn try_place(self: &Arc<Self>) -> Option<Place> {
        let slot = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        Some(self.placed(slot))
    }

    /// A place, for which another connection may have to end.
    ///
    /// # Cancel safety
    ///
    /// Nothing is taken; a connection may have ended for nothing.
    pub(super) async fn place(self: &Arc<Self>) -> Option<Place> {
        self.make_room();
        let slot = Arc::clone(&self.slots).acquire_owned().await.ok()?;
        self.waiting().wanted = false;
        Some(self.placed(slot))
    }

    /// Lets a connection end, the one that has waited longest.
    pub(super) fn make_room(&self) {
        self.waiting().want();
    }

    fn placed(self: &Arc<Self>, slot: OwnedSemaphorePermit) -> Place {
        let state = Mutex::new(State { at: 0, busy: true, stalled: false });
        let place = Place { room: Arc::clone(self), state, end: Arc::default(), _slot: slot };
        place.waits();
        place
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        // Nothing that holds it can panic halfway.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of one connection, free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    room: Arc<Room>,
    /// Changed under the lock of [`Waiting`] alone.
    state: Mutex<State>,
    end: Arc<Notify>,
    _slot: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct State {
    /// Since when it waits for its client, as [`Waiting`] counts; 0 while it does not.
    at: u64,
    /// The client has done its part, and has no answer yet.
    busy: bool,
    /// The client does not read what is written.
    stalled: bool,
}

impl Place {
    /// From now on the client is waited for.
    pub(super) fn waits(&self) {
        self.change(|state| state.busy = false);
    }

    /// The client has done its part: from now on it waits for us. If the connection was just asked
    /// to end, another one is.
    pub(super) fn busy(&self) {
        self.change(|state| state.busy = true);
    }

    /// The client is waited for to read.
    pub(super) fn stalls(&self) {
        self.change(|state| state.stalled = true);
    }

    /// It reads again.
    pub(super) fn flows(&self) {
        self.change(|state| state.stalled = false);
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        let mut waiting = self.room.waiting();
        let mut state = self.state();
        change(&mut state);
        match (state.at, state.stalled || !state.busy) {
            (0, true) => {
                waiting.last += 1;
                state.at = waiting.last;
                waiting.ends.insert(state.at, Arc::clone(&self.end));
                if waiting.wanted {
                    waiting.want();
                }
            }
            (at, false) if at != 0 => {
                state.at = 0;
                if waiting.ends.remove(&at).is_none() {
                    waiting.want();
                }
            }
            _ => {}
        }
    }

    /// Resolves when the connection has to end for another one.
    pub(super) async fn given_up(&self) {
        loop {
            self.end.notified().await;
            let _waiting = self.room.waiting();
            // It may have become busy since it was asked to.
            if self.state().at != 0 {
                return;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let at = self.state().at;
        self.room.waiting().ends.remove(&at);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn ends(place: &Place) -> bool {
        timeout(Duration::from_millis(20), place.given_up()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_one_that_has_waited_longest_gives_up_its_place() {
        let room = Room::new(3);
        let places: Vec<_> = (0..3).map(|_| room.try_place().unwrap()).collect();
        assert!(room.try_place().is_none());
        // The first has had a request since, the second has one now.
        places[0].busy();
        places[0].waits();
        places[1].busy();
        let next = tokio::spawn({
            let room = Arc::clone(&room);
            async move { room.place().await.is_some() }
        });
        assert!(ends(&places[2]).await);
        assert!(!ends(&places[0]).await && !ends(&places[1]).await);
        drop(places);
        assert!(next.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn while_all_are_busy_the_first_that_is_done_makes_room() {
        let room = Room::new(1);
        let place = room.try_place().unwrap();
        place.busy();
        let next = tokio::spawn({
            let room = Arc::clone(&room);
            async move { room.place().await.is_some() }
        });
        assert!(!ends(&place).await);
        place.waits();
        assert!(ends(&place).await);
        drop(place);
        assert!(next.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_does_not_read_its_answer_gives_up_its_place() {
        let room = Room::new(2);
        let (reads, stalls) = (room.try_place().unwrap(), room.try_place().unwrap());
        reads.busy();
        stalls.busy();
        reads.stalls();
        reads.flows();
        stalls.stalls();
        room.make_room();
        assert!(!ends(&reads).await && ends(&stalls).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_comes_just_then_is_served_and_another_one_ends() {
        let room = Room::new(2);
        let (first, second) = (room.try_place().unwrap(), room.try_place().unwrap());
        room.make_room();
        first.busy();
        assert!(!ends(&first).await);
        assert!(ends(&second).await);
    }
}
