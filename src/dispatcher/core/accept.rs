//! The path of a write, in the order of this file: room in the engine, or a wait for room; a number
//! and durability from the journal; arrival in the engine; the answer. An early write arrives in the
//! engine as soon as it has its number.
//!
//! `answers.rs` answers the clients. Eventual writes are answered when they arrive, strong writes when
//! they are decided.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use smallvec::smallvec;
use tokio::sync::mpsc;
use tracing::debug;

use super::Core;
use super::answers::{StrongResult, WaitingClients};
use crate::dispatcher::admission::{Admission, WaitLine, Waiter};
use crate::dispatcher::messages::{
    AcceptedWrite, LoopEvent, NewWrite, PendingWrite, Refusal, WriteReply,
};
use crate::engine::{
    Arrived, ClearReservation, Full, Moment, Now, Origin, Reservation, SharedLimit,
};
use crate::metrics::Reason;
use crate::store::{
    Append, AppendError, AppendReply, Appended, KeyState, NoRoom, Numbered, RecordCause,
};
use crate::task::{Consistency, NewTask, Partition, Task, TaskChange, TaskId};

pub(crate) struct Intake {
    pub(super) queue_wait: Duration,
    /// Where the journal reports.
    events: mpsc::UnboundedSender<LoopEvent>,
    /// All valid requests so far.
    pub(super) received: u64,
    pub(super) admission: Admission,
    /// All tasks so far that arrived in the engine.
    pub(super) accepted: u64,
    /// Writes that have room and go to the journal at the end of the request.
    appends: Vec<PreparedWrite>,
    append_bytes: u64,
    /// Writes that are in the engine and not durable yet.
    early: HashMap<TaskId, EarlyWrite>,
    /// Writes that are durable, and those whose majority is not decided.
    pub(super) clients: HashMap<TaskId, WaitingClients>,
    /// Answers of other processes whose writes have no outcome yet.
    pub(super) concluded: VecDeque<StrongResult>,
    /// The last task that arrived.
    pub(in crate::dispatcher) newest: TaskId,
}

impl Intake {
    pub(crate) fn new(
        newest: TaskId,
        queue_wait: Duration,
        events: mpsc::UnboundedSender<LoopEvent>,
    ) -> Self {
        Self {
            queue_wait,
            events,
            received: 0,
            admission: Admission::default(),
            accepted: 0,
            appends: Vec::new(),
            append_bytes: 0,
            early: HashMap::new(),
            clients: HashMap::new(),
            concluded: VecDeque::new(),
            newest,
        }
    }

    /// Counts a valid request, and returns its number.
    pub(in crate::dispatcher) fn count_received(&mut self) -> u64 {
        self.received += 1;
        self.received
    }

    /// Whether a write of this key waits for room.
    pub(in crate::dispatcher) fn is_waiting(&self, key: &str) -> bool {
        self.admission.has_key(key)
    }

    /// When a write has waited for room long enough.
    pub(super) fn wake_at(&self) -> Option<Moment> {
        self.admission.wake_at()
    }

    /// Closes the replies, which the handles report as a failed store.
    pub(super) fn drop_clients(&mut self) {
        self.clients.clear();
    }
}

struct PreparedWrite {
    append: Append,
    /// Its client, if it may be sent before it is durable.
    early: Option<EarlyClient>,
}

struct EarlyClient {
    reply: WriteReply,
    arrived: Moment,
    reservation: ClearReservation,
}

/// Kept until its commit, because it cannot be read back.
struct EarlyWrite {
    task: Arc<Task>,
    arrived: Moment,
}

/// A client may have only a share of the places.
const TOO_MANY_WAIT: &str = "too many requests of this client wait for room";

const KEYS_FULL: &str = "the limit of remembered idempotency keys (--idempotency-keys), or the share of this token, is reached";

const SERVERS_SILENT: &str =
    "too many writes wait for a partition of the store that does not answer";

const STORE_FULL: &str = "the store is full: a stream of its partitions has reached its limit";

