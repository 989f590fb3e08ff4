//! Attempts: one HTTP call of a delivery each, in a task of its own.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{debug, error};

use crate::clock::wall_clock;
use crate::dispatcher::messages::{AttemptReport, LoopEvent};
use crate::dispatcher::read_memory::{ReadMemory, ReadPermit};
use crate::lease::{Fence, LeaseLost};
use crate::replica::ReplicaClient;
use crate::store::{Journal, JournalEvent, ReadError};
use crate::task::{AttemptOutcome, DeliveryId, Node, Task, Verdict};
use crate::traces::{Span, Tracer};

/// The log target of attempts. The documentation names it.
const TARGET: &str = "replicator::daemon::attempt";

#[derive(Clone)]
pub(crate) struct Attempts {
    pub(crate) client: ReplicaClient,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) events: mpsc::UnboundedSender<LoopEvent>,
    pub(crate) memory: ReadMemory,
    pub(crate) tracer: Tracer,
    /// On which the attempts run.
    pub(crate) runtime: Handle,
}

impl Attempts {
    /// Starts an attempt to `node`, the current name of the replica. [`LoopEvent::AttemptEnded`]
    /// follows in any case. Without `task`, the task is read back into `bytes` of [`ReadMemory`].
    pub(crate) fn start(
        &self,
        delivery: DeliveryId,
        node: Node,
        attempt: u32,
        bytes: u64,
        task: Option<Arc<Task>>,
    ) {
        // Here, on the loop: later, this process may have lost the partition and claimed it again.
        let fence = self.journal.fence(delivery.task);
        let this = self.clone();
        let on_drop = ReportOnDrop { events: self.events.clone(), report: interrupted(delivery) };
        // In a box, because tokio copies a task when it starts and when it ends.
        self.runtime.spawn(Box::pin(async move {
            let report = this.run(delivery, &node, attempt, bytes, task, fence).await;
            on_drop.end(report);
        }));
    }

    async fn run(
        &self,
        delivery: DeliveryId,
        node: &Node,
        attempt: u32,
        bytes: u64,
        task: Option<Arc<Task>>,
        fence: Fence,
    ) -> AttemptReport {
        // It may end again until the task is sent, so the connection checks it as well.
        if let Err(lost) = fence.held().await {
            let outcome = AttemptOutcome::certain(not_owned(lost), Duration::ZERO);
            return AttemptReport { outcome, ..interrupted(delivery) };
        }
        let (task, _permit) = match task {
            Some(task) => (task, None),
            None => match Box::pin(self.read_back(delivery, node, bytes, &fence)).await {
                Ok((task, permit)) => (task, Some(permit)),
                Err(verdict) => {
                    let outcome = AttemptOutcome::certain(verdict, Duration::ZERO);
                    return AttemptReport { outcome, ..interrupted(delivery) };
                }
            },
        };
        let now = wall_clock();
        let span = self.tracer.attempt(&task, node, attempt);
        // Without a span of its own, the replica gets the trace context of the request.
        let trace = span.as_ref().map(Span::trace).or_else(|| task.trace.clone());
        let outcome = self.client.send(node, &task, trace.as_ref(), now, &fence).await;
        if let Some(span) = span {
            span.ended(&outcome.verdict);
        }
        if let Some(error) = outcome.verdict.error() {
            debug!(target: TARGET, task = %task.id, replica = %node, attempt, %error, "attempt failed");
        }
        let node = Some(node.clone());
        AttemptReport { delivery, outcome, task: Some(task), node }
    }

    /// Reads the task of a delivery from disk. The permit holds its memory.
    ///
    /// Only an interrupted read is retried. A damaged row stays damaged, so the delivery becomes a
    /// dead letter. If the database fails or the task is missing, the store has failed, and the
    /// replica is not charged.
    async fn read_back(
        &self,
        delivery: DeliveryId,
        node: &Node,
        bytes: u64,
        fence: &Fence,
    ) -> Result<(Arc<Task>, ReadPermit), Verdict> {
        let Some(permit) = self.memory.take(node, bytes).await else {
            let error = format!("not sent: {}", self.memory.shortage()).into();
            return Err(Verdict::Shortage { error });
        };
        let why: Arc<str> = match self.journal.read(delivery.task).await {
            Ok(Some(task)) => return Ok((Arc::new(task), permit)),
            Err(ReadError::Damaged(damage)) => {
                let error = format!("not sent: the task cannot be read back: {damage}").into();
                error!(target: TARGET, task = %delivery.task, %error, "a task is damaged in the store");
                return Err(Verdict::Rejected { error });
            }
            Err(error @ ReadError::Database(_)) => error.to_string().into(),
            // Another owner may have settled it.
            Ok(None) if !fence.is_held() => return Err(not_owned(LeaseLost)),
            Ok(None) => format!("the task {} has vanished from the store", delivery.task).into(),
            Err(error @ ReadError::Interrupted) => {
                let error = error.to_string().into();
                return Err(Verdict::Shortage { error });
            }
        };
        // Before the report of this attempt, so that it changes nothing on disk.
        let _ = self.events.send(LoopEvent::Journal(JournalEvent::Failed(Arc::clone(&why))));
        Err(Verdict::Retry { after: None, error: why })
    }
}

