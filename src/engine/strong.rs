//! Strong writes: when their clients are answered, and how.

use crate::engine::quorum::{Quorum, QuorumStatus};
use crate::engine::table::{Delivery, DeliveryRef, Slot, Stage, TaskEntry, TaskQueue};
use crate::engine::{Engine, EngineAction};
use crate::task::{Obstacle, ReplicaIndex};

impl Engine {
    pub(super) fn fail_quorum(&mut self, at: DeliveryRef) {
        let replica = self.delivery_id(at).replica;
        if let Some(quorum) = &mut self.tasks[at.slot].quorum {
            quorum.fail(replica);
        }
    }

    /// Answers the client of a strong write, if one waits and the answer is known.
    pub(super) fn conclude(&mut self, slot: Slot) {
        let entry = &self.tasks[slot];
        let Some(quorum) = &entry.quorum else { return };
        let standing = self.standing(entry, quorum);
        let decided = standing != QuorumStatus::Open || quorum.deadline <= self.now.moment;
        let over = |delivery: &Delivery| matches!(delivery.stage, Stage::Settled(_));
        if !decided || !(entry.durable || entry.deliveries.iter().all(over)) {
            // A crash would lose the rest of an early write.
            return;
        }
        self.deadlines.remove(&(quorum.deadline, slot));
        let success = standing == QuorumStatus::Reached;
        let missing = quorum.missing();
        let obstacle = |&replica: &ReplicaIndex| {
            Some((replica, self.obstacle(&entry.deliveries[replica.get()])?))
        };
        let obstacles =
            if success { Vec::new() } else { missing.iter().filter_map(obstacle).collect() };
        self.actions.push_back(EngineAction::Conclude {
            task: entry.id,
            success,
            needed: quorum.needed(),
            acked: quorum.acked().to_vec(),
            missing,
            obstacles,
        });
        let entry = &mut self.tasks[slot];
        entry.quorum = None;
        self.enter_queue(slot, TaskQueue::Outside);
    }

    fn standing(&self, entry: &TaskEntry, quorum: &Quorum) -> QuorumStatus {
        quorum.standing(|replica| self.is_cut_off(&entry.deliveries[replica.get()]))
    }

    /// Whether a delivery may wait indefinitely: its replica is suspended or its breaker is open.
    /// An attempt in flight may still be acknowledged.
    fn is_cut_off(&self, delivery: &Delivery) -> bool {
        let lane = &self.lanes[delivery.lane];
        matches!(delivery.stage, Stage::Blocked | Stage::Ready(_))
            && (lane.is_suspended() || lane.health.breaker().is_open())
    }

    /// Answers the strong writes whose majority is out of reach without this replica.
    pub(super) fn answer_unreachable(&mut self, number: u32) {
        let lane = &self.lanes[number];
        if lane.places.queued(TaskQueue::Strong) == 0
            || !(lane.is_suspended() || lane.health.breaker().is_open())
        {
            return;
        }
        let out_of_reach = |&slot: &Slot| {
            let entry = &self.tasks[slot];
            let concerned = entry.deliveries.iter().any(|delivery| delivery.lane == number);
            let quorum = entry.quorum.as_ref().filter(|_| concerned);
            quorum.is_some_and(|quorum| self.standing(entry, quorum) == QuorumStatus::OutOfReach)
        };
        let open = self.deadlines.iter().map(|&(_, slot)| slot);
        let decided: Vec<_> = open.filter(out_of_reach).collect();
        decided.into_iter().for_each(|slot| self.touch(slot));
    }

    #[cfg(any(test, feature = "fuzzing"))]
    /// Of a durable write.
    pub(super) fn is_out_of_reach(&self, entry: &TaskEntry) -> bool {
        let standing = entry.quorum.as_ref().map(|quorum| self.standing(entry, quorum));
        entry.durable && standing == Some(QuorumStatus::OutOfReach)
    }

    /// Why a delivery is not sent. `None` if it is settled: after a forget, its lane number may
    /// belong to another replica.
    fn obstacle(&self, delivery: &Delivery) -> Option<Obstacle> {
        if matches!(delivery.stage, Stage::Settled(_)) {
            return None;
        }
        let lane = &self.lanes[delivery.lane];
        let open = || lane.health.breaker().is_open().then_some(Obstacle::BreakerOpen);
        lane.paused.map(|_| Obstacle::Paused).or_else(open)
    }
}
