//! Fair shares of a pool, by the dynamic thresholds of Choudhury and Hahne for shared-memory
//! switches.
//!
//! A claimant may hold up to [`SHARE`] times the free places, so a greedy one stops at 90 %. The
//! last 10 % are only for claimants that hold less than 10 %: large ones cannot use it up together.
//!
//! Nothing is revoked: a claimant above its share gets no more until it has released enough. So the
//! shares become equal as places are released.

const SHARE: u64 = 9;

/// The fraction reserved for claimants that hold less than it.
const RESERVE: u64 = 10;

#[derive(Clone, Copy, Debug)]
pub struct SharedPool {
    pub capacity: u64,
    pub used: u64,
}

impl SharedPool {
    pub fn new(capacity: usize, used: usize) -> Self {
        Self { capacity: capacity as u64, used: used as u64 }
    }

    /// Unused places. A restart with a lower capacity can overdraw a pool.
    pub fn free(self) -> u64 {
        self.capacity.saturating_sub(self.used)
    }

    /// Whether a claimant that holds `held` may take one more.
    pub fn has_room_for(self, held: u64) -> bool {
        let (free, reserve) = (self.free(), self.capacity / RESERVE);
        held < free.saturating_mul(SHARE) && (free > reserve || held < reserve)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Takes places for one claimant until it gets no more.
    fn take_all(capacity: u64, held: &mut [u64], who: usize) {
        while (SharedPool { capacity, used: held.iter().sum() }).has_room_for(held[who]) {
            held[who] += 1;
        }
    }

    #[test]
    fn one_claimant_may_have_nine_tenths() {
        for (capacity, most) in [(1000, 900), (500, 450), (10, 9), (5, 5), (1, 1), (0, 0)] {
            let mut held = [0];
            take_all(capacity, &mut held, 0);
            assert_eq!(held, [most], "of {capacity}");
        }
    }

    #[test]
    fn an_overdrawn_pool_has_no_room() {
        assert!(!SharedPool { capacity: 10, used: 11 }.has_room_for(0));
    }

    proptest! {
        #[test]
        fn the_pool_is_never_overdrawn_and_a_tenth_is_left_by_the_large_ones(
            capacity in 0..2000u64,
            claims in prop::collection::vec((0..40usize, 0..3u8), 1..4000),
        ) {
            let mut held = [0u64; 40];
            for (who, what) in claims {
                let used: u64 = held.iter().sum();
                let room = SharedPool { capacity, used }.has_room_for(held[who]);
                match what {
                    0 => held[who] = held[who].saturating_sub(1),
                    _ if room => {
                        held[who] += 1;
                        let left = capacity - used - 1;
                        prop_assert!(left >= capacity / 10 || held[who] <= capacity / 10);
                    }
                    _ => {}
                }
                prop_assert!(held.iter().sum::<u64>() <= capacity);
            }
        }

        /// Once the others release places, whatever they took before.
        #[test]
        fn a_claimant_that_holds_none_finds_a_place_once_the_others_have_given_some_back(
            capacity in 20..1000u64,
            others in 1..12usize,
        ) {
            prop_assume!(capacity > 19 * others as u64);
            let mut held = vec![0; others];
            (0..others).for_each(|who| take_all(capacity, &mut held, who));
            for _ in 0..capacity {
                for who in 0..others {
                    held[who] = held[who].saturating_sub(1);
                    take_all(capacity, &mut held, who);
                }
            }
            prop_assert!(SharedPool { capacity, used: held.iter().sum() }.has_room_for(0), "{held:?}");
        }
    }
}
