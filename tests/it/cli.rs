//! The commands for operators against a real daemon: output, effect and exit code.

use std::process::{Output, Stdio};

use serde_json::Value;
use tokio::net::TcpSocket;

use crate::support::daemon::command;
use crate::support::{Behaviour, Daemon, Replica, set, wait_until};

/// The command as a separate process, so that the replicas of the test keep answering.
fn prepare(daemon: &Daemon, line: &str) -> tokio::process::Command {
    let mut command = tokio::process::Command::from(command());
    command.args(line.split(' ')).args(["--url", &daemon.url("")]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs a command, asserts its exit code, and returns its output.
async fn run(daemon: &Daemon, line: &str, code: i32) -> String {
    let output = prepare(daemon, line).output().await.unwrap();
    assert_eq!(output.status.code(), Some(code), "{line}\n{}{}", out(&output), err(&output));
    out(&output)
}

async fn json(daemon: &Daemon, line: &str, code: i32) -> Value {
    serde_json::from_str(&run(daemon, &format!("{line} --json"), code).await).unwrap()
}

/// A daemon, and a replica that has rejected `count` writes.
async fn reject(writes: usize) -> (Daemon, Replica) {
    let replica = Replica::with(|_| Behaviour::Answer(400, "", "not today")).await;
    let daemon = Daemon::start(&[]).await;
    for number in 0..writes {
        daemon.accept(&set(&format!("key/{number}"), "value", &[&replica])).await;
    }
    daemon.until_metric("dead_letters", writes as u64).await;
    (daemon, replica)
}

#[tokio::test]
async fn a_replica_that_refuses_writes_is_not_shown_as_healthy() {
    let replica = Replica::with(|_| Behaviour::Answer(403, "", "")).await;
    let daemon = Daemon::start(&["--hinted-handoff", "off"]).await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    daemon.until_metric("dead_letters", 1).await;
    let expected = "failing, 1 dead letter: 403 Forbidden: the replica refused the write";
    let printed = run(&daemon, "status", 3).await;
    assert!(printed.contains(&format!("! {}: {expected}", replica.url())), "{printed}");
    let printed = run(&daemon, "replicas", 0).await;
    assert!(printed.contains(&format!("{}  failing", replica.url())), "{printed}");
    let printed = run(&daemon, "dead-letters list --cause refused", 0).await;
    assert!(printed.contains("  refused  "), "{printed}");
}

#[tokio::test]
async fn the_exit_code_of_status_reports_the_state() {
    let (up, down) = (Replica::start().await, Replica::start().await);
    let mut daemon = Daemon::start(&["--retry-base", "1h", "--breaker-failures", "1"]).await;
    daemon.accept(&set("a", "value", &[&up])).await;
    up.until_holds("a", "value").await;
    daemon.until_drained().await;
    let printed = run(&daemon, "status", 0).await;
    assert!(printed.starts_with("ok  ") && printed.contains(&up.url()), "{printed}");

    down.behave(|_| Behaviour::Reset);
    daemon.accept(&set("a", "value", &[&down])).await;
    wait_until("its breaker is open", || async {
        let (_, page) = daemon.get("/v1/replicas").await;
        let replicas = page["replicas"].as_array().unwrap();
        replicas.iter().any(|replica| replica["state"] == "failing").then_some(())
    })
    .await;
    let printed = run(&daemon, "status", 3).await;
    assert!(printed.contains(&format!("! {}: failing", down.url())), "{printed}");
    assert_eq!(json(&daemon, "status", 3).await["state"], "attention");

    daemon.kill();
    // Bound but not listening, so that no other process gets the port.
    let port = TcpSocket::new_v4().unwrap();
    port.set_reuseaddr(true).unwrap();
    port.bind(daemon.address().parse().unwrap()).unwrap();
    let output = prepare(&daemon, "status").output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let printed = format!(
        "replicator: cannot reach {}: connection refused (is the daemon running? --url)\n",
        daemon.url("")
    );
    assert_eq!(err(&output), printed);
}

#[tokio::test]
async fn how_long_a_replica_may_be_away_is_estimated_from_the_present_rate() {
    let replica = Replica::start().await;
    let daemon = Daemon::start(&["--queue-capacity", "1000000"]).await;
    let url = replica.url();
    let bare = url.trim_start_matches("http://");
    run(&daemon, &format!("replicas pause {bare}"), 0).await;
    let mut number = 0;
    let shown = loop {
        daemon.accept(&set(&format!("key/{number}"), "value", &[&replica])).await;
        number += 1;
        let shown = json(&daemon, &format!("replicas show {bare}"), 0).await;
        if !shown["outage_limit"].is_null() {
            break shown;
        }
    };
    // The queue is the smallest limit of a paused replica.
    assert_eq!(shown["outage_limit"], "--queue-capacity", "{shown}");
    let seconds = shown["outage_headroom_seconds"].as_f64().unwrap();
    assert!(seconds > 0.0 && seconds <= 30.0 * 24.0 * 3600.0, "{shown}");
    let of_replica = format!("replicator_outage_headroom_seconds{{replica=\"{url}\"}} ");
    let metrics = daemon.metrics_page().await;
    let metric = metrics.lines().find_map(|line| line.strip_prefix(&of_replica)).unwrap();
    assert!(metric.parse::<f64>().unwrap() < 30.0 * 24.0 * 3600.0, "{metric}");
    let expected = "before --queue-capacity refuses writes";
    for (command, code) in [("status".to_owned(), 3), (format!("replicas show {bare}"), 0)] {
        daemon.accept(&set("again", "value", &[&replica])).await;
        let printed = run(&daemon, &command, code).await;
        assert!(printed.contains("may be away") && printed.contains(expected), "{printed}");
    }
}

#[tokio::test]
async fn a_replica_is_paused_shown_and_resumed() {
    let replica = Replica::start().await;
    let daemon = Daemon::start(&[]).await;
    daemon.accept(&set("before", "value", &[&replica])).await;
    replica.until_holds("before", "value").await;
    let url = replica.url();
    let bare = url.trim_start_matches("http://");
    run(&daemon, &format!("replicas pause {bare}"), 0).await;
    let id = daemon.accept(&set("meanwhile", "value", &[&replica])).await;
    let printed = run(&daemon, &format!("replicas show {bare}"), 0).await;
    assert!(
        printed.contains("state         paused for") && printed.contains("backlog       1 task"),
        "{printed}"
    );
    let printed = run(&daemon, "status", 3).await;
    assert!(printed.contains(&format!("! {url}: paused for")), "{printed}");

    let printed = run(&daemon, "tasks", 0).await;
    assert!(printed.contains(&id.to_string()) && printed.contains("1 queued"), "{printed}");
    let page = json(&daemon, "tasks list --key-prefix mean --state queued", 0).await;
    assert_eq!(page["tasks"][0]["key"], "meanwhile");
    let page = json(&daemon, "tasks list --key before", 0).await;
    assert_eq!(page["tasks"], serde_json::json!([]));
    run(&daemon, &format!("tasks show {id}"), 0).await;

    // A list that ends at its limit has a cursor, and a complete one has none.
    let next = daemon.accept(&set("later", "value", &[&replica])).await;
    let page = json(&daemon, "tasks list --limit 1", 0).await;
    let cursor = page["next_cursor"].as_str().unwrap();
    let page = json(&daemon, &format!("tasks list --cursor {cursor}"), 0).await;
    assert_eq!(page["tasks"][0]["task_id"], next.to_string());
    assert_eq!((page["tasks"].as_array().unwrap().len(), &page["next_cursor"]), (1, &Value::Null));

    run(&daemon, &format!("replicas resume {bare}"), 0).await;
    replica.until_holds("meanwhile", "value").await;
    let output = prepare(&daemon, "replicas show nobody:1").output().await.unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(err(&output).contains("nobody:1"), "{output:?}");
}

#[tokio::test]
async fn a_replica_is_renamed_with_yes() {
    let (old, new) = (Replica::start().await, Replica::start().await);
    let daemon = Daemon::start(&[]).await;
    daemon.accept(&set("before", "value", &[&old])).await;
    old.until_holds("before", "value").await;
    let line = format!("replicas rename {} {}", old.url(), new.url());
    let output = prepare(&daemon, &line).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(err(&output).contains("confirm with --yes"), "{output:?}");
    run(&daemon, &format!("{line} --yes"), 0).await;
    daemon.accept(&set("after", "value", &[&old])).await;
    new.until_holds("after", "value").await;
}

#[tokio::test]
async fn a_requested_probe_is_reported_and_arrives() {
    let replica = Replica::start().await;
    let daemon = Daemon::start(&["--retry-base", "1h", "--breaker-failures", "1"]).await;
    replica.behave(|_| Behaviour::Answer(503, "", ""));
    daemon.accept(&set("a", "value", &[&replica])).await;
    daemon.until_metric("retries_in_progress", 1).await;
    replica.behave(|_| Behaviour::Apply);
    let printed = run(&daemon, &format!("replicas probe {}", replica.url()), 0).await;
    assert_eq!(printed, format!("probing {}: sending a delivery now\n", replica.url()));
    replica.until_holds("a", "value").await;
}

/// The output of a command that uses no daemon.
fn alone(args: &[&str]) -> Output {
    let temp = tempfile::tempdir().unwrap();
    command().args(args).current_dir(temp.path()).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn secrets_in_the_wrong_place_are_not_printed() {
    let token = out(&alone(&["token", "new", "--name", "a", "--role", "observe"]));
    let (token, secret) = (token.trim(), "s3cret-Pa55");
    for args in [
        ["status", "--url", &format!("http://me:{secret}@h:1")],
        ["status", "--token-file", token],
        ["status", "--json", token],
        ["tasks", "show", token],
        ["tasks", "list", &format!("--{token}")],
        ["replicas", "show", &format!("http://me:{secret}@b:1/")],
        ["dead-letters", "redrive", &format!("7@me:{secret}@b")],
        ["token", "new", &format!("--name={token}")],
        ["token", "list", &format!("--auth-file={token}")],
        ["--port", "0", &format!("--auth-file={token}")],
        ["--port", "x", &format!("--otlp-endpoint=http://me:{secret}@h")],
    ] {
        let output = alone(&args);
        let printed = out(&output) + err(&output).as_str();
        assert!(!output.status.success() && !printed.is_empty(), "{args:?}");
        assert!(!printed.contains(&token[20..]) && !printed.contains(secret), "{printed}");
    }
}

#[test]
fn the_tokens_of_a_file_are_listed_without_secrets() {
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("tokens").display().to_string();
    let list = ["token", "list", "--auth-file", &file];
    let output = alone(&list);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let new = ["token", "new", "--append", &file];
    let first = alone(&[&new[..], &["--name", "b", "--role", "replicate", "--rate", "5"]].concat());
    alone(&[&new[..], &["--name", "a", "--role", "observe,operate", "--replica", "h:1"]].concat());
    let output = alone(&list);
    let printed = out(&output);
    let rows: Vec<Vec<_>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(
        rows[0],
        ["NAME", "ROLES", "RATE", "PLACES", "BYTES", "EXPIRES", "ID", "REPLICAS"],
        "{printed}"
    );
    assert_eq!(rows[1][..3], ["a", "observe,operate", "-"], "{printed}");
    assert_eq!((rows[1][7], rows[2][7]), ("http://h:1", "all"), "{printed}");
    let id = &out(&first)["rpl_".len()..][..12];
    assert_eq!(rows[2][..7], ["b", "replicate", "5/s", "-", "-", "never", id], "{printed}");
    let json: Value =
        serde_json::from_str(&out(&alone(&[&list[..], &["--json"]].concat()))).unwrap();
    let b = serde_json::json!({
        "name": "b", "roles": ["replicate"], "replicas": null, "rate": 5, "expires": null,
        "expired": false, "places": null, "bytes": null, "id": id,
    });
    assert_eq!(json["tokens"][1], b);
    let (_, hash) = std::fs::read_to_string(&file)
        .unwrap()
        .split_once(id)
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    assert!(!printed.contains(&hash[1..20]), "{printed}");
}

#[test]
fn the_version_names_the_target() {
    let printed = out(&alone(&["--version"]));
    let begin = concat!("replicator ", env!("CARGO_PKG_VERSION"), " (");
    assert!(printed.starts_with(begin) && printed.ends_with(")\n"), "{printed}");
    assert!(printed.contains(std::env::consts::ARCH), "{printed}");
}

#[test]
fn short_help_omits_variables_and_long_help_lists_them() {
    for line in [&["-h"][..], &["status", "-h"], &["replicas", "pause", "-h"]] {
        let printed = out(&alone(line));
        assert!(!printed.contains("REPLICATOR_") && printed.contains("--help"), "{printed}");
    }
    for line in [&["--help"][..], &["help", "status"], &["replicas", "pause", "--help"]] {
        let printed = out(&alone(line));
        assert!(printed.contains("[env: REPLICATOR_"), "{printed}");
    }
}

#[tokio::test]
async fn a_task_is_discarded_and_a_replica_is_forgotten_with_yes() {
    let replica = Replica::start().await;
    let daemon = Daemon::start(&["--retry-base", "1h"]).await;
    replica.behave(|_| Behaviour::Answer(503, "", ""));
    let id = daemon.accept(&set("one", "value", &[&replica])).await;
    daemon.accept(&set("two", "value", &[&replica])).await;
    daemon.until_metric("retries_in_progress", 2).await;
    let printed = run(&daemon, &format!("tasks discard {id}"), 0).await;
    assert!(printed.contains("discarded"), "{printed}");
    daemon.until_metric("retries_in_progress", 1).await;

    let line = format!("replicas forget {}", replica.url());
    let output = prepare(&daemon, &line).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(err(&output).contains("would discard 1 delivery and 0 dead letters"), "{output:?}");
    assert_eq!(daemon.metrics().await["retries_in_progress"], 1);
    let forgotten = json(&daemon, &format!("{line} --yes"), 0).await;
    assert_eq!(forgotten["discarded"], 1);
    daemon.until_metric("retries_in_progress", 0).await;
}

#[tokio::test]
async fn dead_letters_are_listed_redriven_and_discarded() {
    let (daemon, replica) = reject(3).await;
    let page = json(&daemon, "dead-letters list --cause rejected --limit 2", 0).await;
    assert_eq!(page["dead_letters"].as_array().unwrap().len(), 2);
    let cursor = page["next_cursor"].as_str().unwrap();
    let line = format!("dead-letters list --cause rejected --cursor {cursor}");
    let page = json(&daemon, &line, 0).await;
    assert_eq!(
        (page["dead_letters"].as_array().unwrap().len(), &page["next_cursor"]),
        (1, &Value::Null)
    );
    let printed = run(&daemon, "dead-letters list --key key/1", 0).await;
    assert!(printed.lines().count() == 2 && printed.contains("not today"), "{printed}");

    let printed = run(&daemon, "dead-letters summary", 0).await;
    let row: Vec<_> = printed.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..3], ["3", &replica.url(), "rejected"], "{printed}");
    let printed = run(&daemon, "dead-letters redrive --replica nobody:1 --dry-run", 0).await;
    assert_eq!(printed, "would redrive 0 of 0 dead letters\n");
    let printed = run(&daemon, "dead-letters redrive --key key/2", 5).await;
    assert_eq!(printed, "redrove 1 of 1 dead letter: 1 failed again\n");

    let printed = run(&daemon, "dead-letters redrive --all --dry-run", 0).await;
    assert_eq!(printed, "would redrive 3 of 3 dead letters\n");
    let printed = run(&daemon, "dead-letters discard --key key/0", 0).await;
    assert_eq!(printed, "discarded 1 of 1 dead letter\n");
    replica.behave(|_| Behaviour::Apply);
    let printed = run(&daemon, "dead-letters redrive --key-prefix key/", 0).await;
    assert_eq!(printed, "redrove 2 of 2 dead letters: 2 delivered\n");
    replica.until_holds("key/1", "value").await;
    replica.until_holds("key/2", "value").await;
    assert!(replica.get("key/0").is_none());
    daemon.until_metric("dead_letters", 0).await;
    assert_eq!(run(&daemon, "dead-letters", 0).await, "no dead letters\n");
    let printed = run(&daemon, "dead-letters operations", 0).await;
    assert_eq!(printed.lines().count(), 6, "{printed}");
}

#[tokio::test]
async fn ctrl_c_cancels_a_redrive_and_reports_its_progress() {
    let (daemon, replica) = reject(20).await;
    replica.behave(|_| Behaviour::Apply);
    let line = "dead-letters redrive --all --rate 1";
    let child = prepare(&daemon, line).spawn().unwrap();
    wait_until("it runs", || async {
        let (_, page) = daemon.get("/v1/operations").await;
        let operations = page["operations"].as_array().unwrap();
        operations.iter().any(|operation| operation["state"] == "running").then_some(())
    })
    .await;
    let pid = child.id().unwrap().to_string();
    let sent = std::process::Command::new("kill").args(["-INT", &pid]).status().unwrap();
    assert!(sent.success());
    let output = child.wait_with_output().await.unwrap();
    assert_eq!(output.status.code(), Some(3), "{output:?}");
    assert!(out(&output).starts_with("cancelled: redrove "), "{output:?}");
    assert!(daemon.metrics().await["dead_letters"].as_u64().unwrap() > 0);
    assert_eq!(daemon.get("/v1/operations").await.1["operations"][0]["state"], "cancelled");

    let output = prepare(&daemon, &format!("{line} --detach")).output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let id = out(&output).trim().to_owned();
    run(&daemon, &format!("dead-letters cancel {id}"), 0).await;
    assert_eq!(
        json(&daemon, &format!("dead-letters operations {id}"), 0).await["state"],
        "cancelled"
    );
}

#[tokio::test]
async fn a_barrier_ends_when_everything_before_it_is_delivered_or_lists_what_is_not() {
    let (up, down) = (Replica::start().await, Replica::start().await);
    let mut daemon = Daemon::start(&[
        "--retry-base",
        "50ms",
        "--max-retries",
        "1000",
        "--breaker-failures",
        "0",
    ])
    .await;
    down.behave(|_| Behaviour::Answer(503, "", ""));
    daemon.accept(&set("a", "value", &[&up, &down])).await;
    up.until_holds("a", "value").await;
    run(&daemon, &format!("barrier --replica {}", up.url()), 0).await;
    let printed = run(&daemon, "barrier --wait 100ms", 3).await;
    let id = printed.split("--id ").nth(1).unwrap().lines().next().unwrap().to_owned();
    assert!(printed.contains(&down.url()) && !printed.contains(&up.url()), "{printed}");

    // A barrier survives a restart and does not wait for later writes.
    daemon.kill_and_restart().await;
    let waiting = prepare(&daemon, &format!("barrier --id {id}")).spawn().unwrap();
    let other = Replica::with(|_| Behaviour::Hang).await;
    daemon.accept(&set("b", "value", &[&other])).await;
    down.behave(|_| Behaviour::Apply);
    let output = waiting.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(out(&output).starts_with("reached: everything"), "{output:?}");

    let (daemon, _replica) = reject(2).await;
    let printed = run(&daemon, "barrier", 5).await;
    assert!(printed.starts_with("reached, except 2 dead letters"), "{printed}");
}

#[tokio::test]
async fn a_closed_pipe_is_not_an_error() {
    let daemon = Daemon::start(&[]).await;
    for line in ["completions bash", "man", "status"] {
        let mut command = match line {
            "status" => prepare(&daemon, line),
            line => {
                let mut plain = tokio::process::Command::from(command());
                plain.args(line.split(' ')).stdout(Stdio::piped()).stderr(Stdio::piped());
                plain
            }
        };
        let mut child = command.spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().await.unwrap();
        assert_eq!((output.status.code(), err(&output)), (Some(0), String::new()), "{line}");
    }
}

#[tokio::test]
async fn top_needs_a_terminal() {
    let daemon = Daemon::start(&[]).await;
    let output = prepare(&daemon, "top").output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("top needs a terminal"), "{output:?}");
}
