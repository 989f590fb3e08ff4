//! The commands against a scripted daemon.

use std::io::{self, Write};
use std::slice::from_ref;
use std::sync::Arc;

use clap::Parser;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{
    CommandError, CommandOutcome, DaemonClient, Screen, barrier, dead_letters, keys, replicas,
    status, tasks, verify,
};
use crate::cli::{Cli, Command};
use crate::task::Timestamp;

mod answers;
mod cluster;
mod letters;
mod limits;
mod verification;

/// 2026-01-01T00:00:00Z in every test.
fn now() -> Timestamp {
    Timestamp(1_767_225_600 * 1_000_000_000)
}

/// One request line and its answer.
pub(super) struct ScriptStep {
    request: &'static str,
    status: u16,
    answer: Value,
}

pub(super) fn step(request: &'static str, status: u16, answer: Value) -> ScriptStep {
    ScriptStep { request, status, answer }
}

struct Ran {
    result: Result<CommandOutcome, CommandError>,
    out: String,
    err: String,
    /// Head and body of each request.
    seen: Vec<(String, String)>,
}

impl Ran {
    #[track_caller]
    fn is(&self, outcome: CommandOutcome) -> &str {
        match &self.result {
            Ok(actual) => assert_eq!(*actual, outcome, "{}", self.out),
            Err(error) => panic!("{error}"),
        }
        &self.out
    }

