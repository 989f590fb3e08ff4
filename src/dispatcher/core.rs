//! The loop around the engine: one event at a time goes in, and what comes out is done.
//!
//! Everything that changes the engine passes through here, so there is no lock.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use crate::api;
use crate::clock::Clock;
use crate::dispatcher::admin::barriers::CountingBarrier;
use crate::dispatcher::admin::replicas::Forgetting;
use crate::dispatcher::admission::{Admission, Line, MAX_WAITING, Waiter};
use crate::dispatcher::attempt::Attempts;
use crate::dispatcher::claim;
use crate::dispatcher::event_bus::Bus;
use crate::dispatcher::history::History;
use crate::dispatcher::latency::Latency;
use crate::dispatcher::log_throttle::{LogThrottle, ThrottledEvent};
use crate::dispatcher::messages::{Answered, Event, Health, Refusal, Request, Write};
use crate::dispatcher::replica_registry::ReplicaRegistry;
use crate::dispatcher::task_cache::TaskCache;
use crate::dispatcher::uptime::UptimeRecorder;
use crate::engine::{Engine, EngineAction, Full, KeyHasher, Moment, Now};
use crate::metrics::{Counts, Reason};
use crate::store::{Append, Journal, JournalEvent, NoRoom};
use crate::task::{NewTask, Progress, Task, TaskId, Verdict};

mod accept;
mod events;
mod snapshot;

use accept::{Admitted, Concluded, Waiting};

/// Events taken at once before the timers are looked at again.
const BATCH: usize = 256;

/// What the loop is made from.
pub(crate) struct Parts {
    pub(crate) engine: Engine,
    pub(crate) keys: KeyHasher,
    pub(crate) clock: Clock,
    /// The newest task.
    pub(crate) newest: TaskId,
    pub(crate) journal: Arc<dyn Journal>,
    pub(crate) events: mpsc::UnboundedSender<Event>,
    pub(crate) attempts: Attempts,
    pub(crate) health: watch::Sender<Health>,
    pub(crate) memory_budget: usize,
    pub(crate) queue_wait: Duration,
    pub(crate) queue_capacity: usize,
    pub(crate) retry_capacity: usize,
    pub(crate) quarantined_rows: u64,
    pub(crate) counts: Arc<Counts>,
    pub(crate) bus: Bus,
    pub(crate) registry: ReplicaRegistry,
    pub(crate) history: History,
    pub(crate) recorder: UptimeRecorder,
}

/// The loop's state.
pub(crate) struct Core {
    pub(super) parts: Parts,
    pub(super) task_cache: TaskCache,
    admission: Admission,
    /// Admitted, and handed to the journal when the request has been looked at.
    appends: Vec<Append>,
    /// Their weight.
    append_bytes: u64,
    /// Who waits for an answer, by task.
    waiting: HashMap<TaskId, Waiting>,
    stopping: bool,
    total_replications: u64,
    pub(super) latency: Latency,
    log_throttle: LogThrottle,
    pub(super) forgetting: Vec<Forgetting>,
    pub(super) counting: VecDeque<CountingBarrier>,
    /// The task of the attempt that has just ended: what it was is not asked of the disk again.
    last_sent: Option<Arc<Task>>,
    /// When the next second is over.
    second: Moment,
    /// The first id after the last second that was told of, and when that was.
    accepted_before: (TaskId, Moment),
}

impl Core {
    pub(crate) fn new(mut parts: Parts) -> Self {
        parts.engine.report_ends(parts.history.is_kept());
        let accepted_before = (parts.newest, parts.clock.now().moment);
        Self {
            task_cache: TaskCache::new(parts.memory_budget),
            parts,
            admission: Admission::default(),
            appends: Vec::new(),
            append_bytes: 0,
            waiting: HashMap::new(),
            stopping: false,
            total_replications: 0,
            latency: Latency::default(),
            log_throttle: LogThrottle::default(),
            forgetting: Vec::new(),
            counting: VecDeque::new(),
            last_sent: None,
            second: Moment::default(),
            accepted_before,
        }
    }

