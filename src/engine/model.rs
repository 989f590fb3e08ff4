//! A simple model of the disk and the replicas that histories of the engine are checked against.
//!
//! Only for tests: `tests/model.rs` draws histories at random, a fuzzer builds them from bytes.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a history that breaks a rule is found by a panic"
)]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::num::NonZeroU32;
use std::time::Duration;

use super::*;
use crate::task::{Client, Consistency, Obstacle, Progress, ReplicaIndex, ReplicaPause};

mod checks;
mod disk;
mod limits;
mod operator;
mod ops;
mod owners;

use limits::SentWithin;
pub(super) use ops::{How, Op};

/// The settings that vary between histories.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) workers: Workers,
    pub(super) queue_capacity: usize,
    pub(super) retry_capacity: usize,
    pub(super) breaker_failures: u32,
    pub(super) hinted_handoff: bool,
    pub(super) coalesce: bool,
    /// The journal reports settlements, so strong writes may be early. Then it releases no partition.
    pub(super) reports: bool,
    pub(super) settle_after: Duration,
}

/// Runs a history, drains the engine, and panics where the engine breaks a rule.
pub(super) fn holds(shape: &Shape, history: &[Op]) {
    let &Shape { workers, queue_capacity, retry_capacity, .. } = shape;
    let settings = EngineSettings {
        settle_after: shape.settle_after,
        workers,
        queue_capacity,
        retry_capacity,
        breaker_failures: shape.breaker_failures,
        hinted_handoff: shape.hinted_handoff,
        coalesce: shape.coalesce,
        ..settings()
    };
    let mut world = World::new(settings, shape.reports);
    for op in history {
        world.run(op);
    }
    // Without a retry queue, parked deliveries never return.
    if retry_capacity > 0 {
        world.drain();
        world.assert_converged();
    }
}

pub(crate) fn settings() -> EngineSettings {
    EngineSettings {
        workers: Workers::Fixed(NonZeroU32::new(5).unwrap()),
        queue_capacity: 1000,
        retry_capacity: 500,
        max_bytes: 1 << 30,
        max_dead_letter_bytes: 1 << 30,
        dead_letter_retention: None,
        hinted_handoff: true,
        redrive_rate: NonZeroU32::new(200).unwrap(),
        breaker_failures: 5,
        settle_after: Duration::from_secs(30),
        coalesce: false,
        max_known_replicas: 1024,
        max_retries: 3,
        retry_base: Duration::from_secs(2),
        strong_timeout: Duration::from_secs(10),
        seed: 7,
    }
}

pub(super) fn node(name: &str) -> Node {
    Node::parse(&format!("http://{name}")).unwrap()
}

const NODES: [&str; 3] = ["a", "b", "c"];

/// The node behind a name, whatever renames happened.
fn site(name: &Node) -> Node {
    let first = name.as_str().split("//").nth(1).and_then(|host| host.get(..1));
    node(first.unwrap())
}

fn partition(key: u8) -> Partition {
    Partition(u16::from(key % 2))
}

/// The client that writes this task.
fn client_of(id: u64) -> Option<Client> {
    (!id.is_multiple_of(4)).then(|| Client::Token(format!("client {}", id % 3).into()))
}

/// A task as the client sees it and as it is on disk.
#[derive(Clone, Debug)]
struct StoredTask {
    key: u8,
    replicas: Vec<Node>,
    progress: Vec<Progress>,
}

/// A settlement that is not durable.
struct Unsettled {
    /// `None` removes the task.
    progress: Option<Vec<Progress>>,
    /// The first one of the task since it was last durable.
    number: u64,
}

