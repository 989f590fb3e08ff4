//! The lane of a replica: everything that is on its way to it, and what is known about it.
//!
//! Each part keeps its own invariants: `heads.rs` the order of sending, `in_flight.rs` the limits,
//! `places.rs` the share of the queues, `limits.rs` the rates, `letters.rs`, `refusals.rs`, `ambiguous.rs`, `backlog.rs`,
//! `health.rs` and `forget.rs`. A lane does not know the stages of its deliveries; `transitions.rs`
//! updates it.

use std::collections::HashMap;

use slab::Slab;

use crate::engine::table::{Priority, Slot};
use crate::engine::{KeyId, Moment, Workers};
use crate::task::{Counters, Node, ReplicaLimits, ReplicaPause};

mod ambiguous;
mod backlog;
mod forget;
mod heads;
mod health;
mod in_flight;
mod letters;
pub(super) mod limits;
mod places;
mod refusals;

use ambiguous::AmbiguousAttempts;
use backlog::Backlog;
use forget::ForgetState;
use heads::Heads;
use health::ReplicaHealth;
use in_flight::InFlight;
use letters::LaneLetters;
use limits::LaneLimits;
use places::LanePlaces;
use refusals::LaneRefusals;

#[derive(Debug)]
pub(super) struct Lane {
    pub(super) node: Node,
    /// Its number in [`crate::engine::claims::Claims`]. A renamed replica keeps that of its first
    /// name.
    pub(super) host: u32,
    /// The client that wrote to it first.
    pub(super) opened_by: u32,
    /// The unsettled deliveries of each key, oldest first. Only the head may be in flight: this is
    /// the order of the writes of a key.
    pub(super) chains: HashMap<KeyId, Chain>,
    pub(super) heads: Heads,
    pub(super) in_flight: InFlight,
    pub(super) places: LanePlaces,
    pub(super) letters: LaneLetters,
    pub(super) refusals: LaneRefusals,
    pub(super) ambiguous: AmbiguousAttempts,
    pub(super) backlog: Backlog,
    pub(super) counters: Counters,
    pub(super) health: ReplicaHealth,
    pub(super) forget: ForgetState,
    pub(super) paused: Option<LanePause>,
    /// `None` if nothing is set.
    pub(super) limits: Option<Box<LaneLimits>>,
    /// The record of its name is durable: a durable write named it.
    pub(super) recorded: bool,
    pub(super) last_used: Moment,
    /// Its entry in `Engine::wakeups`.
    pub(super) wakeup: Option<Moment>,
    /// Whether it is in `Engine::dirty`.
    pub(super) dirty: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct LanePause {
    pub(super) pause: ReplicaPause,
    /// Its end by the monotonic clock, so that a step of the wall clock ends no pause.
    pub(super) ends: Option<Moment>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Chain {
    pub(super) head: Slot,
    pub(super) tail: Slot,
}

impl Chain {
    pub(super) fn of(slot: Slot) -> Self {
        Self { head: slot, tail: slot }
    }
}

impl Lane {
    fn new(node: Node, host: u32, opened_by: u32) -> Self {
        Self {
            node,
            host,
            opened_by,
            chains: HashMap::new(),
            heads: Heads::default(),
            in_flight: InFlight::default(),
            places: LanePlaces::default(),
            letters: LaneLetters::default(),
            refusals: LaneRefusals::default(),
            ambiguous: AmbiguousAttempts::default(),
            backlog: Backlog::default(),
            counters: Counters::default(),
            health: ReplicaHealth::default(),
            forget: ForgetState::default(),
            paused: None,
            limits: None,
            recorded: false,
            last_used: Moment::default(),
            wakeup: None,
            dirty: false,
        }
    }

    /// Whether nothing is sent to it, whatever its breaker says: paused, or being forgotten.
    pub(super) fn is_suspended(&self) -> bool {
        self.paused.is_some() || self.forget.is_running()
    }

    /// Whether all pending deliveries wait for a long `Retry-After`.
    pub(super) fn has_nothing_due(&self) -> bool {
        self.chains.len() == self.heads.deferred()
    }

    /// Whether it was forgotten and nothing is left for an operator to see. There may still be
    /// ambiguous attempts.
    pub(super) fn is_gone(&self) -> bool {
        self.forget.is_forgotten()
            && self.chains.is_empty()
            && self.letters.is_empty()
            && !self.is_suspended()
    }

    /// Whether it can be removed: nothing is pending, reserved, dead or ambiguous, and no operator
    /// has suspended or limited it.
    pub(super) fn is_empty(&self) -> bool {
        self.has_nothing() && !self.is_suspended() && self.limits.is_none()
    }

    pub(super) fn set_limits(&self) -> ReplicaLimits {
        self.limits.as_ref().map(|limits| limits.set()).unwrap_or_default()
    }

    /// The current limit of concurrent deliveries.
    pub(super) fn workers(&self, default: Workers) -> u32 {
        self.health.limit(default.limited(self.set_limits().workers))
    }

    /// Whether nothing is pending, reserved, dead or ambiguous.
    pub(super) fn has_nothing(&self) -> bool {
        self.chains.is_empty()
            && self.letters.is_empty()
            && self.ambiguous.is_empty()
            && !self.places.has_queued()
    }

    /// Whether it is there only for its dead letters.
    pub(super) fn has_only_letters(&self) -> bool {
        !self.letters.is_empty() && self.chains.is_empty() && !self.places.has_queued()
    }

    /// The next delivery to send, with at most `workers` in flight within the limit and `most`
    /// altogether. Dead letters only with `redrives`.
    pub(super) fn next(
        &mut self,
        workers: u32,
        most: u32,
        redrives: bool,
    ) -> Option<(Priority, Slot)> {
        if self.in_flight.total() >= most {
            return None;
        }
        if self.in_flight.has_express_room()
            && let Some(urgent) = self.heads.first_urgent()
        {
            return Some(urgent);
        }
        if self.in_flight.workers() >= workers {
            return None;
        }
        self.heads.take_turn(redrives)
    }
}

#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Slab<Lane>,
    by_node: HashMap<Node, u32>,
}

impl Lanes {
    /// Adds a lane. `node` must not have one.
    pub(super) fn insert(&mut self, node: Node, host: u32, opened_by: u32) -> u32 {
        let lane = self.lanes.insert(Lane::new(node.clone(), host, opened_by));
        let lane = u32::try_from(lane).unwrap_or(u32::MAX);
        self.by_node.insert(node, lane);
        lane
    }