    /// Runs until it is told to stop and nothing is on the wire any more.
    pub(crate) async fn run(
        mut self,
        mut events: mpsc::UnboundedReceiver<Event>,
        mut requests: mpsc::UnboundedReceiver<Request>,
    ) {
        let mut told = Vec::with_capacity(BATCH);
        let mut asked = Vec::with_capacity(BATCH);
        let mut open = true;
        let mut last = self.parts.clock.now();
        self.act(last);
        while !(self.stopping && self.parts.engine.levels().in_flight == 0) {
            let engine = self.parts.engine.wake_at();
            let others = self.admission.wake_at().into_iter().chain(self.log_throttle.wake_at());
            let wake = engine.into_iter().chain(others).min();
            let wake = wake.unwrap_or(self.second).min(self.second);
            tokio::select! {
                _ = events.recv_many(&mut told, BATCH) => {}
                n = requests.recv_many(&mut asked, BATCH), if open => open = n > 0,
                () = tokio::time::sleep_until(self.parts.clock.instant(wake)) => {
                    // What has happened by now comes before what is due.
                    while told.len() < BATCH && let Ok(event) = events.try_recv() {
                        told.push(event);
                    }
                }
            }
            if let Some(gap) = self.parts.clock.woke(last.moment, wake) {
                warn!(
                    seconds = gap.as_secs_f64(),
                    "the daemon did not run for a while (stopped, suspended or overloaded): that time counts for no timeout"
                );
            }
            let now = self.parts.clock.now();
            last = now;
            // Before anything is done that depends on how old something is.
            if let Some(uptime) = self.parts.recorder.see(now) {
                self.parts.engine.set_uptime(uptime.clone());
            }
            let (watched, of_tasks) = self.parts.bus.watched(now.moment);
            self.parts.engine.watch(of_tasks);
            told.drain(..).for_each(|event| self.take(now, event));
            asked.drain(..).for_each(|request| self.serve(now, request));
            self.parts.engine.tick(now);
            self.act(now);
            self.let_in(now);
            if self.second <= now.moment {
                self.tick_second(now, watched);
            }
            if !self.forgetting.is_empty() {
                self.answer_forgotten(now);
            }
            self.answer_counted();
            self.log_throttle.tick(now.moment);
            self.parts.bus.wake();
        }
        self.parts.bus.close();
        self.log_throttle.flush();
    }

    fn serve(&mut self, now: Now, request: Request) {
        match request {
            Request::Replicate(writes) => {
                writes.into_iter().for_each(|write| self.replicate(now, write));
                self.append();
            }
            Request::Tasks(request) => self.serve_tasks(now, request),
            Request::Replicas(request) => self.serve_replicas(now, request),
            Request::DeadLetters(request) => self.serve_dead_letters(now, request),
            Request::Barrier(request) => self.serve_barrier(request),
            Request::Snapshot { reply } => {
                // Whoever asked may be gone; nobody else wants the figures.
                let _ = reply.send(Box::new(self.snapshot()));
            }
        }
        self.act(now);
    }

    fn take(&mut self, now: Now, event: Event) {
        match event {
            Event::Appended { pending, outcome } => self.appended(now, pending, outcome),
            Event::Journal(event) => self.journal_event(now, event),
            Event::Answered(answered) => self.answered(now, answered),
            Event::Refuse => self.refuse_from_now_on(Health::Draining),
            Event::Stop => {
                self.stopping = true;
                self.parts.engine.stop_sending();
                let in_flight = self.parts.engine.levels().in_flight;
                info!(in_flight, "no more deliveries are started, those on the wire are finished");
            }
        }
        self.act(now);
        // It can be large, and what came of it is done.
        self.last_sent = None;
    }

    fn journal_event(&mut self, now: Now, event: JournalEvent) {
        let Parts { engine, keys, registry, .. } = &mut self.parts;
        match event {
            JournalEvent::Arrived { partition, tasks, took } => {
                self.latency.committed(tasks.len(), took);
                tasks.iter().for_each(|task| self.arrived(now, partition, task));
            }
            JournalEvent::Claimed { partition, tasks } => {
                claim::tasks(engine, keys, registry, now, partition, tasks);
            }
            JournalEvent::Released { partition } => engine.release(now, partition),
            JournalEvent::Replica { node, row } => {
                claim::replica(engine, registry, now, &node, row);
            }
            JournalEvent::Failed(why) => self.store_failed(&why),
        }
    }

