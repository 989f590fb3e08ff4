//! Start, stop, kill, and start again.

use std::process::Stdio;
use std::time::Duration;

use crate::support::daemon::command;
use crate::support::replica::Gate;
use crate::support::{Behaviour, Daemon, Replica, client, set, strong};

/// Runs the binary to its end and returns its exit code and standard error.
fn run(args: &[&str]) -> (Option<i32>, String) {
    let output = command().args(args).stdin(Stdio::null()).output().unwrap();
    let words = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(words).unwrap())
}

#[tokio::test]
async fn accepted_writes_are_delivered_after_a_kill() {
    let replica = Replica::start().await;
    replica.stop();
    let mut daemon = Daemon::start(&["--retry-base", "100ms", "--max-retries", "100"]).await;
    for n in 0..50 {
        daemon.accept(&set(&format!("k{n}"), &n.to_string(), &[&replica])).await;
    }
    daemon.kill();
    replica.come_back().await;
    daemon.restart().await;
    for n in 0..50 {
        replica.until_holds(&format!("k{n}"), &n.to_string()).await;
    }
}

#[tokio::test]
async fn the_retry_queue_survives_a_restart_with_its_counts() {
    let replica = Replica::with(|_| Behaviour::Answer(503, "", "")).await;
    let mut daemon = Daemon::start(&["--retry-base", "1h", "--max-retries", "1"]).await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    daemon.until_metric("retries_in_progress", 1).await;
    assert!(daemon.terminate().await.success());
    let args = ["--retry-base", "20ms", "--max-retries", "1"];
    let again = Daemon::start_on(daemon.dir(), &args).await;
    again.until_metric("permanent_failures", 1).await;
    assert_eq!(replica.seen().len(), 2);
}

#[tokio::test]
async fn the_sequence_never_goes_back() {
    let replica = Replica::start().await;
    let mut daemon = Daemon::start(&[]).await;
    let mut last = 0;
    for n in 0..3 {
        let task = daemon.accept(&set("k", &n.to_string(), &[&replica])).await;
        assert!(task > last, "{task} after {last}");
        last = task;
        daemon.until_drained().await;
        daemon.kill_and_restart().await;
    }
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_and_keeps_the_rest() {
    for signal in ["-TERM", "-INT"] {
        let gate = Gate::default();
        let behind = gate.clone();
        let replica = Replica::with(move |_| Behaviour::ApplyBehind(behind.clone())).await;
        let mut daemon = Daemon::start(&["--workers", "1"]).await;
        daemon.accept(&set("a", "v", &[&replica])).await;
        daemon.accept(&set("b", "v", &[&replica])).await;
        replica.until_seen(1).await;
        daemon.signal(signal);
        daemon.until_logged("no more deliveries are started").await;
        gate.open();
        assert!(daemon.ended().await.success(), "{signal}");
        assert!(replica.get("a").is_some(), "{signal}: what was in flight is finished");
        assert!(replica.get("b").is_none(), "{signal}: nothing new is started");
        daemon.restart().await;
        replica.until_holds("b", "v").await;
        assert_eq!(replica.seen().len(), 2, "{signal}: nothing is sent twice");
    }
}

#[tokio::test]
async fn a_drain_ends_at_the_drain_timeout() {
    let replica = Replica::with(|_| Behaviour::Hang).await;
    let mut daemon = Daemon::start(&["--drain-timeout", "200ms"]).await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    replica.until_seen(1).await;
    assert!(daemon.terminate().await.success());
    replica.behave(|_| Behaviour::Apply);
    daemon.restart().await;
    replica.until_holds("k", "v").await;
}

#[tokio::test]
async fn a_second_signal_ends_the_daemon_at_once() {
    let replica = Replica::with(|_| Behaviour::Hang).await;
    let mut daemon = Daemon::start(&["--request-timeout", "5m"]).await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    replica.until_seen(1).await;
    daemon.signal("-TERM");
    daemon.until_logged("draining").await;
    daemon.signal("-TERM");
    assert!(!daemon.ended().await.success());
}

#[tokio::test]
async fn a_draining_daemon_answers_the_request_in_flight_and_rejects_new_ones() {
    let replica = Replica::with(|_| Behaviour::ApplyAfter(Duration::from_millis(500))).await;
    let mut daemon = Daemon::start(&[]).await;
    let (url, body) = (daemon.url("/replicate"), strong("k", "v", &[&replica]));
    let request = tokio::spawn(async move { client().post(url).json(&body).send().await });
    replica.until_seen(1).await;
    daemon.signal("-TERM");
    assert_eq!(request.await.unwrap().unwrap().status(), 200);
    assert!(daemon.ended().await.success());
}

#[tokio::test]
async fn a_second_process_on_the_same_directory_is_rejected() {
    let daemon = Daemon::start(&[]).await;
    let dir = daemon.dir().to_str().unwrap();
    let (code, words) = run(&["--port", "0", "--data-dir", dir]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains("in use by another replicator"), "{words}");
    assert!(words.contains(&daemon.pid().to_string()), "{words}");
    assert!(words.contains(dir), "{words}");
}

#[tokio::test]
async fn a_port_in_use_is_named_in_the_error() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let dir = tempfile::tempdir().unwrap();
    let (code, words) = run(&["--port", &port, "--data-dir", dir.path().to_str().unwrap()]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains(&port) && words.contains("--port"), "{words}");
}

