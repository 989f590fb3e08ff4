//! Writes that came with an `Idempotency-Key`: the same key within the window is the same write.
//!
//! A key is looked up when its write has room, and takes effect with its task: it is written behind
//! it in the same commit. Who repeats a write that is not answered yet waits for the same answer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::daemon::handle::{Accepted, Refusal};
use crate::engine::{Moment, Now};
use crate::store::{IdempotencyAnswer, IdempotencyRow};
use crate::task::{Consistency, ReplicaIndex, TaskId, Timestamp};

/// What makes a write the same as one before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// The client's word for it.
    pub key: Box<str>,
    /// What its body comes down to.
    pub fingerprint: [u8; 16],
}

impl Idempotency {
    pub(super) fn row(&self, task: TaskId, at: Timestamp) -> IdempotencyRow {
        IdempotencyRow { task, fingerprint: self.fingerprint, at, answer: None }
    }
}

/// Where an answer goes.
type Reply = oneshot::Sender<Result<Accepted, Refusal>>;

/// What is known of a key.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) row: IdempotencyRow,
    pub(super) consistency: Consistency,
    /// Its answer is not known yet: who else waits for it.
    waiting: Option<Vec<Reply>>,
}

/// The keys of the window.
#[derive(Debug)]
pub(super) struct Keys {
    window: Duration,
    most: usize,
    known: HashMap<Box<str>, Known>,
    by_task: HashMap<TaskId, Box<str>>,
    /// When each is forgotten.
    order: VecDeque<(Moment, Box<str>)>,
}

/// What a key says of a write.
pub(super) enum Seen<'a> {
    /// It is new.
    New,
    /// As many as may be are known already.
    Full,
    /// It was another write's.
    Mismatch,
    /// The same write has its answer, or one after a restart has none that was written down.
    Answered(&'a Known),
    /// The same write has none yet: who asks is answered with it.
    Waits(&'a mut Vec<Reply>),
}

impl Keys {
    pub(super) fn new(window: Duration, most: usize) -> Self {
        let (known, by_task) = (HashMap::new(), HashMap::new());
        Self { window, most, known, by_task, order: VecDeque::new() }
    }

    /// Takes on the keys found on disk, and gives back those whose time is over. `strong` are the
    /// strong writes that are not settled.
    pub(super) fn restore(
        &mut self,
        now: Now,
        mut found: Vec<(Box<str>, IdempotencyRow)>,
        strong: &HashSet<TaskId>,
    ) -> Vec<Box<str>> {
        found.sort_by_key(|(_, row)| row.at);
        let mut over = Vec::new();
        for (key, row) in found {
            let left = self.window.saturating_sub(now.wall.saturating_since(row.at));
            if left.is_zero() {
                over.push(key);
                continue;
            }
            let is_strong = strong.contains(&row.task);
            let consistency = if is_strong { Consistency::Strong } else { Consistency::Eventual };
            self.order.push_back((now.moment.after(left), key.clone()));
            self.known.insert(key, Known { row, consistency, waiting: None });
        }
        over
    }

    pub(super) fn look(&mut self, idempotency: &Idempotency) -> Seen<'_> {
        let full = self.known.len() >= self.most;
        match self.known.get_mut(&idempotency.key) {
            None if full => Seen::Full,
            None => Seen::New,
            Some(known) if known.row.fingerprint != idempotency.fingerprint => Seen::Mismatch,
            Some(Known { waiting: Some(waiting), .. }) => Seen::Waits(waiting),
            Some(known) => Seen::Answered(known),
        }
    }

    /// A write with this key has become a task, whose answer is yet to come.
    pub(super) fn enter(
        &mut self,
        now: Moment,
        key: &str,
        row: IdempotencyRow,
        consistency: Consistency,
        reply: Reply,
    ) {
        self.by_task.insert(row.task, key.into());
        self.order.push_back((now.after(self.window), key.into()));
        self.known.insert(key.into(), Known { row, consistency, waiting: Some(vec![reply]) });
    }

    /// The task of an eventual write is durable.
    pub(super) fn answer_eventual(
        &mut self,
        task: TaskId,
        answer: &dyn Fn(bool) -> Result<Accepted, Refusal>,
    ) {
        let key = self.by_task.get(&task);
        let known = key.and_then(|key| self.known.get(key));
        if known.is_some_and(|known| known.consistency == Consistency::Eventual) {
            self.answer(task, answer, None);
        }
    }

    /// The answer of a task is there: whoever waits for it is given it. For a strong write what is
    /// to be written down is given back.
    pub(super) fn answer(
        &mut self,
        task: TaskId,
        answer: &dyn Fn(bool) -> Result<Accepted, Refusal>,
        kept: Option<IdempotencyAnswer>,
    ) -> Option<(Box<str>, IdempotencyRow)> {
        let key = self.by_task.remove(&task)?;
        let known = self.known.get_mut(&key)?;
        let waiting = known.waiting.take().unwrap_or_default();
        for (place, reply) in waiting.into_iter().enumerate() {
            // Who asked may be gone.
            let _ = reply.send(answer(place > 0));
        }
        known.row.answer = Some(kept?);
        Some((key, known.row.clone()))
    }

    /// Nobody is answered any more: who waits hears that its reply is gone.
    pub(super) fn abandon(&mut self) {
        for known in self.known.values_mut().filter(|known| known.waiting.is_some()) {
            known.waiting = Some(Vec::new());
        }
    }

    /// Lets go of the keys whose time is over, and gives them. One that still waits for its answer
    /// stays until it has it.
    pub(super) fn tick(&mut self, now: Moment) -> Vec<Box<str>> {
        let mut over = Vec::new();
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            let Some((_, key)) = self.order.pop_front() else { break };
            if self.known.get(&key).is_some_and(|known| known.waiting.is_some()) {
                self.order.push_back((now.after(self.window), key));
                continue;
            }
            self.known.remove(&key);
            over.push(key);
        }
        over
    }
}

/// The answer that a strong write was given before.
pub(super) fn repeated(task: TaskId, answer: &IdempotencyAnswer) -> Result<Accepted, Refusal> {
    let indexes = |list: &[u16]| list.iter().copied().map(ReplicaIndex).collect();
    if answer.success {
        return Ok(Accepted { id: task, acked: indexes(&answer.acked), replayed: true });
    }
    Err(Refusal::NoMajority {
        id: task,
        needed: usize::from(answer.needed),
        acked: indexes(&answer.acked),
        failed: indexes(&answer.failed),
        replayed: true,
    })
}
