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
//! - **Isolation.** A replica has a lane of its own with `workers` places, and a share of each
//!   queue. What failed leaves the eventual queue, and what the retry queue has no place for is
//!   parked, outside of both. A breaker keeps deliveries from a replica that does not answer.
//! - **Bounds.** Both queues, the bytes and the number of known replicas have a limit each;
//!   [`Engine::reserve`] refuses what goes beyond, in words.
//! - **Balance.** Every delivery taken on is counted under one outcome in its replica's [`Counters`].
//!
//! It deliberately does not know values, keys or addresses as text beyond the name of a lane, nor
//! time to live: an expired write is a delivery as any other, and the command that is sent for it
//! is decided when it is sent.
//!
//! Start with `interface.rs`, which has what goes in and what comes out, then `reserve.rs`, `arrive.rs` and `transitions.rs`, where a delivery goes from state to state.

#![expect(
    clippy::indexing_slicing,
    reason = "an index is a slot, a lane or a delivery that the engine itself has given out"
)]

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::task::{AttemptOutcome, Cause, DeliveryId, Node, TaskId, Timestamp, Uptime, Verdict};

mod admin;
mod ambiguous;
mod arrive;
mod barrier;
mod breaker;
mod concurrency;
mod counters;
mod dead_letters;
mod failures;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod interface;
mod key;
mod lane;
#[cfg(any(test, feature = "fuzzing"))]
mod model;
mod places;
mod quorum;
mod release;
mod reserve;
mod retry;
mod share;
mod strong;
mod table;
#[cfg(test)]
mod tests;
mod transitions;
mod view;

pub use crate::task::{Moment, Now, Since};
pub use barrier::{BarrierLane, BarrierView};
pub use breaker::BreakerState;
pub use concurrency::Workers;
pub use counters::Counters;
pub use interface::{
    Action, AdminOutcome, Arrived, Change, DeliveryState, DeliveryView, Forgotten, Found, Full,
    LaneView, LetterView, Levels, Origin, Probed, RenameError, Settings, TASK_OVERHEAD_BYTES,
    TaskView, Wanted,
};
pub use key::{KeyHasher, KeyId};
#[cfg(test)]
pub(crate) use model::settings;
pub use share::SharedPool;
pub use table::Reservation;

use barrier::Watches;
use breaker::Ended;
use counters::Attempt;
use lane::Lanes;
use retry::Schedule;
use table::{DeliveryRef, Priority, Settlement, Slot, State, Tasks};

/// Nothing is kept free for other replicas where none has had a write for so long.
const OTHERS_IDLE: Duration = Duration::from_secs(60);

/// Timers of one kind that a call serves at the most. The rest comes with the next, which is due
/// at once: 100,000 dead letters may expire in the same moment.
const MOST_DUE: usize = 4096;

