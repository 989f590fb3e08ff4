//! Up to where the values of each replica were proven to be equal to those of the primaries. Pure.
//!
//! The background verification goes through the recent writes in the order of their sequences. The
//! range of a replica grows while each of them is equal, or of another replica, or was replaced by a
//! newer one. It stops at the first that is not proven; the next pass begins there. If a write is
//! dropped before it was compared, nothing can be proven about it, and the range starts again after it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::api::VerifyResult;
use crate::metrics::VerifiedRange;
use crate::task::{Node, TaskId};

/// Replicas that were forgotten or renamed stay until there are this many.
const MAX_REPLICAS: usize = 4096;

/// All results, with their names in the metrics.
const RESULTS: [(VerifyResult, &str); 7] = [
    (VerifyResult::Equal, "equal"),
    (VerifyResult::Different, "different"),
    (VerifyResult::Missing, "missing"),
    (VerifyResult::Extra, "extra"),
    (VerifyResult::Unreadable, "unreadable"),
    (VerifyResult::Pending, "pending"),
    (VerifyResult::Rewritten, "rewritten"),
];

/// Shared by the verifications and the metrics.
#[derive(Clone, Debug, Default)]
pub(crate) struct VerifiedBoard(Arc<Mutex<VerifiedMarks>>);

impl VerifiedBoard {
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut VerifiedMarks) -> T) -> T {
        f(&mut self.0.lock())
    }

    pub(in crate::dispatcher) fn range(&self, node: &Node) -> VerifiedRange {
        self.with(|marks| marks.ranges.get(node).map(|mark| mark.range).unwrap_or_default())
    }

    pub(in crate::dispatcher) fn results(&self) -> Vec<(&'static str, u64)> {
        let count = |marks: &VerifiedMarks, result| *marks.results.get(&result).unwrap_or(&0);
        self.with(|marks| RESULTS.map(|(result, name)| (name, count(marks, result))).to_vec())
    }
}

#[derive(Debug, Default)]
pub(super) struct VerifiedMarks {
    ranges: HashMap<Node, VerifiedMark>,
    /// The last write that this pass has compared.
    position: u64,
    dropped_through: u64,
    results: HashMap<VerifyResult, u64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct VerifiedMark {
    range: VerifiedRange,
    /// Something before the position of this pass is not proven.
    stopped: bool,
}

impl VerifiedMarks {
    pub(super) fn count(&mut self, result: VerifyResult) {
        *self.results.entry(result).or_default() += 1;
    }

    /// A write was compared, or needs no comparison for the replicas that are not named. `true` is
    /// proven.
    pub(super) fn compared(&mut self, sequence: TaskId, replicas: &[(Node, bool)]) {
        if self.ranges.len() > MAX_REPLICAS {
            self.ranges.clear();
        }
        for (node, _) in replicas {
            let (after, through) = (self.dropped_through, self.position.max(self.dropped_through));
            let range = VerifiedRange { after, through };
            self.ranges.entry(node.clone()).or_insert(VerifiedMark { range, stopped: false });
        }
        for (node, mark) in &mut self.ranges {
            mark.stopped |= replicas.iter().any(|(named, proven)| named == node && !proven);
            if !mark.stopped {
                mark.range.through = mark.range.through.max(sequence.0);
            }
        }
        self.position = sequence.0;
    }

    /// Writes up to this one were dropped, compared or not.
    pub(super) fn dropped(&mut self, through: TaskId) {
        self.dropped_through = self.dropped_through.max(through.0);
        let position = self.position;
        for mark in self.ranges.values_mut() {
            if mark.range.through < through.0 {
                // What had stopped the range is dropped, and what was compared since is not proven.
                let from = if mark.stopped { through.0.max(position) } else { through.0 };
                mark.range = VerifiedRange { after: from, through: from };
                mark.stopped = false;
            }
        }
    }

    /// Begins a pass, and returns the write behind which it begins.
    pub(super) fn begin(&mut self) -> TaskId {
        self.ranges.values_mut().for_each(|mark| mark.stopped = false);
        let proven = self.ranges.values().map(|mark| mark.range.through).min();
        self.position = proven.unwrap_or(self.dropped_through);
        TaskId(self.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Node {
        Node::parse(&format!("http://{name}")).unwrap()
    }

    fn range(marks: &VerifiedMarks, name: &str) -> (u64, u64) {
        let range = marks.ranges[&node(name)].range;
        (range.after, range.through)
    }

    #[test]
    fn a_range_that_had_stopped_grows_again_behind_what_was_dropped() {
        let mut marks = VerifiedMarks::default();
        marks.compared(TaskId(1), &[(node("a"), false)]);
        marks.compared(TaskId(20), &[(node("a"), true)]);
        marks.dropped(TaskId(10));
        marks.compared(TaskId(21), &[(node("a"), true)]);
        assert_eq!(range(&marks, "a"), (20, 21));
    }

    #[test]
    fn the_range_of_a_replica_stops_at_the_first_write_that_is_not_proven() {
        let mut marks = VerifiedMarks::default();
        marks.compared(TaskId(1), &[(node("a"), true), (node("b"), true)]);
        marks.compared(TaskId(2), &[(node("a"), false)]);
        marks.compared(TaskId(3), &[(node("a"), true), (node("b"), true)]);
        assert_eq!((range(&marks, "a"), range(&marks, "b")), ((0, 1), (0, 3)));
        assert_eq!(marks.begin(), TaskId(1));
        // It was replaced by a newer write of its key.
        marks.compared(TaskId(3), &[(node("a"), true), (node("b"), true)]);
        assert_eq!((range(&marks, "a"), range(&marks, "b")), ((0, 3), (0, 3)));
    }

    #[test]
    fn a_write_that_was_dropped_before_it_was_compared_is_not_in_the_range() {
        let mut marks = VerifiedMarks::default();
        marks.compared(TaskId(1), &[(node("a"), true)]);
        marks.dropped(TaskId(1));
        assert_eq!(range(&marks, "a"), (0, 1), "it was compared");
        marks.dropped(TaskId(5));
        assert_eq!(range(&marks, "a"), (5, 5));
        marks.compared(TaskId(7), &[(node("a"), true), (node("b"), true)]);
        assert_eq!((range(&marks, "a"), range(&marks, "b")), ((5, 7), (5, 7)));
    }

    #[test]
    fn a_replica_that_appears_late_has_no_earlier_writes() {
        let mut marks = VerifiedMarks::default();
        marks.compared(TaskId(4), &[(node("a"), true)]);
        marks.compared(TaskId(6), &[(node("b"), false)]);
        assert_eq!((range(&marks, "a"), range(&marks, "b")), ((0, 6), (0, 4)));
    }

    #[test]
    fn every_result_is_counted_under_its_name() {
        let board = VerifiedBoard::default();
        board.with(|marks| marks.count(VerifyResult::Extra));
        let counted: Vec<_> = board.results().into_iter().filter(|one| one.1 > 0).collect();
        assert_eq!(counted, [("extra", 1)]);
    }
}