    #[track_caller]
    fn error(&self) -> String {
        match &self.result {
            Ok(outcome) => panic!("{outcome:?}: {}", self.out),
            Err(error) => error.to_string(),
        }
    }
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut *self.0.lock(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn request(stream: &mut TcpStream) -> (String, String) {
    let mut bytes = Vec::new();
    let head = loop {
        assert!(stream.read_buf(&mut bytes).await.unwrap() > 0, "half a request");
        if let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            break at;
        }
    };
    let body = bytes.split_off(head + 4);
    let head = String::from_utf8(bytes).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length = length.map_or(0, |length| length.parse().unwrap());
    let mut body = body;
    while body.len() < length {
        assert!(stream.read_buf(&mut body).await.unwrap() > 0, "half a body");
    }
    (head, String::from_utf8(body).unwrap())
}

/// Answers the steps in order, one connection each, and returns the requests.
pub(super) async fn answer(listener: TcpListener, steps: Vec<ScriptStep>) -> Vec<(String, String)> {
    let mut seen = Vec::new();
    for step in steps {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (head, body) = request(&mut stream).await;
        let request = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
        assert_eq!(request, step.request);
        let text = match step.answer {
            Value::String(text) => text,
            json => json.to_string(),
        };
        let answer = format!(
            "HTTP/1.1 {} Scripted\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{text}",
            step.status,
            text.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
        seen.push((head, body));
    }
    seen
}

/// Runs a command line against a script and presses Ctrl-C `interrupts` times.
async fn run_interrupted(line: &str, steps: Vec<ScriptStep>, interrupts: usize) -> Ran {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let script = tokio::spawn(answer(listener, steps));
    let words = line.split(' ').chain(["--url", &url]);
    let command = Cli::try_parse_from(std::iter::once("replicator").chain(words)).unwrap();
    let mut left = interrupts;
    let interrupt = async || {
        if left == 0 {
            std::future::pending::<()>().await;
        }
        left -= 1;
    };
    let ran = run_command(&command.command.unwrap(), interrupt).await;
    let timeout = std::time::Duration::from_secs(120);
    let seen = match tokio::time::timeout(timeout, script).await {
        Ok(seen) => seen.unwrap(),
        Err(_) => panic!("not all requests were sent; {:?} {}", ran.result, ran.out),
    };
    Ran { seen, ..ran }
}

async fn run_command(command: &Command, interrupt: impl AsyncFnMut()) -> Ran {
    let (out, err) = (Buffer::default(), Buffer::default());
    let screen = &mut Screen::scripted(out.clone(), err.clone(), now);
    let client = |connect| DaemonClient::new(connect).unwrap();
    let result = match command {
        Command::Status(args) => status::run(args, &client(&args.ask.connect), screen).await,
        Command::Replicas(args) => replicas::run(args, &client(&args.ask.connect), screen).await,
        Command::Tasks(args) => tasks::run(args, &client(&args.ask.connect), screen).await,
        Command::DeadLetters(args) => {
            let client = client(&args.ask.connect);
            dead_letters::run_interruptible(args, &client, screen, interrupt).await
        }
        Command::Cluster(args) => {
            super::cluster::run(args, &client(&args.ask.connect), screen).await
        }
        Command::Barrier(args) => barrier::run(args, &client(&args.ask.connect), screen).await,
        Command::Key(args) => keys::run(args, &client(&args.ask.connect), screen).await,
        Command::Verify(args) => verify::run(args, &client(&args.ask.connect), screen).await,
        other => panic!("{other:?} is not scripted"),
    };
    Ran { result, out: out.text(), err: err.text(), seen: Vec::new() }
}

async fn run(line: &str, steps: Vec<ScriptStep>) -> Ran {
    run_interrupted(line, steps, 0).await
}

fn health(status: &str) -> Value {
    json!({ "status": status, "service": "replicator", "queue_size": 12 })
}

fn figures() -> Value {
    json!({
        "queue_size": 12, "queue_capacity": 1000, "queue_bytes": 2048, "retries_in_progress": 3,
        "retry_capacity": 500, "waiting_requests": 0, "dead_letters": 4,
        "store_file_bytes": 1_048_576, "disk_free_bytes": 1_073_741_824,
    })
}

/// A replica as in the API, with `changes` applied.
pub(super) fn replica(name: &str, changes: &Value) -> Value {
    let mut replica = json!({
        "replica": name, "renamed_from": [], "state": "healthy",
        "state_since": null, "next_probe_at": null, "backlog_tasks": 0, "backlog_bytes": 0,
        "oldest_accepted_at": null, "lag_seconds": 0.0, "in_flight": 0, "retrying": 0, "parked": 0,
        "dead_letters": 0, "refused_letters": 0, "dead_letter_bytes": 0, "workers": 5, "rate_in": 12.5, "rate_out": 12.5,
        "latency_p50_seconds": 0.002, "latency_p99_seconds": 0.0215, "last_error": null,
        "convergence": "drained", "drained_in_seconds": null, "outage_headroom_seconds": null, "outage_limit": null,
        "limits": { "workers": null, "rate": null, "bandwidth": null, "redrive_rate": null },
        "books": {
            "accepted": 10, "delivered": 9, "superseded": 1, "dead": 0, "discarded": 0,
            "pending": 0, "failed_attempts": 2, "redriven": 0,
        },
    });
    for (name, value) in changes.as_object().unwrap() {
        assert!(replica.get(name).is_some(), "{name}");
        replica[name] = value.clone();
    }
    replica
}

fn down() -> Value {
    replica(
        "http://b:8082",
        &json!({
            "state": "failing", "state_since": "2025-12-31T23:56:48.000Z",
            "next_probe_at": "2026-01-01T00:00:12.000Z", "backlog_tasks": 120,
            "lag_seconds": 192.0, "dead_letters": 4, "parked": 20, "convergence": "not_converging",
            "last_error": { "error": "cannot connect: refused", "at": "2025-12-31T23:59:59.000Z" },
        }),
    )
}

fn of_status(
    health_status: u16,
    health: Value,
    ready: Value,
    replicas: &[Value],
) -> Vec<ScriptStep> {
    let ready_status = if ready.get("error").is_some() { 503 } else { 200 };
    vec![
        step("GET /health", health_status, health),
        step("GET /readyz", ready_status, ready),
        step("GET /metrics", 200, figures()),
        step("GET /v1/replicas", 200, json!({ "replicas": replicas })),
        step("GET /v1/instance", 200, cluster::instance()),
    ]
}

#[tokio::test]
async fn a_healthy_daemon_is_summarised_in_a_few_lines() {
    let well = replica("http://a:8081", &json!({}));
    let ready = json!({ "status": "ready" });
    let ran = run("status", of_status(200, health("healthy"), ready, &[well])).await;
    let out = ran.is(CommandOutcome::Done);
    assert!(out.starts_with("ok  http://127.0.0.1:"), "{out}");
    let totals = "queue 12 of 1000 tasks, 2.0 KiB; retrying 3 of 500; 4 dead letters; store 1.0 MiB, 1.0 GiB free";
    assert_eq!(out.lines().nth(1), Some(totals));
    let table: Vec<_> = out.lines().skip(3).collect();
    assert_eq!(
        table,
        [
            "REPLICA        STATE    BACKLOG  SIZE  LAG  IN/S  OUT/S     P99  DEAD  PARKED  DRAINED IN",
            "http://a:8081  healthy        0   0 B   0s    12     12  21.5ms     0       0  -",
        ]
    );
}

#[tokio::test]
async fn problems_come_first_and_set_the_exit_code() {
    let well = replica("http://a:8081", &json!({}));
    let ready = json!({ "status": "ready" });
    let steps = of_status(200, health("healthy"), ready.clone(), &[well.clone(), down()]);
    let ran = run("status", steps).await;
    let out = ran.is(CommandOutcome::Incomplete);
    assert!(out.starts_with("attention  "), "{out}");
    assert_eq!(
        out.lines().nth(1),
        Some(
            "! http://b:8082: failing for 3m12s, next probe in 12s, behind by 3m12s, not catching up, backlog of 120 tasks, 20 of them parked, 4 dead letters: cannot connect: refused"
        )
    );
    assert!(out.lines().nth(5).unwrap().starts_with("http://b:8082  failing"), "{out}");

    // The next due delivery is the probe, and there may be none for a long time.
    let mut idle = down();
    idle["next_probe_at"] = json!("2025-12-31T23:59:59.000Z");
    let ran = run("status", of_status(200, health("healthy"), ready.clone(), &[idle])).await;
    let expected = "failing for 3m12s, probed by the next due delivery, behind by";
    assert!(ran.is(CommandOutcome::Incomplete).contains(expected), "{}", ran.out);

    let full = of_status(200, health("degraded"), ready.clone(), from_ref(&well));
    let ran = run("status", full).await;
    assert!(
        ran.is(CommandOutcome::Incomplete).contains("! the queue is nearly full"),
        "{}",
        ran.out
    );

    // --max-lag decides what counts as behind.
    let slow = replica("http://a:8081", &json!({ "lag_seconds": 30.0, "backlog_tasks": 1 }));
    let steps = || of_status(200, health("healthy"), json!({ "status": "ready" }), from_ref(&slow));
    run("status", steps()).await.is(CommandOutcome::Done);
    run("status --max-lag 29s", steps()).await.is(CommandOutcome::Incomplete);
}

#[tokio::test]
async fn a_daemon_that_accepts_no_writes_is_refusing_whatever_else_it_answers() {
    let error = json!({ "status": "not ready", "error": "the replicator is shutting down" });
    let ran = run("status", of_status(200, health("healthy"), error.clone(), &[])).await;
    let out = ran.is(CommandOutcome::Unhealthy);
    assert!(out.contains("! accepts no writes: the replicator is shutting down"), "{out}");

    let mut steps = of_status(503, health("unhealthy"), error, &[]);
    for step in &mut steps[2..] {
        (step.status, step.answer) = (503, json!({ "error": "stopped" }));
    }
    let ran = run("status --json", steps).await;
    let out: Value = serde_json::from_str(ran.is(CommandOutcome::Unhealthy)).unwrap();
    assert_eq!((&out["state"], &out["replicas"]), (&json!("refusing"), &Value::Null));
}

#[tokio::test]
async fn an_unreachable_or_unexpected_daemon_is_reported_with_a_remedy() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let words = ["replicator", "replicas", "--url", url.as_str()];
    let Some(Command::Replicas(args)) = Cli::try_parse_from(words).unwrap().command else {
        panic!("not replicas");
    };
    let mut screen = Screen::scripted(io::sink(), io::sink(), now);
    let client = DaemonClient::new(&args.ask.connect).unwrap();
    let error = replicas::run(&args, &client, &mut screen).await.unwrap_err().to_string();
    let expected = format!("cannot reach {url}: connection refused (is the daemon running? --url)");
    assert_eq!(error, expected);

    let page = "<html>not found</html>".into();
    let ran = run("replicas", vec![step("GET /v1/replicas", 404, page)]).await;
    assert!(ran.error().contains(": an HTML page, status 404;"));
    let ran = run("replicas", vec![step("GET /v1/replicas", 200, json!({ "a": 1 }))]).await;
    assert!(ran.error().contains("missing field `replicas`"), "{}", ran.error());
}

#[tokio::test]
async fn a_call_to_a_hanging_daemon_times_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let words = ["replicator", "replicas", "--timeout", "50ms", "--url", url.as_str()];
    let Some(Command::Replicas(args)) = Cli::try_parse_from(words).unwrap().command else {
        panic!("not replicas");
    };
    let client = DaemonClient::new(&args.ask.connect).unwrap();
    let mut screen = Screen::scripted(io::sink(), io::sink(), now);
    let error = replicas::run(&args, &client, &mut screen).await.unwrap_err().to_string();
    assert_eq!(error, format!("no answer from {url} within 50ms (--timeout)"));
}

