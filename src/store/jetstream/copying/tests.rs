//! An owner, the log of its partition, and crashes.

#![expect(clippy::disallowed_methods, reason = "later than every wait of the owner")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;

use parking_lot::Mutex;
use proptest::prelude::*;

use super::*;
use crate::lease::BootTime;
use crate::store::jetstream::checkpoint::{Checkpoint, StoreInstance};
use crate::store::jetstream::checkpoint::{Deliveries, PartitionLevels, Settled};
use crate::store::jetstream::message::{CHUNK_BYTES, Nonce, TaskMessages};
use crate::store::jetstream::names::StreamNames;
use crate::store::jetstream::owned::{Group, LogRead, Owned};
use crate::store::jetstream::protocol::LogMessage;
use crate::store::jetstream::reader::PartitionRecovery;
use crate::store::jetstream::standing::TaskSettlement;
use crate::store::journal::JournalEvent;
use crate::task::{Consistency, Node, Operation, Progress, Task, TaskId, Timestamp};

const PARTITION: Partition = Partition(3);

const REPLICAS: usize = 2;

#[derive(Clone, Copy, Debug)]
enum Op {
    /// Another instance stores a task.
    Append {
        is_large: bool,
    },
    /// The owner reads the log, from a server that may lack messages.
    Read {
        lacks: bool,
    },
    /// A delivery of a task fails.
    Fail(usize),
    /// One of its replicas gets it.
    Deliver(usize, usize),
    /// It is not sure any more that they have it.
    Doubt(usize, u32),
    Remove(usize),
    /// Settlements and copies that are ready are stored.
    Checkpoint,
    /// A step of the cleaning, whose need is given.
    Clean,
    /// The log has no room for a group.
    Refuse,
    Purge,
    /// The next owner takes over, and reads from a server that may lack messages. The batch on its way is
    /// stored before, or not at all.
    Crash {
        is_stored: bool,
        lacks: bool,
    },
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => prop::bool::weighted(0.1).prop_map(|is_large| Op::Append { is_large }),
        3 => any::<bool>().prop_map(|lacks| Op::Read { lacks }),
        2 => (0_usize..64).prop_map(Op::Fail),
        3 => (0_usize..64, 0..REPLICAS).prop_map(|(nth, position)| Op::Deliver(nth, position)),
        1 => (0_usize..64, 0_u32..2).prop_map(|(nth, failures)| Op::Doubt(nth, failures)),
        2 => (0_usize..64).prop_map(Op::Remove),
        3 => Just(Op::Checkpoint),
        4 => Just(Op::Clean),
        1 => Just(Op::Refuse),
        2 => Just(Op::Purge),
        1 => any::<[bool; 2]>().prop_map(|[is_stored, lacks]| Op::Crash { is_stored, lacks }),
    ]
}

/// Of tasks with a value in two chunks, each with a nonce of its own, as all have in a log.
static LARGE: LazyLock<Vec<TaskMessages>> =
    LazyLock::new(|| (0..8).map(|nonce| messages(CHUNK_BYTES + 1, nonce)).collect());

fn messages(value_bytes: usize, nonce: u128) -> TaskMessages {
    let task = Task {
        id: TaskId(0),
        key: "k".into(),
        operation: Operation::Set,
        value: vec![7; value_bytes].into(),
        accepted_at: Timestamp(1),
        expires_at: None,
        replicas: ["http://a", "http://b"].map(|node| Node::parse(node).unwrap()).into(),
        user_id: None,
        client: None,
        consistency: Consistency::Eventual,
        primary: None,
        trace: None,
    };
    TaskMessages::of(&task, None, Nonce(nonce), None).unwrap()
}

#[derive(Default)]
struct Log {
    messages: BTreeMap<u64, LogMessage>,
    last: u64,
    /// That of the last checkpoint.
    checkpoint: u64,
    purged: u64,
}

impl Log {
    fn add(&mut self, subject: String, payload: Bytes) -> u64 {
        self.last += 1;
        let sequence = self.last;
        self.messages.insert(sequence, LogMessage { sequence, subject, payload });
        sequence
    }

    /// As with `Nats-Rollup: sub`.
    fn replace(&mut self, subject: String, payload: Bytes) -> u64 {
        self.messages.retain(|_, message| message.subject != subject);
        self.add(subject, payload)
    }