enum Admitted {
    Appending,
    Full(Waiter, Full),
}

impl Core {
    /// Takes a write: it is refused, waits for room, or is ready for [`Self::append`].
    pub(super) fn replicate(
        &mut self,
        now: Now,
        NewWrite { mut new, idempotency, reply }: NewWrite,
    ) {
        let number = self.intake.count_received();
        let unavailable = self.health.borrow().refusal();
        if let Some(refusal) = unavailable.or_else(|| self.resolve(&mut new)) {
            let _ = reply.send(Err(refusal));
            return;
        }
        let arrived = now.moment;
        let deadline = arrived.after(self.intake.queue_wait);
        let waiter = Waiter { number, new, idempotency, reply, arrived, deadline };
        let ControlFlow::Continue(waiter) = self.check_key(now, waiter) else { return };
        if let Err(NoRoom(limit)) = self.disk_room(&waiter.new) {
            return self.refuse(waiter, Reason::Disk, &limit);
        }
        if let Some(line) = self.intake.admission.ahead_of(&waiter.new) {
            return self.wait_in(line, waiter);
        }
        let Admitted::Full(waiter, full) = self.admit(now, waiter) else { return };
        if is_hopeless(&full) || self.intake.queue_wait.is_zero() {
            return self.refuse(waiter, reason(&full), &full.to_string());
        }
        self.wait_in(WaitLine::after(&waiter.new, &full), waiter);
    }

    /// Takes a write if there is room now. It is in the journal when this returns, or refused.
    pub(in crate::dispatcher) fn replicate_at_once(&mut self, now: Now, mut waiter: Waiter) {
        let refusal = self.health.borrow().refusal();
        if let Some(refusal) = refusal.or_else(|| self.resolve(&mut waiter.new)) {
            let _ = waiter.reply.send(Err(refusal));
        } else if let Err(NoRoom(limit)) = self.disk_room(&waiter.new) {
            self.refuse(waiter, Reason::Disk, &limit);
        } else {
            match self.admit(now, waiter) {
                Admitted::Appending => self.append(now),
                Admitted::Full(waiter, full) => {
                    self.refuse(waiter, reason(&full), &full.to_string());
                }
            }
        }
    }

    /// After a rename, for the writes that wait: a later write of their key must find its replica.
    pub(in crate::dispatcher) fn resolve_waiting(&mut self) {
        let mut waiting = std::mem::take(&mut self.intake.admission);
        waiting.refuse_if(|new| self.resolve(new));
        self.intake.admission = waiting;
    }

    /// Replaces the names of renamed replicas. Refuses two names of one replica: one of them would
    /// count for a majority without a node behind it.
    fn resolve(&self, new: &mut NewTask) -> Option<Refusal> {
        if !self.registry.has_renamed() {
            return None;
        }
        for at in 0..new.replicas.len() {
            let Some(name) = new.replicas.get(at) else { break };
            let node = self.registry.resolve(name).clone();
            if let Some(other) = new.replicas.iter().take(at).find(|&other| *other == node) {
                let error = format!(
                    "field \"replica_nodes\" names {name} and {other}, which are one node since it was renamed"
                );
                return Some(Refusal::Invalid(error));
            }
            if let Some(name) = new.replicas.get_mut(at) {
                *name = node;
            }
        }
        None
    }

    /// Continues with a write whose idempotency key is new. A known key needs no room; its write goes
    /// to the journal as it is.
    fn check_key(&mut self, now: Now, waiter: Waiter) -> ControlFlow<(), Waiter> {
        let Some(idempotency) = &waiter.idempotency else { return ControlFlow::Continue(waiter) };
        match self.journal.key(idempotency) {
            KeyState::New => return ControlFlow::Continue(waiter),
            KeyState::NoRoom => self.refuse(waiter, Reason::Waiting, KEYS_FULL),
            KeyState::Mismatch | KeyState::Pending | KeyState::Known(_) => {
                self.prepare_append(now, waiter, None);
            }
        }
        ControlFlow::Break(())
    }

