//! Promises of every journal, tested by its outcomes and events and their order.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tempfile::TempDir;

use super::jetstream::testing::NatsServer;
use super::*;
use crate::task::{
    Consistency, Idempotency, Moment, NewTask, Node, Now, Operation, Progress, Task, TaskId,
    Timestamp, Uptime,
};

mod keys;

use keys::*;

/// An outcome or event of a journal.
#[derive(Debug, PartialEq)]
enum Report {
    Outcome(&'static str, Result<Appended, AppendError>),
    Arrived(Vec<u64>),
    Claimed(Vec<(u64, Vec<Progress>)>),
    Replica(String),
    Settled(u64),
    Failed,
}

use Report::{Arrived, Claimed, Failed, Outcome, Replica, Settled};

/// A journal and a way to make it fail.
struct Subject {
    journal: Arc<dyn Journal>,
    fail: Box<dyn FnOnce()>,
}

/// Keeps the tasks of a journal while it is closed.
struct Place {
    dir: TempDir,
    memory: Arc<Mutex<MemoryStore>>,
    /// Started for the journal that needs it.
    server: OnceLock<NatsServer>,
}

struct Listener {
    subject: Subject,
    reports: Receiver<Report>,
    listener: Sender<Report>,
}

const LIMITS: KeyLimits = KeyLimits { window: Duration::from_secs(60), most: 3 };
const FIRST: u64 = 5_000;

impl Place {
    fn new() -> Self {
        let memory = MemoryStore::new(TaskId(FIRST), LIMITS);
        Self { dir: tempfile::tempdir().unwrap(), memory, server: OnceLock::new() }
    }
}

fn in_memory(place: &Place, tell: &Tell) -> Subject {
    let tell = tell.clone();
    let journal = Arc::new(MemoryJournal::open(&place.memory, move |event| tell.pass(event)));
    let this = Arc::clone(&journal);
    Subject { journal, fail: Box::new(move || this.fail()) }
}

fn local(place: &Place, tell: &Tell) -> Subject {
    let dir = place.dir.path().join("data");
    let settings = StoreSettings {
        dir: dir.clone(),
        cache_bytes: 8 << 20,
        min_free_bytes: 0,
        now: Timestamp(FIRST * 1_000),
    };
    let store = LocalStore::open(&settings).unwrap();
    let later = tell.clone();
    let (claim, notify) = (&mut |event| tell.pass(event), Box::new(move |event| later.pass(event)));
    let (journal, _) =
        store.into_journal(LIMITS, now(), &Uptime::default(), claim, notify).unwrap();
    let (journal, away) = (Arc::new(journal), place.dir.path().join("away"));
    let this = Arc::clone(&journal);
    // The next commit finds that its files are gone.
    let fail = move || {
        std::fs::rename(dir, away).unwrap();
        this.append(vec![Append { reply: Box::new(drop), ..write("lost") }]);
    };
    Subject { journal, fail: Box::new(fail) }
}

/// With one partition.
fn of_a_cluster(place: &Place, tell: &Tell) -> Subject {
    let tell = tell.clone();
    let server = place.server.get_or_init(|| NatsServer::start(place.dir.path()));
    let notify = Box::new(move |event| tell.pass(event));
    let journal = JetStreamJournal::open(&server.settings("node", 1, LIMITS), notify).unwrap();
    Subject { journal: Arc::new(journal), fail: Box::new(|| ()) }
}

type Open = fn(&Place, &Tell) -> Subject;

/// Passes the events of a journal on to a test.
#[derive(Clone)]
struct Tell(Sender<Report>);

/// Tests every promise with every journal.
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

/// Those that a journal keeps if other processes write to its store, too. `jetstream/tests.rs` has its
/// own. The others do not hold:
///
/// - `a_group_is_durable_together`, `a_write_is_numbered_at_once`: each write is a message of its own,
///   and the servers number it.
/// - `a_write_that_is_removed_at_once_leaves_nothing`, `settlements_are_reported_once_they_are_durable`:
///   so strong writes are durable before they are sent, and need neither.
/// - `the_state_of_a_key_can_be_queried`: only the servers know it; an append finds it.
/// - `an_expired_key_makes_room`: keys expire by the clock of the servers, not by ticks.
/// - `a_removed_task_is_gone`: its message stays until the log is purged, which one before it can delay.
/// - `a_failure_is_reported_once_and_refuses_every_later_call`: it waits for the servers instead.
mod of_the_journal_of_a_cluster {
    macro_rules! conformance {
        ($($promise:ident)*) => {
            $(#[test] fn $promise() { super::$promise(super::of_a_cluster); })*
        };
    }
    conformance! {
        writes_are_numbered_in_the_order_of_the_calls_and_arrive_after_their_outcomes
        a_repeat_gets_the_task_of_the_first_write_after_its_outcome
        a_key_beyond_the_limit_becomes_no_task
        the_answer_to_a_strong_write_is_remembered
        unsettled_tasks_can_be_read
        unsettled_tasks_are_claimed_in_order_with_their_last_progress_before_any_task_arrives
        records_of_replicas_come_before_the_claim
        ids_are_not_used_again_after_a_restart
        a_closed_journal_refuses_every_call
    }
}

conformance! {
    writes_are_numbered_in_the_order_of_the_calls_and_arrive_after_their_outcomes
    a_group_is_durable_together
    a_repeat_gets_the_task_of_the_first_write_after_its_outcome
    a_key_beyond_the_limit_becomes_no_task
    an_expired_key_makes_room
    the_state_of_a_key_can_be_queried
    the_answer_to_a_strong_write_is_remembered
    unsettled_tasks_can_be_read
    a_removed_task_is_gone
    unsettled_tasks_are_claimed_in_order_with_their_last_progress_before_any_task_arrives
    a_write_is_numbered_at_once
    settlements_are_reported_once_they_are_durable
    a_write_that_is_removed_at_once_leaves_nothing
    records_of_replicas_come_before_the_claim
    ids_are_not_used_again_after_a_restart
    a_closed_journal_refuses_every_call
    a_failure_is_reported_once_and_refuses_every_later_call
}

impl Tell {
    fn pass(&self, event: JournalEvent) {
        let ids = |tasks: Vec<Arc<Task>>| tasks.iter().map(|task| task.id.0).collect();
        let report = match event {
            JournalEvent::Arrived { tasks, .. } => Arrived(ids(tasks)),
            JournalEvent::Claimed { tasks, .. } => {
                Claimed(tasks.into_iter().map(|task| (task.header.id.0, task.progress)).collect())
            }
            JournalEvent::Replica { row: None, .. } => return,
            JournalEvent::Replica { node, .. } => Replica(node.to_string()),
            JournalEvent::CaughtUp { .. } => return,
            JournalEvent::Settled { through } => Settled(through),
            JournalEvent::Failed(_) => Failed,
            event => panic!("{event:?}"),
        };
        // The test may be over.
        drop(self.0.send(report));
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
            client: None,
            primary: None,
            trace: None,
        }),
        now: now(),
        idempotency: None,
        early: false,
        reply: Box::new(drop),
    }
}

