//! A write from its request to its answer: places in the engine, a task in the journal, then the task
//! in the engine. All clients that wait for an answer wait here.

use std::ops::ControlFlow;
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use super::Core;
use crate::dispatcher::admission::Waiter;
use crate::dispatcher::messages::{Accepted, Event, Pending, Refusal, Reply};
use crate::engine::{Arrived, Full, Moment, Now, Origin, Reservation};
use crate::metrics::Reason;
use crate::store::{Append, AppendError, Appended, IdempotencyAnswer, KeyState, Repeated};
use crate::task::{
    Consistency, DeliveryState, Idempotency, NewTask, Node, Obstacle, Partition, ReplicaIndex,
    Task, TaskId,
};

/// The clients that wait for the answer of a task.
#[derive(Debug)]
pub(super) struct Waiting {
    /// First the client that wrote it, then those that repeated the write.
    replies: SmallVec<[Reply; 1]>,
    arrived: Moment,
    /// Until the task has arrived.
    reservation: Option<Reservation>,
}

/// The refusal of a write when no more keys can be remembered.
const KEYS: &str = "the limit of remembered idempotency keys is reached (--idempotency-keys)";

/// What becomes of a write that asks for room.
pub(super) enum Admitted {
    /// The journal has it.
    Handed,
    /// There is no room.
    Full(Waiter, Full),
}

/// What has come of a strong write.
pub(super) struct Concluded {
    pub(super) task: TaskId,
    pub(super) success: bool,
    pub(super) needed: usize,
    pub(super) acked: Vec<ReplicaIndex>,
    pub(super) missing: Vec<ReplicaIndex>,
    pub(super) obstacles: Vec<(ReplicaIndex, Obstacle)>,
}

impl Concluded {
    pub(super) fn answer(&self, replayed: bool) -> Result<Accepted, Refusal> {
        let (id, acked) = (self.task, self.acked.clone());
        if self.success {
            return Ok(Accepted { id, acked, replayed });
        }
        let (failed, obstacles) = (self.missing.clone(), self.obstacles.clone());
        Err(Refusal::NoMajority { id, needed: self.needed, acked, failed, obstacles, replayed })
    }

    fn kept(&self) -> IdempotencyAnswer {
        let indexes = |list: &[ReplicaIndex]| list.iter().map(|index| index.0).collect();
        IdempotencyAnswer {
            success: self.success,
            acked: indexes(&self.acked),
            failed: indexes(&self.missing),
            needed: u16::try_from(self.needed).unwrap_or(u16::MAX),
        }
    }
}