struct World {
    settings: EngineSettings,
    engine: Engine,
    keys: KeyHasher,
    now: Now,
    next_id: u64,
    /// Appended but not durable, with their reservations. Early ones have none.
    appended: BTreeMap<u64, (StoredTask, Option<Reservation>)>,
    disk: BTreeMap<u64, StoredTask>,
    unsettled: BTreeMap<u64, Unsettled>,
    /// The settlements of this engine so far.
    settlements: u64,
    reports: bool,
    /// Some were reported, in this life or an earlier one.
    reported: bool,
    /// Every write that was ever durable, and every early one that was answered with success.
    durable: HashSet<u64>,
    /// Every early write.
    early: HashSet<u64>,
    /// Early writes that a crash has lost: nothing older may be sent to their replicas any more.
    lost: HashMap<(Node, u8), u64>,
    /// Strong writes that have not arrived.
    strong: HashSet<u64>,
    /// Strong writes without an answer.
    open: HashSet<u64>,
    /// The last id whose write was cancelled once.
    last_cancelled: u64,
    on_wire: Vec<DeliveryId>,
    /// In flight when their partition was released.
    orphans: Vec<(DeliveryId, Moment)>,
    /// Partitions of which nothing may be sent.
    held: HashSet<Partition>,
    /// Acknowledged to the present owner of their partition.
    acked: HashSet<DeliveryId>,
    /// Partitions that this engine does not own.
    released: HashSet<Partition>,
    acknowledged: HashSet<DeliveryId>,
    /// Attempts without an answer, and until when they may still be applied.
    unanswered: Vec<(DeliveryId, Moment)>,
    tasks: HashMap<u64, StoredTask>,
    /// The id of the write that each replica holds for each key.
    replicas: HashMap<(Node, u8), u64>,
    /// The newest write that each replica ever held for each key.
    had: HashMap<(Node, u8), u64>,
    /// Barriers, by their last task.
    barriers: Vec<u64>,
    /// The newest id sent to a replica for a key since the last restart.
    sent: HashMap<(Node, u8), u64>,
    restarted: bool,
    /// The current names of the nodes.
    names: [Node; 3],
    renames: u32,
    set_forward: bool,
    /// Paused sites, each with the moment before which the pause does not end by itself.
    paused: HashMap<Node, (ReplicaPause, Option<Moment>)>,
    /// The limits of sites, and what was sent within them.
    limits: HashMap<Node, SentWithin>,
    /// Keys of which an operator discarded a write: their content is not checked.
    discarded: HashSet<(Node, u8)>,
}

impl World {
    fn new(settings: EngineSettings, reports: bool) -> Self {
        Self {
            engine: Engine::new(settings.clone()),
            settings,
            keys: KeyHasher::default(),
            now: Now { moment: Moment(0), wall: Timestamp(0) },
            next_id: 1,
            appended: BTreeMap::new(),
            disk: BTreeMap::new(),
            unsettled: BTreeMap::new(),
            settlements: 0,
            reports,
            reported: false,
            durable: HashSet::new(),
            early: HashSet::new(),
            lost: HashMap::new(),
            strong: HashSet::new(),
            open: HashSet::new(),
            last_cancelled: 0,
            on_wire: Vec::new(),
            orphans: Vec::new(),
            held: HashSet::new(),
            acked: HashSet::new(),
            released: HashSet::new(),
            acknowledged: HashSet::new(),
            unanswered: Vec::new(),
            tasks: HashMap::new(),
            replicas: HashMap::new(),
            had: HashMap::new(),
            barriers: Vec::new(),
            sent: HashMap::new(),
            restarted: false,
            names: NODES.map(node),
            renames: 0,
            set_forward: false,
            paused: HashMap::new(),
            limits: HashMap::new(),
            discarded: HashSet::new(),
        }
    }