/// The state machine.
#[derive(Debug)]
pub struct Engine {
    settings: Settings,
    schedule: Schedule,
    rng: fastrand::Rng,
    tasks: Tasks,
    lanes: Lanes,
    /// How many reservations were made.
    reservations: u64,
    /// The moment of the call.
    now: Now,
    /// Waiting deliveries and dead letters by the moment they are due: task, lane.
    timers: BTreeSet<(Moment, Slot, u32)>,
    /// Open strong writes by the moment they are answered at the latest.
    deadlines: BTreeSet<(Moment, Slot)>,
    /// Lanes by the moment at which they are looked at.
    wakeups: BTreeSet<(Moment, u32)>,
    /// When the last task was found on disk.
    restored_at: Moment,
    /// Attempts that may still be applied, by the moment from which on they are not: task, lane.
    ambiguous: BTreeSet<(Moment, TaskId, u32)>,
    /// Lanes to be looked at before the call ends.
    dirty: VecDeque<u32>,
    /// Lanes with parked deliveries; they take turns when the retry queue has room.
    parked_lanes: BTreeSet<u32>,
    /// The one whose turn it was last.
    parked_turn: u32,
    /// A parked delivery may get a place in the retry queue that had none before.
    refill: bool,
    levels: Levels,
    /// Sums over all lanes there have ever been.
    totals: Counters,
    /// Tasks whose progress changed in this call.
    touched: Vec<Slot>,
    actions: VecDeque<Action>,
    stopped: bool,
    /// Someone wants to hear of every change.
    watched: bool,
    /// Someone may ask for tasks that are over.
    ends_told: bool,
    barriers: Watches,
    /// Attempts on the wire whose tasks were released meanwhile.
    released: HashMap<DeliveryId, u32>,
    uptime: Uptime,
    /// Steps along chains and over tasks, which tests count.
    #[cfg(test)]
    steps: u64,
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
            reservations: 0,
            now: Now { moment: Moment(0), wall: Timestamp(0) },
            timers: BTreeSet::new(),
            deadlines: BTreeSet::new(),
            wakeups: BTreeSet::new(),
            restored_at: Moment(0),
            ambiguous: BTreeSet::new(),
            dirty: VecDeque::new(),
            parked_lanes: BTreeSet::new(),
            parked_turn: u32::MAX,
            refill: false,
            levels: Levels::default(),
            totals: Counters::default(),
            touched: Vec::new(),
            actions: VecDeque::new(),
            stopped: false,
            watched: false,
            ends_told: false,
            barriers: Watches::default(),
            released: HashMap::new(),
            uptime: Uptime::default(),
            #[cfg(test)]
            steps: 0,
        }
    }

    /// Counts a step of a walk, for tests.
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "it does nothing"))]
    fn step(&mut self) {
        #[cfg(test)]
        {
            self.steps += 1;
        }
    }

    /// By this the age of what is kept is told from now on.
    pub fn set_uptime(&mut self, uptime: Uptime) {
        self.uptime = uptime;
    }

    /// An attempt that was asked for by [`Action::Send`] has ended.
    pub fn answered(&mut self, now: Now, delivery: DeliveryId, outcome: AttemptOutcome) {
        let AttemptOutcome { verdict, ambiguous, took } = outcome;
        self.now = now;
        if self.is_of_released(delivery, ambiguous) {
            return;
        }
        let Some(slot) = self.tasks.find(delivery.task) else {
            return;
        };
        let at = DeliveryRef { slot, index: delivery.replica.get() };
        let state = self.tasks.get(at).map(|delivery| delivery.state);
        let Some(State::InFlight { priority, probe, discard }) = state else {
            return;
        };
        self.judge_letter(at, &verdict);
        let letter = self.tasks[at].is_redriven();
        let ended = Ended { sent_at: now.moment.before(took), probe, letter };
        // What nobody wants any more, perhaps as the replica is gone, opens no breaker.
        if !discard || probe || !matches!(verdict, Verdict::Retry { .. }) {
            self.judge_replica(self.tasks[at].lane, ended, &verdict, took);
        }
        if ambiguous {
            self.note_ambiguous(at, now.wall);
        }
        match verdict {
            Verdict::Delivered => {
                if let Some(quorum) = &mut self.tasks[slot].quorum {
                    quorum.ack(delivery.replica);
                }
                self.delivered(at);
            }
            Verdict::Rejected { error } => {
                self.note_failure(at, error, Attempt::Sent);
                match priority {
                    _ if discard => self.settle_head(at, Settlement::Discarded),
                    // It has had it before; to send it again and again would change nothing.
                    Priority::Resend => self.settle_head(at, Settlement::Delivered),
                    _ => self.bury_head(at, Cause::Rejected),
                }
            }
            Verdict::Shortage { error } => {
                self.note_error(at, error, Attempt::Unsent);
                match priority {
                    _ if discard => self.settle_head(at, Settlement::Discarded),
                    Priority::Resend => self.resend_failed(at),
                    _ => self.put_off(at),
                }
            }
            Verdict::Retry { after, error } => {
                self.note_failure(at, error, Attempt::Sent);
                match priority {
                    _ if discard => self.settle_head(at, Settlement::Discarded),
                    Priority::Resend => self.resend_failed(at),
                    _ => self.fail(at, after),
                }
            }
        }
        self.finish();
    }

    /// What an answer says of the replica, whatever it says of the write.
    fn judge_replica(&mut self, number: u32, ended: Ended, verdict: &Verdict, took: Duration) {
        let lane = &mut self.lanes[number];
        let failed = matches!(verdict, Verdict::Retry { .. });
        if let Verdict::Retry { error, .. }
        | Verdict::Shortage { error }
        | Verdict::Rejected { error } = verdict
        {
            lane.last_error = Some((Arc::clone(error), self.now.wall));
        }
        if let Verdict::Shortage { .. } = verdict {
            if ended.probe {
                lane.breaker.not_probed(self.now.moment, self.rng.f64());
                self.mark_dirty(number);
            }
            return;
        }
        let (workers, in_flight) = (self.settings.workers, lane.in_flight);
        lane.concurrency.answered(self.now.moment, workers, took, failed, in_flight);
        match verdict {
            Verdict::Delivered | Verdict::Rejected { .. } => {
                let before = lane.breaker.view();
                let most = lane.concurrency.limit(workers);
                let back = lane.breaker.succeeded(self.now.moment, ended, most);
                if lane.breaker.view() != before {
                    lane.breaker_since = Some(self.now.wall);
                }
                if back {
                    self.actions
                        .push_back(Action::Breaker { node: lane.node.clone(), error: None });
                    self.hand_off(number);
                }
            }
            Verdict::Retry { error, .. } if self.settings.breaker_failures > 0 => {
                let (moment, threshold) = (self.now.moment, self.settings.breaker_failures);
                if lane.breaker.failed(moment, ended, threshold, self.rng.f64()) {
                    self.breaker_opened(number, error);
                }
                self.mark_dirty(number);
            }
            Verdict::Retry { .. } | Verdict::Shortage { .. } => {}
        }
    }

    /// Nothing but probes goes to a replica from now on.
    fn breaker_opened(&mut self, number: u32, error: &Arc<str>) {
        let lane = &mut self.lanes[number];
        if let Some(round) = lane.redrive.take() {
            lane.broken_off = round.after;
        }
        lane.breaker_since = Some(self.now.wall);
        lane.shut_error = format!("not sent, as attempts before it failed: {error}").into();
        let (node, error) = (lane.node.clone(), Some(Arc::clone(error)));
        self.actions.push_back(Action::Breaker { node, error });
        // Even if nothing comes up any more that could be the probe.
        self.schedule_wakeup(number, self.now.moment);
    }

    /// Does what is due at `now`, or as much of it as one call may: then [`Engine::wake_at`] is not
    /// later.
    pub fn tick(&mut self, now: Now) {
        self.now = now;
        for _ in 0..MOST_DUE {
            let Some(&(until, slot, lane)) = self.timers.first() else { break };
            if until > now.moment {
                break;
            }
            let at = self.tasks.delivery_on(slot, lane);
            match self.tasks[at].state {
                State::Dead { .. } => self.discard(at),
                // From there it comes back as any other.
                State::Deferred { until } => self.change(at, State::Parked { until }),
                _ => self.make_ready(at),
            }
        }
        while let Some(&(deadline, slot)) = self.deadlines.first() {
            if deadline > now.moment {
                break;
            }
            self.deadlines.remove(&(deadline, slot));
            self.touch(slot);
        }
        self.forget_ambiguous();
        self.count_on();
        // Each lane once: one that is due at once again is looked at with the next call.
        let mut due = Vec::new();
        while let Some(&(at, lane)) = self.wakeups.first().filter(|&&(at, _)| at <= now.moment) {
            self.wakeups.remove(&(at, lane));
            due.push((at, lane));
        }
        due.into_iter().for_each(|(at, lane)| self.on_wakeup(at, lane));
        self.finish();
    }

    /// When [`Engine::tick`] is to be called next, unless something happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Moment> {
        let due = self.timers.first().map(|&(until, ..)| until);
        let deadline = self.deadlines.first().map(|&(until, _)| until);
        let wakeup = self.wakeups.first().map(|&(at, _)| at);
        let ambiguous = self.ambiguous.first().map(|&(until, ..)| until);
        let counting = self.barriers.is_counting().then_some(self.now.moment);
        [due, deadline, wakeup, ambiguous, counting]
            .into_iter()
            .flatten()
            .min()
            .filter(|&at| at != Moment(u64::MAX))
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

    /// The counters of all replicas there have ever been, summed up.
    #[must_use]
    pub fn totals(&self) -> Counters {
        self.totals
    }

    /// Why the last failed attempt to a replica failed.
    #[must_use]
    pub fn last_error(&self, node: &Node) -> Option<Arc<str>> {
        let (error, _) = self.lanes[self.lanes.find(node)?].last_error.as_ref()?;
        Some(Arc::clone(error))
    }

    /// The replicas with a lane, in no particular order. One that was forgotten is none of them
    /// once nothing is left of it, until a write names it again.
    pub fn lanes(&self) -> impl Iterator<Item = LaneView> {
        let lanes = self.lanes.iter().filter(|lane| !lane.is_gone());
        lanes.map(|lane| (lane, self.oldest(lane).unzip())).map(|(lane, oldest)| LaneView {
            node: lane.node.clone(),
            counters: lane.counters,
            in_flight: u64::from(lane.in_flight) + u64::from(lane.express),
            waiting: lane.waiting.len() as u64,
            parked: lane.parked.len() as u64 + lane.deferred,
            pending_bytes: lane.backlog.bytes,
            oldest: oldest.0,
            oldest_since: oldest.1,
            paused: lane.paused,
            last_error: lane.last_error.clone(),
            breaker_since: lane.breaker_since,
            next_probe: lane.breaker.probe_at(),
            dead_letter_bytes: lane.dead_letter_bytes,
            breaker: lane.breaker.view(),
            workers: lane.concurrency.limit(self.settings.workers),
        })
    }
}
