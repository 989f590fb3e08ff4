//! The lane of a replica: the chains of its keys, and who is next.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use slab::Slab;
use smallvec::SmallVec;

use crate::engine::KeyId;
use crate::engine::Moment;
use crate::engine::breaker::Breaker;
use crate::engine::concurrency::Concurrency;
use crate::engine::counters::Counters;
use crate::engine::table::{Priority, Slot, TaskQueue};
use crate::task::{Node, TaskId, Timestamp};

mod backlog;

use backlog::Backlog;

/// First attempts go first, then retries, then dead letters. But a steady stream of one kind must
/// not keep the others, and what they hold, for ever: of this many places each kind has its own.
const TURNS: u32 = 16;

/// The most deliveries outside of the `workers` limit, so that strong writes to a replica that
/// hangs cannot use up the process's connections. Beyond it they wait for each other.
const MAX_EXPRESS: u32 = 128;

/// Everything that is on its way to one replica.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) node: Node,
    /// The unsettled deliveries of each key, oldest first, each with the next one. Only the head
    /// may be on the wire: that is the order of the writes of one key.
    pub(super) chains: HashMap<KeyId, Chain>,
    /// Heads that may be sent, by priority and then by age.
    ready: [BTreeMap<TaskId, Slot>; 5],
    /// Heads that failed and have no place in the retry queue, by age.
    pub(super) parked: BTreeMap<TaskId, Slot>,
    /// Heads that are parked when the long wait that the replica asked for is over.
    pub(super) deferred: u64,
    /// Heads that wait for their retry.
    pub(super) waiting: BTreeMap<TaskId, Slot>,
    /// Places of the retry queue that it holds.
    pub(super) retries: usize,
    /// On the wire within the `workers` limit.
    pub(super) in_flight: u32,
    /// On the wire outside of it.
    pub(super) express: u32,
    /// Places given out, for the turns.
    turn: u32,
    pub(super) breaker: Breaker,
    pub(super) concurrency: Concurrency,
    /// What is said of deliveries that it does not let out.
    pub(super) unsent_error: Arc<str>,
    /// The dead letters, oldest first; for each key only the newest.
    pub(super) dead: BTreeMap<TaskId, Slot>,
    pub(super) letters: HashMap<KeyId, Slot>,
    /// For each key the attempts that may still be applied, and until when.
    pub(super) ambiguous: HashMap<KeyId, SmallVec<[(TaskId, Moment); 1]>>,
    /// What the tasks are charged for of which only dead letters are left, parked ones included.
    pub(super) dead_letter_bytes: u64,
    /// The dead letters are being redriven.
    pub(super) redrive: Option<RedrivePass>,
    /// Up to where they were, when the replica was gone again.
    pub(super) broken_off: TaskId,
    /// The last one that was the probe.
    pub(super) probed: TaskId,
    /// The next dead letter or parked delivery may come back no earlier.
    pub(super) next_return: Moment,
    /// When it is to be looked at again.
    pub(super) wakeup: Option<Moment>,
    /// It may have something to send: looked at before the call ends.
    pub(super) dirty: bool,
    /// Tasks that it holds in each queue.
    held: [usize; 2],
    /// When a write was last admitted for it.
    pub(super) last_used: Moment,
    pub(super) counters: Counters,
    /// Its pending deliveries by age, and what their tasks are charged for.
    pub(super) backlog: Backlog,
    /// Since when an operator wants nothing sent to it.
    pub(super) paused: Option<Timestamp>,
    /// Everything for it is being thrown away, and has been up to the first; the last goes too.
    pub(super) forgetting: Option<(TaskId, TaskId)>,
    /// Everything for it was thrown away, and no write has named it since.
    pub(super) forgotten: bool,
    /// The last reservation before that.
    pub(super) forgotten_up_to: u64,
    /// Why the last attempt failed, and when.
    pub(super) last_error: Option<(Arc<str>, Timestamp)>,
    /// Since when its breaker is as it is; nothing since the start.
    pub(super) breaker_since: Option<Timestamp>,
}

/// A way through the dead letters of a lane, oldest first; one that was broken off goes on where it
/// was, and from the oldest on when it has come to the end.
#[derive(Clone, Copy, Debug)]
pub(super) struct RedrivePass {
    /// Those up to here have been looked at.
    pub(super) after: TaskId,
    /// It has begun from the oldest again, and ends here.
    pub(super) until: Option<TaskId>,
}

