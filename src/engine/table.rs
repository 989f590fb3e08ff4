//! The tasks in memory, about 140 bytes each.
//!
//! A million queued tasks must fit in memory. So there is no key, value or address here: a key is a
//! [`KeyId`], a node is a lane number, and what only failed deliveries need is boxed.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::ops::Bound::{Excluded, Unbounded};
use std::ops::{Index, IndexMut};
use std::sync::Arc;

use slab::Slab;
use smallvec::SmallVec;

use crate::engine::claims::Pool;
use crate::engine::counters::DeliveryOutcome;
use crate::engine::quorum::Quorum;
use crate::engine::{EndedSend, KeyId, Moment, RedriveOutcome, Since};
use crate::task::{Cause, DeadLetter, Partition, Progress, TaskId, Timestamp};

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

/// Valid until its task is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct DeliveryRef {
    pub(super) slot: Slot,
    pub(super) index: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TaskQueue {
    /// At least one delivery has not been tried yet.
    Eventual,
    Strong,
    /// Counts against none: every delivery has been tried, or the client has its answer.
    Outside,
}

impl TaskQueue {
    pub(super) fn pool(self) -> Option<Pool> {
        match self {
            Self::Eventual => Some(Pool::Queue),
            Self::Strong => Some(Pool::Strong),
            Self::Outside => None,
        }
    }
}

/// The places of a write that is being made durable. Return it with
/// [`crate::engine::Engine::arrive`] or [`crate::engine::Engine::cancel`].
#[derive(Debug)]
#[must_use = "its places are taken until it is given back"]
pub struct Reservation {
    pub(super) key: KeyId,
    pub(super) queue: TaskQueue,
    pub(super) bytes: u64,
    pub(super) client: u32,
    pub(super) lanes: SmallVec<[u32; 2]>,
    pub(super) made: Moment,
    pub(super) number: u64,
}

#[derive(Debug)]
pub(super) struct TaskEntry {
    pub(super) id: TaskId,
    pub(super) partition: Partition,
    pub(super) key: KeyId,
    pub(super) accepted_at: Timestamp,
    /// `accepted_at` by the monotonic clock.
    pub(super) since: Since,
    pub(super) bytes: u64,
    pub(super) client: u32,
    pub(super) queue: TaskQueue,
    pub(super) recovered: bool,
    pub(super) strong: bool,
    /// False while the commit of an early write is under way.
    pub(super) durable: bool,
    /// Its progress changed since the last save.
    pub(super) touched: bool,
    /// Only dead letters are left; its bytes are charged to their replicas.
    pub(super) charged_as_dead: bool,
    pub(super) quorum: Option<Box<Quorum>>,
    pub(super) deliveries: SmallVec<[Delivery; 2]>,
}

#[derive(Debug)]
pub(super) struct Delivery {
    pub(super) lane: u32,
    pub(super) next: Option<Slot>,
    pub(super) stage: Stage,
    pub(super) failures: Option<Box<DeliveryFailures>>,
}

#[derive(Clone, Debug)]
pub(super) struct DeliveryFailures {
    pub(super) count: u32,
    pub(super) error: Arc<str>,
    pub(super) since: Timestamp,
    /// An attempt that may still be applied: when it ended, and when it can no longer be applied.
    pub(super) ambiguous: Option<(Timestamp, Moment)>,
    /// The dead letter that it was; set when redriven.
    pub(super) letter: Option<RedrivenLetter>,
    /// Failures as a redriven letter while other deliveries to the replica succeeded.
    pub(super) lone: u8,
    /// The oldest write of the key that this one superseded, directly or through others. Barriers
    /// count this delivery in its place.
    pub(super) stands_for: Option<TaskId>,
    /// The operation that redrove it, until its outcome is known.
    pub(super) operation: Option<u32>,
    /// The last [`MAX_ATTEMPTS`] attempts: 40 bytes each, and their errors, which are shared in an
    /// outage. Not on disk.
    attempts: Vec<EndedSend>,
}

/// Attempts that are kept of a delivery that failed.
const MAX_ATTEMPTS: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RedrivenLetter {
    pub(super) cause: Cause,
    pub(super) since: Timestamp,
    pub(super) failures: u32,
}

impl DeliveryFailures {
    pub(super) fn new(count: u32, error: Arc<str>, since: Timestamp) -> Self {
        Self {
            count,
            error,
            since,
            ambiguous: None,
            letter: None,
            lone: 0,
            stands_for: None,
            operation: None,
            attempts: Vec::new(),
        }
    }
}

