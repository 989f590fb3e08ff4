//! Tasks and dead letters as operators see them.
//!
//! A search scans a limited number of tasks per call and returns where to continue, so that a query
//! over a million tasks does not delay everything else.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use crate::engine::lane::Lane;
use crate::engine::table::{Delivery, Priority, SettledAs, Slot, Stage};
use crate::engine::{
    DeliveryFilter, DeliveryView, Engine, KeyId, KeyStanding, LetterView, Moment, SearchPage,
    Since, TaskView,
};
use crate::task::{Cause, DeliveryState, Node, ReplicaIndex, TaskId, Timestamp};

const LOOKS: usize = 20_000;

impl Engine {
    /// When the oldest pending delivery of a lane was accepted, by the wall and the monotonic
    /// clock.
    pub(super) fn oldest(&self, lane: &Lane) -> Option<(Timestamp, Since)> {
        let slot = self.tasks.find(lane.backlog.oldest()?)?;
        let entry = &self.tasks[slot];
        Some((entry.accepted_at, entry.since))
    }

    /// The time since a task was accepted, by the monotonic clock; `None` once it is settled.
    pub fn age(&self, task: TaskId, now: Moment) -> Option<Duration> {
        Some(self.tasks[self.tasks.find(task)?].since.age(now))
    }

    pub fn view(&self, id: TaskId) -> Option<TaskView> {
        self.tasks.find(id).map(|slot| self.whole_view(slot))
    }

    pub fn find_tasks(
        &self,
        wanted: &DeliveryFilter,
        after: Option<TaskId>,
        limit: usize,
    ) -> SearchPage<TaskView, TaskId> {
        let mut found = SearchPage { items: Vec::new(), next: None };
        let Ok(lane) = self.lane_of(wanted) else { return found };
        for (looked_at, (id, slot)) in self.tasks.after(after).enumerate() {
            if looked_at >= LOOKS || found.items.len() >= limit {
                return found;
            }
            found.next = Some(id);
            let entry = &self.tasks[slot];
            let fits = |delivery: &Delivery| {
                let state = delivery.state();
                lane.is_none_or(|lane| lane == delivery.lane)
                    && wanted.state.map_or(!state.is_settled(), |wanted| wanted == state)
            };
            if wanted.key.is_none_or(|key| key == entry.key) && entry.deliveries.iter().any(fits) {
                found.items.push(self.view_of(slot));
            }
        }
        found.next = None;
        found
    }

    /// The dead letters after `after`, parked deliveries included, up to `limit`.
    pub fn find_letters(
        &self,
        wanted: &DeliveryFilter,
        after: Option<(TaskId, ReplicaIndex)>,
        limit: usize,
    ) -> SearchPage<LetterView, (TaskId, ReplicaIndex)> {
        let mut found = SearchPage { items: Vec::new(), next: None };
        let Ok(lane) = self.lane_of(wanted) else { return found };
        // The task of `after` is scanned again for its later replicas.
        let from = after.and_then(|(id, _)| id.0.checked_sub(1)).map(TaskId);
        for (looked_at, (id, slot)) in self.tasks.after(from).enumerate() {
            if looked_at >= LOOKS {
                return found;
            }
            let entry = &self.tasks[slot];
            for (number, delivery) in (0..).zip(&entry.deliveries) {
                let place = (id, ReplicaIndex(number));
                if after.is_some_and(|after| place <= after) {
                    continue;
                }
                if found.items.len() >= limit {
                    return found;
                }
                found.next = Some(place);
                if delivery.stage.is_dead_letter()
                    && lane.is_none_or(|lane| lane == delivery.lane)
                    && wanted.key.is_none_or(|key| key == entry.key)
                    && wanted.state.is_none_or(|wanted| wanted == delivery.state())
                {
                    let delivery = self.delivery_view(delivery);
                    found.items.push(LetterView { task: id, replica: place.1, delivery });
                }
            }
        }
        found.next = None;
        found
    }

