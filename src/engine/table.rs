//! The tasks in memory: what the engine remembers of each, in about 140 bytes.
//!
//! A million queued tasks must fit in memory, so there is neither key nor value nor address in
//! here: a key is a [`KeyId`], a node is the number of its lane, and what only a failed delivery
//! needs is boxed.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Bound::{Excluded, Unbounded};
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use slab::Slab;
use smallvec::SmallVec;

use crate::engine::counters::DeliveryOutcome;
use crate::engine::quorum::Quorum;
use crate::engine::{KeyId, Moment, Since};
use crate::task::{Cause, DeadLetter, Partition, Progress, TaskId, Timestamp};

/// Where a task lies in memory. Valid until the task leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Slot(NonZeroU32);

impl Slot {
    fn new(index: usize) -> Self {
        let number = u32::try_from(index).ok().and_then(|n| n.checked_add(1));
        Self(number.and_then(NonZeroU32::new).unwrap_or(NonZeroU32::MAX))
    }

    fn index(self) -> usize {
        self.0.get() as usize - 1
    }
}

/// Where a delivery lies in memory. Valid until its task leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeliveryRef {
    pub(super) slot: Slot,
    /// Its place in [`Entry::deliveries`].
    pub(super) index: usize,
}

/// Which capacity a task counts against. The last counts against none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Queue {
    /// A delivery of it has not been tried yet.
    Eventual,
    /// A strong write whose client waits for the answer.
    Strong,
    /// Each of its deliveries has been tried, or its client has its answer: counts nowhere.
    Outside,
}

/// The places of a write that is on its way to the disk. It goes back to the engine, by
/// [`crate::engine::Engine::arrive`] or [`crate::engine::Engine::cancel`].
#[derive(Debug)]
#[must_use = "its places are taken until it is given back"]
pub struct Reservation {
    pub(super) queue: Queue,
    pub(super) bytes: u64,
    /// Those of its replicas, in their order.
    pub(super) lanes: SmallVec<[u32; 2]>,
    pub(super) made: Moment,
    /// Grows with each.
    pub(super) number: u64,
}

/// What is known of a task.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: TaskId,
    pub(super) partition: Partition,
    pub(super) key: KeyId,
    pub(super) accepted_at: Timestamp,
    /// The same by a clock that nobody sets.
    pub(super) since: Since,
    /// What it is charged for, on disk.
    pub(super) bytes: u64,
    pub(super) queue: Queue,
    /// It was found at the start.
    pub(super) recovered: bool,
    /// It was accepted as a strong write.
    pub(super) strong: bool,
    /// Its progress has changed since it was last handed out to be saved.
    pub(super) touched: bool,
    /// All that is left of it are dead letters: it is charged as such, to their replicas.
    pub(super) charged_as_dead: bool,
    /// The strong write's open question.
    pub(super) quorum: Option<Box<Quorum>>,
    /// Its deliveries, in the order of the task's replicas.
    pub(super) deliveries: SmallVec<[Delivery; 2]>,
}

/// A delivery: where it goes, how it stands, and who is next in the chain of its key.
#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) lane: u32,
    pub(super) next: Option<Slot>,
    pub(super) state: State,
    pub(super) failures: Option<Box<DeliveryFailures>>,
}

/// The failures of a delivery.
#[derive(Clone, Debug)]
pub(super) struct DeliveryFailures {
    pub(super) count: u32,
    pub(super) error: Arc<str>,
    /// When the last one was.
    pub(super) since: Timestamp,
    /// One that may still be applied: when it ended, and when that is over.
    pub(super) ambiguous: Option<(Timestamp, Moment)>,
    /// It was a dead letter before: since when, and after how many failures.
    pub(super) letter: Option<(Timestamp, u32)>,
    /// How often it failed as one that was redriven, just after others had not.
    pub(super) alone: u8,
    /// The oldest write of the key that this one stands for: one that it superseded, or that was
    /// superseded by one that it superseded. Barriers count it as if it were that one.
    pub(super) stands_for: Option<TaskId>,
}

