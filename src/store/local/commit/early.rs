//! The early tasks of a batch: they are on their way to their replicas, and are not stored if all of
//! these acknowledge them before the commit begins.
//!
//! A replica nearby acknowledges sooner than a flush takes, so the commit waits for it. The answer of
//! a write whose majority is nearby and another replica far away waits as long. So the wait stops when
//! it does not pay, and is tried again after more and more commits.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::task::TaskId;

/// A few flushes.
const WAIT: Duration = Duration::from_millis(2);

/// At most 2^6 - 1 commits between two waits.
const MOST_FAILURES: u32 = 6;

#[derive(Debug, Default)]
pub(super) struct EarlyTasks {
    /// With the time at which they came, in the order of their ids.
    tasks: VecDeque<(TaskId, Instant)>,
    /// Tasks that were removed since the last commit.
    withdrawn: usize,
    /// Waits in a row that did not pay.
    failures: u32,
    /// Commits that do not wait.
    skipping: u32,
}

impl EarlyTasks {
    pub(super) fn take(&mut self, id: TaskId, now: Instant) {
        self.tasks.push_back((id, now));
    }

    /// Takes a task out, if it is here.
    pub(super) fn withdraw(&mut self, id: TaskId) -> bool {
        let Ok(at) = self.tasks.binary_search_by_key(&id, |(id, _)| *id) else { return false };
        self.tasks.remove(at);
        self.withdrawn += 1;
        if self.tasks.is_empty() {
            (self.failures, self.skipping) = (0, 0);
        }
        true
    }

    /// The commit begins.
    pub(super) fn commit(&mut self, now: Instant) {
        let (wait, withdrawn) = (self.wait(now), std::mem::take(&mut self.withdrawn));
        let stored = self.tasks.len();
        self.tasks.clear();
        match wait {
            _ if stored == 0 => {}
            Some(Duration::ZERO) if withdrawn < stored => {
                self.failures = (self.failures + 1).min(MOST_FAILURES);
                self.skipping = (1 << self.failures) - 1;
            }
            Some(Duration::ZERO) => self.failures = 0,
            _ => self.skipping = self.skipping.saturating_sub(1),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.tasks.len()
    }

    /// How much longer the commit waits for the oldest one.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        let (_, came) = self.tasks.front()?;
        (self.skipping == 0).then(|| WAIT.saturating_sub(now.duration_since(*came)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commit_waits_for_the_oldest_task() {
        let (mut early, start) = (EarlyTasks::default(), start());
        assert_eq!(early.wait(start), None);
        early.take(TaskId(1), start);
        early.take(TaskId(2), start + WAIT / 2);
        assert_eq!(early.wait(start + WAIT / 2), Some(WAIT / 2));
        assert!(early.withdraw(TaskId(1)) && !early.withdraw(TaskId(1)));
        assert_eq!(early.wait(start + WAIT / 2), Some(WAIT));
        assert!(early.withdraw(TaskId(2)) && early.is_empty());
    }

    #[test]
    fn a_wait_that_does_not_pay_is_tried_less_and_less() {
        let (mut early, start) = (EarlyTasks::default(), start());
        let mut waits = |withdrawn: bool| {
            early.take(TaskId(1), start);
            let waits = early.wait(start).is_some();
            if waits && withdrawn {
                assert!(early.withdraw(TaskId(1)));
            }
            early.commit(start + WAIT);
            waits
        };
        let waited: Vec<_> = (1..=200).filter(|_| waits(false)).collect();
        assert_eq!(waited, [1, 3, 7, 15, 31, 63, 127, 191]);
        while !waits(true) {}
        assert!((0..10).all(|_| waits(true)), "it pays again");
    }

    #[test]
    fn a_wait_pays_if_it_spares_half_of_the_tasks() {
        for (withdrawn, waits_again) in [(1, false), (2, true)] {
            let (mut early, start) = (EarlyTasks::default(), start());
            (1..=4).for_each(|id| early.take(TaskId(id), start));
            (1..=withdrawn).for_each(|id| assert!(early.withdraw(TaskId(id))));
            early.commit(start + WAIT);
            early.take(TaskId(5), start);
            assert_eq!(early.wait(start).is_some(), waits_again, "{withdrawn}");
        }
    }

    #[test]
    fn a_commit_for_another_reason_says_nothing_about_the_wait() {
        let (mut early, start) = (EarlyTasks::default(), start());
        for _ in 0..3 {
            early.take(TaskId(1), start);
            assert_eq!(early.wait(start), Some(WAIT));
            early.commit(start + WAIT / 2);
        }
    }

    #[expect(clippy::disallowed_methods, reason = "any moment")]
    fn start() -> Instant {
        Instant::now()
    }
}
