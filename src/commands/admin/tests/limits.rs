//! Pauses with an end, and limits.

use super::*;

#[tokio::test]
async fn a_pause_is_sent_with_its_end_and_shown_with_it() {
    let verb = "POST /v1/replicas/http:%2F%2Fb:8082/pause";
    let mut paused = replica("http://b:8082", &json!({}));
    paused["state"] = json!("paused");
    paused["paused_until"] = json!("2026-01-01T02:00:00.000Z");
    let ran = run("replicas pause b:8082 --for 2h", vec![step(verb, 200, paused.clone())]).await;
    let text = "paused http://b:8082: nothing is sent until 2026-01-01T02:00:00.000Z; backlog of ";
    assert!(ran.is(CommandOutcome::Done).starts_with(text), "{}", ran.out);
    assert_eq!(ran.seen[0].1, "{\"for_seconds\":7200}");
    let line = "replicas pause b:8082 --until 2026-01-01T02:00:00Z";
    let ran = run(line, vec![step(verb, 200, paused.clone())]).await;
    assert_eq!(ran.seen[0].1, "{\"until\":\"2026-01-01T02:00:00Z\"}");
    let show = step("GET /v1/replicas/http:%2F%2Fb:8082", 200, paused);
    let ran = run("replicas show b:8082", vec![show]).await;
    let out = ran.is(CommandOutcome::Done);
    assert!(out.contains("paused, until 2026-01-01T02:00:00.000Z\n"), "{out}");
}

#[tokio::test]
async fn limits_are_sent_as_numbers_or_null_and_listed_in_a_column() {
    let verb = "PATCH /v1/replicas/http:%2F%2Fb:8082";
    let limits =
        json!({ "workers": 2, "rate": null, "bandwidth": 10_000_000, "redrive_rate": null });
    let limited = replica("http://b:8082", &json!({ "limits": limits }));
    let line = "replicas set b:8082 --workers 2 --rate none --bandwidth 10MB";
    let ran = run(line, vec![step(verb, 200, limited.clone())]).await;
    let text = "workers 2, bandwidth 10000000 bytes/s";
    assert_eq!(ran.is(CommandOutcome::Done), format!("limits of http://b:8082: {text}\n"));
    assert_eq!(ran.seen[0].1, "{\"bandwidth\":10000000,\"rate\":null,\"workers\":2}");
    let all = json!({ "replicas": [limited, replica("http://c:8082", &json!({}))] });
    let ran = run("replicas", vec![step("GET /v1/replicas", 200, all)]).await;
    let lines: Vec<_> = ran.is(CommandOutcome::Done).lines().collect();
    assert!(lines[0].ends_with("LIMITS") && lines[1].ends_with(text), "{lines:#?}");
}
