//! Dead letters in groups, and what became of them.

use super::*;

#[tokio::test]
async fn dead_letters_are_counted_by_replica_cause_and_error() {
    let group = json!({
        "replica": "http://b", "cause": "rejected", "error": "status 400: bad\u{1b}", "count": 40,
        "oldest": "2025-12-31T23:00:00.000Z", "newest": "2025-12-31T23:59:00.000Z",
    });
    let get = |answer| vec![step("GET /v1/dead-letters/summary", 200, answer)];
    let answer = json!({ "dead_letters": 47, "groups": [group], "other": 7 });
    let ran = run("dead-letters summary", get(answer.clone())).await;
    assert_eq!(
        ran.is(CommandOutcome::Done).lines().collect::<Vec<_>>(),
        [
            "COUNT  REPLICA   CAUSE     OLDEST  NEWEST  ERROR",
            "   40  http://b  rejected      1h      1m  status 400: bad\\u{1b}",
            "and 7 in smaller groups",
        ]
    );
    let ran = run("dead-letters summary --json", get(answer.clone())).await;
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap(), answer);
    let none = json!({ "dead_letters": 0, "groups": [], "other": 0 });
    let ran = run("dead-letters summary", get(none)).await;
    assert_eq!(ran.is(CommandOutcome::Done), "no dead letters\n");
}

fn redriven(state: &str, outcomes: [u64; 3]) -> Value {
    let [delivered, failed, waiting] = outcomes;
    let mut operation = operation(state, 100, 64);
    (operation["matched"], operation["superseded"]) = (json!(64), json!(0));
    operation["outcomes"] = json!({
        "delivered": delivered, "failed": failed, "superseded": 0, "discarded": 0,
        "waiting": waiting,
    });
    operation
}

#[tokio::test]
async fn a_redrive_waits_for_its_deliveries_and_reports_those_that_failed_again() {
    let steps = |last| {
        vec![
            step("POST /v1/dead-letters/redrive", 202, redriven("running", [0, 0, 0])),
            step("GET /v1/operations/op-1", 200, redriven("done", [1, 3, 60])),
            step("GET /v1/operations/op-1", 200, redriven("done", last)),
        ]
    };
    let ran = run("dead-letters redrive --all", steps([1, 63, 0])).await;
    let expected = "redrove 64 of 64 dead letters: 1 delivered, 63 failed again\n";
    assert_eq!(ran.is(CommandOutcome::GivenUp), expected);
    assert!(ran.err.contains("waiting for 60 deliveries; Ctrl-C stops waiting"), "{:?}", ran.err);
    let ran = run("dead-letters redrive --all", steps([64, 0, 0])).await;
    let expected = "redrove 64 of 64 dead letters: 64 delivered\n";
    assert_eq!(ran.is(CommandOutcome::Done), expected);
}

#[tokio::test]
async fn ctrl_c_stops_waiting_for_the_deliveries_of_a_redrive() {
    let queued = step("POST /v1/dead-letters/redrive", 202, redriven("done", [0, 4, 60]));
    let ran = run_interrupted("dead-letters redrive --all", vec![queued], 1).await;
    let expected = "redrove 64 of 64 dead letters: 4 failed again, 60 not settled yet\n";
    assert_eq!(ran.is(CommandOutcome::Incomplete), expected);
}

#[tokio::test]
async fn a_task_is_shown_with_its_last_attempts() {
    let mut shown = task("7");
    shown["deliveries"][1]["attempts"] = json!([
        { "ended_at": "2025-12-31T23:59:50.000Z", "duration_seconds": 0.0215, "error": "status 500" },
        { "ended_at": "2025-12-31T23:59:58.000Z", "duration_seconds": 5.0, "error": null },
    ]);
    let ran = run("tasks show 7", vec![step("GET /v1/tasks/7", 200, shown)]).await;
    let out: Vec<_> = ran.is(CommandOutcome::Done).lines().collect();
    assert_eq!(
        out[out.len() - 4..],
        [
            "",
            "ATTEMPTS    ENDED    TOOK  RESULT",
            "http://b  10s ago  21.5ms  status 500",
            "http://b   2s ago   5.00s  delivered",
        ]
    );
}
