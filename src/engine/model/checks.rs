//! Checks after every step of a history.

use std::collections::BTreeMap;

use super::World;
use crate::engine::claims::Pool;
use crate::engine::model::{partition, site};
use crate::engine::table::{Delivery, Stage, TaskEntry, TaskQueue};
use crate::engine::{Moment, TASK_OVERHEAD_BYTES};
use crate::task::{Cause, Counters, TaskId};

impl World {
    pub(super) fn check(&self) {
        let mut sum = Counters::default();
        for lane in self.engine.lanes() {
            assert_eq!(lane.counters.unaccounted(), 0, "{lane:?}");
            assert!(lane.waiting + lane.parked <= lane.counters.pending);
            assert_eq!(lane.oldest.is_some(), lane.counters.pending > 0, "{lane:?}");
            let bytes = lane.counters.pending * (TASK_OVERHEAD_BYTES + 1);
            assert_eq!(lane.pending_bytes, bytes, "{lane:?}");
            assert!(lane.dead_letter_bytes <= self.engine.levels().dead_letter_bytes);
            sum += lane.counters;
        }
        for lane in self.engine.lanes.iter().filter(|lane| lane.is_gone()) {
            assert_eq!((lane.counters.pending, lane.counters.dead), (0, 0), "{}", lane.node);
            assert!(
                lane.counters.unaccounted() == 0 && lane.in_flight.total() == 0,
                "{}",
                lane.node
            );
            sum += lane.counters;
        }
        assert_eq!(sum, self.engine.totals());
        self.check_chains();
        self.check_claims();
        self.check_retries();
        self.check_refused();
        self.check_barriers();
        self.check_reached();
        let reserved = self.appended.values().filter(|(_, held)| held.is_some()).count();
        assert_eq!(self.engine.coming.values().sum::<u32>() as usize, reserved);
        let levels = self.engine.levels();
        assert_eq!(levels.in_flight, (self.on_wire.len() + self.orphans.len()) as u64);
        assert!(levels.retry <= self.settings.retry_capacity, "{levels:?}");
        if !self.restarted {
            assert!(levels.queue <= self.settings.queue_capacity, "{levels:?}");
        }
    }

    /// Every chain head waits for something, and every queue place counts against the replicas that
    /// it waits for.
    fn check_chains(&self) {
        for lane in self.engine.lanes.iter() {
            let number = self.engine.lanes.find(&lane.node).unwrap();
            for chain in lane.chains.values() {
                let head = &self.engine.tasks[chain.head];
                let stage =
                    self.engine.tasks[self.engine.tasks.delivery_on(chain.head, number)].stage;
                assert_ne!(stage, Stage::Blocked, "{} leads its chain and is blocked", head.id);
            }
            for queue in [TaskQueue::Eventual, TaskQueue::Strong] {
                let waits = |entry: &&TaskEntry| {
                    let on_lane = |delivery: &&Delivery| delivery.lane == number;
                    let delivery = entry.deliveries.iter().find(on_lane);
                    entry.queue == queue
                        && delivery.is_some_and(|delivery| delivery.stage.holds_queue())
                };
                let held = self.engine.tasks.iter().filter(waits).count();
                let reservations = self.appended.values().filter_map(|(_, held)| held.as_ref());
                let coming =
                    reservations.filter(|held| held.queue == queue && held.lanes.contains(&number));
                assert_eq!(
                    lane.places.queued(queue),
                    held + coming.count(),
                    "{queue:?} of {}",
                    lane.node
                );
            }
        }
    }

    /// Every claimant holds what its tasks, deliveries and reservations hold.
    fn check_claims(&self) {
        let engine = &self.engine;
        let mut held: BTreeMap<(usize, Option<u32>, Option<u32>), u64> = BTreeMap::new();
        let mut add = |pool: Pool, client: Option<u32>, host: Option<u32>, amount: u64| {
            let claims = match (client, host) {
                (Some(_), Some(_)) => vec![(client, host), (None, host)],
                one => vec![one],
            };
            for (client, host) in claims {
                *held.entry((pool as usize, client, host)).or_default() += amount;
            }
        };
        for entry in engine.tasks.iter() {
            let client = Some(entry.client);
            let all = if entry.charged_as_dead { Pool::LetterBytes } else { Pool::Bytes };
            add(all, client, None, entry.bytes);
            if let Some(queue) = entry.queue.pool() {
                add(queue, client, None, 1);
            }
            for delivery in &entry.deliveries {
                let (host, stage) = (Some(engine.lanes[delivery.lane].host), delivery.stage);
                if let Some(queue) = entry.queue.pool().filter(|_| stage.holds_queue()) {
                    add(queue, client, host, 1);
                }
                if stage.holds_retry_place() {
                    add(Pool::Retries, client, None, 1);
                    add(Pool::Retries, client, host, 1);
                }
                if entry.charged_as_dead && stage.is_dead_letter() {
                    add(Pool::LetterBytes, client, host, entry.bytes);
                } else if !entry.charged_as_dead && stage.is_pending() {
                    add(Pool::Bytes, client, host, entry.bytes);
                }
            }
        }
        for reservation in self.appended.values().filter_map(|(_, held)| held.as_ref()) {
            let client = Some(reservation.client);
            let queue = reservation.queue.pool().unwrap();
            add(Pool::Bytes, client, None, reservation.bytes);
            add(queue, client, None, 1);
            for &lane in &reservation.lanes {
                let host = Some(engine.lanes[lane].host);
                add(Pool::Bytes, client, host, reservation.bytes);
                add(queue, client, host, 1);
            }
        }
        held.retain(|_, amount| *amount > 0);
        assert_eq!(held, engine.claims.amounts());
    }

