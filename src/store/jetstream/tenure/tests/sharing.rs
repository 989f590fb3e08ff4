//! The same instances with several partitions, which they share by the placement: each has a log of its own,
//! and an instance that stops, stops in all of them.

use std::collections::HashMap;

use super::model::{INSTANCES, LEASE, World};
use super::*;
use crate::store::jetstream::placement::{Candidate, place};

const PARTITIONS: usize = 4;

const DECIDE_EVERY: u64 = 100;

/// An instance that was not heard for longer is dead, for the others.
const HEARD_WITHIN: u64 = 3_000;

/// Of each partition.
type Owners = Vec<Option<u64>>;

/// The placements, which are the same in every history.
#[derive(Default)]
struct Places(HashMap<(Owners, Vec<u64>), Owners>);

impl Places {
    fn get(&mut self, owners: &[Option<u64>], live: &[u64]) -> Owners {
        let place = || {
            let candidate = |&process: &u64| Candidate {
                process,
                node: format!("n{process}"),
                refuses: Vec::new(),
            };
            place(owners, &live.iter().map(candidate).collect::<Vec<_>>())
        };
        self.0.entry((owners.to_vec(), live.to_vec())).or_insert_with(place).clone()
    }
}

struct Cluster {
    partitions: Vec<World>,
    rng: fastrand::Rng,
    /// When each instance ran last.
    heard: [u64; INSTANCES],
    /// Partitions that were given away because another instance should own them.
    handed_over: u64,
}

impl Cluster {
    fn new(seed: u64) -> Self {
        let world = |nth| World::new(seed * 100 + nth);
        Self {
            partitions: (0..PARTITIONS as u64).map(world).collect(),
            rng: fastrand::Rng::with_seed(seed),
            heard: [0; INSTANCES],
            handed_over: 0,
        }
    }

    fn run(&mut self, until: u64, trouble: bool, places: &mut Places) {
        while self.partitions[0].now < until {
            let now = self.partitions[0].now;
            if trouble && self.rng.u32(..1_000) < 8 {
                let (length, at) = (self.rng.u64(100..5_000), self.rng.usize(..INSTANCES));
                for world in &mut self.partitions {
                    world.instances[at].stopped_until = now + length;
                }
            }
            for at in 0..INSTANCES {
                if self.partitions[0].instances[at].stopped_until <= now {
                    self.heard[at] = now;
                    if now.is_multiple_of(DECIDE_EVERY) {
                        self.decide(at, places);
                    }
                }
            }
            self.partitions.iter_mut().for_each(|world| world.step(trouble));
        }
    }

    /// As `sharing.rs`, by what this instance knows.
    fn decide(&mut self, at: usize, places: &mut Places) {
        let now = self.partitions[0].now;
        let owners = self.owners(at);
        let is_live = |one: &u64| now - self.heard[usize::try_from(*one).unwrap()] <= HEARD_WITHIN;
        let live: Vec<_> = (0..INSTANCES as u64).filter(is_live).collect();
        let targets = places.get(&owners, &live);
        let first = owners.iter().zip(&targets).position(|(owner, target)| owner != target);
        let first = first.filter(|first| owners[*first] == Some(at as u64));
        let first = first.filter(|_| owners.iter().all(Option::is_some));
        for (partition, world) in self.partitions.iter_mut().enumerate() {
            let instance = &mut world.instances[at];
            let last = instance.last.as_ref().map(|(_, last)| last);
            let former = last.filter(|last| !last.is_released).map(|last| last.writer.process);
            let others: Vec<_> = live.iter().copied().filter(|one| Some(*one) != former).collect();
            let is_target = places.get(&owners, &others)[partition] == Some(at as u64);
            let later = Duration::from_millis(LEASE / 2);
            instance.claim = Some(if is_target { Duration::ZERO } else { later });
            let release = first == Some(partition);
            self.handed_over += u64::from(release && !instance.release);
            instance.release = release;
        }
    }

    fn owners(&self, at: usize) -> Owners {
        let owner = |world: &World| {
            let instance = &world.instances[at];
            let last = instance.last.as_ref().map(|(_, last)| last.writer.process);
            match instance.owned {
                Some(_) => Some(at as u64),
                None => last.filter(|_| instance.tenure.is_owned_elsewhere(world.boot())),
            }
        };
        self.partitions.iter().map(owner).collect()
    }
}

#[test]
fn several_partitions_are_shared_evenly_in_the_end_and_each_has_one_owner_at_a_time() {
    let (mut claims, mut handed_over, mut places) = (0, 0, Places::default());
    for seed in 0..200 {
        let mut cluster = Cluster::new(seed);
        cluster.run(8_000, true, &mut places);
        cluster.run(21_000, false, &mut places);
        cluster.partitions.iter().for_each(|world| world.check_end(seed));
        let mut counts = [0; INSTANCES];
        for world in &cluster.partitions {
            let owners = world.instances.iter().map(|instance| instance.owned.is_some());
            for (count, owns) in counts.iter_mut().zip(owners) {
                *count += usize::from(owns);
            }
        }
        counts.sort_unstable();
        assert_eq!(counts, [1, 1, 2], "seed {seed}");
        claims += cluster.partitions.iter().map(|world| world.claims).sum::<u64>();
        handed_over += cluster.handed_over;
    }
    // Otherwise nothing was tested.
    assert!(claims > 1_000 && handed_over > 100, "{claims} claims, {handed_over} handed over");
}
