//! Attempts that did not deliver: what is written down, and what becomes of the delivery.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::counters::Attempt;
use crate::engine::table::{Delivery, DeliveryFailures, DeliveryRef, Priority, State};
use crate::engine::{Change, Engine};
use crate::task::Cause;

/// What a delivery does next, unless a newer write of its key takes its place.
#[derive(Clone, Copy, Debug)]
enum Next {
    Retry(Duration),
    /// It waits for longer than a place of the retry queue is for.
    Defer(Duration),
    GiveUp,
}

impl Engine {
    /// Writes down a failed attempt.
    pub(super) fn note_failure(&mut self, at: DeliveryRef, error: Arc<str>, attempt: Attempt) {
        let told = self.watched.then(|| Arc::clone(&error));
        let failures = self.note_error(at, error, attempt);
        failures.count = failures.count.saturating_add(1);
        let lane = self.tasks[at].lane;
        self.tell_change(at.slot, lane, Change::Failed, told);
    }

    /// Writes down why an attempt did not deliver. The client of a strong write does not wait for
    /// another one.
    pub(super) fn note_error(
        &mut self,
        at: DeliveryRef,
        error: Arc<str>,
        attempt: Attempt,
    ) -> &mut DeliveryFailures {
        self.fail_quorum(at);
        self.touch(at.slot);
        let lane = self.tasks[at].lane;
        self.lanes[lane].counters.failed(attempt);
        self.totals.failed(attempt);
        let new = || Box::new(DeliveryFailures::new(0, "".into(), self.now.wall));
        let failures = self.tasks[at].failures.get_or_insert_with(new);
        (failures.error, failures.since) = (error, self.now.wall);
        failures
    }

    /// What becomes of a delivery whose attempt failed: a newer write of the key takes its place,
    /// or it waits for a retry, or is parked, or given up.
    pub(super) fn fail(&mut self, at: DeliveryRef, asked: Option<Duration>) {
        let failures = self.tasks[at].failure_count();
        let deferred = asked.is_some_and(|asked| asked > self.schedule.longest());
        let next = match self.schedule.wait(failures, asked, &mut self.rng) {
            None => Next::GiveUp,
            Some(wait) if deferred => Next::Defer(wait),
            Some(wait) => Next::Retry(wait),
        };
        self.go_on(at, next);
    }

    /// A delivery could not be sent, which is not a failure: it waits, and has as many attempts left
    /// as before.
    pub(super) fn put_off(&mut self, at: DeliveryRef) {
        let wait = self.schedule.pause(&mut self.rng);
        self.go_on(at, Next::Retry(wait));
    }

    fn go_on(&mut self, at: DeliveryRef, then: Next) {
        let Delivery { lane, next, state, .. } = self.tasks[at];
        if let Some(next) = next {
            return self.supersede_head(at, next);
        }
        let redriven = matches!(state, State::InFlight { priority: Priority::Redrive, .. });
        if redriven && self.lanes[lane].breaker.is_open() {
            return self.return_to_dead(at);
        }
        match then {
            Next::GiveUp => self.bury_head(at, Cause::GaveUp),
            Next::Defer(wait) => {
                self.change(at, State::Deferred { until: self.now.moment.after(wait) });
            }
            Next::Retry(wait) => {
                let until = self.now.moment.after(wait);
                if !self.await_retry(at, until) && !self.lanes[lane].is_held() {
                    self.tell_buried(at);
                }
            }
        }
    }
}
