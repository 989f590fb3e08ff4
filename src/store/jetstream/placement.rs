//! Which instance should own which partition: pure, and the same in every instance that knows the same
//! owners and members.
//!
//! All members get the same number of partitions, or one more. A member keeps what it owns up to that
//! number, so that one that joins or leaves moves as few partitions as possible. A partition that
//! a member has too many of, or that has no owner, goes to the member with room that comes first by a
//! hash of the two (rendezvous hashing).
//!
//! A partition that a member cannot read goes to no such member. If the others have no room for it, all get
//! more room.

use std::cmp::Reverse;
use std::collections::HashMap;

use crate::task::Partition;

/// A member that may own partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) process: u64,
    pub(super) node: String,
    /// Partitions that it cannot own.
    pub(super) refuses: Vec<Partition>,
}

impl Candidate {
    fn may_own(&self, partition: usize) -> bool {
        !self.refuses.iter().any(|refused| usize::from(refused.0) == partition)
    }
}

/// The process that should own each partition, given that which does; `None` if no candidate may own it.
pub(super) fn place(owners: &[Option<u64>], candidates: &[Candidate]) -> Vec<Option<u64>> {
    let mut targets = vec![None; owners.len()];
    if candidates.is_empty() {
        return targets;
    }
    let has_candidate =
        |partition: &usize| candidates.iter().any(|candidate| candidate.may_own(*partition));
    let placeable = (0..owners.len()).filter(has_candidate).count();
    for more in 0..=owners.len() {
        targets = place_with(owners, candidates, more);
        if targets.iter().flatten().count() == placeable {
            break;
        }
    }
    targets
}

/// Each candidate has room for its share and `more`.
fn place_with(owners: &[Option<u64>], candidates: &[Candidate], more: usize) -> Vec<Option<u64>> {
    let mut targets = vec![None; owners.len()];
    let least = owners.len() / candidates.len() + more;
    let larger = owners.len() % candidates.len();
    let owned = |candidate: &Candidate| {
        let partitions = owners.iter().enumerate();
        let own = partitions.filter(move |(partition, owner)| {
            **owner == Some(candidate.process) && candidate.may_own(*partition)
        });
        own.map(|(partition, _)| partition).collect::<Vec<_>>()
    };
    // Those with the most partitions may have one more.
    let mut members: Vec<_> = candidates.iter().map(|one| (owned(one), one)).collect();
    members.sort_by_key(|(owned, one)| (Reverse(owned.len()), &one.node, one.process));
    let room =
        (0..).zip(&members).map(|(nth, (_, one))| (one.process, least + usize::from(nth < larger)));
    let mut room: HashMap<_, _> = room.collect();
    for (owned, candidate) in &mut members {
        owned.sort_by_key(|partition| Reverse(rank(*partition, candidate)));
    }
    let able = |partition: usize| candidates.iter().filter(|one| one.may_own(partition)).count();
    // Those that few may own come first.
    for few in 1..=candidates.len() {
        for (owned, candidate) in &members {
            for &partition in owned.iter().filter(|partition| able(**partition) == few) {
                take(&mut targets, partition, candidate.process, &mut room);
            }
        }
        for partition in (0..owners.len()).filter(|partition| able(*partition) == few) {
            let has_room = |one: &&Candidate| {
                one.may_own(partition) && room.get(&one.process).is_some_and(|room| *room > 0)
            };
            let first = candidates.iter().filter(has_room).max_by_key(|one| rank(partition, one));
            if let Some(first) = first {
                take(&mut targets, partition, first.process, &mut room);
            }
        }
    }
    targets
}

/// Gives a partition to a candidate, if it has none and the candidate has room.
fn take(
    targets: &mut [Option<u64>],
    partition: usize,
    process: u64,
    room: &mut HashMap<u64, usize>,
) {
    if let Some(target @ None) = targets.get_mut(partition)
        && let Some(room) = room.get_mut(&process).filter(|room| **room > 0)
    {
        *target = Some(process);
        *room -= 1;
    }
}

