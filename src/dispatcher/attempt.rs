//! An attempt: one HTTP call of a delivery, as a task of its own.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tracing::{debug, error};

use crate::clock::wall_clock;
use crate::dispatcher::messages::{AttemptReport, LoopEvent};
use crate::dispatcher::read_memory::{ReadMemory, ReadPermit};
use crate::replica::ReplicaClient;
use crate::store::{Journal, JournalEvent, ReadError};
use crate::task::{AttemptOutcome, DeliveryId, Node, Task, Verdict};
use crate::traces::{Span, Tracer};

/// The log target of attempts, which the documentation names: it stays, wherever this file is.
const TARGET: &str = "replicator::daemon::attempt";

/// Starts attempts.
#[derive(Clone)]
pub(crate) struct Attempts {
    pub(crate) client: ReplicaClient,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) events: mpsc::UnboundedSender<LoopEvent>,
    pub(crate) memory: ReadMemory,
    pub(crate) tracer: Tracer,
}

impl Attempts {
    /// Starts an attempt to `node`, under whatever name the task has it; its end arrives as [`LoopEvent::AttemptEnded`], whatever happens to it.
    ///
    /// `task` is the task if it is still in memory; else it is read back, within the memory for
    /// that, for which `bytes` is what it needs.
    pub(crate) fn start(
        &self,
        delivery: DeliveryId,
        node: Node,
        attempt: u32,
        bytes: u64,
        task: Option<Arc<Task>>,
    ) {
        let this = self.clone();
        let report = ReportOnDrop { events: self.events.clone(), answered: interrupted(delivery) };
        tokio::spawn(async move {
            let answered = this.run(delivery, &node, attempt, bytes, task).await;
            report.end(answered);
        });
    }

    async fn run(
        &self,
        delivery: DeliveryId,
        node: &Node,
        attempt: u32,
        bytes: u64,
        task: Option<Arc<Task>>,
    ) -> AttemptReport {
        let (task, _room) = match task {
            Some(task) => (task, None),
            None => match self.read_back(delivery, node, bytes).await {
                Ok((task, room)) => (task, Some(room)),
                Err(verdict) => {
                    let outcome = AttemptOutcome::certain(verdict, Duration::ZERO);
                    return AttemptReport { outcome, ..interrupted(delivery) };
                }
            },
        };
        let now = wall_clock();
        let span = self.tracer.attempt(&task, node, attempt);
        // Without a span of its own the replica gets what the request came with.
        let trace = span.as_ref().map(Span::trace).or_else(|| task.trace.clone());
        let outcome = self.client.send(node, &task, trace.as_ref(), now).await;
        if let Some(span) = span {
            span.ended(&outcome.verdict);
        }
        if let Verdict::Retry { error, .. }
        | Verdict::Shortage { error }
        | Verdict::Rejected { error } = &outcome.verdict
        {
            debug!(target: TARGET, task = %task.id, replica = %node, attempt, %error, "attempt failed");
        }
        let node = Some(node.clone());
        AttemptReport { delivery, outcome, task: Some(task), node }
    }

    /// Reads the task of a delivery from disk.
    ///
    /// Only a read that was interrupted is worth another attempt. A row that is damaged will be so
    /// the next time: the delivery becomes a dead letter. If the database fails, or the task is
    /// not there, the store has failed, and nothing is charged to the replica.
    ///
    /// The task may stay in memory as long as the permit lives.
    async fn read_back(
        &self,
        delivery: DeliveryId,
        node: &Node,
        bytes: u64,
    ) -> Result<(Arc<Task>, ReadPermit), Verdict> {
        let Some(room) = self.memory.take(node, bytes).await else {
            let error = format!("not sent: {}", self.memory.shortage()).into();
            return Err(Verdict::Shortage { error });
        };
        let why: Arc<str> = match self.journal.read(delivery.task).await {
            Ok(Some(task)) => return Ok((Arc::new(task), room)),
            Err(ReadError::Damaged(damage)) => {
                let error = format!("not sent, for it cannot be read back: {damage}").into();
                error!(target: TARGET, task = %delivery.task, %error, "a task is damaged in the store");
                return Err(Verdict::Rejected { error });
            }
            Err(error @ ReadError::Database(_)) => error.to_string().into(),
            Ok(None) => format!("the task {} has vanished from it", delivery.task).into(),
            Err(error @ ReadError::Interrupted) => {
                let error = error.to_string().into();
                return Err(Verdict::Shortage { error });
            }
        };
        // Before the end of this attempt, which then changes nothing on disk.
        let _ = self.events.send(LoopEvent::Journal(JournalEvent::Failed(Arc::clone(&why))));
        Err(Verdict::Retry { after: None, error: why })
    }
}

/// The outcome of an attempt that ended without reporting one.
fn interrupted(delivery: DeliveryId) -> AttemptReport {
    let error = "the attempt was interrupted".into();
    let verdict = Verdict::Retry { after: None, error };
    let outcome = AttemptOutcome { verdict, ambiguous: true, took: Duration::ZERO };
    AttemptReport { delivery, outcome, task: None, node: None }
}

/// Sends the outcome when it is dropped, so that an attempt that panics or is cancelled cannot
/// hold its place for ever.
struct ReportOnDrop {
    answered: AttemptReport,
    events: mpsc::UnboundedSender<LoopEvent>,
}

impl ReportOnDrop {
    fn end(mut self, answered: AttemptReport) {
        self.answered = answered;
    }
}

impl Drop for ReportOnDrop {
    fn drop(&mut self) {
        let nothing = interrupted(self.answered.delivery);
        let answered = std::mem::replace(&mut self.answered, nothing);
        // The loop may be gone, at the end of the grace.
        let _ = self.events.send(LoopEvent::AttemptEnded(answered));
    }
}
