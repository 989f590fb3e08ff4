//! Tasks: listed, shown and discarded.

use super::{all_of, each, encoded, until};
use crate::support::replica::Gate;
use crate::support::{Behaviour, Daemon, Replica, set};

/// No retry within the duration of a test, and no open breaker.
const STILL: [&str; 4] = ["--retry-base", "10m", "--breaker-failures", "0"];

fn keys(tasks: &[serde_json::Value]) -> Vec<&str> {
    tasks.iter().map(|task| task["key"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn tasks_are_listed_by_state_replica_key_and_user_in_pages() {
    let flags = [&STILL[..], &["--workers", "1", "--request-timeout", "5m"]].concat();
    let daemon = Daemon::start(&flags).await;
    let stuck = Replica::with(|_| Behaviour::Hang).await;
    let failing = Replica::with(|_| Behaviour::Answer(503, "", "")).await;
    let strict = Replica::with(|_| Behaviour::Answer(400, "", "no")).await;
    for key in ["a/1", "a/2", "a/3"] {
        daemon.accept(&set(key, "v", &[&stuck])).await;
    }
    let mut bobs = set("b/1", "four", &[&failing]);
    bobs["user_id"] = "bob".into();
    let task = daemon.accept(&bobs).await;
    daemon.accept(&set("c/1", "v", &[&strict, &stuck])).await;
    failing.until_seen(1).await;
    until(&daemon, &format!("/v1/tasks?replica={}&state=dead", encoded(&strict.url())), |page| {
        page["tasks"].as_array().is_some_and(|tasks| tasks.len() == 1)
    })
    .await;
    until(&daemon, "/v1/tasks?state=retrying", |page| page["tasks"][0]["key"] == "b/1").await;

    let stuck_at = encoded(&stuck.url());
    let host = stuck.url().replace("http://", "");
    for (query, found) in [
        (String::new(), &["a/1", "a/2", "a/3", "b/1", "c/1"][..]),
        ("?state=in_flight".to_owned(), &["a/1"]),
        ("?state=queued".to_owned(), &["a/2", "a/3", "c/1"]),
        ("?state=retrying".to_owned(), &["b/1"]),
        ("?state=dead".to_owned(), &["c/1"]),
        ("?state=parked".to_owned(), &[]),
        (format!("?replica={stuck_at}"), &["a/1", "a/2", "a/3", "c/1"]),
        (format!("?replica={host}"), &["a/1", "a/2", "a/3", "c/1"]),
        (format!("?replica={stuck_at}&state=dead"), &[]),
        ("?key=a%2F2".to_owned(), &["a/2"]),
        ("?key=a".to_owned(), &[]),
        ("?key_prefix=a".to_owned(), &["a/1", "a/2", "a/3"]),
        ("?user_id=bob".to_owned(), &["b/1"]),
        ("?user_id=bob&key_prefix=a".to_owned(), &[]),
    ] {
        for limit in [1, 2, 1000] {
            let tasks = all_of(&daemon, &format!("/v1/tasks{query}"), "tasks", limit).await;
            assert_eq!(keys(&tasks), found, "{query} by {limit}");
        }
    }
    let bobs = daemon.show(&format!("/v1/tasks/{task}")).await;
    let expected = serde_json::json!([task.to_string(), "b/1", "SET", 4, "bob", "eventual"]);
    let fields = ["task_id", "key", "operation", "value_bytes", "user_id", "consistency"];
    assert_eq!(serde_json::json!(fields.map(|field| bobs[field].clone())), expected);
    let delivery = &bobs["deliveries"][0];
    assert_eq!(delivery["replica"], failing.url());
    assert_eq!((&delivery["state"], &delivery["failures"]), (&"retrying".into(), &1.into()));
    assert!(delivery["last_error"].as_str().unwrap().contains("503"), "{delivery}");
    assert!(delivery["next_attempt_at"].is_string(), "{delivery}");
}

#[tokio::test]
async fn an_invalid_parameter_is_a_400_that_names_it() {
    let daemon = Daemon::start(&[]).await;
    for (query, word) in [
        ("?state=delivered", "\"state\""),
        ("?limit=0", "\"limit\""),
        ("?limit=1001", "\"limit\""),
        ("?cursor=there", "\"cursor\""),
        ("?replica=ftp%3A%2F%2Fh", "\"replica\""),
        ("?key=", "\"key\""),
        ("?keys=a", "\"keys\""),
    ] {
        let (status, answer) = daemon.get(&format!("/v1/tasks{query}")).await;
        assert_eq!(status, 400, "{query} {answer}");
        assert!(answer["error"].as_str().unwrap().contains(word), "{query} {answer}");
    }
    for path in ["/v1/tasks/17", "/v1/tasks/none", "/v1/tasks/-1"] {
        let (status, answer) = daemon.get(path).await;
        let name = path.rsplit('/').next().unwrap();
        assert_eq!(status, 404, "{path}");
        assert_eq!(answer["error"], format!("there is no task {name:?}"));
        assert_eq!(daemon.delete(path).await, (404, answer));
    }
}

#[tokio::test]
async fn a_settled_task_stays_visible_for_a_while() {
    let daemon = Daemon::start(&[]).await;
    let replica = Replica::start().await;
    let task = daemon.accept(&set("k", "v", &[&replica])).await;
    let path = format!("/v1/tasks/{task}");
    let settled = until(&daemon, &path, |task| task["settled_at"].is_string()).await;
    assert_eq!(settled["deliveries"][0]["state"], "delivered");
    assert_eq!(all_of(&daemon, "/v1/tasks", "tasks", 10).await.len(), 0);
    // Nothing is left to discard.
    assert_eq!(daemon.delete(&path).await, (200, settled));
}

#[tokio::test]
async fn a_task_shows_the_attempts_of_a_delivery_that_failed() {
    let daemon = Daemon::start(&["--max-retries", "1", "--retry-base", "10ms"]).await;
    let replica = Replica::with(|_| Behaviour::Answer(503, "", "busy")).await;
    let well = Replica::start().await;
    let path = format!("/v1/tasks/{}", daemon.accept(&set("k", "v", &[&replica, &well])).await);
    let shown = until(&daemon, &path, |task| task["deliveries"][0]["state"] == "dead").await;
    let attempts = shown["deliveries"][0]["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 2, "{shown}");
    for attempt in attempts {
        assert!(attempt["error"].as_str().unwrap().contains("503"), "{attempt}");
        assert!(attempt["ended_at"].is_string() && attempt["duration_seconds"].is_f64());
    }
    assert_eq!(shown["deliveries"][1].get("attempts"), None, "it never failed");
    let listed = daemon.show("/v1/tasks?state=dead").await;
    assert_eq!(listed["tasks"][0]["deliveries"][0].get("attempts"), None);
}

#[tokio::test]
async fn a_discarded_task_is_never_sent_not_even_after_a_kill() {
    let gate = Gate::default();
    let behind = gate.clone();
    let slow = Replica::with(move |_| Behaviour::ApplyBehind(behind.clone())).await;
    let flags = ["--workers", "1", "--request-timeout", "5m"];
    let mut daemon = Daemon::start(&flags).await;
    daemon.accept(&set("first", "v", &[&slow])).await;
    slow.until_seen(1).await;
    let unwanted = daemon.accept(&set("unwanted", "v", &[&slow])).await;
    daemon.accept(&set("last", "v", &[&slow])).await;
    let (status, task) = daemon.delete(&format!("/v1/tasks/{unwanted}")).await;
    assert_eq!((status, &task["deliveries"][0]["state"]), (200, &"discarded".into()), "{task}");
    daemon.kill_and_restart().await;
    gate.open();
    slow.until_holds("last", "v").await;
    daemon.until_drained().await;
    assert!(slow.get("unwanted").is_none());
}

#[tokio::test]
async fn a_delivery_in_flight_is_not_retried_after_a_discard() {
    let replica = Replica::with(|_| Behaviour::Hang).await;
    let daemon = Daemon::start(&["--request-timeout", "5m", "--retry-base", "10ms"]).await;
    let task = daemon.accept(&set("k", "v", &[&replica])).await;
    replica.until_seen(1).await;
    let (status, shown) = daemon.delete(&format!("/v1/tasks/{task}")).await;
    assert_eq!((status, &shown["deliveries"][0]["state"]), (200, &"in_flight".into()), "{shown}");
    // The attempt ends without an answer.
    replica.behave(|_| Behaviour::Apply);
    replica.stop();
    replica.come_back().await;
    daemon.until_drained().await;
    assert_eq!((replica.seen().len(), &daemon.metrics().await["failed_replicas"]), (1, &1.into()));
    assert_eq!(each(&daemon.show("/v1/dead-letters").await["dead_letters"], "key").len(), 0);
}

#[tokio::test]
async fn discarding_a_dead_letter_returns_what_it_was() {
    let daemon = Daemon::start(&[]).await;
    let strict = Replica::with(|_| Behaviour::Answer(400, "", "no")).await;
    let id = daemon.accept(&set("k", "v", &[&strict])).await;
    daemon.until_metric("dead_letters", 1).await;
    let (status, task) = daemon.delete(&format!("/v1/tasks/{id}")).await;
    assert_eq!((status, &task["key"]), (200, &serde_json::json!("k")), "{task}");
    assert_eq!(task["deliveries"][0]["state"], "discarded");
}

/// Slow readers of large pages used up the memory.
#[tokio::test]
async fn a_page_of_long_tasks_ends_at_a_mebibyte() {
    let daemon = Daemon::start(&[]).await;
    let replica = Replica::with(|_| Behaviour::Hang).await;
    let key = "k".repeat(4_000);
    let writes: Vec<_> = (0..400).map(|n| set(&format!("{n}{key}"), "v", &[&replica])).collect();
    let (status, answer) = daemon.post_to("/v1/replicate/batch", &writes.into()).await;
    assert_eq!((status, &answer["accepted"]), (200, &400.into()));
    let (mut path, mut pages, mut ids) = ("/v1/tasks?limit=1000".to_owned(), 0, Vec::new());
    loop {
        let page = daemon.show(&path).await;
        assert!(page.to_string().len() < 1_100_000);
        let tasks = page["tasks"].as_array().unwrap();
        ids.extend(tasks.iter().map(|task| task["task_id"].as_str().unwrap().to_owned()));
        pages += 1;
        let Some(next) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/tasks?limit=1000&cursor={next}");
    }
    assert!(pages > 1);
    let found = ids.len();
    ids.dedup();
    assert_eq!((found, ids.len()), (400, 400), "each task once");
}

#[tokio::test]
async fn a_key_shows_its_last_writes_and_which_replica_has_which() {
    let daemon = Daemon::start(&[&STILL[..], &["--task-history", "1h"]].concat()).await;
    let (up, down) = (Replica::start().await, Replica::start().await);
    down.behave(|_| Behaviour::Answer(503, "", ""));
    let key = "a/\u{e9} ?%";
    let path = format!("/v1/keys/{}", encoded(key));
    let unknown = daemon.show(&path).await;
    assert_eq!(unknown, serde_json::json!({ "key": key, "writes": [], "replicas": [] }));
    let mut tasks = Vec::new();
    for value in ["1", "2"] {
        tasks.push(daemon.accept(&set(key, value, &[&up, &down])).await.to_string());
        down.until_seen(tasks.len()).await;
        up.until_holds(key, value).await;
    }
    daemon.accept(&set("other", "v", &[&up])).await;
    let of = |key: &serde_json::Value, replica: &Replica| {
        let url = replica.url();
        let all = key["replicas"].as_array().unwrap().iter();
        all.clone().find(|of| of["replica"].as_str() == Some(url.trim_end_matches('/'))).cloned()
    };
    let acknowledged = |key: &serde_json::Value| {
        of(key, &up).is_some_and(|up| up["acknowledged_sequence"] == tasks[1].as_str())
            && of(key, &down).is_some_and(|down| down["acknowledged_sequence"].is_null())
            && of(key, &down).is_some_and(|down| down["pending"] == 1)
    };
    until(&daemon, &path, acknowledged).await;
    let shown = daemon.show(&path).await;
    assert_eq!(shown["writes"][0]["task_id"], *tasks[1]);
    let printed = crate::support::daemon::command()
        .args(["key", key, "--url", &daemon.url("/")])
        .output()
        .unwrap();
    assert!(printed.status.success(), "{printed:?}");
    assert!(String::from_utf8(printed.stdout).unwrap().contains(&tasks[1]));
}
