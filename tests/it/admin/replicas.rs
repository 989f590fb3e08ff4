//! Replicas: shown, paused, probed, forgotten, renamed.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{each, encoded, path_of, until};
use crate::support::{Behaviour, Daemon, Replica, set, strong};

#[tokio::test]
async fn a_replica_is_shown_with_its_backlog_and_its_books() {
    let daemon = Daemon::start(&["--retry-base", "10m", "--breaker-failures", "0"]).await;
    let (good, bad) = (Replica::start().await, Replica::with(|_| Behaviour::Reset).await);
    daemon.accept(&set("k", "v", &[&good, &bad])).await;
    let shown = until(&daemon, &path_of(&bad), |shown| shown["retrying"] == 1).await;
    assert_eq!(shown["replica"], bad.url());
    assert_eq!((&shown["backlog_tasks"], &shown["state"]), (&json!(1), &json!("healthy")));
    assert!(shown["last_error"]["error"].is_string(), "{shown}");
    let books = &shown["books"];
    assert_eq!((&books["accepted"], &books["pending"]), (&json!(1), &json!(1)), "{books}");
    until(&daemon, &path_of(&good), |shown| shown["books"]["delivered"] == 1).await;
    let all = daemon.show("/v1/replicas").await;
    let mut expected = vec![good.url(), bad.url()];
    expected.sort();
    assert_eq!(each(&all["replicas"], "replica"), expected);
    // The scheme is optional.
    let host = bad.url().replace("http://", "");
    assert_eq!(daemon.show(&format!("/v1/replicas/{host}")).await["replica"], bad.url());
}

#[tokio::test]
async fn a_replica_that_acknowledges_nothing_has_no_output_and_no_end() {
    let daemon = Daemon::start(&["--max-retries", "0"]).await;
    let dead = Replica::with(|_| Behaviour::Reset).await;
    for key in ["a", "b", "c", "d"] {
        daemon.accept(&set(key, "v", &[&dead])).await;
    }
    daemon.until_metric("permanent_failures", 4).await;
    let shown = until(&daemon, &path_of(&dead), |shown| shown["dead_letters"] == 4).await;
    assert_eq!((&shown["rate_out"], &shown["drained_in_seconds"]), (&json!(0.0), &Value::Null));
    let good = Replica::start().await;
    daemon.accept(&set("k", "v", &[&good])).await;
    let shown = until(&daemon, &path_of(&good), |shown| shown["rate_out"] != 0.0).await;
    assert_eq!(shown["convergence"], "drained");
}

#[tokio::test]
async fn the_daemon_keeps_its_figures_of_the_last_hour() {
    let daemon = Daemon::start(&["--node-id", "r-7", "--queue-capacity", "20"]).await;
    let replica = Replica::start().await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    let past = until(&daemon, "/v1/history", |past| {
        let delivered = past["delivered_per_second"].as_array().unwrap();
        delivered.iter().any(|rate| rate.as_f64().unwrap() > 0.0)
    })
    .await;
    assert_eq!((&past["replica"], &past["step_seconds"]), (&Value::Null, &json!(1)));
    let length = past["at"].as_array().unwrap().len();
    for figure in ["accepted_per_second", "backlog_tasks", "lag_seconds", "queue_tasks"] {
        assert_eq!(past[figure].as_array().unwrap().len(), length, "{figure}");
    }
    let of = format!("/v1/history?replica={}", encoded(&replica.url()));
    assert_eq!(daemon.show(&of).await["step_seconds"], 10);
    let (status, answer) = daemon.get("/v1/history?replica=h%3A1").await;
    assert_eq!((status, &answer["error"]), (404, &json!("there is no replica http://h:1")));

    let instance = daemon.show("/v1/instance").await;
    for (name, expected) in [
        ("node_id", json!("r-7")),
        ("version", json!(env!("CARGO_PKG_VERSION"))),
        ("store", json!("working")),
        ("draining", json!(false)),
        ("queue_capacity", json!(20)),
    ] {
        assert_eq!(instance[name], expected, "{name}");
    }
    assert!(instance["uptime_seconds"].as_f64().unwrap() > 0.0);
}

