//! The end of a connection and a pause of the daemon are not failures of a replica.

use std::time::{Duration, Instant};

use crate::support::replica::Gate;
use crate::support::{Behaviour, Daemon, Replica, set, strong, wait_until};

#[tokio::test]
async fn a_daemon_that_was_stopped_for_longer_than_its_timeouts_uses_the_answers_that_arrived() {
    let args = ["--request-timeout", "4s", "--strong-timeout", "5s", "--breaker-failures", "1"];
    let (daemon, gate) = (Daemon::start(&args).await, Gate::default());
    let behind = gate.clone();
    let replica = Replica::with(move |_| Behaviour::ApplyBehind(behind.clone())).await;
    daemon.accept(&set("eventual", "v", &[&replica])).await;
    let body = strong("strong", "v", &[&replica]);
    let (posted, ()) = tokio::join!(daemon.post(&body), async {
        replica.until_seen(2).await;
        daemon.signal("-STOP");
        let stopped = Instant::now();
        gate.open();
        wait_until("all timeouts are over", || {
            std::future::ready((stopped.elapsed() > Duration::from_secs(7)).then_some(()))
        })
        .await;
        daemon.signal("-CONT");
    });
    assert_eq!(posted.0, 200, "{}", posted.1);
    daemon.until_drained().await;
    daemon.until_logged("did not run for a while").await;
    let metrics = daemon.metrics().await;
    assert_eq!(metrics["failed_replicas"], 0, "{metrics}");
    assert_eq!(replica.seen().len(), 2, "nothing was sent twice");
}

#[tokio::test]
async fn a_replica_that_restarts_between_two_writes_fails_neither() {
    let daemon = Daemon::start(&["--breaker-failures", "1"]).await;
    let replica = Replica::start().await;
    for round in 0..5 {
        let (status, answer) = daemon.post(&strong(&format!("k{round}"), "v", &[&replica])).await;
        assert_eq!(status, 200, "{answer}");
        replica.stop();
        replica.come_back().await;
    }
    let metrics = daemon.metrics().await;
    assert_eq!(metrics["failed_replicas"], 0, "{metrics}");
}
