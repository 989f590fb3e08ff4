//! A store that does not answer: its disk hangs, or a network file system has lost its server.
//!
//! Nothing fails then, a call just does not return, and everything that waits for the store waits for
//! as long. So someone who does not wait for it looks at it from time to time, says so, and has new
//! writes refused until it answers again.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{info, warn};

use crate::dispatcher::Health;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// So many looks in a row at one turn of the committer that does not end. It is their number that
/// counts, not the time: while the process itself was stopped, nobody has looked.
const LOOKS: u32 = 8;

/// Looks at the store until it is dropped. Tells `stalled` whether the store answers, and `health`
/// as long as that has nothing worse to say.
pub(super) async fn watch(
    in_progress: impl Fn() -> Option<u64>,
    health: watch::Sender<Health>,
    stalled: watch::Sender<bool>,
) {
    let (mut last, mut looks) = (None, 0);
    let mut since = None;
    loop {
        sleep(LOOK_EVERY).await;
        let turn = in_progress();
        looks = if turn.is_some() && turn == last { looks + 1 } else { 0 };
        last = turn;
        match since {
            None if looks >= LOOKS => {
                let begun = now() - LOOK_EVERY * looks;
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
                    "the store does not answer: its disk hangs or is overloaded; new writes are refused until it answers"
                );
            }
            Some(begun) if looks == 0 => {
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

#[expect(clippy::disallowed_methods, reason = "only what is said of how long it takes")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    type Turn = Arc<Mutex<Option<u64>>>;

    fn start() -> (Turn, watch::Sender<Health>, watch::Receiver<bool>) {
        let (health, _) = watch::channel(Health::Serving);
        let (stalled, reports) = watch::channel(false);
        let turn = Turn::default();
        let in_progress = Arc::clone(&turn);
        tokio::spawn(watch(move || *in_progress.lock().unwrap(), health.clone(), stalled));
        (turn, health, reports)
    }

    fn set(turn: &Turn, number: Option<u64>) {
        *turn.lock().unwrap() = number;
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
    async fn a_store_that_is_busy_for_long_with_many_turns_answers() {
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
