//! Random histories against a simple model of the disk and of the replicas.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU32;
use std::time::Duration;

use proptest::prelude::*;

use super::{node, settings};
use crate::engine::tasks::{Entry, Leg};
use crate::engine::*;
use crate::task::Progress;

const NODES: [&str; 3] = ["a", "b", "c"];

#[derive(Clone, Debug)]
enum Op {
    /// A write of a key to some of the nodes (a set of bits).
    Write { key: u8, nodes: u8, strong: bool },
    /// Everything written so far becomes durable.
    Commit,
    /// The n-th delivery on the wire is answered.
    Answer { nth: usize, how: How },
    /// The n-th attempt without an answer is applied, if it is not too late for that.
    ApplyLate { nth: usize },
    /// Time passes.
    Pass { millis: u64 },
    /// The process is killed, and started again from the disk. Of the settlements that wait to be
    /// written, oldest task first, so many have made it.
    Restart { settled: usize },
}

#[derive(Clone, Copy, Debug)]
enum How {
    Delivered,
    /// Failed, and the replica did not apply it.
    Failed,
    /// Failed as far as one can see, but the replica has applied it.
    AppliedAndFailed,
    /// No answer; the replica applies it later, or never.
    NoAnswer,
    Rejected,
}

fn op() -> impl Strategy<Value = Op> {
    let how = prop_oneof![
        4 => Just(How::Delivered),
        2 => Just(How::Failed),
        1 => Just(How::AppliedAndFailed),
        1 => Just(How::NoAnswer),
        1 => Just(How::Rejected),
    ];
    prop_oneof![
        6 => (0..4u8, 1..8u8, prop::bool::weighted(0.2))
            .prop_map(|(key, nodes, strong)| Op::Write { key, nodes, strong }),
        4 => Just(Op::Commit),
        8 => (0..64usize, how).prop_map(|(nth, how)| Op::Answer { nth, how }),
        2 => (0..64usize).prop_map(|nth| Op::ApplyLate { nth }),
        2 => (0..8_000u64).prop_map(|millis| Op::Pass { millis }),
        1 => (0..6usize).prop_map(|settled| Op::Restart { settled }),
    ]
}

/// A task as the client sees it and as it lies on disk.
#[derive(Clone, Debug)]
struct Kept {
    key: u8,
    replicas: Vec<Node>,
    progress: Vec<Progress>,
}

struct World {
    settings: Settings,
    engine: Engine,
    keys: KeyHasher,
    now: Now,
    next_id: u64,
    uncommitted: BTreeMap<u64, Kept>,
    disk: BTreeMap<u64, Kept>,
    /// Settlements on their way to the disk; `None` removes the task.
    unsettled: BTreeMap<u64, Option<Vec<Progress>>>,
    /// What was on disk at some time: all that a client was told is accepted.
    durable: HashSet<u64>,
    /// Strong writes without an answer.
    open: HashSet<u64>,
    on_wire: Vec<Delivery>,
    acknowledged: HashSet<Delivery>,
    /// Attempts without an answer, and until when they may still be applied.
    unanswered: Vec<(Delivery, Moment)>,
    tasks: HashMap<u64, Kept>,
    /// What each replica holds for each key: the id of the write.
    replicas: HashMap<(Node, u8), u64>,
    /// The newest id sent to a replica for a key since the last restart.
    sent: HashMap<(Node, u8), u64>,
    restarted: bool,
}

