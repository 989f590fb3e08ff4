//! The delivery state machine: order, retry, capacity and isolation. Pure.
//!
//! The engine has no clock, socket, disk or async. Every call takes [`Now`];
//! [`Engine::next_action`] returns the effects. So its rules are tested by function calls.
//!
//! It guarantees:
//!
//! - **Order.** The deliveries of one key to one replica form a chain, oldest first. Only the head
//!   may be in flight. A newer write supersedes one that waits for a retry.
//! - **Isolation.** Each replica has its own lane, worker limit and queue share. A delivery without
//!   a retry place is parked. A breaker stops deliveries to a replica that fails.
//! - **Bounds.** Queues, bytes and known replicas are limited by [`Engine::reserve`].
//! - **Durability.** Only durable writes are sent, and strong writes that no older write of the key
//!   can follow after a crash.
//! - **Balance.** Each delivery is counted under exactly one outcome in [`Counters`].
//!
//! It does not know values, keys, addresses or TTLs. Whether an expired SET becomes a DELETE is
//! decided when it is sent. Read `interface.rs` first, then `reserve.rs`, `arrive.rs` and
//! `transitions.rs`.

#![expect(
    clippy::indexing_slicing,
    reason = "an index is a slot, a lane or a delivery that the engine itself has given out"
)]

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use crate::task::{
    AttemptOutcome, Cause, Client, Counters, DeliveryId, Node, Partition, Quota, TaskId, Timestamp,
    Uptime, Verdict,
};

mod admin;
mod ambiguous;
mod arrive;
mod barrier;
mod breaker;
mod claims;
mod concurrency;
mod counters;
mod dead_letters;
mod dispatch;
mod early;
mod failures;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod headroom;
mod interface;
mod key;
mod lane;
#[cfg(any(test, feature = "fuzzing"))]
mod model;
mod places;
mod quorum;
mod reconfigure;
mod refused;
mod release;
mod reserve;
mod retry;
mod strong;
mod table;
#[cfg(test)]
mod tests;
mod transitions;
mod view;

pub use crate::task::{Moment, Now, Since};
#[cfg(test)]
use barrier::BarrierLane;
pub use barrier::{BarrierEnd, BarrierView};
pub use concurrency::Workers;
pub use early::ClearReservation;
pub use headroom::{Headroom, Inflow};
pub use interface::{
    AdminOutcome, Arrived, Claimant, DeliveryFilter, DeliveryView, EndedSend, EngineAction,
    EngineSettings, ForgetCounts, Full, KeyStanding, LaneView, LetterView, Levels, Origin,
    ProbeState, RedriveOutcome, RenameError, SearchPage, SharedLimit, TASK_OVERHEAD_BYTES,
    TaskView,
};
pub use key::{KeyHasher, KeyId};
#[cfg(test)]
pub(crate) use model::settings;
pub use table::Reservation;

use barrier::BarrierCounts;
use breaker::EndedAttempt;
use claims::Claims;
use counters::Attempt;
use early::Settlements;
use lane::Lanes;
use retry::Schedule;
use table::{DeliveryRef, Priority, SettledAs, Slot, Stage, Tasks};

/// Maximum timers of one kind per call, because 100,000 dead letters may expire at once. The rest
/// is due in the next call.
const MOST_DUE: usize = 4096;