#[tokio::test]
async fn a_replica_is_one_path_segment() {
    let steps = |verb, answer| vec![step(verb, 200, answer)];
    let paused = replica("http://b:8082/base", &json!({ "backlog_tasks": 7 }));
    let verb = "POST /v1/replicas/http:%2F%2Fb:8082%2Fbase/pause";
    let ran = run("replicas pause b:8082/base/", steps(verb, paused.clone())).await;
    assert!(ran.is(CommandOutcome::Done).starts_with("paused http://b:8082/base: "), "{}", ran.out);

    let verb = "POST /v1/replicas/http:%2F%2Fb:8082%2Fbase/rename";
    let ran = run("replicas rename b:8082/base c:1 --yes", steps(verb, paused)).await;
    ran.is(CommandOutcome::Done);
    assert_eq!(ran.seen[0].1, "{\"to\":\"http://c:1\"}");

    let probed = json!({
        "replica": "http://b", "state": "healthy", "probing": false, "reason": "nothing is due",
    });
    let ran = run("replicas probe b", steps("POST /v1/replicas/http:%2F%2Fb/probe", probed)).await;
    assert_eq!(ran.is(CommandOutcome::Failed), "not probing http://b: nothing is due\n");
}

#[tokio::test]
async fn show_prints_all_details_of_a_replica() {
    let ran =
        run("replicas show b:8082", vec![step("GET /v1/replicas/http:%2F%2Fb:8082", 200, down())])
            .await;
    let out = ran.is(CommandOutcome::Done);
    for line in [
        "state         failing for 3m12s, next probe in 12s",
        "backlog       120 tasks, 0 B: 0 in flight, 0 retrying, 20 parked",
        "last error    1s ago: cannot connect: refused",
        "books         10 accepted = 9 delivered + 1 superseded + 0 dead + 0 discarded + 0 pending",
    ] {
        assert!(out.lines().any(|printed| printed == line), "{line}\n{out}");
    }
    let mut paused = down();
    paused["state"] = json!("paused");
    paused["state_since"] = json!("2025-12-31T23:58:00.000Z");
    paused["next_probe_at"] = Value::Null;
    let step = step("GET /v1/replicas/http:%2F%2Fb:8082", 200, paused);
    let ran = run("replicas show b:8082", vec![step]).await;
    let out = ran.is(CommandOutcome::Done);
    assert!(out.contains("\nstate         paused for 2m\nbacklog "), "{out}");
}

