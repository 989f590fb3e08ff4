//! Detects a store that does not answer: its disk hangs, or a network file system has lost its server.
//!
//! Such a call neither fails nor returns, and everything that waits for the store hangs. This task does
//! not wait for the store; it checks the committer, logs a stall, and has new writes refused until the
//! store answers again.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::dispatcher::Health;

const CHECK_EVERY: Duration = Duration::from_millis(500);
/// A disk has stalled after this time.
pub(super) const DISK_HANGS: Duration = Duration::from_secs(4);

/// Runs until it is dropped. Sets `stalled`, and `health` unless it is worse.
///
/// The store has stalled when one operation takes longer than `patience`. Checks are counted instead
/// of time, because the process itself may have been stopped.
pub(super) async fn watch(
    in_progress: impl Fn() -> Option<u64>,
    patience: Duration,
    health: watch::Sender<Health>,
    stalled: watch::Sender<bool>,
) {
    let max_checks = patience.as_millis().div_ceil(CHECK_EVERY.as_millis());
    let (mut last, mut checks) = (None, 0);
    let mut since = None;
    loop {
        sleep(CHECK_EVERY).await;
        let turn = in_progress();
        checks = if turn.is_some() && turn == last { checks + 1 } else { 0 };
        last = turn;
        match since {
            None if u128::from(checks) >= max_checks => {
                let begun = now() - CHECK_EVERY * checks;
                since = Some(begun);
                stalled.send_replace(true);
                health.send_if_modified(|health| {
                    let serving = *health == Health::Serving;
                    if serving {
                        *health = Health::Stalled { since: begun };
                    }
                    serving
                });
                warn!(
                    seconds = begun.elapsed().as_secs(),
                    "the store does not answer: its disk hangs or is overloaded, or too few servers of --store are up; new writes are refused until it answers"
                );
            }
            Some(begun) if checks == 0 => {
                since = None;
                stalled.send_replace(false);
                health.send_if_modified(|health| {
                    let over = matches!(health, Health::Stalled { .. });
                    if over {
                        *health = Health::Serving;
                    }
                    over
                });
                info!(seconds = begun.elapsed().as_secs(), "the store answers again");
            }
            _ => {}
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "only for the reported duration of the stall")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    type SharedTurn = Arc<Mutex<Option<u64>>>;

    fn start() -> (SharedTurn, watch::Sender<Health>, watch::Receiver<bool>) {
        let (health, _) = watch::channel(Health::Serving);
        let (stalled, reports) = watch::channel(false);
        let turn = SharedTurn::default();
        let in_progress = Arc::clone(&turn);
        tokio::spawn(watch(move || *in_progress.lock(), DISK_HANGS, health.clone(), stalled));
        (turn, health, reports)
    }

    fn set(turn: &SharedTurn, number: Option<u64>) {
        *turn.lock() = number;
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_does_not_end_is_reported_within_five_seconds_and_so_is_its_end() {
        let (turn, health, mut stalled) = start();
        let begun = now();
        set(&turn, Some(1));
        stalled.wait_for(|stalled| *stalled).await.unwrap();
        assert!(begun.elapsed() <= Duration::from_secs(5), "{:?}", begun.elapsed());
        let Health::Stalled { since } = *health.borrow() else { panic!("{health:?}") };
        assert!(since.elapsed() >= Duration::from_secs(4));
        set(&turn, None);
        stalled.wait_for(|stalled| !*stalled).await.unwrap();
        assert_eq!(*health.borrow(), Health::Serving);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_busy_with_many_turns_is_not_stalled() {
        let (turn, health, stalled) = start();
        for number in 0..100 {
            set(&turn, Some(number));
            sleep(Duration::from_millis(700)).await;
        }
        assert!(!*stalled.borrow());
        assert_eq!(*health.borrow(), Health::Serving);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_during_a_drain_does_not_change_the_health() {
        let (turn, health, mut stalled) = start();
        health.send_replace(Health::Draining);
        set(&turn, Some(1));
        stalled.wait_for(|stalled| *stalled).await.unwrap();
        assert_eq!(*health.borrow(), Health::Draining);
        set(&turn, None);
        stalled.wait_for(|stalled| !*stalled).await.unwrap();
        assert_eq!(*health.borrow(), Health::Draining);
    }
}
