//! The answers to clients: when a write arrives, and when a strong write is decided, by this process or
//! by the one that owns its partition now.

use std::time::Duration;

use smallvec::{SmallVec, smallvec};

use super::Core;
use crate::dispatcher::messages::{AcceptedWrite, Refusal, WriteReply};
use crate::engine::{Moment, Now, Reservation};
use crate::store::{IdempotencyAnswer, KeyState, Repeated};
use crate::task::{
    Consistency, DeliveryState, Idempotency, Obstacle, Partition, ReplicaIndex, TaskId,
};

/// How long the answer of another process may take after the timeout of a strong write.
const ANSWER_TRAVELS: Duration = Duration::from_secs(1);

/// Answers of other processes that are kept for writes without an outcome.
const MAX_CONCLUDED: usize = 256;

/// The clients that wait for the answer of a task.
#[derive(Debug)]
pub(super) struct WaitingClients {
    /// The client that wrote it, then those that repeated the write.
    pub(super) replies: SmallVec<[WriteReply; 1]>,
    pub(super) arrived: Moment,
    /// `None` after the arrival.
    pub(super) reservation: Option<Reservation>,
    pub(super) consistency: Consistency,
    /// Another process sends the answer, at the latest then.
    pub(super) until: Option<Moment>,
}

pub(super) struct StrongResult {
    pub(super) task: TaskId,
    pub(super) success: bool,
    pub(super) needed: usize,
    pub(super) acked: Vec<ReplicaIndex>,
    pub(super) missing: Vec<ReplicaIndex>,
    pub(super) obstacles: Vec<(ReplicaIndex, Obstacle)>,
}

impl Core {
    /// A write is durable, and another process delivers it. That one also decides a strong write.
    pub(super) fn await_elsewhere(
        &mut self,
        id: TaskId,
        consistency: Consistency,
        reply: WriteReply,
        arrived: Moment,
    ) {
        if consistency == Consistency::Eventual {
            // The client may be gone; the write stays. So below.
            let _ = reply.send(accepted_elsewhere(id, consistency, false));
        } else if let Some(clients) = self.intake.clients.get_mut(&id) {
            clients.replies.push(reply);
        } else if let Some(at) = self.intake.concluded.iter().position(|one| one.task == id)
            && let Some(result) = self.intake.concluded.remove(at)
        {
            let _ = reply.send(result.answer(false));
        } else {
            let (replies, until) = (smallvec![reply], Some(self.overdue(arrived)));
            let reservation = None;
            let clients = WaitingClients { replies, arrived, reservation, consistency, until };
            self.intake.clients.insert(id, clients);
        }
    }

    /// When the answer of another process to a strong write does not come any more.
    fn overdue(&self, arrived: Moment) -> Moment {
        arrived.after(self.engine.strong_timeout() + ANSWER_TRAVELS)
    }

    /// Another process has decided a strong write of this one.
    pub(super) fn concluded_elsewhere(
        &mut self,
        now: Now,
        id: TaskId,
        answer: &IdempotencyAnswer,
        obstacles: Vec<(ReplicaIndex, Obstacle)>,
    ) {
        let result = StrongResult::of(id, answer, obstacles);
        if let Some(clients) = self.intake.clients.get_mut(&id) {
            // If it still arrives here, it needs no room.
            let reservation = clients.reservation.take();
            self.cancel(now, reservation);
            return self.answer(id, |replayed| result.answer(replayed));
        }
        // Its outcome may come later.
        if self.intake.concluded.len() >= MAX_CONCLUDED {
            self.intake.concluded.pop_front();
        }
        self.intake.concluded.push_back(result);
    }

    /// Answers the clients to which another process has sent no answer.
    pub(super) fn answer_overdue(&mut self, now: Now) {
        let is_overdue =
            |clients: &WaitingClients| clients.until.is_some_and(|at| at <= now.moment);
        let clients = self.intake.clients.iter().filter(|(_, clients)| is_overdue(clients));
        let overdue: Vec<_> = clients.map(|(id, clients)| (*id, clients.consistency)).collect();
        for (id, consistency) in overdue {
            self.answer(id, |replayed| accepted_elsewhere(id, consistency, replayed));
        }
    }

    /// Answers the clients whose writes are durable and do not arrive any more: another process owns
    /// their partition. It decides the strong writes.
    pub(super) fn answer_released(&mut self, now: Now, partition: Partition) {
        let patience = self.engine.strong_timeout() + ANSWER_TRAVELS;
        let ids = self.intake.clients.keys().copied();
        let ids: Vec<_> = ids.filter(|id| self.journal.partition_of(*id) == partition).collect();
        for id in ids {
            let Some(clients) = self.intake.clients.get_mut(&id) else { continue };
            let (reservation, consistency) = (clients.reservation.take(), clients.consistency);
            let arrived = clients.arrived;
            let until = arrived.after(patience);
            clients.until = Some(until);
            self.cancel(now, reservation);
            if consistency == Consistency::Eventual {
                self.answer(id, |replayed| accepted_elsewhere(id, consistency, replayed));
            }
        }
    }