#[tokio::test]
async fn a_broken_data_directory_is_one_sentence_and_an_exit_code() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let (code, words) = run(&["--port", "0", "--data-dir", file.to_str().unwrap()]);
    assert_eq!(code, Some(1), "{words}");
    assert!(words.contains(file.to_str().unwrap()), "{words}");

    for (n, current) in ["", "store-999999\n", "../elsewhere\n"].into_iter().enumerate() {
        let data = dir.path().join(format!("data{n}"));
        let mut daemon = Daemon::start_on(&data, &[]).await;
        assert!(daemon.terminate().await.success());
        std::fs::write(data.join("CURRENT"), current).unwrap();
        let (code, words) = run(&["--port", "0", "--data-dir", data.to_str().unwrap()]);
        assert_eq!(code, Some(1), "{current:?}: {words}");
        assert!(words.contains(data.to_str().unwrap()), "{current:?}: {words}");
        assert!(!words.contains("panicked"), "{current:?}: {words}");
    }
}

#[tokio::test]
async fn invalid_flags_are_all_reported_at_once() {
    let args = ["--node-id", "", "--workers", "0", "--max-value-bytes", "2GiB"];
    let (code, words) = run(&args);
    assert_eq!(code, Some(2), "{words}");
    assert!(words.contains("--workers"), "{words}");
    let (code, words) = run(&["--node-id", "", "--max-value-bytes", "2GiB"]);
    assert_eq!(code, Some(2), "{words}");
    assert!(words.contains("--node-id") && words.contains("--max-value-bytes"), "{words}");
}

#[tokio::test]
async fn the_demo_runs_to_its_end_and_succeeds() {
    let (code, words) = run(&["demo", "--exit"]);
    assert_eq!(code, Some(0), "{words}");
    assert!(words.contains("agree"), "{words}");
}

/// Needs `prlimit` from util-linux.
#[tokio::test]
async fn the_limit_of_open_files_is_raised_and_one_that_is_too_low_is_reported() {
    for (limits, soft, warned) in [("300:400", 400, true), ("300:8000", 8000, false)] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = std::process::Command::new("prlimit")
            .arg(format!("--nofile={limits}"))
            .arg(env!("CARGO_BIN_EXE_replicator"))
            .args(["--port", "0", "--data-dir"])
            .arg(dir.path().join("data"))
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let stdout = child.stdout.as_mut().unwrap();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(stdout), &mut line).unwrap();
        let file = std::fs::read_to_string(format!("/proc/{}/limits", child.id())).unwrap();
        child.kill().unwrap();
        let log = String::from_utf8(child.wait_with_output().unwrap().stderr).unwrap();
        let printed = file.lines().find(|line| line.starts_with("Max open files")).unwrap();
        assert_eq!(printed.split_whitespace().nth(3).unwrap(), soft.to_string(), "{printed}");
        assert_eq!(log.contains("LimitNOFILE"), warned, "{log}");
    }
}
