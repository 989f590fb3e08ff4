//! The chain heads of a lane that are not in flight, and which of them is sent next.

use std::collections::BTreeMap;

use crate::engine::table::{Priority, Slot};
use crate::task::TaskId;

/// First attempts go before retries, and retries before dead letters. So that a steady stream of
/// one kind does not starve the others, each kind goes first in some of this many turns.
const TURNS: u32 = 16;

/// The chain heads of a lane that are not in flight, by stage and then by age.
#[derive(Debug, Default)]
pub(in crate::engine) struct Heads {
    /// By [`Priority`].
    ready: [BTreeMap<TaskId, Slot>; 5],
    waiting: BTreeMap<TaskId, Slot>,
    /// By client and age.
    parked: BTreeMap<(u32, TaskId), Slot>,
    deferred: usize,
    turn: u32,
}

impl Heads {
    pub(in crate::engine) fn enter_ready(&mut self, priority: Priority, id: TaskId, slot: Slot) {
        self.ready[priority as usize].insert(id, slot);
    }

    pub(in crate::engine) fn leave_ready(&mut self, priority: Priority, id: TaskId) {
        self.ready[priority as usize].remove(&id);
    }

    pub(in crate::engine) fn enter_waiting(&mut self, id: TaskId, slot: Slot) {
        self.waiting.insert(id, slot);
    }

    pub(in crate::engine) fn leave_waiting(&mut self, id: TaskId) {
        self.waiting.remove(&id);
    }

    pub(in crate::engine) fn enter_parked(&mut self, client: u32, id: TaskId, slot: Slot) {
        self.parked.insert((client, id), slot);
    }

    pub(in crate::engine) fn leave_parked(&mut self, client: u32, id: TaskId) {
        self.parked.remove(&(client, id));
    }

    pub(in crate::engine) fn enter_deferred(&mut self) {
        self.deferred += 1;
    }

    pub(in crate::engine) fn leave_deferred(&mut self) {
        self.deferred -= 1;
    }

    pub(in crate::engine) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Without deferred heads.
    pub(in crate::engine) fn parked(&self) -> usize {
        self.parked.len()
    }

    pub(in crate::engine) fn deferred(&self) -> usize {
        self.deferred
    }

    /// Redriven dead letters that have not been sent.
    pub(in crate::engine) fn redriven(&self) -> usize {
        self.ready[Priority::Redrive as usize].len()
    }

    pub(in crate::engine) fn oldest_waiting(&self) -> Option<Slot> {
        self.waiting.first_key_value().map(|(_, &slot)| slot)
    }

    /// The oldest parked delivery of each client.
    pub(in crate::engine) fn oldest_parked(&self) -> impl Iterator<Item = (u32, TaskId, Slot)> {
        let mut next = self.parked.first_key_value();
        std::iter::from_fn(move || {
            let (&(client, id), &slot) = next?;
            next = self.parked.range((client.saturating_add(1), TaskId(0))..).next();
            Some((client, id, slot))
        })
    }

    /// At most `most` of the heads that wait for a retry, and as many of the retries that are
    /// ready.
    pub(in crate::engine) fn retries(&self, most: usize) -> impl Iterator<Item = Slot> {
        let ready = self.ready[Priority::Retry as usize].values().take(most);
        self.waiting.values().take(most).chain(ready).copied()
    }

    /// The ready head that is sent first, whatever its kind.
    pub(in crate::engine) fn foremost(&self) -> Option<(Priority, Slot)> {
        self.first(&[
            Priority::Urgent,
            Priority::Fresh,
            Priority::Retry,
            Priority::Resend,
            Priority::Redrive,
        ])
    }

    /// The ready heads without dead letters, in the order of [`Self::foremost`].
    pub(in crate::engine) fn live(&self) -> impl Iterator<Item = (Priority, Slot)> {
        let kinds = [Priority::Urgent, Priority::Fresh, Priority::Retry, Priority::Resend];
        kinds.into_iter().flat_map(|priority| {
            self.ready[priority as usize].values().map(move |&slot| (priority, slot))
        })
    }

    pub(in crate::engine) fn first_urgent(&self) -> Option<(Priority, Slot)> {
        self.first(&[Priority::Urgent])
    }

    /// The head of the next turn, urgent ones left out. Dead letters only with `redrives`.
    pub(in crate::engine) fn take_turn(&mut self, redrives: bool) -> Option<(Priority, Slot)> {
        self.turn = (self.turn + 1) % TURNS;
        let kinds: &[Priority] = match self.turn {
            0 => &[Priority::Redrive, Priority::Resend, Priority::Retry, Priority::Fresh],
            4 | 12 => &[Priority::Retry, Priority::Fresh, Priority::Resend, Priority::Redrive],
            8 => &[Priority::Resend, Priority::Retry, Priority::Fresh, Priority::Redrive],
            _ => &[Priority::Fresh, Priority::Retry, Priority::Resend, Priority::Redrive],
        };
        let first = self.first(kinds);
        match first {
            Some((Priority::Redrive, _)) if !redrives => {
                self.first(&[Priority::Fresh, Priority::Retry, Priority::Resend])
            }
            first => first,
        }
    }

    fn first(&self, priorities: &[Priority]) -> Option<(Priority, Slot)> {
        priorities.iter().find_map(|&priority| {
            let (_, &slot) = self.ready[priority as usize].first_key_value()?;
            Some((priority, slot))
        })
    }
}
