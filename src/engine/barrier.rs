//! Barriers: what is left of everything that was accepted up to a task.
//!
//! A barrier is a task id and a set of replicas, so it can be asked for again after a restart. What
//! is left of one that was asked for lately is counted as deliveries settle; for any other it is
//! counted once, by looking at all older tasks.

use std::collections::VecDeque;

use crate::engine::Engine;
use crate::engine::books::Column;
use crate::task::{Node, TaskId};

/// Barriers that are counted along. One more, and the one not asked for the longest is counted
/// anew when it is.
const WATCHED: usize = 64;

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
    pub(super) lanes: Vec<(u32, BarrierLane)>,
}

impl Watches {
    /// A delivery goes from one column of the books to another.
    pub(super) fn note(&mut self, id: TaskId, lane: u32, node: &Node, from: Column, to: Column) {
        if self.0.is_empty() || from == to {
            return;
        }
        for watch in self.0.iter_mut().filter(|watch| id <= watch.up_to) {
            // A lane that made way for another leaves its number behind.
            let counted = watch.lanes.iter_mut().find(|(n, of)| *n == lane && of.node == *node);
            let Some((_, counted)) = counted else { continue };
            for (column, change) in [(from, -1), (to, 1)] {
                let count = match column {
                    Column::Pending => &mut counted.pending,
                    Column::Dead => &mut counted.dead,
                    Column::Delivered | Column::Superseded | Column::Discarded => continue,
                };
                *count = count.saturating_add_signed(change);
            }
        }
    }

    /// A replica goes by another name.
    pub(super) fn rename(&mut self, lane: u32, to: &Node) {
        let lanes = self.0.iter_mut().flat_map(|watch| &mut watch.lanes);
        lanes.filter(|(number, _)| *number == lane).for_each(|(_, of)| of.node = to.clone());
    }
}

impl Engine {
    /// What is left of the deliveries of every task up to `up_to` to these replicas; to all of them
    /// where none is named.
    pub fn barrier(&mut self, up_to: TaskId, nodes: &[Node]) -> BarrierView {
        let watches = &mut self.barriers.0;
        let known = watches.iter().position(|watch| watch.up_to == up_to && watch.nodes == nodes);
        let watch = match known.and_then(|at| watches.remove(at)) {
            Some(watch) => watch,
            None => self.count(up_to, nodes),
        };
        let lanes = watch.lanes.iter().map(|(_, lane)| lane.clone()).collect();
        self.barriers.0.push_back(watch);
        if self.barriers.0.len() > WATCHED {
            self.barriers.0.pop_front();
        }
        BarrierView { lanes }
    }

    pub(super) fn count(&self, up_to: TaskId, nodes: &[Node]) -> Watch {
        let numbers: Vec<u32> = match nodes {
            [] => self.lanes.numbers().collect(),
            _ => nodes.iter().filter_map(|node| self.lanes.find(node)).collect(),
        };
        let everything = self.tasks.newest().is_none_or(|newest| newest <= up_to);
        let counted = |&number: &u32| {
            let lane = &self.lanes[number];
            let (pending, dead) =
                if everything { (lane.books.pending, lane.books.dead) } else { (0, 0) };
            (number, BarrierLane { node: lane.node.clone(), pending, dead })
        };
        let mut lanes: Vec<_> = numbers.iter().map(counted).collect();
        lanes.sort_by(|(_, a), (_, b)| a.node.cmp(&b.node));
        if !everything {
            let older = self.tasks.after(None).take_while(|(id, _)| *id <= up_to);
            for leg in older.flat_map(|(_, slot)| &self.tasks[slot].legs) {
                let counted = lanes.iter_mut().find(|(number, _)| *number == leg.lane);
                let Some((_, counted)) = counted else { continue };
                match leg.state.column() {
                    Column::Pending => counted.pending += 1,
                    Column::Dead => counted.dead += 1,
                    Column::Delivered | Column::Superseded | Column::Discarded => {}
                }
            }
        }
        Watch { up_to, nodes: nodes.to_vec(), lanes }
    }
}