#[derive(Debug)]
pub struct Engine {
    settings: EngineSettings,
    /// The processes that share the rates.
    processes: NonZeroU32,
    schedule: Schedule,
    rng: fastrand::Rng,
    tasks: Tasks,
    lanes: Lanes,
    reservations: u64,
    now: Now,
    /// Due times of waiting deliveries and expiry times of dead letters: task, lane.
    timers: BTreeSet<(Moment, Slot, u32)>,
    /// Answer deadlines of open strong writes.
    deadlines: BTreeSet<(Moment, Slot)>,
    wakeups: BTreeSet<(Moment, u32)>,
    /// When the last task was recovered from disk.
    restored_at: Moment,
    /// When ambiguous attempts stop being ambiguous: task, lane.
    ambiguous: BTreeSet<(Moment, TaskId, u32)>,
    /// Until when strong writes that a crash lost may still be applied.
    unrecorded_until: Moment,
    /// Reserved writes by key.
    coming: HashMap<KeyId, u32>,
    settlements: Settlements,
    /// Lanes to dispatch before the call ends.
    dirty: VecDeque<u32>,
    /// Lanes with parked deliveries. They take turns when the retry queue has room.
    parked_lanes: BTreeSet<u32>,
    parked_turn: u32,
    /// A parked delivery may now find a place in the retry queue.
    refill: bool,
    levels: Levels,
    claims: Claims,
    quotas: HashMap<Client, Quota>,
    /// When a write was last refused because it named a new replica.
    replica_refused: Option<Moment>,
    /// Includes removed lanes.
    totals: Counters,
    /// Tasks whose progress changed in this call.
    touched: Vec<Slot>,
    actions: VecDeque<EngineAction>,
    stopped: bool,
    watched: bool,
    reports_ends: bool,
    barriers: BarrierCounts,
    /// Attempts in flight whose tasks were released.
    released: HashMap<DeliveryId, u32>,
    /// Partitions whose deliveries are not started any more, and how many of their attempts are in flight.
    held: HashMap<Partition, u64>,
    uptime: Uptime,
    /// Steps along chains and over tasks; tests bound them.
    #[cfg(test)]
    steps: u64,
}

impl Engine {
    pub fn new(settings: EngineSettings) -> Self {
        Self {
            schedule: Schedule { max_retries: settings.max_retries, base: settings.retry_base },
            rng: fastrand::Rng::with_seed(settings.seed),
            processes: NonZeroU32::MIN,
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
            unrecorded_until: Moment(0),
            coming: HashMap::new(),
            settlements: Settlements::default(),
            dirty: VecDeque::new(),
            parked_lanes: BTreeSet::new(),
            parked_turn: u32::MAX,
            refill: false,
            levels: Levels::default(),
            claims: Claims::default(),
            quotas: HashMap::new(),
            replica_refused: None,
            totals: Counters::default(),
            touched: Vec::new(),
            actions: VecDeque::new(),
            stopped: false,
            watched: false,
            reports_ends: false,
            barriers: BarrierCounts::default(),
            released: HashMap::new(),
            held: HashMap::new(),
            uptime: Uptime::default(),
            #[cfg(test)]
            steps: 0,
        }
    }