impl Listener {
    fn open(place: &Place, open: Open) -> Self {
        let (listener, reports) = channel();
        Self { subject: open(place, &Tell(listener.clone())), reports, listener }
    }

    /// A new journal. Nothing is claimed by it.
    fn new(open: Open) -> (Self, Place) {
        let place = Place::new();
        let listener = Self::open(&place, open);
        assert_eq!(listener.next(), Claimed(vec![]));
        (listener, place)
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
        let listener = self.listener.clone();
        let mut write = write(name);
        write.new.consistency = consistency;
        write.idempotency =
            key.map(|(key, body)| Idempotency { key: key.into(), fingerprint: [body; 16] });
        // The test may be over.
        write.reply = Box::new(move |outcome| drop(listener.send(Outcome(name, outcome))));
        write
    }

    fn append(&self, name: &'static str, key: Option<(&str, u8)>) {
        self.journal().append(vec![self.write(name, Consistency::Eventual, key)]);
    }

    /// An eventual write with an idempotency key. All of these are of one key, so they have an order.
    fn keyed(&self, name: &'static str, key: (&str, u8)) -> Append {
        let mut write = self.write(name, Consistency::Eventual, Some(key));
        "same".clone_into(&mut write.new.key);
        write
    }

    fn append_keyed(&self, name: &'static str, key: (&str, u8)) {
        self.journal().append(vec![self.keyed(name, key)]);
    }

