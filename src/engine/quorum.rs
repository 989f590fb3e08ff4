//! Counts the acknowledgements of a strong write.

use crate::engine::Moment;
use crate::task::ReplicaIndex;

#[derive(Debug)]
pub(super) struct Quorum {
    replicas: u16,
    acked: Vec<ReplicaIndex>,
    failed: Vec<ReplicaIndex>,
    pub(super) deadline: Moment,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QuorumStatus {
    Open,
    Reached,
    /// Too many failed or are cut off.
    OutOfReach,
}

impl Quorum {
    pub(super) fn new(replicas: u16, deadline: Moment) -> Self {
        Self { replicas, acked: Vec::new(), failed: Vec::new(), deadline }
    }

    /// The size of a majority: more than half of all replicas.
    pub(super) fn needed(&self) -> usize {
        usize::from(self.replicas) / 2 + 1
    }

    /// Counts an acknowledgement, also from a replica that failed before.
    pub(super) fn ack(&mut self, replica: ReplicaIndex) {
        self.failed.retain(|&other| other != replica);
        if !self.acked.contains(&replica) {
            self.acked.push(replica);
        }
    }

    pub(super) fn fail(&mut self, replica: ReplicaIndex) {
        if !self.acked.contains(&replica) && !self.failed.contains(&replica) {
            self.failed.push(replica);
        }
    }

    /// The status if replicas that failed or are cut off will not acknowledge.
    pub(super) fn standing(&self, cut_off: impl Fn(ReplicaIndex) -> bool) -> QuorumStatus {
        let open = |replica: &ReplicaIndex| {
            !self.failed.contains(replica) && (self.acked.contains(replica) || !cut_off(*replica))
        };
        if self.acked.len() >= self.needed() {
            QuorumStatus::Reached
        } else if (0..self.replicas).map(ReplicaIndex).filter(open).count() < self.needed() {
            QuorumStatus::OutOfReach
        } else {
            QuorumStatus::Open
        }
    }

    pub(super) fn acked(&self) -> &[ReplicaIndex] {
        &self.acked
    }

    /// Replicas without an acknowledgement, in the order of the task.
    pub(super) fn missing(&self) -> Vec<ReplicaIndex> {
        (0..self.replicas).map(ReplicaIndex).filter(|r| !self.acked.contains(r)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(replicas: u16, acks: &[u16], failures: &[u16]) -> QuorumStatus {
        let mut quorum = Quorum::new(replicas, Moment(0));
        acks.iter().for_each(|&r| quorum.ack(ReplicaIndex(r)));
        failures.iter().for_each(|&r| quorum.fail(ReplicaIndex(r)));
        quorum.standing(|_| false)
    }

    #[test]
    fn a_majority_is_more_than_half_of_all() {
        assert_eq!(standing(1, &[0], &[]), QuorumStatus::Reached);
        assert_eq!(standing(2, &[0], &[]), QuorumStatus::Open);
        assert_eq!(standing(2, &[0, 1], &[]), QuorumStatus::Reached);
        assert_eq!(standing(3, &[0, 2], &[]), QuorumStatus::Reached);
        assert_eq!(standing(4, &[0, 1], &[]), QuorumStatus::Open);
        assert_eq!(standing(5, &[0, 1, 4], &[2, 3]), QuorumStatus::Reached);
    }

    #[test]
    fn it_is_out_of_reach_as_soon_as_too_few_are_left() {
        assert_eq!(standing(1, &[], &[0]), QuorumStatus::OutOfReach);
        assert_eq!(standing(2, &[], &[1]), QuorumStatus::OutOfReach);
        assert_eq!(standing(3, &[], &[1]), QuorumStatus::Open);
        assert_eq!(standing(3, &[0], &[1, 2]), QuorumStatus::OutOfReach);
    }

    #[test]
    fn an_acknowledgement_counts_once_and_outweighs_a_failure() {
        assert_eq!(standing(3, &[0, 0], &[]), QuorumStatus::Open);
        let mut quorum = Quorum::new(3, Moment(0));
        quorum.fail(ReplicaIndex(0));
        quorum.ack(ReplicaIndex(0));
        quorum.ack(ReplicaIndex(1));
        assert_eq!(quorum.standing(|_| false), QuorumStatus::Reached);
        assert_eq!(quorum.missing(), [ReplicaIndex(2)]);
    }
}
