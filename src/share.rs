//! Fair shares of a pool, by the dynamic thresholds of Choudhury and Hahne for shared-memory
//! switches.
//!
//! A claimant may hold up to [`SHARE`] times the free places, so a greedy one stops at 90 %. The
//! last 10 % are only for claimants that hold less than 10 % and less than what is still free: no
//! number of claimants that hold something can use it up, and one that holds nothing is served.
//!
//! Nothing is revoked: a claimant above its share gets no more until it has released enough. So the
//! shares become equal as places are released.
//!
//! Most pools have two kinds of claimants: the client of a write, and the host of its replica
//! ([`Held`]). Within the share of one, the shares of the other are divided again: a client cannot
//! use up a replica for the other clients, nor a replica a client's room for the other replicas.

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

    fn reserve(self) -> u64 {
        self.capacity / RESERVE
    }

    /// Whether a claimant that holds `held` may take one more.
    pub fn has_room_for(self, held: u64) -> bool {
        self.has_room_for_more(held, 1)
    }

    /// Whether a claimant that holds `held` may take `more`, which is not zero.
    pub fn has_room_for_more(self, held: u64, more: u64) -> bool {
        let (free, reserve) = (self.free(), self.reserve());
        let after = held.saturating_add(more);
        more <= free
            && after <= free.saturating_mul(SHARE)
            && (free - more >= reserve || (after <= reserve && held < free))
    }

    /// Up to how much a claimant that holds `held` may hold, while the others take nothing.
    fn allowance(self, held: u64) -> u64 {
        let (free, reserve) = (self.free(), self.reserve());
        let large =
            (free.saturating_mul(SHARE).saturating_sub(held).saturating_add(SHARE)) / (SHARE + 1);
        let small = reserve.saturating_sub(held).min(free);
        held + large.min(free.saturating_sub(reserve)).max(small)
    }
}

/// What the claimants of a write hold of a pool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    pub client: u64,
    pub host: u64,
    /// Of the client, for the host.
    pub pair: u64,
}

/// Whose share is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShareOf {
    Client,
    Host,
    ClientAtHost,
}

/// Which claimants have had no others beside them for a while: their limits do not apply.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone {
    pub client: bool,
    pub host: bool,
}

impl Held {
    /// How much more these claimants may take one by one, while the others take nothing.
    pub fn room(self, pool: SharedPool) -> u64 {
        let fits = |more: u64| {
            let before = more.saturating_sub(1);
            let held = |held: u64| held.saturating_add(before);
            let held =
                Self { client: held(self.client), host: held(self.host), pair: held(self.pair) };
            let used = pool.used.saturating_add(before);
            held.may_take(SharedPool { used, ..pool }, 1, Alone::default()).is_ok()
        };
        let (mut fitting, mut too_much) = (0, pool.free().saturating_add(1));
        while fitting + 1 < too_much {
            let middle = fitting + (too_much - fitting) / 2;
            if fits(middle) {
                fitting = middle;
            } else {
                too_much = middle;
            }
        }
        fitting
    }

    /// Whether a write may take `more` of a pool, within all shares.
    pub fn may_take(self, pool: SharedPool, more: u64, alone: Alone) -> Result<(), ShareOf> {
        // What is larger than a share would otherwise never find room.
        if pool.used == 0 && more <= pool.capacity {
            return Ok(());
        }
        let within = |alone: bool, held: u64| match alone {
            true => SharedPool { capacity: pool.capacity, used: held },
            false => SharedPool { capacity: pool.allowance(held), used: held },
        };
        if !alone.client && !pool.has_room_for_more(self.client, more) {
            return Err(ShareOf::Client);
        }
        if !alone.host && !pool.has_room_for_more(self.host, more) {
            return Err(ShareOf::Host);
        }
        let pair = |pool: SharedPool| pool.has_room_for_more(self.pair, more);
        let of_host = alone.client || pair(within(alone.host, self.host));
        let of_client = alone.host || pair(within(alone.client, self.client));
        if of_host && of_client { Ok(()) } else { Err(ShareOf::ClientAtHost) }
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
    fn the_room_of_a_claimant_is_what_it_gets_one_by_one() {
        for (capacity, others, held) in
            [(1000, 0, 0), (1000, 300, 0), (1000, 100, 400), (1000, 900, 50), (7, 2, 1), (5, 6, 0)]
        {
            let (mut taken, mut all) = (0, Held { client: held, host: held, pair: held });
            let pool = |all: Held| SharedPool { capacity, used: others + all.host };
            let room = all.room(pool(all));
            while all.may_take(pool(all), 1, Alone::default()).is_ok() {
                taken += 1;
                let held = held + taken;
                all = Held { client: held, host: held, pair: held };
            }
            assert_eq!(room, taken, "of {capacity}, {others} taken by others and {held} by it");
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