/// The stage of a delivery.
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
pub(super) enum Stage {
    /// Behind an older write of its key.
    Blocked,
    Ready(Priority),
    InFlight {
        /// What it was sent as. Urgent deliveries are outside the `workers` limit.
        priority: Priority,
        probe: bool,
        /// Discarded while in flight: it is not retried.
        discard: bool,
    },
    Waiting {
        until: Moment,
    },
    Parked {
        until: Moment,
    },
    /// Failed with a `Retry-After` beyond what the retry queue is for; parked at `until`.
    Deferred {
        until: Moment,
    },
    /// Outside the chain of its key.
    Dead {
        cause: Cause,
        until: Moment,
    },
    /// Delivered, and sent again at `until`: an older attempt may have been applied over it.
    Resend {
        until: Moment,
    },
    Settled(SettledAs),
}

impl Stage {
    /// Whether it is sent again unless a newer write of the key supersedes it. Such a delivery is
    /// always the only one in its chain.
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

    pub(super) fn is_pending(self) -> bool {
        self.outcome() == DeliveryOutcome::Pending
    }

    /// Whether it holds its task in the queue: no attempt has ended since acceptance or the start.
    /// A retry of a strong write whose client waits counts as well.
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

    /// Whether no timer or worker acts on it: settled or a dead letter.
    pub(super) fn is_at_rest(self) -> bool {
        matches!(self, Self::Settled(_)) || self.is_dead_letter()
    }

    pub(super) fn is_dead_letter(self) -> bool {
        matches!(self, Self::Parked { .. } | Self::Deferred { .. } | Self::Dead { .. })
    }

    /// The outcome of a redriven dead letter; `None` while it is on its way.
    pub(super) fn redrive_outcome(self) -> Option<RedriveOutcome> {
        match self.outcome() {
            _ if self.is_dead_letter() => Some(RedriveOutcome::Failed),
            DeliveryOutcome::Pending | DeliveryOutcome::Dead => None,
            DeliveryOutcome::Delivered => Some(RedriveOutcome::Delivered),
            DeliveryOutcome::Superseded => Some(RedriveOutcome::Superseded),
            DeliveryOutcome::Discarded => Some(RedriveOutcome::Discarded),
            DeliveryOutcome::Released => Some(RedriveOutcome::HandedOver),
        }
    }

