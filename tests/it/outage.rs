//! A replica goes down and recovers: the effect on the others, and how it catches up.

use std::time::Duration;

use serde_json::json;

use crate::support::replica::{Gate, Seen};
use crate::support::{Behaviour, Daemon, Replica, set, wait_until};

const QUICK: [&str; 2] = ["--retry-base", "20ms"];

async fn until_dead(daemon: &Daemon, letters: u64) {
    daemon.until_drained().await;
    daemon.until_metric("dead_letters", letters).await;
}

#[tokio::test]
async fn a_replica_that_comes_back_catches_up_by_itself() {
    let daemon = Daemon::start(&QUICK).await;
    let (down, healthy) = (Replica::start().await, Replica::start().await);
    down.stop();
    for n in 0..30 {
        daemon.accept(&set(&format!("k{n}"), &n.to_string(), &[&down, &healthy])).await;
    }
    until_dead(&daemon, 30).await;
    assert_eq!(daemon.metrics().await["permanent_failures"], 30);
    down.come_back().await;
    for n in 0..30 {
        down.until_holds(&format!("k{n}"), &n.to_string()).await;
    }
    until_dead(&daemon, 0).await;
    assert_eq!(down.seen().len(), 30, "each once");
    assert_eq!(healthy.seen().len(), 30);
    daemon.until_logged("the replica answers again").await;
}

#[tokio::test]
async fn a_replica_catches_up_after_a_restart_of_the_daemon_too() {
    let mut daemon = Daemon::start(&QUICK).await;
    let down = Replica::start().await;
    down.stop();
    for n in 0..10 {
        daemon.accept(&set(&format!("k{n}"), "v", &[&down])).await;
    }
    until_dead(&daemon, 10).await;
    daemon.kill_and_restart().await;
    until_dead(&daemon, 10).await;
    down.come_back().await;
    for n in 0..10 {
        down.until_holds(&format!("k{n}"), "v").await;
    }
    until_dead(&daemon, 0).await;
}

#[tokio::test]
async fn a_hanging_replica_receives_only_probes() {
    let daemon = Daemon::start(&[&QUICK[..], &["--request-timeout", "200ms"]].concat()).await;
    let hanging = Replica::with(|_| Behaviour::Hang).await;
    for n in 0..100 {
        daemon.accept(&set(&format!("k{n}"), "v", &[&hanging])).await;
    }
    until_dead(&daemon, 100).await;
    let metrics = daemon.metrics().await;
    let [sent, unsent] =
        ["failed_replicas", "unsent_replicas"].map(|name| metrics[name].as_u64().unwrap());
    assert!(sent + unsent >= 400, "each of them failed four times: {sent} + {unsent}");
    let seen = hanging.seen().len();
    assert!(seen < 40, "{seen} of {sent} + {unsent} attempts were sent");
    assert!(sent < 40, "{sent} are counted as sent, {seen} came");
}

#[tokio::test]
async fn a_dead_letter_older_than_a_newer_write_is_never_redriven() {
    let daemon = Daemon::start(&QUICK).await;
    let replica = Replica::with(|_| Behaviour::Answer(503, "", "")).await;
    for n in 0..10 {
        daemon.accept(&set(&format!("k{n}"), "old", &[&replica])).await;
    }
    until_dead(&daemon, 10).await;
    // Half of the keys get a newer write, which becomes a dead letter or is delivered later.
    for n in 0..5 {
        daemon.accept(&set(&format!("k{n}"), "new", &[&replica])).await;
    }
    let before = replica.seen().len();
    replica.behave(|_| Behaviour::Apply);
    for n in 0..10 {
        replica.until_holds(&format!("k{n}"), if n < 5 { "new" } else { "old" }).await;
    }
    until_dead(&daemon, 0).await;
    for seen in replica.seen().iter().skip(before).filter(|seen| seen.applied) {
        let n: usize = seen.key()[1..].parse().unwrap();
        assert_eq!(seen.text(), if n < 5 { "new" } else { "old" }, "{}", seen.key());
    }
}

#[tokio::test]
async fn with_hinted_handoff_off_dead_letters_wait_for_the_operator() {
    let daemon = Daemon::start(&[&QUICK[..], &["--hinted-handoff", "off"]].concat()).await;
    let replica = Replica::with(|_| Behaviour::Answer(503, "", "")).await;
    daemon.accept(&set("dead", "v", &[&replica])).await;
    until_dead(&daemon, 1).await;
    replica.behave(|_| Behaviour::Apply);
    for n in 0..20 {
        daemon.accept(&set(&format!("k{n}"), "v", &[&replica])).await;
    }
    daemon.until_metric("successful_replicas", 20).await;
    assert_eq!(daemon.metrics().await["dead_letters"], 1);
    assert_eq!(replica.get("dead"), None);
}

#[tokio::test]
async fn writes_for_a_replica_beyond_its_share_of_dead_letters_are_rejected_and_others_are_not() {
    let daemon = Daemon::start(&["--dead-letter-max-bytes", "16KiB"]).await;
    let refusing = Replica::with(|_| Behaviour::Answer(400, "", "")).await;
    let healthy = Replica::start().await;
    let refused = wait_until("a write is rejected", || async {
        let body = set(&fastrand::u64(..).to_string(), "v", &[&refusing]);
        let (status, answer) = daemon.post(&body).await;
        (status == 503).then_some(answer)
    })
    .await;
    let error = refused["error"].as_str().unwrap();
    assert!(
        error.contains("--dead-letter-max-bytes") && error.contains(&refusing.url()),
        "{error}"
    );
    daemon.accept(&set("k", "v", &[&healthy])).await;
}