impl DeliveryFailures {
    pub(super) fn new(count: u32, error: Arc<str>, since: Timestamp) -> Self {
        Self { count, error, since, ambiguous: None, letter: None, alone: 0, stands_for: None }
    }
}

/// How a delivery stands.
///
/// ```text
///            head of                      a place
///            its chain                    is free
///  Blocked ───────────────────────► Ready ───────► InFlight ──────────────► Settled
///     │                             ▲ ▲ ▲            │ │ failed                ▲
///     │                        due  │ │ │ due        │ ▼                       │
///     │                             │ │ └─────── Waiting ◄─────┐ a place       │
///     │                             │ │              │ │   no place, paused    │
///     │                             │ │              │ ├─────► Parked ─────────┤
///     │                             │ │              │ │          ▲ due        │
///     │                             │ │              │ └────► Deferred ────────┤
///     │                             │ │ redriven     ▼ rejected or given up    │
///     │                             │ └─────────── Dead ───────────────────────┤
///     └─────────────────────────────┴─ superseded by a newer write, discarded ─┘
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Behind an older write of its key.
    Blocked,
    /// May be sent as soon as there is a place.
    Ready(Priority),
    /// On the wire.
    InFlight {
        /// What it was sent as. An urgent one is outside of the `workers` limit.
        priority: Priority,
        /// It is the one that shows how the replica is.
        probe: bool,
        /// An operator has thrown it away meanwhile: it is not tried again.
        discard: bool,
    },
    /// Failed; tried again at `until`.
    Waiting {
        /// When it is due.
        until: Moment,
    },
    /// Failed, without a place in the retry queue.
    Parked {
        /// When it would have been due.
        until: Moment,
    },
    /// Failed, and its replica asked for a longer wait than the retry queue is for. Parked when
    /// that is over.
    Deferred {
        /// When that is.
        until: Moment,
    },
    /// A dead letter: no part of the chain of its key any more.
    Dead {
        /// Rejected or given up.
        cause: Cause,
        /// When it is discarded.
        until: Moment,
    },
    /// Delivered, and sent once more at `until`: an attempt of an older write may have been applied
    /// over it.
    Resend {
        /// When it is due.
        until: Moment,
    },
    /// Over.
    Settled(Settlement),
}

impl State {
    /// Whether it is to be sent again, which a newer write of the key makes pointless. Such a delivery is always the only one in its chain.
    pub(super) fn awaits_retry(self) -> bool {
        matches!(
            self,
            Self::Waiting { .. }
                | Self::Parked { .. }
                | Self::Deferred { .. }
                | Self::Resend { .. }
                | Self::Ready(Priority::Retry | Priority::Redrive | Priority::Resend)
        )
    }

    /// Whether it is on its way, in the chain of its key.
    pub(super) fn is_pending(self) -> bool {
        self.outcome() == DeliveryOutcome::Pending
    }

    /// Whether no attempt of it has ended since it was accepted, or since the start: it holds its
    /// task in the queue. A retry of a strong write whose client waits counts as well.
    pub(super) fn holds_queue(self) -> bool {
        matches!(
            self,
            Self::Blocked
                | Self::Ready(Priority::Urgent | Priority::Fresh)
                | Self::InFlight { priority: Priority::Urgent | Priority::Fresh, .. }
        )
    }

    /// Whether it has a place in the retry queue: from the failure to the end of the retry.
    pub(super) fn holds_retry_place(self) -> bool {
        matches!(
            self,
            Self::Waiting { .. }
                | Self::Ready(Priority::Retry)
                | Self::InFlight { priority: Priority::Retry, .. }
        )
    }

    /// Whether nothing is done for it until something happens: over, or lying on disk.
    pub(super) fn rests(self) -> bool {
        matches!(self, Self::Settled(_)) || self.is_dead_letter()
    }

    /// Whether it is a dead letter, a parked one included.
    pub(super) fn is_dead_letter(self) -> bool {
        matches!(self, Self::Parked { .. } | Self::Deferred { .. } | Self::Dead { .. })
    }

