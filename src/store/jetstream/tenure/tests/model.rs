//! Several instances with one log, in virtual time: requests take time, are lost or answered late, reads
//! are stale, and processes stop for a while.

use std::collections::{BTreeMap, BTreeSet};

use super::*;
use crate::store::jetstream::checkpoint::{OpenTask, Settled, Unsettled};

pub(super) const LEASE: u64 = 2_000;
const STEP: u64 = 20;
const KEYS: u64 = 4;
pub(super) const INSTANCES: usize = 3;

pub(super) struct World {
    start: BootTime,
    pub(super) now: u64,
    pub(super) rng: fastrand::Rng,
    /// Every message ever stored; the sequence is the place, from 1.
    log: Vec<Logged>,
    pub(super) instances: Vec<ModelInstance>,
    events: BTreeMap<(u64, u64), Event>,
    next_event: u64,
    /// The last task that was delivered for each key.
    replica: BTreeMap<u64, u64>,
    pub(super) claims: u64,
    pauses_without_replay: u64,
}

#[derive(Clone)]
enum Logged {
    Task { key: u64 },
    Checkpoint(Checkpoint),
}

pub(super) struct ModelInstance {
    pub(super) tenure: Tenure,
    is_asking: bool,
    pub(super) stopped_until: u64,
    sent: Option<Checkpoint>,
    pub(super) last: Option<(u64, Checkpoint)>,
    pub(super) owned: Option<ModelOwned>,
    pub(super) claim: Option<Duration>,
    pub(super) release: bool,
}

pub(super) struct ModelOwned {
    until: u64,
    unsettled: Unsettled,
    open: BTreeSet<u64>,
    delivered: BTreeSet<u64>,
}

