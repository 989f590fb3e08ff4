//! What the journal promises, by what is heard of it: outcomes and arrivals, in their order.

use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};

use bytes::Bytes;

use super::super::tests::{close, open_with};
use super::super::{Event, Opened};
use super::*;
use crate::task::{Consistency, Operation, Timestamp};

/// What is heard of a journal.
#[derive(Debug, PartialEq)]
enum Heard {
    Outcome(&'static str, Result<Appended, AppendError>),
    Arrived(Vec<u64>),
}

use Heard::{Arrived, Outcome};

struct Ears {
    opened: Opened,
    heard: Receiver<Heard>,
    ears: Sender<Heard>,
}

const LIMITS: KeyLimits = KeyLimits { window: Duration::from_secs(60), most: 3 };

impl Ears {
    fn open(dir: &Path) -> Self {
        let (ears, heard) = channel();
        let tell = ears.clone();
        let notify = move |event| match event {
            Event::Arrived { tasks, .. } => {
                tell.send(Arrived(tasks.iter().map(|task| task.id.0).collect())).unwrap();
            }
            Event::Failed(why) => panic!("{why}"),
        };
        let (mut opened, ..) = open_with(dir, Box::new(notify));
        let found = std::mem::take(&mut opened.idempotency);
        opened.journal.remember(LIMITS, now(), &Uptime::default(), found, &HashSet::new());
        Self { opened, heard, ears }
    }

    fn write(
        &self,
        name: &'static str,
        consistency: Consistency,
        key: Option<(&str, u8)>,
    ) -> Append {
        let ears = self.ears.clone();
        Append {
            new: Box::new(NewTask {
                key: name.to_owned(),
                operation: Operation::Set,
                value: Bytes::from_static(b"value"),
                ttl: None,
                consistency,
                replicas: vec![Node::parse("http://a").unwrap()],
                user_id: None,
                trace: None,
            }),
            now: now(),
            idempotency: key
                .map(|(key, body)| Idempotency { key: key.into(), fingerprint: [body; 16] }),
            // Who listens may be gone.
            reply: Box::new(move |outcome| drop(ears.send(Outcome(name, outcome)))),
        }
    }

    fn append(&self, name: &'static str, key: Option<(&str, u8)>) {
        self.opened.journal.append(vec![self.write(name, Consistency::Eventual, key)]);
    }

    fn next(&self) -> Heard {
        self.heard.recv().unwrap()
    }

    /// The outcomes and the arrived tasks of so many writes, in the order in which they were heard.
    fn outcomes(&self, writes: usize) -> Vec<(&'static str, Result<Appended, AppendError>)> {
        let mut outcomes = Vec::new();
        while outcomes.len() < writes {
            if let Outcome(name, outcome) = self.next() {
                outcomes.push((name, outcome));
            }
        }
        outcomes
    }
}

fn now() -> Now {
    Now { moment: Moment(0), wall: Timestamp(5_000_000) }
}

fn new(id: u64) -> Result<Appended, AppendError> {
    Ok(Appended::New(TaskId(id)))
}

fn repeated(id: u64, consistency: Consistency, answer: Option<IdempotencyAnswer>) -> Appended {
    Appended::Repeated(Repeated { id: TaskId(id), consistency, answer })
}

#[test]
fn writes_are_numbered_in_the_order_of_the_calls_and_arrive_behind_their_outcomes() {
    let dir = tempfile::tempdir().unwrap();
    let ears = Ears::open(dir.path());
    let first = ears.opened.next_id.0;
    for _ in 0..500 {
        ears.append("write", None);
    }
    let (mut outcomes, mut arrived) = (Vec::new(), Vec::new());
    while arrived.len() < 500 {
        match ears.next() {
            Outcome(_, Ok(Appended::New(id))) => outcomes.push(id.0),
            Arrived(ids) => arrived.extend(ids),
            other => panic!("{other:?}"),
        }
        assert!(arrived.len() <= outcomes.len(), "a task arrived before the outcome of its write");
    }
    assert_eq!(outcomes, (first..first + 500).collect::<Vec<_>>());
    assert_eq!(arrived, outcomes);
    close(ears.opened);
}

#[test]
fn a_group_is_durable_together() {
    let dir = tempfile::tempdir().unwrap();
    let ears = Ears::open(dir.path());
    let first = ears.opened.next_id.0;
    let group = (0..200).map(|_| ears.write("grouped", Consistency::Eventual, None)).collect();
    ears.opened.journal.append(group);
    assert_eq!(ears.outcomes(200).len(), 200);
    assert_eq!(ears.next(), Arrived((first..first + 200).collect()));
    close(ears.opened);
}

#[test]
fn a_repeat_is_the_task_of_the_first_write_and_has_its_outcome_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let ears = Ears::open(dir.path());
    let id = ears.opened.next_id.0;
    // While the first is not durable, in one group with it, and after it.
    for _ in 0..2 {
        let write = |name, body| ears.write(name, Consistency::Eventual, Some(("k", body)));
        ears.opened.journal.append(vec![write("first", 1), write("second", 1)]);
        ears.append("third", Some(("k", 1)));
        ears.append("another", Some(("k", 2)));
    }
    let mut outcomes = ears.outcomes(8);
    outcomes.retain(|(_, outcome)| *outcome != Err(AppendError::Mismatch));
    assert_eq!(outcomes.len(), 6);
    assert_eq!(outcomes.remove(0), ("first", new(id)));
    let same = Ok(repeated(id, Consistency::Eventual, None));
    assert!(outcomes.iter().all(|(_, outcome)| *outcome == same), "{outcomes:?}");
    close(ears.opened);
}

