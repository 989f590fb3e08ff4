//! Answers that are refused, unexpected or hostile.

use super::*;

/// Commands with the request that they send first.
const COMMANDS: [(&str, &str); 17] = [
    ("cluster", "GET /v1/cluster"),
    ("cluster drain b", "POST /v1/cluster/drain"),
    ("status", "GET /health"),
    ("replicas", "GET /v1/replicas"),
    ("replicas show b", "GET /v1/replicas/http:%2F%2Fb"),
    ("replicas pause b", "POST /v1/replicas/http:%2F%2Fb/pause"),
    ("replicas set b --rate 5", "PATCH /v1/replicas/http:%2F%2Fb"),
    ("replicas probe b", "POST /v1/replicas/http:%2F%2Fb/probe"),
    ("replicas forget b", "GET /v1/replicas/http:%2F%2Fb"),
    ("replicas rename b c", "GET /v1/replicas/http:%2F%2Fb"),
    ("tasks", "GET /v1/tasks?limit=100"),
    ("tasks show 7", "GET /v1/tasks/7"),
    ("dead-letters", "GET /v1/dead-letters?limit=100"),
    ("dead-letters discard --all", "POST /v1/dead-letters/discard"),
    ("barrier --wait 1s", "POST /v1/barriers"),
    ("key a/b", "GET /v1/keys/a%2Fb"),
    ("verify", "POST /v1/verify"),
];

/// The error of a command against a server that sends `bytes`, whatever it is asked.
async fn against(scheme: &str, line: &str, bytes: Vec<u8>) -> (String, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("{scheme}://{}", listener.local_addr().unwrap());
    let server = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 4096];
            assert!(stream.read(&mut request).await.unwrap() > 0);
            // The client may close the connection first.
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
        }
    });
    let words = line.split(' ').chain(["--url", &url]);
    let command = Cli::try_parse_from(std::iter::once("replicator").chain(words)).unwrap();
    let ran = run_command(&command.command.unwrap(), std::future::pending).await;
    server.abort();
    (ran.error(), url)
}

fn http(head: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into()
}

#[tokio::test]
async fn every_command_says_that_a_token_is_required() {
    for (line, request) in COMMANDS {
        let none = json!({ "error": "a token is required: send it as …" });
        let error = run(line, vec![step(request, 401, none)]).await.error();
        let required = "requires a token (--token-file, REPLICATOR_TOKEN)";
        assert!(error.starts_with("http://127.0.0.1:") && error.ends_with(required), "{error}");
        let role = json!({ "error": "a token with the role observe is required" });
        let error = run(line, vec![step(request, 403, role)]).await.error();
        let expected = "a token with the role observe is required (--token-file, REPLICATOR_TOKEN)";
        assert_eq!(error, expected, "{line}");
        let host = json!({ "error": "unexpected Host \"h\"" });
        let error = run(line, vec![step(request, 403, host)]).await.error();
        assert_eq!(error, "unexpected Host \"h\"", "{line}");
    }
}

#[tokio::test]
async fn every_command_describes_an_answer_that_is_not_from_a_replicator() {
    let moved = "301 Moved\r\nlocation: https://elsewhere/";
    for (line, _) in COMMANDS {
        for (head, body, got) in [
            ("200 OK", "<html></html>", "an HTML page, status 200"),
            ("404 Not Found", "\n<html></html>", "an HTML page, status 404"),
            ("200 OK", "", "an empty body, status 200"),
            ("204 No Content", "", "an empty body, status 204"),
            ("502 Bad Gateway", "\u{1b}[2Jbad", "not JSON, status 502"),
            ("500 Oops", "{\"detail\":1}", "other JSON, status 500"),
            (moved, "", "a redirect to https://elsewhere/, status 301"),
        ] {
            let (error, url) = against("http", line, http(head, body)).await;
            let expected =
                format!("unexpected answer from {url}: {got}; is it a replicator? (--url)");
            assert_eq!(error, expected, "{line}");
        }
        let older = http("404 Not Found", "{\"error\":\"this path does not exist\"}");
        let (error, url) = against("http", line, older).await;
        assert!(error.starts_with(&format!("{url} has no path /")), "{line}: {error}");
        assert!(error.ends_with("it is not a replicator, or an older version"), "{line}: {error}");
        let (error, url) = against("http", line, http("200 OK", "{\"hello\":1}")).await;
        let expected = format!("cannot parse the answer of {url}: missing field");
        assert!(error.starts_with(&expected), "{line}: {error}");
        let (error, _) = against("http", line, http("503 Busy", "{\"error\":\"busy\"}")).await;
        assert_eq!(error, "busy", "{line}");
    }
}

