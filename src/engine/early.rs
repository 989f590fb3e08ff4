//! Early writes: strong writes that are sent while they are being made durable.
//!
//! A crash can lose a write that some replicas already have. So nothing older of its key may be sent
//! to them after the crash: nothing older may be on disk. A write is early only if, for its key,
//!
//! - no other write is reserved: it could be an older one that is being made durable;
//! - no delivery to its replicas is pending, dead or ambiguous;
//! - every settlement is durable, as the journal reports it.
//!
//! Newer writes of the key do not matter: they are durable after it, and behind it in its chains.
//!
//! The client of an early write is answered when the write is durable, or when all its replicas have
//! acknowledged it. If they have before the commit begins, it is removed before it is stored.
//!
//! **After a crash**, attempts of lost early writes may still be applied, over newer writes. So for
//! `settle_after`, every delivered write is sent again (`ambiguous.rs`), and none is early.

use std::collections::{HashMap, VecDeque};

use crate::engine::table::{Reservation, TaskQueue};
use crate::engine::{Engine, KeyId, Moment, Now};
use crate::task::TaskId;

/// The reservation of a write that may be sent early.
///
/// It stays clear: every write that is reserved after it is newer.
#[derive(Debug)]
#[must_use = "its places are taken until it is given back"]
pub struct ClearReservation(pub(super) Reservation);

impl From<ClearReservation> for Reservation {
    fn from(ClearReservation(reservation): ClearReservation) -> Self {
        reservation
    }
}

/// The settlements of this process, in the order of the actions.
#[derive(Debug, Default)]
pub(super) struct Settlements {
    made: u64,
    /// `None` before the first report of the journal.
    tracked: Option<Tracked>,
}

#[derive(Debug)]
struct Tracked {
    /// Settlements up to this one are not in `keys`.
    since: u64,
    durable: u64,
    /// The last settlement of each key that is not durable.
    keys: HashMap<KeyId, u64>,
    order: VecDeque<(u64, KeyId)>,
}

impl Settlements {
    /// A task of this key is saved or removed.
    pub(super) fn note(&mut self, key: KeyId) {
        self.made += 1;
        if let Some(tracked) = &mut self.tracked {
            tracked.keys.insert(key, self.made);
            tracked.order.push_back((self.made, key));
        }
    }

    fn durable(&mut self, through: u64) {
        let (keys, order) = (HashMap::new(), VecDeque::new());
        let new = Tracked { since: self.made, durable: through, keys, order };
        let tracked = self.tracked.get_or_insert(new);
        tracked.durable = through;
        while let Some(&(number, key)) = tracked.order.front().filter(|next| next.0 <= through) {
            tracked.order.pop_front();
            if tracked.keys.get(&key) == Some(&number) {
                tracked.keys.remove(&key);
            }
        }
    }

    /// Whether all settlements of the key are durable.
    fn are_durable(&self, key: KeyId) -> bool {
        self.tracked.as_ref().is_some_and(|tracked| {
            tracked.durable >= tracked.since && !tracked.keys.contains_key(&key)
        })
    }
}

impl Engine {
    /// The journal has made the first `through` settlements durable. Without such reports no write is
    /// early.
    pub fn settled(&mut self, through: u64) {
        self.settlements.durable(through);
    }

    /// The last process was not closed, and may have sent early writes that are not on disk.
    pub fn expect_unrecorded(&mut self, now: Now) {
        self.unrecorded_until = now.moment.after(self.settings.settle_after);
    }

    /// Whether the write of this reservation may be sent before it is durable.
    pub fn clear(
        &self,
        now: Now,
        reservation: Reservation,
    ) -> Result<ClearReservation, Reservation> {
        if self.is_clear(now.moment, &reservation) {
            Ok(ClearReservation(reservation))
        } else {
            Err(reservation)
        }
    }

    fn is_clear(&self, now: Moment, reservation: &Reservation) -> bool {
        let key = reservation.key;
        reservation.queue == TaskQueue::Strong
            && self.coming.get(&key) == Some(&1)
            && self.settlements.are_durable(key)
            && now >= self.unrecorded_until
            && self.released.is_empty()
            && reservation.lanes.iter().all(|&number| {
                let lane = &self.lanes[number];
                lane.recorded
                    && !lane.chains.contains_key(&key)
                    && lane.letters.of_key(key).is_none()
                    && !lane.ambiguous.has(key)
            })
    }

    /// An early write is durable.
    pub fn committed(&mut self, now: Now, id: TaskId) {
        self.now = now;
        if let Some(slot) = self.tasks.find(id) {
            self.tasks[slot].durable = true;
            self.conclude(slot);
            self.finish();
        }
    }
}