    fn replicate(&mut self, now: Now, Write { mut new, idempotency, reply }: Write) {
        self.total_replications += 1;
        let unavailable = self.parts.health.borrow().refusal();
        if let Some(refusal) = unavailable.or_else(|| self.resolve(&mut new)) {
            let _ = reply.send(Err(refusal));
            return;
        }
        let arrived = now.moment;
        let deadline = arrived.after(self.parts.queue_wait);
        let waiter = Waiter { new, idempotency, reply, arrived, deadline };
        let ControlFlow::Continue(waiter) = self.repeat(now, waiter) else { return };
        if let Err(NoRoom(limit)) = self.room(&waiter.new) {
            return self.refuse(waiter, Reason::Disk, &limit);
        }
        if let Some(line) = self.admission.ahead_of(&waiter.new) {
            return self.wait_in(line, waiter);
        }
        let Admitted::Full(waiter, full) = self.admit(now, waiter) else { return };
        if is_hopeless(&full) || self.parts.queue_wait.is_zero() {
            return self.refuse(waiter, reason(&full), &full.to_string());
        }
        self.wait_in(Line::after(waiter.new.consistency, &full), waiter);
    }

    /// Whether the journal has room for a write besides those that it gets with it.
    fn room(&self, write: &NewTask) -> Result<(), NoRoom> {
        self.parts.journal.room(self.append_bytes.saturating_add(write.weight() as u64))
    }

    fn refuse(&self, waiter: Waiter, reason: Reason, limit: &str) {
        // The client may be gone.
        let _ = waiter.reply.send(Err(self.full(reason, limit)));
    }

    fn full(&self, reason: Reason, limit: &str) -> Refusal {
        debug!(limit, "write refused");
        self.parts.counts.refused(reason);
        Refusal::Full(format!("{limit}; try again later"))
    }

    fn wait_in(&mut self, line: Line, waiter: Waiter) {
        if self.admission.len() >= MAX_WAITING {
            let limit = format!("too many requests wait for room, the limit is {MAX_WAITING}");
            return self.refuse(waiter, Reason::Waiting, &limit);
        }
        self.admission.push(line, waiter);
    }

    /// Accepts those who wait while there is room, and refuses those whose time is up.
    fn let_in(&mut self, now: Now) {
        for line in self.admission.lines() {
            while let Some(waiter) = self.admission.pop(&line) {
                if waiter.reply.is_closed() {
                    continue;
                }
                let ControlFlow::Continue(waiter) = self.repeat(now, waiter) else { continue };
                if let Err(NoRoom(limit)) = self.room(&waiter.new) {
                    self.refuse(waiter, Reason::Disk, &limit);
                    continue;
                }
                let Admitted::Full(waiter, full) = self.admit(now, waiter) else { continue };
                if waiter.deadline <= now.moment || is_hopeless(&full) {
                    self.refuse(waiter, reason(&full), &full.to_string());
                    continue;
                }
                let waits_for = Line::after(waiter.new.consistency, &full);
                if waits_for == line {
                    self.admission.put_back(&line, waiter);
                    break;
                }
                // What it waits for now is no matter to those behind it.
                self.admission.change(&line, &waits_for, waiter);
            }
        }
        self.append_each();
    }

    fn answered(&mut self, now: Now, answered: Answered) {
        if let Verdict::Shortage { error } = &answered.outcome.verdict {
            self.log_throttle.log_shortage(now.moment, error);
        }
        self.latency.answered(now.moment, &answered, &self.parts.engine);
        let Answered { delivery, outcome, task, .. } = answered;
        self.last_sent = task;
        self.parts.engine.answered(now, delivery, outcome);
    }