    pub(super) fn outcome(self) -> DeliveryOutcome {
        match self {
            Self::Settled(SettledAs::Delivered)
            | Self::Resend { .. }
            | Self::Ready(Priority::Resend)
            | Self::InFlight { priority: Priority::Resend, .. } => DeliveryOutcome::Delivered,
            Self::Settled(SettledAs::Superseded) => DeliveryOutcome::Superseded,
            Self::Settled(SettledAs::Discarded) => DeliveryOutcome::Discarded,
            Self::Settled(SettledAs::Released) => DeliveryOutcome::Released,
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

/// What a delivery is sent as. Decides the order within a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Priority {
    Urgent,
    Fresh,
    Retry,
    /// Delivered before, and sent once more.
    Resend,
    Redrive,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SettledAs {
    Delivered,
    Superseded,
    Discarded,
    /// Its partition has another owner now.
    Released,
}

impl Delivery {
    pub(super) fn new(lane: u32) -> Self {
        Self { lane, next: None, stage: Stage::Blocked, failures: None }
    }

    pub(super) fn since(&self) -> Timestamp {
        self.failures.as_ref().map_or(Timestamp(0), |failures| failures.since)
    }

    /// The attempt that may still be applied: since when, and until when.
    pub(super) fn ambiguous(&self) -> Option<(Timestamp, Moment)> {
        self.failures.as_ref().and_then(|failures| failures.ambiguous)
    }

    /// Returns the previous ambiguous attempt.
    pub(super) fn set_ambiguous(
        &mut self,
        ambiguous: Option<(Timestamp, Moment)>,
    ) -> Option<(Timestamp, Moment)> {
        if self.failures.is_none() && ambiguous.is_none() {
            return None;
        }
        let since = ambiguous.map_or(Timestamp(0), |(since, _)| since);
        std::mem::replace(&mut self.failures_mut(since).ambiguous, ambiguous)
    }

    pub(super) fn failures_mut(&mut self, now: Timestamp) -> &mut DeliveryFailures {
        self.failures.get_or_insert_with(|| Box::new(DeliveryFailures::new(0, "".into(), now)))
    }

    pub(super) fn attempts(&self) -> &[EndedSend] {
        self.failures.as_ref().map_or(&[], |failures| &failures.attempts)
    }

    /// Keeps an attempt, unless none has failed yet.
    pub(super) fn note_attempt(&mut self, attempt: EndedSend) {
        if attempt.error.is_none() && self.attempts().is_empty() {
            return;
        }
        let attempts = &mut self.failures_mut(attempt.at).attempts;
        if attempts.len() == MAX_ATTEMPTS {
            attempts.remove(0);
        }
        attempts.reserve_exact(1);
        attempts.push(attempt);
    }

    pub(super) fn is_redriven(&self) -> bool {
        self.failures.as_ref().is_some_and(|failures| failures.letter.is_some())
    }

    /// Of a redriven dead letter.
    pub(super) fn letter_cause(&self) -> Option<Cause> {
        Some(self.failures.as_ref()?.letter?.cause)
    }

    pub(super) fn failure_count(&self) -> u32 {
        self.failures.as_ref().map_or(0, |failures| failures.count)
    }

    fn stands_for_another(&self) -> bool {
        self.failures.as_ref().is_some_and(|failures| failures.stands_for.is_some())
    }

    /// The oldest write that it stands for, by default itself.
    pub(super) fn origin(&self, id: TaskId) -> TaskId {
        let stands_for = self.failures.as_ref().and_then(|failures| failures.stands_for);
        stands_for.map_or(id, |older| older.min(id))
    }

    pub(super) fn progress(&self) -> Progress {
        let cause = match self.stage {
            Stage::Resend { .. }
            | Stage::Ready(Priority::Resend)
            | Stage::InFlight { priority: Priority::Resend, .. } => return Progress::Resend,
            Stage::Settled(_) | Stage::InFlight { discard: true, .. }
                if let Some((since, _)) = self.ambiguous() =>
            {
                return Progress::Ambiguous { since };
            }
            Stage::InFlight { discard: true, .. } => return Progress::Superseded,
            Stage::Settled(SettledAs::Delivered) => return Progress::Delivered,
            // Also a discarded dead letter.
            Stage::Settled(_) => return Progress::Superseded,
            Stage::Dead { cause, .. } => Some(cause),
            Stage::Parked { .. } | Stage::Deferred { .. } => Some(Cause::RetryOverflow),
            // It stays a dead letter on disk until it has an outcome.
            Stage::Ready(Priority::Redrive)
            | Stage::InFlight { priority: Priority::Redrive, .. } => self.letter_cause(),
            Stage::Waiting { .. } if self.failure_count() == 0 => self.letter_cause(),
            Stage::Blocked | Stage::Ready(_) | Stage::InFlight { .. } | Stage::Waiting { .. } => {
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

impl TaskEntry {
    pub(super) fn origin(&self, index: usize) -> TaskId {
        self.deliveries.get(index).map_or(self.id, |delivery| delivery.origin(self.id))
    }
}

#[derive(Debug, Default)]
pub(super) struct Tasks {
    entries: Slab<TaskEntry>,
    slots: BTreeMap<TaskId, Slot>,
}

impl Tasks {
    pub(super) fn insert(&mut self, entry: TaskEntry) -> Slot {
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

    /// The delivery over `lane`. A task has at most one per lane.
    pub(super) fn delivery_on(&self, slot: Slot, lane: u32) -> DeliveryRef {
        let deliveries = &self[slot].deliveries;
        let index = deliveries.iter().position(|delivery| delivery.lane == lane);
        DeliveryRef { slot, index: index.unwrap_or_default() }
    }

    pub(super) fn get(&self, at: DeliveryRef) -> Option<&Delivery> {
        self[at.slot].deliveries.get(at.index)
    }

    /// Oldest first.
    pub(super) fn after(&self, id: Option<TaskId>) -> impl Iterator<Item = (TaskId, Slot)> {
        let from = id.map_or(Unbounded, Excluded);
        self.slots.range((from, Unbounded)).map(|(&id, &slot)| (id, slot))
    }

    pub(super) fn newest(&self) -> Option<TaskId> {
        self.slots.last_key_value().map(|(&id, _)| id)
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn iter(&self) -> impl Iterator<Item = &TaskEntry> {
        self.entries.iter().map(|(_, entry)| entry)
    }
}

impl Index<Slot> for Tasks {
    type Output = TaskEntry;

    fn index(&self, slot: Slot) -> &TaskEntry {
        &self.entries[slot.index()]
    }
}

impl IndexMut<Slot> for Tasks {
    fn index_mut(&mut self, slot: Slot) -> &mut TaskEntry {
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
        assert!(size_of::<TaskEntry>() <= 152, "{}", size_of::<TaskEntry>());
    }
}
