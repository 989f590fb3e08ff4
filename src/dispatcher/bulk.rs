//! Operations: redrive or discard many dead letters in the background.
//!
//! An operation is a task that finds letters page by page and passes them to the loop. It does not
//! survive a restart and ends with the daemon; the remaining letters stay unchanged.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};

use crate::api::{BulkOperation, OperationKind, OperationState, RedriveOutcomes};
use crate::clock::wall_clock;
use crate::dispatcher::Handle;
use crate::dispatcher::cluster::ownership::Claim;
use crate::dispatcher::messages::{AdminError, FoundLetter, LetterAction, LetterFilter};
use crate::dispatcher::view;
use crate::engine::{AdminOutcome, RedriveOutcome};

const MAX_RUNNING: usize = 4;
const MAX_OPERATIONS: usize = 100;
const PAGE: usize = 500;
/// A redrive takes the letters of its rate at least this far apart.
const STEP: Duration = Duration::from_millis(50);

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BulkWork {
    pub(super) kind: OperationKind,
    pub(super) filter: LetterFilter,
    pub(super) dry_run: bool,
    pub(super) rate: Option<NonZeroU32>,
}

/// An instance that takes part in an operation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Participant {
    pub(super) process: u64,
    pub(super) node: String,
}

/// The part of an operation that other instances take part in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SharedOperation {
    /// The same at all of them.
    pub(super) id: String,
    pub(super) participants: Vec<Participant>,
}

/// What one process does of an operation.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct OperationPart {
    pub(super) operation: BulkOperation,
    /// Empty with a store of one process.
    pub(super) participants: Vec<Participant>,
    /// The partitions that it owned all the time.
    pub(super) partitions: Vec<u16>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Operations(Arc<Mutex<OperationList>>);

#[derive(Debug, Default)]
struct OperationList {
    started: u32,
    /// Oldest first.
    records: VecDeque<OperationRecord>,
}

#[derive(Debug)]
struct OperationRecord {
    number: u32,
    operation: BulkOperation,
    participants: Vec<Participant>,
    claims: Vec<Claim>,
    /// Used once.
    cancel: Option<oneshot::Sender<()>>,
    /// Closed when the operation has ended and its state says so.
    ended: watch::Receiver<()>,
}

impl Handle {
    /// Starts an operation on the dead letters of this process. [`AdminError::TooMany`] at the limit of
    /// running operations.
    pub(super) async fn start_operation_here(
        &self,
        work: BulkWork,
        shared: Option<SharedOperation>,
    ) -> Result<OperationPart, AdminError> {
        let claims = match &shared {
            Some(_) => self.claims().await?,
            None => Vec::new(),
        };
        let replicas = self.replicas_here(None).await?;
        let total = replicas.iter().map(|replica| replica.dead_letters + replica.parked).sum();
        self.operator.operations.start(self.clone(), work, (total, claims), shared)
    }

    /// The operations that are remembered, newest first; or the one with this id.
    pub(super) fn operations_here(&self, id: Option<&str>) -> Vec<OperationPart> {
        let is_asked =
            |record: &&OperationRecord| id.is_none_or(|id| record.operation.operation_id == id);
        self.operator.operations.with(|list| {
            list.records.iter().rev().filter(is_asked).map(OperationRecord::shown).collect()
        })
    }

    /// Cancels an operation if it still runs, and waits for its end: the letters it has already
    /// passed to the loop are counted.
    pub(super) async fn cancel_here(&self, id: &str) -> Option<OperationPart> {
        let mut ended = self.operator.operations.with(|list| {
            let record = list.find(id)?;
            if let Some(cancel) = record.cancel.take() {
                // It may have ended at this moment.
                let _ = cancel.send(());
            }
            Some(record.ended.clone())
        })?;
        // Nothing is ever sent: the channel is closed.
        let _ = ended.changed().await;
        self.operations_here(Some(id)).pop()
    }
}

impl Operations {
    fn with<T>(&self, f: impl FnOnce(&mut OperationList) -> T) -> T {
        f(&mut self.0.lock())
    }

    /// A letter that an operation redrove has its outcome.
    pub(super) fn redrive_ended(&self, operation: u32, outcome: RedriveOutcome) {
        self.with(|list| {
            let Some(record) = list.of(operation) else { return };
            let Some(outcomes) = &mut record.operation.outcomes else { return };
            *match outcome {
                RedriveOutcome::Delivered => &mut outcomes.delivered,
                RedriveOutcome::Failed => &mut outcomes.failed,
                RedriveOutcome::Superseded => &mut outcomes.superseded,
                RedriveOutcome::Discarded => &mut outcomes.discarded,
                RedriveOutcome::HandedOver => &mut outcomes.handed_over,
            } += 1;
        });
    }