    /// The counters of a lane and the totals, which change together.
    fn counters(&mut self, lane: u32) -> [&mut Counters; 2] {
        [&mut self.lanes[lane].counters, &mut self.totals]
    }

    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "it does nothing"))]
    fn step(&mut self) {
        #[cfg(test)]
        {
            self.steps += 1;
        }
    }

    pub fn set_uptime(&mut self, uptime: Uptime) {
        self.uptime = uptime;
    }

    /// Handles the outcome of an [`EngineAction::Send`].
    pub fn answered(&mut self, now: Now, delivery: DeliveryId, outcome: AttemptOutcome) {
        let AttemptOutcome { mut verdict, ambiguous, took } = outcome;
        self.now = now;
        if self.is_of_released(delivery, ambiguous) {
            return;
        }
        let Some(slot) = self.tasks.find(delivery.task) else {
            return;
        };
        let at = DeliveryRef { slot, index: delivery.replica.get() };
        let stage = self.tasks.get(at).map(|delivery| delivery.stage);
        let Some(Stage::InFlight { priority, probe, discard }) = stage else {
            return;
        };
        if let Some(in_flight) = self.held.get_mut(&self.tasks[slot].partition) {
            *in_flight -= 1;
        }
        self.share_error(at, &mut verdict);
        self.note_attempt(at, &verdict, took);
        self.count_lone_failure(at, &verdict);
        let letter = self.tasks[at].is_redriven();
        let client = self.claims.client_id(self.tasks[slot].client);
        let ended = EndedAttempt { sent_at: now.moment.before(took), probe, letter, client };
        // A retry verdict of a discarded delivery must not open the breaker: the replica may be
        // gone.
        if !discard || probe || !matches!(verdict, Verdict::Retry { .. }) {
            self.record_replica_health(self.tasks[at].lane, ended, &verdict, took);
        }
        if ambiguous {
            self.note_ambiguous(at, now.wall);
        }
        match verdict {
            Verdict::Delivered => {
                if let Some(quorum) = &mut self.tasks[slot].quorum {
                    quorum.ack(delivery.replica);
                }
                self.note_acceptance(at, ended.sent_at);
                self.delivered(at);
            }
            Verdict::Rejected { error } => {
                self.note_failure(at, error, Attempt::Sent);
                match priority {
                    _ if discard => self.settle_head(at, SettledAs::Discarded),
                    // The replica already acknowledged it; sending it again would change nothing.
                    Priority::Resend => self.settle_head(at, SettledAs::Delivered),
                    _ => self.bury_head(at, Cause::Rejected),
                }
            }
            Verdict::Refused { error } => {
                self.note_failure(at, error, Attempt::Sent);
                self.note_refusal(at);
                match priority {
                    _ if discard => self.settle_head(at, SettledAs::Discarded),
                    Priority::Resend => self.resend_failed(at),
                    _ if self.tasks[at].letter_cause() == Some(Cause::Refused) => {
                        self.return_to_dead(at);
                    }
                    _ => self.bury_head(at, Cause::Refused),
                }
            }
            Verdict::Shortage { error } => {
                self.note_error(at, error, Attempt::Unsent);
                match priority {
                    _ if discard => self.settle_head(at, SettledAs::Discarded),
                    Priority::Resend => self.resend_failed(at),
                    _ => self.retry_unsent(at),
                }
            }
            Verdict::Retry { after, error } => {
                self.note_failure(at, error, Attempt::Sent);
                match priority {
                    _ if discard => self.settle_head(at, SettledAs::Discarded),
                    Priority::Resend => self.resend_failed(at),
                    _ => self.fail(at, after),
                }
            }
        }
        self.finish();
    }

    /// Feeds an outcome to the lane's breaker and concurrency limit.
    fn record_replica_health(
        &mut self,
        number: u32,
        ended: EndedAttempt,
        verdict: &Verdict,
        took: Duration,
    ) {
        let lane = &mut self.lanes[number];
        let failed = matches!(verdict, Verdict::Retry { .. });
        if let Some(error) = verdict.error() {
            lane.health.note_error(self.now, error);
        }
        if let Verdict::Shortage { .. } = verdict {
            if ended.probe {
                lane.health.probe_unsent(self.now, self.rng.f64());
                self.mark_dirty(number);
            }
            return;
        }
        let workers = self.settings.workers.limited(lane.set_limits().workers);
        let in_flight = lane.in_flight.workers();
        lane.health.attempt_ended(self.now, workers, took, failed, in_flight);
        match verdict {
            Verdict::Delivered | Verdict::Rejected { .. } | Verdict::Refused { .. } => {
                if lane.health.succeeded(self.now, ended, workers) {
                    let node = lane.node.clone();
                    self.actions.push_back(EngineAction::Breaker { node, error: None });
                    self.start_handoff(number);
                }
            }
            Verdict::Retry { error, .. } if self.settings.breaker_failures > 0 => {
                let (threshold, jitter) = (self.settings.breaker_failures, self.rng.f64());
                if lane.health.failed(self.now, ended, threshold, jitter, error) {
                    self.breaker_opened(number, error);
                }
                self.mark_dirty(number);
            }
            Verdict::Retry { .. } | Verdict::Shortage { .. } => {}
        }
    }

    fn breaker_opened(&mut self, number: u32, error: &Arc<str>) {
        let lane = &mut self.lanes[number];
        lane.letters.interrupt_redrive();
        let (node, error) = (lane.node.clone(), Some(Arc::clone(error)));
        self.actions.push_back(EngineAction::Breaker { node, error });
        // The wakeup makes a dead letter the probe if no other delivery is due.
        self.schedule_wakeup(number, self.now.moment);
    }

    /// Does the work that is due at `now`, up to a limit per call. If work is left,
    /// [`Engine::wake_at`] is still due.
    pub fn tick(&mut self, now: Now) {
        self.now = now;
        for _ in 0..MOST_DUE {
            let Some(&(until, slot, lane)) = self.timers.first() else { break };
            if until > now.moment {
                break;
            }
            let at = self.tasks.delivery_on(slot, lane);
            match self.tasks[at].stage {
                Stage::Dead { .. } => self.expire(at),
                Stage::Deferred { until } => self.change(at, Stage::Parked { until }),
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
        self.continue_count();
        // Each lane once per call, even if it schedules another wakeup for now.
        let mut due = Vec::new();
        while let Some(&(at, lane)) = self.wakeups.first().filter(|&&(at, _)| at <= now.moment) {
            self.wakeups.remove(&(at, lane));
            due.push((at, lane));
        }
        due.into_iter().for_each(|(at, lane)| self.on_wakeup(at, lane));
        self.finish();
    }

    /// When the next [`Engine::tick`] is due.
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

    /// Starts no more deliveries. Attempts in flight continue.
    pub fn stop_sending(&mut self) {
        self.stopped = true;
    }

    /// All actions must be carried out before the next other call.
    pub fn next_action(&mut self) -> Option<EngineAction> {
        self.actions.pop_front()
    }

    /// Divides the rates by the processes that send.
    pub fn share_rates(&mut self, processes: NonZeroU32) {
        self.processes = processes;
    }

    pub fn strong_timeout(&self) -> Duration {
        self.settings.strong_timeout
    }

    pub fn levels(&self) -> Levels {
        self.levels
    }

    /// Whether 90 % of the eventual queue is used, in tasks or bytes.
    pub fn is_nearly_full(&self) -> bool {
        let nearly = |used: u128, most: u128| used * 10 >= most * 9;
        nearly(self.levels.queue as u128, self.settings.queue_capacity as u128)
            || nearly(self.levels.bytes.into(), self.settings.max_bytes.into())
    }

    pub fn totals(&self) -> Counters {
        self.totals
    }

    pub fn last_error(&self, node: &Node) -> Option<Arc<str>> {
        let (error, _) = self.lanes[self.lanes.find(node)?].health.last_error()?;
        Some(Arc::clone(error))
    }

    /// The replicas with a lane, in no particular order. A forgotten replica is left out once
    /// nothing is left of it, until a write names it again.
    pub fn lanes(&self) -> impl Iterator<Item = LaneView> {
        let lanes = self.lanes.iter().filter(|lane| !lane.is_gone());
        lanes.map(|lane| (lane, self.oldest(lane).unzip())).map(|(lane, oldest)| LaneView {
            node: lane.node.clone(),
            counters: lane.counters,
            in_flight: u64::from(lane.in_flight.total()),
            waiting: lane.heads.waiting() as u64,
            parked: (lane.heads.parked() + lane.heads.deferred()) as u64,
            pending_bytes: lane.backlog.bytes(),
            accepted_bytes: lane.backlog.accepted_bytes(),
            oldest: oldest.0,
            oldest_since: oldest.1,
            paused: lane.paused.map(|paused| paused.pause),
            last_error: lane.health.last_error().cloned(),
            breaker_since: lane.health.since(),
            next_probe: lane.health.breaker().probe_at(),
            dead_letter_bytes: lane.letters.bytes(),
            refused_letters: lane.letters.refused() as u64,
            breaker: lane.health.breaker().view(),
            workers: lane.workers(self.settings.workers),
            limits: lane.set_limits(),
        })
    }
}
