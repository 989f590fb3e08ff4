//! The entry point of the dispatcher: writes, metrics, health, events. Admin requests are in `admin/`.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use crate::dispatcher::bulk::Operations;
use crate::dispatcher::event_bus::{EventBus, EventKinds, EventSubscription};
use crate::dispatcher::messages::{AcceptedWrite, Health, NewWrite, Refusal, Request};
use crate::dispatcher::verify::NodeReader;
use crate::metrics::{Counts, Snapshot};
use crate::policy::Policy;
use crate::store::Peers;
use crate::task::{Idempotency, NewTask};

/// What admin requests need besides the loop.
#[derive(Clone, Debug)]
pub(crate) struct Operator {
    pub(crate) bus: EventBus,
    pub(crate) operations: Operations,
    /// The default rate of a redrive.
    pub(crate) redrive_rate: watch::Receiver<NonZeroU32>,
    pub(crate) policy: Policy,
    /// `None` in tests without replicas.
    pub(crate) reader: Option<NodeReader>,
    /// `None` with a store of one process.
    pub(crate) peers: Option<Peers>,
}

/// Sends requests to the loop. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(crate) requests: mpsc::UnboundedSender<Request>,
    pub(crate) health: watch::Receiver<Health>,
    /// The `Retry-After` of a 503.
    pub(crate) retry_after: Duration,
    pub(crate) operator: Operator,
    pub(crate) counts: Arc<Counts>,
}

impl Handle {
    /// Accepts a write. Returns when it is durable and, if it is strong, decided.
    ///
    /// # Cancel safety
    ///
    /// After the first poll the write is accepted and delivered even if the future is dropped.
    pub async fn replicate(
        &self,
        new: NewTask,
        idempotency: Option<Idempotency>,
    ) -> Result<AcceptedWrite, Refusal> {
        let (reply, answer) = oneshot::channel();
        let write = NewWrite { new: Box::new(new), idempotency, reply };
        // If the loop has ended, the reply is dropped.
        let _ = self.requests.send(Request::Replicate(vec![write]));
        answer.await.map_err(|_| self.no_answer())?
    }

    /// Accepts many writes in this order, with one flush. Cancel safety as in [`Self::replicate`].
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
            all.push(answer.await.unwrap_or_else(|_| Err(self.no_answer())));
        }
        all
    }

    /// The refusal of a write whose reply was dropped.
    fn no_answer(&self) -> Refusal {
        self.health.borrow().refusal().unwrap_or(Refusal::Draining)
    }

    /// `None` when the loop has ended.
    pub async fn snapshot(&self) -> Option<Box<Snapshot>> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Snapshot { reply }).ok()?;
        answer.await.ok()
    }

    /// Events from now on, or after an event that was seen before.
    #[must_use]
    pub fn events(&self, after: Option<u64>, kinds: EventKinds) -> EventSubscription {
        self.operator.bus.subscribe(after, kinds)
    }

    #[must_use]
    pub fn health(&self) -> Health {
        self.health.borrow().clone()
    }

    /// Whether other processes share the store.
    #[must_use]
    pub fn is_of_cluster(&self) -> bool {
        self.operator.peers.is_some()
    }

    #[must_use]
    pub fn retry_after(&self) -> Duration {
        self.retry_after
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }
}

#[cfg(test)]
impl Handle {
    /// A handle, the receiver of its requests and the sender of its health.
    pub(crate) fn for_tests() -> (Self, mpsc::UnboundedReceiver<Request>, watch::Sender<Health>) {
        let (requests, received) = mpsc::unbounded_channel();
        let (sender, health) = watch::channel(Health::Serving);
        let retry_after = Duration::from_millis(1_500);
        let counts = Arc::default();
        let operator = Operator {
            bus: EventBus::new(0),
            operations: Operations::default(),
            redrive_rate: watch::channel(NonZeroU32::MIN).1,
            policy: Policy::new(None, None),
            reader: None,
            peers: None,
        };
        let handle = Self { requests, health, retry_after, counts, operator };
        (handle, received, sender)
    }

    /// Publishes an event, as the loop does.
    pub(crate) fn publish(
        &self,
        kind: crate::dispatcher::EventKind,
        event: &impl serde::Serialize,
    ) {
        self.operator.bus.publish(kind, event);
        self.operator.bus.wake();
    }
}
