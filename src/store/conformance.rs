//! Promises of every journal, tested by its outcomes and events and their order.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::task::{
    Consistency, Idempotency, Moment, NewTask, Node, Now, Operation, Progress, Task, TaskId,
    Timestamp, Uptime,
};

/// What a journal has said.
#[derive(Debug, PartialEq)]
enum Heard {
    Outcome(&'static str, Result<Appended, AppendError>),
    Arrived(Vec<u64>),
    Claimed(Vec<(u64, Vec<Progress>)>),
    Replica(String),
    Failed,
}

use Heard::{Arrived, Claimed, Failed, Outcome, Replica};

/// A journal, and how it is made to fail.
struct Subject {
    journal: Arc<dyn Journal>,
    fail: Box<dyn FnOnce()>,
}

/// Where a journal keeps its tasks while it is closed.
struct Place {
    dir: TempDir,
    memory: Arc<Mutex<MemoryStore>>,
}

struct Ears {
    subject: Subject,
    heard: Receiver<Heard>,
    ears: Sender<Heard>,
}

const LIMITS: KeyLimits = KeyLimits { window: Duration::from_secs(60), most: 3 };
const FIRST: u64 = 5_000;

impl Place {
    fn new() -> Self {
        let memory = MemoryStore::new(TaskId(FIRST), LIMITS);
        Self { dir: tempfile::tempdir().unwrap(), memory }
    }
}

fn in_memory(place: &Place, tell: Tell) -> Subject {
    let journal = Arc::new(MemoryJournal::open(&place.memory, move |event| tell.pass(event)));
    let this = Arc::clone(&journal);
    Subject { journal, fail: Box::new(move || this.fail()) }
}

fn local(place: &Place, tell: Tell) -> Subject {
    let dir = place.dir.path().join("data");
    let settings = StoreSettings {
        dir: dir.clone(),
        cache_bytes: 8 << 20,
        min_free_bytes: 0,
        now: Timestamp(FIRST * 1_000),
    };
    let store = LocalStore::open(&settings).unwrap();
    let (journal, _) = store
        .into_journal(LIMITS, now(), &Uptime::default(), move |event| tell.pass(event))
        .unwrap();
    let (journal, away) = (Arc::new(journal), place.dir.path().join("away"));
    let this = Arc::clone(&journal);
    // The next commit finds that its files are gone.
    let fail = move || {
        std::fs::rename(dir, away).unwrap();
        this.append(vec![Append { reply: Box::new(drop), ..write("lost") }]);
    };
    Subject { journal, fail: Box::new(fail) }
}

type Open = fn(&Place, Tell) -> Subject;

/// Passes the events of a journal on to a test.
#[derive(Clone)]
struct Tell(Sender<Heard>);

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
    the_state_of_a_key_can_be_queried
    the_answer_to_a_strong_write_is_remembered
    a_removed_task_is_gone_and_the_others_can_be_read
    unsettled_tasks_are_claimed_in_order_with_their_last_progress_before_any_task_arrives
    records_of_replicas_come_before_the_claim
    ids_are_not_used_again_after_a_restart
    once_closed_it_refuses_every_call
    a_failure_is_reported_once_and_refuses_every_later_call
}

impl Tell {
    fn pass(&self, event: JournalEvent) {
        let ids = |tasks: Vec<Arc<Task>>| tasks.iter().map(|task| task.id.0).collect();
        let heard = match event {
            JournalEvent::Arrived { tasks, .. } => Arrived(ids(tasks)),
            JournalEvent::Claimed { tasks, .. } => {
                Claimed(tasks.into_iter().map(|task| (task.header.id.0, task.progress)).collect())
            }
            JournalEvent::Replica { node, row } => {
                assert!(row.is_some());
                Replica(node.to_string())
            }
            JournalEvent::Released { partition } => panic!("{partition:?} is released"),
            JournalEvent::Failed(_) => Failed,
        };
        // The test may be over.
        drop(self.0.send(heard));
    }
}

fn write(name: &str) -> Append {
    Append {
        new: Box::new(NewTask {
            key: name.to_owned(),
            operation: Operation::Set,
            value: Bytes::from_static(b"value"),
            ttl: None,
            consistency: Consistency::Eventual,
            replicas: vec![Node::parse("http://a").unwrap()],
            user_id: None,
            trace: None,
        }),
        now: now(),
        idempotency: None,
        reply: Box::new(drop),
    }
}

