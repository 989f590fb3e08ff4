//! Counts what is left for a barrier: a part of the tasks at a time, then along with the engine.

use crate::engine::Engine;
use crate::engine::barrier::{BarrierLane, BarrierView, Counted, Mark, Watch};
use crate::task::{Node, TaskId};

/// Barriers that are counted along. One more, and the one not asked for the longest is counted
/// anew when it is.
const WATCHED: usize = 64;

/// Tasks that one step of counting looks at: about a millisecond, as everything else waits meanwhile.
const LOOKS: usize = 16_384;

impl Engine {
    /// What is left of the deliveries of every task up to `up_to` to these replicas; to all of them
    /// where none is named.
    ///
    /// `None` while it is being counted, which takes a step of each [`Engine::tick`].
    pub fn barrier(&mut self, up_to: TaskId, nodes: &[Node]) -> Option<BarrierView> {
        let watches = &mut self.barriers.0;
        let known = watches.iter().position(|watch| watch.up_to == up_to && watch.nodes == nodes);
        let watch = match known.and_then(|at| watches.remove(at)) {
            Some(watch) => watch,
            None => self.begin_count(up_to, nodes),
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

    /// Counts a part of the first barrier that is not counted to its end.
    pub(in crate::engine) fn count_on(&mut self) {
        let mut watches = std::mem::take(&mut self.barriers.0);
        if let Some(watch) = watches.iter_mut().find(|watch| watch.counted != Counted::All) {
            self.count_part(watch, LOOKS);
        }
        self.barriers.0 = watches;
    }

    fn begin_count(&self, up_to: TaskId, nodes: &[Node]) -> Watch {
        let numbers: Vec<u32> = match nodes {
            [] => self.lanes.numbers().collect(),
            _ => nodes.iter().filter_map(|node| self.lanes.find(node)).collect(),
        };
        // As just after it was drawn, which is when most are asked for.
        let everything = self.tasks.newest().is_none_or(|newest| newest <= up_to);
        let counted = |&number: &u32| {
            let lane = &self.lanes[number];
            let (pending, dead) =
                if everything { (lane.counters.pending, lane.counters.dead) } else { (0, 0) };
            (number, BarrierLane { node: lane.node.clone(), pending, dead })
        };
        let mut lanes: Vec<_> = numbers.iter().map(counted).collect();
        lanes.sort_by_key(|(number, _)| *number);
        let counted = if everything { Counted::All } else { Counted::UpTo(TaskId(0)) };
        let mut watch = Watch { up_to, nodes: nodes.to_vec(), lanes, counted };
        self.count_part(&mut watch, LOOKS);
        watch
    }

    /// Counts the next `most` tasks. Those behind the barrier as well: they may stand for older ones.
    fn count_part(&self, watch: &mut Watch, most: usize) {
        let (Counted::UpTo(after), up_to) = (watch.counted, watch.up_to) else { return };
        watch.counted = Counted::All;
        let mut last = after;
        for (looks, (task, slot)) in self.tasks.after(Some(after)).enumerate() {
            if looks >= most {
                watch.counted = Counted::UpTo(last);
                return;
            }
            last = task;
            let deliveries = self.tasks[slot].deliveries.iter();
            for delivery in deliveries.filter(|delivery| delivery.origin(task) <= up_to) {
                let (origin, lane) = (delivery.origin(task), delivery.lane);
                let mark = Mark { task, origin, lane, node: &self.lanes[lane].node };
                watch.add(mark, delivery.state.outcome(), 1);
            }
        }
    }

    /// Counts a barrier from the beginning to its end.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(in crate::engine) fn count(&self, up_to: TaskId, nodes: &[Node]) -> Watch {
        let mut watch = self.begin_count(up_to, nodes);
        self.count_part(&mut watch, usize::MAX);
        watch
    }
}
