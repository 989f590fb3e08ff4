//! What happens next: the rules of order, retry, capacity and isolation, as a pure state machine.
//!
//! The engine has no clock, no socket, no disk and no async. [`Now`] comes in with every call,
//! and what should happen comes out of [`Engine::next_action`]: send this delivery, save that
//! progress, answer that client. So its rules are tested by calling functions.
//!
//! It guarantees:
//!
//! - **Order.** The deliveries of one key to one replica form a chain, oldest first, and only its
//!   head may be on the wire. A write that waits for a retry is superseded by a newer one of its
//!   key; it is never sent after it.
//! - **Isolation.** A replica has a lane of its own with `workers` places. What failed leaves the
//!   eventual queue, and what the retry queue has no room for is parked, outside of both.
//! - **Bounds.** Both queues, the bytes and the number of known replicas have a limit each;
//!   [`Engine::admit`] refuses what goes beyond, in words.
//! - **Balance.** Every delivery taken on is in one column of its replica's [`Books`].
//!
//! It deliberately does not know values, keys or addresses as text beyond the name of a lane, nor
//! time to live: an expired write is a delivery as any other, and the command that is sent for it
//! is decided when it is sent.
//!
//! Start with [`Engine::admit`], then `moves.rs`, where a delivery goes from state to state.

#![expect(
    clippy::indexing_slicing,
    reason = "an index is a slot, a lane or a leg that the engine itself has given out"
)]

use std::collections::{BTreeSet, VecDeque};
use std::num::NonZeroU32;
use std::time::Duration;

use smallvec::SmallVec;
use thiserror::Error;

use crate::task::{
    Cause, Consistency, DeadLetter, Delivery, Node, Progress, ReplicaIndex, TaskId, Timestamp,
    Verdict,
};

mod books;
mod key;
mod lane;
mod moment;
mod moves;
mod quorum;
mod retry;
mod tasks;
#[cfg(test)]
mod tests;

pub use books::Books;
pub use key::{KeyHasher, KeyId};
pub use moment::Moment;

use lane::Lanes;
use quorum::Quorum;
use retry::Schedule;
use tasks::{Leg, Queue, Settlement, Slot, State, Tasks, Trouble};

/// What a task is charged for beyond its key and value: its row on disk, its place in memory.
pub const TASK_OVERHEAD_BYTES: u64 = 512;

/// A replica may hold this many times as many places of a queue as are free: nine in ten by
/// itself, and together with others that stand still a fair part, with some always left for a
/// replica that moves. (The dynamic thresholds of Choudhury and Hahne, made for the shared memory
/// of packet switches.)
const SHARE: usize = 9;

/// Nothing is kept free for other replicas where none has had a write for so long.
const OTHERS_IDLE: Duration = Duration::from_secs(60);

/// The limits and times of the engine.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Deliveries on the wire to one replica.
    pub workers: NonZeroU32,
    /// Tasks in the eventual queue; as many strong writes may be open besides.
    pub queue_capacity: usize,
    /// Tasks in the retry queue.
    pub retry_capacity: usize,
    /// What all tasks on disk may be charged for, in bytes; dead letters included.
    pub max_bytes: u64,
    /// Replicas with a lane.
    pub max_known_replicas: usize,
    /// Retries after the first attempt.
    pub max_retries: u32,
    /// The wait after the first failure.
    pub retry_base: Duration,
    /// How long the client of a strong write waits at the most.
    pub strong_timeout: Duration,
    /// Where the jitter starts from.
    pub seed: u64,
}

/// The moment of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Now {
    /// For waiting.
    pub moment: Moment,
    /// For the records that people read.
    pub wall: Timestamp,
}

/// A write that asks to be let in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    /// Greater than every one before.
    pub id: TaskId,
    /// Its key.
    pub key: KeyId,
    /// Its replicas, each once.
    pub replicas: &'a [Node],
    /// What it is charged for, to which the engine adds the overhead: [`crate::task::weight`].
    pub bytes: u64,
    /// When its client has its answer.
    pub consistency: Consistency,
}

/// A task that was found on disk.
#[derive(Clone, Debug)]
pub struct Restored<'a> {
    /// Greater than every one restored before.
    pub id: TaskId,
    /// Its key.
    pub key: KeyId,
    /// Its replicas.
    pub replicas: &'a [Node],
    /// As in [`Arrival::bytes`].
    pub bytes: u64,
    /// What each replica has had of it.
    pub progress: Vec<Progress>,
}