    fn from(&self, first: u64) -> Vec<LogMessage> {
        self.messages.range(first..).map(|(_, message)| message.clone()).collect()
    }

    fn purge(&mut self, before: u64) {
        self.messages.retain(|sequence, _| *sequence >= before);
        self.purged = self.purged.max(before);
    }
}

struct World {
    names: StreamNames,
    log: Log,
    owned: Owned,
    nonces: u128,
    large: usize,
    /// What the log must have: the progress of every task that is not settled.
    durable: BTreeMap<u64, Sent>,
    /// Settlements that are not stored, `None` for a removal.
    pending: BTreeMap<u64, Option<Sent>>,
    wanted: u64,
    /// Messages that the cleaning did not find.
    missing: u64,
}

/// What became of the deliveries of a task so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sent {
    failures: u32,
    delivered: [bool; REPLICAS],
}

impl Sent {
    fn progress(self) -> Vec<Progress> {
        let pending = match self.failures {
            0 => Progress::Untouched,
            failures => Progress::Failed { failures, error: "no".into() },
        };
        let state = |delivered| if delivered { Progress::Delivered } else { pending.clone() };
        self.delivered.into_iter().map(state).collect()
    }
}

impl World {
    fn new() -> Self {
        let names = StreamNames::new("c".parse().unwrap());
        let mut log = Log { last: 100, ..Log::default() };
        let owned = claim(&names, &mut log, 1, false).0;
        let (durable, pending) = (BTreeMap::new(), BTreeMap::new());
        let (wanted, missing) = (0, 0);
        Self { names, log, owned, nonces: 10, large: 0, durable, pending, wanted, missing }
    }

    fn append(&mut self, is_large: bool) {
        self.nonces += 1;
        let large = if is_large { LARGE.get(self.large) } else { None };
        self.large += usize::from(large.is_some());
        let written = large.cloned().unwrap_or_else(|| messages(1, self.nonces));
        for chunk in written.chunks {
            self.log.add(self.names.chunk(PARTITION), chunk);
        }
        let sequence = self.log.add(self.names.task(PARTITION), written.task);
        self.durable.insert(sequence, Sent::default());
    }

    fn read(&mut self, lacks: bool) {
        let is_there = |message: &LogMessage| !lacks || !message.sequence.is_multiple_of(2);
        let view: Vec<_> = self.log.from(0).into_iter().filter(is_there).collect();
        read_all(&mut self.owned, &self.names, &self.log, &view, &|_| {});
        self.owned.advance(&|_, _| {}, &|_| {}).unwrap();
    }

    /// Changes the state of a task; `None` removes it.
    fn settle(&mut self, nth: usize, change: Option<&dyn Fn(&mut Sent)>) {
        let open: Vec<_> = self.owned.unsettled_tasks().map(|(id, _)| id).collect();
        let open = open.iter().filter(|id| self.pending.get(id) != Some(&None));
        let Some(&id) = open.clone().nth(nth % open.count().max(1)) else { return };
        let mut sent = self.pending.get(&id).copied().flatten().unwrap_or(self.durable[&id]);
        let settlement = match change {
            None => TaskSettlement::Remove,
            Some(change) => {
                change(&mut sent);
                TaskSettlement::Save(sent.progress())
            }
        };
        self.pending.insert(id, change.is_some().then_some(sent));
        self.owned.settle(id, settlement);
    }

    /// The batch of a checkpoint. Returns its last sequence.
    fn store(&mut self) -> u64 {
        let Group { rows, settled, levels } = self.owned.group(&self.names);
        for row in rows {
            let (subject, payload) = row.into_parts();
            self.log.replace(subject, payload);
        }
        let left = self.owned.pending_tasks().next().unwrap_or(u64::MAX);
        let later = self.pending.split_off(&left);
        assert!(self.owned.pending_tasks().eq(later.keys().copied()), "the oldest ones first");
        for (id, settlement) in std::mem::replace(&mut self.pending, later) {
            match settlement {
                Some(progress) => _ = self.durable.insert(id, progress),
                None => _ = self.durable.remove(&id),
            }
        }
        self.wanted = settled.floor + 1;
        write_checkpoint(&self.names, &mut self.log, self.owned.epoch, settled, levels)
    }

