//! Writes that came with an `Idempotency-Key`: the same key within the window is the same write.
//!
//! A key takes effect with its task, which carries it: both are durable together. A repeat that comes
//! before waits for that.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use super::rows::{IdempotencyAnswer, IdempotencyRow};
use crate::store::journal::KeyState;
use crate::task::{Consistency, Idempotency, Moment, Now, TaskId, Uptime};

/// What is known of a key.
#[derive(Debug)]
struct Known<W> {
    row: IdempotencyRow,
    consistency: Consistency,
    /// Its task is not durable yet: repeats that wait for that.
    waiting: Option<Vec<W>>,
}

/// The keys of the window. `W` is a repeat that waits.
#[derive(Debug)]
pub(in crate::store) struct Keys<W> {
    window: Duration,
    most: usize,
    known: HashMap<Box<str>, Known<W>>,
    /// Those of strong writes without an answer, and of tasks that are not durable.
    by_task: HashMap<TaskId, Box<str>>,
    /// When each is forgotten.
    order: VecDeque<(Moment, Box<str>)>,
}

/// What a write was that came with the same key before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repeated {
    /// The task that it became.
    pub id: TaskId,
    /// When its client had its answer. Of a task that is settled and gone it is not known: eventual.
    pub consistency: Consistency,
    /// The answer to a strong write, if it has one.
    pub answer: Option<IdempotencyAnswer>,
}

impl<W> Keys<W> {
    pub(in crate::store) fn new(window: Duration, most: usize) -> Self {
        let (known, by_task) = (HashMap::new(), HashMap::new());
        Self { window, most, known, by_task, order: VecDeque::new() }
    }

    /// Takes on the keys found on disk, and gives back those whose time is over. `strong` are the
    /// strong writes that are not settled.
    pub(in crate::store) fn restore(
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

    pub(in crate::store) fn look(&self, idempotency: &Idempotency) -> KeyState {
        match self.known.get(self.known_as(idempotency)) {
            None if self.known.len() >= self.most => KeyState::NoRoom,
            None => KeyState::New,
            Some(known) if known.row.fingerprint != idempotency.fingerprint => KeyState::Mismatch,
            Some(Known { waiting: Some(_), .. }) => KeyState::Pending,
            Some(known) => KeyState::Known(known.repeated()),
        }
    }

    /// Has a repeat wait until the write of a pending key is durable.
    pub(in crate::store) fn wait(&mut self, idempotency: &Idempotency, repeat: W) {
        let key = self.known_as(idempotency);
        if let Some(Known { waiting: Some(waiting), .. }) = self.known.get_mut(key) {
            waiting.push(repeat);
        }
    }

    /// What a key is known as. Before keys belonged to tokens they had no name before them: the same
    /// write under such a key, sent again after the upgrade, is the same task.
    fn known_as<'a>(&self, idempotency: &'a Idempotency) -> &'a str {
        let key = &*idempotency.key;
        let bare = key.split_once(' ').map(|(_token, bare)| bare);
        let same = |known: &Known<W>| known.row.fingerprint == idempotency.fingerprint;
        match bare {
            Some(bare)
                if !self.known.contains_key(key) && self.known.get(bare).is_some_and(same) =>
            {
                bare
            }
            _ => key,
        }
    }

    /// A write with this key has become a task, which is not durable yet.
    pub(in crate::store) fn enter(
        &mut self,
        now: Moment,
        key: &str,
        row: IdempotencyRow,
        consistency: Consistency,
    ) {
        self.by_task.insert(row.task, key.into());
        self.order.push_back((now.after(self.window), key.into()));
        self.known.insert(key.into(), Known { row, consistency, waiting: Some(Vec::new()) });
    }

    /// A task is durable. Gives the repeats that waited for that, and what they repeat.
    pub(in crate::store) fn durable(&mut self, task: TaskId) -> Option<(Vec<W>, Repeated)> {
        let key = self.by_task.get(&task)?;
        let known = self.known.get_mut(key)?;
        if known.consistency == Consistency::Eventual {
            self.by_task.remove(&task);
        }
        Some((known.waiting.take()?, known.repeated()))
    }

    /// A task will never be durable: its key is as if it had not come. Gives the repeats that waited.
    pub(in crate::store) fn lost(&mut self, task: TaskId) -> Vec<W> {
        let key = self.by_task.remove(&task);
        let known = key.and_then(|key| self.known.remove(&key));
        known.and_then(|known| known.waiting).unwrap_or_default()
    }

    /// A strong write has its answer. Gives what is to be written down, if it came with a key.
    pub(in crate::store) fn conclude(
        &mut self,
        task: TaskId,
        answer: IdempotencyAnswer,
    ) -> Option<(Box<str>, IdempotencyRow)> {
        let key = self.by_task.remove(&task)?;
        let known = self.known.get_mut(&key)?;
        known.row.answer = Some(answer);
        Some((key, known.row.clone()))
    }

    /// Lets go of the keys whose time is over, and gives them. One whose write has no answer yet
    /// stays until it has it.
    pub(in crate::store) fn tick(&mut self, now: Moment) -> Vec<Box<str>> {
        let mut over = Vec::new();
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            let Some((_, key)) = self.order.pop_front() else { break };
            let task = self.known.get(&key).map(|known| known.row.task);
            if task.is_some_and(|task| self.by_task.contains_key(&task)) {
                self.order.push_back((now.after(self.window), key));
                continue;
            }
            self.known.remove(&key);
            over.push(key);
        }
        over
    }
}

