//! The loop around the engine. It takes one event or request at a time, passes it to the engine, and
//! carries out the actions that the engine returns.
//!
//! Only this loop changes the engine, so there is no lock. The path of a write is `accept.rs`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use crate::clock::Clock;
use crate::dispatcher::admin::PendingAdmin;
use crate::dispatcher::attempt::Attempts;
use crate::dispatcher::claim;
use crate::dispatcher::cluster::ownership::Ownership;
use crate::dispatcher::log_throttle::ThrottledEvent;
use crate::dispatcher::messages::{AttemptReport, Health, LoopEvent, Request};
use crate::dispatcher::replica_registry::ReplicaRegistry;
use crate::dispatcher::task_cache::TaskCache;
use crate::dispatcher::uptime::UptimeRecorder;
use crate::dispatcher::verify::{RecentWrites, VerifiedBoard};
use crate::engine::{Engine, EngineAction, KeyHasher, Moment, Now};
use crate::store::{Journal, JournalEvent};
use crate::task::{Partition, Progress, TaskId, Verdict};

mod accept;
mod answers;
mod observability;
mod snapshot;

pub(crate) use accept::Intake;
pub(crate) use observability::Observability;

use answers::StrongResult;

/// Events and requests that are taken at once before the timers are checked again.
const BATCH: usize = 256;

pub(crate) struct Core {
    pub(crate) engine: Engine,
    pub(crate) keys: KeyHasher,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) clock: Clock,
    pub(crate) health: watch::Sender<Health>,
    pub(crate) registry: ReplicaRegistry,
    pub(crate) uptime: UptimeRecorder,
    /// The partitions of this process, in a cluster.
    pub(crate) ownership: Ownership,
    pub(crate) attempts: Attempts,
    pub(crate) task_cache: TaskCache,
    /// The newest writes, which can be compared with their primaries.
    pub(crate) recent: RecentWrites,
    /// Shared with the verifications.
    pub(crate) verified: VerifiedBoard,
    /// Writes from request to answer.
    pub(crate) intake: Intake,
    /// Admin requests that take more than one turn.
    pub(crate) admin: PendingAdmin,
    /// Partitions that are handed over when nothing of them is in flight.
    pub(crate) releasing: Vec<Partition>,
    /// Metrics, log, events and history.
    pub(crate) observed: Observability,
}

impl Core {
    /// Runs until [`LoopEvent::Stop`], and then until no attempt is in flight.
    pub(crate) async fn run(
        mut self,
        mut events: mpsc::UnboundedReceiver<LoopEvent>,
        mut requests: mpsc::UnboundedReceiver<Request>,
    ) {
        let mut event_batch = Vec::with_capacity(BATCH);
        let mut request_batch = Vec::with_capacity(BATCH);
        let mut requests_open = true;
        let mut stopping = false;
        let mut last = self.clock.now();
        let mut next_second = Moment::default();
        self.engine.report_ends(self.observed.history.is_enabled());
        self.act(last);
        while !(stopping && self.engine.levels().in_flight == 0) {
            let timers =
                [self.engine.wake_at(), self.intake.wake_at(), self.observed.throttle.wake_at()];
            let wake = timers.into_iter().flatten().fold(next_second, Moment::min);
            tokio::select! {
                _ = events.recv_many(&mut event_batch, BATCH) => {}
                n = requests.recv_many(&mut request_batch, BATCH), if requests_open => {
                    requests_open = n > 0;
                }
                () = tokio::time::sleep_until(self.clock.instant(wake)) => {
                    // Events that have already happened come before timeouts.
                    while event_batch.len() < BATCH && let Ok(event) = events.try_recv() {
                        event_batch.push(event);
                    }
                }
            }
            if let Some(gap) = self.clock.woke(last.moment, wake) {
                warn!(
                    seconds = gap.as_secs_f64(),
                    "the daemon did not run for a while (stopped, suspended or overloaded): that time does not count for timeouts"
                );
            }
            let now = self.clock.now();
            last = now;
            // First, because ages depend on it.
            if let Some(uptime) = self.uptime.observe(now) {
                self.engine.set_uptime(uptime.clone());
            }
            let (watched, tasks_watched) = self.observed.bus.watched(now.moment);
            self.engine.watch(tasks_watched);
            for event in event_batch.drain(..) {
                stopping |= matches!(event, LoopEvent::Stop);
                self.handle(now, event);
            }
            request_batch.drain(..).for_each(|request| self.serve(now, request));
            self.engine.tick(now);
            self.act(now);
            self.admit_waiting(now);
            if next_second <= now.moment {
                next_second = now.moment.after(Duration::from_secs(1));
                self.tick_second(now, watched);
            }
            self.answer_forgotten(now);
            self.answer_counted();
            self.observed.throttle.tick(now.moment);
            self.observed.bus.wake();
        }
        let lanes: Vec<_> = self.engine.lanes().collect();
        self.raise_alarms(last, &lanes, true);
        self.observed.bus.close();
        self.observed.throttle.flush();
    }