    fn run(&mut self, op: &Op) {
        match *op {
            Op::Write { key, nodes, strong } => self.write(key, nodes, strong),
            Op::Commit { settled } => self.commit(settled),
            Op::Settle { most } => {
                self.settle(most);
                self.report();
            }
            Op::Calm { settled } => self.calm(settled),
            Op::Answer { nth, how } => self.answer(nth, how),
            Op::ApplyLate { nth } => self.apply_late(nth),
            Op::Pass { millis } => self.pass(Duration::from_millis(millis)),
            Op::Restart { kept, settled } => self.restart(kept, settled),
            Op::Release { .. } if self.reports => {}
            Op::Release { partition, settled } => self.release(Partition(partition), settled),
            Op::Hold { .. } if self.reports => {}
            Op::Hold { partition } => self.hold(Partition(partition)),
            Op::Claim { partition } => self.claim(Partition(partition)),
            Op::SetClock { forward, seconds } => self.set_clock(forward, seconds),
            Op::Pause { node, paused, millis } => self.pause(node, paused, millis),
            Op::Limit { node, workers, rate, bandwidth } => {
                self.limit(node, workers, rate, bandwidth);
            }
            Op::Reload => {
                self.engine.credentials_renewed(self.now);
                self.act();
            }
            Op::Reconfigure { workers, max_retries, coalesce } => {
                let workers = Workers::Fixed(workers);
                self.settings =
                    EngineSettings { workers, max_retries, coalesce, ..self.settings.clone() };
                self.engine.reconfigure(self.now, &self.settings);
                self.act();
            }
            Op::Redrive { nth } => self.redrive(nth),
            Op::Discard { nth, letter } => self.discard(nth, letter),
            Op::Forget { node } => self.forget(node),
            Op::Rename { node } => self.rename(node),
        }
        self.check();
    }

    fn write(&mut self, key: u8, nodes: u8, strong: bool) {
        let chosen = NODES.iter().enumerate().filter(|(bit, _)| nodes & (1 << bit) != 0);
        let replicas: Vec<_> = chosen.map(|(at, _)| self.names[at].clone()).collect();
        let id = self.next_id;
        let consistency = if strong { Consistency::Strong } else { Consistency::Eventual };
        let client = client_of(id);
        let hashed = self.keys.id(&key.to_string());
        let client_of_it = client.as_ref();
        let reserved =
            self.engine.reserve(self.now, hashed, &replicas, 1, consistency, client_of_it);
        let Ok(reservation) = reserved else { return };
        if id.is_multiple_of(7) && self.last_cancelled != id {
            // A repeat of an earlier write.
            self.last_cancelled = id;
            return self.engine.cancel(self.now, reservation);
        }
        self.next_id += 1;
        let progress = vec![Progress::Untouched; replicas.len()];
        let stored = StoredTask { key, replicas, progress };
        self.tasks.insert(id, stored.clone());
        match self.engine.clear(self.now, reservation) {
            Err(reservation) => {
                self.appended.insert(id, (stored, Some(reservation)));
                if strong {
                    self.strong.insert(id);
                }
            }
            Ok(clear) => {
                self.early.insert(id);
                self.open.insert(id);
                self.appended.insert(id, (stored.clone(), None));
                let task = self.arrived(id, &stored, &stored.replicas, client.as_ref());
                self.engine.arrive(self.now, task, Origin::Early(clear));
            }
        }
        self.act();
    }

