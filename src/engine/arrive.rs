//! Takes tasks into the engine: new ones and those of a claimed partition. They are durable, except
//! early ones (`early.rs`).

use std::time::Duration;

use crate::engine::early::ClearReservation;
use crate::engine::quorum::Quorum;
use crate::engine::table::{
    DeliveryFailures, DeliveryRef, Reservation, SettledAs, Slot, Stage, TaskQueue,
};
use crate::engine::{Arrived, Engine, Now, Origin, Since};
use crate::task::{Cause, DeadLetter, Progress, ReplicaIndex, TaskId};

impl Engine {
    /// Adds a task. The durable tasks of a partition arrive in the order of their ids.
    ///
    /// The task joins the chains of its key, supersedes older writes and is sent. Nothing is
    /// superseded for a task that a crash could undo, and nothing is sent for it if an older write of
    /// the key could be sent after the crash.
    pub fn arrive(&mut self, now: Now, task: Arrived<'_>, origin: Origin) {
        self.now = now;
        match origin {
            Origin::Written(reservation) => {
                let quorum = None;
                self.arrive_new(task, reservation, quorum, true);
            }
            Origin::Awaited => {
                let quorum = self.quorum_of(&task);
                self.arrive_new(task, None, quorum, true);
            }
            Origin::Early(ClearReservation(reservation)) => {
                self.arrive_new(task, Some(reservation), None, false);
            }
            Origin::Recovered(progress) => self.recover(task, progress, None),
            Origin::RecoveredAwaited(progress) => {
                let quorum = self.quorum_of(&task);
                self.recover(task, progress, quorum);
            }
        }
        self.finish();
    }

    /// For the client that waits for it in another process; `None` if it does not wait any more.
    fn quorum_of(&self, task: &Arrived<'_>) -> Option<Box<Quorum>> {
        let age = self.now.wall.saturating_since(task.accepted_at);
        let left = self.settings.strong_timeout.saturating_sub(age);
        let replicas = u16::try_from(task.replicas.len()).unwrap_or(u16::MAX);
        let deadline = self.now.moment.after(left);
        (!left.is_zero()).then(|| Box::new(Quorum::new(replicas, deadline)))
    }

    fn arrive_new(
        &mut self,
        task: Arrived<'_>,
        reservation: Option<Reservation>,
        awaited: Option<Box<Quorum>>,
        durable: bool,
    ) {
        let number = reservation.as_ref().map_or(u64::MAX, |reservation| reservation.number);
        let (lanes, queue, since, quorum) = match reservation {
            Some(reservation) => {
                let Reservation { queue, made, .. } = reservation;
                let lanes = self.release_places(reservation);
                let quorum = (queue == TaskQueue::Strong).then(|| {
                    let replicas = u16::try_from(lanes.len()).unwrap_or(u16::MAX);
                    let deadline = made.after(self.settings.strong_timeout);
                    Box::new(Quorum::new(replicas, deadline))
                });
                let since = Since::aged(Duration::ZERO, self.now.moment);
                (lanes.into_vec(), queue, since, quorum)
            }
            // Accepted by another process; its client waits there.
            None => {
                let lanes = self.lanes_of(&task);
                let queue = match &awaited {
                    Some(_) => TaskQueue::Strong,
                    None => TaskQueue::Eventual,
                };
                (lanes, queue, self.since_acceptance(&task), awaited)
            }
        };
        let slot = self.insert(&task, since, &lanes, quorum, false);
        self.tasks[slot].durable = durable;
        self.enter_queue(slot, queue);
        for (index, &lane) in lanes.iter().enumerate() {
            let at = DeliveryRef { slot, index };
            self.join(at);
            // Everything for the replica was discarded while the task was made durable.
            if self.lanes[lane].forget.covers(number) {
                self.discard(at);
                continue;
            }
            self.lanes[lane].last_used = self.now.moment;
            self.lanes[lane].forget.used_again();
            self.lanes[lane].recorded |= durable;
            self.unblock(at);
        }
        // The majority of a strong write may be out of reach.
        self.touch(slot);
    }