    /// Checks the room in the journal, after the writes that are not appended yet.
    fn disk_room(&self, write: &NewTask) -> Result<(), NoRoom> {
        self.journal.room(self.intake.append_bytes.saturating_add(write.weight() as u64))
    }

    fn admit(&mut self, now: Now, waiter: Waiter) -> Admitted {
        let NewTask { replicas, consistency, client, .. } = &*waiter.new;
        let bytes = waiter.new.weight() as u64;
        let key = self.keys.id(&waiter.new.key);
        match self.engine.reserve(now, key, replicas, bytes, *consistency, client.as_ref()) {
            Ok(reservation) => {
                // Durable no later than the first write to a replica.
                for node in &waiter.new.replicas {
                    let changes = self.registry.note_use(node, now.wall);
                    self.save_registry(changes, RecordCause::Use);
                }
                self.prepare_append(now, waiter, Some(reservation));
                Admitted::Appending
            }
            Err(full) => Admitted::Full(waiter, full),
        }
    }

    fn wait_in(&mut self, line: WaitLine, waiter: Waiter) {
        if !self.intake.admission.has_room_for(waiter.new.client.as_ref()) {
            return self.refuse(waiter, Reason::Waiting, TOO_MANY_WAIT);
        }
        self.intake.admission.push(line, waiter);
    }

    /// Admits waiting writes while there is room, and refuses those whose deadline is over.
    pub(super) fn admit_waiting(&mut self, now: Now) {
        for line in self.intake.admission.lines() {
            while let Some(waiter) = self.intake.admission.pop(&line) {
                if waiter.reply.is_closed() {
                    continue;
                }
                if let Some(ahead) = self.intake.admission.held_back_by(&waiter, &line) {
                    self.intake.admission.change(&line, &ahead, waiter);
                    continue;
                }
                let ControlFlow::Continue(waiter) = self.check_key(now, waiter) else { continue };
                if let Err(NoRoom(limit)) = self.disk_room(&waiter.new) {
                    self.refuse(waiter, Reason::Disk, &limit);
                    continue;
                }
                let Admitted::Full(waiter, full) = self.admit(now, waiter) else { continue };
                if waiter.deadline <= now.moment || is_hopeless(&full) {
                    self.refuse(waiter, reason(&full), &full.to_string());
                    continue;
                }
                let waits_for = WaitLine::after(&waiter.new, &full);
                if waits_for == line {
                    self.intake.admission.put_back(&line, waiter);
                    break;
                }
                // The writes behind it do not wait for the same.
                self.intake.admission.change(&line, &waits_for, waiter);
            }
        }
        // Each by itself: a group has a flush of its own.
        self.intake.append_bytes = 0;
        for write in std::mem::take(&mut self.intake.appends) {
            self.pass_on(now, vec![write]);
        }
        self.act(now);
    }

    fn refuse(&self, waiter: Waiter, reason: Reason, limit: &str) {
        // The client may be gone.
        let _ = waiter.reply.send(Err(self.full(reason, limit)));
    }

    fn full(&self, reason: Reason, limit: &str) -> Refusal {
        debug!(limit, "write refused");
        self.observed.counts.refused(reason);
        Refusal::Full(format!("{limit}; try again later"))
    }

    pub(super) fn refuse_waiting(&mut self) {
        let health = self.health.borrow();
        self.intake.admission.clear(|| health.refusal());
    }

