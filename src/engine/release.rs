//! Releases a partition: its tasks leave unsettled, for the next owner.
//!
//! Before an orderly release the partition is held: no more of its deliveries start, and what is in flight
//! is finished and settled.
//!
//! For the tasks this is like a kill of the process. Attempts in flight may still be applied, and the
//! next owner, which may be this engine, does not know of them.

use crate::engine::counters::DeliveryOutcome;
use crate::engine::table::{DeliveryRef, SettledAs, Slot, Stage};
use crate::engine::{Engine, Moment, Now};
use crate::task::{DeliveryId, Partition};

impl Engine {
    /// Starts no more deliveries of a partition until it is released. Attempts in flight continue.
    ///
    /// All actions must have been carried out. Takes about a microsecond per task.
    pub fn hold_back(&mut self, partition: Partition) {
        debug_assert!(
            self.actions.is_empty(),
            "a delivery of a held partition is about to be sent"
        );
        let mut in_flight = 0;
        let tasks = self.tasks.after(None).map(|(_, slot)| slot);
        let slots: Vec<_> = tasks.filter(|&slot| self.tasks[slot].partition == partition).collect();
        for slot in slots {
            let entry = &self.tasks[slot];
            for delivery in &entry.deliveries {
                match delivery.stage {
                    Stage::InFlight { .. } => in_flight += 1,
                    // It stays ready, and its lane does not find it.
                    Stage::Ready(priority) => {
                        self.lanes[delivery.lane].heads.leave_ready(priority, entry.id);
                    }
                    _ => {}
                }
            }
        }
        self.held.insert(partition, in_flight);
    }

    /// Whether a held partition has nothing in flight.
    pub fn is_quiet(&self, partition: Partition) -> bool {
        self.held.get(&partition) == Some(&0)
    }

    /// Removes all tasks of a partition, unsettled and unsaved. Clients of strong writes are answered
    /// with the acknowledgements so far.
    ///
    /// All actions must have been carried out. Takes about a microsecond per task.
    pub fn release(&mut self, now: Now, partition: Partition) {
        debug_assert!(self.actions.is_empty(), "an action of a released task is still queued");
        self.now = now;
        self.held.remove(&partition);
        let tasks = self.tasks.after(None).map(|(_, slot)| slot);
        let slots: Vec<_> = tasks.filter(|&slot| self.tasks[slot].partition == partition).collect();
        slots.into_iter().for_each(|slot| self.release_task(slot));
        // Only tasks that are gone.
        self.touched.clear();
        self.finish();
    }

    fn release_task(&mut self, slot: Slot) {
        debug_assert!(self.tasks[slot].durable, "a journal that reports settlements releases none");
        self.answer_early(slot);
        for index in 0..self.tasks[slot].deliveries.len() {
            let at = DeliveryRef { slot, index };
            self.clear_ambiguous(at);
            let (key, number) = (self.tasks[slot].key, self.tasks[at].lane);
            let stage = self.tasks[at].stage;
            // The other writes of the key are in the same partition.
            self.lanes[number].chains.remove(&key);
            if let Stage::InFlight { probe, .. } = stage {
                *self.released.entry(self.delivery_id(at)).or_default() += 1;
                self.levels.in_flight += 1;
                if probe {
                    self.lanes[number].health.probe_unsent(self.now, self.rng.f64());
                }
            }
            match stage.outcome() {
                _ if matches!(stage, Stage::Settled(_)) => {}
                DeliveryOutcome::Delivered => {
                    self.change(at, Stage::Settled(SettledAs::Delivered));
                }
                _ => self.change(at, Stage::Settled(SettledAs::Released)),
            }
        }
        self.remove_task(slot);
    }

    fn answer_early(&mut self, slot: Slot) {
        if let Some(quorum) = &mut self.tasks[slot].quorum {
            self.deadlines.remove(&(quorum.deadline, slot));
            quorum.deadline = Moment(0);
            self.conclude(slot);
        }
    }

    /// Whether an ended attempt belongs to a released task. If that task was claimed again and sent,
    /// two attempts are in flight, and the second to end counts: the task waits for both.
    pub(super) fn is_of_released(&mut self, delivery: DeliveryId, ambiguous: bool) -> bool {
        let Some(attempts) = self.released.get_mut(&delivery) else { return false };
        *attempts -= 1;
        if *attempts == 0 {
            self.released.remove(&delivery);
        }
        self.levels.in_flight -= 1;
        if ambiguous && let Some(slot) = self.tasks.find(delivery.task) {
            let at = DeliveryRef { slot, index: delivery.replica.get() };
            self.note_ambiguous(at, self.now.wall);
            self.touch(slot);
            self.finish();
        }
        true
    }
}
