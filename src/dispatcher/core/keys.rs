//! Writes that came with an `Idempotency-Key`, and replicas under other names, in the loop.

use super::Core;
use crate::dispatcher::admission::Waiter;
use crate::dispatcher::idempotency::{Known, Seen, repeated};
use crate::dispatcher::messages::{Accepted, Refusal};
use crate::engine::{DeliveryState, Now};
use crate::metrics::Reason;
use crate::store::IdempotencyAnswer;
use crate::task::{Consistency, NewTask, Node, Obstacle, ReplicaIndex, TaskId};

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

    /// Gives a write back if it has not been seen before. Otherwise it has, or will have, the
    /// answer of the one that it repeats.
    pub(super) fn not_seen(&mut self, waiter: Waiter) -> Option<Waiter> {
        let Some(idempotency) = &waiter.idempotency else { return Some(waiter) };
        let answer = match self.parts.idempotency.look(idempotency) {
            Seen::New => return Some(waiter),
            Seen::Waits(waiting) => {
                waiting.push(waiter.reply);
                return None;
            }
            Seen::Full => {
                let limit =
                    "the limit of remembered idempotency keys is reached (--idempotency-keys)";
                self.refuse(waiter, Reason::Waiting, limit);
                return None;
            }
            Seen::Mismatch => Err(Refusal::Mismatch),
            Seen::Answered(known) => {
                let (task, known) = (known.row.task, known_answer(known));
                known.unwrap_or_else(|| self.answer_by_progress(task))
            }
        };
        // The client may be gone.
        let _ = waiter.reply.send(answer);
        None
    }

    /// What can be said of a strong write whose answer was lost with a restart.
    fn answer_by_progress(&self, id: TaskId) -> Result<Accepted, Refusal> {
        let Some(view) = self.parts.engine.view(id) else {
            // All of it is settled: whoever does not have it was sent a newer write.
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

    /// A task is durable: an eventual write that came with a key is answered.
    pub(super) fn answer_key(&mut self, id: TaskId) {
        let accepted = |replayed| Ok(Accepted { id, acked: Vec::new(), replayed });
        self.parts.idempotency.answer_eventual(id, &accepted);
    }

    /// A strong write that came with a key is decided.
    pub(super) fn answer_strong_key(&mut self, verdict: &Concluded) {
        let answer = |replayed| verdict.answer(replayed);
        let kept = self.parts.idempotency.answer(verdict.task, &answer, Some(verdict.kept()));
        if let Some((key, row)) = kept
            && !self.store_has_failed()
        {
            self.parts.committer.set_idempotency(key, row);
        }
    }
}

/// The answer that a write had, as far as that is known without looking at its task.
fn known_answer(known: &Known) -> Option<Result<Accepted, Refusal>> {
    let id = known.row.task;
    match (&known.row.answer, known.consistency) {
        (Some(answer), _) => Some(repeated(id, answer)),
        (None, Consistency::Eventual) => {
            Some(Ok(Accepted { id, acked: Vec::new(), replayed: true }))
        }
        (None, Consistency::Strong) => None,
    }
}