impl<W> Known<W> {
    fn repeated(&self) -> Repeated {
        let Self { row, consistency, .. } = self;
        Repeated { id: row.task, consistency: *consistency, answer: row.answer.clone() }
    }
}

#[cfg(test)]
mod tests {
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

    fn keys() -> Keys<&'static str> {
        Keys::new(Duration::from_secs(60), 2)
    }

    fn enter(keys: &mut Keys<&'static str>, key: &str, task: u64, consistency: Consistency) {
        keys.enter(Moment(0), key, row(1, task, Timestamp(0)), consistency);
    }

    #[test]
    fn a_repeat_waits_until_the_write_is_durable() {
        let mut keys = keys();
        enter(&mut keys, "k", 7, Consistency::Eventual);
        assert_eq!(keys.look(&write("k", 1)), KeyState::Pending);
        keys.wait(&write("k", 1), "second");
        let (waiting, repeated) = keys.durable(TaskId(7)).unwrap();
        assert_eq!((waiting, repeated.id), (vec!["second"], TaskId(7)));
        assert!(matches!(keys.look(&write("k", 1)), KeyState::Known(known) if known == repeated));
        assert!(matches!(keys.look(&write("k", 2)), KeyState::Mismatch));
    }

    #[test]
    fn a_key_from_before_keys_belonged_to_tokens_is_known_for_the_same_write_only() {
        let mut keys = keys();
        enter(&mut keys, "k", 7, Consistency::Eventual);
        keys.durable(TaskId(7));
        assert!(matches!(keys.look(&write("orders k", 1)), KeyState::Known(_)));
        assert!(matches!(keys.look(&write("orders k", 2)), KeyState::New));
        enter(&mut keys, "orders k", 8, Consistency::Eventual);
        assert!(matches!(keys.look(&write("orders k", 1)), KeyState::Pending));
    }

    #[test]
    fn the_answer_of_a_strong_write_is_kept_for_its_repeats() {
        let mut keys = keys();
        enter(&mut keys, "k", 7, Consistency::Strong);
        let (_, repeated) = keys.durable(TaskId(7)).unwrap();
        assert_eq!(repeated.answer, None);
        let kept = IdempotencyAnswer { success: true, acked: vec![1], failed: vec![], needed: 1 };
        let (key, row) = keys.conclude(TaskId(7), kept.clone()).unwrap();
        assert_eq!((&*key, &row.answer), ("k", &Some(kept.clone())));
        let KeyState::Known(repeated) = keys.look(&write("k", 1)) else { panic!("it is known") };
        assert_eq!((repeated.consistency, repeated.answer), (Consistency::Strong, Some(kept)));
    }

    #[test]
    fn a_key_is_forgotten_after_the_window_but_not_before_its_answer() {
        let mut keys = keys();
        enter(&mut keys, "k", 7, Consistency::Strong);
        keys.durable(TaskId(7));
        assert_eq!(keys.tick(now(60).moment), []);
        let answer = IdempotencyAnswer { success: true, acked: vec![], failed: vec![], needed: 1 };
        keys.conclude(TaskId(7), answer);
        assert_eq!(keys.tick(now(119).moment), []);
        assert_eq!(keys.tick(now(120).moment), ["k".into()]);
        assert!(matches!(keys.look(&write("k", 2)), KeyState::New));
    }

    #[test]
    fn with_as_many_keys_as_may_be_a_new_one_is_not_taken() {
        let mut keys = keys();
        for key in ["a", "b"] {
            enter(&mut keys, key, 1, Consistency::Eventual);
        }
        assert!(matches!(keys.look(&write("c", 1)), KeyState::NoRoom));
        assert!(matches!(keys.look(&write("a", 1)), KeyState::Pending));
    }

    #[test]
    fn a_restart_brings_back_the_keys_that_are_not_over() {
        let mut keys = keys();
        let at = |second| Timestamp(0).saturating_add(Duration::from_secs(second));
        let row = |task, second| row(1, task, at(second));
        let found = vec![("new".into(), row(2, 50)), ("old".into(), row(1, 1))];
        let (uptime, strong) = (Uptime::default(), HashSet::from([TaskId(2)]));
        assert_eq!(keys.restore(now(100), &uptime, found, &strong), ["old".into()]);
        let KeyState::Known(known) = keys.look(&write("new", 1)) else { panic!("it is known") };
        assert_eq!((known.id, known.consistency), (TaskId(2), Consistency::Strong));
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
}