    fn start(
        &self,
        handle: Handle,
        work: BulkWork,
        (total, claims): (u64, Vec<Claim>),
        shared: Option<SharedOperation>,
    ) -> Result<OperationPart, AdminError> {
        let (cancel, cancelled) = oneshot::channel();
        let (end, ended) = watch::channel(());
        let (number, part) = self.with(|list| {
            let is_running =
                |record: &&OperationRecord| record.operation.state == OperationState::Running;
            if list.records.iter().filter(is_running).count() >= MAX_RUNNING {
                let error = format!("too many operations are running, the limit is {MAX_RUNNING}");
                return Err(AdminError::TooMany(error));
            }
            list.started += 1;
            let (id, participants) = match shared {
                Some(SharedOperation { id, participants }) => (id, participants),
                None => (list.started.to_string(), Vec::new()),
            };
            let is_redrive = work.kind == OperationKind::Redrive && !work.dry_run;
            let operation = BulkOperation {
                operation_id: id,
                kind: work.kind,
                state: OperationState::Running,
                dry_run: work.dry_run,
                examined: 0,
                matched: 0,
                done: 0,
                superseded: 0,
                held_back: 0,
                outcomes: is_redrive.then(RedriveOutcomes::default),
                total,
                rate: work.rate.map(NonZeroU32::get),
                started_at: view::time(wall_clock()),
                ended_at: None,
                error: None,
                incomplete: Vec::new(),
            };
            let record = OperationRecord {
                number: list.started,
                operation,
                participants,
                claims,
                cancel: Some(cancel),
                ended,
            };
            let part = record.shown();
            list.records.push_back(record);
            if list.records.len() > MAX_OPERATIONS {
                let first = list.records.iter().position(|record| !is_running(&record));
                first.map(|first| list.records.remove(first));
            }
            Ok((list.started, part))
        })?;
        let mut run = BulkRun { operations: self.clone(), handle, number, cancelled };
        tokio::spawn(async move {
            let result = run.run(work).await;
            run.keep_claims().await;
            run.update(|operation| {
                operation.ended_at = Some(view::time(wall_clock()));
                operation.state = match result {
                    Ok(state) => state,
                    Err(error) => {
                        operation.error = Some(error.to_string());
                        OperationState::Failed
                    }
                };
            });
            drop(end);
        });
        Ok(part)
    }
}

impl OperationRecord {
    fn shown(&self) -> OperationPart {
        let mut operation = self.operation.clone();
        if let Some(outcomes) = &mut operation.outcomes {
            let RedriveOutcomes { delivered, failed, superseded, discarded, handed_over, .. } =
                *outcomes;
            // An outcome can arrive before its letter is counted as done.
            let ended = delivered + failed + superseded + discarded + handed_over;
            outcomes.waiting = operation.done.saturating_sub(ended);
        }
        let partitions = self.claims.iter().map(|claim| claim.partition.0).collect();
        OperationPart { operation, participants: self.participants.clone(), partitions }
    }
}

impl OperationList {
    fn of(&mut self, number: u32) -> Option<&mut OperationRecord> {
        self.records.iter_mut().find(|record| record.number == number)
    }

    fn find(&mut self, id: &str) -> Option<&mut OperationRecord> {
        self.records.iter_mut().find(|record| record.operation.operation_id == id)
    }
}

/// A running operation. It cannot be cancelled while the loop applies letters, because their outcome
/// must be counted.
struct BulkRun {
    operations: Operations,
    handle: Handle,
    number: u32,
    cancelled: oneshot::Receiver<()>,
}

