//! Attempts: one HTTP call of a delivery each, in a task of its own.

use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{debug, error};

use crate::clock::wall_clock;
use crate::dispatcher::messages::{AttemptReport, LoopEvent};
use crate::dispatcher::read_memory::{ReadMemory, ReadPermit};
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
        let this = self.clone();
        let on_drop = ReportOnDrop { events: self.events.clone(), report: interrupted(delivery) };
        // In a box, because tokio copies a task when it starts and when it ends.
        self.runtime.spawn(Box::pin(async move {
            let report = this.run(delivery, &node, attempt, bytes, task).await;
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
    ) -> AttemptReport {
        let (task, _permit) = match task {
            Some(task) => (task, None),
            None => match Box::pin(self.read_back(delivery, node, bytes)).await {
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
        let outcome = self.client.send(node, &task, trace.as_ref(), now).await;
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