impl World {
    fn new(settings: Settings) -> Self {
        Self {
            engine: Engine::new(settings.clone()),
            settings,
            keys: KeyHasher::default(),
            now: Now { moment: Moment(0), wall: Timestamp(0) },
            next_id: 1,
            uncommitted: BTreeMap::new(),
            disk: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            durable: HashSet::new(),
            open: HashSet::new(),
            on_wire: Vec::new(),
            acknowledged: HashSet::new(),
            unanswered: Vec::new(),
            tasks: HashMap::new(),
            replicas: HashMap::new(),
            sent: HashMap::new(),
            restarted: false,
        }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Write { key, nodes, strong } => self.write(key, nodes, strong),
            Op::Commit => self.commit(),
            Op::Answer { nth, how } => self.answer(nth, how),
            Op::ApplyLate { nth } => self.apply_late(nth),
            Op::Pass { millis } => self.pass(Duration::from_millis(millis)),
            Op::Restart { settled } => self.restart(settled),
        }
        self.check();
    }

    fn write(&mut self, key: u8, nodes: u8, strong: bool) {
        let chosen = NODES.iter().enumerate().filter(|(bit, _)| nodes & (1 << bit) != 0);
        let replicas: Vec<_> = chosen.map(|(_, name)| node(name)).collect();
        let id = self.next_id;
        let consistency = if strong { Consistency::Strong } else { Consistency::Eventual };
        let arrival = Arrival {
            id: TaskId(id),
            key: self.keys.id(&key.to_string()),
            replicas: &replicas,
            bytes: 1,
            consistency,
        };
        if self.engine.admit(self.now, &arrival).is_err() {
            return;
        }
        self.next_id += 1;
        let progress = vec![Progress::Untouched; replicas.len()];
        let kept = Kept { key, replicas, progress };
        self.tasks.insert(id, kept.clone());
        self.uncommitted.insert(id, kept);
        if strong {
            self.open.insert(id);
        }
        self.act();
    }

    fn commit(&mut self) {
        self.durable.extend(self.uncommitted.keys());
        self.disk.append(&mut self.uncommitted);
        self.settle(usize::MAX);
        self.engine.committed(self.now, TaskId(self.next_id - 1));
        self.act();
    }

    /// Writes the settlements of the `most` oldest tasks.
    fn settle(&mut self, most: usize) {
        let due: Vec<_> = self.unsettled.keys().copied().take(most).collect();
        for id in due {
            match self.unsettled.remove(&id).unwrap() {
                Some(progress) => self.disk.get_mut(&id).unwrap().progress = progress,
                None => drop(self.disk.remove(&id).unwrap()),
            }
        }
    }

    fn answer(&mut self, nth: usize, how: How) {
        if self.on_wire.is_empty() {
            return;
        }
        let delivery = self.on_wire.swap_remove(nth % self.on_wire.len());
        // What a replica has acknowledged it does not refuse when it comes once more.
        let how = match how {
            How::Rejected if self.acknowledged.contains(&delivery) => How::Delivered,
            how => how,
        };
        if matches!(how, How::Delivered) {
            self.acknowledged.insert(delivery);
        }
        let task = &self.tasks[&delivery.task.0];
        if matches!(how, How::Delivered | How::AppliedAndFailed) {
            let place = (task.replicas[delivery.replica.get()].clone(), task.key);
            self.replicas.insert(place, delivery.task.0);
        }
        let verdict = match how {
            How::Delivered => Verdict::Delivered,
            How::Failed => Verdict::Retry { after: None, ambiguous: false, error: "down".into() },
            How::AppliedAndFailed | How::NoAnswer => {
                Verdict::Retry { after: None, ambiguous: true, error: "no answer".into() }
            }
            How::Rejected => Verdict::Rejected { error: "no".into() },
        };
        if matches!(how, How::NoAnswer) {
            self.unanswered(delivery);
        }
        self.engine.answered(self.now, delivery, verdict, Duration::from_millis(1));
        self.act();
    }

    fn unanswered(&mut self, delivery: Delivery) {
        // A moment before the engine stops expecting it.
        let late = self.settings.settle_after.saturating_sub(Duration::from_millis(1));
        self.unanswered.push((delivery, self.now.moment.after(late)));
    }

    fn apply_late(&mut self, nth: usize) {
        if self.unanswered.is_empty() {
            return;
        }
        let (delivery, until) = self.unanswered.swap_remove(nth % self.unanswered.len());
        if self.now.moment <= until {
            let task = &self.tasks[&delivery.task.0];
            let place = (task.replicas[delivery.replica.get()].clone(), task.key);
            self.replicas.insert(place, delivery.task.0);
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now.moment = self.now.moment.after(time);
        self.now.wall = self.now.wall.saturating_add(time);
        self.engine.tick(self.now);
        self.act();
    }

    fn restart(&mut self, settled: usize) {
        if settled > 0 {
            // What is written is a prefix of the log, and in it a write comes before everything
            // that it settles.
            self.durable.extend(self.uncommitted.keys());
            self.disk.append(&mut self.uncommitted);
        }
        self.settle(settled);
        self.unsettled.clear();
        self.engine = Engine::new(self.settings.clone());
        self.uncommitted.clear();
        let on_wire = std::mem::take(&mut self.on_wire);
        on_wire.into_iter().for_each(|delivery| self.unanswered(delivery));
        self.open.clear();
        self.sent.clear();
        self.restarted = true;
        for (&id, kept) in &self.disk {
            self.engine.restore(
                self.now,
                Restored {
                    id: TaskId(id),
                    key: self.keys.id(&kept.key.to_string()),
                    replicas: &kept.replicas,
                    bytes: 1,
                    progress: kept.progress.clone(),
                },
            );
        }
        self.act();
    }

    /// Does what the engine asks for, and checks that it may ask for it.
    fn act(&mut self) {
        while let Some(action) = self.engine.next_action() {
            match action {
                Action::Send { delivery, attempt, .. } => self.send(delivery, attempt),
                Action::Save { task, progress, .. } => {
                    assert!(self.disk.contains_key(&task.0), "{task} is on disk");
                    self.unsettled.insert(task.0, Some(progress));
                }
                Action::Remove { task } => {
                    assert!(self.disk.contains_key(&task.0), "{task} is on disk");
                    self.unsettled.insert(task.0, None);
                }
                Action::Conclude { task, success, needed, acked, missing } => {
                    assert!(self.open.remove(&task.0), "{task} is answered once");
                    assert!(!self.uncommitted.contains_key(&task.0), "{task} is durable");
                    assert_eq!(success, acked.len() >= needed);
                    let kept = &self.tasks[&task.0];
                    assert_eq!(acked.len() + missing.len(), kept.replicas.len());
                }
                Action::Buried { .. } | Action::Breaker { .. } | Action::Discarded { .. } => {}
            }
        }
    }

    fn send(&mut self, delivery: Delivery, attempt: u32) {
        assert!((1..=4).contains(&attempt), "attempt {attempt}");
        let id = delivery.task.0;
        let task = &self.tasks[&id];
        let place = (task.replicas[delivery.replica.get()].clone(), task.key);
        for other in &self.on_wire {
            let rival = &self.tasks[&other.task.0];
            let rival = (rival.replicas[other.replica.get()].clone(), rival.key);
            assert_ne!(rival, place, "{id} and {} are on the wire at once", other.task);
        }
        let newest = self.sent.entry(place).or_default();
        assert!(id >= *newest, "{id} is sent after {newest}");
        *newest = id;
        assert!(self.disk.contains_key(&id), "{id} is sent before it is durable");
        self.on_wire.push(delivery);
    }

    fn check(&self) {
        let mut sum = Books::default();
        for lane in self.engine.lanes() {
            assert!(lane.books.balance(), "{lane:?}");
            assert!(lane.waiting + lane.parked <= lane.books.pending);
            assert!(lane.dead_letter_bytes <= self.engine.levels().dead_letter_bytes);
            sum += lane.books;
        }
        assert_eq!(sum, self.engine.totals());
        self.check_chains();
        let levels = self.engine.levels();
        assert_eq!(levels.in_flight, self.on_wire.len() as u64);
        if !self.restarted {
            assert!(levels.queue <= self.settings.queue_capacity, "{levels:?}");
            assert!(levels.retry <= self.settings.retry_capacity, "{levels:?}");
        }
    }

    /// A chain never stands still with nothing to wait for, and every place in a queue is counted
    /// against the replicas that it waits for.
    fn check_chains(&self) {
        for lane in self.engine.lanes.iter() {
            let number = self.engine.lanes.find(&lane.node).unwrap();
            for chain in lane.chains.values() {
                let head = &self.engine.tasks[chain.head];
                let state = head.legs[head.leg_on(number)].state;
                assert!(!head.durable || state != State::Blocked, "{} stands still", head.id);
            }
            for queue in [Queue::Eventual, Queue::Strong, Queue::Retry] {
                let waits = |entry: &&Entry| {
                    let on_lane = |leg: &&Leg| leg.lane == number;
                    let leg = entry.legs.iter().find(on_lane);
                    entry.queue == queue && leg.is_some_and(|leg| leg.state.is_pending())
                };
                let held = self.engine.tasks.iter().filter(waits).count();
                assert_eq!(lane.held(queue), held, "{queue:?} of {}", lane.node);
            }
        }
    }

    /// Answers everything with success until nothing is left.
    fn drain(&mut self) {
        self.commit();
        // What is still to be applied late is, over whatever is delivered in the meantime.
        while !self.on_wire.is_empty() {
            self.answer(0, How::Delivered);
        }
        while !self.unanswered.is_empty() {
            self.apply_late(0);
        }
        for _ in 0..10_000 {
            while !self.on_wire.is_empty() {
                self.answer(0, How::Delivered);
            }
            match self.engine.wake_at() {
                Some(moment) => {
                    let passed = moment.0.saturating_sub(self.now.moment.0);
                    self.now.moment = self.now.moment.max(moment);
                    self.now.wall = self.now.wall.saturating_add(Duration::from_micros(passed));
                }
                None => break,
            }
            self.engine.tick(self.now);
            self.act();
            self.check();
        }
        self.settle(usize::MAX);
        assert_eq!(self.engine.totals().pending, 0, "{:?}", self.engine.levels());
        assert!(self.open.is_empty(), "every strong write has its answer");
        let levels = self.engine.levels();
        assert_eq!((levels.queue, levels.retry, levels.strong), (0, 0, 0));
        let letters = self.disk.values().flat_map(|kept| &kept.progress);
        let letters = letters.filter(|progress| matches!(progress, Progress::Dead(_))).count();
        assert_eq!(levels.dead_letters, letters as u64);
        let charged = self.disk.len() as u64 * (TASK_OVERHEAD_BYTES + 1);
        assert_eq!((levels.bytes, levels.dead_letter_bytes), (0, charged));
    }

    /// Every replica holds for each key the newest write that was ever on disk, unless that became
    /// a dead letter.
    fn assert_converged(&self) {
        let mut newest: HashMap<(Node, u8), u64> = HashMap::new();
        for id in &self.durable {
            let task = &self.tasks[id];
            for node in &task.replicas {
                let newest = newest.entry((node.clone(), task.key)).or_default();
                *newest = (*newest).max(*id);
            }
        }
        for (place, id) in newest {
            let held = self.replicas.get(&place).copied().unwrap_or_default();
            assert!(held == id || self.is_dead(id, &place.0), "{place:?} holds {held}, not {id}");
        }
    }

    fn is_dead(&self, id: u64, node: &Node) -> bool {
        self.disk.get(&id).is_some_and(|kept| {
            let at = kept.replicas.iter().position(|other| other == node);
            at.is_some_and(|at| matches!(kept.progress[at], Progress::Dead(_)))
        })
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_history_keeps_the_order_and_the_books_and_converges(
        ops in prop::collection::vec(op(), 1..120),
        workers in 1..5u32,
        queue_capacity in 1..12usize,
        retry_capacity in 0..6usize,
        breaker_failures in 0..4u32,
        hinted_handoff in any::<bool>(),
        coalesce in prop::bool::weighted(0.2),
    ) {
        let workers = match NonZeroU32::new(workers).unwrap() {
            n if n.get() == 4 => Workers::Auto(n),
            n => Workers::Fixed(n),
        };
        let mut world = World::new(Settings {
            settle_after: Duration::from_secs(20),
            workers,
            queue_capacity,
            retry_capacity,
            breaker_failures,
            hinted_handoff,
            coalesce,
            ..settings()
        });
        for op in &ops {
            world.run(op);
        }
        if retry_capacity == 0 {
            // What is parked stays parked then: there is never room.
            return Ok(());
        }
        world.drain();
        world.assert_converged();
    }
}
