//! A log that is full. A group that it refuses is taken back, and smaller ones follow, the first without
//! any row: its checkpoint may move the floor, so that the log can be purged.

use tokio::time::Instant;

use super::{GATHER, MAX_ROWS, Owned};
use crate::store::jetstream::checkpoint::OpenTask;
use crate::store::jetstream::standing::TaskSettlement;

/// What the group on its way has changed.
#[derive(Default)]
pub(super) struct GroupUndo {
    /// As they were, in the order of the changes.
    tasks: Vec<(u64, OpenTask)>,
    settlements: Vec<(u64, TaskSettlement)>,
}

impl Owned {
    /// Notes a task before a group changes it.
    pub(super) fn note(&mut self, id: u64, settlement: Option<TaskSettlement>) {
        if let Some(task) = self.unsettled.get(id) {
            self.undo.tasks.push((id, *task));
        }
        self.undo.settlements.extend(settlement.map(|settlement| (id, settlement)));
    }

    /// The log has no room for the group on its way. Returns whether it had room for those before.
    pub(in crate::store::jetstream) fn refused(&mut self) -> bool {
        let GroupUndo { tasks, settlements } = std::mem::take(&mut self.undo);
        for (id, task) in tasks.into_iter().rev() {
            self.unsettled.put_back(id, task);
        }
        self.unsettled.count_deliveries();
        for (id, settlement) in settlements {
            // Unless there is a newer one.
            self.pending.entry(id).or_insert(settlement);
        }
        if self.pending.is_empty() {
            self.grouped = self.came;
        } else {
            self.grouped = self.durable;
            self.pending_since.get_or_insert_with(Instant::now);
        }
        self.sent.clear();
        std::mem::replace(&mut self.most_rows, 0) == usize::MAX
    }

    /// A group is stored.
    pub(super) fn accepted(&mut self) {
        self.undo = GroupUndo::default();
        self.most_rows = self.most_rows.saturating_mul(2).max(1);
        self.not_before = (self.most_rows < MAX_ROWS).then(|| Instant::now() + GATHER);
    }
}
