//! Replicas are compared with the primary, and repaired.

use serde_json::{Value, json};

use crate::support::{Behaviour, Daemon, Replica, set, wait_until};

/// A node that applies writes, and answers each read with a value.
async fn node(value: &'static str) -> Replica {
    Replica::with(move |seen| read_or_apply(&seen.method, value)).await
}

fn read_or_apply(method: &str, value: &'static str) -> Behaviour {
    match method {
        "GET" => Behaviour::Answer(200, "", value),
        _ => Behaviour::Apply,
    }
}

/// A write that its client has made at `primary`.
fn write(key: &str, primary: &Replica, replicas: &[&Replica]) -> Value {
    let mut write = set(key, "v", replicas);
    write["primary_node"] = json!(primary.url());
    write
}

async fn verified(daemon: &Daemon, body: &Value) -> Value {
    let (status, answer) = daemon.post_to("/v1/verify", body).await;
    assert_eq!(status, 200, "{answer}");
    answer
}

#[tokio::test]
async fn a_replica_that_differs_is_found_and_repaired_in_order() {
    let (primary, equal, corrupt) = (node("v").await, node("v").await, node("x").await);
    let daemon = Daemon::start(&[]).await;
    let first = daemon.accept(&write("k", &primary, &[&equal, &corrupt])).await;
    let found = verified(&daemon, &Value::Null).await;
    assert_eq!((&found["keys"], &found["counts"]["equal"]), (&json!(1), &json!(1)), "{found}");
    let finding = &found["findings"][0];
    assert_eq!(finding["result"], "different");
    assert_eq!(finding["replica"], corrupt.url());
    assert_eq!((&finding["key"], &finding["repaired_by"]), (&json!("k"), &Value::Null));
    assert_eq!(finding["sequence"], first.to_string());
    assert_eq!(corrupt.seen().iter().filter(|seen| seen.method == "PUT").count(), 1);

    let body = json!({"repair": true, "replica": corrupt.url()});
    let found = verified(&daemon, &body).await;
    assert_eq!(found["counts"]["equal"], 0, "the other replica is not compared");
    let repair = found["findings"][0]["repaired_by"].as_str().unwrap().to_owned();
    let puts = || async {
        let puts: Vec<_> = corrupt.seen().into_iter().filter(|s| s.method == "PUT").collect();
        (puts.len() == 2).then_some(puts)
    };
    let puts = wait_until("the repair arrives", puts).await;
    assert_eq!((puts[1].text(), puts[1].sequence().to_string()), ("v".to_owned(), repair));
    assert!(puts[1].sequence() > first);
    assert_eq!(equal.seen().iter().filter(|seen| seen.method == "PUT").count(), 1);
}

#[tokio::test]
async fn a_key_that_the_primary_lost_is_reported_and_deleted_only_after_a_delete() {
    let gone = |seen: &crate::support::replica::Seen| match &*seen.method {
        "GET" => Behaviour::Answer(404, "", ""),
        _ => Behaviour::Apply,
    };
    let (primary, replica) = (Replica::with(gone).await, node("v").await);
    let daemon = Daemon::start(&[]).await;
    daemon.accept(&write("k", &primary, &[&replica])).await;
    let found = verified(&daemon, &json!({"repair": true})).await;
    let finding = &found["findings"][0];
    assert_eq!((&finding["result"], &finding["repaired_by"]), (&json!("extra"), &Value::Null));
    assert!(finding["detail"].as_str().unwrap().starts_with("not repaired: "), "{finding}");

    let mut delete = write("k", &primary, &[&replica]);
    delete["operation"] = json!("DELETE");
    daemon.accept(&delete).await;
    let found = verified(&daemon, &json!({"repair": true})).await;
    assert!(found["findings"][0]["repaired_by"].is_string(), "{found}");
    let deletes = || async {
        let deletes = replica.seen().into_iter().filter(|seen| seen.method == "DELETE").count();
        (deletes == 2).then_some(())
    };
    wait_until("the repair arrives", deletes).await;
}

