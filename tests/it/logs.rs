//! The log: its JSON, and readers that are gone, slow or stopped.

use std::fs::OpenOptions;
use std::io::{PipeReader, Read};
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use replicator::testing::is_odd;
use serde_json::{Value, json};

use crate::support::daemon::command;
use crate::support::{Behaviour, Daemon, Replica, path_of, set, wait_until};

const QUICK: [&str; 8] = [
    "--log-format",
    "json",
    "--retry-base",
    "10ms",
    "--queue-capacity",
    "3000",
    "--retry-capacity",
    "3000",
];

fn lines(daemon: &Daemon) -> Vec<Value> {
    let log = daemon.log();
    log.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// 2,000 writes to a replica that is down and one that rejects them: 10,000 failures.
#[tokio::test]
async fn an_outage_of_thousands_of_failures_is_a_few_lines_of_json_without_a_value() {
    let mut daemon = Daemon::start(&QUICK).await;
    let (down, refusing) =
        (Replica::start().await, Replica::with(|_| Behaviour::Answer(400, "", "no")).await);
    down.stop();
    // In two batches, so that the duration does not depend on the speed of the disk.
    for first in [0, 1_000] {
        let write = |n| set(&format!("hidden-{n}"), &format!("secret-{n}"), &[&down, &refusing]);
        let writes: Vec<_> = (first..first + 1_000).map(write).collect();
        let (status, answer) = daemon.post_to("/v1/replicate/batch", &json!(writes)).await;
        assert_eq!((status, &answer["accepted"]), (200, &json!(1_000)));
    }
    daemon.until_drained().await;
    wait_until("everything is given up", || async {
        let failures = daemon.metrics().await["permanent_failures"].as_u64().unwrap();
        (failures >= 4_000).then_some(())
    })
    .await;
    let metrics = daemon.metrics().await;
    let [sent, unsent] =
        ["failed_replicas", "unsent_replicas"].map(|name| metrics[name].as_u64().unwrap());
    assert!(sent + unsent >= 10_000, "{metrics}");
    assert!(daemon.terminate().await.success());
    let lines = lines(&daemon);
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {line}");
        }
    }
    assert!((5..60).contains(&lines.len()), "{} lines", lines.len());
    let log = daemon.log();
    assert!(!log.contains("secret-") && !log.contains("hidden-"), "{log}");
    for replica in [&down, &refusing] {
        let url = replica.url();
        let of = |line: &&Value| line["replica"] == url.as_str() && line["deliveries"].is_u64();
        assert!(lines.iter().any(|line| of(&line)), "{url} in {log}");
    }
    // At the end of the daemon every delivery was logged, including the last ones.
    let printed = lines.iter().filter_map(|line| line["deliveries"].as_u64());
    assert_eq!(printed.sum::<u64>(), 4_000, "{log}");
    let opened: Vec<_> = lines.iter().filter(|line| line["changes"].is_u64()).collect();
    assert!(!opened.is_empty() && opened.len() <= 14, "{opened:?}");
}

#[tokio::test]
async fn a_failed_start_is_a_line_of_json_too() {
    let daemon = Daemon::start(&[]).await;
    let args = ["--log-format", "json"];
    let second = Daemon::try_start_on(daemon.dir(), &args, &[]).await;
    assert_eq!(second.err().unwrap().code(), Some(1));
    let log = daemon.log();
    let json: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let printed = |line: &Value| line["message"].as_str().unwrap().contains("in use by another");
    assert!(json.iter().any(printed), "{log}");
}

/// A request of an operator, which writes a line to the audit log.
async fn pause(daemon: &Daemon, replica: &Replica) {
    let (status, answer) =
        daemon.post_to(&format!("{}/pause", path_of(replica)), &Value::Null).await;
    assert_eq!(status, 200, "{answer}");
}

async fn until_dropped(daemon: &Daemon) -> u64 {
    wait_until("lines are dropped", || async {
        daemon.metrics().await["log_lines_dropped_total"].as_u64().filter(|lines| *lines > 0)
    })
    .await
}

#[tokio::test]
async fn a_log_reader_that_is_gone_costs_only_log_lines() {
    for format in ["text", "json"] {
        for full in [false, true] {
            let args = ["--log-format", format];
            let mut daemon = if full {
                let disk = OpenOptions::new().write(true).open("/dev/full").unwrap();
                Daemon::start_logging_to(disk, &args).await
            } else {
                let (reader, writer) = std::io::pipe().unwrap();
                let daemon = Daemon::start_logging_to(writer, &args).await;
                drop(reader);
                daemon
            };
            let replica = Replica::start().await;
            daemon.accept(&set("before", "value", &[&replica])).await;
            replica.until_holds("before", "value").await;
            pause(&daemon, &replica).await;
            until_dropped(&daemon).await;
            let resume = format!("{}/resume", path_of(&replica));
            assert_eq!(daemon.post_to(&resume, &Value::Null).await.0, 200);
            daemon.accept(&set("after", "value", &[&replica])).await;
            replica.until_holds("after", "value").await;
            assert!(daemon.terminate().await.success(), "{format}, full: {full}");
        }
    }
}

/// 1,000 writes that fail 21 times each, at the level `debug`: megabytes of log.
async fn talk(daemon: &Daemon, replica: &Replica, round: usize) {
    let write = |n| set(&format!("{round}/{n}"), "value", &[replica]);
    let writes: Vec<_> = (0..1_000).map(write).collect();
    let (status, answer) = daemon.post_to("/v1/replicate/batch", &json!(writes)).await;
    assert_eq!((status, &answer["accepted"]), (200, &json!(1_000)), "{answer}");
    daemon.until_drained().await;
}

