//! Redriving and discarding many dead letters: work that goes on while its operator looks on.
//!
//! An operation is a task of its own that looks for letters page by page and hands them to the
//! loop. It does not survive a restart, and ends with the daemon; what it has not come to stays as
//! it was.

use std::collections::VecDeque;
use std::num::NonZeroU32;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::api::{Operation, OperationKind, OperationState};
use crate::daemon::Handle;
use crate::daemon::clock;
use crate::daemon::operate::{Letter, LetterFilter, OperateError, Order};
use crate::daemon::view;
use crate::engine::Steered;

/// Operations that may run at once.
const RUNNING: usize = 4;
/// Operations that are remembered.
const KEPT: usize = 100;
/// Letters that are looked for at once.
const PAGE: usize = 500;
/// How often a redrive goes on; at each step it takes as many as its rate allows.
const STEP: Duration = Duration::from_millis(50);

/// How long the end of one that was cancelled is waited for: so many times so long.
const CANCEL_LOOKS: u32 = 100;
const CANCEL_LOOK: Duration = Duration::from_millis(10);

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
pub(super) struct Operations(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    begun: u64,
    /// Oldest first.
    operations: VecDeque<(Operation, Option<oneshot::Sender<()>>)>,
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
    ) -> Result<Operation, OperateError> {
        let (cancel, mut cancelled) = oneshot::channel();
        let begun = self.with(|inner| {
            let is_running =
                |(operation, _): &&(Operation, _)| operation.state == OperationState::Running;
            if inner.operations.iter().filter(is_running).count() >= RUNNING {
                let error = format!("{RUNNING} operations run already, as many as may at once");
                return Err(OperateError::TooMany(error));
            }
            inner.begun += 1;
            let operation = Operation {
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
                started_at: view::time(clock::wall()),
                ended_at: None,
                error: None,
            };
            inner.operations.push_back((operation.clone(), Some(cancel)));
            if inner.operations.len() > KEPT {
                let over =
                    |(operation, _): &(Operation, _)| operation.state != OperationState::Running;
                let first = inner.operations.iter().position(over);
                first.map(|first| inner.operations.remove(first));
            }
            Ok(operation)
        })?;
        let this = self.clone();
        let id = begun.operation_id.clone();
        tokio::spawn(async move {
            let worked = this.work(&id, &handle, work, &mut cancelled).await;
            this.change(&id, |operation| {
                operation.ended_at = Some(view::time(clock::wall()));
                operation.state = match worked {
                    Ok(state) => state,
                    Err(error) => {
                        operation.error = Some(error.to_string());
                        OperationState::Failed
                    }
                };
            });
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
    ) -> Result<OperationState, OperateError> {
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
    ) -> Result<bool, OperateError> {
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
            let count = |is: Steered| steered.iter().filter(|&&one| one == is).count() as u64;
            let (done, left_out) = (count(Steered::Done), count(Steered::LeftOut));
            let held_back = count(Steered::HeldBack);
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

    fn change(&self, id: &str, what: impl FnOnce(&mut Operation)) {
        self.with(|inner| {
            let found = inner.operations.iter_mut().find(|(one, _)| one.operation_id == id);
            if let Some((operation, _)) = found {
                what(operation);
            }
        });
    }

    /// Newest first.
    pub(super) fn all(&self) -> Vec<Operation> {
        self.with(|inner| inner.operations.iter().rev().map(|(one, _)| one.clone()).collect())
    }

    pub(super) fn get(&self, id: &str) -> Option<Operation> {
        self.with(|inner| {
            let found = inner.operations.iter().find(|(one, _)| one.operation_id == id);
            found.map(|(operation, _)| operation.clone())
        })
    }

    /// Ends one, if it still runs, and waits a moment for its end: what it was just doing is done.
    pub(super) async fn cancel(&self, id: &str) -> Option<Operation> {
        self.with(|inner| {
            let found = inner.operations.iter_mut().find(|(one, _)| one.operation_id == id);
            // It may have come to its end at this moment.
            found.and_then(|(_, cancel)| cancel.take()).map(|cancel| cancel.send(()))
        });
        for _ in 0..CANCEL_LOOKS {
            let found = self.get(id)?;
            if found.state != OperationState::Running {
                return Some(found);
            }
            tokio::time::sleep(CANCEL_LOOK).await;
        }
        self.get(id)
    }
}