    /// Does what the engine asks for.
    pub(super) fn act(&mut self, now: Now) {
        while let Some(action) = self.parts.engine.next_action() {
            match action {
                EngineAction::Send { delivery, node, attempt, bytes } => {
                    if attempt > 1 {
                        let error = self.parts.engine.last_error(&node).unwrap_or_default();
                        let event = ThrottledEvent::Retry { task: delivery.task, attempt, error };
                        self.log_throttle.log(now.moment, &node, event);
                    }
                    let task = self.task_cache.get(delivery.task);
                    self.parts.attempts.start(delivery, node, attempt, bytes, task);
                }
                EngineAction::Save { task, progress } => {
                    // What failed is read back for its retry: a replica that is down must not
                    // fill the memory that the tasks of the others pass through.
                    if progress.iter().any(Progress::has_failed) {
                        self.task_cache.remove(task);
                    }
                    if !self.store_has_failed() {
                        self.parts.journal.save(task, progress);
                    }
                }
                EngineAction::Remove { task } => {
                    self.task_cache.remove(task);
                    if !self.store_has_failed() {
                        self.parts.journal.remove(task);
                    }
                }
                EngineAction::Conclude { task, success, needed, acked, missing, obstacles } => {
                    let verdict = Concluded { task, success, needed, acked, missing, obstacles };
                    self.conclude(&verdict);
                }
                EngineAction::Buried { delivery, node, letter } => {
                    let event = ThrottledEvent::DeadLetter { task: delivery.task, letter };
                    self.log_throttle.log(now.moment, &node, event);
                }
                EngineAction::Breaker { node, error } => {
                    let (change, detail) = match &error {
                        Some(error) => (api::ReplicaChange::BreakerOpened, Some(error.to_string())),
                        None => (api::ReplicaChange::BreakerClosed, None),
                    };
                    self.publish_replica(now, &node, change, detail);
                    self.log_throttle.log(now.moment, &node, ThrottledEvent::Breaker { error });
                }
                EngineAction::Ended { last } => self.remember(now, last),
                EngineAction::Changed { task, node, change, error } => {
                    self.publish_change(now, task, &node, change, error.as_deref());
                }
                EngineAction::Discarded { delivery, node } => {
                    let event = ThrottledEvent::Expired { task: delivery.task };
                    self.log_throttle.log(now.moment, &node, event);
                }
            }
        }
    }

    fn refuse_from_now_on(&mut self, health: Health) {
        self.parts.health.send_if_modified(|current| {
            let failed = matches!(current, Health::StoreFailed(_));
            if !failed {
                *current = health;
            }
            !failed
        });
        self.refuse_waiting();
    }

    /// Refuses the writes that wait for room, if the daemon serves none.
    fn refuse_waiting(&mut self) {
        let health = self.parts.health.borrow();
        self.admission.clear(|| health.refusal());
    }

    /// At the end of each second.
    fn tick_second(&mut self, now: Now, watched: bool) {
        self.second = now.moment.after(Duration::from_secs(1));
        let lanes: Vec<_> = self.parts.engine.lanes().collect();
        self.latency.sample(now.moment, &lanes);
        if matches!(*self.parts.health.borrow(), Health::Stalled { .. }) {
            // What makes room comes through the store.
            self.refuse_waiting();
        }
        if watched {
            self.publish_figures(now, &lanes);
        }
        self.parts.recorder.keep(now.moment);
        self.parts.history.tick(now.moment);
        if !self.store_has_failed() {
            self.parts.journal.tick(now.moment);
        }
    }

    /// Then nothing is written down either: an attempt that ended because its task could not be
    /// read would be charged to the replica.
    fn store_has_failed(&self) -> bool {
        matches!(*self.parts.health.borrow(), Health::StoreFailed(_))
    }

    /// Nothing can be promised any more: what is on disk is found again after a restart.
    fn store_failed(&mut self, why: &Arc<str>) {
        if self.store_has_failed() {
            return;
        }
        error!(error = %why, "the store has failed; nothing is accepted until a restart");
        self.refuse_from_now_on(Health::StoreFailed(Arc::clone(why)));
        self.waiting.clear();
        self.parts.engine.stop_sending();
    }
}

/// Whether waiting for room will not help.
fn is_hopeless(full: &Full) -> bool {
    matches!(full, Full::Replicas(_) | Full::DeadLetters { .. })
}

fn reason(full: &Full) -> Reason {
    match full {
        Full::Queue(_) | Full::Strong(_) => Reason::Queue,
        Full::Share { .. } => Reason::Share,
        Full::Bytes(_) => Reason::Bytes,
        Full::DeadLetters { .. } => Reason::DeadLetters,
        Full::Replicas(_) => Reason::Replicas,
    }
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
