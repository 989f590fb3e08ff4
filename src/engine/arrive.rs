//! Takes durable tasks into the engine: new ones, and those of a partition that was claimed.

use std::time::Duration;

use crate::engine::quorum::Quorum;
use crate::engine::table::{
    DeliveryFailures, DeliveryRef, Queue, Reservation, Settlement, Slot, State,
};
use crate::engine::{Arrived, Engine, Now, Origin, Since};
use crate::task::{Cause, DeadLetter, Progress, TaskId};

impl Engine {
    /// Takes on a task that is durable, in the order of the ids.
    ///
    /// It has its places in the chains of its key from now on, supersedes what a newer write makes
    /// pointless, and is sent. Since it is durable, nothing is ever sent or superseded that a crash
    /// could undo: a write that was sent and then lost would stay on some replicas, and an older one
    /// that is still on disk would be sent after it.
    pub fn arrive(&mut self, now: Now, task: Arrived<'_>, origin: Origin) {
        self.now = now;
        match origin {
            Origin::Written(reservation) => self.arrive_new(task, reservation),
            Origin::Recovered(progress) => self.recover(task, progress),
        }
        self.finish();
    }

    fn arrive_new(&mut self, task: Arrived<'_>, reservation: Option<Reservation>) {
        let number = reservation.as_ref().map_or(u64::MAX, |reservation| reservation.number);
        let (lanes, queue, since, quorum) = match reservation {
            Some(reservation) => {
                let Reservation { queue, bytes, lanes, made, .. } = reservation;
                self.free_places(queue, bytes, &lanes);
                let quorum = (queue == Queue::Strong).then(|| {
                    let replicas = u16::try_from(lanes.len()).unwrap_or(u16::MAX);
                    let deadline = made.after(self.settings.strong_timeout);
                    Box::new(Quorum::new(replicas, deadline))
                });
                let since = Since::aged(Duration::ZERO, self.now.moment);
                (lanes.into_vec(), queue, since, quorum)
            }
            // Its client waits elsewhere.
            None => {
                let Some(lanes) = self.lanes.open(task.replicas, usize::MAX) else { return };
                (lanes, Queue::Eventual, self.since_acceptance(&task), None)
            }
        };
        let slot = self.insert(&task, since, &lanes, quorum, false);
        self.enter_queue(slot, queue);
        for (index, &lane) in lanes.iter().enumerate() {
            let at = DeliveryRef { slot, index };
            self.join(at);
            // It was on its way to the disk when everything for the replica was thrown away.
            if number <= self.lanes[lane].forgotten_up_to {
                self.throw_away(at);
                continue;
            }
            self.lanes[lane].last_used = self.now.moment;
            self.lanes[lane].forgotten = false;
            self.unblock(at);
        }
        // A strong write may be out of reach.
        self.touch(slot);
    }

    /// Takes on a task of a partition that was claimed.
    ///
    /// What waited for a retry when the process ended is due within one `retry_base`, spread over it
    /// so that a replica does not get all of it in one moment; beyond a replica's share of the retry
    /// queue, and while it is paused, it is parked. The other capacities do not hold here: they may
    /// have been lowered, and nothing on disk is given up for that.
    fn recover(&mut self, task: Arrived<'_>, progress: Vec<Progress>) {
        self.restored_at = self.now.moment;
        // It may be older than tasks that are counted already.
        self.barriers.clear();
        let Some(lanes) = self.lanes.open(task.replicas, usize::MAX) else { return };
        let slot = self.insert(&task, self.since_acceptance(&task), &lanes, None, true);
        for (index, progress) in progress.into_iter().enumerate().take(lanes.len()) {
            self.restore_delivery(DeliveryRef { slot, index }, progress);
        }
        self.enter_queue(slot, self.queue_of_restored(slot));
        let states = || self.tasks[slot].deliveries.iter().map(|delivery| delivery.state);
        if states().all(|state| matches!(state, State::Settled(_))) {
            self.touch(slot);
        } else if states().all(State::rests) {
            self.charge_as_dead(slot);
        }
    }

    /// The age of a task, from the wall clock alone.
    fn since_acceptance(&self, task: &Arrived<'_>) -> Since {
        let age = self.uptime.age_at_start(self.now.wall, task.accepted_at);
        Since::aged(age, self.now.moment)
    }

    fn restore_delivery(&mut self, at: DeliveryRef, progress: Progress) {
        let until = self.now.moment.after(self.settings.retry_base.mul_f64(self.rng.f64()));
        // Which older write it may have superseded is not on disk. So it stands for every older one.
        let stands_for =
            matches!(progress, Progress::Failed { .. } | Progress::Dead(_)).then_some(TaskId(0));
        let (state, failures, error, since) = match progress {
            Progress::Failed { failures: 0, .. } => (State::Blocked, 0, None, self.now.wall),
            Progress::Untouched => (State::Blocked, 0, None, self.now.wall),
            Progress::Failed { failures, error } => {
                (State::Waiting { until }, failures, Some(error), self.now.wall)
            }
            Progress::Delivered => {
                self.supersede_letter(at);
                return self.settled_before(at, Settlement::Delivered);
            }
            Progress::Superseded => {
                return self.settled_before(at, Settlement::Superseded);
            }
            Progress::Ambiguous { .. } => return self.restore_ambiguous(at),
            Progress::Resend => {
                let until = self.now.moment.after(self.settings.settle_after);
                (State::Resend { until }, 0, None, self.now.wall)
            }
            Progress::Dead(DeadLetter { cause, failures, error, since }) => {
                let state = match cause {
                    Cause::Rejected | Cause::GaveUp => State::Dead { cause, until },
                    Cause::RetryOverflow => State::Parked { until },
                };
                (state, failures, Some(error), since)
            }
        };
        self.tasks[at].failures =
            error.map(|error| Box::new(DeliveryFailures::new(failures, error, since)));
        if self.tasks[at].failures.is_some() {
            // It may have been on the wire when the process ended.
            self.note_ambiguous(at, self.now.wall);
        }
        if stands_for.is_some() {
            let new = || Box::new(DeliveryFailures::new(0, "".into(), self.now.wall));
            self.tasks[at].failures.get_or_insert_with(new).stands_for = stands_for;
        }
        if let State::Dead { cause, .. } = state {
            return self.restore_letter(at, cause);
        }
        let alone = self.join(at);
        // Behind an older write it keeps its failures and waits for its turn instead.
        match state {
            State::Waiting { until } if alone => {
                if !self.await_retry(at, until) {
                    self.touch(at.slot);
                }
            }
            _ if alone && state.awaits_retry() => self.change(at, state),
            _ => self.unblock(at),
        }
    }

    fn queue_of_restored(&self, slot: Slot) -> Queue {
        let states = || self.tasks[slot].deliveries.iter().map(|delivery| delivery.state);
        if states().any(State::holds_queue) { Queue::Eventual } else { Queue::Outside }
    }
}