#[tokio::test]
async fn rename_requires_yes() {
    let path = "GET /v1/replicas/http:%2F%2Fb:8082";
    let ran = run("replicas rename b:8082 c:1", vec![step(path, 200, down())]).await;
    assert_eq!(ran.is(CommandOutcome::Unconfirmed), "");
    let expected = "would send 120 pending deliveries and all future writes of http://b:8082 to http://c:1, and cannot be undone: confirm with --yes";
    assert!(ran.err.contains(expected), "{}", ran.err);
}

#[tokio::test]
async fn forget_requires_yes() {
    let path = "GET /v1/replicas/http:%2F%2Fb:8082";
    let ran = run("replicas forget b:8082", vec![step(path, 200, down())]).await;
    assert_eq!(ran.is(CommandOutcome::Unconfirmed), "");
    assert!(ran.err.contains("would discard 120 deliveries and 4 dead letters"), "{}", ran.err);
    let forgotten = json!({ "replica": "http://b:8082", "discarded": 124, "in_flight": 1 });
    let path = "POST /v1/replicas/http:%2F%2Fb:8082/forget";
    let ran = run("replicas forget b:8082 --yes", vec![step(path, 200, forgotten)]).await;
    let expected = "forgot http://b:8082: discarded 124; 1 in flight are not retried\n";
    assert_eq!(ran.is(CommandOutcome::Done), expected);
}

