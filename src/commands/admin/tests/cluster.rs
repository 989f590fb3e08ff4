//! A cluster store in `status`, and `cluster`.

use super::*;

pub(super) fn instance() -> Value {
    json!({
        "node_id": "a", "version": "1", "uptime_seconds": 1.0, "draining": false,
        "store": "working", "queue_tasks": 12, "queue_capacity": 1000, "store_bytes": 1048576,
        "disk_free_bytes": null,
    })
}

fn member(node: &str, partitions: u64, draining: bool) -> Value {
    json!({
        "node": node, "version": "1.2", "up_for_seconds": 65.0, "draining": draining,
        "leaving": false, "partitions": partitions, "here": node == "a",
    })
}

fn partition(number: u16, state: &str, owner: Option<&str>) -> Value {
    let since = owner.map(|_| "2025-12-31T23:59:50.000Z");
    let leader = (state != "no_leader").then_some("s1");
    json!({
        "number": number, "state": state, "owner": owner, "epoch": 4, "since": since,
        "leader": leader,
    })
}

fn shared(partitions: &[Value]) -> Value {
    json!({
        "name": "queue",
        "members": [member("a", 1, false), member("b\u{1b}[31m", 1, true)],
        "partitions": partitions,
        "store": { "servers": [], "sync_always": true, "lag": 3 },
    })
}

#[tokio::test]
async fn status_says_the_cluster_first_and_what_is_missing() {
    let mut steps = of_status(200, health("healthy"), json!({ "status": "ready" }), &[]);
    let mut instance = instance();
    instance["cluster"] = json!({
        "name": "queue", "connected": true, "server": "s1", "sync_always": true, "servers": [],
        "partitions": [],
    });
    steps.pop();
    steps.push(step("GET /v1/instance", 200, instance));
    let partitions = [
        partition(0, "owned", Some("a")),
        partition(1, "owned", Some("b")),
        partition(2, "no_owner", None),
    ];
    steps.push(step("GET /v1/cluster", 200, shared(&partitions)));
    let ran = run("status", steps).await;
    let out = ran.is(CommandOutcome::Incomplete);
    let lines: Vec<_> = out.lines().collect();
    assert_eq!(
        lines[1],
        "cluster queue: 2 instances of 3 partitions (a 1, b\\u{1b}[31m 1); writes are synced to disk"
    );
    assert_eq!(lines[2], "! no instance delivers the partitions 2");
    assert!(!lines[3].contains("free"), "{out}");
}

#[tokio::test]
async fn cluster_shows_instances_and_partitions_and_drains_an_instance() {
    let partitions = [partition(0, "owned", Some("a")), partition(1, "no_leader", None)];
    let ran = run("cluster", vec![step("GET /v1/cluster", 200, shared(&partitions))]).await;
    let out = ran.is(CommandOutcome::Incomplete);
    for part in [
        "! no server leads the partitions 1: their writes wait",
        "draining",
        "no leader",
        "slowest copy: 3 operations behind",
    ] {
        assert!(out.contains(part), "{part}\n{out}");
    }
    assert!(!out.contains('\u{1b}'), "{out}");
    let owned = [partition(0, "owned", Some("a"))];
    let steps = || vec![step("POST /v1/cluster/drain", 200, shared(&owned))];
    let ran = run("cluster drain a", steps()).await;
    let expected =
        "draining a: it hands over 1 partition and claims none until --undo or its end\n";
    assert_eq!(ran.is(CommandOutcome::Done), expected);
    assert_eq!(ran.seen[0].1, r#"{"node":"a","drain":true}"#);
    let ran = run("cluster drain a --undo", steps()).await;
    ran.is(CommandOutcome::Done);
    assert_eq!(ran.seen[0].1, r#"{"node":"a","drain":false}"#);
}

#[tokio::test]
async fn what_a_cluster_cannot_answer_is_said() {
    let page = json!({ "tasks": [], "next_cursor": null, "incomplete": [1, 4] });
    let steps = vec![step("GET /v1/tasks?limit=100", 200, page.clone())];
    let ran = run("tasks", steps).await;
    ran.is(CommandOutcome::Done);
    assert!(ran.err.contains("no answer for the partitions 1, 4"), "{}", ran.err);
    let ran = run("tasks --json", vec![step("GET /v1/tasks?limit=100", 200, page)]).await;
    let out: Value = serde_json::from_str(ran.is(CommandOutcome::Done)).unwrap();
    assert_eq!(out["incomplete"], json!([1, 4]));

    let mut shown = replica("http://b:8082", &json!({}));
    shown["incomplete"] = json!([3]);
    shown["books"]["handed_over"] = json!(4);
    let path = "GET /v1/replicas/http:%2F%2Fb:8082";
    let ran = run("replicas show b:8082", vec![step(path, 200, shown)]).await;
    let out = ran.is(CommandOutcome::Done);
    assert!(out.contains("0 discarded + 4 handed over + 0 pending"), "{out}");
    assert!(ran.err.contains("no answer for the partitions 3"), "{}", ran.err);

    let mut paused = replica("http://b:8082", &json!({}));
    paused["unconfirmed"] = json!(["c"]);
    let verb = "POST /v1/replicas/http:%2F%2Fb:8082/pause";
    let ran = run("replicas pause b:8082", vec![step(verb, 200, paused)]).await;
    ran.is(CommandOutcome::Incomplete);
    assert!(ran.err.contains("not confirmed by c"), "{}", ran.err);
}