/// What is to be done, in this order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send this delivery; the outcome comes back by [`Engine::answered`].
    Send {
        /// Which.
        delivery: Delivery,
        /// How often it is sent with this, from 1.
        attempt: u32,
        /// What its task is charged for: about what it costs to hold it in memory.
        bytes: u64,
    },
    /// The task stands so: keep it over a restart.
    Save {
        /// Which.
        task: TaskId,
        /// One entry a replica.
        progress: Vec<Progress>,
        /// Nothing of it is pending; what is left are dead letters, and it leaves the memory.
        over: bool,
    },
    /// Nothing of the task is left: remove it from disk and memory.
    Remove {
        /// Which.
        task: TaskId,
    },
    /// Answer the client of a strong write.
    Conclude {
        /// Which.
        task: TaskId,
        /// A majority has acknowledged.
        success: bool,
        /// How many make a majority.
        needed: usize,
        /// Who has acknowledged.
        acked: Vec<ReplicaIndex>,
        /// Who has not.
        missing: Vec<ReplicaIndex>,
    },
    /// A delivery became a dead letter: tell the operator.
    Buried {
        /// Which.
        delivery: Delivery,
        /// Why.
        letter: DeadLetter,
    },
}

/// Why a write is not let in. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Full {
    /// `queue_capacity`.
    #[error("the eventual queue is full ({0} tasks, --queue-capacity)")]
    Queue(usize),
    /// `queue_capacity`, for strong writes.
    #[error("{0} strong writes are open, as many as there may be (--queue-capacity)")]
    Strong(usize),
    /// One replica holds all of a queue but what is kept free for the others.
    #[error("{held} tasks for {node} wait, all but what --queue-capacity keeps for other replicas")]
    Share {
        /// Whose share is used up.
        node: Node,
        /// The tasks that it holds.
        held: usize,
    },
    /// `max_bytes`.
    #[error(
        "the tasks that wait or are kept as dead letters fill the {0} bytes of --queue-max-bytes"
    )]
    Bytes(u64),
    /// `max_known_replicas`.
    #[error(
        "deliveries to {0} replicas are under way, as many as there may be (--max-known-replicas)"
    )]
    Replicas(usize),
}

/// How full everything is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Levels {
    /// Tasks in the eventual queue.
    pub queue: usize,
    /// Open strong writes.
    pub strong: usize,
    /// Tasks in the retry queue.
    pub retry: usize,
    /// Bytes charged.
    pub bytes: u64,
    /// Deliveries kept as dead letters, the parked ones included.
    pub dead_letters: u64,
    /// Deliveries on the wire.
    pub in_flight: u64,
}

/// One replica, seen from outside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LaneView {
    /// Whose lane.
    pub node: Node,
    /// Its books.
    pub books: Books,
    /// Of the pending, on the wire.
    pub in_flight: u64,
    /// Of the pending, waiting for a retry.
    pub waiting: u64,
    /// Of the pending, parked.
    pub parked: u64,
}

/// The state machine.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    schedule: Schedule,
    rng: fastrand::Rng,
    tasks: Tasks,
    lanes: Lanes,
    /// Waiting deliveries by the moment they are due: task, lane.
    timers: BTreeSet<(Moment, Slot, u32)>,
    /// Open strong writes by the moment they are answered at the latest.
    deadlines: BTreeSet<(Moment, Slot)>,
    /// Lanes with parked deliveries; they take turns when the retry queue has room.
    parked_lanes: VecDeque<u32>,
    levels: Levels,
    /// Sums over all lanes there have ever been.
    totals: Books,
    /// Tasks whose progress changed in this call.
    touched: Vec<Slot>,
    actions: VecDeque<Action>,
    stopped: bool,
}