    fn prepare_append(&mut self, now: Now, waiter: Waiter, reservation: Option<Reservation>) {
        let Waiter { new, idempotency, reply, arrived, .. } = waiter;
        self.intake.append_bytes += new.weight() as u64;
        let events = self.intake.events.clone();
        // A repeat must get the answer of the first write, also after a crash: so a write with a key is
        // durable before it is sent.
        let clear = reservation.map(|reservation| match idempotency {
            None => self.engine.clear(now, reservation),
            Some(_) => Err(reservation),
        });
        let (on_outcome, early): (AppendReply, _) = match clear.transpose() {
            Ok(Some(reservation)) => {
                // A failure of the journal answers the client, and its success is an arrival.
                let on_outcome = move |outcome| {
                    if let Err(AppendError::Removed(id)) = outcome {
                        // The loop may have ended at the drain timeout.
                        drop(events.send(LoopEvent::Withdrawn(id)));
                    }
                };
                (Box::new(on_outcome), Some(EarlyClient { reply, arrived, reservation }))
            }
            other => {
                let (reservation, idempotency) = (other.err(), idempotency.clone());
                let consistency = new.consistency;
                let write = PendingWrite { reply, arrived, reservation, idempotency, consistency };
                let on_outcome = move |outcome| {
                    drop(events.send(LoopEvent::Appended { write, outcome }));
                };
                (Box::new(on_outcome), None)
            }
        };
        let is_early = early.is_some();
        let append = Append { new, now, idempotency, early: is_early, reply: on_outcome };
        self.intake.appends.push(PreparedWrite { append, early });
    }

    /// Passes the writes of a request to the journal, which commits them together.
    pub(super) fn append(&mut self, now: Now) {
        if !self.intake.appends.is_empty() {
            self.intake.append_bytes = 0;
            let writes = std::mem::take(&mut self.intake.appends);
            self.pass_on(now, writes);
        }
    }

    fn pass_on(&mut self, now: Now, writes: Vec<PreparedWrite>) {
        let (appends, early): (Vec<_>, Vec<_>) =
            writes.into_iter().map(|write| (write.append, write.early)).unzip();
        let numbered = self.journal.append(appends);
        for (numbered, early) in numbered.into_iter().zip(early) {
            if let Some(early) = early {
                self.send_early(now, numbered, early);
            }
        }
    }

    /// Puts a write into the engine that is not durable yet.
    fn send_early(&mut self, now: Now, numbered: Option<Numbered>, early: EarlyClient) {
        let EarlyClient { reply, arrived, reservation } = early;
        let Some(Numbered { partition, task }) = numbered else {
            // The journal has failed. The dropped reply tells the client.
            return self.engine.cancel(now, reservation.into());
        };
        let (replies, consistency) = (smallvec![reply], Consistency::Strong);
        let clients =
            WaitingClients { replies, arrived, reservation: None, consistency, until: None };
        self.intake.clients.insert(task.id, clients);
        self.intake.early.insert(task.id, EarlyWrite { task: Arc::clone(&task), arrived });
        self.enter(now, partition, &task, Origin::Early(reservation));
    }

    /// An early write was removed before its commit began: every replica has it.
    pub(super) fn withdrawn(&mut self, now: Now, id: TaskId) {
        if let Some(write) = self.intake.early.remove(&id) {
            self.observed.latency.accepted(write.arrived, now.moment);
        }
    }

    /// `None` for a task that must be read back.
    pub(in crate::dispatcher) fn task_in_memory(&self, id: TaskId) -> Option<Arc<Task>> {
        let early = || self.intake.early.get(&id).map(|write| Arc::clone(&write.task));
        self.task_cache.get(id).or_else(early)
    }