fn task(id: &str) -> Value {
    json!({
        "task_id": id, "key": "user/\u{1b}7", "operation": "SET", "value_bytes": 5,
        "accepted_at": "2025-12-31T23:59:00.000Z", "expires_at": null, "user_id": "ann",
        "consistency": "eventual", "settled_at": null,
        "deliveries": [
            { "replica": "http://a", "state": "delivered", "failures": 0, "next_attempt_at": null,
              "last_error": null, "last_failed_at": null, "cause": null },
            { "replica": "http://b", "state": "retrying", "failures": 2,
              "next_attempt_at": "2026-01-01T00:00:02.500Z", "last_error": "status 500",
              "last_failed_at": "2025-12-31T23:59:58.000Z", "cause": null },
        ],
    })
}

#[tokio::test]
async fn a_list_is_read_across_empty_pages_up_to_its_limit() {
    let page = |ids: &[&str], next: Value| {
        let tasks: Vec<_> = ids.iter().map(|id| task(id)).collect();
        json!({ "tasks": tasks, "next_cursor": next })
    };
    let filter = "GET /v1/tasks?key_prefix=user%2F&state=in_flight&replica=http%3A%2F%2Fb";
    let (first, second, third) = (
        format!("{filter}&limit=3"),
        format!("{filter}&limit=3&cursor=5"),
        format!("{filter}&limit=1&cursor=9"),
    );
    let leak = |text: String| -> &'static str { Box::leak(text.into_boxed_str()) };
    let steps = || {
        vec![
            step(leak(first.clone()), 200, page(&[], json!("5"))),
            step(leak(second.clone()), 200, page(&["6", "9"], json!("9"))),
            step(leak(third.clone()), 200, page(&["12"], json!("12"))),
        ]
    };
    let line = "tasks list --key-prefix user/ --state in-flight --replica b --limit 3";
    let ran = run(line, steps()).await;
    let out: Vec<_> = ran.is(CommandOutcome::Done).lines().collect();
    assert_eq!(out[0], "TASK  AGE  OP   KEY           SIZE  USER  DELIVERIES");
    assert_eq!(out[3], "12     1m  SET  user/\\u{1b}7   5 B  ann   1 delivered, 1 retrying");
    assert_eq!(
        ran.err,
        "replicator: there are more: raise --limit, or continue with --cursor 12\n"
    );

    let ran = run(&format!("{line} --json"), steps()).await;
    let out: Value = serde_json::from_str(ran.is(CommandOutcome::Done)).unwrap();
    assert_eq!((&out["tasks"][2]["task_id"], &out["next_cursor"]), (&json!("12"), &json!("12")));
}