    fn clean(&mut self) {
        let now = Instant::now() + LOOK_EVERY * 2;
        match self.owned.clean(now, self.log.purged, self.wanted) {
            CleaningStep::Nothing => {}
            CleaningStep::Purge => self.purge(),
            CleaningStep::Look => self.owned.sized(Some(u64::MAX), 0),
            CleaningStep::Read(tasks) => {
                let tasks = tasks.into_iter().map(|(id, task)| self.copied(id, task)).collect();
                self.missing += self.owned.copied(tasks, false);
            }
        }
    }

    /// As [`Store::read_to_copy`].
    fn copied(&mut self, id: u64, task: OpenTask) -> ReadTask {
        let LogPlace::At(place) = task.place else { panic!("{task:?}") };
        let progress = task.progress.map(|place| match place {
            LogPlace::At(sequence) => sequence,
            LogPlace::Sent | LogPlace::Lost => panic!("{task:?}"),
        });
        let read = ReadFrom { place, progress };
        let Some(message) = self.log.messages.get(&place) else {
            return ReadTask::Missing(id, read);
        };
        let message = message.payload.clone();
        let mut copy = match message::read_copy(id, &message) {
            Ok(copy) => copy,
            Err(_) => TaskCopy { chunks: None, message },
        };
        let chunks = task.chunks.map(|first| {
            let mut stored = Vec::new();
            for sequence in first..first + 2 {
                let chunk = self.log.messages[&sequence].payload.clone();
                stored.push(self.log.add(self.names.chunk(PARTITION), chunk));
            }
            (stored[0], 2)
        });
        copy.chunks = chunks.map(|(first, _)| first);
        let progress = progress.map(|at| self.log.messages[&at].payload.clone());
        let (message, is_incomplete) = (message::copy(id, &copy).unwrap(), false);
        ReadTask::Copied(CopiedTask { id, read, chunks, message, progress, is_incomplete })
    }

    fn purge(&mut self) {
        self.log.purge(self.wanted.min(self.log.checkpoint));
    }

    fn crash(&mut self, is_stored: bool, lacks: bool) {
        if is_stored {
            self.store();
        }
        self.pending.clear();
        let (owned, claimed) = claim(&self.names, &mut self.log, self.owned.epoch + 1, lacks);
        self.owned = owned;
        let expected = self.durable.iter();
        let expected = expected.map(|(id, sent)| (task_id(*id, PARTITION), sent.progress()));
        assert!(claimed.iter().cloned().eq(expected), "{claimed:?} {:?}", self.durable);
        self.check();
    }

    /// Every message that is needed is there.
    fn check(&mut self) {
        assert_eq!(self.owned.take_missing(), 0);
        for (id, task) in self.owned.unsettled_tasks() {
            let LogPlace::At(place) = task.place else { continue };
            assert!(self.log.messages.contains_key(&place), "task {id}");
            if let Some(first) = task.chunks {
                let chunk = |sequence: u64| &self.log.messages[&sequence].payload;
                let is_value =
                    |written: &TaskMessages| written.chunks == [chunk(first), chunk(first + 1)];
                assert!(LARGE.iter().any(is_value), "task {id}");
            }
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Append { is_large } => self.append(is_large),
            Op::Read { lacks } => self.read(lacks),
            Op::Fail(nth) => self.settle(nth, Some(&|sent| sent.failures += 1)),
            Op::Deliver(nth, position) => {
                self.settle(nth, Some(&|sent| sent.delivered[position] = true));
            }
            Op::Doubt(nth, failures) => self.settle(
                nth,
                Some(&|sent| {
                    sent.delivered = [false; REPLICAS];
                    sent.failures += failures;
                }),
            ),
            Op::Remove(nth) => self.settle(nth, None),
            Op::Checkpoint => {
                let sequence = self.store();
                self.owned.stored(sequence, BootTime::now());
            }
            Op::Clean => self.clean(),
            Op::Refuse => {
                self.owned.group(&self.names);
                self.owned.refused();
            }
            Op::Purge => self.purge(),
            Op::Crash { is_stored, lacks } => self.crash(is_stored, lacks),
        }
        self.check();
    }
}

fn write_checkpoint(
    names: &StreamNames,
    log: &mut Log,
    epoch: u64,
    settled: Settled,
    levels: PartitionLevels,
) -> u64 {
    let writer = StoreInstance { process: epoch, node: "n".into() };
    let checkpoint = Checkpoint { writer, is_released: false, epoch, counter: 0, settled, levels };
    log.checkpoint =
        log.replace(names.checkpoint(PARTITION), message::checkpoint(&checkpoint).unwrap());
    log.checkpoint
}

