use super::*;
use crate::store::jetstream::checkpoint::{PartitionLevels, Settled, StoreInstance};

mod model;
mod sharing;

const LEASE: Duration = Duration::from_secs(2);
const ME: u64 = 1;
const OTHER: u64 = 2;

const CLAIM: Wish = Wish { claim: Some(Duration::ZERO), settle: false, release: false };
const NOTHING: Wish = Wish { claim: None, settle: false, release: false };
const SETTLE: Wish = Wish { claim: Some(Duration::ZERO), settle: true, release: false };
const RELEASE: Wish = Wish { claim: None, settle: false, release: true };

/// A time, in milliseconds of the test.
struct Clock(BootTime);

impl Clock {
    fn at(&self, millis: u64) -> BootTime {
        self.0 + Duration::from_millis(millis)
    }
}

fn checkpoint(process: u64, epoch: u64, counter: u64, is_released: bool) -> Checkpoint {
    Checkpoint {
        writer: StoreInstance { process, node: format!("node {process}") },
        is_released,
        epoch,
        counter,
        settled: Settled::default(),
        levels: PartitionLevels::default(),
    }
}

fn clock() -> Clock {
    Clock(BootTime::now())
}

fn link(epoch: u64, counter: u64, expected: u64) -> Step {
    Step::Write(Link { epoch, counter, expected, is_repeat: false, is_last: false })
}

/// The owner of epoch 8, whose claim was sent at 0 and is stored as 50.
fn owner(clock: &Clock) -> Tenure {
    let mut tenure = Tenure::new(ME, LEASE);
    assert_eq!(tenure.next(clock.at(0), CLAIM), Step::Look);
    tenure.looked(clock.at(0), Some((40, &checkpoint(OTHER, 7, 3, true))));
    assert_eq!(tenure.next(clock.at(0), CLAIM), link(8, 0, 40));
    let until = clock.at(2_000);
    assert_eq!(tenure.stored(50), Change::Claimed { epoch: 8, sequence: 50, until });
    tenure
}

#[test]
fn a_partition_that_nobody_ever_owned_is_claimed_at_once() {
    let (clock, mut tenure) = (clock(), Tenure::new(ME, LEASE));
    assert_eq!(tenure.next(clock.at(0), CLAIM), Step::Look);
    assert_eq!(tenure.looked(clock.at(5), None), Change::None);
    assert_eq!(tenure.next(clock.at(5), CLAIM), link(1, 0, 0));
}

#[test]
fn a_partition_is_claimed_when_its_last_checkpoint_is_old_enough() {
    let (clock, mut tenure) = (clock(), Tenure::new(ME, LEASE));
    let looks = [0, 500, 1_000, 1_500];
    for at in looks {
        assert_eq!(tenure.next(clock.at(at), CLAIM), Step::Look, "{at}");
        tenure.looked(clock.at(at), Some((9, &checkpoint(OTHER, 3, 4, false))));
    }
    // A newer one begins the wait again.
    assert_eq!(tenure.next(clock.at(2_000), CLAIM), Step::Look);
    tenure.looked(clock.at(2_000), Some((12, &checkpoint(OTHER, 3, 5, false))));
    assert!(tenure.is_owned_elsewhere(clock.at(2_000)));
    for at in [2_500, 3_000, 3_500, 4_000] {
        assert_eq!(tenure.next(clock.at(at), CLAIM), Step::Look, "{at}");
        // A stale read changes nothing.
        tenure.looked(clock.at(at), Some((9, &checkpoint(OTHER, 3, 4, false))));
    }
    assert!(matches!(tenure.next(clock.at(4_199), CLAIM), Step::Wait(_)));
    assert_eq!(tenure.next(clock.at(4_200), CLAIM), link(4, 0, 12));
    assert!(!tenure.is_owned_elsewhere(clock.at(4_200)));
}

#[test]
fn an_instance_that_is_no_target_claims_later() {
    let later = Wish { claim: Some(LEASE / 2), ..CLAIM };
    let (clock, mut tenure) = (clock(), Tenure::new(ME, LEASE));
    assert_eq!(tenure.next(clock.at(0), later), Step::Look);
    tenure.looked(clock.at(0), Some((9, &checkpoint(OTHER, 3, 4, true))));
    assert_eq!(tenure.next(clock.at(0), later), Step::Wait(clock.at(500)));
    assert_eq!(tenure.next(clock.at(500), later), Step::Look);
    assert_eq!(tenure.next(clock.at(500), later), Step::Wait(clock.at(1_000)));
    assert_eq!(tenure.next(clock.at(1_000), later), link(4, 0, 9));
}

#[test]
fn news_of_another_instance_is_looked_for_at_once() {
    let (clock, mut tenure) = (clock(), Tenure::new(ME, LEASE));
    assert_eq!(tenure.next(clock.at(0), CLAIM), Step::Look);
    tenure.looked(clock.at(0), Some((9, &checkpoint(OTHER, 3, 4, false))));
    assert!(matches!(tenure.next(clock.at(100), CLAIM), Step::Wait(_)));
    tenure.look_now();
    assert_eq!(tenure.next(clock.at(100), CLAIM), Step::Look);
    tenure.looked(clock.at(110), Some((12, &checkpoint(OTHER, 3, 5, true))));
    assert_eq!(tenure.next(clock.at(110), CLAIM), link(4, 0, 12));
}

