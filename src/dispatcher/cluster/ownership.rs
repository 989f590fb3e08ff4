//! The partitions that this process owns. An answer says for which of them it is.

use std::collections::BTreeMap;

use crate::dispatcher::Core;
use crate::task::{Partition, TaskId};

/// A partition that is owned. Another claim of it has another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(in crate::dispatcher) partition: Partition,
    number: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Ownership {
    claims: u64,
    owned: BTreeMap<Partition, OwnedPartition>,
}

#[derive(Debug)]
struct OwnedPartition {
    number: u64,
    /// All its unsettled tasks up to this id are in the engine; `None` until the claim is whole.
    through: Option<TaskId>,
}

impl Ownership {
    /// The first, or a later part of a claim.
    pub(in crate::dispatcher) fn claimed(&mut self, partition: Partition) {
        self.owned.entry(partition).or_insert_with(|| {
            self.claims += 1;
            OwnedPartition { number: self.claims, through: None }
        });
    }

    pub(in crate::dispatcher) fn caught_up(&mut self, partition: Partition, through: TaskId) {
        if let Some(owned) = self.owned.get_mut(&partition) {
            owned.through = owned.through.max(Some(through));
        }
    }

    pub(in crate::dispatcher) fn released(&mut self, partition: Partition) {
        self.owned.remove(&partition);
    }

    /// Those whose tasks are all in the engine.
    pub(in crate::dispatcher) fn claims(&self) -> Vec<Claim> {
        let whole = self.owned.iter().filter(|(_, owned)| owned.through.is_some());
        whole.map(|(&partition, owned)| Claim { partition, number: owned.number }).collect()
    }

    fn through(&self, partition: Partition) -> Option<TaskId> {
        self.owned.get(&partition)?.through
    }
}

impl Core {
    /// Whether this task is known here if it was accepted and its partition is owned. The journal is
    /// asked how far it is.
    pub(in crate::dispatcher) fn has_read(&self, id: TaskId) -> bool {
        if self.engine.view(id).is_some() || self.observed.history.get(id).is_some() {
            return true;
        }
        let partition = self.journal.partition_of(id);
        match self.ownership.through(partition) {
            Some(through) if through < id => {
                self.journal.report_caught_up(partition);
                false
            }
            _ => true,
        }
    }

    /// The partitions that are owned and whose tasks up to `last`, one for each partition, are in the
    /// engine. The journal is asked how far the others are.
    pub(in crate::dispatcher) fn caught_up(&self, last: &[TaskId]) -> Vec<Partition> {
        let mut partitions = Vec::new();
        for (partition, &last) in (0..).map(Partition).zip(last) {
            match self.ownership.through(partition) {
                Some(through) if through >= last => partitions.push(partition),
                Some(_) => self.journal.report_caught_up(partition),
                None => {}
            }
        }
        partitions
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = Partition(3);

    #[test]
    fn a_partition_is_answered_for_when_its_whole_claim_is_in_the_engine_and_until_its_release() {
        let mut ownership = Ownership::default();
        ownership.caught_up(P, TaskId(9));
        ownership.claimed(P);
        assert_eq!(ownership.claims(), []);
        ownership.claimed(P);
        ownership.caught_up(P, TaskId(7));
        let first = ownership.claims();
        assert_eq!((first.len(), ownership.through(P)), (1, Some(TaskId(7))));
        ownership.caught_up(P, TaskId(5));
        assert_eq!(ownership.through(P), Some(TaskId(7)));
        ownership.released(P);
        assert_eq!((ownership.claims(), ownership.through(P)), (vec![], None));
        ownership.claimed(P);
        ownership.caught_up(P, TaskId(8));
        assert_ne!(ownership.claims(), first, "it is another claim");
    }
}