    pub(super) fn outcome(self) -> DeliveryOutcome {
        match self {
            Self::Settled(Settlement::Delivered)
            | Self::Resend { .. }
            | Self::Ready(Priority::Resend)
            | Self::InFlight { priority: Priority::Resend, .. } => DeliveryOutcome::Delivered,
            Self::Settled(Settlement::Superseded) => DeliveryOutcome::Superseded,
            Self::Settled(Settlement::Discarded) => DeliveryOutcome::Discarded,
            Self::Settled(Settlement::Released) => DeliveryOutcome::Released,
            Self::Dead { .. } => DeliveryOutcome::Dead,
            Self::Blocked
            | Self::Ready(_)
            | Self::InFlight { .. }
            | Self::Waiting { .. }
            | Self::Parked { .. }
            | Self::Deferred { .. } => DeliveryOutcome::Pending,
        }
    }
}

/// What a delivery is sent as, which says who goes first in a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    /// A strong write: its client waits.
    Urgent,
    /// A first attempt.
    Fresh,
    /// A retry.
    Retry,
    /// One that was delivered before and is sent once more.
    Resend,
    /// A dead letter, made ready again.
    Redrive,
}

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settlement {
    Delivered,
    Superseded,
    Discarded,
    /// Its partition has another owner now.
    Released,
}

impl Delivery {
    pub(super) fn new(lane: u32) -> Self {
        Self { lane, next: None, state: State::Blocked, failures: None }
    }

    /// When its last attempt failed.
    pub(super) fn since(&self) -> Timestamp {
        self.failures.as_ref().map_or(Timestamp(0), |failures| failures.since)
    }

    /// Whether an attempt of it may still be applied: since when, and until when.
    pub(super) fn ambiguous(&self) -> Option<(Timestamp, Moment)> {
        self.failures.as_ref().and_then(|failures| failures.ambiguous)
    }

    /// Returns the ambiguous attempt that there was before.
    pub(super) fn set_ambiguous(
        &mut self,
        ambiguous: Option<(Timestamp, Moment)>,
    ) -> Option<(Timestamp, Moment)> {
        match &mut self.failures {
            Some(failures) => std::mem::replace(&mut failures.ambiguous, ambiguous),
            None if ambiguous.is_none() => None,
            None => {
                let since = ambiguous.map_or(Timestamp(0), |(since, _)| since);
                let failures =
                    DeliveryFailures { ambiguous, ..DeliveryFailures::new(0, "".into(), since) };
                self.failures = Some(Box::new(failures));
                None
            }
        }
    }

    /// Whether it was a dead letter before.
    pub(super) fn is_redriven(&self) -> bool {
        self.failures.as_ref().is_some_and(|failures| failures.letter.is_some())
    }

    pub(super) fn failure_count(&self) -> u32 {
        self.failures.as_ref().map_or(0, |failures| failures.count)
    }

    fn stands_for_another(&self) -> bool {
        self.failures.as_ref().is_some_and(|failures| failures.stands_for.is_some())
    }

    /// The oldest write that it stands for, which is itself for most.
    pub(super) fn origin(&self, id: TaskId) -> TaskId {
        let stands_for = self.failures.as_ref().and_then(|failures| failures.stands_for);
        stands_for.map_or(id, |older| older.min(id))
    }