    /// Handles the journal's outcome of a write. The client of a new write is answered later, when the
    /// task has arrived: a client with an answer can find its task.
    pub(super) fn appended(
        &mut self,
        now: Now,
        write: PendingWrite,
        outcome: Result<Appended, AppendError>,
    ) {
        let PendingWrite { reply, arrived, reservation, idempotency, consistency } = write;
        let refusal = match outcome {
            Ok(Appended::New(_)) if self.store_has_failed() => Refusal::StoreFailed,
            Ok(Appended::New(id)) => {
                let (replies, until) = (smallvec![reply], None);
                let clients = WaitingClients { replies, arrived, reservation, consistency, until };
                self.intake.clients.insert(id, clients);
                return;
            }
            Ok(Appended::Elsewhere(id)) => {
                self.cancel(now, reservation);
                self.observed.latency.accepted(arrived, now.moment);
                return self.await_elsewhere(id, consistency, reply, arrived);
            }
            Ok(Appended::Repeated(repeated)) => {
                self.cancel(now, reservation);
                return self.answer_repeated(repeated, idempotency.as_ref(), reply);
            }
            Err(AppendError::Mismatch) => Refusal::Mismatch,
            Err(AppendError::KeysFull) => self.full(Reason::Waiting, KEYS_FULL),
            Err(AppendError::Unconfirmed) => Refusal::Unconfirmed,
            Err(AppendError::Full) => self.full(Reason::Disk, STORE_FULL),
            Err(AppendError::TooManyWait) => self.full(Reason::Waiting, SERVERS_SILENT),
            Err(AppendError::NoOwner) => Refusal::NoOwner,
            Err(AppendError::Store(_) | AppendError::Removed(_)) => Refusal::StoreFailed,
        };
        self.cancel(now, reservation);
        let _ = reply.send(Err(refusal));
    }

    pub(super) fn cancel(&mut self, now: Now, reservation: Option<Reservation>) {
        if let Some(reservation) = reservation {
            self.engine.cancel(now, reservation);
        }
    }

    pub(super) fn arrived(&mut self, now: Now, partition: Partition, task: &Arc<Task>) {
        self.intake.newest = self.intake.newest.max(task.id);
        if let Some(write) = self.intake.early.remove(&task.id) {
            self.observed.latency.accepted(write.arrived, now.moment);
            return self.engine.committed(now, task.id);
        }
        let reservation = self.intake.clients.get_mut(&task.id).and_then(|clients| {
            self.observed.latency.accepted(clients.arrived, now.moment);
            clients.reservation.take()
        });
        let is_strong = task.consistency == Consistency::Strong;
        let origin = match reservation {
            None if is_strong => Origin::Awaited,
            reservation => Origin::Written(reservation),
        };
        self.enter(now, partition, task, origin);
        if task.consistency == Consistency::Eventual {
            let id = task.id;
            self.answer(id, |replayed| Ok(AcceptedWrite { id, acked: Vec::new(), replayed }));
        }
    }

    fn enter(&mut self, now: Now, partition: Partition, task: &Arc<Task>, origin: Origin) {
        self.intake.accepted += 1;
        // Before the engine sends it.
        self.task_cache.offer(task);
        self.recent.note(task);
        let arrived = Arrived {
            id: task.id,
            partition,
            key: self.keys.id(&task.key),
            // Another instance may have accepted it before it knew of a rename.
            replicas: &self.registry.resolve_all(&task.replicas),
            bytes: task.weight() as u64,
            client: task.client.as_ref(),
            accepted_at: task.accepted_at,
        };
        self.engine.arrive(now, arrived, origin);
        if self.engine.is_watched() {
            self.observed.publish_task(now, task.id, None, TaskChange::Accepted, None);
        }
    }
}

/// Whether a wait for room cannot help.
fn is_hopeless(full: &Full) -> bool {
    use SharedLimit::{DeadLetters, Replicas};
    match full {
        Full::Replicas(_) | Full::Share { limit: DeadLetters | Replicas, .. } => true,
        // More than the whole quota.
        Full::Quota { more, most, .. } => *more > most.get(),
        Full::Queue(_) | Full::Strong(_) | Full::Bytes(_) | Full::Share { .. } => false,
    }
}

fn reason(full: &Full) -> Reason {
    match full {
        Full::Queue(_) | Full::Strong(_) => Reason::Queue,
        Full::Bytes(_) => Reason::Bytes,
        Full::Replicas(_) => Reason::Replicas,
        Full::Share { limit, .. } | Full::Quota { limit, .. } => match limit {
            SharedLimit::Queue => Reason::Share,
            SharedLimit::Bytes => Reason::Bytes,
            SharedLimit::DeadLetters => Reason::DeadLetters,
            SharedLimit::Replicas => Reason::Replicas,
        },
    }
}