#[tokio::test]
async fn a_task_is_shown_with_its_deliveries_and_a_missing_one_is_explained() {
    let ran = run("tasks show 7", vec![step("GET /v1/tasks/7", 200, task("7"))]).await;
    let out = ran.is(CommandOutcome::Done);
    assert!(out.contains("accepted     1m ago, 2025-12-31T23:59:00.000Z"), "{out}");
    assert!(out.contains("http://b  retrying          2  in 2.5s  2s ago: status 500"), "{out}");
    let gone = json!({ "error": "no such task" });
    let ran = run("tasks discard 7", vec![step("DELETE /v1/tasks/7", 404, gone)]).await;
    assert!(ran.error().starts_with("no task 7: it is settled"), "{}", ran.error());
}

fn operation(state: &str, examined: u64, done: u64) -> Value {
    json!({
        "operation_id": "op-1", "kind": "redrive", "state": state, "dry_run": false,
        "examined": examined, "matched": done + 1, "done": done, "superseded": 1, "total": 100,
        "rate": 50, "started_at": "2025-12-31T23:59:00.000Z", "ended_at": null,
        "error": if state == "failed" { json!("the store has failed") } else { Value::Null },
    })
}

#[tokio::test]
async fn a_redrive_is_watched_until_it_ends() {
    let steps = vec![
        step("POST /v1/dead-letters/redrive", 202, operation("running", 0, 0)),
        step("GET /v1/operations/op-1", 200, operation("running", 50, 40)),
        step("GET /v1/operations/op-1", 200, operation("done", 100, 80)),
    ];
    let ran = run("dead-letters redrive 7@b:1 8 --cause gave-up --rate 50", steps).await;
    let expected = "redrove 80 of 81 dead letters; 1 was skipped because a newer write of the key is pending\n";
    assert_eq!(ran.is(CommandOutcome::Done), expected);
    let half = "redriving [##########          ] 50%  40 of 50 seen, 50/s at most; Ctrl-C cancels";
    assert!(ran.err.contains(half), "{:?}", ran.err);
    let sent: Value = serde_json::from_str(&ran.seen[0].1).unwrap();
    assert_eq!(
        sent,
        json!({
            "ids": [{ "task_id": "7", "replica": "http://b:1" }, { "task_id": "8" }],
            "cause": "gave_up", "dry_run": false, "rate": 50,
        })
    );
}

#[tokio::test]
async fn ctrl_c_cancels_the_rest_and_a_second_one_stops_waiting() {
    let begun = || step("POST /v1/dead-letters/redrive", 202, operation("running", 0, 0));
    let steps = vec![
        begun(),
        step("DELETE /v1/operations/op-1", 200, operation("running", 10, 5)),
        step("GET /v1/operations/op-1", 200, operation("cancelled", 10, 5)),
    ];
    let ran = run_interrupted("dead-letters redrive --all", steps, 1).await;
    assert!(
        ran.is(CommandOutcome::Incomplete).starts_with("cancelled: redrove 5 of 6"),
        "{}",
        ran.out
    );
    let steps = vec![begun(), step("DELETE /v1/operations/op-1", 200, operation("running", 10, 5))];
    let ran = run_interrupted("dead-letters redrive --all", steps, 2).await;
    assert!(
        ran.is(CommandOutcome::Incomplete).starts_with("still running: redrove 5"),
        "{}",
        ran.out
    );
}

