//! The journal with a real server.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use super::names::place_of;
use super::testing::NatsServer;
use super::{JetStreamJournal, JetStreamSettings, message};
use crate::store::*;
use crate::task::{
    Consistency, Idempotency, Moment, NewTask, Node, Now, Obstacle, Operation, Partition, Progress,
    ReplicaIndex, Task, TaskId, Timestamp,
};

mod copying;
mod full;
mod peers;
mod push;
mod silence;

const KEYS: KeyLimits = KeyLimits { window: Duration::from_secs(60), most: 100 };
const PARTITIONS: u16 = 3;

#[derive(Debug)]
enum Report {
    Event(JournalEvent),
    Outcome(usize, Result<Appended, AppendError>),
}

struct World {
    dir: TempDir,
    server: NatsServer,
    clean_above: Option<u64>,
}

struct Opened {
    journal: JetStreamJournal,
    reports: Receiver<Report>,
    sender: Sender<Report>,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { server: NatsServer::start(dir.path()), dir, clean_above: None }
    }

    fn settings(&self, node: &str) -> JetStreamSettings {
        let clean_above = self.clean_above;
        JetStreamSettings { clean_above, ..self.server.settings(node, PARTITIONS, KEYS) }
    }

    fn open(&self, node: &str) -> Opened {
        Opened::with(&self.settings(node))
    }

    /// The owner of all partitions.
    fn owner(&self, node: &str) -> (Opened, Vec<Recovered>) {
        let opened = self.open(node);
        let claimed = opened.claimed();
        (opened, claimed)
    }
}

impl Opened {
    fn with(settings: &JetStreamSettings) -> Self {
        let (sender, reports) = channel();
        let events = sender.clone();
        // The test may be over.
        let notify = Box::new(move |event| _ = events.send(Report::Event(event)));
        Self { journal: JetStreamJournal::open(settings, notify).unwrap(), reports, sender }
    }

    /// Waits until all partitions are claimed.
    fn claimed(&self) -> Vec<Recovered> {
        let (mut all, mut partitions) = (Vec::new(), HashMap::new());
        while partitions.len() < usize::from(PARTITIONS) || partitions.values().any(|full| *full) {
            if let Report::Event(JournalEvent::Claimed { partition, tasks }) = self.next() {
                // The last event of a claim is never full in these tests.
                partitions.insert(partition, tasks.len() == 256);
                all.extend(tasks);
            }
        }
        all
    }

    fn next(&self) -> Report {
        self.reports.recv_timeout(Duration::from_secs(120)).unwrap()
    }

    fn write(&self, number: usize, key: &str, value: Vec<u8>, strong: bool) -> Append {
        let sender = self.sender.clone();
        Append {
            new: Box::new(NewTask {
                key: key.to_owned(),
                operation: Operation::Set,
                value: value.into(),
                ttl: None,
                consistency: if strong { Consistency::Strong } else { Consistency::Eventual },
                replicas: vec![Node::parse("http://a").unwrap()],
                user_id: None,
                client: None,
                primary: None,
                trace: None,
            }),
            now: Now { moment: Moment(0), wall: Timestamp(5_000_000) },
            idempotency: None,
            early: false,
            reply: Box::new(move |outcome| _ = sender.send(Report::Outcome(number, outcome))),
        }
    }

    fn append(&self, number: usize, key: &str) {
        self.journal.append(vec![self.write(number, key, b"value".to_vec(), false)]);
    }

    /// Waits for this many outcomes, and for the arrival of the new tasks.
    fn outcomes(&self, writes: usize) -> (HashMap<usize, Appended>, Vec<Task>) {
        let (mut outcomes, mut tasks) = (HashMap::new(), Vec::<Task>::new());
        let arriving = |outcomes: &HashMap<usize, Appended>| {
            outcomes.values().filter(|outcome| matches!(outcome, Appended::New(_))).count()
        };
        while outcomes.len() < writes || tasks.len() < arriving(&outcomes) {
            match self.next() {
                Report::Outcome(number, outcome) => {
                    assert!(outcomes.insert(number, outcome.unwrap()).is_none());
                }
                Report::Event(JournalEvent::Arrived { partition, tasks: arrived, .. }) => {
                    for task in arrived {
                        let earlier = tasks
                            .iter()
                            .rev()
                            .find(|earlier| self.journal.partition_of(earlier.id) == partition);
                        assert!(earlier.is_none_or(|earlier| earlier.id < task.id));
                        tasks.push(Task::clone(&task));
                    }
                    assert!(tasks.len() <= arriving(&outcomes), "a task before its outcome");
                }
                Report::Event(_) => {}
            }
        }
        (outcomes, tasks)
    }