    fn serve(&mut self, now: Now, request: Request) {
        match request {
            Request::Replicate(writes) => {
                writes.into_iter().for_each(|write| self.replicate(now, write));
                self.append(now);
            }
            Request::Tasks(request) => self.serve_tasks(now, request),
            Request::Replicas(request) => self.serve_replicas(now, request),
            Request::DeadLetters(request) => self.serve_dead_letters(now, request),
            Request::Barrier(request) => self.serve_barrier(request),
            Request::Verify(question) => self.serve_verify(now, question),
            Request::Claims { reply } => {
                let mut claims = self.ownership.claims();
                claims.retain(|claim| self.journal.holds(claim.partition));
                // The asker may be gone.
                let _ = reply.send(claims);
            }
            Request::HasRead { id, reply } => {
                let _ = reply.send(self.has_read(id));
            }
            Request::Past { node, reply } => self.show_past(node.as_ref(), reply),
            Request::StoreSnapshot { reply } => self.store_snapshot(reply),
            Request::Snapshot { reply } => {
                let _ = reply.send(Box::new(self.snapshot()));
            }
        }
        self.act(now);
    }

    fn handle(&mut self, now: Now, event: LoopEvent) {
        match event {
            LoopEvent::Appended { write, outcome } => self.appended(now, write, outcome),
            LoopEvent::Withdrawn(id) => self.withdrawn(now, id),
            LoopEvent::Journal(event) => self.handle_journal(now, event),
            LoopEvent::AttemptEnded(report) => self.attempt_ended(now, report),
            LoopEvent::CredentialsRenewed => self.engine.credentials_renewed(now),
            LoopEvent::Reconfigured { engine, queue_wait } => {
                self.engine.reconfigure(now, &engine);
                self.intake.queue_wait = queue_wait;
            }
            LoopEvent::Quotas(quotas) => self.engine.set_quotas(quotas),
            LoopEvent::Refuse => self.refuse_from_now_on(Health::Draining),
            LoopEvent::Stop => {
                self.engine.stop_sending();
                let in_flight = self.engine.levels().in_flight;
                info!(in_flight, "no more deliveries are started; those in flight are finished");
            }
        }
        self.act(now);
        self.report_quiet();
        // It can be large, and its actions are done.
        self.observed.last_sent = None;
    }

    fn handle_journal(&mut self, now: Now, event: JournalEvent) {
        let Self { engine, keys, registry, .. } = self;
        match event {
            JournalEvent::Arrived { partition, tasks, took } => {
                self.observed.latency.committed(tasks.len(), took);
                tasks.iter().for_each(|task| self.arrived(now, partition, task));
            }
            JournalEvent::Claimed { partition, tasks } => {
                let last = tasks.last().map_or(TaskId(0), |task| task.header.id);
                self.intake.newest = self.intake.newest.max(last);
                self.ownership.claimed(partition);
                claim::tasks(engine, keys, registry, now, partition, tasks);
            }
            JournalEvent::Releasing { partition } => {
                engine.hold_back(partition);
                self.releasing.push(partition);
            }
            JournalEvent::CaughtUp { through } => {
                self.ownership.caught_up(self.journal.partition_of(through), through);
            }
            JournalEvent::Released { partition } => {
                self.releasing.retain(|releasing| *releasing != partition);
                self.ownership.released(partition);
                engine.release(now, partition);
                while let Some(action) = self.engine.next_action() {
                    // The next owner decides it.
                    if !matches!(action, EngineAction::Conclude { .. }) {
                        self.carry_out(now, action);
                    }
                }
                self.answer_released(now, partition);
                self.journal.given_up(partition);
            }
            JournalEvent::Replica { node, row } => {
                let is_renamed = row.as_ref().is_some_and(|row| row.renamed_to.is_some());
                claim::replica(engine, registry, now, &node, row);
                if is_renamed {
                    self.resolve_waiting();
                }
            }
            JournalEvent::Concluded { task, answer, obstacles } => {
                self.concluded_elsewhere(now, task, &answer, obstacles);
            }
            JournalEvent::Settled { through } => engine.settled(through),
            JournalEvent::Failed(why) => self.store_failed(&why),
        }
    }

    /// Tells the journal which partitions can be handed over. Their settlements were passed on.
    fn report_quiet(&mut self) {
        let Self { engine, journal, releasing, .. } = self;
        releasing.retain(|&partition| {
            let is_quiet = engine.is_quiet(partition);
            if is_quiet {
                journal.quiet(partition);
            }
            !is_quiet
        });
    }

