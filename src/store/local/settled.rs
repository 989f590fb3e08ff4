//! How many settlements are on disk, in the order in which they came.

use crate::task::TaskId;

/// Settlements are written in the order of their tasks, so one that came early can be written late. A
/// mark says when all that came before it are written.
#[derive(Debug, Default)]
pub(super) struct SettledCount {
    /// Came so far.
    taken: u64,
    /// The first ones of these are written.
    written: u64,
    mark: Option<Mark>,
    /// `None` before reports are wanted.
    reported: Option<u64>,
    is_reported: bool,
}

/// All settlements that came until then are of tasks up to `highest`.
#[derive(Debug)]
struct Mark {
    taken: u64,
    highest: TaskId,
}

impl SettledCount {
    pub(super) fn count(&mut self) {
        self.taken += 1;
    }

    /// The settlements that wait are of tasks from `lowest` to `highest`; none waits without them.
    pub(super) fn written_below(&mut self, lowest: Option<TaskId>, highest: Option<TaskId>) {
        let (Some(lowest), Some(highest)) = (lowest, highest) else {
            (self.written, self.mark) = (self.taken, None);
            return;
        };
        if let Some(mark) = self.mark.take_if(|mark| mark.highest < lowest) {
            self.written = mark.taken;
        }
        self.mark.get_or_insert(Mark { taken: self.taken, highest });
    }

    pub(super) fn report_from_now_on(&mut self, wanted: bool) {
        self.is_reported |= wanted;
    }

    pub(super) fn is_reported(&self) -> bool {
        self.is_reported
    }

    /// Everything that is written is durable. Returns the number to report, if it is a new one.
    pub(super) fn report(&mut self) -> Option<u64> {
        let is_new = self.is_reported && self.reported != Some(self.written);
        is_new.then(|| *self.reported.insert(self.written))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reporting() -> SettledCount {
        let mut settled = SettledCount::default();
        settled.report_from_now_on(true);
        assert_eq!(settled.report(), Some(0));
        settled
    }

    fn waiting(settled: &mut SettledCount, ids: &[u64]) -> Option<u64> {
        let ids = || ids.iter().copied().map(TaskId);
        settled.written_below(ids().min(), ids().max());
        settled.report()
    }

    #[test]
    fn all_are_durable_when_none_waits() {
        let mut settled = reporting();
        (0..3).for_each(|_| settled.count());
        assert_eq!(waiting(&mut settled, &[]), Some(3));
        assert_eq!(waiting(&mut settled, &[]), None);
    }

    #[test]
    fn one_that_waits_holds_back_those_that_came_after_it() {
        let mut settled = reporting();
        (0..2).for_each(|_| settled.count());
        assert_eq!(waiting(&mut settled, &[5, 9]), None);
        // That of 5 is written, and one of an older task has come.
        settled.count();
        assert_eq!(waiting(&mut settled, &[3, 9]), None);
        assert_eq!(waiting(&mut settled, &[9]), None);
        // Those up to 9 are written, and a fourth has come.
        settled.count();
        assert_eq!(waiting(&mut settled, &[10]), Some(2));
        assert_eq!(waiting(&mut settled, &[]), Some(4));
    }

    #[test]
    fn nothing_is_reported_before_it_is_wanted() {
        let mut settled = SettledCount::default();
        settled.count();
        assert_eq!(waiting(&mut settled, &[]), None);
        settled.report_from_now_on(true);
        assert_eq!(settled.report(), Some(1));
    }
}