/// Reads what one server has, and from the others what it lacks.
fn read_all(
    owned: &mut Owned,
    names: &StreamNames,
    log: &Log,
    view: &[LogMessage],
    notify: &dyn Fn(JournalEvent),
) {
    let read = |owned: &mut Owned, messages| {
        owned.read(names, &|_, _| {}, messages, notify).unwrap();
    };
    read(owned, Some(view.to_vec()));
    loop {
        match owned.read_from(Instant::now() + LOOK_EVERY) {
            Some(LogRead::Missing(some)) => {
                let found = some.iter().filter_map(|one| log.messages.get(one)).cloned().collect();
                read(owned, Some(found));
                read(owned, Some(view.to_vec()));
            }
            Some(LogRead::From(_)) => return read(owned, None),
            None => return,
        }
    }
}

/// Claims the partition, and reads what is not settled.
fn claim(
    names: &StreamNames,
    log: &mut Log,
    epoch: u64,
    lacks: bool,
) -> (Owned, Vec<(TaskId, Vec<Progress>)>) {
    let last = log.messages.get(&log.checkpoint).map(|message| &message.payload);
    let last = last.map(|payload| message::read_checkpoint(payload).unwrap());
    let (settled, levels) = match last {
        Some(Checkpoint { settled, levels, .. }) => (settled, levels),
        None => Default::default(),
    };
    let claim = write_checkpoint(names, log, epoch, settled.clone(), levels);
    let listed = settled.index().missing(&BTreeSet::new(), 1_000);
    let lacking: BTreeSet<_> = listed.into_iter().step_by(2).filter(|_| lacks).collect();
    let mut view = log.from(settled.floor + 1);
    view.retain(|message| !lacking.contains(&message.sequence));
    let mut owned = Owned::claimed(PARTITION, epoch, claim, settled, levels);
    let claimed = Mutex::new(Vec::new());
    let notify = |event| {
        if let JournalEvent::Claimed { tasks, .. } = event {
            let tasks = tasks.into_iter().map(|task| (task.header.id, task.progress));
            claimed.lock().extend(tasks);
        }
    };
    read_all(&mut owned, names, log, &view, &notify);
    assert!(owned.is_live());
    (owned, claimed.into_inner())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    /// After any prefix of the batches.
    #[test]
    fn the_next_owner_finds_exactly_what_is_not_settled_in_its_order(
        ops in prop::collection::vec(op(), 1..120)
    ) {
        let mut world = World::new();
        for op in ops {
            world.run(op);
        }
        world.run(Op::Crash { is_stored: false, lacks: true });
    }
}

#[test]
fn a_task_that_a_checkpoint_leaves_out_is_sent_to_all_its_replicas_again() {
    let names = StreamNames::new("c".parse().unwrap());
    let mut unsettled = Unsettled::after(100);
    let ids: Vec<_> = (0..30_000).map(|nth| 101 + nth * 2).collect();
    for &id in &ids {
        unsettled.add(id, OpenTask::first(id, 10, 0));
    }
    let delivered = [Progress::Delivered, Progress::Untouched];
    let (first, last) = (ids[0], ids[ids.len() - 1]);
    for id in [first, last] {
        unsettled.list(id, Deliveries::of(&delivered).unwrap());
    }
    let settled = unsettled.settled().index();
    let mut recovery = PartitionRecovery::default();
    let mut read = |sequence, subject, payload| {
        let message = LogMessage { sequence, subject, payload };
        recovery.read(&names, PARTITION, &message, &settled).unwrap();
    };
    for id in [first, last - 2, last] {
        read(id, names.task(PARTITION), messages(1, id.into()).task);
    }
    let failed = Progress::Failed { failures: 1, error: "no".into() };
    let row = message::progress(&[Progress::Delivered, failed.clone()]).unwrap();
    read(last + 1, names.progress(PARTITION, last - 2), row);
    let found = recovery.finish(&settled).map(|(_, task)| task.task.unwrap().0.progress);
    let nothing = vec![Progress::Untouched; REPLICAS];
    let expected = [delivered.to_vec(), vec![Progress::Untouched, failed], nothing];
    assert!(found.eq(expected));
}