#[tokio::test]
async fn a_write_on_its_way_is_no_difference_and_a_silent_primary_is_named() {
    let (primary, replica) = (node("v").await, node("older").await);
    replica.behave(|seen| match &*seen.method {
        "GET" => Behaviour::Answer(200, "", "older"),
        _ => Behaviour::Answer(400, "", "no"),
    });
    let daemon = Daemon::start(&[]).await;
    daemon.accept(&write("dead", &primary, &[&replica])).await;
    daemon.until_metric("dead_letters", 1).await;
    let found = verified(&daemon, &Value::Null).await;
    assert_eq!(found["findings"][0]["result"], "pending", "{found}");

    let absent = node("v").await;
    absent.stop();
    let daemon = Daemon::start(&[]).await;
    let present = node("v").await;
    daemon.accept(&write("k", &absent, &[&present])).await;
    daemon.until_metric("successful_replicas", 1).await;
    let found = verified(&daemon, &Value::Null).await;
    assert_eq!(found["findings"][0]["result"], "unreadable", "{found}");
    assert!(found["findings"][0]["detail"].as_str().unwrap().starts_with("the primary: "));
}

#[tokio::test]
async fn the_primary_must_be_an_allowed_address() {
    let (primary, replica) = (node("v").await, node("v").await);
    let rule = replica.url().trim_start_matches("http://").to_owned();
    let daemon = Daemon::start(&["--allow-replica", &rule]).await;
    daemon.accept(&write("k", &primary, &[&replica])).await;
    let found = verified(&daemon, &Value::Null).await;
    let finding = &found["findings"][0];
    assert_eq!(finding["result"], "unreadable", "{found}");
    assert!(finding["detail"].as_str().unwrap().contains("not asked"), "{finding}");
    assert_eq!(primary.seen().len(), 0);
}

#[tokio::test]
async fn the_background_verification_proves_a_range_up_to_the_first_difference() {
    let (primary, replica) = (node("v").await, node("v").await);
    let daemon = Daemon::start(&["--verify-rate", "1000"]).await;
    let mut last = 0;
    for n in 0..5 {
        last = daemon.accept(&write(&format!("k{n}"), &primary, &[&replica])).await;
    }
    let through = |sequence: u64| {
        let name =
            format!("replicator_verified_through_sequence{{replica=\"{}\"}} ", replica.url());
        let daemon = &daemon;
        async move {
            let request = daemon.client().get(daemon.url("/metrics"));
            let page = request.header("accept", "text/plain").send().await.unwrap();
            let page = page.text().await.unwrap();
            let figure = page.lines().find_map(|line| line.strip_prefix(&name));
            let is_reached = figure == Some(sequence.to_string().as_str());
            is_reached.then_some(page)
        }
    };
    wait_until("all are proven", || through(last)).await;
    replica.behave(|seen| read_or_apply(&seen.method, "x"));
    daemon.accept(&write("later", &primary, &[&replica])).await;
    let different = || async {
        let page = through(last).await?;
        let results = "replicator_verify_results_total{result=\"different\"} 0";
        (!page.contains(results)).then_some(())
    };
    wait_until("the difference is counted, and the range stays", different).await;
}

#[tokio::test]
async fn an_invalid_field_of_a_verification_is_named() {
    let daemon = Daemon::start(&[]).await;
    for (body, word) in [
        (json!({"sample": 0}), "\"sample\""),
        (json!({"sample": 1001}), "1 to 1000"),
        (json!({"repair": 1}), "\"repair\""),
        (json!({"replica": "ftp://h"}), "\"replica\""),
        (json!({"replicas": []}), "`replicas`"),
    ] {
        let (status, answer) = daemon.post_to("/v1/verify", &body).await;
        assert_eq!(status, 400, "{body}");
        assert!(answer["error"].as_str().unwrap().contains(word), "{body} {answer}");
    }
    let nothing = verified(&daemon, &Value::Null).await;
    assert_eq!((&nothing["keys"], &nothing["unchecked"]), (&json!(0), &json!(0)));
}