    /// Every retry place belongs to a delivery. A paused replica only has places in flight. No
    /// delivery is parked while there is a place for it. No client waits for a majority that is out
    /// of reach.
    fn check_retries(&self) {
        let engine = &self.engine;
        let due = engine.wake_at().is_some_and(|at| at <= self.now.moment);
        let mut retries = 0;
        for lane in engine.lanes.iter() {
            let number = engine.lanes.find(&lane.node).unwrap();
            for entry in engine.tasks.iter() {
                let holds = |delivery: &&Delivery| {
                    delivery.lane == number && delivery.stage.holds_retry_place()
                };
                for delivery in entry.deliveries.iter().filter(holds) {
                    retries += 1;
                    let on_wire = matches!(delivery.stage, Stage::InFlight { .. });
                    // What is held back leaves with its partition.
                    let may_stay = on_wire || engine.held.contains_key(&entry.partition);
                    assert!(lane.paused.is_none() || may_stay, "{} keeps retry places", lane.node);
                }
            }
            let may_return = lane.places.next_return() <= self.now.moment
                && !lane.letters.is_redriving()
                && !lane.is_suspended();
            let mut parked = lane.heads.oldest_parked();
            assert!(
                due || !may_return || !parked.any(|(of, ..)| engine.retry_has_room(number, of)),
                "{} has room for its parked deliveries",
                lane.node
            );
        }
        assert_eq!(engine.levels().retry, retries);
        for entry in engine.tasks.iter() {
            assert!(
                due || !engine.is_out_of_reach(entry),
                "{} waits for a majority out of reach",
                entry.id
            );
        }
    }

    /// Refused letters never expire, and something tries them again.
    fn check_refused(&self) {
        let engine = &self.engine;
        for lane in engine.lanes.iter() {
            let number = engine.lanes.find(&lane.node).unwrap();
            // The end of an outage starts a redrive.
            let awaited = lane.refusals.due().is_some()
                || lane.letters.is_redriving()
                || lane.health.breaker().is_open();
            let mut refused = 0;
            for entry in engine.tasks.iter() {
                let of_lane = entry.deliveries.iter().filter(|delivery| delivery.lane == number);
                for delivery in of_lane {
                    let Stage::Dead { cause: Cause::Refused, until } = delivery.stage else {
                        continue;
                    };
                    refused += 1;
                    assert_eq!(until, Moment(u64::MAX), "{} never expires", entry.id);
                    // A pending newer write settles it.
                    let is_behind = lane.chains.contains_key(&entry.key);
                    assert!(awaited || is_behind, "nothing redrives {}", entry.id);
                }
            }
            assert_eq!(lane.letters.refused(), refused, "{}", lane.node);
        }
    }

    /// At a reached barrier without dead letters, each replica had each write before it, or a newer
    /// one of the key.
    fn check_reached(&self) {
        for &up_to in self.barriers.iter().rev().take(4) {
            let barrier = self.engine.count(TaskId(up_to).into(), &[]);
            for (id, stored) in self.tasks.iter().filter(|(id, _)| **id <= up_to) {
                let is_counted =
                    self.durable.contains(id) && !self.released.contains(&partition(stored.key));
                for name in stored.replicas.iter().filter(|_| is_counted) {
                    let place = (site(name), stored.key);
                    let counted = barrier.lanes.iter().find(|(_, of)| site(&of.node) == place.0);
                    let open = counted.is_some_and(|(_, of)| of.pending + of.dead > 0);
                    let has = self.had.get(&place).is_some_and(|had| had >= id);
                    let excused = self.discarded.contains(&place);
                    assert!(open || has || excused, "{up_to} is reached without {id} at {place:?}");
                }
            }
        }
    }

    /// An updated count equals a fresh count.
    fn check_barriers(&self) {
        for watch in &self.engine.barriers.0 {
            let fresh = self.engine.count(watch.end.clone(), &watch.nodes);
            for (_, lane) in &fresh.lanes {
                let counted = watch.lanes.iter().find(|(_, of)| of.node == lane.node);
                let counted = counted.map_or((0, 0), |(_, of)| (of.pending, of.dead));
                assert_eq!(counted, (lane.pending, lane.dead), "{}", lane.node);
            }
        }
    }
}
