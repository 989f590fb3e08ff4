//! What operators set for a replica: pauses that end by themselves, and limits.

use serde_json::{Value, json};

use super::{path_of, until};
use crate::support::{Daemon, Replica, set, strong};

#[tokio::test]
async fn a_replica_can_be_paused_before_its_first_write() {
    let mut daemon = Daemon::start(&["--strong-timeout", "5m"]).await;
    let (new, other) = (Replica::start().await, Replica::start().await);
    let pause = format!("{}/pause", path_of(&new));
    let (status, shown) = daemon.post_to(&pause, &json!({ "for_seconds": 3600 })).await;
    assert_eq!((status, &shown["state"]), (200, &json!("paused")), "{shown}");
    let ends = shown["paused_until"].clone();
    assert!(ends.is_string(), "{shown}");
    let all = daemon.show("/v1/replicas").await;
    assert_eq!(
        (&all["replicas"][0]["replica"], &all["replicas"][0]["paused_until"]),
        (&json!(new.url()), &ends)
    );

    daemon.kill_and_restart().await;
    assert_eq!(daemon.show(&path_of(&new)).await["paused_until"], ends);
    let (status, answer) = daemon.post(&strong("k", "v", &[&new, &other])).await;
    let reason = format!("{} is paused;", new.url());
    assert_eq!(status, 503, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains(&reason), "{answer}");
    other.until_holds("k", "v").await;
    assert_eq!(new.seen().len(), 0);
    daemon.post_to(&format!("{}/resume", path_of(&new)), &Value::Null).await;
    new.until_holds("k", "v").await;
}

#[tokio::test]
async fn paused_replicas_that_are_not_known_are_limited_and_must_be_allowed() {
    let known = ["--max-replicas", "2", "--max-known-replicas", "2"];
    let daemon = Daemon::start(&[&known[..], &["--allow-replica", "127.0.0.0/8"]].concat()).await;
    for host in 1..=2 {
        let (status, shown) =
            daemon.post_to(&format!("/v1/replicas/127.0.0.{host}/pause"), &Value::Null).await;
        assert_eq!(status, 200, "{shown}");
    }
    let (status, answer) = daemon.post_to("/v1/replicas/127.0.0.3/pause", &Value::Null).await;
    assert_eq!(status, 409);
    assert!(answer["error"].as_str().unwrap().contains("--max-known-replicas"), "{answer}");
    let (status, answer) = daemon.post_to("/v1/replicas/10.0.0.1/pause", &Value::Null).await;
    assert_eq!(status, 403, "{answer}");
    let (status, _) = daemon.post_to("/v1/replicas/127.0.0.3/resume", &Value::Null).await;
    assert_eq!(status, 404);
}

#[tokio::test]
async fn a_pause_ends_by_itself_also_if_its_time_is_over_when_the_daemon_starts() {
    let mut daemon = Daemon::start(&[]).await;
    let (short, long) = (Replica::start().await, Replica::start().await);
    for replica in [&short, &long] {
        let pause = format!("{}/pause", path_of(replica));
        let (status, answer) = daemon.post_to(&pause, &json!({ "for_seconds": 1 })).await;
        assert_eq!(status, 200, "{answer}");
        daemon.accept(&set("k", "v", &[replica])).await;
    }
    // The last request decides.
    let pause = format!("{}/pause", path_of(&long));
    daemon.post_to(&pause, &json!({ "for_seconds": 31_622_400 })).await;
    let (_, shown) = daemon.post_to(&pause, &json!({})).await;
    assert_eq!((&shown["state"], &shown["paused_until"]), (&json!("paused"), &Value::Null));
    daemon.kill_and_restart().await;
    short.until_holds("k", "v").await;
    daemon.until_logged("the pause of a replica has ended").await;
    let shown = until(&daemon, &path_of(&short), |shown| shown["state"] == "healthy").await;
    assert_eq!(shown.get("paused_until"), None, "{shown}");
    daemon.kill_and_restart().await;
    assert_eq!(daemon.show(&path_of(&long)).await["state"], "paused");
    assert_eq!(long.seen().len(), 0);
}

#[tokio::test]
async fn an_end_of_a_pause_that_is_wrong_is_refused_with_its_field() {
    let daemon = Daemon::start(&[]).await;
    let cases = [
        (
            json!({ "for_seconds": 0 }),
            "\"for_seconds\" must be an integer from 1 to 31622400, got the number 0",
        ),
        (json!({ "for_seconds": "2h" }), "\"for_seconds\" must be an integer"),
        (json!({ "for_seconds": 31_622_401 }), "from 1 to 31622400"),
        (json!({ "until": "tomorrow" }), "\"until\" must be a time such as"),
        (json!({ "until": 5 }), "\"until\" must be a time such as"),
        (json!({ "until": "2001-01-01T00:00:00Z" }), "\"until\" must be in the future"),
        (json!({ "until": "2500-01-01T00:00:00Z" }), "at most 366 days ahead"),
        (json!({ "for_seconds": 5, "until": "2500-01-01T00:00:00Z" }), "cannot be combined"),
        (json!({ "forever": true }), "unknown field"),
    ];
    for (body, part) in cases {
        let (status, answer) = daemon.post_to("/v1/replicas/127.0.0.1/pause", &body).await;
        let error = answer["error"].as_str().unwrap();
        assert!(status == 400 && error.contains(part), "{body}: {answer}");
    }
    assert_eq!(daemon.show("/v1/replicas").await["replicas"], json!([]));
}

