//! The count of a strong write: who has acknowledged, who has failed, is it decided.

use crate::engine::Moment;
use crate::task::ReplicaIndex;

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
