//! What this process may claim, and what it hands over: the placement over the members that live.
//!
//! These are decisions about balance. Only the checkpoints decide who owns a partition.

use std::collections::HashMap;
use std::time::Duration;

use super::members::Member;
use super::placement::{Candidate, place};
use super::shared::StoreShared;
use super::standing::Owner;
use crate::task::Partition;

/// Nothing moves to an instance that is younger: it may be one that starts again and again.
const SEASONED: Duration = Duration::from_secs(5);

/// How long an instance listens for others before it claims anything. They answer its first
/// announcement at once.
pub(super) const LISTEN: Duration = Duration::from_millis(300);

impl StoreShared {
    /// How long this process waits before it claims a partition, after that was possible at first;
    /// `None` if it does not claim it. `former` did not give it up and is probably dead.
    pub(super) fn claims_after(
        &self,
        partition: Partition,
        former: Option<u64>,
    ) -> Option<Duration> {
        let members = self.members.live();
        let this = members.iter().find(|member| member.process == self.this.process)?;
        if this.is_leaving || this.is_draining || this.up_for < LISTEN {
            return None;
        }
        let owners = self.owners();
        let without_former = candidates(&members, &owners, former);
        let candidates = match without_former.is_empty() {
            true => candidates(&members, &owners, None),
            false => without_former,
        };
        let target = place(&owners, &candidates).get(usize::from(partition.0)).copied().flatten();
        if target == Some(self.this.process) {
            return Some(Duration::ZERO);
        }
        let is_candidate = candidates.iter().any(|one| one.process == self.this.process);
        is_candidate.then(|| self.store.settings().lease / 2)
    }

    /// Whether this process should hand a partition over now: it is the first one that another
    /// instance should own, and every partition has an owner.
    pub(super) fn hands_over(&self, partition: Partition) -> bool {
        let owners = self.owners();
        let candidates = candidates(&self.members.live(), &owners, None);
        let first = first_to_move(&owners, &place(&owners, &candidates));
        first == Some(usize::from(partition.0))
            && owners.get(usize::from(partition.0)) == Some(&Some(self.this.process))
    }

    fn owners(&self) -> Vec<Option<u64>> {
        let process = |owner: &Owner| match owner {
            Owner::Unknown => None,
            Owner::This { .. } => Some(self.this.process),
            Owner::Other(instance) => Some(instance.process),
        };
        self.partitions.iter().map(|standing| process(&standing.owner.borrow())).collect()
    }
}

/// Nothing moves while a partition has no owner that should have one.
fn first_to_move(owners: &[Option<u64>], targets: &[Option<u64>]) -> Option<usize> {
    let mut both = owners.iter().zip(targets);
    let waits = both.clone().any(|(owner, target)| owner.is_none() && target.is_some());
    let first = both.position(|(owner, target)| target.is_some() && owner != target);
    first.filter(|_| !waits)
}

/// The members that may own partitions.
fn candidates(members: &[Member], owners: &[Option<u64>], without: Option<u64>) -> Vec<Candidate> {
    // Of two with one name, the younger one was started in place of the other.
    let mut youngest = HashMap::<&str, &Member>::new();
    for member in members {
        let one = youngest.entry(&member.node).or_insert(member);
        if member.up_for < one.up_for {
            *one = member;
        }
    }
    let may_own = |member: &&Member| {
        !member.is_draining
            && !member.is_leaving
            && Some(member.process) != without
            && youngest.get(&*member.node).is_some_and(|one| one.process == member.process)
    };
    let may_own: Vec<_> = members.iter().filter(may_own).collect();
    let is_seasoned =
        |member: &&&Member| member.up_for >= SEASONED || owners.contains(&Some(member.process));
    let seasoned: Vec<_> = may_own.iter().filter(is_seasoned).copied().collect();
    let chosen = if seasoned.is_empty() { may_own } else { seasoned };
    let candidate = |member: &Member| {
        let Member { process, node, refuses, .. } = member.clone();
        Candidate { process, node, refuses }
    };
    chosen.into_iter().map(candidate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(process: u64, up_secs: u64) -> Member {
        Member::for_tests(process, Duration::from_secs(up_secs))
    }

    fn chosen(members: &[Member], owners: &[Option<u64>], without: Option<u64>) -> Vec<u64> {
        candidates(members, owners, without).into_iter().map(|one| one.process).collect()
    }

    #[test]
    fn nothing_moves_while_a_partition_waits_for_an_owner_unless_none_may_own_it() {
        assert_eq!(first_to_move(&[Some(2), Some(1)], &[Some(2), Some(2)]), Some(1));
        assert_eq!(first_to_move(&[None, Some(1)], &[Some(2), Some(2)]), None);
        assert_eq!(first_to_move(&[None, Some(1)], &[None, Some(2)]), Some(1));
    }

    #[test]
    fn a_member_may_own_partitions_after_a_while_or_if_no_other_one_may() {
        let members = [member(1, 10), member(2, 4)];
        assert_eq!(chosen(&members, &[], None), [1]);
        assert_eq!(chosen(&members, &[], Some(1)), [2]);
        assert_eq!(chosen(&members, &[Some(2)], None), [1, 2], "it owns one already");
        assert_eq!(chosen(&[member(1, 1), member(2, 4)], &[], None), [1, 2]);
    }

    #[test]
    fn a_member_that_drains_leaves_or_was_replaced_owns_nothing() {
        let draining = Member { is_draining: true, ..member(1, 10) };
        let leaving = Member { is_leaving: true, ..member(2, 10) };
        let before = Member { node: "n4".to_owned(), ..member(3, 10) };
        let members = [draining, leaving, before, member(4, 1), member(5, 10)];
        assert_eq!(chosen(&members, &[Some(1), Some(2), Some(3)], None), [5]);
        assert_eq!(chosen(&members, &[], Some(5)), [4]);
    }
}
