use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;

const LONG: Duration = Duration::from_secs(3_600);

fn held() -> Lease {
    let lease = Lease::new();
    lease.extend(BootTime::now() + LONG);
    lease
}

fn is_pending(future: std::pin::Pin<&mut impl Future>) -> bool {
    matches!(future.poll(&mut Context::from_waker(Waker::noop())), Poll::Pending)
}

#[test]
fn a_new_lease_is_neither_held_nor_lost() {
    let lease = Lease::new();
    assert!(!lease.is_held());
    assert!(!lease.is_lost());
}

#[test]
fn a_lease_is_held_until_its_end() {
    let lease = Lease::new();
    lease.extend(BootTime::now());
    assert!(!lease.is_held(), "its end has passed");
    lease.extend(BootTime::now() + LONG);
    assert!(lease.is_held());
    assert!(lease.clone().is_held(), "a clone is the same lease");
}

#[test]
fn a_lease_is_never_shortened() {
    let lease = held();
    lease.extend(BootTime::now());
    assert!(lease.is_held());
}

#[test]
fn a_lost_lease_is_never_held_again() {
    for lease in [Lease::new(), held()] {
        lease.lose();
        assert!(!lease.is_held());
        lease.extend(BootTime::now() + LONG);
        assert!(!lease.is_held());
        assert!(lease.is_lost());
        lease.extend(BootTime(u64::MAX));
        assert!(!lease.is_held());
    }
}

#[test]
fn the_longest_lease_is_not_a_lost_one() {
    let lease = Lease::new();
    lease.extend(BootTime::now() + Duration::MAX);
    assert!(lease.is_held());
    assert!(!lease.is_lost());
}

#[tokio::test]
async fn held_waits_for_an_extension() {
    let lease = Lease::new();
    let mut waits = pin!(lease.held());
    assert!(is_pending(waits.as_mut()));
    lease.extend(BootTime::now());
    assert!(is_pending(waits.as_mut()), "its end has passed");
    lease.extend(BootTime::now() + LONG);
    assert_eq!(waits.await, Ok(()));
    assert_eq!(lease.held().await, Ok(()));
}

#[tokio::test]
async fn held_is_an_error_once_the_lease_is_lost() {
    let lease = Lease::new();
    let mut waits = pin!(lease.held());
    assert!(is_pending(waits.as_mut()));
    lease.lose();
    assert_eq!(waits.await, Err(LeaseLost));
    assert_eq!(lease.held().await, Err(LeaseLost));
}

#[tokio::test]
async fn ended_waits_for_the_loss_of_the_lease() {
    let lease = held();
    let mut ends = pin!(lease.ended());
    assert!(is_pending(ends.as_mut()));
    lease.lose();
    ends.await;
    lease.ended().await;
}

#[tokio::test]
async fn ended_waits_for_the_end_and_for_one_that_was_extended() {
    Lease::new().ended().await;
    let lease = Lease::new();
    let first = BootTime::now() + Duration::from_millis(30);
    lease.extend(first);
    let mut ends = pin!(lease.ended());
    let _ = is_pending(ends.as_mut());
    let second = first + Duration::from_millis(30);
    lease.extend(second);
    // If the machine stood still, the first end has passed before the extension.
    ends.await;
    lease.ended().await;
    assert!(BootTime::now() >= second);
}

#[tokio::test]
async fn an_open_fence_always_allows_sending() {
    let fence = Fence::Open;
    assert!(fence.is_held());
    assert_eq!(fence.held().await, Ok(()));
    assert_eq!(fence.epoch(), None);
    assert!(is_pending(pin!(fence.ended())));
}

#[tokio::test]
async fn a_fence_with_a_lease_follows_the_lease() {
    let lease = held();
    let fence = Fence::Held { epoch: 7, lease: lease.clone() };
    assert!(fence.is_held());
    assert_eq!(fence.epoch(), Some(7));
    assert_eq!(fence.held().await, Ok(()));
    lease.lose();
    assert!(!fence.is_held());
    assert_eq!(fence.held().await, Err(LeaseLost));
    fence.ended().await;
}

#[tokio::test]
async fn a_lost_fence_never_allows_sending() {
    let fence = Fence::Lost;
    assert!(!fence.is_held());
    assert_eq!(fence.epoch(), None);
    assert_eq!(fence.held().await, Err(LeaseLost));
    fence.ended().await;
}

#[test]
fn boot_time_runs_on_and_saturates() {
    let now = BootTime::now();
    assert!(BootTime::now() >= now);
    assert_eq!((now + LONG).saturating_since(now), LONG);
    assert_eq!(now.saturating_since(now + LONG), Duration::ZERO);
    assert_eq!(now + Duration::MAX, BootTime(u64::MAX));
}