    /// Adds a task of a claimed partition.
    ///
    /// Its retries are due within one `retry_base`, at random, so that a replica does not get all
    /// of them at once; those beyond the replica's share or for a paused replica are parked. Other
    /// capacities do not apply: they may have been lowered, and nothing on disk is given up for it.
    fn recover(
        &mut self,
        task: Arrived<'_>,
        progress: Vec<Progress>,
        mut quorum: Option<Box<Quorum>>,
    ) {
        self.restored_at = self.now.moment;
        // The task may be older than tasks that are counted.
        self.barriers.clear();
        let lanes = self.lanes_of(&task);
        lanes.iter().for_each(|&lane| self.lanes[lane].recorded = true);
        for (replica, progress) in (0..).map(ReplicaIndex).zip(&progress) {
            let Some(quorum) = &mut quorum else { break };
            match progress {
                Progress::Delivered | Progress::Resend => quorum.ack(replica),
                Progress::Superseded | Progress::Dead(_) | Progress::Ambiguous { .. } => {
                    quorum.fail(replica);
                }
                Progress::Untouched | Progress::Failed { .. } => {}
            }
        }
        let is_awaited = quorum.is_some();
        let slot = self.insert(&task, self.since_acceptance(&task), &lanes, quorum, true);
        for (index, progress) in progress.into_iter().enumerate().take(lanes.len()) {
            self.restore_delivery(DeliveryRef { slot, index }, progress);
        }
        if is_awaited {
            self.enter_queue(slot, TaskQueue::Strong);
            // Its majority may be known.
            self.touch(slot);
        } else {
            self.enter_queue(slot, self.queue_of_restored(slot));
        }
        let stages = || self.tasks[slot].deliveries.iter().map(|delivery| delivery.stage);
        if stages().all(|stage| matches!(stage, Stage::Settled(_))) {
            self.touch(slot);
        } else if stages().all(Stage::is_at_rest) {
            self.charge_as_dead(slot);
        }
    }

    fn lanes_of(&mut self, task: &Arrived<'_>) -> Vec<u32> {
        task.replicas.iter().map(|node| self.lane_for(node, task.client)).collect()
    }

    fn since_acceptance(&self, task: &Arrived<'_>) -> Since {
        let age = self.uptime.age_at_start(self.now.wall, task.accepted_at);
        Since::aged(age, self.now.moment)
    }

    fn restore_delivery(&mut self, at: DeliveryRef, progress: Progress) {
        let until = self.now.moment.after(self.settings.retry_base.mul_f64(self.rng.f64()));
        // Which older write it superseded is not on disk, so it stands for all older ones.
        let stands_for =
            matches!(progress, Progress::Failed { .. } | Progress::Dead(_)).then_some(TaskId(0));
        let (stage, failures, error, since) = match progress {
            Progress::Failed { failures: 0, .. } => (Stage::Blocked, 0, None, self.now.wall),
            Progress::Untouched => (Stage::Blocked, 0, None, self.now.wall),
            Progress::Failed { failures, error } => {
                (Stage::Waiting { until }, failures, Some(error), self.now.wall)
            }
            Progress::Delivered => {
                self.supersede_letter(at);
                return self.settled_before(at, SettledAs::Delivered);
            }
            Progress::Superseded => {
                return self.settled_before(at, SettledAs::Superseded);
            }
            Progress::Ambiguous { .. } => return self.restore_ambiguous(at),
            Progress::Resend => {
                let until = self.now.moment.after(self.settings.settle_after);
                (Stage::Resend { until }, 0, None, self.now.wall)
            }
            Progress::Dead(DeadLetter { cause, failures, error, since }) => {
                let stage = match cause {
                    Cause::Rejected | Cause::Refused | Cause::GaveUp => {
                        Stage::Dead { cause, until }
                    }
                    Cause::RetryOverflow => Stage::Parked { until },
                };
                (stage, failures, Some(error), since)
            }
        };
        self.tasks[at].failures =
            error.map(|error| Box::new(DeliveryFailures::new(failures, error, since)));
        if self.tasks[at].failures.is_some() {
            // It may have been in flight when the process ended.
            self.note_ambiguous(at, self.now.wall);
        }
        if stands_for.is_some() {
            self.tasks[at].failures_mut(self.now.wall).stands_for = stands_for;
        }
        if let Stage::Dead { cause, .. } = stage {
            return self.restore_letter(at, cause);
        }
        let leads = self.join(at);
        // Behind an older write it waits for its turn and keeps its failures.
        match stage {
            Stage::Waiting { until } if leads => {
                if !self.await_retry(at, until) {
                    self.touch(at.slot);
                }
            }
            _ if leads && stage.awaits_retry() => self.change(at, stage),
            _ => self.unblock(at),
        }
    }

    fn queue_of_restored(&self, slot: Slot) -> TaskQueue {
        let stages = || self.tasks[slot].deliveries.iter().map(|delivery| delivery.stage);
        if stages().any(Stage::holds_queue) { TaskQueue::Eventual } else { TaskQueue::Outside }
    }
}
