//! Writes with an `Idempotency-Key`: the same key within the window is the same write.
//!
//! A key becomes durable with its task, whose row holds it. A repeat that arrives earlier waits for
//! that.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use crate::share::SharedPool;
use crate::store::journal::KeyState;
use crate::store::records::{IdempotencyAnswer, IdempotencyRow, Repeated};
use crate::task::{Consistency, Idempotency, Moment, Now, TaskId, Uptime};

#[derive(Debug)]
struct KnownKey<W> {
    row: IdempotencyRow,
    consistency: Consistency,
    /// `Some` until its task is durable: the repeats that wait for it.
    waiting: Option<Vec<W>>,
}

/// The keys of the window. `W` is a waiting repeat.
#[derive(Debug)]
pub(crate) struct Keys<W> {
    window: Duration,
    max: usize,
    known: HashMap<Box<str>, KnownKey<W>>,
    /// How many of them each token has.
    held: HashMap<Box<str>, u64>,
    /// Only strong writes without an answer and tasks that are not durable yet.
    by_task: HashMap<TaskId, Box<str>>,
    /// When each key expires.
    order: VecDeque<(Moment, Box<str>)>,
}

impl<W> Keys<W> {
    pub(crate) fn new(window: Duration, max: usize) -> Self {
        let (known, held, by_task) = (HashMap::new(), HashMap::new(), HashMap::new());
        Self { window, max, known, held, by_task, order: VecDeque::new() }
    }

    fn insert(&mut self, key: Box<str>, known: KnownKey<W>) {
        let token = token(&key).into();
        if self.known.insert(key, known).is_none() {
            *self.held.entry(token).or_default() += 1;
        }
    }

    fn remove(&mut self, key: &str) -> Option<KnownKey<W>> {
        let known = self.known.remove(key)?;
        if let Some(held) = self.held.get_mut(token(key)) {
            *held -= 1;
            if *held == 0 {
                self.held.remove(token(key));
            }
        }
        Some(known)
    }

    /// Each token has a share of the keys, so that one cannot use all of them up.
    fn has_room_for(&self, key: &str) -> bool {
        let held = self.held.get(token(key)).copied().unwrap_or_default();
        SharedPool::new(self.max, self.known.len()).has_room_for(held)
    }

    /// Adds the keys found on disk and returns the expired ones. `strong` are the unsettled strong
    /// writes.
    pub(crate) fn restore(
        &mut self,
        now: Now,
        uptime: &Uptime,
        mut found: Vec<(Box<str>, IdempotencyRow)>,
        strong: &HashSet<TaskId>,
    ) -> Vec<Box<str>> {
        found.sort_by_key(|(_, row)| row.at);
        let mut expired = Vec::new();
        for (key, row) in found {
            let left = self.window.saturating_sub(uptime.age(now.wall, row.at));
            if left.is_zero() {
                expired.push(key);
                continue;
            }
            let is_strong = strong.contains(&row.task);
            let consistency = if is_strong { Consistency::Strong } else { Consistency::Eventual };
            self.order.push_back((now.moment.after(left), key.clone()));
            self.insert(key, KnownKey { row, consistency, waiting: None });
        }
        expired
    }

    pub(crate) fn look(&self, idempotency: &Idempotency) -> KeyState {
        match self.known.get(self.known_as(idempotency)) {
            None if !self.has_room_for(&idempotency.key) => KeyState::NoRoom,
            None => KeyState::New,
            Some(known) if known.row.fingerprint != idempotency.fingerprint => KeyState::Mismatch,
            Some(KnownKey { waiting: Some(_), .. }) => KeyState::Pending,
            Some(known) => KeyState::Known(known.repeated()),
        }
    }

    /// Adds a repeat of a pending key.
    pub(crate) fn wait(&mut self, idempotency: &Idempotency, repeat: W) {
        let key = self.known_as(idempotency);
        if let Some(KnownKey { waiting: Some(waiting), .. }) = self.known.get_mut(key) {
            waiting.push(repeat);
        }
    }