impl BulkRun {
    async fn run(&mut self, work: BulkWork) -> Result<OperationState, AdminError> {
        let action = match work.kind {
            OperationKind::Redrive if work.dry_run => LetterAction::DryRedrive,
            OperationKind::Redrive => LetterAction::Redrive(self.number),
            OperationKind::Discard => LetterAction::Discard,
        };
        let mut cursor = None;
        loop {
            let page = tokio::select! {
                page = self.handle.letters(work.filter.clone(), PAGE, cursor) => page?,
                _ = &mut self.cancelled => return Ok(OperationState::Cancelled),
            };
            let matched = page.items.len() as u64;
            self.update(|operation| operation.matched += matched);
            if work.kind == OperationKind::Discard && work.dry_run {
                self.update(|operation| operation.done += matched);
            } else if !self.apply_to_all(&page.items, action, work.rate).await? {
                return Ok(OperationState::Cancelled);
            }
            let examined = page.examined as u64;
            self.update(|operation| operation.examined += examined);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(OperationState::Done);
            }
        }
    }

    /// Returns false if it was cancelled.
    async fn apply_to_all(
        &mut self,
        letters: &[FoundLetter],
        action: LetterAction,
        rate: Option<NonZeroU32>,
    ) -> Result<bool, AdminError> {
        // Below one letter per step, the pause grows.
        let (at_once, pause) = match rate.filter(|_| matches!(action, LetterAction::Redrive(_))) {
            None => (PAGE, Duration::ZERO),
            Some(rate) => {
                let pause = STEP.max(Duration::from_secs(1) / rate.get());
                let millis = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
                let at_once = u64::from(rate.get()).saturating_mul(millis) / 1000;
                (usize::try_from(at_once).unwrap_or(PAGE).max(1), pause)
            }
        };
        for some in letters.chunks(at_once) {
            let deliveries = some.iter().map(|letter| letter.delivery).collect();
            let outcomes = self.handle.apply(deliveries, action).await?;
            let count = |is: AdminOutcome| outcomes.iter().filter(|&&one| one == is).count() as u64;
            self.update(|operation| {
                operation.done += count(AdminOutcome::Done);
                operation.superseded += count(AdminOutcome::LeftOut);
                operation.held_back += count(AdminOutcome::HeldBack);
            });
            tokio::select! {
                biased;
                _ = &mut self.cancelled => return Ok(false),
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(true)
    }

    /// Forgets the partitions that were released meanwhile.
    async fn keep_claims(&self) {
        let is_shared = self.operations.with(|list| {
            list.of(self.number).is_some_and(|record| !record.participants.is_empty())
        });
        if !is_shared {
            return;
        }
        let kept = self.handle.claims().await.unwrap_or_default();
        self.operations.with(|list| {
            if let Some(record) = list.of(self.number) {
                record.claims.retain(|claim| kept.contains(claim));
            }
        });
    }

    fn update(&self, change: impl FnOnce(&mut BulkOperation)) {
        self.operations.with(|list| {
            if let Some(record) = list.of(self.number) {
                change(&mut record.operation);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::UnboundedReceiver;

    use super::*;
    use crate::dispatcher::messages::Request;
    use crate::dispatcher::messages::{DeadLetterRequest, ListPart};
    use crate::task::{DeliveryId, ReplicaIndex, TaskId};

    fn letter(task: u64) -> FoundLetter {
        let delivery = DeliveryId { task: TaskId(task), replica: ReplicaIndex(0) };
        let shown = crate::api::DeadLetterInfo {
            task_id: task.to_string(),
            replica: "http://a".to_owned(),
            key: "k".to_owned(),
            operation: crate::task::Operation::Set,
            value_bytes: 1,
            user_id: None,
            accepted_at: String::new(),
            cause: crate::task::Cause::Rejected,
            failures: 1,
            last_error: String::new(),
            since: String::new(),
        };
        FoundLetter { delivery, shown }
    }

    async fn next_request(requests: &mut UnboundedReceiver<Request>) -> DeadLetterRequest {
        match requests.recv().await.unwrap() {
            Request::DeadLetters(request) => request,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_cancel_waits_for_the_end_of_the_last_step() {
        let (handle, mut requests, _health) = Handle::for_tests();
        let filter = LetterFilter::default();
        let work = BulkWork { kind: OperationKind::Discard, filter, dry_run: false, rate: None };
        let operations = &handle.operator.operations;
        let started = operations.start(handle.clone(), work, (2, vec![]), None).unwrap();
        let started = started.operation;
        let DeadLetterRequest::List { reply, .. } = next_request(&mut requests).await else {
            panic!()
        };
        let items = vec![letter(1), letter(2)];
        reply.send(Ok(ListPart { items, bytes: 0, examined: 2, next: None })).unwrap();
        let DeadLetterRequest::Apply { reply, .. } = next_request(&mut requests).await else {
            panic!()
        };
        let slow = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            reply.send(Ok(vec![AdminOutcome::Done; 2])).unwrap();
        };
        let (cancelled, ()) = tokio::join!(handle.cancel_here(&started.operation_id), slow);
        let cancelled = cancelled.unwrap().operation;
        assert_eq!((cancelled.state, cancelled.done), (OperationState::Cancelled, 2));
        assert!(cancelled.ended_at.is_some());
        let again = handle.cancel_here(&started.operation_id).await;
        assert_eq!(again.unwrap().operation, cancelled, "it has ended");
        assert!(handle.cancel_here("7").await.is_none());
    }
}