    /// The next report, except those of settlements.
    fn next(&self) -> Report {
        let mut reports = self.reports.iter();
        reports.find(|report| !matches!(report, Settled(_))).unwrap()
    }

    fn until_settled(&self, wanted: u64) {
        while self.reports.recv().unwrap() != Settled(wanted) {}
    }

    /// Waits for this many outcomes and returns them in their order.
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

fn id(outcome: &Result<Appended, AppendError>) -> u64 {
    let Ok(Appended::New(id)) = outcome else { panic!("{outcome:?}") };
    id.0
}

fn new(id: u64) -> Result<Appended, AppendError> {
    Ok(Appended::New(TaskId(id)))
}

fn repeated(id: u64, consistency: Consistency, answer: Option<IdempotencyAnswer>) -> Appended {
    Appended::Repeated(Repeated { id: TaskId(id), consistency, answer })
}

fn writes_are_numbered_in_the_order_of_the_calls_and_arrive_after_their_outcomes(open: Open) {
    let (listener, _place) = Listener::new(open);
    for _ in 0..500 {
        listener.append("write", None);
    }
    let (mut outcomes, mut arrived) = (Vec::new(), Vec::new());
    while arrived.len() < 500 {
        match listener.next() {
            Outcome(_, Ok(Appended::New(id))) => outcomes.push(id.0),
            Arrived(ids) => arrived.extend(ids),
            other => panic!("{other:?}"),
        }
        assert!(arrived.len() <= outcomes.len(), "a task arrived before the outcome of its write");
    }
    assert!(outcomes.is_sorted_by(|id, next| id < next));
    assert_eq!(arrived, outcomes);
    listener.close().unwrap();
}

fn a_group_is_durable_together(open: Open) {
    let (listener, _place) = Listener::new(open);
    let first = FIRST;
    let group = (0..200).map(|_| listener.write("grouped", Consistency::Eventual, None)).collect();
    listener.journal().append(group);
    assert_eq!(listener.outcomes(200).len(), 200);
    assert_eq!(listener.next(), Arrived((first..first + 200).collect()));
    listener.close().unwrap();
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn unsettled_tasks_can_be_read(open: Open) {
    let (listener, _place) = Listener::new(open);
    listener.append("one", None);
    listener.append("another", None);
    let ids: Vec<_> =
        listener.outcomes(2).into_iter().map(|(name, new)| (name, id(&new))).collect();
    for &(name, id) in &ids {
        listener.journal().save(TaskId(id), vec![Progress::Resend]);
        let task = block_on(listener.journal().read(TaskId(id))).unwrap().unwrap();
        assert_eq!((task.id, &*task.key), (TaskId(id), name));
    }
    let wanted = ids.iter().map(|(_, id)| TaskId(*id)).collect();
    let headers = block_on(listener.journal().headers(wanted)).unwrap();
    let keys: Vec<_> = headers.into_iter().map(|header| header.unwrap().key).collect();
    assert!(keys.iter().eq(ids.iter().map(|(name, _)| name)), "{keys:?}");
    listener.close().unwrap();
}

fn a_removed_task_is_gone(open: Open) {
    let (listener, _place) = Listener::new(open);
    listener.append("stays", None);
    listener.append("goes", None);
    listener.outcomes(2);
    let (stays, goes) = (TaskId(FIRST), TaskId(FIRST + 1));
    listener.journal().remove(goes);
    assert_eq!(listener.sync(), Ok(()));
    assert_eq!(block_on(listener.journal().read(goes)).unwrap(), None);
    let headers = block_on(listener.journal().headers(vec![goes, stays])).unwrap();
    let keys: Vec<_> = headers.iter().map(|header| header.as_ref().map(|h| &*h.key)).collect();
    assert_eq!(keys, [None, Some("stays")]);
    listener.close().unwrap();
}

fn unsettled_tasks_are_claimed_in_order_with_their_last_progress_before_any_task_arrives(
    open: Open,
) {
    let (listener, place) = Listener::new(open);
    for _ in 0..600 {
        listener.append("write", None);
    }
    let ids: Vec<_> = listener.outcomes(600).into_iter().map(|(_, outcome)| id(&outcome)).collect();
    let id = |nth| TaskId(ids[nth]);
    for nth in (0..600).rev() {
        match nth % 3 {
            0 => listener.journal().remove(id(nth)),
            1 => {
                listener.journal().save(id(nth), vec![Progress::Resend]);
                listener.journal().save(id(nth), vec![Progress::Delivered]);
            }
            _ => {}
        }
    }
    listener.close().unwrap();
    let listener = Listener::open(&place, open);
    let mut claimed = Vec::new();
    loop {
        match listener.next() {
            Claimed(tasks) => {
                if claimed.is_empty() {
                    listener.append("later", None);
                }
                claimed.extend(tasks);
            }
            Outcome(_, outcome) => assert!(outcome.is_ok()),
            Arrived(_) => break,
            report => panic!("{report:?}"),
        }
    }
    let expected = (0..600).filter(|nth| nth % 3 != 0).map(|nth| match nth % 3 {
        1 => (ids[nth], vec![Progress::Delivered]),
        _ => (ids[nth], vec![Progress::Untouched]),
    });
    assert_eq!(claimed, expected.collect::<Vec<_>>());
    listener.close().unwrap();
}

fn a_write_is_numbered_at_once(open: Open) {
    let (listener, _place) = Listener::new(open);
    let write = |key| listener.write("write", Consistency::Eventual, key);
    let writes = vec![write(None), write(Some(("k", 1))), write(Some(("k", 2))), write(None)];
    let numbered = listener.journal().append(writes);
    let ids: Vec<_> = numbered.iter().map(|one| one.as_ref().map(|one| one.task.id.0)).collect();
    assert_eq!(ids, [Some(FIRST), Some(FIRST + 1), None, Some(FIRST + 2)]);
    listener.close().unwrap();
}

fn settlements_are_reported_once_they_are_durable(open: Open) {
    let (listener, place) = Listener::new(open);
    assert_eq!(strong(&listener), new(FIRST));
    for _ in 0..20 {
        listener.append("write", None);
    }
    listener.outcomes(20);
    for nth in (0..20).rev() {
        listener.journal().save(TaskId(FIRST + nth), vec![Progress::Resend]);
        listener.journal().remove(TaskId(FIRST + nth));
    }
    listener.until_settled(40);
    listener.journal().save(TaskId(FIRST + 20), vec![Progress::Resend]);
    listener.until_settled(41);
    listener.close().unwrap();
    let listener = Listener::open(&place, open);
    assert_eq!(listener.next(), Claimed(vec![(FIRST + 20, vec![Progress::Resend])]));
    listener.close().unwrap();
}

fn a_write_that_is_removed_at_once_leaves_nothing(open: Open) {
    let (listener, place) = Listener::new(open);
    let mut arrived = Vec::new();
    let mut expected = Vec::new();
    for _ in 0..200 {
        let write = listener.write("removed", Consistency::Strong, None);
        let writes = vec![Append { early: true, ..write }];
        let id = listener.journal().append(writes)[0].as_ref().unwrap().task.id;
        listener.journal().remove(id);
        // Whether its commit had begun is a matter of time.
        loop {
            match listener.next() {
                Outcome(_, Ok(_)) => expected.push(id.0),
                Outcome(_, outcome) => {
                    assert_eq!(outcome, Err(AppendError::Removed(id)));
                    break;
                }
                Arrived(ids) => {
                    arrived.extend(ids);
                    break;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(arrived, expected);
    listener.close().unwrap();
    let listener = Listener::open(&place, open);
    assert_eq!(listener.next(), Claimed(vec![]));
    listener.append("later", None);
    let (_, outcome) = listener.outcomes(1).remove(0);
    assert!(matches!(outcome, Ok(Appended::New(id)) if id.0 >= FIRST + 200), "{outcome:?}");
    listener.close().unwrap();
}

fn records_of_replicas_come_before_the_claim(open: Open) {
    let (listener, place) = Listener::new(open);
    let row = ReplicaRow::new(Timestamp(1));
    for name in ["http://a", "http://b"] {
        listener.journal().set_replica(
            Node::parse(name).unwrap(),
            Some(row.clone()),
            RecordCause::Use,
        );
    }
    listener.journal().set_replica(Node::parse("http://b").unwrap(), None, RecordCause::Operator);
    listener.append("write", None);
    let id = id(&listener.outcomes(1).remove(0).1);
    listener.close().unwrap();
    let listener = Listener::open(&place, open);
    assert_eq!(listener.next(), Replica("http://a".to_owned()));
    assert_eq!(listener.next(), Claimed(vec![(id, vec![Progress::Untouched])]));
    listener.close().unwrap();
}

fn ids_are_not_used_again_after_a_restart(open: Open) {
    let (listener, place) = Listener::new(open);
    listener.append("write", None);
    let (_, outcome) = listener.outcomes(1).remove(0);
    let Ok(Appended::New(first)) = outcome else { panic!("{outcome:?}") };
    listener.journal().remove(first);
    listener.close().unwrap();
    let listener = Listener::open(&place, open);
    assert_eq!(listener.next(), Claimed(vec![]));
    listener.append("write", None);
    let (_, outcome) = listener.outcomes(1).remove(0);
    assert!(matches!(outcome, Ok(Appended::New(next)) if next > first), "{outcome:?}");
    listener.close().unwrap();
}

#[test]
fn the_answer_to_a_strong_write_is_remembered_over_a_restart() {
    let place = Place::new();
    let answer = IdempotencyAnswer { success: true, acked: vec![0], failed: vec![], needed: 1 };
    let listener = Listener::open(&place, local);
    let Ok(Appended::New(id)) = strong(&listener) else { panic!("it is new") };
    listener.journal().conclude(id, answer.clone(), &[]);
    listener.close().unwrap();
    let listener = Listener::open(&place, local);
    let Ok(Appended::Repeated(found)) = strong(&listener) else { panic!("it is known") };
    assert_eq!((found.id, found.answer), (id, Some(answer)));
    listener.close().unwrap();
}

fn refuses_every_call(listener: &Listener, error: CommitError) {
    for key in [None, Some(("k", 1)), Some(("k", 1))] {
        listener.append("late", key);
        assert_eq!(listener.next(), Outcome("late", Err(AppendError::Store(error))));
    }
    assert_eq!(listener.sync(), Err(error));
}

fn a_closed_journal_refuses_every_call(open: Open) {
    let (listener, _place) = Listener::new(open);
    block_on(listener.journal().close()).unwrap();
    refuses_every_call(&listener, CommitError::Closed);
}

fn a_failure_is_reported_once_and_refuses_every_later_call(open: Open) {
    let (mut listener, _place) = Listener::new(open);
    let fail = std::mem::replace(&mut listener.subject.fail, Box::new(|| ()));
    fail();
    assert_eq!(listener.next(), Failed);
    refuses_every_call(&listener, CommitError::StoreFailed);
    assert_eq!(listener.close(), Err(CommitError::StoreFailed));
}