#[tokio::test]
async fn an_unknown_replica_is_a_404_and_an_invalid_address_a_400() {
    let daemon = Daemon::start(&[]).await;
    let unknown = "/v1/replicas/h%3A1";
    let sentence = json!({"error": "there is no replica http://h:1"});
    assert_eq!(daemon.get(unknown).await, (404, sentence.clone()));
    for order in ["pause", "resume", "probe", "forget"] {
        let path = format!("{unknown}/{order}");
        if order != "pause" {
            let answer = daemon.post_to(&path, &Value::Null).await;
            assert_eq!(answer, (404, sentence.clone()), "{order}");
        }
        let (status, answer) = daemon.post_to(&path, &json!({"force": true})).await;
        assert_eq!(status, 400, "{order}");
        assert!(answer["error"].as_str().unwrap().contains("`force`"), "{answer}");
        let (status, _) = daemon.get(&path).await;
        assert_eq!(status, 405, "{order}");
    }
    let to = json!({"to": "http://h:2"});
    assert_eq!(daemon.post_to(&format!("{unknown}/rename"), &to).await, (404, sentence));
    let (status, answer) = daemon.post_to(&format!("{unknown}/rename"), &json!({})).await;
    assert_eq!(
        (status, &answer["error"]),
        (400, &json!(r#"field "to" is missing: it must be the new address"#))
    );
    let (status, answer) = daemon.get("/v1/replicas/ftp%3A%2F%2Fh").await;
    assert_eq!(status, 400);
    assert!(
        answer["error"].as_str().unwrap().contains("must begin with http:// or https://"),
        "{answer}"
    );
    let (status, answer) = daemon.get("/v1/replicas?limit=5").await;
    assert_eq!(
        (status, &answer["error"]),
        (400, &json!(r#"unknown parameter "limit": this path takes none"#))
    );
}

#[tokio::test]
async fn a_pause_survives_a_kill_until_the_replica_is_resumed() {
    let mut daemon = Daemon::start(&[]).await;
    let (paused, other) = (Replica::start().await, Replica::start().await);
    daemon.accept(&set("before", "v", &[&paused, &other])).await;
    daemon.until_drained().await;
    let pause = format!("{}/pause", path_of(&paused));
    let (status, first) = daemon.post_to(&pause, &Value::Null).await;
    assert_eq!(status, 200);
    assert_eq!(first["state"], "paused");
    assert!(first["state_since"].is_string(), "{first}");
    let (status, again) = daemon.post_to(&pause, &json!({})).await;
    assert_eq!((status, &again["state_since"]), (200, &first["state_since"]));

    daemon.accept(&set("k", "1", &[&paused, &other])).await;
    daemon.accept(&set("k", "2", &[&paused, &other])).await;
    other.until_holds("k", "2").await;
    daemon.kill_and_restart().await;
    daemon.accept(&set("k", "3", &[&paused, &other])).await;
    other.until_holds("k", "3").await;
    let shown = daemon.show(&path_of(&paused)).await;
    assert_eq!(
        (&shown["state_since"], &shown["backlog_tasks"]),
        (&first["state_since"], &json!(3))
    );
    assert_eq!(shown["convergence"], "paused");
    assert_eq!(paused.seen().len(), 1, "nothing since the pause");

    let (status, shown) =
        daemon.post_to(&format!("{}/resume", path_of(&paused)), &Value::Null).await;
    assert_eq!((status, &shown["state"]), (200, &json!("healthy")));
    daemon.kill_and_restart().await;
    paused.until_holds("k", "3").await;
}

#[tokio::test]
async fn a_replica_that_is_idle_since_a_restart_can_be_paused_and_renamed() {
    let mut daemon = Daemon::start(&[]).await;
    let (old, new) = (Replica::start().await, Replica::start().await);
    daemon.accept(&set("before", "v", &[&old])).await;
    daemon.until_drained().await;
    daemon.terminate().await;
    daemon.kill_and_restart().await;
    let (status, paused) = daemon.post_to(&format!("{}/pause", path_of(&old)), &Value::Null).await;
    assert_eq!(status, 200, "{paused}");
    let (_, probed) = daemon.post_to(&format!("{}/probe", path_of(&old)), &Value::Null).await;
    assert_eq!(probed["reason"], "it is paused");
    let rename = format!("{}/rename", path_of(&old));
    let (status, shown) = daemon.post_to(&rename, &json!({"to": new.url()})).await;
    assert_eq!((status, &shown["renamed_from"]), (200, &json!([old.url()])));
    daemon.post_to(&format!("{}/resume", path_of(&old)), &Value::Null).await;
    daemon.accept(&set("k", "v", &[&old])).await;
    new.until_holds("k", "v").await;
}

#[tokio::test]
async fn an_operator_can_start_a_probe_at_once() {
    let flags = ["--retry-base", "10ms", "--breaker-failures", "1"];
    let daemon = Daemon::start(&flags).await;
    let replica = Replica::start().await;
    daemon.accept(&set("before", "v", &[&replica])).await;
    daemon.until_drained().await;
    let probe = format!("{}/probe", path_of(&replica));
    let (status, closed) = daemon.post_to(&probe, &Value::Null).await;
    assert_eq!(
        (status, &closed["probing"], &closed["state"]),
        (200, &json!(false), &json!("healthy"))
    );
    assert!(closed["reason"].is_string(), "{closed}");

    replica.stop();
    daemon.accept(&set("k", "v", &[&replica])).await;
    until(&daemon, &path_of(&replica), |shown| shown["state"] == "failing").await;
    daemon.until_drained().await;
    replica.come_back().await;
    daemon.post_to(&probe, &Value::Null).await;
    replica.until_holds("k", "v").await;
    until(&daemon, &path_of(&replica), |shown| shown["state"] != "failing").await;
}

#[tokio::test]
async fn a_forgotten_replica_receives_nothing_not_even_after_a_kill() {
    let flags = ["--workers", "1", "--request-timeout", "1s", "--retry-base", "10ms"];
    let mut daemon = Daemon::start(&flags).await;
    let (gone, other) = (Replica::with(|_| Behaviour::Hang).await, Replica::start().await);
    for n in 0..5 {
        daemon.accept(&set(&format!("k{n}"), "v", &[&gone, &other])).await;
    }
    gone.until_seen(1).await;
    let (status, shown) = daemon.post_to(&format!("{}/forget", path_of(&gone)), &Value::Null).await;
    assert_eq!((status, &shown["replica"]), (200, &json!(gone.url())));
    let (discarded, in_flight) =
        (shown["discarded"].as_u64().unwrap(), shown["in_flight"].as_u64().unwrap());
    assert_eq!(discarded + in_flight, 5, "{shown}");
    daemon.until_drained().await;
    gone.behave(|_| Behaviour::Apply);
    daemon.kill_and_restart().await;
    daemon.until_drained().await;
    assert_eq!(daemon.show("/v1/dead-letters").await["dead_letters"], json!([]));
    assert_eq!(gone.data().len(), 0);
    // A write that names it again adds it again.
    daemon.accept(&set("again", "v", &[&gone])).await;
    gone.until_holds("again", "v").await;
}

#[tokio::test]
async fn a_renamed_replica_receives_everything_at_its_new_address_after_a_kill_too() {
    let mut daemon = Daemon::start(&["--retry-base", "50ms", "--max-retries", "1000"]).await;
    let (old, new) = (Replica::start().await, Replica::start().await);
    old.stop();
    for n in 0..3 {
        daemon.accept(&set("k", &n.to_string(), &[&old])).await;
    }
    daemon.accept(&set("other", "v", &[&old])).await;
    let rename = format!("{}/rename", path_of(&old));
    let (status, shown) = daemon.post_to(&rename, &json!({"to": new.url()})).await;
    assert_eq!(status, 200, "{shown}");
    assert_eq!(
        (&shown["replica"], &shown["renamed_from"]),
        (&json!(new.url()), &json!([old.url()]))
    );
    new.until_holds("k", "2").await;
    new.until_holds("other", "v").await;
    daemon.until_drained().await;
    daemon.kill_and_restart().await;
    // Clients may still use the old address.
    daemon.accept(&set("k", "3", &[&old])).await;
    new.until_holds("k", "3").await;
    assert_eq!(old.seen().len(), 0);
}

#[tokio::test]
async fn a_replica_cannot_be_renamed_to_an_address_that_received_writes() {
    let daemon = Daemon::start(&[]).await;
    let (one, two) = (Replica::start().await, Replica::start().await);
    daemon.accept(&set("k", "v", &[&one, &two])).await;
    daemon.until_drained().await;
    let rename = format!("/v1/replicas/{}/rename", encoded(&one.url()));
    let (status, answer) = daemon.post_to(&rename, &json!({"to": two.url()})).await;
    assert_eq!(status, 409, "{answer}");
    assert!(answer["error"].is_string());
}

#[tokio::test]
async fn a_replica_with_nothing_pending_can_be_renamed_to_a_forgotten_address() {
    let daemon = Daemon::start(&["--retry-base", "1s"]).await;
    let (moved, forgotten) = (Replica::start().await, Replica::start().await);
    daemon.accept(&set("old", "v", &[&moved, &forgotten])).await;
    daemon.until_drained().await;
    daemon.post_to(&format!("{}/forget", path_of(&forgotten)), &Value::Null).await;
    let rename = async || {
        let to = json!({"to": forgotten.url()});
        daemon.post_to(&format!("{}/rename", path_of(&moved)), &to).await
    };
    // Its pending write could be older than one that the address has.
    moved.behave(|_| Behaviour::Answer(400, "", ""));
    daemon.accept(&set("pending", "v", &[&moved])).await;
    until(&daemon, &path_of(&moved), |shown| shown["dead_letters"] == 1).await;
    let (status, refused) = rename().await;
    assert_eq!(status, 409, "{refused}");
    assert!(refused["error"].as_str().unwrap().contains("when nothing is pending"), "{refused}");

    let discard = json!({"replica": moved.url()});
    daemon.post_to("/v1/dead-letters/discard", &discard).await;
    until(&daemon, &path_of(&moved), |shown| shown["dead_letters"] == 0).await;
    let (status, shown) = rename().await;
    assert_eq!((status, &shown["renamed_from"]), (200, &json!([moved.url()])), "{shown}");
    daemon.accept(&set("new", "v", &[&moved])).await;
    forgotten.until_holds("new", "v").await;
}

#[tokio::test]
async fn a_forgotten_replica_is_not_listed_until_a_write_names_it() {
    let daemon = Daemon::start(&["--request-timeout", "1s", "--settle-after", "5m"]).await;
    let (gone, other) = (Replica::with(|_| Behaviour::Hang).await, Replica::start().await);
    let mut stream =
        daemon.client().get(daemon.url("/v1/events?types=figures")).send().await.unwrap();
    daemon.accept(&set("k", "v", &[&gone, &other])).await;
    gone.until_seen(1).await;
    let (status, _) = daemon.post_to(&format!("{}/forget", path_of(&gone)), &Value::Null).await;
    assert_eq!(status, 200);
    let sentence = json!({"error": format!("there is no replica {}", gone.url())});
    until(&daemon, &path_of(&gone), |shown| *shown == sentence).await;
    let all = daemon.show("/v1/replicas").await;
    assert_eq!(each(&all["replicas"], "replica"), [other.url()]);
    let metrics = daemon.client().get(daemon.url("/metrics")).header("accept", "text/plain");
    let metrics = metrics.send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    assert!(metrics.contains(&other.url()) && !metrics.contains(&gone.url()), "{metrics}");
    // Figures from before the forget may still contain it.
    let mut figures = String::new();
    while !figures.rsplit("event: figures").next().unwrap().contains("\n\n")
        || figures.rsplit("event: figures").next().unwrap().contains(&gone.url())
    {
        figures.push_str(std::str::from_utf8(&stream.chunk().await.unwrap().unwrap()).unwrap());
    }
    gone.behave(|_| Behaviour::Apply);
    daemon.accept(&set("again", "v", &[&gone])).await;
    gone.until_holds("again", "v").await;
    assert_eq!(daemon.show(&path_of(&gone)).await["replica"], gone.url());
}

#[tokio::test]
async fn a_strong_write_without_its_majority_says_which_replicas_are_paused_or_failing() {
    let flags = ["--strong-timeout", "3s", "--breaker-failures", "1", "--retry-base", "10m"];
    let daemon = Daemon::start(&flags).await;
    let (paused, good) = (Replica::start().await, Replica::start().await);
    daemon.accept(&set("before", "v", &[&paused, &good])).await;
    daemon.until_drained().await;
    daemon.post_to(&format!("{}/pause", path_of(&paused)), &Value::Null).await;
    let (status, answer) = daemon.post(&strong("k", "v", &[&paused, &good])).await;
    assert_eq!(status, 503, "{answer}");
    let failed = answer["failed_nodes"].as_array().unwrap();
    assert!(failed.contains(&json!(paused.url())), "{answer}");
    let reason = format!(": {} is paused;", paused.url());
    assert!(answer["error"].as_str().unwrap().contains(&reason), "{answer}");

    let down = Replica::with(|_| Behaviour::Reset).await;
    daemon.accept(&set("opens its breaker", "v", &[&down])).await;
    until(&daemon, &path_of(&down), |shown| shown["state"] == "failing").await;
    let (status, answer) = daemon.post(&strong("l", "v", &[&good, &down, &paused])).await;
    assert_eq!(status, 503, "{answer}");
    let error = answer["error"].as_str().unwrap();
    let open = "is failing (its breaker is open)";
    let reasons = format!(": {} {open} and {} is paused;", down.url(), paused.url());
    assert!(error.contains(&reasons), "{answer}");

    // A replica that only exceeds the timeout is not named.
    good.behave(|_| Behaviour::Hang);
    let (status, answer) = daemon.post(&strong("m", "v", &[&good])).await;
    let sentence = "the replica has not acknowledged the write; deliveries that are still pending \
                    continue in the background";
    assert_eq!((status, &answer["error"]), (503, &json!(sentence)));
}

#[tokio::test]
async fn a_strong_write_that_needs_a_paused_replica_is_answered_at_once_and_delivered_later() {
    let daemon = Daemon::start(&["--strong-timeout", "5m", "--request-timeout", "5m"]).await;
    let (paused, good) = (Replica::start().await, Replica::start().await);
    daemon.accept(&set("before", "v", &[&paused, &good])).await;
    daemon.until_drained().await;
    let begun = Instant::now();
    let pause = format!("{}/pause", path_of(&paused));
    daemon.post_to(&pause, &Value::Null).await;
    let (status, answer) = daemon.post(&strong("k", "v", &[&paused, &good])).await;
    let reason = format!("{} is paused;", paused.url());
    assert_eq!(status, 503, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains(&reason), "{answer}");
    good.until_holds("k", "v").await;

    // The same if the pause comes while the write waits for an older write of its key.
    daemon.post_to(&format!("{}/resume", path_of(&paused)), &Value::Null).await;
    paused.until_holds("k", "v").await;
    paused.behave(|_| Behaviour::Hang);
    daemon.accept(&set("l", "older", &[&paused])).await;
    until(&daemon, &path_of(&paused), |shown| shown["in_flight"] == 1).await;
    let body = strong("l", "v", &[&paused, &good]);
    let later = async {
        good.until_holds("l", "v").await;
        daemon.post_to(&pause, &Value::Null).await
    };
    let ((status, answer), _) = tokio::join!(daemon.post(&body), later);
    assert_eq!((status, &answer["acked_nodes"]), (503, &json!([good.url()])), "{answer}");
    assert!(answer["error"].as_str().unwrap().contains(&reason), "{answer}");
    assert!(begun.elapsed() < Duration::from_secs(200), "{:?}", begun.elapsed());
}