    fn arrived<'a>(
        &self,
        id: u64,
        stored: &StoredTask,
        replicas: &'a [Node],
        client: Option<&'a Client>,
    ) -> Arrived<'a> {
        let key = self.keys.id(&stored.key.to_string());
        let (partition, accepted_at) = (partition(stored.key), Timestamp(0));
        Arrived { partition, id: TaskId(id), key, replicas, bytes: 1, client, accepted_at }
    }

    fn answer(&mut self, nth: usize, how: How) {
        if let Some(orphan) = self.orphans.pop() {
            self.answer_orphan(orphan, how);
        }
        if self.on_wire.is_empty() {
            return;
        }
        let delivery = self.on_wire.swap_remove(nth % self.on_wire.len());
        // A replica does not reject what it acknowledged before.
        let how = match how {
            How::Rejected if self.acknowledged.contains(&delivery) => How::Delivered,
            how => how,
        };
        if matches!(how, How::Delivered | How::DeliveredByRepeat) {
            self.acknowledged.insert(delivery);
            // With an earlier attempt in flight, this may be taken for its answer.
            if !self.orphans.iter().any(|(orphan, _)| *orphan == delivery) {
                self.acked.insert(delivery);
            }
        }
        let task = &self.tasks[&delivery.task.0];
        if matches!(how, How::Delivered | How::DeliveredByRepeat | How::AppliedAndFailed) {
            let place = (site(&task.replicas[delivery.replica.get()]), task.key);
            self.apply(place, delivery.task.0);
        }
        let verdict = match how {
            How::Delivered | How::DeliveredByRepeat => Verdict::Delivered,
            How::Failed | How::Busy => {
                let after = matches!(how, How::Busy).then_some(Duration::from_secs(60));
                Verdict::Retry { after, error: "down".into() }
            }
            How::AppliedAndFailed | How::NoAnswer => {
                Verdict::Retry { after: None, error: "no answer".into() }
            }
            How::Cut => Verdict::Shortage { error: "the lease has ended".into() },
            How::NotSent => Verdict::Shortage { error: "no file descriptor".into() },
            How::Rejected => Verdict::Rejected { error: "no".into() },
            How::Refused => Verdict::Refused { error: "403".into() },
        };
        if matches!(how, How::NoAnswer | How::Cut | How::DeliveredByRepeat) {
            self.unanswered(delivery);
        }
        let ambiguous = matches!(
            how,
            How::AppliedAndFailed | How::NoAnswer | How::Cut | How::DeliveredByRepeat
        );
        let took = Duration::from_millis(1);
        self.engine.answered(self.now, delivery, AttemptOutcome { verdict, ambiguous, took });
        self.act();
    }

    fn unanswered(&mut self, delivery: DeliveryId) {
        self.unanswered.push((delivery, self.late()));
    }

    /// Just before the engine stops expecting an attempt that ends now.
    fn late(&self) -> Moment {
        self.now.moment.after(self.settings.settle_after.saturating_sub(Duration::from_millis(1)))
    }

    fn apply_late(&mut self, nth: usize) {
        if self.unanswered.is_empty() {
            return;
        }
        let (delivery, until) = self.unanswered.swap_remove(nth % self.unanswered.len());
        if self.now.moment <= until {
            let task = &self.tasks[&delivery.task.0];
            let place = (site(&task.replicas[delivery.replica.get()]), task.key);
            self.apply(place, delivery.task.0);
        }
    }

    fn apply(&mut self, place: (Node, u8), id: u64) {
        let newest = self.had.entry(place.clone()).or_default();
        *newest = id.max(*newest);
        self.replicas.insert(place, id);
    }

    fn set_clock(&mut self, forward: bool, seconds: u64) {
        let step = Duration::from_secs(seconds);
        if forward {
            self.now.wall = self.now.wall.saturating_add(step);
            // After a restart, an ambiguous attempt has its age from the wall clock alone, so a
            // step forward may end it too early. That is accepted.
            self.set_forward = true;
        } else {
            let back = u64::try_from(step.as_nanos()).unwrap();
            self.now.wall = Timestamp(self.now.wall.0.saturating_sub(back));
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now.moment = self.now.moment.after(time);
        self.now.wall = self.now.wall.saturating_add(time);
        self.engine.tick(self.now);
        self.act();
    }

    /// Carries out the engine's actions, and checks that they are allowed.
    fn act(&mut self) {
        while let Some(action) = self.engine.next_action() {
            match action {
                EngineAction::Send { delivery, node, attempt, bytes } => {
                    assert!(self.names.contains(&node), "{node} is sent to under its name");
                    self.check_limits(&site(&node), bytes);
                    self.send(delivery, attempt);
                }
                EngineAction::Save { task, progress, .. } => self.settles(task.0, Some(progress)),
                EngineAction::Remove { task } => self.settles(task.0, None),
                EngineAction::Conclude { task, success, needed, acked, missing, obstacles } => {
                    assert!(self.open.remove(&task.0), "{task} is answered once");
                    assert_eq!(success, acked.len() >= needed);
                    let stored = &self.tasks[&task.0].clone();
                    assert_eq!(acked.len() + missing.len(), stored.replicas.len());
                    self.answered(task.0, &missing);
                    for (at, why) in obstacles {
                        let paused = self.paused.contains_key(&site(&stored.replicas[at.get()]));
                        assert!(!success && missing.contains(&at));
                        assert_eq!(why == Obstacle::Paused, paused, "{task}");
                    }
                }
                EngineAction::PauseEnded { node, .. } => {
                    let (_, ends) = self.paused.remove(&site(&node)).unwrap();
                    assert!(ends.unwrap() <= self.now.moment, "the pause of {node} ends in time");
                }
                EngineAction::Buried { .. }
                | EngineAction::Breaker { .. }
                | EngineAction::Discarded { .. }
                | EngineAction::Changed { .. }
                | EngineAction::RedriveEnded { .. }
                | EngineAction::Ended { .. } => {}
            }
        }
    }

    fn send(&mut self, delivery: DeliveryId, attempt: u32) {
        // A resend is repeated more often.
        let is_resent = self.acknowledged.contains(&delivery);
        assert!((1..=4).contains(&attempt) || is_resent, "attempt {attempt}");
        let id = delivery.task.0;
        let task = &self.tasks[&id];
        let place = (site(&task.replicas[delivery.replica.get()]), task.key);
        assert!(
            !self.held.contains(&partition(task.key)),
            "{id} is sent although its partition is held"
        );
        for other in &self.on_wire {
            let rival = &self.tasks[&other.task.0];
            let rival = (site(&rival.replicas[other.replica.get()]), rival.key);
            assert_ne!(rival, place, "{id} and {} are in flight at once", other.task);
        }
        let newest = self.sent.entry(place.clone()).or_default();
        assert!(id >= *newest, "{id} is sent after {newest}");
        *newest = id;
        assert!(!self.paused.contains_key(&site(&task.replicas[delivery.replica.get()])), "{id}");
        self.may_be_sent(id, &place);
        self.on_wire.push(delivery);
    }

    /// Answers everything with success until nothing is left.
    fn drain(&mut self) {
        while let Some(orphan) = self.orphans.pop() {
            self.answer_orphan(orphan, How::Failed);
        }
        (0..3).for_each(|at| self.pause(at, false, None));
        self.commit(usize::MAX);
        for given_up in [Partition(0), Partition(1)] {
            if self.held.contains(&given_up) {
                self.release(given_up, 0);
                while let Some(orphan) = self.orphans.pop() {
                    self.answer_orphan(orphan, How::Failed);
                }
            }
            self.claim(given_up);
        }
        // Late attempts are applied over what was delivered in the meantime.
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
        let letters = || {
            let progress = self.disk.values().flat_map(|stored| &stored.progress);
            progress.filter_map(|progress| match progress {
                Progress::Dead(letter) => Some(letter),
                _ => None,
            })
        };
        assert_eq!(levels.dead_letters, letters().count() as u64);
        let refused = letters().filter(|letter| letter.cause == Cause::Refused).count();
        assert!(refused == 0 || !self.settings.hinted_handoff, "{refused} refused letters stay");
        let charged = self.disk.len() as u64 * (TASK_OVERHEAD_BYTES + 1);
        assert_eq!((levels.bytes, levels.dead_letter_bytes), (0, charged));
    }

    /// Every replica holds the newest durable write of each key, unless that is a dead letter.
    fn assert_converged(&self) {
        let mut newest: HashMap<(Node, u8), u64> = HashMap::new();
        for id in &self.durable {
            let task = &self.tasks[id];
            for node in &task.replicas {
                let newest = newest.entry((site(node), task.key)).or_default();
                *newest = (*newest).max(*id);
            }
        }
        for (place, id) in newest {
            let held = self.replicas.get(&place).copied().unwrap_or_default();
            let is_newer = held > id && self.early.contains(&held);
            let excused = is_newer || self.is_dead(id, &place.0) || self.discarded.contains(&place);
            assert!(held == id || excused, "{place:?} holds {held}, not {id}");
        }
    }

    fn is_dead(&self, id: u64, node: &Node) -> bool {
        self.disk.get(&id).is_some_and(|stored| {
            let at = stored.replicas.iter().position(|other| site(other) == *node);
            at.is_some_and(|at| matches!(stored.progress[at], Progress::Dead(_)))
        })
    }
}