#[test]
fn a_key_beyond_the_limit_becomes_no_task() {
    let dir = tempfile::tempdir().unwrap();
    let ears = Ears::open(dir.path());
    for key in ["a", "b", "c"] {
        ears.append("fits", Some((key, 1)));
    }
    ears.append("does not", Some(("d", 1)));
    let outcomes = ears.outcomes(4);
    assert!(outcomes.contains(&("does not", Err(AppendError::KeysFull))), "{outcomes:?}");
    ears.append("fits", Some(("a", 1)));
    assert!(matches!(ears.outcomes(1)[0].1, Ok(Appended::Repeated(_))));
    ears.opened.journal.tick(Moment(0).after(LIMITS.window));
    ears.append("fits now", Some(("d", 1)));
    assert!(matches!(ears.outcomes(1)[0].1, Ok(Appended::New(_))));
    close(ears.opened);
}

#[test]
fn the_answer_to_a_strong_write_is_remembered_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let answer = IdempotencyAnswer { success: true, acked: vec![0], failed: vec![], needed: 1 };
    let ears = Ears::open(dir.path());
    let id = ears.opened.next_id.0;
    let write = |ears: &Ears| {
        let write = ears.write("strong", Consistency::Strong, Some(("k", 1)));
        ears.opened.journal.append(vec![write]);
        ears.outcomes(1).remove(0).1
    };
    assert_eq!(write(&ears), new(id));
    assert_eq!(write(&ears), Ok(repeated(id, Consistency::Strong, None)));
    ears.opened.journal.conclude(TaskId(id), answer.clone());
    let known = Ok(repeated(id, Consistency::Strong, Some(answer.clone())));
    assert_eq!(write(&ears), known);
    close(ears.opened);
    let ears = Ears::open(dir.path());
    let Ok(Appended::Repeated(found)) = write(&ears) else { panic!("it is known") };
    assert_eq!((found.id, found.answer), (TaskId(id), Some(answer)));
    close(ears.opened);
}

#[test]
fn once_closed_it_refuses_whatever_comes() {
    let dir = tempfile::tempdir().unwrap();
    let ears = Ears::open(dir.path());
    ears.opened.committer.close().blocking_recv().unwrap().unwrap();
    for key in [None, Some(("k", 1)), Some(("k", 1))] {
        ears.append("late", key);
        assert_eq!(ears.outcomes(1)[0].1, Err(AppendError::Store(CommitError::Closed)));
    }
}