enum Event {
    /// A checkpoint reaches the log.
    Store {
        by: usize,
        checkpoint: Checkpoint,
        expected: u64,
        is_awaited: bool,
    },
    /// An answer reaches the instance.
    Stored {
        to: usize,
        sequence: u64,
    },
    Refused {
        to: usize,
    },
    Unknown {
        to: usize,
    },
    Looked {
        to: usize,
        sequence: u64,
    },
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        let instance = |process| ModelInstance {
            tenure: Tenure::new(process as u64, Duration::from_millis(LEASE)),
            is_asking: false,
            stopped_until: 0,
            sent: None,
            last: None,
            owned: None,
            claim: Some(Duration::ZERO),
            release: false,
        };
        Self {
            start: BootTime::now(),
            now: 0,
            rng: fastrand::Rng::with_seed(seed),
            log: Vec::new(),
            instances: (0..INSTANCES).map(instance).collect(),
            events: BTreeMap::new(),
            next_event: 0,
            replica: BTreeMap::new(),
            claims: 0,
            pauses_without_replay: 0,
        }
    }

    pub(super) fn boot(&self) -> BootTime {
        self.start + Duration::from_millis(self.now)
    }

    fn later(&mut self, most: u64, event: Event) {
        let at = self.now + self.rng.u64(1..=most);
        self.next_event += 1;
        self.events.insert((at, self.next_event), event);
    }

    /// The last checkpoint among the first messages.
    fn last_checkpoint(&self, messages: usize) -> Option<(u64, &Checkpoint)> {
        let messages = &self.log[..messages.min(self.log.len())];
        messages.iter().enumerate().rev().find_map(|(index, message)| match message {
            Logged::Checkpoint(checkpoint) => Some((index as u64 + 1, checkpoint)),
            Logged::Task { .. } => None,
        })
    }

    fn run(&mut self, until: u64, trouble: bool) {
        while self.now < until {
            if trouble && self.rng.u32(..1_000) < 8 {
                let length = self.rng.u64(100..8_000);
                let at = self.rng.usize(..INSTANCES);
                self.instances[at].stopped_until = self.now + length;
            }
            self.step(trouble);
        }
    }

    pub(super) fn step(&mut self, trouble: bool) {
        self.now += STEP;
        while let Some(entry) = self.events.first_entry()
            && entry.key().0 <= self.now
        {
            let event = entry.remove();
            self.happen(event, trouble);
        }
        if trouble && self.rng.u32(..10) < 3 {
            let key = self.rng.u64(..KEYS);
            self.log.push(Logged::Task { key });
        }
        for at in 0..INSTANCES {
            if self.instances[at].stopped_until <= self.now {
                self.act(at, trouble);
            }
        }
        self.check();
    }

    fn happen(&mut self, event: Event, trouble: bool) {
        let lost = trouble && self.rng.u32(..10) == 0;
        match event {
            Event::Store { by, checkpoint, expected, is_awaited } => {
                let last = self.last_checkpoint(usize::MAX).map_or(0, |(sequence, _)| sequence);
                let answer = if last == expected {
                    self.check_settled(&checkpoint);
                    self.claims += u64::from(checkpoint.counter == 0);
                    self.log.push(Logged::Checkpoint(checkpoint));
                    Event::Stored { to: by, sequence: self.log.len() as u64 }
                } else {
                    Event::Refused { to: by }
                };
                if is_awaited {
                    self.later(60, if lost { Event::Unknown { to: by } } else { answer });
                }
            }
            // A stopped process gets its answers when it continues.
            Event::Stored { to, .. }
            | Event::Refused { to }
            | Event::Unknown { to }
            | Event::Looked { to, .. }
                if self.instances[to].stopped_until > self.now =>
            {
                let at = self.instances[to].stopped_until;
                self.next_event += 1;
                self.events.insert((at + 1, self.next_event), event);
            }
            Event::Stored { to, sequence } => {
                self.instances[to].is_asking = false;
                let change = self.instances[to].tenure.stored(sequence);
                self.change(to, change);
            }
            Event::Refused { to } => {
                self.instances[to].is_asking = false;
                self.instances[to].tenure.refused();
            }
            Event::Unknown { to } => {
                self.instances[to].is_asking = false;
                self.instances[to].tenure.unknown();
            }
            Event::Looked { to, sequence } => {
                self.instances[to].is_asking = false;
                let messages = usize::try_from(sequence).unwrap();
                let last = self.last_checkpoint(messages).map(|(at, last)| (at, last.clone()));
                let boot = self.boot();
                let this = &mut self.instances[to];
                let seen = last.as_ref().map(|(at, last)| (*at, last));
                let change = this.tenure.looked(boot, seen);
                if this.last.as_ref().map(|last| last.0) < last.as_ref().map(|last| last.0) {
                    this.last = last;
                }
                self.change(to, change);
            }
        }
    }

    fn change(&mut self, at: usize, change: Change) {
        let millis = |until: BootTime| {
            u64::try_from(until.saturating_since(self.start).as_millis()).unwrap()
        };
        match change {
            Change::None => {}
            Change::Claimed { sequence, until, .. } => {
                let settled = self.instances[at].sent.take().unwrap().settled.index();
                let until = millis(until);
                let mut owned = ModelOwned {
                    until,
                    unsettled: Unsettled::after(sequence),
                    open: BTreeSet::new(),
                    delivered: BTreeSet::new(),
                };
                for (message, place) in self.log.iter().zip(1..sequence) {
                    if matches!(message, Logged::Task { .. }) && !settled.has_task(place) {
                        owned.unsettled.add(place, OpenTask::first(place, 1, 0));
                        owned.open.insert(place);
                    }
                }
                self.instances[at].owned = Some(owned);
            }
            Change::Stored { until, .. } => {
                let until = millis(until);
                let now = self.now;
                let owned = self.instances[at].owned.as_mut().unwrap();
                self.pauses_without_replay += u64::from(owned.until < now);
                owned.until = until;
            }
            Change::Lost => self.instances[at].owned = None,
        }
    }

    fn act(&mut self, at: usize, trouble: bool) {
        self.deliver(at);
        if self.instances[at].is_asking {
            return;
        }
        let settle = self.rng.bool();
        let release = trouble && self.rng.u32(..500) == 0;
        let this = &mut self.instances[at];
        let wish = Wish {
            claim: this.claim,
            settle: settle && this.owned.as_ref().is_some_and(|owned| !owned.delivered.is_empty()),
            release: release || this.release,
        };
        let boot = self.start + Duration::from_millis(self.now);
        let step = this.tenure.next(boot, wish);
        let lost = trouble && self.rng.u32(..10) == 0;
        match step {
            Step::Wait(_) | Step::Await => {}
            Step::Look => {
                self.instances[at].is_asking = true;
                // Stale by up to twenty messages.
                let stale = if trouble { self.rng.usize(..20) } else { 0 };
                let sequence = self.log.len().saturating_sub(stale) as u64;
                let answer = Event::Looked { to: at, sequence };
                self.later(60, if lost { Event::Unknown { to: at } } else { answer });
            }
            Step::Write(link) => {
                self.instances[at].is_asking = true;
                if link.is_last
                    && let Some(owned) = &mut self.instances[at].owned
                {
                    owned.until = 0;
                }
                if !link.is_repeat {
                    let checkpoint = self.build(at, link);
                    self.instances[at].sent = Some(checkpoint);
                }
                let checkpoint = self.instances[at].sent.clone().unwrap();
                let (expected, is_awaited) = (link.expected, !lost);
                let store = Event::Store { by: at, checkpoint, expected, is_awaited };
                match lost {
                    // It reaches the log much later, or never. No one waits for the answer any more.
                    true => {
                        if self.rng.bool() {
                            self.later(3_000, store);
                        }
                        self.later(1_000, Event::Unknown { to: at });
                    }
                    false => self.later(60, store),
                }
            }
        }
    }

    fn build(&mut self, at: usize, link: Link) -> Checkpoint {
        let this = &mut self.instances[at];
        let settled = match &mut this.owned {
            Some(owned) => {
                for sequence in std::mem::take(&mut owned.delivered) {
                    owned.unsettled.settle(sequence);
                }
                owned.unsettled.settled()
            }
            None => {
                this.last.as_ref().map_or_else(Settled::default, |(_, last)| last.settled.clone())
            }
        };
        let plain = checkpoint(at as u64, link.epoch, link.counter, link.is_last);
        Checkpoint { settled, ..plain }
    }

    /// The owner reads the log, and delivers tasks while it holds the lease.
    fn deliver(&mut self, at: usize) {
        let (log, now) = (&self.log, self.now);
        let Some(owned) = &mut self.instances[at].owned else { return };
        let through = usize::try_from(owned.unsettled.through()).unwrap();
        for (message, place) in log[through..].iter().zip(through as u64 + 1..) {
            if matches!(message, Logged::Task { .. }) {
                owned.unsettled.add(place, OpenTask::first(place, 1, 0));
                owned.open.insert(place);
            }
            owned.unsettled.read_through(place);
        }
        if owned.until <= now || self.rng.bool() {
            return;
        }
        let blocked: BTreeSet<_> = (0..KEYS).filter(|_| self.rng.u32(..4) == 0).collect();
        for place in std::mem::take(&mut owned.open) {
            let index = usize::try_from(place - 1).unwrap();
            let Logged::Task { key } = log[index] else { panic!("it is a task") };
            if blocked.contains(&key) {
                owned.open.insert(place);
            } else {
                self.replica.insert(key, place);
                owned.delivered.insert(place);
            }
        }
    }

    /// What one checkpoint says is settled stays settled, and nothing undelivered is.
    fn check_settled(&self, next: &Checkpoint) {
        let last = self.last_checkpoint(usize::MAX).map(|(_, last)| &last.settled);
        // Everything up to it was settled before.
        let floor = last.map_or(0, |last| last.floor);
        assert!(floor <= next.settled.floor, "{floor}");
        let (last, next) = (last.map(Settled::index), next.settled.index());
        let behind = usize::try_from(floor).unwrap();
        for (message, place) in self.log[behind..].iter().zip(floor + 1..) {
            let Logged::Task { key } = message else { continue };
            let is_settled = next.has_task(place);
            let was_settled = last.as_ref().is_some_and(|last| last.has_task(place));
            assert!(is_settled || !was_settled, "task {place} is not settled any more");
            let delivered = self.replica.get(key).copied().unwrap_or(0);
            assert!(!is_settled || place <= delivered, "task {place} was never delivered");
        }
    }

    /// Everything is delivered.
    pub(super) fn check_end(&self, seed: u64) {
        let (_, last) = self.last_checkpoint(usize::MAX).unwrap();
        let (mut newest, settled) = (BTreeMap::new(), last.settled.index());
        for (message, place) in self.log.iter().zip(1..) {
            if let Logged::Task { key } = message {
                assert!(settled.has_task(place), "seed {seed}: task {place} is lost");
                newest.insert(*key, place);
            }
        }
        assert_eq!(self.replica, newest, "seed {seed}: a replica is stale");
    }

    fn check(&self) {
        let holds = |instance: &&ModelInstance| {
            instance.owned.as_ref().is_some_and(|owned| owned.until > self.now)
        };
        let holders = self.instances.iter().filter(holds).count();
        assert!(holders <= 1, "{holders} instances hold the lease at {}", self.now);
    }
}

#[test]
fn no_two_instances_hold_the_lease_and_everything_is_delivered_in_the_end() {
    let (mut claims, mut pauses) = (0, 0);
    for seed in 0..200 {
        let mut world = World::new(seed);
        world.run(60_000, true);
        world.run(75_000, false);
        world.check_end(seed);
        (claims, pauses) = (claims + world.claims, pauses + world.pauses_without_replay);
    }
    // Otherwise nothing was tested.
    assert!(claims > 1_000 && pauses > 100, "{claims} claims, {pauses} pauses");
}
