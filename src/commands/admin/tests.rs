//! The commands against a daemon that answers by a script.

use std::io::{self, Write};
use std::slice::from_ref;
use std::sync::{Arc, Mutex};

use clap::Parser;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{Client, Failure, Outcome, Screen, barrier, dead_letters, replicas, status, tasks};
use crate::cli::{Cli, Command};
use crate::task::Timestamp;

/// The moment of every test: 2026-01-01T00:00:00Z.
fn now() -> Timestamp {
    Timestamp(1_767_225_600 * 1_000_000_000)
}

/// One question and its answer.
pub(super) struct Step {
    asked: &'static str,
    status: u16,
    answer: Value,
}

pub(super) fn step(asked: &'static str, status: u16, answer: Value) -> Step {
    Step { asked, status, answer }
}

/// What was printed, and how it ended.
struct Ran {
    ended: Result<Outcome, Failure>,
    out: String,
    err: String,
    /// Of each question, its head and its body.
    seen: Vec<(String, String)>,
}

impl Ran {
    #[track_caller]
    fn is(&self, outcome: Outcome) -> &str {
        match &self.ended {
            Ok(ended) => assert_eq!(*ended, outcome, "{}", self.out),
            Err(error) => panic!("{error}"),
        }
        &self.out
    }

    #[track_caller]
    fn error(&self) -> String {
        match &self.ended {
            Ok(outcome) => panic!("{outcome:?}: {}", self.out),
            Err(error) => error.to_string(),
        }
    }
}

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Buffer {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        Write::write(&mut *self.0.lock().unwrap(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a request: its head, and its body by the length it gives.
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

/// Answers the steps in their order, a connection each; gives what was asked.
pub(super) async fn answer(listener: TcpListener, steps: Vec<Step>) -> Vec<(String, String)> {
    let mut seen = Vec::new();
    for step in steps {
        let (mut stream, _) = listener.accept().await.unwrap();
        let (head, body) = request(&mut stream).await;
        let asked = head.lines().next().unwrap().trim_end_matches(" HTTP/1.1").to_owned();
        assert_eq!(asked, step.asked);
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

/// Runs a command line against a script, with Ctrl-C pressed as often as it is looked for.
async fn run_interrupted(line: &str, steps: Vec<Step>, interrupts: usize) -> Ran {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let script = tokio::spawn(answer(listener, steps));
    let words = line.split(' ').chain(["--url", &url]);
    let command = Cli::try_parse_from(std::iter::once("replicator").chain(words)).unwrap();
    let (out, err) = (Buffer::default(), Buffer::default());
    let mut screen = Screen::scripted(out.clone(), err.clone(), now);
    let mut left = interrupts;
    let interrupt = async || {
        if left == 0 {
            std::future::pending::<()>().await;
        }
        left -= 1;
    };
    let screen = &mut screen;
    let ended = match &command.command.unwrap() {
        Command::Status(args) => {
            status::run(args, &Client::new(&args.ask.connect).unwrap(), screen).await
        }
        Command::Replicas(args) => {
            replicas::run(args, &Client::new(&args.ask.connect).unwrap(), screen).await
        }
        Command::Tasks(args) => {
            tasks::run(args, &Client::new(&args.ask.connect).unwrap(), screen).await
        }
        Command::DeadLetters(args) => {
            let client = Client::new(&args.ask.connect).unwrap();
            dead_letters::run_until(args, &client, screen, interrupt).await
        }
        Command::Barrier(args) => {
            barrier::run(args, &Client::new(&args.ask.connect).unwrap(), screen).await
        }
        other => panic!("{other:?} is not scripted"),
    };
    let patience = std::time::Duration::from_secs(120);
    let seen = tokio::time::timeout(patience, script).await;
    let seen = match seen {
        Ok(seen) => seen.unwrap(),
        Err(_) => panic!("not all was asked; {ended:?} {}", out.text()),
    };
    Ran { ended, out: out.text(), err: err.text(), seen }
}

async fn run(line: &str, steps: Vec<Step>) -> Ran {
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

/// A replica as the API gives it, with some of its fields as a test wants them.
pub(super) fn replica(name: &str, changes: &Value) -> Value {
    let mut replica = json!({
        "replica": name, "renamed_from": [], "paused_since": null, "breaker": "closed",
        "breaker_since": null, "next_probe_at": null, "backlog_tasks": 0, "backlog_bytes": 0,
        "oldest_accepted_at": null, "lag_seconds": 0.0, "in_flight": 0, "retrying": 0, "parked": 0,
        "dead_letters": 0, "dead_letter_bytes": 0, "workers": 5, "rate_in": 12.5, "rate_out": 12.5,
        "latency_p50_seconds": 0.002, "latency_p99_seconds": 0.0215, "last_error": null,
        "convergence": "drained", "drained_in_seconds": null,
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
            "breaker": "open", "breaker_since": "2025-12-31T23:56:48.000Z",
            "next_probe_at": "2026-01-01T00:00:12.000Z", "backlog_tasks": 120,
            "lag_seconds": 192.0, "dead_letters": 4, "convergence": "not_converging",
            "last_error": { "error": "cannot connect: refused", "at": "2025-12-31T23:59:59.000Z" },
        }),
    )
}

fn of_status(health_status: u16, health: Value, ready: Value, replicas: &[Value]) -> Vec<Step> {
    let ready_status = if ready.get("error").is_some() { 503 } else { 200 };
    vec![
        step("GET /health", health_status, health),
        step("GET /readyz", ready_status, ready),
        step("GET /metrics", 200, figures()),
        step("GET /v1/replicas", 200, json!({ "replicas": replicas })),
    ]
}

#[tokio::test]
async fn a_healthy_daemon_is_told_in_a_few_lines() {
    let well = replica("http://a:8081", &json!({}));
    let ready = json!({ "status": "ready" });
    let ran = run("status", of_status(200, health("healthy"), ready, &[well])).await;
    let out = ran.is(Outcome::Done);
    assert!(out.starts_with("healthy  http://127.0.0.1:"), "{out}");
    let totals = "queue 12 of 1000 tasks, 2.0 KiB; retrying 3 of 500; 4 dead letters; store 1.0 MiB, 1.0 GiB free";
    assert_eq!(out.lines().nth(1), Some(totals));
    let table: Vec<_> = out.lines().skip(3).collect();
    assert_eq!(
        table,
        [
            "REPLICA        STATE  BACKLOG  SIZE  LAG  IN/S  OUT/S     P99  DEAD  DRAINED IN",
            "http://a:8081  ok           0   0 B   0s    12     12  21.5ms     0  -",
        ]
    );
}

#[tokio::test]
async fn what_is_wrong_comes_first_and_in_the_exit_code() {
    let well = replica("http://a:8081", &json!({}));
    let ready = json!({ "status": "ready" });
    let steps = of_status(200, health("healthy"), ready.clone(), &[well.clone(), down()]);
    let ran = run("status", steps).await;
    let out = ran.is(Outcome::Wanting);
    assert!(out.starts_with("degraded  "), "{out}");
    assert_eq!(
        out.lines().nth(1),
        Some(
            "! http://b:8082: does not answer for 3m12s, next probe in 12s, behind by 3m12s, not catching up, backlog of 120 tasks, 4 dead letters: cannot connect: refused"
        )
    );
    assert!(out.lines().nth(5).unwrap().starts_with("http://b:8082  open"), "{out}");

    // A probe that may go out goes out with what is next due, which may be nothing for long.
    let mut idle = down();
    idle["next_probe_at"] = json!("2025-12-31T23:59:59.000Z");
    let ran = run("status", of_status(200, health("healthy"), ready.clone(), &[idle])).await;
    let told = "does not answer for 3m12s, to be probed by what is next due, behind by";
    assert!(ran.is(Outcome::Wanting).contains(told), "{}", ran.out);

    let full = of_status(200, health("degraded"), ready.clone(), from_ref(&well));
    let ran = run("status", full).await;
    assert!(ran.is(Outcome::Wanting).contains("! the queue is nearly full"), "{}", ran.out);

    // Behind is what --max-lag says.
    let slow = replica("http://a:8081", &json!({ "lag_seconds": 30.0, "backlog_tasks": 1 }));
    let steps = || of_status(200, health("healthy"), json!({ "status": "ready" }), from_ref(&slow));
    run("status", steps()).await.is(Outcome::Done);
    run("status --max-lag 29s", steps()).await.is(Outcome::Wanting);
}

#[tokio::test]
async fn a_daemon_that_accepts_nothing_is_unhealthy_whatever_else_it_answers() {
    let error = json!({ "status": "not ready", "error": "the replicator is shutting down" });
    let ran = run("status", of_status(200, health("healthy"), error.clone(), &[])).await;
    let out = ran.is(Outcome::Unhealthy);
    assert!(out.contains("! accepts no writes: the replicator is shutting down"), "{out}");

    let mut steps = of_status(503, health("unhealthy"), error, &[]);
    for step in &mut steps[2..] {
        (step.status, step.answer) = (503, json!({ "error": "stopped" }));
    }
    let ran = run("status --json", steps).await;
    let out: Value = serde_json::from_str(ran.is(Outcome::Unhealthy)).unwrap();
    assert_eq!((&out["status"], &out["replicas"]), (&json!("unhealthy"), &Value::Null));
}

#[tokio::test]
async fn what_cannot_be_reached_or_understood_is_told_with_what_to_do() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let words = ["replicator", "replicas", "--url", url.as_str()];
    let Some(Command::Replicas(args)) = Cli::try_parse_from(words).unwrap().command else {
        panic!("not replicas");
    };
    let mut screen = Screen::scripted(io::sink(), io::sink(), now);
    let client = Client::new(&args.ask.connect).unwrap();
    let error = replicas::run(&args, &client, &mut screen).await.unwrap_err().to_string();
    let expected = format!("cannot reach {url}: connection refused (is the daemon running? --url)");
    assert_eq!(error, expected);

    let page = "<html>not found</html>".into();
    let ran = run("replicas", vec![step("GET /v1/replicas", 404, page)]).await;
    assert!(ran.error().contains("answered 404: is that a replicator of this version?"));
    let ran = run("replicas", vec![step("GET /v1/replicas", 200, json!({ "a": 1 }))]).await;
    assert!(ran.error().contains("missing field `replicas`"), "{}", ran.error());
    let refused = step("GET /v1/replicas", 401, json!({ "error": "a token is needed" }));
    let ran = run("replicas", vec![refused]).await;
    assert_eq!(ran.error(), "a token is needed (--token-file, REPLICATOR_TOKEN)");
}

#[tokio::test]
async fn a_daemon_that_hangs_is_given_up_after_the_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let words = ["replicator", "replicas", "--timeout", "50ms", "--url", url.as_str()];
    let Some(Command::Replicas(args)) = Cli::try_parse_from(words).unwrap().command else {
        panic!("not replicas");
    };
    let client = Client::new(&args.ask.connect).unwrap();
    let mut screen = Screen::scripted(io::sink(), io::sink(), now);
    let error = replicas::run(&args, &client, &mut screen).await.unwrap_err().to_string();
    assert_eq!(error, format!("no answer from {url} within 50ms (--timeout)"));
}

#[tokio::test]
async fn the_token_is_sent_as_a_bearer() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret\n").unwrap();
    let line = format!("replicas --token-file {}", file.path().display());
    let ran = run(&line, vec![step("GET /v1/replicas", 200, json!({ "replicas": [] }))]).await;
    ran.is(Outcome::Done);
    assert!(ran.seen[0].0.contains("authorization: Bearer s3cret\r\n"), "{}", ran.seen[0].0);
}

#[tokio::test]
async fn a_replica_is_one_segment_of_the_path() {
    let steps = |verb, answer| vec![step(verb, 200, answer)];
    let paused = replica("http://b:8082/base", &json!({ "backlog_tasks": 7 }));
    let verb = "POST /v1/replicas/http:%2F%2Fb:8082%2Fbase/pause";
    let ran = run("replicas pause b:8082/base/", steps(verb, paused.clone())).await;
    assert!(ran.is(Outcome::Done).starts_with("paused: http://b:8082/base"), "{}", ran.out);

    let verb = "POST /v1/replicas/http:%2F%2Fb:8082%2Fbase/rename";
    let ran = run("replicas rename b:8082/base c:1", steps(verb, paused)).await;
    ran.is(Outcome::Done);
    assert_eq!(ran.seen[0].1, "{\"to\":\"http://c:1\"}");

    let probed = json!({
        "replica": "http://b", "breaker": "closed", "probing": false, "reason": "nothing is due",
    });
    let ran = run("replicas probe b", steps("POST /v1/replicas/http:%2F%2Fb/probe", probed)).await;
    assert_eq!(ran.is(Outcome::Failed), "not probing http://b: nothing is due\n");
}

#[tokio::test]
async fn one_replica_is_shown_with_all_that_is_known() {
    let ran =
        run("replicas show b:8082", vec![step("GET /v1/replicas/http:%2F%2Fb:8082", 200, down())])
            .await;
    let out = ran.is(Outcome::Done);
    for line in [
        "breaker       open for 3m12s, next probe in 12s",
        "backlog       120 tasks, 0 B: 0 in flight, 0 retrying, 0 parked",
        "last error    1s ago: cannot connect: refused",
        "books         10 accepted = 9 delivered + 1 superseded + 0 dead + 0 discarded + 0 pending",
    ] {
        assert!(out.lines().any(|told| told == line), "{line}\n{out}");
    }
}

#[tokio::test]
async fn nothing_is_forgotten_without_a_yes() {
    let path = "GET /v1/replicas/http:%2F%2Fb:8082";
    let ran = run("replicas forget b:8082", vec![step(path, 200, down())]).await;
    assert_eq!(ran.is(Outcome::Unclear), "");
    assert!(ran.err.contains("throw away 120 deliveries and 4 dead letters"), "{}", ran.err);
    let forgotten = json!({ "replica": "http://b:8082", "discarded": 124, "in_flight": 1 });
    let path = "POST /v1/replicas/http:%2F%2Fb:8082/forget";
    let ran = run("replicas forget b:8082 --yes", vec![step(path, 200, forgotten)]).await;
    let told = "forgot http://b:8082: discarded 124, and 1 on the wire are not tried again\n";
    assert_eq!(ran.is(Outcome::Done), told);
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
async fn a_list_is_read_over_empty_pages_up_to_its_limit() {
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
    let out: Vec<_> = ran.is(Outcome::Done).lines().collect();
    assert_eq!(out[0], "TASK  AGE  OP   KEY           SIZE  USER  DELIVERIES");
    assert_eq!(out[3], "12     1m  SET  user/\\u{1b}7   5 B  ann   1 delivered, 1 retrying");
    assert_eq!(ran.err, "replicator: there is more: --limit, or go on with --cursor 12\n");

    let ran = run(&format!("{line} --json"), steps()).await;
    let out: Value = serde_json::from_str(ran.is(Outcome::Done)).unwrap();
    assert_eq!((&out["tasks"][2]["task_id"], &out["next_cursor"]), (&json!("12"), &json!("12")));
}

#[tokio::test]
async fn a_task_is_shown_with_its_deliveries_and_one_that_is_not_there_is_explained() {
    let ran = run("tasks show 7", vec![step("GET /v1/tasks/7", 200, task("7"))]).await;
    let out = ran.is(Outcome::Done);
    assert!(out.contains("accepted     1m ago, 2025-12-31T23:59:00.000Z"), "{out}");
    assert!(out.contains("http://b  retrying          2  in 2.5s  2s ago: status 500"), "{out}");
    let gone = json!({ "error": "no such task" });
    let ran = run("tasks discard 7", vec![step("DELETE /v1/tasks/7", 404, gone)]).await;
    assert!(ran.error().starts_with("there is no task 7: it is settled"), "{}", ran.error());
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
async fn a_redrive_is_watched_to_its_end() {
    let steps = vec![
        step("POST /v1/dead-letters/redrive", 202, operation("running", 0, 0)),
        step("GET /v1/operations/op-1", 200, operation("running", 50, 40)),
        step("GET /v1/operations/op-1", 200, operation("done", 100, 80)),
    ];
    let ran = run("dead-letters redrive 7@b:1 8 --cause gave-up --rate 50", steps).await;
    let told = "redrove 80 of 81 dead letters; 1 was left out, as a newer write of the key is on its way\n";
    assert_eq!(ran.is(Outcome::Done), told);
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
async fn ctrl_c_cancels_what_is_left_and_a_second_one_does_not_wait() {
    let begun = || step("POST /v1/dead-letters/redrive", 202, operation("running", 0, 0));
    let steps = vec![
        begun(),
        step("DELETE /v1/operations/op-1", 200, operation("running", 10, 5)),
        step("GET /v1/operations/op-1", 200, operation("cancelled", 10, 5)),
    ];
    let ran = run_interrupted("dead-letters redrive --all", steps, 1).await;
    assert!(ran.is(Outcome::Wanting).starts_with("cancelled: redrove 5 of 6"), "{}", ran.out);
    let steps = vec![begun(), step("DELETE /v1/operations/op-1", 200, operation("running", 10, 5))];
    let ran = run_interrupted("dead-letters redrive --all", steps, 2).await;
    assert!(ran.is(Outcome::Wanting).starts_with("still running: redrove 5"), "{}", ran.out);
}

#[tokio::test]
async fn an_operation_that_fails_or_is_lost_is_told_and_one_can_be_detached() {
    let begun = |state| step("POST /v1/dead-letters/discard", 202, operation(state, 3, 1));
    let ran = run("dead-letters discard --all", vec![begun("failed")]).await;
    assert!(ran.is(Outcome::Failed).starts_with("failed: the store has failed;"), "{}", ran.out);
    let gone = step("GET /v1/operations/op-1", 404, json!({ "error": "no such operation" }));
    let ran = run("dead-letters discard --all", vec![begun("running"), gone]).await;
    assert!(ran.error().contains("the daemon was restarted"), "{}", ran.error());
    let ran = run("dead-letters discard --all --detach", vec![begun("running")]).await;
    assert_eq!(ran.is(Outcome::Done), "op-1\n");
}

#[tokio::test]
async fn dead_letters_are_listed_with_why_they_lie_there() {
    let letter = json!({
        "task_id": "7", "replica": "http://b", "key": "k", "operation": "DELETE", "value_bytes": 0,
        "user_id": null, "accepted_at": "2025-12-31T23:00:00.000Z", "cause": "gave_up",
        "failures": 4, "last_error": "status 500\nand more", "since": "2025-12-31T23:30:00.000Z",
    });
    let page = json!({ "dead_letters": [letter], "next_cursor": null });
    let path = "GET /v1/dead-letters?cause=gave_up&limit=100";
    let ran = run("dead-letters list --cause gave-up", vec![step(path, 200, page)]).await;
    assert_eq!(
        ran.is(Outcome::Done),
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
async fn a_barrier_is_waited_for_over_a_daemon_that_is_away() {
    let steps = vec![
        step("POST /v1/barriers", 201, barrier_at(false, 7, 0)),
        step("GET /v1/barriers/b-1?wait=2s", 503, json!({ "error": "stopping" })),
        step("GET /v1/barriers/b-1?wait=2s", 200, barrier_at(false, 3, 0)),
        step("GET /v1/barriers/b-1?wait=2s", 200, barrier_at(true, 0, 0)),
    ];
    let ran = run("barrier --replica b --replica c:1", steps).await;
    assert_eq!(ran.is(Outcome::Done), "reached: everything up to task 99 is delivered\n");
    assert_eq!(ran.seen[0].1, "{\"replicas\":[\"http://b\",\"http://c:1\"]}");
    assert!(ran.err.contains("waiting for 3 deliveries"), "{:?}", ran.err);
}

#[tokio::test]
async fn a_barrier_that_is_not_reached_or_has_dead_letters_says_so_in_its_exit_code() {
    let asked = step("GET /v1/barriers/b-1?wait=0s", 200, barrier_at(false, 7, 0));
    let ran = run("barrier --id b-1 --wait 0s", vec![asked]).await;
    let out = ran.is(Outcome::Wanting);
    assert!(out.starts_with("not reached: 7 deliveries up to task 99 are not settled"), "{out}");
    let made = step("POST /v1/barriers", 201, barrier_at(true, 0, 2));
    let ran = run("barrier", vec![made]).await;
    let out = ran.is(Outcome::GivenUp);
    assert!(out.starts_with("reached, but for 2 dead letters"), "{out}");
    assert!(out.contains("http://b        0     2"), "{out}");
}
