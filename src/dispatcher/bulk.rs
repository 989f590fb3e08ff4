//! Redriving and discarding many dead letters: work that goes on while its operator looks on.
//!
//! An operation is a task of its own that looks for letters page by page and hands them to the
//! loop. It does not survive a restart, and ends with the daemon; what it has not come to stays as
//! it was.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};

use crate::api::{BulkOperation, OperationKind, OperationState};
use crate::clock::wall_clock;
use crate::dispatcher::Handle;
use crate::dispatcher::messages::{AdminError, Letter, LetterFilter, Order};
use crate::dispatcher::view;
use crate::engine::AdminOutcome;

/// Operations that may run at once.
const RUNNING: usize = 4;
/// Operations that are remembered.
const KEPT: usize = 100;
/// Letters that are looked for at once.
const PAGE: usize = 500;
/// How often a redrive goes on; at each step it takes as many as its rate allows.
const STEP: Duration = Duration::from_millis(50);

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub(super) kind: OperationKind,
    pub(super) filter: LetterFilter,
    pub(super) dry_run: bool,
    pub(super) rate: Option<NonZeroU32>,
}

/// The operations that run, and the last that ended.
#[derive(Clone, Debug, Default)]
pub(crate) struct Operations(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    begun: u64,
    /// Oldest first.
    operations: VecDeque<Known>,
}

#[derive(Debug)]
struct Known {
    operation: BulkOperation,
    /// Sent to once.
    cancel: Option<oneshot::Sender<()>>,
    /// Closed when it has ended, and is told as such.
    ended: watch::Receiver<()>,
}

