//! Barriers: what is left of everything that was accepted up to a task.
//!
//! A barrier is a task id and a set of replicas, so it can be asked for again after a restart. What
//! is left of one that was asked for lately is counted as deliveries settle; for any other it is
//! counted once, by looking at all tasks, a part of them at a time.
//!
//! A newer write that supersedes a delivery stands for it: it is counted in its place, whether it is
//! before the barrier or not. So a barrier that is reached with nothing given up means that each
//! replica was given each write before it, or a newer one of the key. Which older write a delivery
//! stands for is not on disk. After a restart one that had failed, or had taken the place of one
//! that failed, counts for every barrier from before the restart: rather too much than too little.
//! That it took a place is written with the settlements, so a kill loses it for those of the last
//! moments.
//! A delivery that was thrown away, by an operator or with `--dead-letter-retention`, is not
//! counted any more.

use std::collections::VecDeque;

use crate::engine::counters::DeliveryOutcome;
use crate::task::{Node, TaskId};

mod count;

/// How a barrier stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BarrierView {
    /// The replicas that it is about.
    pub lanes: Vec<BarrierLane>,
}

/// How it stands with one replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BarrierLane {
    /// Whose.
    pub node: Node,
    /// Deliveries before the barrier that are not settled.
    pub pending: u64,
    /// Dead letters from before the barrier.
    pub dead: u64,
}

/// The barriers that are counted along; the one asked for last is the last.
#[derive(Debug, Default)]
pub(super) struct Watches(pub(super) VecDeque<Watch>);

#[derive(Debug)]
pub(super) struct Watch {
    pub(super) up_to: TaskId,
    /// As asked for; none is all.
    pub(super) nodes: Vec<Node>,
    /// By the number of the lane.
    pub(super) lanes: Vec<(u32, BarrierLane)>,
    counted: Counted,
}

/// Which tasks are in the count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    All,
    /// Those up to here.
    UpTo(TaskId),
}

/// A delivery as barriers see it.
#[derive(Clone, Copy)]
pub(super) struct Mark<'a> {
    pub(super) task: TaskId,
    /// The oldest write that it stands for, most often itself.
    pub(super) origin: TaskId,
    pub(super) lane: u32,
    pub(super) node: &'a Node,
}

impl Watches {
    /// A delivery that was counted under one outcome is counted under another.
    pub(super) fn note(&mut self, of: Mark<'_>, from: DeliveryOutcome, to: DeliveryOutcome) {
        if from == to {
            return;
        }
        for watch in self.0.iter_mut().filter(|watch| of.origin <= watch.up_to) {
            watch.add(of, from, -1);
            watch.add(of, to, 1);
        }
    }

    /// A delivery stands for an older write than before from now on.
    pub(super) fn stand_for(&mut self, of: Mark<'_>, before: TaskId, outcome: DeliveryOutcome) {
        let joins = |watch: &&mut Watch| of.origin <= watch.up_to && watch.up_to < before;
        self.0.iter_mut().filter(joins).for_each(|watch| watch.add(of, outcome, 1));
    }

    /// Every barrier is counted again when it is asked for.
    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Whether a barrier is not counted to its end yet.
    pub(super) fn is_counting(&self) -> bool {
        self.0.iter().any(|watch| watch.counted != Counted::All)
    }

    /// A replica goes by another name.
    pub(super) fn rename(&mut self, lane: u32, to: &Node) {
        let lanes = self.0.iter_mut().flat_map(|watch| &mut watch.lanes);
        lanes.filter(|(number, _)| *number == lane).for_each(|(_, of)| of.node = to.clone());
    }
}

impl Watch {
    /// A change of one in the count, if the task of the delivery is in it already.
    fn add(&mut self, of: Mark<'_>, outcome: DeliveryOutcome, change: i64) {
        if matches!(self.counted, Counted::UpTo(last) if of.task > last) {
            return;
        }
        let at = self.lanes.binary_search_by_key(&of.lane, |(number, _)| *number);
        let Some((_, counted)) = at.ok().and_then(|at| self.lanes.get_mut(at)) else { return };
        // A lane that made way for another leaves its number behind.
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
