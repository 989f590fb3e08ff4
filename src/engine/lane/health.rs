//! What a lane knows about its replica: the breaker, the concurrency limit and the last error.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::Now;
use crate::engine::breaker::{Breaker, EndedAttempt};
use crate::engine::claims::ClientId;
use crate::engine::concurrency::{Concurrency, Workers};
use crate::task::Timestamp;

/// The health of a replica. Every change of the breaker's state goes through here, so that
/// [`Self::since`] is right.
#[derive(Debug, Default)]
pub(in crate::engine) struct ReplicaHealth {
    breaker: Breaker,
    since: Option<Timestamp>,
    concurrency: Concurrency,
    /// The error of deliveries that an open breaker blocks.
    unsent_error: Arc<str>,
    last_error: Option<(Arc<str>, Timestamp)>,
    /// The client of the last probe.
    last_probe_of: Option<ClientId>,
}

impl ReplicaHealth {
    pub(in crate::engine) fn breaker(&self) -> &Breaker {
        &self.breaker
    }

    /// When the breaker last changed; `None` if it has not changed since the start.
    pub(in crate::engine) fn since(&self) -> Option<Timestamp> {
        self.since
    }

    pub(in crate::engine) fn limit(&self, workers: Workers) -> u32 {
        self.concurrency.limit(workers)
    }

    pub(in crate::engine) fn unsent_error(&self) -> Arc<str> {
        Arc::clone(&self.unsent_error)
    }

    pub(in crate::engine) fn last_error(&self) -> Option<&(Arc<str>, Timestamp)> {
        self.last_error.as_ref()
    }

    pub(in crate::engine) fn note_error(&mut self, now: Now, error: &Arc<str>) {
        self.last_error = Some((Arc::clone(error), now.wall));
    }

    /// An attempt was sent and ended after `took`. `in_flight` includes it.
    pub(in crate::engine) fn attempt_ended(
        &mut self,
        now: Now,
        workers: Workers,
        took: Duration,
        failed: bool,
        in_flight: u32,
    ) {
        self.concurrency.answered(now.moment, workers, took, failed, in_flight);
    }

    /// See [`Breaker::succeeded`].
    pub(in crate::engine) fn succeeded(
        &mut self,
        now: Now,
        ended: EndedAttempt,
        workers: Workers,
    ) -> bool {
        let most = self.limit(workers);
        self.update(now, |breaker| breaker.succeeded(now.moment, ended, most))
    }

    pub(in crate::engine) fn failed(
        &mut self,
        now: Now,
        ended: EndedAttempt,
        threshold: u32,
        jitter: f64,
        error: &str,
    ) -> bool {
        self.open_if(now, error, |breaker| breaker.failed(now.moment, ended, threshold, jitter))
    }

    pub(in crate::engine) fn given_up(
        &mut self,
        now: Now,
        failures: u32,
        span: Duration,
        jitter: f64,
        error: &str,
    ) -> bool {
        self.open_if(now, error, |breaker| breaker.given_up(now.moment, failures, span, jitter))
    }

    pub(in crate::engine) fn finish_ramp(&mut self, now: Now) {
        self.update(now, Breaker::finish_ramp);
    }

    pub(in crate::engine) fn probe_sent(&mut self, client: ClientId) {
        self.last_probe_of = Some(client);
        self.breaker.probe();
    }

    pub(in crate::engine) fn last_probe_of(&self) -> Option<ClientId> {
        self.last_probe_of
    }

    pub(in crate::engine) fn probe_unsent(&mut self, now: Now, jitter: f64) {
        self.breaker.probe_unsent(now.moment, jitter);
    }

    pub(in crate::engine) fn probe_now(&mut self, now: Now) {
        self.breaker.probe_now(now.moment);
    }

    /// The replica has a new address. The history of the old one says nothing about it.
    pub(in crate::engine) fn address_changed(&mut self, now: Now) {
        self.update(now, |breaker| *breaker = Breaker::default());
    }

    /// The replica was forgotten. Without this, a removed node would be shown as failing forever.
    pub(in crate::engine) fn forget(&mut self) {
        (self.breaker, self.since, self.last_error) = Default::default();
    }

    fn update<T>(&mut self, now: Now, change: impl FnOnce(&mut Breaker) -> T) -> T {
        let before = self.breaker.view();
        let result = change(&mut self.breaker);
        if self.breaker.view() != before {
            self.since = Some(now.wall);
        }
        result
    }

    /// Applies a failure, which returns whether it opened the breaker.
    fn open_if(
        &mut self,
        now: Now,
        error: &str,
        failure: impl FnOnce(&mut Breaker) -> bool,
    ) -> bool {
        let opened = self.update(now, failure);
        if opened {
            self.unsent_error =
                format!("not sent, because earlier attempts failed: {error}").into();
        }
        opened
    }
}