#[tokio::test]
async fn an_expired_dead_letter_is_removed_from_disk_too() {
    let mut daemon = Daemon::start(&["--dead-letter-retention", "300ms"]).await;
    let refusing = Replica::with(|_| Behaviour::Answer(400, "", "")).await;
    daemon.accept(&set("k", "v", &[&refusing])).await;
    daemon.until_metric("discarded_replicas", 1).await;
    daemon.until_logged("discarded").await;
    daemon.terminate().await;
    daemon.restart().await;
    assert_eq!(daemon.metrics().await["dead_letters"], 0);
}

#[tokio::test]
async fn with_coalesce_a_slow_replica_gets_only_the_newest() {
    let daemon = Daemon::start(&["--coalesce", "--request-timeout", "5m"]).await;
    let gate = Gate::default();
    let behind = gate.clone();
    let slow = Replica::with(move |_| Behaviour::ApplyBehind(behind.clone())).await;
    daemon.accept(&set("k", "0", &[&slow])).await;
    slow.until_seen(1).await;
    for n in 1..50 {
        daemon.accept(&set("k", &n.to_string(), &[&slow])).await;
    }
    gate.open();
    slow.until_holds("k", "49").await;
    let values: Vec<_> = slow.seen().iter().map(Seen::text).collect();
    assert_eq!(values, ["0", "49"]);
}

#[tokio::test]
async fn with_workers_auto_a_distant_replica_gets_more_concurrent_deliveries() {
    let daemon = Daemon::start(&["--workers", "auto", "--queue-capacity", "2000"]).await;
    // So long that the delay of a busy machine is small in comparison.
    let far = Replica::with(|_| Behaviour::ApplyAfter(Duration::from_millis(500))).await;
    // In one batch, so that there is a backlog even on a slow machine.
    let writes: Vec<_> = (0..1_000).map(|n| set(&format!("k{n}"), "v", &[&far])).collect();
    let (status, answer) = daemon.post_to("/v1/replicate/batch", &json!(writes)).await;
    assert_eq!((status, &answer["accepted"]), (200, &json!(1_000)));
    wait_until("it gets twice as many concurrent deliveries", || async {
        (far.most_in_progress() > 10).then_some(())
    })
    .await;
}

/// A replica that never answers an old value and applies it when `late` opens. `on_new` is called
/// for every other request.
async fn with_an_old_value_to_come(
    late: &Gate,
    on_new: impl Fn() + Send + Sync + 'static,
) -> Replica {
    let late = late.clone();
    Replica::with(move |seen| match seen.text().as_str() {
        "old" => Behaviour::ApplyLate(late.clone()),
        _ => {
            on_new();
            Behaviour::Apply
        }
    })
    .await
}

/// Writes an old value, which gets no answer, and a new value, which is delivered.
async fn write_old_and_new(daemon: &Daemon, replica: &Replica) {
    daemon.accept(&set("k", "old", &[replica])).await;
    replica.until_seen(1).await;
    daemon.accept(&set("k", "new", &[replica])).await;
    daemon.until_metric("successful_replicas", 1).await;
}

async fn until_old_is_applied(replica: &Replica) {
    let applied = |seen: &Seen| seen.applied && seen.text() == "old";
    wait_until("the old value is applied late", || async {
        replica.seen().iter().any(applied).then_some(())
    })
    .await;
}

const SETTLING: [&str; 4] = ["--request-timeout", "1s", "--retry-base", "20ms"];

#[tokio::test]
async fn an_old_value_that_is_applied_late_is_overwritten_again() {
    let daemon = Daemon::start(&[&SETTLING[..], &["--settle-after", "5s"]].concat()).await;
    let late = Gate::default();
    let opened = late.clone();
    // Directly after the new value, before the daemon can send that again.
    let replica = with_an_old_value_to_come(&late, move || opened.open()).await;
    write_old_and_new(&daemon, &replica).await;
    until_old_is_applied(&replica).await;
    replica.until_holds("k", "new").await;
    assert_eq!(daemon.metrics().await["successful_replicas"], 1, "counted once");
}

#[tokio::test]
async fn an_old_value_that_is_applied_late_is_overwritten_after_a_restart_too() {
    // The restart comes before the new value is sent again.
    let mut daemon = Daemon::start(&[&SETTLING[..], &["--settle-after", "5m"]].concat()).await;
    let late = Gate::default();
    let replica = with_an_old_value_to_come(&late, || ()).await;
    write_old_and_new(&daemon, &replica).await;
    // Deliveries that are repeated because of a kill are not the subject of this test.
    daemon.until_durable(&replica).await;
    daemon.kill();
    late.open();
    until_old_is_applied(&replica).await;
    let _daemon =
        Daemon::start_on(daemon.dir(), &[&SETTLING[..], &["--settle-after", "1s"]].concat()).await;
    replica.until_holds("k", "new").await;
}
