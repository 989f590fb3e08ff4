//! Attempts that did not deliver: their record, and the next step of the delivery.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::counters::Attempt;
use crate::engine::table::{Delivery, DeliveryFailures, DeliveryRef, Priority, Stage};
use crate::engine::{EndedSend, Engine};
use crate::task::{Cause, TaskChange, Verdict};

/// The next step after a failed attempt, unless a newer write supersedes the delivery.
#[derive(Clone, Copy, Debug)]
enum AfterFailure {
    Retry(Duration),
    Defer(Duration),
    GiveUp,
}

impl Engine {
    /// In an outage all attempts have the same error: the deliveries of a replica share its text.
    pub(super) fn share_error(&self, at: DeliveryRef, verdict: &mut Verdict) {
        let last = self.lanes[self.tasks[at].lane].health.last_error();
        if let Verdict::Retry { error, .. }
        | Verdict::Shortage { error }
        | Verdict::Rejected { error }
        | Verdict::Refused { error } = verdict
            && let Some((last, _)) = last.filter(|(last, _)| last == error)
        {
            *error = Arc::clone(last);
        }
    }

    /// Keeps an attempt that was sent.
    pub(super) fn note_attempt(&mut self, at: DeliveryRef, verdict: &Verdict, took: Duration) {
        if let Verdict::Shortage { .. } = verdict {
            return;
        }
        let error = verdict.error().cloned();
        self.tasks[at].note_attempt(EndedSend { at: self.now.wall, took, error });
    }

    pub(super) fn note_failure(&mut self, at: DeliveryRef, error: Arc<str>, attempt: Attempt) {
        let reported = self.watched.then(|| Arc::clone(&error));
        let failures = self.note_error(at, error, attempt);
        failures.count = failures.count.saturating_add(1);
        let lane = self.tasks[at].lane;
        self.emit_change(at.slot, lane, TaskChange::Failed, reported);
    }

    /// Records why an attempt did not deliver. A waiting strong client does not wait for a retry.
    pub(super) fn note_error(
        &mut self,
        at: DeliveryRef,
        error: Arc<str>,
        attempt: Attempt,
    ) -> &mut DeliveryFailures {
        self.fail_quorum(at);
        self.touch(at.slot);
        let lane = self.tasks[at].lane;
        self.counters(lane).into_iter().for_each(|counters| counters.failed(attempt));
        let failures = self.tasks[at].failures_mut(self.now.wall);
        (failures.error, failures.since) = (error, self.now.wall);
        failures
    }

    /// Decides the next step of a failed delivery: superseded, retried, parked, deferred or given
    /// up.
    pub(super) fn fail(&mut self, at: DeliveryRef, retry_after: Option<Duration>) {
        let failures = self.tasks[at].failure_count();
        let deferred = retry_after.is_some_and(|retry_after| retry_after > self.schedule.longest());
        let next = match self.schedule.wait(failures, retry_after, &mut self.rng) {
            None => AfterFailure::GiveUp,
            Some(wait) if deferred => AfterFailure::Defer(wait),
            Some(wait) => AfterFailure::Retry(wait),
        };
        self.after_failure(at, next);
    }

    /// Retries a delivery that could not be sent. It keeps its number of attempts.
    pub(super) fn retry_unsent(&mut self, at: DeliveryRef) {
        let wait = self.schedule.pause(&mut self.rng);
        self.after_failure(at, AfterFailure::Retry(wait));
    }

    fn after_failure(&mut self, at: DeliveryRef, then: AfterFailure) {
        let Delivery { lane, next, stage, .. } = self.tasks[at];
        if let Some(next) = next {
            return self.supersede_head(at, next);
        }
        let redriven = matches!(stage, Stage::InFlight { priority: Priority::Redrive, .. });
        if redriven && self.lanes[lane].health.breaker().is_open() {
            return self.return_to_dead(at);
        }
        match then {
            AfterFailure::GiveUp => self.bury_head(at, Cause::GaveUp),
            AfterFailure::Defer(wait) => {
                self.change(at, Stage::Deferred { until: self.now.moment.after(wait) });
            }
            AfterFailure::Retry(wait) => {
                let until = self.now.moment.after(wait);
                if !self.await_retry(at, until) && !self.lanes[lane].is_suspended() {
                    self.emit_buried(at);
                }
            }
        }
    }
}
