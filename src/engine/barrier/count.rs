//! Counts barriers: in steps over all tasks first, then as deliveries change.

use crate::engine::Engine;
use crate::engine::barrier::{
    BarrierCount, BarrierEnd, BarrierLane, BarrierView, Counted, CountedDelivery,
};
use crate::task::{Node, TaskId};

/// Barriers kept up to date. Beyond it, the least recently requested one is dropped and counted
/// again on request.
const WATCHED: usize = 64;

/// Tasks per step, as everything else waits. A write takes several turns of the loop, each with a
/// step while a barrier is counted: with 16,384, four clients that asked for old barriers slowed
/// writes from 3 to 83 ms.
const LOOKS: usize = 1024;

impl Engine {
    /// The unsettled deliveries of tasks up to `end` to `nodes`, or to all replicas if `nodes` is
    /// empty. `None` while counting; each [`Engine::tick`] does a step.
    pub fn barrier(&mut self, end: impl Into<BarrierEnd>, nodes: &[Node]) -> Option<BarrierView> {
        let (end, watches) = (end.into(), &mut self.barriers.0);
        let known = watches.iter().position(|watch| watch.end == end && watch.nodes == nodes);
        let watch = match known.and_then(|at| watches.remove(at)) {
            Some(watch) => watch,
            None => self.begin_count(end, nodes),
        };
        let mut lanes: Vec<_> = watch.lanes.iter().map(|(_, lane)| lane.clone()).collect();
        lanes.sort_by(|a, b| a.node.cmp(&b.node));
        let complete = watch.counted == Counted::All;
        self.barriers.0.push_back(watch);
        if self.barriers.0.len() > WATCHED {
            self.barriers.0.pop_front();
        }
        complete.then_some(BarrierView { lanes })
    }

    pub(in crate::engine) fn continue_count(&mut self) {
        let mut watches = std::mem::take(&mut self.barriers.0);
        if let Some(watch) = watches.iter_mut().find(|watch| watch.counted != Counted::All) {
            self.count_part(watch, LOOKS);
        }
        self.barriers.0 = watches;
    }

    fn begin_count(&self, end: BarrierEnd, nodes: &[Node]) -> BarrierCount {
        let numbers: Vec<u32> = match nodes {
            [] => self.lanes.numbers().collect(),
            _ => nodes.iter().filter_map(|node| self.lanes.find(node)).collect(),
        };
        // Right after it was requested, a barrier covers all tasks: the counters are the count.
        let everything = self.tasks.newest().is_none_or(|newest| newest <= end.covers_up_to());
        let counted = |&number: &u32| {
            let lane = &self.lanes[number];
            let (pending, dead) =
                if everything { (lane.counters.pending, lane.counters.dead) } else { (0, 0) };
            (number, BarrierLane { node: lane.node.clone(), pending, dead })
        };
        let mut lanes: Vec<_> = numbers.iter().map(counted).collect();
        lanes.sort_by_key(|(number, _)| *number);
        let counted = if everything { Counted::All } else { Counted::UpTo(TaskId(0)) };
        let mut watch = BarrierCount { end, nodes: nodes.to_vec(), lanes, counted };
        self.count_part(&mut watch, LOOKS);
        watch
    }

    /// Counts the next `most` tasks, also behind the barrier: they may stand for older ones.
    fn count_part(&self, watch: &mut BarrierCount, most: usize) {
        let Counted::UpTo(after) = watch.counted else { return };
        watch.counted = Counted::All;
        let mut last = after;
        for (looks, (task, slot)) in self.tasks.after(Some(after)).enumerate() {
            if looks >= most {
                watch.counted = Counted::UpTo(last);
                return;
            }
            last = task;
            let deliveries = self.tasks[slot].deliveries.iter();
            for delivery in deliveries {
                let (origin, lane) = (delivery.origin(task), delivery.lane);
                if !watch.end.covers(origin) {
                    continue;
                }
                let mark = CountedDelivery { task, origin, lane, node: &self.lanes[lane].node };
                watch.add(mark, delivery.stage.outcome(), 1);
            }
        }
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(in crate::engine) fn count(&self, end: BarrierEnd, nodes: &[Node]) -> BarrierCount {
        let mut watch = self.begin_count(end, nodes);
        self.count_part(&mut watch, usize::MAX);
        watch
    }
}