    /// What of it is to survive a restart.
    pub(super) fn progress(&self) -> Progress {
        let cause = match self.state {
            State::Resend { .. }
            | State::Ready(Priority::Resend)
            | State::InFlight { priority: Priority::Resend, .. } => return Progress::Resend,
            // Nothing is left to send of one that is thrown away when its attempt ends, either.
            State::Settled(_) | State::InFlight { discard: true, .. }
                if let Some((since, _)) = self.ambiguous() =>
            {
                return Progress::Ambiguous { since };
            }
            State::InFlight { discard: true, .. } => return Progress::Superseded,
            State::Settled(Settlement::Delivered) => return Progress::Delivered,
            // Of a dead letter that was discarded as well: there is nothing left to send.
            State::Settled(_) => return Progress::Superseded,
            State::Dead { cause, .. } => Some(cause),
            State::Parked { .. } | State::Deferred { .. } => Some(Cause::RetryOverflow),
            // On disk it stays a dead letter until something has come of it.
            State::Ready(Priority::Redrive)
            | State::InFlight { priority: Priority::Redrive, .. } => Some(Cause::GaveUp),
            State::Waiting { .. } if self.failure_count() == 0 && self.is_redriven() => {
                Some(Cause::GaveUp)
            }
            State::Blocked | State::Ready(_) | State::InFlight { .. } | State::Waiting { .. } => {
                None
            }
        };
        let (failures, error, since) = match &self.failures {
            Some(failures) => (failures.count, failures.error.clone(), failures.since),
            None => (0, Arc::from(""), Timestamp(0)),
        };
        match cause {
            Some(cause) => Progress::Dead(DeadLetter { cause, failures, error, since }),
            None if failures > 0 || self.stands_for_another() => {
                Progress::Failed { failures, error }
            }
            None => Progress::Untouched,
        }
    }
}

impl Entry {
    /// The oldest write that a delivery stands for.
    pub(super) fn origin(&self, index: usize) -> TaskId {
        self.deliveries.get(index).map_or(self.id, |delivery| delivery.origin(self.id))
    }
}

/// All tasks that are not over.
#[derive(Debug, Default)]
pub(super) struct Tasks {
    entries: Slab<Entry>,
    slots: BTreeMap<TaskId, Slot>,
}

impl Tasks {
    pub(super) fn insert(&mut self, entry: Entry) -> Slot {
        let id = entry.id;
        let slot = Slot::new(self.entries.insert(entry));
        self.slots.insert(id, slot);
        slot
    }

    pub(super) fn remove(&mut self, slot: Slot) {
        let entry = self.entries.remove(slot.index());
        self.slots.remove(&entry.id);
    }

    pub(super) fn find(&self, id: TaskId) -> Option<Slot> {
        self.slots.get(&id).copied()
    }

    /// The delivery of a task that goes over `lane`. A task has at most one for a lane.
    pub(super) fn delivery_on(&self, slot: Slot, lane: u32) -> DeliveryRef {
        let deliveries = &self[slot].deliveries;
        let index = deliveries.iter().position(|delivery| delivery.lane == lane);
        DeliveryRef { slot, index: index.unwrap_or_default() }
    }

    pub(super) fn get(&self, at: DeliveryRef) -> Option<&Delivery> {
        self[at.slot].deliveries.get(at.index)
    }

    /// The tasks after `id`, by age.
    pub(super) fn after(&self, id: Option<TaskId>) -> impl Iterator<Item = (TaskId, Slot)> {
        let from = id.map_or(Unbounded, Excluded);
        self.slots.range((from, Unbounded)).map(|(&id, &slot)| (id, slot))
    }

    /// The newest of all.
    pub(super) fn newest(&self) -> Option<TaskId> {
        self.slots.last_key_value().map(|(&id, _)| id)
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().map(|(_, entry)| entry)
    }
}

impl Index<Slot> for Tasks {
    type Output = Entry;

    fn index(&self, slot: Slot) -> &Entry {
        &self.entries[slot.index()]
    }
}

impl IndexMut<Slot> for Tasks {
    fn index_mut(&mut self, slot: Slot) -> &mut Entry {
        &mut self.entries[slot.index()]
    }
}

impl Index<DeliveryRef> for Tasks {
    type Output = Delivery;

    fn index(&self, at: DeliveryRef) -> &Delivery {
        &self[at.slot].deliveries[at.index]
    }
}

impl IndexMut<DeliveryRef> for Tasks {
    fn index_mut(&mut self, at: DeliveryRef) -> &mut Delivery {
        &mut self[at.slot].deliveries[at.index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_for_two_replicas_is_small() {
        assert!(size_of::<Delivery>() <= 32, "{}", size_of::<Delivery>());
        assert!(size_of::<Entry>() <= 144, "{}", size_of::<Entry>());
    }
}
