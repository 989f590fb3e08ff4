//! What every journal promises, held by what is heard of it: outcomes and arrivals, in their order.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::task::{
    Consistency, Idempotency, Moment, NewTask, Node, Now, Operation, Progress, TaskId, Timestamp,
    Uptime,
};

/// What is heard of a journal.
#[derive(Debug, PartialEq)]
enum Heard {
    Outcome(&'static str, Result<Appended, AppendError>),
    Arrived(Vec<u64>),
}

use Heard::{Arrived, Outcome};

/// A journal, and how it is closed.
struct Subject {
    journal: Arc<dyn Journal>,
    close: Box<dyn FnOnce()>,
}

struct Ears {
    subject: Subject,
    heard: Receiver<Heard>,
    ears: Sender<Heard>,
}

const LIMITS: KeyLimits = KeyLimits { window: Duration::from_secs(60), most: 3 };
const FIRST: u64 = 5_000;

fn in_memory(_: &TempDir, notify: Notify) -> Subject {
    let journal = Arc::new(MemoryJournal::new(TaskId(FIRST), LIMITS, notify));
    let this = Arc::clone(&journal);
    Subject { journal, close: Box::new(move || this.close()) }
}

fn local(dir: &TempDir, notify: Notify) -> Subject {
    let settings = StoreSettings {
        dir: dir.path().to_owned(),
        cache_bytes: 8 << 20,
        min_free_bytes: 0,
        now: Timestamp(FIRST * 1_000),
    };
    let store = LocalStore::open(&settings).unwrap();
    let (opened, _) = store.recover(&mut drop, notify).unwrap();
    let (uptime, strong) = (Uptime::default(), HashSet::new());
    opened.journal.remember(LIMITS, now(), &uptime, opened.idempotency, &strong);
    let committer = opened.committer;
    let close = move || committer.close().blocking_recv().unwrap().unwrap();
    Subject { journal: Arc::new(opened.journal), close: Box::new(close) }
}

type Open = fn(&TempDir, Notify) -> Subject;

/// Each of these holds for each journal.
macro_rules! conformance {
    ($($promise:ident)*) => {
        mod of_the_local_journal {
            $(#[test] fn $promise() { super::$promise(super::local); })*
        }
        mod of_the_journal_in_memory {
            $(#[test] fn $promise() { super::$promise(super::in_memory); })*
        }
    };
}

conformance! {
    writes_are_numbered_in_the_order_of_the_calls_and_arrive_behind_their_outcomes
    a_group_is_durable_together
    a_repeat_is_the_task_of_the_first_write_and_has_its_outcome_behind_it
    a_key_beyond_the_limit_becomes_no_task
    what_a_key_is_can_be_asked
    the_answer_to_a_strong_write_is_remembered
    what_is_removed_is_gone_and_what_is_not_can_be_read
    once_closed_it_refuses_whatever_comes
}

impl Ears {
    fn open(dir: &TempDir, open: Open) -> Self {
        let (ears, heard) = channel();
        let tell = ears.clone();
        let notify = move |event| match event {
            // Who listens may be gone.
            JournalEvent::Arrived { tasks, .. } => {
                drop(tell.send(Arrived(tasks.iter().map(|task| task.id.0).collect())));
            }
            JournalEvent::Failed(why) => panic!("{why}"),
        };
        Self { subject: open(dir, Box::new(notify)), heard, ears }
    }

    fn journal(&self) -> &dyn Journal {
        &*self.subject.journal
    }

    fn close(self) {
        (self.subject.close)();
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
        self.journal().append(vec![self.write(name, Consistency::Eventual, key)]);
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

fn writes_are_numbered_in_the_order_of_the_calls_and_arrive_behind_their_outcomes(open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let ears = Ears::open(&dir, open);
    let first = FIRST;
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
    ears.close();
}

fn a_group_is_durable_together(open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let ears = Ears::open(&dir, open);
    let first = FIRST;
    let group = (0..200).map(|_| ears.write("grouped", Consistency::Eventual, None)).collect();
    ears.journal().append(group);
    assert_eq!(ears.outcomes(200).len(), 200);
    assert_eq!(ears.next(), Arrived((first..first + 200).collect()));
    ears.close();
}

fn a_repeat_is_the_task_of_the_first_write_and_has_its_outcome_behind_it(open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let ears = Ears::open(&dir, open);
    let id = FIRST;
    // While the first is not durable, in one group with it, and after it.
    for _ in 0..2 {
        let write = |name, body| ears.write(name, Consistency::Eventual, Some(("k", body)));
        ears.journal().append(vec![write("first", 1), write("second", 1)]);
        ears.append("third", Some(("k", 1)));
        ears.append("another", Some(("k", 2)));
    }
    let mut outcomes = ears.outcomes(8);
    outcomes.retain(|(_, outcome)| *outcome != Err(AppendError::Mismatch));
    assert_eq!(outcomes.len(), 6);
    assert_eq!(outcomes.remove(0), ("first", new(id)));
    let same = Ok(repeated(id, Consistency::Eventual, None));
    assert!(outcomes.iter().all(|(_, outcome)| *outcome == same), "{outcomes:?}");
    ears.close();
}

fn a_key_beyond_the_limit_becomes_no_task(open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let ears = Ears::open(&dir, open);
    for key in ["a", "b", "c"] {
        ears.append("fits", Some((key, 1)));
    }
    ears.append("does not", Some(("d", 1)));
    let outcomes = ears.outcomes(4);
    assert!(outcomes.contains(&("does not", Err(AppendError::KeysFull))), "{outcomes:?}");
    ears.append("fits", Some(("a", 1)));
    assert!(matches!(ears.outcomes(1)[0].1, Ok(Appended::Repeated(_))));
    ears.journal().tick(Moment(0).after(LIMITS.window));
    ears.append("fits now", Some(("d", 1)));
    assert!(matches!(ears.outcomes(1)[0].1, Ok(Appended::New(_))));
    ears.close();
}

fn what_a_key_is_can_be_asked(open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let ears = Ears::open(&dir, open);
    let key = |key: &str, body| {
        ears.journal().key(&Idempotency { key: key.into(), fingerprint: [body; 16] })
    };
    assert_eq!(key("a", 1), KeyState::New);
    for name in ["a", "b", "c"] {
        ears.append("write", Some((name, 1)));
    }
    ears.outcomes(3);
    let repeated = Repeated { id: TaskId(FIRST), consistency: Consistency::Eventual, answer: None };
    assert_eq!(key("a", 1), KeyState::Known(repeated));
    assert_eq!(key("a", 2), KeyState::Mismatch);
    assert_eq!(key("d", 1), KeyState::NoRoom);
    ears.close();
}

fn the_answer_to_a_strong_write_is_remembered(open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let answer = IdempotencyAnswer { success: true, acked: vec![0], failed: vec![], needed: 1 };
    let ears = Ears::open(&dir, open);
    assert_eq!(strong(&ears), new(FIRST));
    assert_eq!(strong(&ears), Ok(repeated(FIRST, Consistency::Strong, None)));
    ears.journal().conclude(TaskId(FIRST), answer.clone());
    assert_eq!(strong(&ears), Ok(repeated(FIRST, Consistency::Strong, Some(answer))));
    ears.close();
}

fn strong(ears: &Ears) -> Result<Appended, AppendError> {
    let write = ears.write("strong", Consistency::Strong, Some(("k", 1)));
    ears.journal().append(vec![write]);
    ears.outcomes(1).remove(0).1
}

#[test]
fn the_answer_to_a_strong_write_is_remembered_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let answer = IdempotencyAnswer { success: true, acked: vec![0], failed: vec![], needed: 1 };
    let ears = Ears::open(&dir, local);
    let Ok(Appended::New(id)) = strong(&ears) else { panic!("it is new") };
    ears.journal().conclude(id, answer.clone());
    ears.close();
    let ears = Ears::open(&dir, local);
    let Ok(Appended::Repeated(found)) = strong(&ears) else { panic!("it is known") };
    assert_eq!((found.id, found.answer), (id, Some(answer)));
    ears.close();
}

fn what_is_removed_is_gone_and_what_is_not_can_be_read(open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let ears = Ears::open(&dir, open);
    ears.append("stays", None);
    ears.append("goes", None);
    ears.outcomes(2);
    let (stays, goes) = (TaskId(FIRST), TaskId(FIRST + 1));
    ears.journal().save(stays, vec![Progress::Delivered]);
    ears.journal().remove(goes);
    let (synced, done) = channel();
    ears.journal().sync(Box::new(move |result| synced.send(result).unwrap()));
    assert_eq!(done.recv().unwrap(), Ok(()));
    let read = |id| runtime.block_on(ears.journal().read(id)).unwrap();
    assert_eq!(read(stays).map(|task| (task.id, task.key)), Some((stays, "stays".to_owned())));
    assert_eq!(read(goes), None);
    let headers = runtime.block_on(ears.journal().headers(vec![goes, stays])).unwrap();
    let keys: Vec<_> = headers.iter().map(|header| header.as_ref().map(|h| &*h.key)).collect();
    assert_eq!(keys, [None, Some("stays")]);
    drop(runtime);
    ears.close();
}

fn once_closed_it_refuses_whatever_comes(open: Open) {
    let dir = tempfile::tempdir().unwrap();
    let Ears { subject: Subject { journal, close }, heard, ears } = Ears::open(&dir, open);
    close();
    let ears = Ears { subject: Subject { journal, close: Box::new(|| ()) }, heard, ears };
    for key in [None, Some(("k", 1)), Some(("k", 1))] {
        ears.append("late", key);
        assert_eq!(ears.outcomes(1)[0].1, Err(AppendError::Store(CommitError::Closed)));
    }
}
