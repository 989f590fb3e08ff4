//! Barriers: what is left of all writes accepted up to a task.
//!
//! A barrier is a task id, or one for each partition, and a set of replicas, so it survives a restart.
//! Recently requested
//! barriers are updated as deliveries settle; any other is counted once, in steps over all tasks.
//!
//! A newer write that supersedes a delivery is counted in its place, even if it is behind the
//! barrier. So a reached barrier without dead letters means that each replica got each write before
//! it, or a newer one of the key. Which older write a delivery stands for is not on disk: after a
//! restart, one that failed or superseded a failed write counts for every older barrier. That it
//! did is saved with the settlements, so a kill loses it for the last moments. Discarded and
//! expired deliveries are not counted.

use std::collections::VecDeque;

use crate::engine::counters::DeliveryOutcome;
use crate::task::{Node, TaskId};

mod count;

/// The last task before a barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BarrierEnd {
    /// Ids are in the order of acceptance.
    Task(TaskId),
    /// They are so in each partition, which is the remainder of an id. Entry `p` is of partition `p`.
    Partitions { divisor: u64, last: Vec<TaskId> },
}

impl BarrierEnd {
    /// Whether a task is before the barrier. Id 0 always is.
    #[must_use]
    pub fn covers(&self, task: TaskId) -> bool {
        match self {
            Self::Task(last) => task <= *last,
            Self::Partitions { divisor, last } => {
                let partition = task.0.checked_rem(*divisor).unwrap_or(0);
                let last = usize::try_from(partition).ok().and_then(|at| last.get(at));
                last.is_some_and(|last| task <= *last)
            }
        }
    }

    /// All tasks up to this one are before the barrier.
    pub(super) fn covers_up_to(&self) -> TaskId {
        match self {
            Self::Task(last) => *last,
            Self::Partitions { last, .. } => last.iter().copied().min().unwrap_or_default(),
        }
    }
}

impl From<TaskId> for BarrierEnd {
    fn from(last: TaskId) -> Self {
        Self::Task(last)
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BarrierView {
    pub lanes: Vec<BarrierLane>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BarrierLane {
    pub node: Node,
    pub pending: u64,
    pub dead: u64,
}

/// The barriers that are kept up to date, the last requested one at the end.
#[derive(Debug, Default)]
pub(super) struct BarrierCounts(pub(super) VecDeque<BarrierCount>);

#[derive(Debug)]
pub(super) struct BarrierCount {
    pub(super) end: BarrierEnd,
    /// As requested; empty means all.
    pub(super) nodes: Vec<Node>,
    pub(super) lanes: Vec<(u32, BarrierLane)>,
    counted: Counted,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    All,
    UpTo(TaskId),
}

/// A delivery as barriers count it.
#[derive(Clone, Copy)]
pub(super) struct CountedDelivery<'a> {
    pub(super) task: TaskId,
    /// The oldest write that it stands for, by default itself.
    pub(super) origin: TaskId,
    pub(super) lane: u32,
    pub(super) node: &'a Node,
}

impl BarrierCounts {
    /// Moves a delivery from one outcome to another.
    pub(super) fn note(
        &mut self,
        of: CountedDelivery<'_>,
        from: DeliveryOutcome,
        to: DeliveryOutcome,
    ) {
        if from == to {
            return;
        }
        for watch in self.0.iter_mut().filter(|watch| watch.end.covers(of.origin)) {
            watch.add(of, from, -1);
            watch.add(of, to, 1);
        }
    }

    /// A delivery stands for an older write from now on.
    pub(super) fn stand_for(
        &mut self,
        of: CountedDelivery<'_>,
        before: TaskId,
        outcome: DeliveryOutcome,
    ) {
        let joins =
            |watch: &&mut BarrierCount| watch.end.covers(of.origin) && !watch.end.covers(before);
        self.0.iter_mut().filter(joins).for_each(|watch| watch.add(of, outcome, 1));
    }

    /// A delivery of a new task. Only before a barrier of several partitions there can be one.
    pub(super) fn arrived(&mut self, of: CountedDelivery<'_>) {
        let is_before = |watch: &&mut BarrierCount| {
            matches!(watch.end, BarrierEnd::Partitions { .. }) && watch.end.covers(of.origin)
        };
        let watches = self.0.iter_mut().filter(is_before);
        watches.for_each(|watch| watch.add(of, DeliveryOutcome::Pending, 1));
    }

    /// A new lane. Tasks before a barrier of several partitions may still arrive for it; before any
    /// other barrier all tasks have arrived.
    pub(super) fn add_lane(&mut self, number: u32, node: &Node) {
        for watch in &mut self.0 {
            let is_covered = watch.nodes.is_empty() || watch.nodes.contains(node);
            if is_covered && matches!(watch.end, BarrierEnd::Partitions { .. }) {
                let lane = BarrierLane { node: node.clone(), pending: 0, dead: 0 };
                match watch.lanes.binary_search_by_key(&number, |(number, _)| *number) {
                    Ok(at) => watch.lanes[at].1 = lane,
                    Err(at) => watch.lanes.insert(at, (number, lane)),
                }
            }
        }
    }

    /// Drops the counts. A barrier is counted again when it is queried.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn is_counting(&self) -> bool {
        self.0.iter().any(|watch| watch.counted != Counted::All)
    }

    pub(super) fn rename(&mut self, lane: u32, to: &Node) {
        let lanes = self.0.iter_mut().flat_map(|watch| &mut watch.lanes);
        lanes.filter(|(number, _)| *number == lane).for_each(|(_, of)| of.node = to.clone());
    }
}

impl BarrierCount {
    /// Adds `change` to a count, if the delivery's task has been counted already.
    fn add(&mut self, of: CountedDelivery<'_>, outcome: DeliveryOutcome, change: i64) {
        if matches!(self.counted, Counted::UpTo(last) if of.task > last) {
            return;
        }
        let at = self.lanes.binary_search_by_key(&of.lane, |(number, _)| *number);
        let Some((_, counted)) = at.ok().and_then(|at| self.lanes.get_mut(at)) else { return };
        // The lane number may belong to another replica by now.
        if counted.node != *of.node {
            return;
        }
        let count = match outcome {
            DeliveryOutcome::Pending => &mut counted.pending,
            DeliveryOutcome::Dead => &mut counted.dead,
            DeliveryOutcome::Delivered
            | DeliveryOutcome::Superseded
            | DeliveryOutcome::Discarded
            | DeliveryOutcome::Released => return,
        };
        *count = count.saturating_add_signed(change);
    }
}