impl Operations {
    fn with<T>(&self, what: impl FnOnce(&mut Inner) -> T) -> T {
        // Whole between any two steps, whatever panicked while it was held.
        what(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Starts to work.
    pub(super) fn begin(
        &self,
        handle: Handle,
        work: Work,
        total: u64,
    ) -> Result<BulkOperation, AdminError> {
        let (cancel, mut cancelled) = oneshot::channel();
        let (end, ended) = watch::channel(());
        let begun = self.with(|inner| {
            let is_running = |known: &&Known| known.operation.state == OperationState::Running;
            if inner.operations.iter().filter(is_running).count() >= RUNNING {
                let error = format!("too many operations are running, the limit is {RUNNING}");
                return Err(AdminError::TooMany(error));
            }
            inner.begun += 1;
            let operation = BulkOperation {
                operation_id: inner.begun.to_string(),
                kind: work.kind,
                state: OperationState::Running,
                dry_run: work.dry_run,
                examined: 0,
                matched: 0,
                done: 0,
                superseded: 0,
                held_back: 0,
                total,
                rate: work.rate.map(NonZeroU32::get),
                started_at: view::time(wall_clock()),
                ended_at: None,
                error: None,
            };
            let known = Known { operation: operation.clone(), cancel: Some(cancel), ended };
            inner.operations.push_back(known);
            if inner.operations.len() > KEPT {
                let first = inner.operations.iter().position(|known| !is_running(&known));
                first.map(|first| inner.operations.remove(first));
            }
            Ok(operation)
        })?;
        let this = self.clone();
        let id = begun.operation_id.clone();
        tokio::spawn(async move {
            let worked = this.work(&id, &handle, work, &mut cancelled).await;
            this.change(&id, |operation| {
                operation.ended_at = Some(view::time(wall_clock()));
                operation.state = match worked {
                    Ok(state) => state,
                    Err(error) => {
                        operation.error = Some(error.to_string());
                        OperationState::Failed
                    }
                };
            });
            drop(end);
        });
        Ok(begun)
    }

    /// Looks for `cancelled` where nothing is ordered that would then be done and not counted.
    async fn work(
        &self,
        id: &str,
        handle: &Handle,
        work: Work,
        cancelled: &mut oneshot::Receiver<()>,
    ) -> Result<OperationState, AdminError> {
        let order = match work.kind {
            OperationKind::Redrive if work.dry_run => Order::WouldRedrive,
            OperationKind::Redrive => Order::Redrive,
            OperationKind::Discard => Order::Discard,
        };
        let mut cursor = None;
        loop {
            let page = tokio::select! {
                page = handle.letters(work.filter.clone(), PAGE, cursor) => page?,
                _ = &mut *cancelled => return Ok(OperationState::Cancelled),
            };
            let matched = page.items.len() as u64;
            self.change(id, |operation| operation.matched += matched);
            if work.kind == OperationKind::Discard && work.dry_run {
                self.change(id, |operation| operation.done += matched);
            } else if !self
                .steer_all(id, handle, &page.items, (order, work.rate), cancelled)
                .await?
            {
                return Ok(OperationState::Cancelled);
            }
            let examined = page.examined as u64;
            self.change(id, |operation| operation.examined += examined);
            cursor = page.next;
            if cursor.is_none() {
                return Ok(OperationState::Done);
            }
        }
    }

    /// False if it was cancelled.
    async fn steer_all(
        &self,
        id: &str,
        handle: &Handle,
        letters: &[Letter],
        (order, rate): (Order, Option<NonZeroU32>),
        cancelled: &mut oneshot::Receiver<()>,
    ) -> Result<bool, AdminError> {
        let rate = rate.filter(|_| order == Order::Redrive);
        // A slow one takes one letter at longer intervals.
        let (at_once, pause) = match rate {
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
            let steered = handle.steer(deliveries, order).await?;
            let count = |is: AdminOutcome| steered.iter().filter(|&&one| one == is).count() as u64;
            let (done, left_out) = (count(AdminOutcome::Done), count(AdminOutcome::LeftOut));
            let held_back = count(AdminOutcome::HeldBack);
            self.change(id, |operation| {
                operation.done += done;
                operation.superseded += left_out;
                operation.held_back += held_back;
            });
            tokio::select! {
                biased;
                _ = &mut *cancelled => return Ok(false),
                () = tokio::time::sleep(pause) => {}
            }
        }
        Ok(true)
    }

    fn change(&self, id: &str, what: impl FnOnce(&mut BulkOperation)) {
        self.with(|inner| {
            if let Some(known) = inner.find(id) {
                what(&mut known.operation);
            }
        });
    }

    /// Newest first.
    pub(super) fn all(&self) -> Vec<BulkOperation> {
        self.with(|inner| {
            inner.operations.iter().rev().map(|known| known.operation.clone()).collect()
        })
    }

    pub(super) fn get(&self, id: &str) -> Option<BulkOperation> {
        self.with(|inner| inner.find(id).map(|known| known.operation.clone()))
    }

    /// Ends one, if it still runs, and waits for its end: what it was just doing is done.
    pub(super) async fn cancel(&self, id: &str) -> Option<BulkOperation> {
        let mut ended = self.with(|inner| {
            let known = inner.find(id)?;
            if let Some(cancel) = known.cancel.take() {
                // It may have come to its end at this moment.
                let _ = cancel.send(());
            }
            Some(known.ended.clone())
        })?;
        // Nothing is ever sent: it is closed.
        let _ = ended.changed().await;
        self.get(id)
    }
}

impl Inner {
    fn find(&mut self, id: &str) -> Option<&mut Known> {
        self.operations.iter_mut().find(|known| known.operation.operation_id == id)
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::UnboundedReceiver;

    use super::*;
    use crate::dispatcher::messages::{Query, Request, Step};
    use crate::task::{DeliveryId, ReplicaIndex, TaskId};

    fn letter(task: u64) -> Letter {
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
        Letter { delivery, shown }
    }

    async fn asked(requests: &mut UnboundedReceiver<Request>) -> Query {
        match requests.recv().await.unwrap() {
            Request::Admin(query) => query,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_cancels_hears_of_the_end_however_long_the_last_step_takes() {
        let (handle, mut requests, _health) = Handle::for_tests();
        let operations = Operations::default();
        let filter = LetterFilter::default();
        let work = Work { kind: OperationKind::Discard, filter, dry_run: false, rate: None };
        let begun = operations.begin(handle, work, 2).unwrap();
        let Query::Letters { reply, .. } = asked(&mut requests).await else { panic!() };
        let items = vec![letter(1), letter(2)];
        reply.send(Ok(Step { items, examined: 2, next: None })).unwrap();
        let Query::Steer { reply, .. } = asked(&mut requests).await else { panic!() };
        let slow = async {
            tokio::time::sleep(Duration::from_secs(60)).await;
            reply.send(Ok(vec![AdminOutcome::Done; 2])).unwrap();
        };
        let (cancelled, ()) = tokio::join!(operations.cancel(&begun.operation_id), slow);
        let cancelled = cancelled.unwrap();
        assert_eq!((cancelled.state, cancelled.done), (OperationState::Cancelled, 2));
        assert!(cancelled.ended_at.is_some());
        assert_eq!(operations.cancel(&begun.operation_id).await, Some(cancelled), "it is over");
        assert_eq!(operations.cancel("7").await, None);
    }
}
