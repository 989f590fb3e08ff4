//! What a verification asks the loop: which writes are recent, whether they have arrived, and a repair.

use tokio::sync::oneshot;

use crate::dispatcher::admission::Waiter;
use crate::dispatcher::messages::{
    AcceptedWrite, AdminError, NewWrite, Refusal, Request, VerifyQuestion,
};
use crate::dispatcher::verify::{RecentPart, RecentWrite, expires_soon};
use crate::dispatcher::{Core, Handle};
use crate::engine::{KeyStanding, Now};
use crate::task::{NewTask, Node, TaskId};

impl Handle {
    /// Recent writes, for one replica or for any.
    pub(in crate::dispatcher) async fn recent_sample(
        &self,
        replica: Option<Node>,
        most: usize,
    ) -> Result<Vec<RecentWrite>, AdminError> {
        let question = |reply| VerifyQuestion::Sample { replica, most, reply };
        self.ask(|reply| Request::Verify(question(reply))).await
    }

    /// Up to `most` recent writes after `after`, except those that may not be the last of their time.
    pub(in crate::dispatcher) async fn recent_after(
        &self,
        after: TaskId,
        most: usize,
    ) -> Result<RecentPart, AdminError> {
        self.ask(|reply| Request::Verify(VerifyQuestion::After { after, most, reply })).await
    }

    /// Whether a write, the newest of its key, has arrived at each of these replicas. `None` if there
    /// is a newer one.
    pub(in crate::dispatcher) async fn standing(
        &self,
        write: &RecentWrite,
        replicas: Vec<Node>,
    ) -> Result<Option<Vec<KeyStanding>>, AdminError> {
        let (key, sequence) = (write.key.clone(), write.sequence);
        let question = |reply| VerifyQuestion::Standing { key, sequence, replicas, reply };
        self.ask(|reply| Request::Verify(question(reply))).await
    }

    /// Accepts a write unless the key has had another one after `of`.
    pub(in crate::dispatcher) async fn repair(
        &self,
        of: TaskId,
        new: NewTask,
    ) -> Result<AcceptedWrite, Refusal> {
        let (reply, answer) = oneshot::channel();
        let write = NewWrite { new: Box::new(new), idempotency: None, reply };
        // If the loop has ended, the reply is dropped.
        let _ = self.requests.send(Request::Verify(VerifyQuestion::Repair { of, write }));
        answer.await.unwrap_or(Err(Refusal::Draining))
    }
}

impl Core {
    pub(in crate::dispatcher) fn serve_verify(&mut self, now: Now, question: VerifyQuestion) {
        match question {
            VerifyQuestion::Sample { replica, most, reply } => {
                let replica = replica.map(|node| self.registry.resolve(&node).clone());
                let is_of = |write: &RecentWrite, node: &Node| {
                    write.replicas.iter().any(|named| self.registry.resolve(named) == node)
                };
                let wanted = |write: &RecentWrite| {
                    replica.as_ref().is_none_or(|node| is_of(write, node))
                        && !expires_soon(write, now.wall)
                };
                let turn = fastrand::usize(..);
                let mut writes = self.recent.sample(most, turn, wanted);
                for write in &mut writes {
                    self.resolve_recent(write);
                    if let Some(node) = &replica {
                        write.replicas.retain(|named| named == node);
                    }
                }
                // The asker may be gone. So below.
                let _ = reply.send(Ok(writes));
            }
            VerifyQuestion::After { after, most, reply } => {
                // An early write may be numbered before older ones have arrived.
                let mut part = self.recent.part(after, self.intake.newest, most);
                part.writes.iter_mut().for_each(|write| self.resolve_recent(write));
                let _ = reply.send(Ok(part));
            }
            VerifyQuestion::Standing { key, sequence, replicas, reply } => {
                let standing = self.recent.is_newest(&key, sequence).then(|| {
                    let id = self.keys.id(&key);
                    let waits = self.intake.is_waiting(&key);
                    let standing = |node: &Node| match self.engine.key_standing(id, node) {
                        KeyStanding::Settled if waits => KeyStanding::Pending,
                        standing => standing,
                    };
                    replicas.iter().map(standing).collect()
                });
                // It may still be the newest, which is not known any more.
                let is_dropped = sequence <= self.recent.dropped_through();
                let standing =
                    standing.or(is_dropped.then(|| vec![KeyStanding::Dropped; replicas.len()]));
                let _ = reply.send(Ok(standing));
            }
            VerifyQuestion::Repair { of, write } => self.accept_repair(now, of, write),
        }
    }

    /// The current names of its replicas, each once.
    fn resolve_recent(&self, write: &mut RecentWrite) {
        if !self.registry.has_renamed() {
            return;
        }
        let mut resolved = Vec::with_capacity(write.replicas.len());
        for node in &write.replicas {
            let node = self.registry.resolve(node);
            if !resolved.contains(node) {
                resolved.push(node.clone());
            }
        }
        write.replicas = resolved;
    }

    /// Accepts a repair in this turn or not at all: no other write of the key can come between the
    /// check and its number.
    fn accept_repair(&mut self, now: Now, of: TaskId, write: NewWrite) {
        let NewWrite { new, reply, .. } = write;
        let id = self.keys.id(&new.key);
        if !self.recent.is_newest(&new.key, of)
            || self.engine.is_coming(id)
            || self.intake.is_waiting(&new.key)
        {
            let error = "a newer write of the key was accepted: nothing is repaired";
            let _ = reply.send(Err(Refusal::Invalid(error.to_owned())));
            return;
        }
        let (number, arrived) = (self.intake.count_received(), now.moment);
        let waiter = Waiter { number, new, idempotency: None, reply, arrived, deadline: arrived };
        self.replicate_at_once(now, waiter);
    }
}