#[test]
fn a_message_wins_over_a_delivery_that_was_listed_before() {
    let mut world = World::new();
    let ops = [Op::Append { is_large: false }, Op::Read { lacks: false }, Op::Deliver(0, 0)];
    ops.into_iter()
        .chain([Op::Checkpoint, Op::Doubt(0, 1), Op::Checkpoint])
        .for_each(|op| world.run(op));
    world.run(Op::Crash { is_stored: false, lacks: false });
}

#[test]
fn cleaning_moves_the_floor_past_old_tasks() {
    let mut world = World::new();
    for nth in 0..600 {
        world.run(Op::Append { is_large: nth % 100 == 0 });
    }
    world.run(Op::Read { lacks: true });
    for nth in (0..600).rev().filter(|nth| nth % 20 != 0) {
        world.run(Op::Remove(nth));
    }
    for op in [Op::Fail(3), Op::Fail(7), Op::Checkpoint, Op::Purge] {
        world.run(op);
    }
    let before = world.log.messages.len();
    let end = world.log.last;
    while world.wanted <= end {
        for op in [Op::Clean, Op::Checkpoint, Op::Read { lacks: false }] {
            world.run(op);
        }
    }
    world.run(Op::Purge);
    assert!(before > 600 && world.log.messages.len() < 60, "{}", world.log.messages.len());
    world.run(Op::Crash { is_stored: false, lacks: true });
    assert_eq!(world.durable.len(), 30);
}

/// The oldest of a few tasks, whose message no server has any more.
fn world_with_a_lost_message() -> (World, u64) {
    let mut world = World::new();
    for _ in 0..100 {
        world.run(Op::Append { is_large: false });
    }
    world.run(Op::Read { lacks: false });
    for nth in (0..100).rev().filter(|nth| nth % 20 != 0) {
        world.run(Op::Remove(nth));
    }
    for op in [Op::Checkpoint, Op::Purge] {
        world.run(op);
    }
    let (lost, _) = world.log.messages.pop_first().unwrap();
    (world, lost)
}

#[test]
fn a_message_that_no_server_has_is_reported_and_does_not_keep_the_log_long() {
    let (mut world, lost) = world_with_a_lost_message();
    let end = world.log.last;
    for _ in 0..10 {
        world.clean();
        let sequence = world.store();
        world.owned.stored(sequence, BootTime::now());
        world.read(false);
    }
    world.purge();
    assert!(world.missing == 1 && world.wanted > end, "{} {}", world.missing, world.wanted);
    // It is not there for the next owner.
    world.durable.remove(&lost);
    world.run(Op::Crash { is_stored: false, lacks: true });
    assert_eq!(world.durable.len(), 4);
}

#[test]
fn a_message_that_was_replaced_or_purged_while_it_was_read_is_not_missing() {
    let mut world = World::new();
    for _ in 0..3 {
        world.run(Op::Append { is_large: false });
    }
    world.run(Op::Read { lacks: false });
    for op in [Op::Fail(0), Op::Fail(1), Op::Checkpoint] {
        world.run(op);
    }
    let tasks: Vec<_> = world.owned.unsettled_tasks().map(|(id, task)| (id, *task)).collect();
    for op in [Op::Fail(0), Op::Remove(1), Op::Checkpoint] {
        world.run(op);
    }
    let lost = |(id, task): (u64, OpenTask)| {
        let at = |place| if let LogPlace::At(at) = place { at } else { panic!("{place:?}") };
        let read = ReadFrom { place: at(task.place), progress: task.progress.map(at) };
        ReadTask::Missing(id, read)
    };
    let tasks: Vec<_> = tasks.into_iter().map(lost).collect();
    assert_eq!(world.owned.copied(tasks, false), 1, "only the last one did not change");
    let open: Vec<_> = world.owned.unsettled_tasks().map(|(_, task)| task.place).collect();
    assert!(matches!(open[..], [LogPlace::At(_), LogPlace::Lost]), "{open:?}");
}

#[test]
fn a_log_is_cleaned_when_it_is_long_and_most_of_it_is_garbage() {
    let is_needed = |bytes, live| {
        let mut cleaning = Cleaning { phase: Phase::Looking, ..Cleaning::default() };
        cleaning.looked(bytes, live, 1_000);
        cleaning.phase == Phase::Needed
    };
    assert!(is_needed(Some(2_002), 1_000));
    assert!(!is_needed(Some(2_001), 1_000));
    assert!(!is_needed(Some(1_000), 0));
    assert!(!is_needed(None, 0));
}