fn not_owned(lost: LeaseLost) -> Verdict {
    Verdict::Shortage { error: format!("not sent: {lost}").into() }
}

/// The fallback for an attempt that panicked or was cancelled.
fn interrupted(delivery: DeliveryId) -> AttemptReport {
    let error = "the attempt was interrupted".into();
    let verdict = Verdict::Retry { after: None, error };
    let outcome = AttemptOutcome { verdict, ambiguous: true, took: Duration::ZERO };
    AttemptReport { delivery, outcome, task: None, node: None }
}

/// Sends the report when it is dropped, so that an attempt that panics or is cancelled frees its
/// place.
struct ReportOnDrop {
    report: AttemptReport,
    events: mpsc::UnboundedSender<LoopEvent>,
}

impl ReportOnDrop {
    fn end(mut self, report: AttemptReport) {
        self.report = report;
    }
}

impl Drop for ReportOnDrop {
    fn drop(&mut self) {
        let fallback = interrupted(self.report.delivery);
        let report = std::mem::replace(&mut self.report, fallback);
        // The loop may have ended at the drain timeout.
        let _ = self.events.send(LoopEvent::AttemptEnded(report));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{BootTime, Lease};
    use crate::policy::Policy;
    use crate::replica::{ClientSettings, ClientTls, ReplicaHttp2, ReplicaTokens};
    use crate::store::{KeyLimits, MemoryJournal, MemoryStore};
    use crate::task::{ReplicaIndex, TaskId};

    const LONG: Duration = Duration::from_secs(3_600);
    const DELIVERY: DeliveryId = DeliveryId { task: TaskId(1), replica: ReplicaIndex(0) };

    /// Attempts over an empty journal with this fence.
    fn attempts(fence: Fence) -> (Attempts, mpsc::UnboundedReceiver<LoopEvent>) {
        let settings = ClientSettings {
            node_id: "test".into(),
            request_timeout: LONG,
            connection_age: LONG,
            idle_per_replica: 1,
            idle_replicas: 1,
            http2: ReplicaHttp2::Off,
        };
        let (tls, tokens) = (ClientTls::default(), ReplicaTokens::default());
        let client = ReplicaClient::new(&settings, Policy::new(None, None), tls, tokens).unwrap();
        let store = MemoryStore::new(TaskId(1), KeyLimits { window: LONG, most: 1 });
        let journal = MemoryJournal::open(&store, drop);
        journal.set_fence(fence);
        let (events, receiver) = mpsc::unbounded_channel();
        let attempts = Attempts {
            client,
            journal: Arc::new(journal),
            events,
            memory: ReadMemory::new(1),
            tracer: Tracer::off(),
            runtime: Handle::current(),
        };
        (attempts, receiver)
    }

    fn node() -> Node {
        Node::parse("http://127.0.0.1:1").unwrap()
    }

    #[track_caller]
    fn is_withheld(event: Option<LoopEvent>) {
        let Some(LoopEvent::AttemptEnded(AttemptReport { outcome, .. })) = event else {
            panic!("the attempt has ended otherwise");
        };
        let error = "not sent: another instance owns the partition".into();
        let expected = AttemptOutcome::certain(Verdict::Shortage { error }, Duration::ZERO);
        assert_eq!(outcome, expected);
    }

    #[tokio::test]
    async fn an_attempt_waits_for_the_lease_and_ends_unsent_if_it_is_lost() {
        let lease = Lease::new();
        let (attempts, mut events) = attempts(Fence::Held { epoch: 1, lease: lease.clone() });
        attempts.start(DELIVERY, node(), 1, 1, None);
        tokio::task::yield_now().await;
        assert!(events.try_recv().is_err());
        lease.lose();
        is_withheld(events.recv().await);
    }

    #[tokio::test]
    async fn a_task_that_another_owner_has_settled_is_no_failure_of_the_store() {
        let lease = Lease::new();
        lease.extend(BootTime::now() + LONG);
        let (attempts, mut events) = attempts(Fence::Held { epoch: 1, lease: lease.clone() });
        let permit = attempts.memory.take(&node(), 1).await.unwrap();
        attempts.start(DELIVERY, node(), 1, 1, None);
        tokio::task::yield_now().await;
        lease.lose();
        drop(permit);
        is_withheld(events.recv().await);
    }
}
