//! Which instance should own which partition: pure, and the same in every instance that knows the same
//! owners and members.
//!
//! All members get the same number of partitions, or one more. A member keeps what it owns up to that
//! number, so that one that joins or leaves moves as few partitions as possible. A partition that
//! a member has too many of, or that has no owner, goes to the member with room that comes first by a
//! hash of the two (rendezvous hashing).

use std::cmp::Reverse;
use std::collections::HashMap;

/// A member that may own partitions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) process: u64,
    pub(super) node: String,
}

/// The process that should own each partition, given that which does; `None` without a candidate.
pub(super) fn place(owners: &[Option<u64>], candidates: &[Candidate]) -> Vec<Option<u64>> {
    let mut targets = vec![None; owners.len()];
    if candidates.is_empty() {
        return targets;
    }
    let least = owners.len() / candidates.len();
    let mut larger = owners.len() % candidates.len();
    let owned = |candidate: &Candidate| {
        let partitions = owners.iter().enumerate();
        let own = partitions.filter(move |(_, owner)| **owner == Some(candidate.process));
        own.map(|(partition, _)| partition).collect::<Vec<_>>()
    };
    // Those with the most partitions may have one more.
    let mut members: Vec<_> = candidates.iter().map(|one| (owned(one), one)).collect();
    members.sort_by_key(|(owned, one)| (Reverse(owned.len()), &one.node, one.process));
    let mut room = HashMap::new();
    for (owned, candidate) in &mut members {
        let mut most = least;
        if larger > 0 {
            (most, larger) = (most + 1, larger - 1);
        }
        owned.sort_by_key(|partition| Reverse(rank(*partition, candidate)));
        owned.truncate(most);
        for &mut partition in owned.iter_mut() {
            if let Some(target) = targets.get_mut(partition) {
                *target = Some(candidate.process);
            }
        }
        room.insert(candidate.process, most - owned.len());
    }
    for (partition, target) in targets.iter_mut().enumerate().filter(|(_, to)| to.is_none()) {
        let has_room = |one: &&Candidate| room.get(&one.process).is_some_and(|room| *room > 0);
        let first = candidates.iter().filter(has_room).max_by_key(|one| rank(partition, one));
        if let Some(first) = first {
            *target = Some(first.process);
            room.entry(first.process).and_modify(|room| *room -= 1);
        }
    }
    targets
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
            .map(|&process| Candidate { process, node: format!("n{process}") })
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

    proptest! {
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