#[test]
fn nothing_is_claimed_that_may_not_be_owned() {
    let (clock, mut tenure) = (clock(), Tenure::new(ME, LEASE));
    assert_eq!(tenure.next(clock.at(0), NOTHING), Step::Look);
    tenure.looked(clock.at(0), None);
    assert!(matches!(tenure.next(clock.at(0), NOTHING), Step::Wait(_)));
    assert_eq!(tenure.next(clock.at(90_000), NOTHING), Step::Look);
}

#[test]
fn the_lease_counts_from_the_sending_of_the_last_stored_checkpoint() {
    let clock = clock();
    let mut tenure = owner(&clock);
    assert!(matches!(tenure.next(clock.at(399), CLAIM), Step::Wait(_)));
    assert_eq!(tenure.next(clock.at(400), CLAIM), link(8, 1, 50));
    assert_eq!(tenure.next(clock.at(700), SETTLE), Step::Await, "one is on its way at a time");
    let until = clock.at(2_400);
    assert_eq!(tenure.stored(51), Change::Stored { sequence: 51, until });
    assert_eq!(tenure.next(clock.at(700), SETTLE), link(8, 2, 51));
}

#[test]
fn a_checkpoint_without_an_answer_is_found_or_sent_again_unchanged() {
    let clock = clock();
    let mut tenure = owner(&clock);
    assert_eq!(tenure.next(clock.at(400), CLAIM), link(8, 1, 50));
    tenure.unknown();
    assert_eq!(tenure.next(clock.at(1_400), CLAIM), Step::Look);
    // Not stored, or the read was stale.
    assert_eq!(
        tenure.looked(clock.at(1_400), Some((50, &checkpoint(ME, 8, 0, false)))),
        Change::None
    );
    let again = Link { epoch: 8, counter: 1, expected: 50, is_repeat: true, is_last: false };
    assert_eq!(tenure.next(clock.at(1_400), SETTLE), Step::Write(again));
    // Now it does not follow the last one: the first copy was stored after all.
    tenure.refused();
    assert_eq!(tenure.next(clock.at(1_500), CLAIM), Step::Look);
    let found = tenure.looked(clock.at(1_500), Some((51, &checkpoint(ME, 8, 1, false))));
    // The lease counts from the first time that it was sent.
    assert_eq!(found, Change::Stored { sequence: 51, until: clock.at(2_400) });
}

#[test]
fn a_checkpoint_for_which_the_log_has_no_room_is_replaced_by_another_one() {
    let clock = clock();
    let mut tenure = owner(&clock);
    assert_eq!(tenure.next(clock.at(400), SETTLE), link(8, 1, 50));
    tenure.full();
    assert_eq!(tenure.next(clock.at(500), CLAIM), link(8, 2, 50));
    tenure.refused();
    assert_eq!(tenure.next(clock.at(600), CLAIM), Step::Look);
    // An earlier copy of the first one was stored after all. It says something else.
    let found = tenure.looked(clock.at(600), Some((51, &checkpoint(ME, 8, 1, false))));
    assert_eq!(found, Change::Lost);
}

#[test]
fn an_owner_that_finds_another_ones_checkpoint_has_lost() {
    let clock = clock();
    let mut tenure = owner(&clock);
    tenure.next(clock.at(9_000), CLAIM);
    tenure.refused();
    assert_eq!(tenure.next(clock.at(9_100), CLAIM), Step::Look);
    let found = tenure.looked(clock.at(9_100), Some((60, &checkpoint(OTHER, 9, 0, false))));
    assert_eq!(found, Change::Lost);
    assert!(!tenure.is_owner() && tenure.is_owned_elsewhere(clock.at(9_100)));
    assert_ne!(tenure.next(clock.at(9_200), CLAIM), link(10, 0, 60));
}

#[test]
fn an_owner_whose_lease_has_ended_goes_on_if_nobody_claimed() {
    let clock = clock();
    let mut tenure = owner(&clock);
    assert_eq!(tenure.next(clock.at(60_000), CLAIM), link(8, 1, 50));
    let until = clock.at(62_000);
    assert_eq!(tenure.stored(51), Change::Stored { sequence: 51, until });
}

#[test]
fn of_two_claims_one_wins_and_the_other_follows() {
    let (clock, mut tenure) = (clock(), Tenure::new(ME, LEASE));
    tenure.next(clock.at(0), CLAIM);
    tenure.looked(clock.at(0), Some((40, &checkpoint(OTHER, 7, 3, true))));
    assert_eq!(tenure.next(clock.at(0), CLAIM), link(8, 0, 40));
    tenure.refused();
    assert_eq!(tenure.next(clock.at(10), CLAIM), Step::Look);
    // The same epoch, but not this process.
    let found = tenure.looked(clock.at(10), Some((41, &checkpoint(3, 8, 0, false))));
    assert_eq!(found, Change::None);
    assert!(tenure.is_idle() && tenure.is_owned_elsewhere(clock.at(10)));
}

#[test]
fn a_released_partition_is_claimed_by_the_next_one_at_once() {
    let clock = clock();
    let mut tenure = owner(&clock);
    let last = Link { epoch: 8, counter: 1, expected: 50, is_repeat: false, is_last: true };
    assert_eq!(tenure.next(clock.at(100), RELEASE), Step::Write(last));
    assert_eq!(tenure.stored(51), Change::Lost);
    assert!(tenure.is_idle());
    let mut other = Tenure::new(OTHER, LEASE);
    other.next(clock.at(100), CLAIM);
    other.looked(clock.at(100), Some((51, &checkpoint(ME, 8, 1, true))));
    assert_eq!(other.next(clock.at(100), CLAIM), link(9, 0, 51));
}
