//! Writes that came with an `Idempotency-Key`: the same key within the window is the same write.
//!
//! A key is looked up when its write has room, and takes effect with its task: it is written behind
//! it in the same commit. Who repeats a write that is not answered yet waits for the same answer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use crate::dispatcher::messages::{Accepted, Refusal, Reply};
use crate::engine::{Moment, Now};
use crate::store::{IdempotencyAnswer, IdempotencyRow};
use crate::task::{Consistency, Idempotency, ReplicaIndex, TaskId, Uptime};

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
pub(crate) struct Keys {
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
    pub(crate) fn new(window: Duration, most: usize) -> Self {
        let (known, by_task) = (HashMap::new(), HashMap::new());
        Self { window, most, known, by_task, order: VecDeque::new() }
    }

    /// Takes on the keys found on disk, and gives back those whose time is over. `strong` are the
    /// strong writes that are not settled.
    pub(crate) fn restore(
        &mut self,
        now: Now,
        uptime: &Uptime,
        mut found: Vec<(Box<str>, IdempotencyRow)>,
        strong: &HashSet<TaskId>,
    ) -> Vec<Box<str>> {
        found.sort_by_key(|(_, row)| row.at);
        let mut over = Vec::new();
        for (key, row) in found {
            let left = self.window.saturating_sub(uptime.age(now.wall, row.at));
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
        let key = self.known_as(idempotency);
        match self.known.get_mut(key) {
            None if full => Seen::Full,
            None => Seen::New,
            Some(known) if known.row.fingerprint != idempotency.fingerprint => Seen::Mismatch,
            Some(Known { waiting: Some(waiting), .. }) => Seen::Waits(waiting),
            Some(known) => Seen::Answered(known),
        }
    }

    /// What a key is known as. Before keys belonged to tokens they had no name before them: the same
    /// write under such a key, sent again after the upgrade, is the same task.
    fn known_as<'a>(&self, idempotency: &'a Idempotency) -> &'a str {
        let key = &*idempotency.key;
        let bare = key.split_once(' ').map(|(_token, bare)| bare);
        let same = |known: &Known| known.row.fingerprint == idempotency.fingerprint;
        match bare {
            Some(bare)
                if !self.known.contains_key(key) && self.known.get(bare).is_some_and(same) =>
            {
                bare
            }
            _ => key,
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
        // They were of that moment.
        obstacles: Vec::new(),
        replayed: true,
    })
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;
    use crate::task::Timestamp;

    fn now(second: u64) -> Now {
        let time = Duration::from_secs(second);
        Now { moment: Moment(0).after(time), wall: Timestamp(0).saturating_add(time) }
    }

    fn write(key: &str, body: u8) -> Idempotency {
        Idempotency { key: key.into(), fingerprint: [body; 16] }
    }

    fn row(body: u8, task: u64, at: Timestamp) -> IdempotencyRow {
        IdempotencyRow { task: TaskId(task), fingerprint: [body; 16], at, answer: None }
    }

    fn keys() -> Keys {
        Keys::new(Duration::from_secs(60), 2)
    }

    fn enter(keys: &mut Keys, key: &str, task: u64, consistency: Consistency) -> Answered {
        let (reply, answer) = oneshot::channel();
        let row = row(1, task, Timestamp(0));
        keys.enter(Moment(0), key, row, consistency, reply);
        answer
    }

    type Answered = oneshot::Receiver<Result<Accepted, Refusal>>;

    fn accepted(task: u64) -> impl Fn(bool) -> Result<Accepted, Refusal> {
        move |replayed| Ok(Accepted { id: TaskId(task), acked: Vec::new(), replayed })
    }

    #[test]
    fn who_repeats_a_write_before_its_answer_is_given_the_same_and_told_so() {
        let mut keys = keys();
        let mut first = enter(&mut keys, "k", 7, Consistency::Eventual);
        let (reply, mut second) = oneshot::channel();
        let Seen::Waits(waiting) = keys.look(&write("k", 1)) else { panic!("it has no answer") };
        waiting.push(reply);
        keys.answer_eventual(TaskId(7), &accepted(7));
        let replayed = |answer: &mut Answered| answer.try_recv().unwrap().unwrap().replayed;
        assert_eq!((replayed(&mut first), replayed(&mut second)), (false, true));
        assert!(matches!(keys.look(&write("k", 1)), Seen::Answered(_)));
        assert!(matches!(keys.look(&write("k", 2)), Seen::Mismatch));
    }

    #[test]
    fn a_key_from_before_keys_belonged_to_tokens_is_known_for_the_same_write_only() {
        let mut keys = keys();
        let _first = enter(&mut keys, "k", 7, Consistency::Eventual);
        keys.answer_eventual(TaskId(7), &accepted(7));
        assert!(matches!(keys.look(&write("orders k", 1)), Seen::Answered(_)));
        assert!(matches!(keys.look(&write("orders k", 2)), Seen::New));
        let _second = enter(&mut keys, "orders k", 8, Consistency::Eventual);
        assert!(matches!(keys.look(&write("orders k", 1)), Seen::Waits(_)));
    }

    #[test]
    fn a_commit_does_not_answer_a_strong_write() {
        let mut keys = keys();
        let mut answer = enter(&mut keys, "k", 7, Consistency::Strong);
        keys.answer_eventual(TaskId(7), &accepted(7));
        assert!(answer.try_recv().is_err());
        let kept = IdempotencyAnswer { success: true, acked: vec![1], failed: vec![], needed: 1 };
        let (key, row) = keys.answer(TaskId(7), &accepted(7), Some(kept.clone())).unwrap();
        assert_eq!((&*key, row.answer), ("k", Some(kept)));
        assert!(answer.try_recv().unwrap().is_ok());
    }

    #[test]
    fn a_key_is_forgotten_after_the_window_but_not_before_its_answer() {
        let mut keys = keys();
        let _answer = enter(&mut keys, "k", 7, Consistency::Strong);
        assert_eq!(keys.tick(now(60).moment), []);
        keys.answer(TaskId(7), &accepted(7), None);
        assert_eq!(keys.tick(now(119).moment), []);
        assert_eq!(keys.tick(now(120).moment), ["k".into()]);
        assert!(matches!(keys.look(&write("k", 2)), Seen::New));
    }

    #[test]
    fn with_as_many_keys_as_may_be_a_new_one_is_not_taken() {
        let mut keys = keys();
        let _answers = ["a", "b"].map(|key| enter(&mut keys, key, 1, Consistency::Eventual));
        assert!(matches!(keys.look(&write("c", 1)), Seen::Full));
        assert!(matches!(keys.look(&write("a", 1)), Seen::Waits(_)));
    }

    #[test]
    fn a_restart_brings_back_the_keys_that_are_not_over() {
        let mut keys = keys();
        let at = |second| Timestamp(0).saturating_add(Duration::from_secs(second));
        let row = |task, second| row(1, task, at(second));
        let found = vec![("new".into(), row(2, 50)), ("old".into(), row(1, 1))];
        let (uptime, strong) = (Uptime::default(), HashSet::from([TaskId(2)]));
        assert_eq!(keys.restore(now(100), &uptime, found, &strong), ["old".into()]);
        let Seen::Answered(known) = keys.look(&write("new", 1)) else { panic!("it is known") };
        assert_eq!((known.row.task, known.consistency), (TaskId(2), Consistency::Strong));
        assert_eq!(keys.tick(now(109).moment), []);
        assert_eq!(keys.tick(now(110).moment), ["new".into()]);
    }

    #[test]
    fn what_the_clock_skips_does_not_count_for_the_window() {
        let mut keys = keys();
        let found = vec![("k".into(), row(1, 1, now(10).wall))];
        let gaps = vec![(now(20).wall, now(980).wall)];
        let uptime = Uptime { seen: Some(now(1_000).wall), gaps };
        assert_eq!(keys.restore(now(1_000), &uptime, found, &HashSet::new()), []);
        assert_eq!(keys.tick(now(1_029).moment), []);
        assert_eq!(keys.tick(now(1_030).moment), ["k".into()]);
    }

    #[test]
    fn when_the_store_has_failed_nobody_waits_any_more() {
        let mut keys = keys();
        let mut answer = enter(&mut keys, "k", 7, Consistency::Eventual);
        keys.abandon();
        assert!(matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Closed)));
    }
}
