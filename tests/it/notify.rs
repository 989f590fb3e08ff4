//! Notifications: from an event to a receiver that checks them, and receivers that fail.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use serde_json::Value;

use crate::support::daemon::command;
use crate::support::replica::Seen;
use crate::support::{Behaviour, Daemon, Replica, set, wait_until};

const KEY: [u8; 32] = *b"a key of notifications, 32 bytes";

/// Writes a secret file that contains this key.
fn secret_file(dir: &Path, key: &[u8]) -> PathBuf {
    let file = dir.join("secrets");
    std::fs::write(&file, format!("whsec_{}\n", STANDARD.encode(key))).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    file
}

/// Checks the headers as Standard Webhooks specifies, and returns the body.
#[track_caller]
fn verified(seen: &Seen, key: &[u8]) -> Value {
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("POST", "/hidden-path"));
    assert_eq!(seen.headers["content-type"], "application/json");
    let (id, seconds) = (&seen.headers["webhook-id"], &seen.headers["webhook-timestamp"]);
    let sent = std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds.parse().unwrap());
    assert!(sent.elapsed().unwrap() < crate::support::PATIENCE, "{seconds}");
    let signature = seen.headers["webhook-signature"].strip_prefix("v1,").unwrap();
    let content = [format!("{id}.{seconds}.").as_bytes(), &seen.body].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::verify(&key, &content, &STANDARD.decode(signature).unwrap()).unwrap();
    serde_json::from_slice(&seen.body).unwrap()
}

fn url(receiver: &Replica) -> String {
    format!("{}/hidden-path", receiver.url())
}

async fn receiver() -> Replica {
    Replica::with(|_| Behaviour::Answer(204, "", "")).await
}

/// A daemon that notifies `receiver`, with signatures.
async fn notifying(receiver: &Replica, args: &[&str]) -> (Daemon, tempfile::TempDir) {
    let temp = tempfile::tempdir().unwrap();
    let secrets = secret_file(temp.path(), &KEY);
    let (url, secrets) = (url(receiver), secrets.to_str().unwrap());
    let ours = ["--notify-url", &url, "--notify-secret-file", secrets, "--node-id", "r1"];
    let daemon = Daemon::start_on(&temp.path().join("data"), &[&ours, args].concat()).await;
    (daemon, temp)
}

/// A write that becomes a dead letter at once, which is notified within a second.
async fn dead_letter(daemon: &Daemon, key: &str) -> Replica {
    let rejecting = Replica::with(|_| Behaviour::Answer(400, "", "no")).await;
    daemon.accept(&set(key, "v", &[&rejecting])).await;
    rejecting
}