#[tokio::test]
async fn a_port_that_uses_the_other_protocol_is_named() {
    for (line, _) in COMMANDS {
        // What rustls answers to a request in plain text.
        let (error, url) = against("http", line, vec![21, 3, 3, 0, 2, 2, 50]).await;
        let expected = format!(
            "cannot connect to {url}: the port does not use HTTP; if it is a daemon with TLS, use https:// (--url)"
        );
        assert_eq!(error, expected, "{line}");
        let (error, url) = against("https", line, http("400 Bad Request", "")).await;
        let expected =
            format!("cannot connect to {url}: the port does not use TLS: use http:// (--url)");
        assert_eq!(error, expected, "{line}");
    }
}

const HOSTILE: &str = "http://b\u{1b}[2J\nhealthy\u{202e}";

#[tokio::test]
async fn text_of_an_answer_is_escaped_and_cannot_add_a_line() {
    let forged = replica(HOSTILE, &json!({ "renamed_from": [HOSTILE], "state_since": HOSTILE }));
    let operation = json!({
        "operation_id": HOSTILE, "kind": "redrive", "state": "done", "dry_run": false,
        "examined": 0, "matched": 0, "done": 0, "superseded": 0, "total": 0, "rate": null,
        "started_at": HOSTILE, "ended_at": null, "error": HOSTILE,
    });
    let barrier = json!({
        "barrier_id": HOSTILE, "reached": false, "up_to": HOSTILE, "pending": 1, "given_up": 0,
        "replicas": [{ "replica": HOSTILE, "pending": 1, "given_up": 0 }],
    });
    let operations = json!({ "operations": [operation.clone()] });
    for (line, request, answer, lines) in [
        ("replicas", "GET /v1/replicas", json!({ "replicas": [forged.clone()] }), 2),
        ("replicas pause b", "POST /v1/replicas/http:%2F%2Fb/pause", forged, 1),
        ("dead-letters redrive --all --detach", "POST /v1/dead-letters/redrive", operation, 1),
        ("dead-letters operations", "GET /v1/operations", operations, 2),
        ("barrier --wait 0s", "POST /v1/barriers", barrier, 3),
    ] {
        let ran = run(line, vec![step(request, 200, answer.clone())]).await;
        assert!(ran.result.is_ok(), "{:?}", ran.result);
        assert_eq!(ran.out.lines().count(), lines, "{}", ran.out);
        let odd = |c: char| c != '\n' && crate::text::is_odd(c);
        assert!(ran.out.contains("\\u{1b}[2J\\nhealthy") && !ran.out.contains(odd), "{}", ran.out);

        let text = serde_json::to_string_pretty(&answer).unwrap();
        let ran = run(&format!("{line} --json"), vec![step(request, 200, text.into())]).await;
        assert!(!ran.out.contains(odd) && ran.out.lines().count() == 1, "{}", ran.out);
        assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), answer);
    }
}

#[tokio::test]
async fn a_list_is_printed_page_by_page_and_an_empty_one_is_valid_json() {
    let page = |ids: &[u32], next: Value| json!({ "dead_letters": ids, "next_cursor": next });
    let path = "GET /v1/dead-letters?limit=2";
    let second = "GET /v1/dead-letters?limit=1&cursor=c";
    let steps = |last: Value| {
        vec![step(path, 200, page(&[1], json!("c"))), step(second, 200, page(&[2], last))]
    };
    for (last, printed) in [
        (json!("d"), "{\"dead_letters\":[1,2],\"next_cursor\":\"d\"}\n"),
        (Value::Null, "{\"dead_letters\":[1,2],\"next_cursor\":null}\n"),
    ] {
        let ran = run("dead-letters list --limit 2 --json", steps(last)).await;
        assert_eq!(ran.is(CommandOutcome::Done), printed);
    }
    let ran =
        run("dead-letters list --limit 2 --json", vec![step(path, 200, page(&[], Value::Null))]);
    assert_eq!(ran.await.is(CommandOutcome::Done), "{\"dead_letters\":[],\"next_cursor\":null}\n");
    // The first page is printed before the second one is read.
    let lost = step(second, 500, json!({ "error": "internal error" }));
    let steps = vec![step(path, 200, page(&[1], json!("c"))), lost];
    let ran = run("dead-letters list --limit 2 --json", steps).await;
    assert_eq!(
        (ran.error().as_str(), ran.out.as_str()),
        ("internal error", "{\"dead_letters\":[1")
    );
}

#[tokio::test]
async fn the_token_is_sent_as_a_bearer_token() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "s3cret\n").unwrap();
    let line = format!("replicas --token-file {}", file.path().display());
    let ran = run(&line, vec![step("GET /v1/replicas", 200, json!({ "replicas": [] }))]).await;
    ran.is(CommandOutcome::Done);
    assert!(ran.seen[0].0.contains("authorization: Bearer s3cret\r\n"), "{}", ran.seen[0].0);
}