#[tokio::test]
async fn limits_hold_while_the_daemon_runs_and_after_a_kill_until_they_are_unset() {
    let mut daemon = Daemon::start(&[]).await;
    let (limited, other) = (Replica::start().await, Replica::start().await);
    let path = path_of(&limited);
    let change = json!({ "rate": 1, "workers": 2, "bandwidth": 1_000_000 });
    let (status, shown) = daemon.patch(&path, &change).await;
    let limits = json!({ "workers": 2, "rate": 1, "bandwidth": 1_000_000, "redrive_rate": null });
    assert_eq!((status, &shown["limits"], &shown["workers"]), (200, &limits, &json!(2)));
    for n in 0..200 {
        daemon.accept(&set(&format!("{n}"), "v", &[&limited, &other])).await;
    }
    other.until_holds("199", "v").await;
    daemon.kill_and_restart().await;
    let shown = until(&daemon, &path, |shown| shown["backlog_tasks"].as_u64() > Some(0)).await;
    assert_eq!(shown["limits"], limits, "{shown}");
    let metrics = daemon.metrics_page().await;
    for (of, rate, bandwidth) in [(&limited, 1, 1_000_000), (&other, 0, 0)] {
        for (name, limit) in [("rate_limit", rate), ("bandwidth_limit_bytes", bandwidth)] {
            let line = format!("replicator_replica_{name}{{replica=\"{}\"}} {limit}\n", of.url());
            assert!(metrics.contains(&line), "{line} in {metrics}");
        }
    }
    // At its rate the rest takes minutes.
    let (status, shown) = daemon.patch(&path, &json!({ "rate": null, "bandwidth": null })).await;
    assert_eq!(
        (status, &shown["limits"]["rate"], &shown["limits"]["workers"]),
        (200, &Value::Null, &json!(2))
    );
    limited.until_holds("199", "v").await;
    let (_, shown) = daemon.patch(&path, &json!({ "workers": null })).await;
    assert_eq!(shown.get("limits"), None, "{shown}");
}

#[tokio::test]
async fn limits_follow_a_rename_and_end_with_a_forget() {
    let daemon = Daemon::start(&[]).await;
    let (old, new) = (Replica::start().await, Replica::start().await);
    let (status, _) = daemon.patch(&path_of(&old), &json!({ "redrive_rate": 3 })).await;
    assert_eq!(status, 200);
    let rename = format!("{}/rename", path_of(&old));
    let (status, shown) = daemon.post_to(&rename, &json!({ "to": new.url() })).await;
    assert_eq!((status, &shown["limits"]["redrive_rate"]), (200, &json!(3)), "{shown}");
    daemon.post_to(&format!("{}/forget", path_of(&new)), &Value::Null).await;
    daemon.accept(&set("k", "v", &[&new])).await;
    let shown = until(&daemon, &path_of(&new), |shown| shown["books"]["delivered"] == 1).await;
    assert_eq!(shown.get("limits"), None, "{shown}");
}

#[tokio::test]
async fn a_limit_that_is_wrong_is_refused_with_its_field() {
    let daemon = Daemon::start(&[]).await;
    let cases = [
        (
            json!({ "rate": 0 }),
            "\"rate\" must be an integer from 1 to 1000000, or null, got the number 0",
        ),
        (json!({ "workers": 1025 }), "\"workers\" must be an integer from 1 to 1024"),
        (json!({ "bandwidth": -1 }), "\"bandwidth\" must be an integer from 1 to 1000000000000"),
        (json!({ "redrive_rate": "many" }), "\"redrive_rate\" must be an integer"),
        (json!({ "latency": 5 }), "unknown field"),
        (json!({}), "nothing is changed"),
    ];
    for (body, part) in cases {
        let (status, answer) = daemon.patch("/v1/replicas/127.0.0.1", &body).await;
        let error = answer["error"].as_str().unwrap();
        assert!(status == 400 && error.contains(part), "{body}: {answer}");
    }
    let (status, answer) = daemon.patch("/v1/replicas/127.0.0.1", &json!({ "rate": null })).await;
    assert_eq!(status, 404, "{answer}");
}
