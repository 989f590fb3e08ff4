//! The connection limit and its eviction.
//!
//! A connection that waits for its client (handshake, head, rest of a body, next request, reading
//! a response) costs the client nothing, so enough of them would lock everyone else out. When all
//! slots are taken, the one that has waited longest is evicted. A connection with a complete,
//! unanswered request is never evicted.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

#[derive(Debug)]
pub(super) struct ConnectionSlots {
    permits: Arc<Semaphore>,
    evictable: Mutex<EvictionQueue>,
}

#[derive(Debug, Default)]
struct EvictionQueue {
    /// Increasing ticket: the smallest has waited longest. 0 is never issued.
    last_ticket: u64,
    by_ticket: BTreeMap<u64, Arc<Notify>>,
    /// A slot is needed and no connection was evictable.
    pending: bool,
}

impl EvictionQueue {
    fn evict_oldest(&mut self) {
        self.pending = match self.by_ticket.pop_first() {
            Some((_, evict)) => {
                evict.notify_one();
                false
            }
            None => true,
        };
    }
}

impl ConnectionSlots {
    pub(super) fn new(limit: usize) -> Arc<Self> {
        let permits = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
        Arc::new(Self { permits, evictable: Mutex::default() })
    }

    pub(super) fn try_acquire(self: &Arc<Self>) -> Option<ConnectionSlot> {
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        Some(self.slot(permit))
    }

    /// Acquires a slot, evicting another connection if needed.
    ///
    /// Cancel safe, but a connection may have been evicted for nothing.
    pub(super) async fn acquire(self: &Arc<Self>) -> Option<ConnectionSlot> {
        self.evict_oldest();
        let permit = Arc::clone(&self.permits).acquire_owned().await.ok()?;
        self.evictable().pending = false;
        Some(self.slot(permit))
    }

    /// Evicts the connection that has waited longest, or else the next one that starts to wait.
    pub(super) fn evict_oldest(&self) {
        self.evictable().evict_oldest();
    }

    fn slot(self: &Arc<Self>, permit: OwnedSemaphorePermit) -> ConnectionSlot {
        let state = Mutex::new(SlotState { ticket: 0, busy: true, stalled: false });
        let slots = Arc::clone(self);
        let slot = ConnectionSlot { slots, state, evict: Arc::default(), _permit: permit };
        slot.waits();
        slot
    }

    fn evictable(&self) -> MutexGuard<'_, EvictionQueue> {
        // No holder can panic in the middle of a change.
        self.evictable.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slot of one connection, released on drop.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    slots: Arc<ConnectionSlots>,
    /// Changed only while [`EvictionQueue`] is locked.
    state: Mutex<SlotState>,
    evict: Arc<Notify>,
    _permit: OwnedSemaphorePermit,
}

#[derive(Debug)]
struct SlotState {
    /// Its ticket in [`EvictionQueue`]; 0 while it is not evictable.
    ticket: u64,
    /// The request is complete and not yet answered.
    busy: bool,
    /// The client does not read its response.
    stalled: bool,
}

impl ConnectionSlot {
    pub(super) fn waits(&self) {
        self.change(|state| state.busy = false);
    }

    /// The request is complete. If this connection was just chosen for eviction, another one is
    /// evicted instead.
    pub(super) fn busy(&self) {
        self.change(|state| state.busy = true);
    }

    pub(super) fn stalls(&self) {
        self.change(|state| state.stalled = true);
    }

    pub(super) fn flows(&self) {
        self.change(|state| state.stalled = false);
    }

    fn change(&self, change: impl FnOnce(&mut SlotState)) {
        let mut queue = self.slots.evictable();
        let mut state = self.state();
        change(&mut state);
        match (state.ticket, state.stalled || !state.busy) {
            (0, true) => {
                queue.last_ticket += 1;
                state.ticket = queue.last_ticket;
                queue.by_ticket.insert(state.ticket, Arc::clone(&self.evict));
                if queue.pending {
                    queue.evict_oldest();
                }
            }
            (ticket, false) if ticket != 0 => {
                state.ticket = 0;
                if queue.by_ticket.remove(&ticket).is_none() {
                    queue.evict_oldest();
                }
            }
            _ => {}
        }
    }

    /// Resolves when the connection must close for another one.
    pub(super) async fn evicted(&self) {
        loop {
            self.evict.notified().await;
            let _queue = self.slots.evictable();
            // It may have become busy since the notification.
            if self.state().ticket != 0 {
                return;
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, SlotState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let ticket = self.state().ticket;
        self.slots.evictable().by_ticket.remove(&ticket);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn evicted(slot: &ConnectionSlot) -> bool {
        timeout(Duration::from_millis(20), slot.evicted()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn the_connection_that_has_waited_longest_is_evicted() {
        let slots = ConnectionSlots::new(3);
        let held: Vec<_> = (0..3).map(|_| slots.try_acquire().unwrap()).collect();
        assert!(slots.try_acquire().is_none());
        // The first has had a request since, the second has one now.
        held[0].busy();
        held[0].waits();
        held[1].busy();
        let next = tokio::spawn({
            let slots = Arc::clone(&slots);
            async move { slots.acquire().await.is_some() }
        });
        assert!(evicted(&held[2]).await);
        assert!(!evicted(&held[0]).await && !evicted(&held[1]).await);
        drop(held);
        assert!(next.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn while_all_are_busy_the_first_to_finish_is_evicted() {
        let slots = ConnectionSlots::new(1);
        let slot = slots.try_acquire().unwrap();
        slot.busy();
        let next = tokio::spawn({
            let slots = Arc::clone(&slots);
            async move { slots.acquire().await.is_some() }
        });
        assert!(!evicted(&slot).await);
        slot.waits();
        assert!(evicted(&slot).await);
        drop(slot);
        assert!(next.await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_its_response_is_evicted() {
        let slots = ConnectionSlots::new(2);
        let (reads, stalls) = (slots.try_acquire().unwrap(), slots.try_acquire().unwrap());
        reads.busy();
        stalls.busy();
        reads.stalls();
        reads.flows();
        stalls.stalls();
        slots.evict_oldest();
        assert!(!evicted(&reads).await && evicted(&stalls).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_arrives_during_eviction_is_served_and_another_is_evicted() {
        let slots = ConnectionSlots::new(2);
        let (first, second) = (slots.try_acquire().unwrap(), slots.try_acquire().unwrap());
        slots.evict_oldest();
        first.busy();
        assert!(!evicted(&first).await);
        assert!(evicted(&second).await);
    }
}