#[tokio::test]
async fn a_failed_or_lost_operation_is_reported_and_one_can_be_detached() {
    let begun = |state| step("POST /v1/dead-letters/discard", 202, operation(state, 3, 1));
    let ran = run("dead-letters discard --all", vec![begun("failed")]).await;
    assert!(
        ran.is(CommandOutcome::Failed).starts_with("failed: the store has failed;"),
        "{}",
        ran.out
    );
    let gone = step("GET /v1/operations/op-1", 404, json!({ "error": "no such operation" }));
    let ran = run("dead-letters discard --all", vec![begun("running"), gone]).await;
    assert!(ran.error().contains("the daemon was restarted"), "{}", ran.error());
    let ran = run("dead-letters discard --all --detach", vec![begun("running")]).await;
    assert_eq!(ran.is(CommandOutcome::Done), "op-1\n");
}

#[tokio::test]
async fn dead_letters_are_listed_with_cause_and_last_error() {
    let letter = json!({
        "task_id": "7", "replica": "http://b", "key": "k", "operation": "DELETE", "value_bytes": 0,
        "user_id": null, "accepted_at": "2025-12-31T23:00:00.000Z", "cause": "gave_up",
        "failures": 4, "last_error": "status 500\nand more", "since": "2025-12-31T23:30:00.000Z",
    });
    let page = json!({ "dead_letters": [letter], "next_cursor": null });
    let path = "GET /v1/dead-letters?cause=gave_up&limit=100";
    let ran = run("dead-letters list --cause gave-up", vec![step(path, 200, page)]).await;
    assert_eq!(
        ran.is(CommandOutcome::Done),
        "TASK  REPLICA   OP      KEY  SIZE  SINCE  CAUSE    FAILURES  LAST ERROR\n\
         7     http://b  DELETE  k     0 B    30m  gave up         4  status 500\\nand more\n"
    );
}

fn barrier_at(reached: bool, pending: u64, given_up: u64) -> Value {
    json!({
        "barrier_id": "b-1", "reached": reached, "up_to": "99", "pending": pending,
        "given_up": given_up,
        "replicas": [{ "replica": "http://b", "pending": pending, "given_up": given_up }],
    })
}

#[tokio::test]
async fn a_barrier_wait_survives_a_daemon_that_does_not_answer() {
    let steps = vec![
        step("POST /v1/barriers", 201, barrier_at(false, 7, 0)),
        step("GET /v1/barriers/b-1?wait=2s", 503, json!({ "error": "stopping" })),
        step("GET /v1/barriers/b-1?wait=2s", 200, barrier_at(false, 3, 0)),
        step("GET /v1/barriers/b-1?wait=2s", 200, barrier_at(true, 0, 0)),
    ];
    let ran = run("barrier --replica b --replica c:1", steps).await;
    assert_eq!(ran.is(CommandOutcome::Done), "reached: everything up to task 99 is delivered\n");
    assert_eq!(ran.seen[0].1, "{\"replicas\":[\"http://b\",\"http://c:1\"]}");
    assert!(ran.err.contains("waiting for 3 deliveries"), "{:?}", ran.err);
}

#[tokio::test]
async fn a_barrier_that_is_not_reached_or_has_dead_letters_sets_the_exit_code() {
    let get = step("GET /v1/barriers/b-1?wait=0s", 200, barrier_at(false, 7, 0));
    let ran = run("barrier --id b-1 --wait 0s", vec![get]).await;
    let out = ran.is(CommandOutcome::Incomplete);
    assert!(out.starts_with("not reached: 7 deliveries up to task 99 are not settled"), "{out}");
    let made = step("POST /v1/barriers", 201, barrier_at(true, 0, 2));
    let ran = run("barrier", vec![made]).await;
    let out = ran.is(CommandOutcome::GivenUp);
    assert!(out.starts_with("reached, except 2 dead letters"), "{out}");
    assert!(out.contains("http://b        0     2"), "{out}");
}