impl Engine {
    /// An engine with nothing in it.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            schedule: Schedule { max_retries: settings.max_retries, base: settings.retry_base },
            rng: fastrand::Rng::with_seed(settings.seed),
            settings,
            tasks: Tasks::default(),
            lanes: Lanes::default(),
            timers: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            parked_lanes: VecDeque::new(),
            levels: Levels::default(),
            totals: Books::default(),
            touched: Vec::new(),
            actions: VecDeque::new(),
            stopped: false,
        }
    }

    /// Takes on a write, in the order of the ids.
    ///
    /// It has its place in the chains from now on, and is sent once [`Engine::committed`] says that
    /// it is durable. A strong write no earlier: were it sent before and lost in a crash, some
    /// replicas would keep a write that nobody carries to the others, and an older one could still
    /// be sent after it.
    ///
    /// # Errors
    ///
    /// [`Full`] names the limit that is reached.
    pub fn admit(&mut self, now: Now, arrival: &Arrival<'_>) -> Result<(), Full> {
        let strong = arrival.consistency == Consistency::Strong;
        let bytes = arrival.bytes.saturating_add(TASK_OVERHEAD_BYTES);
        let queue = if strong { Queue::Strong } else { Queue::Eventual };
        self.room(queue, bytes)?;
        self.share(now, queue, arrival.replicas)?;
        let limit = self.settings.max_known_replicas;
        let lanes = self.lanes.open(arrival.replicas, limit).ok_or(Full::Replicas(limit))?;

        let quorum = strong.then(|| {
            let replicas = u16::try_from(lanes.len()).unwrap_or(u16::MAX);
            Box::new(Quorum::new(replicas, now.moment.after(self.settings.strong_timeout)))
        });
        let slot = self.insert(arrival.id, arrival.key, bytes, &lanes, quorum, false);
        self.enter_queue(slot, queue);
        for (leg, &lane) in lanes.iter().enumerate() {
            self.lanes[lane].last_used = now.moment;
            self.join(slot, leg);
        }
        self.finish(now);
        Ok(())
    }

    fn room(&self, queue: Queue, bytes: u64) -> Result<(), Full> {
        let capacity = self.settings.queue_capacity;
        if self.level(queue) >= capacity {
            let strong = queue == Queue::Strong;
            return Err(if strong { Full::Strong(capacity) } else { Full::Queue(capacity) });
        }
        if self.levels.bytes.saturating_add(bytes) > self.settings.max_bytes {
            return Err(Full::Bytes(self.settings.max_bytes));
        }
        Ok(())
    }

    /// Isolation at the door: a replica that hangs or lags keeps its tasks in the queue, and must
    /// not fill it for the others.
    fn share(&self, now: Now, queue: Queue, replicas: &[Node]) -> Result<(), Full> {
        let free = self.settings.queue_capacity.saturating_sub(self.level(queue));
        let known: SmallVec<[u32; 8]> =
            replicas.iter().filter_map(|node| self.lanes.find(node)).collect();
        for &lane in &known {
            let held = self.lanes[lane].held(queue);
            if held >= free.saturating_mul(SHARE)
                && self.lanes.others_used(&known, now.moment.before(OTHERS_IDLE))
            {
                return Err(Full::Share { node: self.lanes[lane].node.clone(), held });
            }
        }
        Ok(())
    }

    fn level(&self, queue: Queue) -> usize {
        match queue {
            Queue::Eventual => self.levels.queue,
            Queue::Strong => self.levels.strong,
            Queue::Retry => self.levels.retry,
            Queue::Outside => 0,
        }
    }

    /// Every task up to `last` is on disk.
    pub fn committed(&mut self, now: Now, last: TaskId) {
        while let Some(slot) = self.tasks.next_committed(last) {
            self.tasks[slot].durable = true;
            for leg in 0..self.tasks[slot].legs.len() {
                self.unblock(slot, leg);
            }
            self.touch(slot);
        }
        self.finish(now);
    }

    /// Takes on a task found on disk, in the order of the ids, before anything is admitted.
    ///
    /// What waited for a retry when the process ended is due at once. The capacities do not hold
    /// here: they may have been lowered, and nothing on disk is given up for that.
    pub fn restore(&mut self, now: Now, task: Restored<'_>) {
        let bytes = task.bytes.saturating_add(TASK_OVERHEAD_BYTES);
        let Some(lanes) = self.lanes.open(task.replicas, usize::MAX) else {
            return;
        };
        let slot = self.insert(task.id, task.key, bytes, &lanes, None, true);
        for (leg, progress) in task.progress.into_iter().enumerate().take(lanes.len()) {
            self.restore_leg(now, slot, leg, progress);
        }
        self.enter_queue(slot, self.queue_of_restored(slot));
        self.touch(slot);
        self.finish(now);
    }

    fn restore_leg(&mut self, now: Now, slot: Slot, leg: usize, progress: Progress) {
        let trouble = |failures, error, since| Some(Box::new(Trouble { failures, error, since }));
        let until = now.moment;
        let (state, found) = match progress {
            Progress::Untouched => (State::Blocked, None),
            Progress::Failed { failures, error } => {
                (State::Waiting { until }, trouble(failures, error, now.wall))
            }
            Progress::Delivered => (State::Settled(Settlement::Delivered), None),
            Progress::Superseded => (State::Settled(Settlement::Superseded), None),
            Progress::Dead(letter) => {
                let state = match letter.cause {
                    Cause::Rejected => State::Settled(Settlement::Rejected),
                    Cause::GaveUp => State::Settled(Settlement::GaveUp),
                    Cause::RetryOverflow => State::Parked { until },
                };
                (state, trouble(letter.failures, letter.error, letter.since))
            }
        };
        self.tasks[slot].legs[leg].trouble = found;
        if let State::Settled(settlement) = state {
            self.settled_before(slot, leg, settlement);
            return;
        }
        let alone = self.join(slot, leg);
        // Behind an older write it keeps its failures and waits for its turn instead.
        if alone && state.awaits_retry() {
            self.change(slot, leg, state);
        } else {
            self.unblock(slot, leg);
        }
    }

    fn queue_of_restored(&self, slot: Slot) -> Queue {
        let states = || self.tasks[slot].legs.iter().map(|leg| leg.state);
        if states().any(|state| matches!(state, State::Waiting { .. })) {
            Queue::Retry
        } else if states().any(|s| !matches!(s, State::Settled(_) | State::Parked { .. })) {
            Queue::Eventual
        } else {
            Queue::Outside
        }
    }

    /// An attempt that was asked for by [`Action::Send`] has ended.
    pub fn answered(&mut self, now: Now, delivery: Delivery, verdict: Verdict) {
        let Some(slot) = self.tasks.find(delivery.task) else {
            return;
        };
        let leg = delivery.replica.get();
        let in_flight = |leg: &Leg| matches!(leg.state, State::InFlight { .. });
        if !self.tasks[slot].legs.get(leg).is_some_and(in_flight) {
            return;
        }
        match verdict {
            Verdict::Delivered => {
                if let Some(quorum) = &mut self.tasks[slot].quorum {
                    quorum.ack(delivery.replica);
                }
                self.settle_head(slot, leg, Settlement::Delivered);
            }
            Verdict::Rejected { error } => {
                self.note_failure(now, slot, leg, error);
                self.settle_head(slot, leg, Settlement::Rejected);
            }
            Verdict::Retry { after, error } => {
                self.note_failure(now, slot, leg, error);
                self.fail(now, slot, leg, after);
            }
        }
        self.finish(now);
    }

    /// Does what is due at `now`.
    pub fn tick(&mut self, now: Now) {
        while let Some(&(until, slot, lane)) = self.timers.first() {
            if until > now.moment {
                break;
            }
            let leg = self.tasks[slot].leg_on(lane);
            self.make_ready(slot, leg);
        }
        while let Some(&(deadline, slot)) = self.deadlines.first() {
            if deadline > now.moment {
                break;
            }
            self.deadlines.remove(&(deadline, slot));
            self.touch(slot);
        }
        self.finish(now);
    }

    /// When [`Engine::tick`] is to be called next, unless something happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Moment> {
        let due = self.timers.first().map(|&(until, ..)| until);
        let deadline = self.deadlines.first().map(|&(until, _)| until);
        due.into_iter().chain(deadline).min()
    }

    /// From now on nothing is sent any more. What is on the wire goes on.
    pub fn stop_sending(&mut self) {
        self.stopped = true;
    }

    /// The next thing to do; all of them are to be done before the next call of anything else.
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// How full everything is.
    #[must_use]
    pub fn levels(&self) -> Levels {
        self.levels
    }

    /// The books of all replicas there have ever been, summed up.
    #[must_use]
    pub fn totals(&self) -> Books {
        self.totals
    }

    /// The replicas with a lane, in no particular order.
    pub fn lanes(&self) -> impl Iterator<Item = LaneView> {
        self.lanes.iter().map(|lane| LaneView {
            node: lane.node.clone(),
            books: lane.books,
            in_flight: u64::from(lane.in_flight) + u64::from(lane.express),
            waiting: lane.waiting,
            parked: lane.parked.len() as u64,
        })
    }
}