    fn attempt_ended(&mut self, now: Now, report: AttemptReport) {
        if let Verdict::Shortage { error } = &report.outcome.verdict {
            self.observed.throttle.log_shortage(now.moment, error);
        }
        self.observed.latency.attempt_ended(now.moment, &report, &self.engine);
        self.observed.last_sent = report.task;
        self.engine.answered(now, report.delivery, report.outcome);
    }

    pub(super) fn act(&mut self, now: Now) {
        while let Some(action) = self.engine.next_action() {
            self.carry_out(now, action);
        }
    }

    fn carry_out(&mut self, now: Now, action: EngineAction) {
        let moment = now.moment;
        match action {
            EngineAction::Send { delivery, node, attempt, bytes } => {
                if attempt > 1 {
                    let error = self.engine.last_error(&node).unwrap_or_default();
                    let event = ThrottledEvent::Retry { task: delivery.task, attempt, error };
                    self.observed.throttle.log(moment, &node, event);
                }
                let task = self.task_in_memory(delivery.task);
                self.attempts.start(delivery, node, attempt, bytes, task);
            }
            EngineAction::Save { task, progress } => {
                // A failed task is read back for its retry: a replica that is down must not
                // fill the memory that the tasks of other replicas need.
                if progress.iter().any(Progress::has_failed) {
                    self.task_cache.remove(task);
                }
                if !self.store_has_failed() {
                    self.journal.save(task, progress);
                }
            }
            EngineAction::Remove { task } => {
                self.task_cache.remove(task);
                if !self.store_has_failed() {
                    self.journal.remove(task);
                }
            }
            EngineAction::Conclude { task, success, needed, acked, missing, obstacles } => {
                let result = StrongResult { task, success, needed, acked, missing, obstacles };
                self.conclude(&result);
            }
            EngineAction::Buried { delivery, node, letter } => {
                let event = ThrottledEvent::DeadLetter { task: delivery.task, letter };
                self.observed.throttle.log(moment, &node, event);
            }
            EngineAction::Breaker { node, error } => {
                self.observed.breaker_changed(now, &node, error.as_deref());
                let event = ThrottledEvent::Breaker { error };
                self.observed.throttle.log(moment, &node, event);
            }
            EngineAction::PauseEnded { node, pause } => self.pause_ended(now, &node, pause),
            EngineAction::Ended { last } => {
                let cached = self.task_in_memory(last.id);
                self.observed.remember(now, last, cached);
            }
            EngineAction::RedriveEnded { operation, outcome } => {
                self.admin.operations.redrive_ended(operation, outcome);
            }
            EngineAction::Changed { task, node, change, error } => {
                let node = Some(&node);
                self.observed.publish_task(now, task, node, change, error.as_deref());
            }
            EngineAction::Discarded { delivery, node } => {
                let event = ThrottledEvent::Expired { task: delivery.task };
                self.observed.throttle.log(moment, &node, event);
            }
        }
    }

    fn tick_second(&mut self, now: Now, watched: bool) {
        let lanes: Vec<_> = self.engine.lanes().collect();
        self.observed.latency.sample(now.moment, &lanes);
        self.observed.publish_recovered(now, &lanes);
        if matches!(*self.health.borrow(), Health::Stalled { .. }) {
            // Room comes through the store.
            self.refuse_waiting();
        }
        self.note_figures(now, &lanes, watched);
        self.raise_alarms(now, &lanes, false);
        self.engine.share_rates(self.journal.processes());
        self.answer_overdue(now);
        self.uptime.save(now.moment);
        self.observed.history.tick(now.moment);
        if !self.store_has_failed() {
            self.journal.tick(now.moment);
        }
    }

    fn refuse_from_now_on(&mut self, health: Health) {
        self.health.send_if_modified(|current| {
            let failed = matches!(current, Health::StoreFailed(_));
            if !failed {
                *current = health;
            }
            !failed
        });
        self.refuse_waiting();
    }

    /// A failed store saves nothing either: an attempt that ended because its task could not be read
    /// would count as a failure of the replica.
    fn store_has_failed(&self) -> bool {
        matches!(*self.health.borrow(), Health::StoreFailed(_))
    }

    /// No promise can be kept any more. A restart recovers from disk.
    fn store_failed(&mut self, why: &Arc<str>) {
        if self.store_has_failed() {
            return;
        }
        error!(error = %why, "the store has failed; nothing is accepted until a restart");
        self.refuse_from_now_on(Health::StoreFailed(Arc::clone(why)));
        self.intake.drop_clients();
        self.engine.stop_sending();
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