const TALKATIVE: [&str; 12] = [
    "--log",
    "debug",
    "--queue-capacity",
    "3000",
    "--workers",
    "64",
    "--breaker-failures",
    "0",
    "--max-retries",
    "20",
    "--retry-base",
    "1ms",
];

async fn failing() -> Replica {
    Replica::with(|_| Behaviour::Answer(503, "", "")).await
}

#[tokio::test]
async fn nothing_waits_for_a_stopped_log_reader() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut daemon = Daemon::start_logging_to(writer, &TALKATIVE).await;
    let replica = failing().await;
    // Until the pipe and the queue are full.
    for round in 0.. {
        talk(&daemon, &replica, round).await;
        if daemon.metrics().await["log_lines_dropped_total"].as_u64() > Some(0) {
            break;
        }
    }
    assert_eq!(daemon.get("/livez").await.0, 200);
    replica.behave(|_| Behaviour::Apply);
    pause(&daemon, &replica).await;
    let resume = format!("{}/resume", path_of(&replica));
    assert_eq!(daemon.post_to(&resume, &Value::Null).await.0, 200);
    daemon.accept(&set("last", "value", &[&replica])).await;
    replica.until_holds("last", "value").await;
    assert!(daemon.terminate().await.success());
    drop(reader);
}

/// Reads to the end on its own thread.
fn collect(mut reader: PipeReader) -> Arc<Mutex<String>> {
    let read = Arc::new(Mutex::new(String::new()));
    let collected = Arc::clone(&read);
    std::thread::spawn(move || {
        let mut part = [0; 65536];
        while let Ok(bytes @ 1..) = reader.read(&mut part) {
            let text = String::from_utf8_lossy(&part[..bytes]).into_owned();
            collected.lock().unwrap().push_str(&text);
        }
    });
    read
}

#[tokio::test]
async fn a_log_reader_that_resumes_gets_the_number_of_dropped_lines() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut daemon = Daemon::start_logging_to(writer, &TALKATIVE).await;
    let replica = failing().await;
    for round in 0.. {
        talk(&daemon, &replica, round).await;
        if daemon.metrics().await["log_lines_dropped_total"].as_u64() > Some(0) {
            break;
        }
    }
    let read = collect(reader);
    wait_until("the report", || async {
        let report = "log lines were dropped: standard error was blocked or failed";
        read.lock().unwrap().contains(report).then_some(())
    })
    .await;
    assert!(daemon.terminate().await.success());
    // The last lines reach a reader that reads.
    wait_until("the last lines", || async {
        read.lock().unwrap().contains("SIGTERM").then_some(())
    })
    .await;
}

#[tokio::test]
async fn the_reason_of_a_failed_start_reaches_the_log_reader() {
    let daemon = Daemon::start(&[]).await;
    for format in ["text", "json"] {
        let mut second = command();
        second.arg("--data-dir").arg(daemon.dir()).args(["--port", "0", "--log-format", format]);
        let output = second.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let printed = String::from_utf8(output.stderr).unwrap();
        assert!(printed.lines().last().unwrap().contains("in use by another"), "{printed}");
        // Without a reader the exit code is the same.
        let mut second = command();
        second.arg("--data-dir").arg(daemon.dir()).args(["--port", "0", "--log-format", format]);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = second.stderr(writer).stdout(Stdio::null()).status().unwrap();
        assert_eq!(status.code(), Some(1), "{format}");
    }
}

/// Direction marks, tags, joiners, separators and controls in a key, a field and a replica's error.
#[tokio::test]
async fn text_from_a_client_is_escaped_in_the_log_on_the_terminal_and_in_errors() {
    const ODD: &str =
        "\u{61c}\u{ad}\u{e0041}\u{202e}\u{2028}\u{9b}\u{200d}\u{fe0f}\u{3164}\u{e000}x";
    let visible = |text: &str| {
        let odd: Vec<_> = text.chars().filter(|c| is_odd(*c) && *c != '\n').collect();
        assert!(odd.is_empty() && text.contains("61c"), "{odd:?} in {text:?}");
    };
    for format in ["text", "json"] {
        let daemon = Daemon::start(&["--log", "debug", "--log-format", format]).await;
        let replica = Replica::with(|_| Behaviour::Answer(400, "", ODD)).await;
        daemon.accept(&set(ODD, "value", &[&replica])).await;
        daemon.until_metric("dead_letters", 1).await;
        for line in ["dead-letters", "dead-letters --json"] {
            let args = line.split(' ').chain(["--url"]);
            let printed = command().args(args).arg(daemon.url("")).output().unwrap();
            assert!(printed.status.success(), "{printed:?}");
            visible(&String::from_utf8(printed.stdout).unwrap());
        }
        let mut write = set("key", "value", &[&replica]);
        write["operation"] = ODD.into();
        let (status, answer) = daemon.post(&write).await;
        assert_eq!(status, 400);
        visible(answer["error"].as_str().unwrap());
        let unread = format!("/nonexistent/{ODD}");
        let args = ["--log-format", format, "--allow-replica-file", &unread];
        let other = Daemon::try_start_on(&daemon.dir().with_extension("other"), &args, &[]).await;
        assert_eq!(other.err().unwrap().code(), Some(1));
        visible(&crate::support::daemon::log(&daemon.dir().with_extension("other")));
    }
}