    /// The matching dead letters of these tasks, for the replica given with each or for all.
    pub fn letters_of(
        &self,
        ids: &[(TaskId, Option<Node>)],
        wanted: &DeliveryFilter,
    ) -> SearchPage<LetterView, (TaskId, ReplicaIndex)> {
        let mut found = SearchPage { items: Vec::new(), next: None };
        let mut seen = HashSet::new();
        for (id, node) in ids {
            let Some(slot) = self.tasks.find(*id) else { continue };
            for (number, delivery) in (0..).zip(&self.tasks[slot].deliveries) {
                let view = self.delivery_view(delivery);
                let fits = delivery.stage.is_dead_letter()
                    && node.as_ref().is_none_or(|node| *node == view.node)
                    && wanted.node.as_ref().is_none_or(|node| *node == view.node)
                    && wanted.key.is_none_or(|key| key == self.tasks[slot].key)
                    && wanted.state.is_none_or(|state| state == view.state);
                let replica = ReplicaIndex(number);
                if fits && seen.insert((*id, replica)) {
                    found.items.push(LetterView { task: *id, replica, delivery: view });
                }
            }
        }
        found
    }

    /// Whether the writes of a key have arrived at a replica.
    pub fn key_standing(&self, key: KeyId, node: &Node) -> KeyStanding {
        let is_forgotten = |number: &u32| self.lanes[*number].forget.is_forgotten();
        let found = self.lanes.find(node).filter(|number| !is_forgotten(number));
        let Some(number) = found else { return KeyStanding::Unknown };
        let lane = &self.lanes[number];
        if lane.paused.is_some() {
            KeyStanding::Paused
        } else if self.is_coming(key) || lane.chains.contains_key(&key) || lane.ambiguous.has(key) {
            KeyStanding::Pending
        } else if lane.letters.of_key(key).is_some() {
            KeyStanding::Dead
        } else {
            KeyStanding::Settled
        }
    }

    /// Whether a write of the key is being made durable.
    pub fn is_coming(&self, key: KeyId) -> bool {
        self.coming.contains_key(&key)
    }

    /// The lane of the filter; an error if the replica has no lane.
    fn lane_of(&self, wanted: &DeliveryFilter) -> Result<Option<u32>, ()> {
        match &wanted.node {
            Some(node) => self.lanes.find(node).map(Some).ok_or(()),
            None => Ok(None),
        }
    }

    /// With the attempts.
    pub(super) fn whole_view(&self, slot: Slot) -> TaskView {
        let mut view = self.view_of(slot);
        for (shown, delivery) in view.deliveries.iter_mut().zip(&self.tasks[slot].deliveries) {
            shown.attempts = delivery.attempts().to_vec();
        }
        view
    }

    fn view_of(&self, slot: Slot) -> TaskView {
        let entry = &self.tasks[slot];
        let deliveries =
            entry.deliveries.iter().map(|delivery| self.delivery_view(delivery)).collect();
        TaskView { id: entry.id, deliveries }
    }

    fn delivery_view(&self, delivery: &Delivery) -> DeliveryView {
        let failures = delivery.failures.as_ref().filter(|failures| !failures.error.is_empty());
        DeliveryView {
            node: self.lanes[delivery.lane].node.clone(),
            state: delivery.state(),
            cause: match delivery.stage {
                Stage::Dead { cause, .. } => Some(cause),
                Stage::Parked { .. } | Stage::Deferred { .. } => Some(Cause::RetryOverflow),
                _ => None,
            },
            failures: delivery.failure_count(),
            error: failures.map(|failures| (Arc::clone(&failures.error), failures.since)),
            due: match delivery.stage {
                Stage::Waiting { until } | Stage::Deferred { until } => Some(until),
                _ => None,
            },
            attempts: Vec::new(),
        }
    }
}

impl Delivery {
    fn state(&self) -> DeliveryState {
        match self.stage {
            Stage::Blocked
            | Stage::Ready(Priority::Urgent | Priority::Fresh | Priority::Redrive) => {
                DeliveryState::Queued
            }
            Stage::Waiting { .. } | Stage::Ready(Priority::Retry) => DeliveryState::Retrying,
            Stage::Parked { .. } | Stage::Deferred { .. } => DeliveryState::Parked,
            Stage::Dead { .. } => DeliveryState::Dead,
            Stage::Resend { .. }
            | Stage::Ready(Priority::Resend)
            | Stage::InFlight { priority: Priority::Resend, .. }
            | Stage::Settled(SettledAs::Delivered) => DeliveryState::Delivered,
            Stage::InFlight { .. } => DeliveryState::InFlight,
            Stage::Settled(SettledAs::Superseded) => DeliveryState::Superseded,
            // A released task is in no view.
            Stage::Settled(SettledAs::Discarded | SettledAs::Released) => DeliveryState::Discarded,
        }
    }
}

impl DeliveryState {
    fn is_settled(self) -> bool {
        matches!(self, Self::Delivered | Self::Superseded | Self::Discarded)
    }
}
