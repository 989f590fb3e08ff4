//! The cluster store in `status`.

use super::*;

pub(super) fn instance() -> Value {
    json!({
        "node_id": "a", "version": "1", "uptime_seconds": 1.0, "draining": false,
        "store": "working", "queue_tasks": 12, "queue_capacity": 1000, "store_bytes": 1048576,
        "disk_free_bytes": null,
    })
}

#[tokio::test]
async fn a_cluster_store_is_one_line_with_the_owners_of_its_partitions() {
    let mut steps = of_status(200, health("healthy"), json!({ "status": "ready" }), &[]);
    let partition = |id: u16, owner: Option<&str>| json!({ "id": id, "owner": owner, "epoch": 1, "here": owner == Some("a") });
    let mut instance = instance();
    instance["cluster"] = json!({
        "name": "queue", "connected": true, "server": "s1", "sync_always": true, "servers": [],
        "partitions": [partition(0, Some("a")), partition(1, Some("b")), partition(2, None)],
    });
    steps.pop();
    steps.push(step("GET /v1/instance", 200, instance));
    let ran = run("status", steps).await;
    let out = ran.is(CommandOutcome::Done);
    let lines: Vec<_> = out.lines().collect();
    assert!(!lines[1].contains("free"), "{out}");
    assert_eq!(
        lines[2],
        "cluster queue: connected to s1; writes are synced to disk; 1 of 3 partitions here, others at b, 1 without an owner"
    );
}