impl Core {
    /// Puts the names in place that the replicas go by now. Two names of one replica make no sense
    /// in one write: one of them would be counted for a node that is not there.
    pub(super) fn resolve(&self, new: &mut NewTask) -> Option<Refusal> {
        if !self.parts.registry.has_renamed() {
            return None;
        }
        for at in 0..new.replicas.len() {
            let Some(name) = new.replicas.get(at) else { break };
            let node = self.parts.registry.resolve(name).clone();
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

    /// Remembers that replicas are used, before the first write to them is on disk.
    pub(super) fn note_use(&mut self, now: Now, replicas: &[Node]) {
        for node in replicas {
            let changes = self.parts.registry.note_use(node, now.wall);
            self.write_registry(changes);
        }
    }

    /// Hands a write on to the journal, or gives it back with the limit that it met.
    pub(super) fn admit(&mut self, now: Now, waiter: Waiter) -> Admitted {
        let (bytes, consistency) = (waiter.new.weight() as u64, waiter.new.consistency);
        let replicas = &waiter.new.replicas;
        match self.parts.engine.reserve(now, replicas, bytes, consistency) {
            Ok(reservation) => {
                self.note_use(now, &waiter.new.replicas);
                self.hand_over(now, waiter, Some(reservation));
                Admitted::Handed
            }
            Err(full) => Admitted::Full(waiter, full),
        }
    }

    /// Hands a write on without room if its idempotency key came before, or refuses it if no more
    /// keys can be remembered; gives back one that is new.
    pub(super) fn repeat(&mut self, now: Now, waiter: Waiter) -> ControlFlow<(), Waiter> {
        let Some(idempotency) = &waiter.idempotency else { return ControlFlow::Continue(waiter) };
        match self.parts.journal.key(idempotency) {
            KeyState::New => return ControlFlow::Continue(waiter),
            KeyState::NoRoom => self.refuse(waiter, Reason::Waiting, KEYS),
            KeyState::Mismatch | KeyState::Pending | KeyState::Known(_) => {
                self.hand_over(now, waiter, None);
            }
        }
        ControlFlow::Break(())
    }

    fn hand_over(&mut self, now: Now, waiter: Waiter, reservation: Option<Reservation>) {
        let Waiter { new, idempotency, reply, arrived, .. } = waiter;
        self.append_bytes += new.weight() as u64;
        let pending = Pending { reply, arrived, reservation, idempotency: idempotency.clone() };
        let events = self.parts.events.clone();
        self.appends.push(Append {
            new,
            now,
            idempotency,
            // The loop may be gone, at the end of the grace.
            reply: Box::new(move |outcome| drop(events.send(Event::Appended { pending, outcome }))),
        });
    }

    /// Hands the admitted writes on, to be written together.
    pub(super) fn append(&mut self) {
        if !self.appends.is_empty() {
            self.append_bytes = 0;
            self.parts.journal.append(std::mem::take(&mut self.appends));
        }
    }

    /// Hands the admitted writes on, each by itself: a group has a flush of its own.
    pub(super) fn append_each(&mut self) {
        self.append_bytes = 0;
        for write in std::mem::take(&mut self.appends) {
            self.parts.journal.append(vec![write]);
        }
    }

    /// Takes the journal's outcome of a write. The client of a new one is answered when the task has
    /// arrived: a client that has its answer finds the task.
    pub(super) fn appended(
        &mut self,
        now: Now,
        pending: Pending,
        outcome: Result<Appended, AppendError>,
    ) {
        let Pending { reply, arrived, reservation, idempotency, .. } = pending;
        let refusal = match outcome {
            Ok(Appended::New(_)) if self.store_has_failed() => Refusal::StoreFailed,
            Ok(Appended::New(id)) => {
                self.waiting
                    .insert(id, Waiting { replies: smallvec![reply], arrived, reservation });
                return;
            }
            Ok(Appended::Repeated(repeated)) => {
                self.cancel(now, reservation);
                return self.answer_repeated(repeated, idempotency.as_ref(), reply);
            }
            Err(AppendError::Mismatch) => Refusal::Mismatch,
            Err(AppendError::KeysFull) => self.full(Reason::Waiting, KEYS),
            Err(AppendError::Store(_)) => Refusal::StoreFailed,
        };
        self.cancel(now, reservation);
        // The client may be gone.
        let _ = reply.send(Err(refusal));
    }

    fn cancel(&mut self, now: Now, reservation: Option<Reservation>) {
        if let Some(reservation) = reservation {
            self.parts.engine.cancel(now, reservation);
        }
    }

    /// A write was a task before: it has, or will have, the answer of that one.
    fn answer_repeated(&mut self, mut repeated: Repeated, key: Option<&Idempotency>, reply: Reply) {
        let id = repeated.id;
        // It has not arrived, or its majority is waited for.
        if let Some(waiting) = self.waiting.get_mut(&id) {
            return waiting.replies.push(reply);
        }
        // It may have been decided since the journal looked.
        if repeated.answer.is_none()
            && let Some(KeyState::Known(now)) = key.map(|key| self.parts.journal.key(key))
        {
            repeated = now;
        }
        let answer = match (&repeated.answer, repeated.consistency) {
            (Some(answer), _) => said_before(id, answer),
            (None, Consistency::Eventual) => Ok(Accepted { id, acked: Vec::new(), replayed: true }),
            (None, Consistency::Strong) => self.answer_by_progress(id),
        };
        // The client may be gone.
        let _ = reply.send(answer);
    }

    /// A task is durable.
    pub(super) fn arrived(&mut self, now: Now, partition: Partition, task: &Arc<Task>) {
        self.parts.newest = task.id;
        let reservation = self.waiting.get_mut(&task.id).and_then(|waiting| {
            self.times.accepted(waiting.arrived, now.moment);
            waiting.reservation.take()
        });
        // Before it is sent.
        self.task_cache.offer(task);
        let arrived = Arrived {
            id: task.id,
            partition,
            key: self.parts.keys.id(&task.key),
            replicas: &task.replicas,
            bytes: task.weight() as u64,
            accepted_at: task.accepted_at,
        };
        self.parts.engine.arrive(now, arrived, Origin::Written(reservation));
        if task.consistency == Consistency::Eventual {
            let id = task.id;
            self.answer(id, |replayed| Ok(Accepted { id, acked: Vec::new(), replayed }));
        }
        self.tell_accepted(now, task.id);
    }

    /// A strong write is decided.
    pub(super) fn conclude(&mut self, verdict: &Concluded) {
        if !self.store_has_failed() {
            self.parts.journal.conclude(verdict.task, verdict.kept());
        }
        self.answer(verdict.task, |replayed| verdict.answer(replayed));
    }

    /// Answers the client that wrote a task and those that repeated the write.
    fn answer(&mut self, id: TaskId, answer: impl Fn(bool) -> Result<Accepted, Refusal>) {
        let Some(waiting) = self.waiting.remove(&id) else { return };
        for (place, reply) in waiting.replies.into_iter().enumerate() {
            // The client may be gone; the write stays.
            let _ = reply.send(answer(place > 0));
        }
    }

    /// The answer to a repeated strong write whose first answer was lost in a restart.
    fn answer_by_progress(&self, id: TaskId) -> Result<Accepted, Refusal> {
        let Some(view) = self.parts.engine.view(id) else {
            // Every delivery is settled: a replica without this write was sent a newer one.
            return Ok(Accepted { id, acked: Vec::new(), replayed: true });
        };
        let needed = view.deliveries.len() / 2 + 1;
        let (acked, failed): (Vec<_>, Vec<_>) = (0..)
            .map(ReplicaIndex)
            .zip(&view.deliveries)
            .partition(|(_, delivery)| delivery.state == DeliveryState::Delivered);
        let indexes = |list: Vec<(ReplicaIndex, _)>| list.into_iter().map(|(at, _)| at).collect();
        let (acked, failed): (Vec<_>, Vec<_>) = (indexes(acked), indexes(failed));
        if acked.len() >= needed {
            return Ok(Accepted { id, acked, replayed: true });
        }
        let obstacles = Vec::new();
        Err(Refusal::NoMajority { id, needed, acked, failed, obstacles, replayed: true })
    }
}

/// The answer that a strong write was given before.
fn said_before(task: TaskId, answer: &IdempotencyAnswer) -> Result<Accepted, Refusal> {
    let indexes = |list: &[u16]| list.iter().copied().map(ReplicaIndex).collect();
    if answer.success {
        return Ok(Accepted { id: task, acked: indexes(&answer.acked), replayed: true });
    }
    Err(Refusal::NoMajority {
        id: task,
        needed: usize::from(answer.needed),
        acked: indexes(&answer.acked),
        failed: indexes(&answer.failed),
        // They were of that moment.
        obstacles: Vec::new(),
        replayed: true,
    })
}