    fn sync(&self) {
        let (synced, done) = channel();
        self.journal.sync(Box::new(move |result| _ = synced.send(result)));
        done.recv_timeout(Duration::from_secs(120)).unwrap().unwrap();
    }

    fn close(&self) {
        assert_eq!(self.journal.cluster().unwrap().figures.missing, 0);
        block_on(self.journal.close()).unwrap();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

fn id(outcome: &Appended) -> TaskId {
    match outcome {
        Appended::New(id) | Appended::Elsewhere(id) => *id,
        Appended::Repeated(repeated) => repeated.id,
    }
}

#[test]
fn writes_of_a_key_keep_their_order_over_a_restart_of_the_server_and_none_is_lost() {
    let mut world = World::new();
    let (owner, _) = world.owner("a");
    for number in 0..400 {
        owner.append(number, &format!("key {}", number % 7));
        if number == 200 {
            world.server.restart(world.dir.path());
        }
    }
    let (outcomes, tasks) = owner.outcomes(400);
    assert_eq!(tasks.len(), 400);
    for key in 0..7 {
        let ids = (0..400).filter(|number| number % 7 == key).map(|number| id(&outcomes[&number]));
        assert!(ids.is_sorted(), "key {key}");
    }
    owner.close();
}

#[test]
fn a_write_without_a_server_is_given_up_at_its_deadline_and_never_stored() {
    let mut world = World::new();
    let settings = JetStreamSettings { timeout: Duration::from_secs(2), ..world.settings("a") };
    let owner = Opened::with(&settings);
    owner.claimed();
    owner.append(0, "key");
    owner.outcomes(1);
    let outcome = |number| loop {
        if let Report::Outcome(of, outcome) = owner.next() {
            assert_eq!(of, number);
            return outcome;
        }
    };
    world.server.stop();
    owner.append(1, "key");
    assert_eq!(outcome(1), Err(AppendError::Unconfirmed));
    world.server.restart(world.dir.path());
    let mut last = 2;
    let id = loop {
        owner.append(last, "key");
        match outcome(last) {
            Ok(outcome) => break id(&outcome),
            Err(error) => assert_eq!(error, AppendError::Unconfirmed),
        }
        last += 1;
    };
    // No write of this key between the first and the last one.
    let (partition, sequence) = place_of(id);
    let store = owner.journal.store();
    let messages = block_on(store.read_from(partition, 1)).unwrap();
    let subject = store.names().task(partition);
    let tasks: Vec<_> = messages.iter().filter(|message| message.subject == subject).collect();
    assert_eq!((tasks.len(), tasks[1].sequence), (2, sequence));
    owner.close();
}

#[test]
fn a_close_without_a_server_ends_and_says_that_something_may_be_missing() {
    let mut world = World::new();
    let (owner, _) = world.owner("a");
    owner.append(0, "key");
    let (outcomes, _) = owner.outcomes(1);
    world.server.stop();
    owner.journal.remove(id(&outcomes[&0]));
    assert_eq!(block_on(owner.journal.close()), Err(CommitError::Stalled));
}

#[test]
fn a_large_value_comes_back_whole_here_and_elsewhere() {
    let world = World::new();
    let (owner, _) = world.owner("a");
    let other = world.open("b");
    let value: Vec<u8> = (0..=250).cycle().take(message::CHUNK_BYTES * 2 + 77).collect();
    owner.journal.append(vec![owner.write(0, "here", value.clone(), false)]);
    let (_, tasks) = owner.outcomes(1);
    assert_eq!(tasks[0].value, Bytes::from(value.clone()));
    assert_eq!(block_on(owner.journal.read(tasks[0].id)).unwrap().as_ref(), Some(&tasks[0]));
    // The owner reads this one from the log.
    other.journal.append(vec![other.write(0, "there", value.clone(), false)]);
    let (outcomes, arrived) = other.outcomes(1);
    assert!(arrived.is_empty());
    let Appended::Elsewhere(there) = outcomes[&0] else { panic!("{outcomes:?}") };
    loop {
        if let Report::Event(JournalEvent::Arrived { tasks, .. }) = owner.next() {
            assert_eq!((tasks[0].id, &tasks[0].value), (there, &Bytes::from(value)));
            break;
        }
    }
    owner.close();
    other.close();
}

#[test]
fn a_handed_over_partition_is_claimed_with_what_is_unsettled_and_its_last_progress() {
    let world = World::new();
    let (owner, claimed) = world.owner("a");
    assert_eq!(claimed, []);
    for number in 0..300 {
        owner.append(number, &format!("key {number}"));
    }
    let (outcomes, _) = owner.outcomes(300);
    let failed = |failures| vec![Progress::Failed { failures, error: "no".into() }];
    for number in 0..300 {
        match number % 3 {
            0 => owner.journal.remove(id(&outcomes[&number])),
            1 => {
                owner.journal.save(id(&outcomes[&number]), failed(1));
                owner.journal.save(id(&outcomes[&number]), failed(2));
            }
            _ => {}
        }
    }
    owner.sync();
    let next = world.open("b");
    owner.close();
    let mut claimed: Vec<_> =
        next.claimed().into_iter().map(|task| (task.header.id, task.progress)).collect();
    claimed.sort_by_key(|(id, _)| *id);
    let expected = (0..300).filter(|number| number % 3 != 0).map(|number| {
        let progress = if number % 3 == 1 { failed(2) } else { vec![Progress::Untouched] };
        (id(&outcomes[&number]), progress)
    });
    let mut expected: Vec<_> = expected.collect();
    expected.sort_by_key(|(id, _)| *id);
    assert_eq!(claimed, expected);
    // Nothing of a former owner counts.
    assert!(!owner.journal.fence(expected[0].0).is_held());
    assert!(next.journal.fence(expected[0].0).is_held());
    next.close();
}

#[test]
fn an_owner_that_is_gone_is_replaced_when_its_lease_is_over() {
    let world = World::new();
    let (owner, _) = world.owner("a");
    owner.append(0, "key");
    let (outcomes, _) = owner.outcomes(1);
    let epoch = owner.journal.fence(id(&outcomes[&0])).epoch().unwrap();
    // Its thread ends without a last checkpoint.
    drop(owner);
    let (next, claimed) = world.owner("b");
    let ids: Vec<_> = claimed.iter().map(|task| task.header.id).collect();
    assert_eq!(ids, [id(&outcomes[&0])]);
    assert_eq!(next.journal.fence(ids[0]).epoch(), Some(epoch + 1));
    next.close();
}

#[test]
fn the_answer_to_a_strong_write_comes_to_the_instance_that_accepted_it() {
    let world = World::new();
    let (owner, _) = world.owner("a");
    let other = world.open("b");
    other.journal.append(vec![other.write(0, "key", vec![1], true)]);
    let (outcomes, _) = other.outcomes(1);
    let Appended::Elsewhere(task) = outcomes[&0] else { panic!("{outcomes:?}") };
    while !matches!(owner.next(), Report::Event(JournalEvent::Arrived { .. })) {}
    let answer = IdempotencyAnswer { success: false, acked: vec![], failed: vec![0], needed: 1 };
    let obstacles = [(ReplicaIndex(0), Obstacle::Paused)];
    owner.journal.conclude(task, answer.clone(), &obstacles);
    let concluded = JournalEvent::Concluded { task, answer, obstacles: obstacles.to_vec() };
    loop {
        if let Report::Event(event @ JournalEvent::Concluded { .. }) = other.next() {
            assert_eq!(event, concluded);
            break;
        }
    }
    owner.close();
    other.close();
}

#[test]
fn a_repeat_through_another_instance_is_the_same_task() {
    let world = World::new();
    let (owner, _) = world.owner("a");
    let other = world.open("b");
    let key = Idempotency { key: "k".into(), fingerprint: [1; 16] };
    let keyed = |opened: &Opened, fingerprint| Append {
        idempotency: Some(Idempotency { fingerprint: [fingerprint; 16], ..key.clone() }),
        ..opened.write(0, "key", vec![1], false)
    };
    owner.journal.append(vec![keyed(&owner, 1)]);
    let first = id(&owner.outcomes(1).0[&0]);
    for opened in [&owner, &other] {
        opened.journal.append(vec![keyed(opened, 1)]);
        let (outcomes, tasks) = opened.outcomes(1);
        assert!(matches!(&outcomes[&0], Appended::Repeated(repeated) if repeated.id == first));
        assert_eq!(tasks, []);
        opened.journal.append(vec![keyed(opened, 2)]);
        let Report::Outcome(0, outcome) = opened.next() else { panic!("no outcome") };
        assert_eq!(outcome, Err(AppendError::Mismatch));
    }
    owner.close();
    other.close();
}

#[test]
fn settled_messages_are_purged() {
    let world = World::new();
    let (owner, _) = world.owner("a");
    for number in 0..200 {
        owner.append(number, &format!("key {number}"));
    }
    let (outcomes, _) = owner.outcomes(200);
    outcomes.values().for_each(|outcome| owner.journal.remove(id(outcome)));
    owner.sync();
    let messages = || {
        let store = owner.journal.store().clone();
        block_on(async move {
            let mut all = 0;
            for partition in (0..PARTITIONS).map(Partition) {
                all += store.read_from(partition, 1).await.unwrap().len();
            }
            all
        })
    };
    // Each partition keeps its last checkpoint, and at most what was written meanwhile.
    while messages() > 3 * usize::from(PARTITIONS) {
        std::thread::yield_now();
    }
    owner.close();
}