impl Ears {
    fn open(place: &Place, open: Open) -> Self {
        let (ears, heard) = channel();
        Self { subject: open(place, Tell(ears.clone())), heard, ears }
    }

    /// A new journal. Nothing is claimed by it.
    fn new(open: Open) -> (Self, Place) {
        let place = Place::new();
        let ears = Self::open(&place, open);
        assert_eq!(ears.next(), Claimed(vec![]));
        (ears, place)
    }

    fn journal(&self) -> &dyn Journal {
        &*self.subject.journal
    }

    fn close(self) -> Result<(), CommitError> {
        block_on(self.journal().close())
    }

    fn sync(&self) -> Result<(), CommitError> {
        let (synced, done) = channel();
        self.journal().sync(Box::new(move |result| synced.send(result).unwrap()));
        done.recv().unwrap()
    }

    fn write(
        &self,
        name: &'static str,
        consistency: Consistency,
        key: Option<(&str, u8)>,
    ) -> Append {
        let ears = self.ears.clone();
        let mut write = write(name);
        write.new.consistency = consistency;
        write.idempotency =
            key.map(|(key, body)| Idempotency { key: key.into(), fingerprint: [body; 16] });
        // The test may be over.
        write.reply = Box::new(move |outcome| drop(ears.send(Outcome(name, outcome))));
        write
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
    let (ears, _place) = Ears::new(open);
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
    ears.close().unwrap();
}

fn a_group_is_durable_together(open: Open) {
    let (ears, _place) = Ears::new(open);
    let first = FIRST;
    let group = (0..200).map(|_| ears.write("grouped", Consistency::Eventual, None)).collect();
    ears.journal().append(group);
    assert_eq!(ears.outcomes(200).len(), 200);
    assert_eq!(ears.next(), Arrived((first..first + 200).collect()));
    ears.close().unwrap();
}

fn a_repeat_is_the_task_of_the_first_write_and_has_its_outcome_behind_it(open: Open) {
    let (ears, _place) = Ears::new(open);
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
    ears.close().unwrap();
}

fn a_key_beyond_the_limit_becomes_no_task(open: Open) {
    let (ears, _place) = Ears::new(open);
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
    ears.close().unwrap();
}

fn the_state_of_a_key_can_be_queried(open: Open) {
    let (ears, _place) = Ears::new(open);
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
    ears.close().unwrap();
}

fn the_answer_to_a_strong_write_is_remembered(open: Open) {
    let answer = IdempotencyAnswer { success: true, acked: vec![0], failed: vec![], needed: 1 };
    let (ears, _place) = Ears::new(open);
    assert_eq!(strong(&ears), new(FIRST));
    assert_eq!(strong(&ears), Ok(repeated(FIRST, Consistency::Strong, None)));
    ears.journal().conclude(TaskId(FIRST), answer.clone());
    assert_eq!(strong(&ears), Ok(repeated(FIRST, Consistency::Strong, Some(answer))));
    ears.close().unwrap();
}

fn strong(ears: &Ears) -> Result<Appended, AppendError> {
    let write = ears.write("strong", Consistency::Strong, Some(("k", 1)));
    ears.journal().append(vec![write]);
    ears.outcomes(1).remove(0).1
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}

fn a_removed_task_is_gone_and_the_others_can_be_read(open: Open) {
    let (ears, _place) = Ears::new(open);
    ears.append("stays", None);
    ears.append("goes", None);
    ears.outcomes(2);
    let (stays, goes) = (TaskId(FIRST), TaskId(FIRST + 1));
    ears.journal().save(stays, vec![Progress::Delivered]);
    ears.journal().remove(goes);
    assert_eq!(ears.sync(), Ok(()));
    let read = |id| block_on(ears.journal().read(id)).unwrap();
    assert_eq!(read(stays).map(|task| (task.id, task.key)), Some((stays, "stays".to_owned())));
    assert_eq!(read(goes), None);
    let headers = block_on(ears.journal().headers(vec![goes, stays])).unwrap();
    let keys: Vec<_> = headers.iter().map(|header| header.as_ref().map(|h| &*h.key)).collect();
    assert_eq!(keys, [None, Some("stays")]);
    ears.close().unwrap();
}

fn unsettled_tasks_are_claimed_in_order_with_their_last_progress_before_any_task_arrives(
    open: Open,
) {
    let (ears, place) = Ears::new(open);
    for _ in 0..600 {
        ears.append("write", None);
    }
    ears.outcomes(600);
    let id = |nth| TaskId(FIRST + nth);
    for nth in (0..600).rev() {
        match nth % 3 {
            0 => ears.journal().remove(id(nth)),
            1 => {
                ears.journal().save(id(nth), vec![Progress::Resend]);
                ears.journal().save(id(nth), vec![Progress::Delivered]);
            }
            _ => {}
        }
    }
    ears.close().unwrap();
    let ears = Ears::open(&place, open);
    ears.append("later", None);
    let mut claimed = Vec::new();
    loop {
        match ears.next() {
            Claimed(tasks) => claimed.extend(tasks),
            Outcome(_, outcome) => assert!(outcome.is_ok()),
            Arrived(_) => break,
            heard => panic!("{heard:?}"),
        }
    }
    let expected = (0..600).filter(|nth| nth % 3 != 0).map(|nth| match nth % 3 {
        1 => (FIRST + nth, vec![Progress::Delivered]),
        _ => (FIRST + nth, vec![Progress::Untouched]),
    });
    assert_eq!(claimed, expected.collect::<Vec<_>>());
    ears.close().unwrap();
}

fn records_of_replicas_come_before_the_claim(open: Open) {
    let (ears, place) = Ears::new(open);
    let row = ReplicaRow { paused_since: None, renamed_to: None, first_used: Timestamp(1) };
    for name in ["http://a", "http://b"] {
        ears.journal().set_replica(Node::parse(name).unwrap(), Some(row.clone()));
    }
    ears.journal().set_replica(Node::parse("http://b").unwrap(), None);
    ears.append("write", None);
    ears.close().unwrap();
    let ears = Ears::open(&place, open);
    assert_eq!(ears.next(), Replica("http://a".to_owned()));
    assert_eq!(ears.next(), Claimed(vec![(FIRST, vec![Progress::Untouched])]));
    ears.close().unwrap();
}

fn ids_are_not_used_again_after_a_restart(open: Open) {
    let (ears, place) = Ears::new(open);
    ears.append("write", None);
    let (_, outcome) = ears.outcomes(1).remove(0);
    let Ok(Appended::New(first)) = outcome else { panic!("{outcome:?}") };
    ears.journal().remove(first);
    ears.close().unwrap();
    let ears = Ears::open(&place, open);
    assert_eq!(ears.next(), Claimed(vec![]));
    ears.append("write", None);
    let (_, outcome) = ears.outcomes(1).remove(0);
    assert!(matches!(outcome, Ok(Appended::New(next)) if next > first), "{outcome:?}");
    ears.close().unwrap();
}

#[test]
fn the_answer_to_a_strong_write_is_remembered_over_a_restart() {
    let place = Place::new();
    let answer = IdempotencyAnswer { success: true, acked: vec![0], failed: vec![], needed: 1 };
    let ears = Ears::open(&place, local);
    let Ok(Appended::New(id)) = strong(&ears) else { panic!("it is new") };
    ears.journal().conclude(id, answer.clone());
    ears.close().unwrap();
    let ears = Ears::open(&place, local);
    let Ok(Appended::Repeated(found)) = strong(&ears) else { panic!("it is known") };
    assert_eq!((found.id, found.answer), (id, Some(answer)));
    ears.close().unwrap();
}

fn refuses_every_call(ears: &Ears, error: CommitError) {
    for key in [None, Some(("k", 1)), Some(("k", 1))] {
        ears.append("late", key);
        assert_eq!(ears.next(), Outcome("late", Err(AppendError::Store(error))));
    }
    assert_eq!(ears.sync(), Err(error));
}

fn once_closed_it_refuses_every_call(open: Open) {
    let (ears, _place) = Ears::new(open);
    block_on(ears.journal().close()).unwrap();
    refuses_every_call(&ears, CommitError::Closed);
}

fn a_failure_is_reported_once_and_refuses_every_later_call(open: Open) {
    let (mut ears, _place) = Ears::new(open);
    let fail = std::mem::replace(&mut ears.subject.fail, Box::new(|| ()));
    fail();
    assert_eq!(ears.next(), Failed);
    refuses_every_call(&ears, CommitError::StoreFailed);
    assert_eq!(ears.close(), Err(CommitError::StoreFailed));
}