/// The weight of a candidate for a partition; the process decides between two of one name.
fn rank(partition: usize, candidate: &Candidate) -> (u64, u64) {
    let mut digest = ring::digest::Context::new(&ring::digest::SHA256);
    digest.update(&(partition as u64).to_be_bytes());
    digest.update(candidate.node.as_bytes());
    let first = digest.finish().as_ref().iter().take(8).fold(0, |sum, byte| {
        let sum: u64 = sum;
        sum << 8 | u64::from(*byte)
    });
    (first, candidate.process)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn candidates(processes: &BTreeSet<u64>) -> Vec<Candidate> {
        processes
            .iter()
            .map(|&process| Candidate { process, node: format!("n{process}"), refuses: Vec::new() })
            .collect()
    }

    fn count(targets: &[Option<u64>], process: u64) -> usize {
        targets.iter().filter(|target| **target == Some(process)).count()
    }

    fn moved(before: &[Option<u64>], after: &[Option<u64>]) -> usize {
        before.iter().zip(after).filter(|(before, after)| before != after).count()
    }

    #[test]
    fn without_members_there_is_no_target() {
        assert_eq!(place(&[None, Some(1)], &[]), [None, None]);
    }

    #[test]
    fn a_member_with_too_many_gives_one_to_each_that_joins() {
        let all = candidates(&BTreeSet::from([1, 2, 3]));
        let targets = place(&[Some(1); 8], &all);
        let counts = [1, 2, 3].map(|process| count(&targets, process));
        assert_eq!((counts[0], counts[1] + counts[2]), (3, 5));
    }

    #[test]
    fn what_a_member_cannot_read_goes_to_another_one_and_stays_there() {
        let mut all = candidates(&BTreeSet::from([1, 2]));
        let owners = [Some(1), Some(1), Some(1), None];
        all[1].refuses = vec![Partition(0), Partition(1), Partition(3)];
        // It gets what it can read.
        let targets = [Some(1), Some(1), Some(2), Some(1)];
        assert_eq!(place(&owners, &all), targets);
        assert_eq!(place(&targets, &all), targets);
        all[0].refuses = vec![Partition(3)];
        assert_eq!(place(&targets, &all)[3], None, "no member can read it");
    }

    proptest! {
        #[test]
        fn no_member_gets_what_it_cannot_read_and_nothing_is_moved_back_and_forth(
            partitions in 1..20_u16,
            members in proptest::collection::btree_set(1..50_u64, 1..6),
            refusals in proptest::collection::vec((0..6_usize, 0..20_u16), 0..60),
            owners in proptest::collection::vec(proptest::option::of(1..50_u64), 20),
        ) {
            let mut all = candidates(&members);
            for (member, partition) in refusals {
                if let Some(member) = all.get_mut(member) {
                    member.refuses.push(Partition(partition));
                }
            }
            let mut owners = owners[..usize::from(partitions)].to_vec();
            for _ in 0..10 {
                let targets = place(&owners, &all);
                for (partition, target) in targets.iter().enumerate() {
                    let able: Vec<_> = all.iter().filter(|one| one.may_own(partition)).collect();
                    prop_assert_eq!(target.is_some(), !able.is_empty());
                    prop_assert!(target.is_none_or(|to| able.iter().any(|one| one.process == to)));
                }
                if targets == owners {
                    return Ok(());
                }
                owners = targets;
            }
            prop_assert!(false, "partitions move for ever");
        }

        #[test]
        fn everything_has_a_target_and_no_member_has_more_than_its_share(
            partitions in 1..40_usize,
            members in proptest::collection::btree_set(1..50_u64, 1..9),
            owners in proptest::collection::vec(proptest::option::of(1..50_u64), 40),
        ) {
            let (owners, all) = (&owners[..partitions], candidates(&members));
            let targets = place(owners, &all);
            for &process in &members {
                let share = count(&targets, process);
                let least = partitions / members.len();
                prop_assert!(share >= least && share <= partitions.div_ceil(members.len()));
            }
            prop_assert!(targets.iter().all(Option::is_some));
            // The order of the list does not matter, and what is placed stays.
            let reversed: Vec<_> = all.iter().rev().cloned().collect();
            prop_assert_eq!(&place(owners, &reversed), &targets);
            prop_assert_eq!(&place(&targets, &all), &targets);
        }

        #[test]
        fn a_member_that_joins_or_leaves_moves_only_what_must_move(
            partitions in 1..40_usize,
            members in proptest::collection::btree_set(1..50_u64, 2..9),
            nth in any::<prop::sample::Index>(),
        ) {
            let all = candidates(&members);
            let one = *nth.get(&members.iter().copied().collect::<Vec<_>>());
            let rest: Vec<_> = all.iter().filter(|other| other.process != one).cloned().collect();
            let placed = place(&vec![None; partitions], &all);
            let left = place(&placed, &rest);
            prop_assert_eq!(moved(&placed, &left), count(&placed, one));
            let joined = place(&left, &all);
            prop_assert_eq!(moved(&left, &joined), count(&joined, one));
            prop_assert!(count(&joined, one) <= partitions.div_ceil(members.len()));
        }

        #[test]
        fn one_partition_after_the_other_leads_to_the_same_placement(
            partitions in 1..40_usize,
            members in proptest::collection::btree_set(1..50_u64, 1..9),
            owners in proptest::collection::vec(1..50_u64, 40),
        ) {
            let all = candidates(&members);
            let mut owners: Vec<_> = owners[..partitions].iter().copied().map(Some).collect();
            let mut moves = 0;
            loop {
                let targets = place(&owners, &all);
                let Some(next) = (0..partitions).find(|&at| owners[at] != targets[at]) else { break };
                // Released, and then claimed by the target that it has without an owner.
                owners[next] = None;
                prop_assert_eq!(place(&owners, &all)[next], targets[next]);
                owners[next] = targets[next];
                moves += 1;
                prop_assert!(moves <= partitions, "no partition moves twice");
            }
        }
    }
}