    /// The name under which a key is stored. Before keys belonged to tokens, they were stored without
    /// the token's name: the same write, repeated after the upgrade, is still the same task.
    fn known_as<'a>(&self, idempotency: &'a Idempotency) -> &'a str {
        let key = &*idempotency.key;
        let bare = key.split_once(' ').map(|(_token, bare)| bare);
        let same = |known: &KnownKey<W>| known.row.fingerprint == idempotency.fingerprint;
        match bare {
            Some(bare)
                if !self.known.contains_key(key) && self.known.get(bare).is_some_and(same) =>
            {
                bare
            }
            _ => key,
        }
    }

    /// Adds the key of a task that is not durable yet.
    pub(crate) fn enter(
        &mut self,
        now: Moment,
        key: &str,
        row: IdempotencyRow,
        consistency: Consistency,
    ) {
        self.by_task.insert(row.task, key.into());
        self.order.push_back((now.after(self.window), key.into()));
        self.insert(key.into(), KnownKey { row, consistency, waiting: Some(Vec::new()) });
    }

    /// The task is durable. Returns the repeats that waited for it, and their answer.
    pub(crate) fn durable(&mut self, task: TaskId) -> Option<(Vec<W>, Repeated)> {
        let key = self.by_task.get(&task)?;
        let known = self.known.get_mut(key)?;
        if known.consistency == Consistency::Eventual {
            self.by_task.remove(&task);
        }
        Some((known.waiting.take()?, known.repeated()))
    }

    /// The task will never be durable. Removes its key and returns the repeats that waited for it.
    pub(crate) fn lost(&mut self, task: TaskId) -> Vec<W> {
        let key = self.by_task.remove(&task);
        let known = key.and_then(|key| self.remove(&key));
        known.and_then(|known| known.waiting).unwrap_or_default()
    }

    /// Stores the answer of a strong write. Returns the row to write, if the write has a key.
    pub(crate) fn conclude(
        &mut self,
        task: TaskId,
        answer: IdempotencyAnswer,
    ) -> Option<(Box<str>, IdempotencyRow)> {
        let key = self.by_task.remove(&task)?;
        let known = self.known.get_mut(&key)?;
        known.row.answer = Some(answer);
        Some((key, known.row.clone()))
    }

    /// Removes and returns the expired keys. A key whose write has no answer yet stays until then.
    pub(crate) fn tick(&mut self, now: Moment) -> Vec<Box<str>> {
        let mut expired = Vec::new();
        while self.order.front().is_some_and(|(until, _)| *until <= now) {
            let Some((_, key)) = self.order.pop_front() else { break };
            let task = self.known.get(&key).map(|known| known.row.task);
            if task.is_some_and(|task| self.by_task.contains_key(&task)) {
                self.order.push_back((now.after(self.window), key));
                continue;
            }
            self.remove(&key);
            expired.push(key);
        }
        expired
    }
}

/// The token that a key belongs to; empty without tokens.
fn token(key: &str) -> &str {
    key.split_once(' ').map_or("", |(token, _)| token)
}

impl<W> KnownKey<W> {
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
    fn one_token_cannot_use_all_keys_up() {
        let mut keys = Keys::new(Duration::from_secs(60), 100);
        let mut used = 0;
        for n in 0..100_u8 {
            let key = format!("greedy {n}");
            if matches!(keys.look(&write(&key, 1)), KeyState::New) {
                enter(&mut keys, &key, u64::from(n), Consistency::Eventual);
                used += 1;
            }
        }
        assert_eq!(used, 90);
        assert!(matches!(keys.look(&write("other 1", 1)), KeyState::New));
        keys.lost(TaskId(0));
        assert!(matches!(keys.look(&write("greedy new", 1)), KeyState::New));
    }

    #[test]
    fn a_new_key_is_refused_when_the_window_is_full() {
        let mut keys = keys();
        for key in ["a", "b"] {
            enter(&mut keys, key, 1, Consistency::Eventual);
        }
        assert!(matches!(keys.look(&write("c", 1)), KeyState::NoRoom));
        assert!(matches!(keys.look(&write("a", 1)), KeyState::Pending));
    }

    #[test]
    fn a_restart_restores_the_keys_that_have_not_expired() {
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
    fn time_that_the_clock_skips_does_not_count_for_the_window() {
        let mut keys = keys();
        let found = vec![("k".into(), row(1, 1, now(10).wall))];
        let gaps = vec![(now(20).wall, now(980).wall)];
        let uptime = Uptime { seen: Some(now(1_000).wall), gaps };
        assert_eq!(keys.restore(now(1_000), &uptime, found, &HashSet::new()), []);
        assert_eq!(keys.tick(now(1_029).moment), []);
        assert_eq!(keys.tick(now(1_030).moment), ["k".into()]);
    }
}