    pub(super) fn remove(&mut self, lane: u32) -> Lane {
        let gone = self.lanes.remove(lane as usize);
        self.by_node.remove(&gone.node);
        gone
    }

    pub(super) fn get(&self, lane: u32) -> Option<&Lane> {
        self.lanes.get(lane as usize)
    }

    pub(super) fn find(&self, node: &Node) -> Option<u32> {
        self.by_node.get(node).copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().map(|(_, lane)| lane)
    }

    pub(super) fn numbered(&self) -> impl Iterator<Item = (u32, &Lane)> {
        self.by_node.values().map(|&number| (number, &self[number]))
    }

    /// Forgotten replicas are left out.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.by_node.values().copied().filter(|&lane| !self[lane].is_gone())
    }

    /// `to` must not have a lane.
    pub(super) fn rename(&mut self, lane: u32, to: Node) {
        let before = std::mem::replace(&mut self[lane].node, to.clone());
        self.by_node.remove(&before);
        self.by_node.insert(to, lane);
    }
}

impl std::ops::Index<u32> for Lanes {
    type Output = Lane;

    fn index(&self, lane: u32) -> &Lane {
        &self.lanes[lane as usize]
    }
}

impl std::ops::IndexMut<u32> for Lanes {
    fn index_mut(&mut self, lane: u32) -> &mut Lane {
        &mut self.lanes[lane as usize]
    }
}