/// The ends of the list of one key's deliveries.
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
    fn new(node: Node) -> Self {
        Self {
            node,
            chains: HashMap::new(),
            ready: Default::default(),
            parked: BTreeMap::new(),
            deferred: 0,
            waiting: BTreeMap::new(),
            retries: 0,
            in_flight: 0,
            express: 0,
            turn: 0,
            breaker: Breaker::default(),
            concurrency: Concurrency::default(),
            unsent_error: "".into(),
            dead: BTreeMap::new(),
            letters: HashMap::new(),
            ambiguous: HashMap::new(),
            dead_letter_bytes: 0,
            redrive: None,
            broken_off: TaskId(0),
            probed: TaskId(0),
            next_return: Moment::default(),
            wakeup: None,
            dirty: false,
            held: [0; 2],
            last_used: Moment::default(),
            counters: Counters::default(),
            backlog: Backlog::default(),
            paused: None,
            forgetting: None,
            forgotten: false,
            forgotten_up_to: 0,
            last_error: None,
            breaker_since: None,
        }
    }

    /// Nothing is sent to it, whatever its breaker says.
    pub(super) fn is_suspended(&self) -> bool {
        self.paused.is_some() || self.forgetting.is_some()
    }

    /// Nothing that it has will be sent soon: all that is left waits for as long as the replica
    /// asked for.
    pub(super) fn has_nothing_due(&self) -> bool {
        self.chains.len() as u64 == self.deferred
    }

    /// It was forgotten, and nothing is left that an operator would look for. What was applied late
    /// may still be waited for.
    pub(super) fn is_gone(&self) -> bool {
        self.forgotten && self.chains.is_empty() && self.dead.is_empty() && !self.is_suspended()
    }

    pub(super) fn ready(&mut self, priority: Priority) -> &mut BTreeMap<TaskId, Slot> {
        let [urgent, fresh, retry, resend, redrive] = &mut self.ready;
        match priority {
            Priority::Urgent => urgent,
            Priority::Fresh => fresh,
            Priority::Retry => retry,
            Priority::Resend => resend,
            Priority::Redrive => redrive,
        }
    }

    fn first(&mut self, priorities: &[Priority]) -> Option<(Priority, Slot)> {
        priorities.iter().find_map(|&priority| {
            self.ready(priority).first_key_value().map(|(_, &slot)| (priority, slot))
        })
    }

    /// The count of what is on the wire with this priority.
    pub(super) fn on_wire(&mut self, priority: Priority) -> &mut u32 {
        if priority == Priority::Urgent { &mut self.express } else { &mut self.in_flight }
    }

    /// Whoever is to be sent first, whatever there is room for.
    pub(super) fn foremost(&mut self) -> Option<(Priority, Slot)> {
        self.first(&[
            Priority::Urgent,
            Priority::Fresh,
            Priority::Retry,
            Priority::Resend,
            Priority::Redrive,
        ])
    }

    /// Nothing is on its way, no dead letter lies here, no attempt is ambiguous, and no operator has
    /// said anything of it.
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
            && self.dead.is_empty()
            && self.ambiguous.is_empty()
            && !self.is_suspended()
            // Nor is anything on its way to it.
            && self.held == [0; 2]
    }

    /// How many tasks it holds in a queue; those outside of both are not counted.
    pub(super) fn held(&self, queue: TaskQueue) -> usize {
        self.held.get(queue as usize).copied().unwrap_or_default()
    }

    /// A task that it holds leaves one queue for another.
    pub(super) fn hold(&mut self, left: TaskQueue, entered: TaskQueue) {
        for (queue, enters) in [(left, false), (entered, true)] {
            if let Some(held) = self.held.get_mut(queue as usize) {
                if enters { *held += 1 } else { *held -= 1 }
            }
        }
    }

    /// Who is to be sent now, if `workers` may be on the wire at once, and `most` of all kinds.
    pub(super) fn next(&mut self, workers: u32, most: u32) -> Option<(Priority, Slot)> {
        if self.in_flight + self.express >= most {
            return None;
        }
        if self.express < MAX_EXPRESS
            && let Some(urgent) = self.first(&[Priority::Urgent])
        {
            return Some(urgent);
        }
        if self.in_flight >= workers {
            return None;
        }
        self.turn = (self.turn + 1) % TURNS;
        self.first(match self.turn {
            0 => &[Priority::Redrive, Priority::Resend, Priority::Retry, Priority::Fresh],
            4 | 12 => &[Priority::Retry, Priority::Fresh, Priority::Resend, Priority::Redrive],
            8 => &[Priority::Resend, Priority::Retry, Priority::Fresh, Priority::Redrive],
            _ => &[Priority::Fresh, Priority::Retry, Priority::Resend, Priority::Redrive],
        })
    }
}

/// The lanes, by number and by node.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: Slab<Lane>,
    by_node: HashMap<Node, u32>,
}

impl Lanes {
    /// The lanes of `nodes`, made where they are new; `None` if that would make more than `limit`
    /// although every other is in use. A lane with nothing pending makes way for a new one; one
    /// that is gone goes first.
    pub(super) fn open(&mut self, nodes: &[Node], limit: usize) -> Option<Vec<u32>> {
        let mut opened = Vec::with_capacity(nodes.len());
        for node in nodes {
            opened.push(self.open_one(node, limit, &opened)?);
        }
        Some(opened)
    }

    fn open_one(&mut self, node: &Node, limit: usize, keep: &[u32]) -> Option<u32> {
        if let Some(&lane) = self.by_node.get(node) {
            return Some(lane);
        }
        if self.lanes.len() >= limit {
            let idle = |&lane: &u32| self.lanes[lane as usize].is_empty() && !keep.contains(&lane);
            let idle = self.by_node.values().copied().filter(idle);
            let idle = idle.max_by_key(|&lane| self.lanes[lane as usize].is_gone())?;
            let gone = self.lanes.remove(idle as usize);
            self.by_node.remove(&gone.node);
        }
        let lane = u32::try_from(self.lanes.insert(Lane::new(node.clone()))).ok()?;
        self.by_node.insert(node.clone(), lane);
        Some(lane)
    }

    pub(super) fn get(&self, lane: u32) -> Option<&Lane> {
        self.lanes.get(lane as usize)
    }

    pub(super) fn find(&self, node: &Node) -> Option<u32> {
        self.by_node.get(node).copied()
    }

    /// Whether a replica other than `these` had a write since `since`.
    pub(super) fn others_used(&self, these: &[u32], since: Moment) -> bool {
        self.lanes.iter().any(|(number, lane)| {
            lane.last_used >= since
                && !lane.is_gone()
                && !these.iter().any(|&this| this as usize == number)
        })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Lane> {
        self.lanes.iter().map(|(_, lane)| lane)
    }

    /// Those of all replicas that are not gone.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> {
        self.by_node.values().copied().filter(|&lane| !self[lane].is_gone())
    }

    /// The lane is another node's from now on; there must be none of that yet.
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
