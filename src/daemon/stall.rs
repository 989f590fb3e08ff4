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
use crate::store::CommitterTurns;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// So many looks in a row at one turn of the committer that does not end. It is their number that
/// counts, not the time: while the process itself was stopped, nobody has looked.
const LOOKS: u32 = 8;

/// Looks at the store until it is dropped. Tells `stalled` whether the store answers, and `health`
/// as long as that has nothing worse to say.
pub(super) async fn watch(
    turns: CommitterTurns,
    health: watch::Sender<Health>,
    stalled: watch::Sender<bool>,
) {
    let (mut last, mut looks) = (None, 0);
    let mut since = None;
    loop {
        sleep(LOOK_EVERY).await;
        let turn = turns.in_progress();
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
    use super::*;

    fn start() -> (CommitterTurns, watch::Sender<Health>, watch::Receiver<bool>) {
        let (health, _) = watch::channel(Health::Serving);
        let (stalled, said) = watch::channel(false);
        let turns = CommitterTurns::default();
        tokio::spawn(watch(turns.clone(), health.clone(), stalled));
        (turns, health, said)
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_does_not_end_is_told_within_five_seconds_and_so_is_its_end() {
        let (turns, health, mut stalled) = start();
        let begun = now();
        let turn = turns.begin();
        stalled.wait_for(|stalled| *stalled).await.unwrap();
        assert!(begun.elapsed() <= Duration::from_secs(5), "{:?}", begun.elapsed());
        let Health::Stalled { since } = *health.borrow() else { panic!("{health:?}") };
        assert!(since.elapsed() >= Duration::from_secs(4));
        drop(turn);
        stalled.wait_for(|stalled| !*stalled).await.unwrap();
        assert_eq!(*health.borrow(), Health::Serving);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_busy_for_long_with_many_turns_answers() {
        let (turns, health, stalled) = start();
        for _ in 0..100 {
            let turn = turns.begin();
            sleep(Duration::from_millis(700)).await;
            drop(turn);
        }
        assert!(!*stalled.borrow());
        assert_eq!(*health.borrow(), Health::Serving);
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_while_the_daemon_drains_takes_nothing_from_that() {
        let (turns, health, mut stalled) = start();
        health.send_replace(Health::Draining);
        let turn = turns.begin();
        stalled.wait_for(|stalled| *stalled).await.unwrap();
        assert_eq!(*health.borrow(), Health::Draining);
        drop(turn);
        stalled.wait_for(|stalled| !*stalled).await.unwrap();
        assert_eq!(*health.borrow(), Health::Draining);
    }
}
