//! Strong writes: when their clients are answered, and with what.

use crate::engine::quorum::{Quorum, Standing};
use crate::engine::table::{Delivery, DeliveryRef, Entry, Queue, Slot, State};
use crate::engine::{Action, Engine};
use crate::task::{Obstacle, ReplicaIndex};

impl Engine {
    /// One acknowledgement less that a strong write can hope for.
    pub(super) fn fail_quorum(&mut self, at: DeliveryRef) {
        let replica = self.delivery_id(at).replica;
        if let Some(quorum) = &mut self.tasks[at.slot].quorum {
            quorum.fail(replica);
        }
    }

    /// Answers the client of a strong write, if there is one and its answer is known.
    pub(super) fn conclude(&mut self, slot: Slot) {
        let entry = &self.tasks[slot];
        let Some(quorum) = &entry.quorum else { return };
        let standing = self.standing(entry, quorum);
        let decided = standing != Standing::Open || quorum.deadline <= self.now.moment;
        if !decided {
            return;
        }
        self.deadlines.remove(&(quorum.deadline, slot));
        let success = standing == Standing::Reached;
        let missing = quorum.missing();
        let obstacle = |&replica: &ReplicaIndex| {
            Some((replica, self.obstacle(&entry.deliveries[replica.get()])?))
        };
        let obstacles =
            if success { Vec::new() } else { missing.iter().filter_map(obstacle).collect() };
        self.actions.push_back(Action::Conclude {
            task: entry.id,
            success,
            needed: quorum.needed(),
            acked: quorum.acked().to_vec(),
            missing,
            obstacles,
        });
        let entry = &mut self.tasks[slot];
        entry.quorum = None;
        self.enter_queue(slot, Queue::Outside);
    }

    fn standing(&self, entry: &Entry, quorum: &Quorum) -> Standing {
        quorum.standing(|replica| self.is_cut_off(&entry.deliveries[replica.get()]))
    }

    /// Whether a delivery waits for something that may take for ever: an operator holds its replica,
    /// or that does not answer. What is on the wire may still be acknowledged.
    fn is_cut_off(&self, delivery: &Delivery) -> bool {
        let lane = &self.lanes[delivery.lane];
        matches!(delivery.state, State::Blocked | State::Ready(_))
            && (lane.is_held() || lane.breaker.is_open())
    }

    /// Has the strong writes answered whose majority is out of reach without this replica.
    pub(super) fn answer_unreachable(&mut self, number: u32) {
        let lane = &self.lanes[number];
        if lane.held(Queue::Strong) == 0 || !(lane.is_held() || lane.breaker.is_open()) {
            return;
        }
        let out_of_reach = |&slot: &Slot| {
            let entry = &self.tasks[slot];
            let concerned = entry.deliveries.iter().any(|delivery| delivery.lane == number);
            let quorum = entry.quorum.as_ref().filter(|_| concerned);
            quorum.is_some_and(|quorum| self.standing(entry, quorum) == Standing::OutOfReach)
        };
        let open = self.deadlines.iter().map(|&(_, slot)| slot);
        let decided: Vec<_> = open.filter(out_of_reach).collect();
        decided.into_iter().for_each(|slot| self.touch(slot));
    }

    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn is_out_of_reach(&self, entry: &Entry) -> bool {
        let standing = entry.quorum.as_ref().map(|quorum| self.standing(entry, quorum));
        standing == Some(Standing::OutOfReach)
    }

    /// What keeps a delivery from its replica. Nothing does where it is over, as when the replica was
    /// forgotten: its lane may be another's by now.
    fn obstacle(&self, delivery: &Delivery) -> Option<Obstacle> {
        if matches!(delivery.state, State::Settled(_)) {
            return None;
        }
        let lane = &self.lanes[delivery.lane];
        let open = || lane.breaker.is_open().then_some(Obstacle::BreakerOpen);
        lane.paused.map(|_| Obstacle::Paused).or_else(open)
    }
}
