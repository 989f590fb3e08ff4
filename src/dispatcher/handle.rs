//! What the server holds of the daemon: it can hand in a write, ask for the figures, ask for health.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::dispatcher::bulk::Operations;
use crate::dispatcher::event_bus::{EventBus, EventKinds, EventSubscription};
use crate::dispatcher::messages::{AcceptedWrite, Health, NewWrite, Refusal, Request};
use crate::metrics::{Counts, Snapshot};
use crate::policy::Policy;
use crate::task::{Idempotency, NewTask};

/// What operators have of the daemon besides the loop.
#[derive(Clone, Debug)]
pub(crate) struct Operator {
    pub(crate) bus: EventBus,
    pub(crate) operations: Operations,
    pub(crate) redrive_rate: NonZeroU32,
    pub(crate) policy: Policy,
}

/// The way in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) requests: mpsc::UnboundedSender<Request>,
    pub(crate) health: watch::Receiver<Health>,
    /// How long a client that was refused should wait: the `Retry-After` of a 503.
    pub(crate) retry_after: Duration,
    pub(crate) operator: Operator,
    pub(crate) counts: Arc<Counts>,
}

impl Handle {
    /// Accepts a write: returns once it is durable and, for a strong one, decided.
    ///
    /// # Errors
    ///
    /// A [`Refusal`] that says whether anything was accepted.
    ///
    /// # Cancel safety
    ///
    /// A write whose caller goes away is accepted and delivered all the same: from the first
    /// poll on it belongs to the daemon.
    pub async fn replicate(
        &self,
        new: NewTask,
        idempotency: Option<Idempotency>,
    ) -> Result<AcceptedWrite, Refusal> {
        let (reply, answer) = oneshot::channel();
        let write = NewWrite { new: Box::new(new), idempotency, reply };
        // If it is gone, so is the reply.
        let _ = self.requests.send(Request::Replicate(vec![write]));
        answer.await.map_err(|_| self.gone())?
    }

    /// Accepts many writes, in this order and handed to the disk together; one answer each.
    ///
    /// # Cancel safety
    ///
    /// As of [`Self::replicate`].
    pub async fn replicate_all(
        &self,
        writes: Vec<(NewTask, Option<Idempotency>)>,
    ) -> Vec<Result<AcceptedWrite, Refusal>> {
        let (writes, answers): (Vec<_>, Vec<_>) = writes
            .into_iter()
            .map(|(new, idempotency)| {
                let (reply, answer) = oneshot::channel();
                (NewWrite { new: Box::new(new), idempotency, reply }, answer)
            })
            .unzip();
        let _ = self.requests.send(Request::Replicate(writes));
        let mut all = Vec::with_capacity(answers.len());
        for answer in answers {
            all.push(answer.await.unwrap_or_else(|_| Err(self.gone())));
        }
        all
    }

    /// Why a write has no answer.
    fn gone(&self) -> Refusal {
        self.health.borrow().refusal().unwrap_or(Refusal::Draining)
    }

    /// The figures of this moment; `None` when the daemon has stopped.
    pub async fn snapshot(&self) -> Option<Box<Snapshot>> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Snapshot { reply }).ok()?;
        answer.await.ok()
    }

    /// EventSubscription from now on, or after an event that was seen before.
    #[must_use]
    pub fn events(&self, after: Option<u64>, kinds: EventKinds) -> EventSubscription {
        self.operator.bus.subscribe(after, kinds)
    }

    /// How the daemon is now.
    #[must_use]
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// How long a client that was refused should wait before it comes again.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        self.retry_after
    }

    /// What the server and the daemon both count.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }
}

#[cfg(test)]
impl Handle {
    /// A handle, with the daemon's ends: the incoming requests and the sender of the health.
    pub(crate) fn for_tests() -> (Self, mpsc::UnboundedReceiver<Request>, watch::Sender<Health>) {
        let (requests, received) = mpsc::unbounded_channel();
        let (said, health) = watch::channel(Health::Serving);
        let retry_after = Duration::from_millis(1_500);
        let counts = Arc::default();
        let operator = Operator {
            bus: EventBus::new(0),
            operations: Operations::default(),
            redrive_rate: NonZeroU32::MIN,
            policy: Policy::new(None, None),
        };
        let handle = Self { requests, health, retry_after, counts, operator };
        (handle, received, said)
    }

    /// Says what happened, as the loop would.
    pub(crate) fn publish(&self, kind: crate::dispatcher::EventKind, what: &impl serde::Serialize) {
        self.operator.bus.publish(kind, what);
        self.operator.bus.wake();
    }
}
