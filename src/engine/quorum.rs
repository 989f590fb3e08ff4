//! The count of a strong write: who has acknowledged, who has failed, is it decided.

use crate::engine::table::{Entry, Leg, Queue, Slot, State};
use crate::engine::{Action, Engine, Moment};
use crate::task::{Obstacle, ReplicaIndex};

/// The open question of one strong write.
#[derive(Debug)]
pub(super) struct Quorum {
    replicas: u16,
    acked: Vec<ReplicaIndex>,
    failed: Vec<ReplicaIndex>,
    /// When it is answered whatever was reached.
    pub(super) deadline: Moment,
}

/// What is known of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It can still go either way.
    Open,
    /// A majority has acknowledged.
    Reached,
    /// So many have failed or are cut off that the others cannot make a majority.
    OutOfReach,
}

impl Quorum {
    pub(super) fn new(replicas: u16, deadline: Moment) -> Self {
        Self { replicas, acked: Vec::new(), failed: Vec::new(), deadline }
    }

    /// How many acknowledgements make a majority: more than half of all replicas.
    pub(super) fn needed(&self) -> usize {
        usize::from(self.replicas) / 2 + 1
    }

    /// A replica acknowledged. One that failed before is taken back into the count.
    pub(super) fn ack(&mut self, replica: ReplicaIndex) {
        self.failed.retain(|&other| other != replica);
        if !self.acked.contains(&replica) {
            self.acked.push(replica);
        }
    }

    /// An attempt to a replica failed.
    pub(super) fn fail(&mut self, replica: ReplicaIndex) {
        if !self.acked.contains(&replica) && !self.failed.contains(&replica) {
            self.failed.push(replica);
        }
    }

    /// How it stands if nothing is to be hoped for from the replicas that are cut off, nor from
    /// those that failed.
    pub(super) fn standing(&self, cut_off: impl Fn(ReplicaIndex) -> bool) -> Standing {
        let open = |replica: &ReplicaIndex| {
            !self.failed.contains(replica) && (self.acked.contains(replica) || !cut_off(*replica))
        };
        if self.acked.len() >= self.needed() {
            Standing::Reached
        } else if (0..self.replicas).map(ReplicaIndex).filter(open).count() < self.needed() {
            Standing::OutOfReach
        } else {
            Standing::Open
        }
    }

    /// Who has acknowledged, in the order of the acknowledgements.
    pub(super) fn acked(&self) -> &[ReplicaIndex] {
        &self.acked
    }

    /// Everyone else, in the order of the task's list.
    pub(super) fn missing(&self) -> Vec<ReplicaIndex> {
        (0..self.replicas).map(ReplicaIndex).filter(|r| !self.acked.contains(r)).collect()
    }
}

impl Engine {
    /// One acknowledgement less that a strong write can hope for.
    pub(super) fn fail_quorum(&mut self, slot: Slot, leg: usize) {
        let replica = self.delivery(slot, leg).replica;
        if let Some(quorum) = &mut self.tasks[slot].quorum {
            quorum.fail(replica);
        }
    }

    /// Answers the client of a strong write, if there is one and its answer is known.
    ///
    /// Not before it is durable, even if its time is up: the answer says that delivery goes on.
    pub(super) fn conclude(&mut self, slot: Slot) {
        let entry = &self.tasks[slot];
        let Some(quorum) = &entry.quorum else { return };
        let standing = self.standing(entry, quorum);
        let decided = standing != Standing::Open || quorum.deadline <= self.now.moment;
        if !decided || !entry.durable {
            return;
        }
        self.deadlines.remove(&(quorum.deadline, slot));
        let success = standing == Standing::Reached;
        let missing = quorum.missing();
        let obstacle =
            |&replica: &ReplicaIndex| Some((replica, self.obstacle(&entry.legs[replica.get()])?));
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
        quorum.standing(|replica| self.is_cut_off(&entry.legs[replica.get()]))
    }

    /// Whether a delivery waits for something that may take for ever: an operator holds its replica,
    /// or that does not answer. What is on the wire may still be acknowledged.
    fn is_cut_off(&self, leg: &Leg) -> bool {
        let lane = &self.lanes[leg.lane];
        matches!(leg.state, State::Blocked | State::Ready(_))
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
            let concerned = entry.legs.iter().any(|leg| leg.lane == number);
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
    fn obstacle(&self, leg: &Leg) -> Option<Obstacle> {
        if matches!(leg.state, State::Settled(_)) {
            return None;
        }
        let lane = &self.lanes[leg.lane];
        let open = || lane.breaker.is_open().then_some(Obstacle::BreakerOpen);
        lane.paused.map(|_| Obstacle::Paused).or_else(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(replicas: u16, acks: &[u16], failures: &[u16]) -> Standing {
        let mut quorum = Quorum::new(replicas, Moment(0));
        acks.iter().for_each(|&r| quorum.ack(ReplicaIndex(r)));
        failures.iter().for_each(|&r| quorum.fail(ReplicaIndex(r)));
        quorum.standing(|_| false)
    }

    #[test]
    fn a_majority_is_more_than_half_of_all() {
        assert_eq!(standing(1, &[0], &[]), Standing::Reached);
        assert_eq!(standing(2, &[0], &[]), Standing::Open);
        assert_eq!(standing(2, &[0, 1], &[]), Standing::Reached);
        assert_eq!(standing(3, &[0, 2], &[]), Standing::Reached);
        assert_eq!(standing(4, &[0, 1], &[]), Standing::Open);
        assert_eq!(standing(5, &[0, 1, 4], &[2, 3]), Standing::Reached);
    }

    #[test]
    fn it_is_out_of_reach_as_soon_as_too_few_are_left() {
        assert_eq!(standing(1, &[], &[0]), Standing::OutOfReach);
        assert_eq!(standing(2, &[], &[1]), Standing::OutOfReach);
        assert_eq!(standing(3, &[], &[1]), Standing::Open);
        assert_eq!(standing(3, &[0], &[1, 2]), Standing::OutOfReach);
    }

    #[test]
    fn an_acknowledgement_counts_once_and_outweighs_a_failure() {
        assert_eq!(standing(3, &[0, 0], &[]), Standing::Open);
        let mut quorum = Quorum::new(3, Moment(0));
        quorum.fail(ReplicaIndex(0));
        quorum.ack(ReplicaIndex(0));
        quorum.ack(ReplicaIndex(1));
        assert_eq!(quorum.standing(|_| false), Standing::Reached);
        assert_eq!(quorum.missing(), [ReplicaIndex(2)]);
    }
}