    pub(super) fn conclude(&mut self, result: &StrongResult) {
        if !self.store_has_failed() {
            self.journal.conclude(result.task, result.for_journal(), &result.obstacles);
        }
        self.answer(result.task, |replayed| result.answer(replayed));
    }

    /// Answers the client that wrote a task and those that repeated the write.
    pub(super) fn answer(
        &mut self,
        id: TaskId,
        answer: impl Fn(bool) -> Result<AcceptedWrite, Refusal>,
    ) {
        let Some(clients) = self.intake.clients.remove(&id) else { return };
        for (place, reply) in clients.replies.into_iter().enumerate() {
            // The client may be gone; the write stays.
            let _ = reply.send(answer(place > 0));
        }
    }

    /// Answers a repeated write with the answer of the first one, or lets it wait for that.
    pub(super) fn answer_repeated(
        &mut self,
        mut repeated: Repeated,
        key: Option<&Idempotency>,
        reply: WriteReply,
    ) {
        let id = repeated.id;
        if let Some(clients) = self.intake.clients.get_mut(&id) {
            return clients.replies.push(reply);
        }
        // The first write may have been decided after the journal looked.
        if repeated.answer.is_none()
            && let Some(KeyState::Known(now)) = key.map(|key| self.journal.key(key))
        {
            repeated = now;
        }
        let answer = match (&repeated.answer, repeated.consistency) {
            (Some(answer), _) => first_answer(id, answer),
            (None, Consistency::Eventual) => {
                Ok(AcceptedWrite { id, acked: Vec::new(), replayed: true })
            }
            (None, Consistency::Strong) => self.answer_by_progress(id),
        };
        let _ = reply.send(answer);
    }

    /// The answer to a repeated strong write whose first answer was lost in a restart.
    fn answer_by_progress(&self, id: TaskId) -> Result<AcceptedWrite, Refusal> {
        let Some(view) = self.engine.view(id) else {
            // Every delivery is settled: a replica without this write was sent a newer one.
            return Ok(AcceptedWrite { id, acked: Vec::new(), replayed: true });
        };
        let needed = view.deliveries.len() / 2 + 1;
        let (acked, failed): (Vec<_>, Vec<_>) = (0..)
            .map(ReplicaIndex)
            .zip(&view.deliveries)
            .partition(|(_, delivery)| delivery.state == DeliveryState::Delivered);
        let indexes = |list: Vec<(ReplicaIndex, _)>| list.into_iter().map(|(at, _)| at).collect();
        let (acked, failed): (Vec<_>, Vec<_>) = (indexes(acked), indexes(failed));
        if acked.len() >= needed {
            return Ok(AcceptedWrite { id, acked, replayed: true });
        }
        let obstacles = Vec::new();
        Err(Refusal::NoMajority { id, needed, acked, failed, obstacles, replayed: true })
    }
}

impl StrongResult {
    fn of(
        task: TaskId,
        answer: &IdempotencyAnswer,
        obstacles: Vec<(ReplicaIndex, Obstacle)>,
    ) -> Self {
        let indexes = |list: &[u16]| list.iter().copied().map(ReplicaIndex).collect();
        Self {
            task,
            success: answer.success,
            needed: usize::from(answer.needed),
            acked: indexes(&answer.acked),
            missing: indexes(&answer.failed),
            obstacles,
        }
    }

    fn answer(&self, replayed: bool) -> Result<AcceptedWrite, Refusal> {
        let (id, acked) = (self.task, self.acked.clone());
        if self.success {
            return Ok(AcceptedWrite { id, acked, replayed });
        }
        let (failed, obstacles) = (self.missing.clone(), self.obstacles.clone());
        Err(Refusal::NoMajority { id, needed: self.needed, acked, failed, obstacles, replayed })
    }

    fn for_journal(&self) -> IdempotencyAnswer {
        let indexes = |list: &[ReplicaIndex]| list.iter().map(|index| index.0).collect();
        IdempotencyAnswer {
            success: self.success,
            acked: indexes(&self.acked),
            failed: indexes(&self.missing),
            needed: u16::try_from(self.needed).unwrap_or(u16::MAX),
        }
    }
}

/// The answer to a durable write that another process delivers.
fn accepted_elsewhere(
    id: TaskId,
    consistency: Consistency,
    replayed: bool,
) -> Result<AcceptedWrite, Refusal> {
    match consistency {
        Consistency::Eventual => Ok(AcceptedWrite { id, acked: Vec::new(), replayed }),
        Consistency::Strong => Err(Refusal::OwnerChanged { id }),
    }
}

/// The answer that the first client of a strong write got.
fn first_answer(task: TaskId, answer: &IdempotencyAnswer) -> Result<AcceptedWrite, Refusal> {
    let indexes = |list: &[u16]| list.iter().copied().map(ReplicaIndex).collect();
    if answer.success {
        return Ok(AcceptedWrite { id: task, acked: indexes(&answer.acked), replayed: true });
    }
    Err(Refusal::NoMajority {
        id: task,
        needed: usize::from(answer.needed),
        acked: indexes(&answer.acked),
        failed: indexes(&answer.failed),
        // Obstacles are not stored: they were only true then.
        obstacles: Vec::new(),
        replayed: true,
    })
}