fn outcome(page: &str, outcome: &str) -> u64 {
    let name = format!("replicator_notifications_total{{outcome=\"{outcome}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&name)).unwrap().parse().unwrap()
}

async fn until_counted(daemon: &Daemon, name: &str, count: u64) {
    wait_until(&format!("{count} {name}"), || async {
        (outcome(&daemon.metrics_page().await, name) == count).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_failing_replica_and_its_recovery_are_notified_and_signed() {
    let receiver = receiver().await;
    let args = ["--retry-base", "50ms", "--max-retries", "10000", "--breaker-failures", "2"];
    let (daemon, _temp) = notifying(&receiver, &args).await;
    let replica = Replica::with(|_| Behaviour::Answer(500, "", "<!channel> no")).await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    receiver.until_seen(1).await;
    replica.behave(|_| Behaviour::Apply);
    receiver.until_seen(2).await;
    let seen = receiver.seen();
    let failing = verified(&seen[0], &KEY);
    assert_eq!(failing["type"], "replica.failing");
    let data = &failing["data"];
    assert_eq!((&data["node"], &data["replica"]), (&"r1".into(), &replica.url().into()));
    assert!(data["error"].as_str().unwrap().contains("500"), "{data}");
    assert_eq!(data["backlog_tasks"], 1);
    let recovered = verified(&seen[1], &KEY);
    assert_eq!(recovered["type"], "replica.recovered");
    assert_ne!(seen[0].headers["webhook-id"], seen[1].headers["webhook-id"]);
    until_counted(&daemon, "delivered", 2).await;
}

#[tokio::test]
async fn dead_letters_and_a_full_disk_are_notified() {
    let receiver = receiver().await;
    let (daemon, _temp) = notifying(&receiver, &[]).await;
    let rejecting = dead_letter(&daemon, "k").await;
    receiver.until_seen(1).await;
    let appeared = verified(&receiver.seen()[0], &KEY);
    assert_eq!(appeared["type"], "dead_letters.appeared");
    let data = &appeared["data"];
    assert_eq!(data["replica"], rejecting.url());
    assert_eq!((&data["new"], &data["rejected"]), (&1.into(), &1.into()), "{data}");
    let full = self::receiver().await;
    let _full = notifying(&full, &["--min-free-disk", "1EiB"]).await;
    full.until_seen(1).await;
    assert_eq!(verified(&full.seen()[0], &KEY)["type"], "disk.full");
}

#[tokio::test]
async fn a_notification_that_fails_is_repeated_with_its_id() {
    let receiver = Replica::with(|_| Behaviour::Answer(500, "", "not now")).await;
    let (daemon, _temp) = notifying(&receiver, &[]).await;
    let _rejecting = dead_letter(&daemon, "k").await;
    receiver.until_seen(1).await;
    receiver.behave(|_| Behaviour::Answer(200, "", ""));
    until_counted(&daemon, "delivered", 1).await;
    daemon.until_logged("accepts notifications again").await;
    let seen = receiver.seen();
    assert!(seen.len() >= 2);
    for again in &seen {
        assert_eq!(again.headers["webhook-id"], seen[0].headers["webhook-id"]);
        assert_eq!(verified(again, &KEY), verified(&seen[0], &KEY));
    }
    let log = daemon.log();
    assert!(log.contains("status 500 not now"), "{log}");
}

#[tokio::test]
async fn a_receiver_that_rejects_a_notification_gets_the_next_one() {
    let receiver = Replica::with(|_| Behaviour::Answer(400, "", "invalid_payload")).await;
    let (daemon, _temp) = notifying(&receiver, &[]).await;
    let _first = dead_letter(&daemon, "a").await;
    until_counted(&daemon, "given_up", 1).await;
    receiver.behave(|_| Behaviour::Answer(302, "location: /elsewhere", ""));
    let _second = dead_letter(&daemon, "b").await;
    receiver.until_seen(3).await;
    let targets: Vec<_> = receiver.seen().into_iter().map(|seen| seen.target).collect();
    assert!(targets.iter().all(|target| target == "/hidden-path"), "no redirect: {targets:?}");
}

#[tokio::test]
async fn each_receiver_gets_every_notification_also_beside_one_that_is_dead() {
    let (first, second, dead) = (receiver().await, receiver().await, receiver().await);
    dead.stop();
    let more = [url(&second), url(&dead)].join(",");
    let (daemon, _temp) = notifying(&first, &["--notify-url", &more]).await;
    let _rejecting = dead_letter(&daemon, "k").await;
    for receiver in [&first, &second] {
        wait_until("both have it", || async { receiver.seen().first().cloned() }).await;
        let body = verified(&receiver.seen()[0], &KEY);
        assert_eq!(body["type"], "dead_letters.appeared", "{body}");
    }
    wait_until("the dead one is tried", || async {
        (outcome(&daemon.metrics_page().await, "retried") > 0).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_receiver_that_hangs_or_never_ends_delays_neither_writes_nor_the_stop() {
    for behaviour in [Behaviour::Hang, Behaviour::Endless, Behaviour::EndlessInterim] {
        let receiver = Replica::with(move |_| behaviour.clone()).await;
        let (mut daemon, _temp) = notifying(&receiver, &[]).await;
        let _rejecting = dead_letter(&daemon, "k").await;
        receiver.until_seen(1).await;
        let replica = Replica::start().await;
        for n in 0..50 {
            daemon.accept(&set(&format!("k{n}"), "v", &[&replica])).await;
        }
        replica.until_seen(50).await;
        assert!(daemon.terminate().await.success());
        let log = daemon.log();
        assert!(
            log.contains("notifications that could not be sent before the stop are lost"),
            "{log}"
        );
    }
}

#[tokio::test]
async fn events_of_the_last_second_are_notified_when_the_daemon_stops() {
    let receiver = receiver().await;
    let (mut daemon, _temp) = notifying(&receiver, &[]).await;
    let rejecting = dead_letter(&daemon, "k").await;
    rejecting.until_seen(1).await;
    daemon.until_metric("permanent_failures", 1).await;
    assert!(daemon.terminate().await.success());
    assert_eq!(verified(&receiver.seen()[0], &KEY)["type"], "dead_letters.appeared");
}

#[tokio::test]
async fn slack_gets_a_text() {
    let receiver = receiver().await;
    let slack = ["--notify-format", "slack", "--notify-url", &url(&receiver)];
    let daemon = Daemon::start(&slack).await;
    let rejecting = dead_letter(&daemon, "k").await;
    receiver.until_seen(1).await;
    let seen = &receiver.seen()[0];
    let body: Value = serde_json::from_slice(&seen.body).unwrap();
    let expected = format!(
        "replicator `replicator`: 1 new dead letters of replica `{}` (1 rejected, 0 refused, 0 given up); 1 are kept.",
        rejecting.url()
    );
    assert_eq!(body, serde_json::json!({ "text": expected }));
    assert!(!seen.headers.contains_key("webhook-signature"));
}

#[tokio::test]
async fn a_new_secret_signs_after_sighup() {
    let receiver = receiver().await;
    let (daemon, temp) = notifying(&receiver, &[]).await;
    let new = [9; 24];
    secret_file(temp.path(), &new);
    daemon.signal("-HUP");
    daemon.until_logged("the secrets of notifications (--notify-secret-file) are reloaded").await;
    std::fs::write(temp.path().join("secrets"), "hidden-secret").unwrap();
    daemon.signal("-HUP");
    daemon.until_logged("the secrets of notifications are not reloaded").await;
    let _rejecting = dead_letter(&daemon, "k").await;
    receiver.until_seen(1).await;
    verified(&receiver.seen()[0], &new);
    assert!(!daemon.log().contains("hidden"), "{}", daemon.log());
}

#[tokio::test]
async fn the_path_of_a_receiver_and_the_secret_are_never_logged() {
    // Nothing listens on port 1.
    let temp = tempfile::tempdir().unwrap();
    let secrets = secret_file(temp.path(), &KEY);
    let args = [
        ["--notify-url", "http://hidden-user:hidden-word@127.0.0.1:1/hidden-path?hidden"],
        ["--notify-secret-file", secrets.to_str().unwrap()],
        ["--log", "trace"],
    ];
    let mut daemon = Daemon::start(args.as_flattened()).await;
    let _rejecting = dead_letter(&daemon, "k").await;
    daemon.until_logged("a notification cannot be sent").await;
    daemon.terminate().await;
    let log = daemon.log();
    assert!(log.contains("http://127.0.0.1:1"), "{log}");
    assert_eq!(log.lines().find(|line| line.contains("hidden")), None);
    assert!(!log.contains(&STANDARD.encode(KEY)));
}

#[tokio::test]
async fn a_test_notification_shows_the_answer_of_each_receiver() {
    let (good, bad) =
        (receiver().await, Replica::with(|_| Behaviour::Answer(403, "", "no\u{1b}")).await);
    let temp = tempfile::tempdir().unwrap();
    let secrets = secret_file(temp.path(), &KEY);
    let test = |urls: Vec<String>| {
        let secrets = secrets.clone();
        tokio::task::spawn_blocking(move || {
            let mut command = command();
            command.args(["notify", "test", "--notify-secret-file"]).arg(secrets);
            command.args(urls.iter().map(|url| format!("--notify-url={url}")));
            let output = command.output().unwrap();
            (output.status.code(), String::from_utf8(output.stdout).unwrap())
        })
    };
    let (code, printed) = test(vec![url(&good)]).await.unwrap();
    assert_eq!((code, printed), (Some(0), format!("{}  accepted, status 204\n", good.url())));
    assert_eq!(verified(&good.seen()[0], &KEY)["type"], "notification.test");
    let gone = "http://127.0.0.1:1/hidden-path".to_owned();
    let quoting = Replica::with(|_| Behaviour::Answer(404, "", "Cannot POST /hidden-path")).await;
    let (code, printed) = test(vec![url(&good), url(&bad), gone, url(&quoting)]).await.unwrap();
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!((code, lines.len()), (Some(1), 4), "{printed}");
    assert_eq!(lines[1], format!("{}  refused, status 403: no\\u{{1b}}", bad.url()));
    assert!(lines[2].starts_with("http://127.0.0.1:1  no answer: "), "{printed}");
    assert!(!printed.contains("hidden"), "{printed}");
    assert_eq!(test(vec![]).await.unwrap().0, Some(2));
}

#[tokio::test]
async fn a_secret_that_others_can_read_prevents_the_start() {
    let temp = tempfile::tempdir().unwrap();
    let secrets = secret_file(temp.path(), &KEY);
    std::fs::set_permissions(&secrets, std::fs::Permissions::from_mode(0o644)).unwrap();
    let args =
        ["--notify-url", "http://127.0.0.1:1", "--notify-secret-file", secrets.to_str().unwrap()];
    let data = temp.path().join("data");
    let status = Daemon::try_start_on(&data, &args, &[]).await.err().unwrap();
    assert_eq!(status.code(), Some(1));
    let log = crate::support::daemon::log(&data);
    assert!(log.contains("(--notify-secret-file) is open to others"), "{log}");
}
