//! The addresses to which a client can make the daemon write.

use std::io::Write;
use std::path::PathBuf;

use serde_json::{Value, json};

use crate::support::{Daemon, Replica, client, set, wait_until};

const DEBUG: [&str; 2] = ["--log", "info,replicator::daemon::attempt=debug"];

fn to(node: &str) -> Value {
    json!({ "key": "k", "value": "v", "value_encoding": "raw", "operation": "SET", "replica_nodes": [node] })
}

fn port(address: &str) -> &str {
    address.rsplit(':').next().unwrap()
}

/// Posts a write for `node` and expects a 403 that names it.
async fn forbidden(daemon: &Daemon, node: &str, why: &str) {
    let (status, answer) = daemon.post(&to(node)).await;
    assert_eq!(status, 403, "{node}: {answer}");
    let error = answer["error"].as_str().unwrap();
    assert!(error.contains("replica_nodes[0]") && error.contains(why), "{node}: {error}");
    assert!(error.contains(&format!("{node:?}")), "{error}");
}

async fn nothing_was_accepted(daemon: &Daemon) {
    let metrics = daemon.metrics().await;
    assert_eq!(metrics["queue_size"], 0, "{metrics}");
    assert_eq!(metrics["permanent_failures"], 0, "{metrics}");
}

/// A file beside the data directory of the daemon.
fn file(daemon_dir: &std::path::Path, name: &str, text: &str) -> PathBuf {
    let path = daemon_dir.join(name);
    std::fs::File::create(&path).unwrap().write_all(text.as_bytes()).unwrap();
    path
}

#[tokio::test]
async fn without_a_list_blocked_addresses_are_rejected_and_the_log_recommends_a_list_once() {
    let daemon = Daemon::start(&[]).await;
    for (node, why) in [
        ("http://169.254.169.254/latest", "link-local"),
        ("http://2852039166", "link-local"),
        ("http://0xa9.0376.43518", "link-local"),
        ("http://169.254.169.254.:8081", "link-local"),
        ("http://[::ffff:169.254.169.254]", "link-local"),
        ("http://[64:ff9b::a9fe:a9fe]", "link-local"),
        ("http://[2002:a9fe:a9fe::]", "link-local"),
        ("http://[fe80::1]:8081", "link-local"),
        ("http://[fd00:ec2::254]", "metadata"),
        ("http://metadata.google.internal", "metadata"),
        ("http://168.63.129.16", "metadata"),
        ("http://0.0.0.0:8081", "unspecified"),
        ("http://[::]:8081", "unspecified"),
        ("http://224.0.0.1", "multicast"),
        ("http://[ff02::1]", "multicast"),
        ("http://255.255.255.255", "broadcast"),
    ] {
        forbidden(&daemon, node, why).await;
    }
    nothing_was_accepted(&daemon).await;
    let replica = Replica::start().await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    replica.until_holds("k", "v").await;
    daemon.until_logged("--allow-replica").await;
    assert_eq!(daemon.log().matches("--allow-replica").count(), 1, "{}", daemon.log());
}

#[tokio::test]
async fn one_forbidden_replica_rejects_the_whole_write() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    let mut body = set("k", "v", &[&replica]);
    body["replica_nodes"].as_array_mut().unwrap().push("http://169.254.169.254".into());
    let (status, answer) = daemon.post(&body).await;
    assert_eq!(status, 403);
    assert!(answer["error"].as_str().unwrap().contains("replica_nodes[1]"), "{answer}");
    daemon.accept(&set("after", "v", &[&replica])).await;
    replica.until_holds("after", "v").await;
    assert_eq!(replica.seen().len(), 1);
}

#[tokio::test]
async fn the_daemon_cannot_be_made_to_write_to_itself() {
    for bind in ["127.0.0.1", "0.0.0.0"] {
        let daemon = Daemon::start(&["--bind", bind, "--insecure"]).await;
        let port = port(daemon.address()).to_owned();
        for host in ["127.0.0.1", "localhost", "0x7f.1", "LOCALHOST.", "[::ffff:127.0.0.1]"] {
            forbidden(&daemon, &format!("http://{host}:{port}"), "is this replicator itself").await;
        }
        nothing_was_accepted(&daemon).await;
    }
}

#[tokio::test]
async fn user_info_and_other_url_tricks_do_not_change_the_destination() {
    let daemon = Daemon::start(&["--allow-replica", "http://node-1:8081"]).await;
    for (node, status) in [
        ("http://node-1:8081@169.254.169.254", 400),
        ("http://node-1:8081#@169.254.169.254", 400),
        ("http://169.254.169.254?node-1:8081", 400),
        ("http://169.254.169.254\\@node-1:8081", 403),
        ("http:///169.254.169.254", 403),
        ("http:169.254.169.254", 403),
        ("http://169.254.169.254/node-1:8081", 403),
        ("http://node-1.169.254.169.254.nip.io:8081", 403),
        ("http://node-1%2e169.254.169.254:8081", 400),
        ("http://node-1:8081\n.evil.example", 400),
        ("http://node-1:8081.evil.example", 400),
        ("gopher://node-1:8081", 400),
        ("file:///etc/passwd", 400),
        ("http://node‑1:8081", 403),
        ("https://node-1:8081", 403),
    ] {
        let (got, answer) = daemon.post(&to(node)).await;
        assert_eq!(got, status, "{node}: {answer}");
        assert!(answer["error"].as_str().unwrap().contains("replica_nodes[0]"), "{answer}");
    }
    nothing_was_accepted(&daemon).await;
}

#[tokio::test]
async fn with_a_list_only_its_replicas_are_accepted() {
    let (replica, other) = (Replica::start().await, Replica::start().await);
    let rule = replica.url();
    let daemon = Daemon::start(&["--allow-replica", &rule, "--allow-replica", "*.a.example"]).await;
    let listed = "is not allowed by --allow-replica";
    for node in [&other.url(), "http://a.example", "http://10.0.0.1:8081", "http://localhost:1"] {
        forbidden(&daemon, node, listed).await;
    }
    nothing_was_accepted(&daemon).await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    replica.until_holds("k", "v").await;
    assert!(!daemon.log().contains("is recommended"), "{}", daemon.log());
}

#[tokio::test]
async fn a_list_comes_from_the_environment_separated_by_commas() {
    let (replica, other) = (Replica::start().await, Replica::start().await);
    let dir = tempfile::tempdir().unwrap();
    let rules = format!("{},10.0.0.0/8:8000-8999", replica.url());
    let env = [("REPLICATOR_ALLOW_REPLICA", rules.as_str())];
    let daemon = Daemon::try_start_on(&dir.path().join("data"), &[], &env).await.unwrap();
    daemon.accept(&set("k", "v", &[&replica])).await;
    replica.until_holds("k", "v").await;
    forbidden(&daemon, &other.url(), "is not allowed by").await;
    forbidden(&daemon, "http://10.0.0.1:9000", "is not allowed by").await;
}

/// The request is accepted, because the name could resolve into the range. The daemon resolves it
/// when it sends.
#[tokio::test]
async fn a_name_that_resolves_outside_the_allowed_range_becomes_a_dead_letter_and_nothing_is_sent()
{
    let replica = Replica::start().await;
    let args = [&DEBUG[..], &["--allow-replica", "10.0.0.0/8"]].concat();
    let daemon = Daemon::start(&args).await;
    daemon.accept(&to(&replica.url().replace("127.0.0.1", "localhost"))).await;
    daemon.until_metric("permanent_failures", 1).await;
    daemon.until_logged("which is not allowed by --allow-replica").await;
    assert_eq!(replica.connections_accepted(), 0);
}

#[tokio::test]
async fn a_name_that_resolves_into_an_allowed_range_receives_writes() {
    let replica = Replica::start().await;
    let range = format!("127.0.0.0/8:{}", port(&replica.url()));
    let daemon = Daemon::start(&["--allow-replica", &range]).await;
    daemon.accept(&to(&replica.url().replace("127.0.0.1", "localhost"))).await;
    replica.until_holds("k", "v").await;
    forbidden(&daemon, "http://localhost:1", "is not allowed by").await;
}

#[tokio::test]
async fn a_write_that_was_accepted_before_a_list_forbade_it_is_never_sent() {
    let replica = Replica::start().await;
    replica.stop();
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let mut daemon = Daemon::start_on(&data, &["--retry-base", "1h"]).await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    daemon.kill();
    replica.come_back().await;
    let before = replica.connections_accepted();
    let daemon = Daemon::start_on(&data, &["--allow-replica", "other.example"]).await;
    daemon.until_metric("permanent_failures", 1).await;
    assert_eq!(replica.connections_accepted(), before);
}

#[tokio::test]
async fn a_rule_file_is_reloaded_on_sighup_and_an_invalid_one_changes_nothing() {
    let (old, new) = (Replica::start().await, Replica::start().await);
    let dir = tempfile::tempdir().unwrap();
    let rules = file(dir.path(), "rules", &format!("# ours\n{}\n", old.url()));
    let args = ["--allow-replica-file", rules.to_str().unwrap()];
    let daemon = Daemon::start_on(&dir.path().join("data"), &args).await;
    forbidden(&daemon, &new.url(), "is not allowed by").await;
    daemon.accept(&set("k", "v", &[&old])).await;
    old.until_holds("k", "v").await;

    file(dir.path(), "rules", &format!("{}\n", new.url()));
    daemon.signal("-HUP");
    wait_until("the new rules apply", || async {
        let (status, _) = daemon.post(&set("k2", "v", &[&new])).await;
        (status == 202).then_some(())
    })
    .await;
    new.until_holds("k2", "v").await;
    forbidden(&daemon, &old.url(), "is not allowed by").await;

    for (bad, printed) in [("ftp://x\n", "line 1"), ("", "it contains no rule")] {
        file(dir.path(), "rules", bad);
        daemon.signal("-HUP");
        daemon.until_logged(printed).await;
        daemon.accept(&set("k3", "v", &[&new])).await;
        forbidden(&daemon, &old.url(), "is not allowed by").await;
    }
    daemon.until_logged("the previous content stays in force").await;
}

#[tokio::test]
async fn sighup_without_files_to_reload_changes_nothing() {
    let (daemon, replica) = (Daemon::start(&[]).await, Replica::start().await);
    daemon.signal("-HUP");
    daemon.until_logged("connections to replicas are renewed").await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    replica.until_holds("k", "v").await;
}

#[tokio::test]
async fn an_invalid_rule_prevents_the_start_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let output = crate::support::daemon::command()
        .args(["--port", "0", "--allow-replica", "10.1.2.3/8:80", "--data-dir"])
        .arg(dir.path().join("data"))
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(printed.contains("10.1.2.3/8:80") && printed.contains("10.0.0.0/8"), "{printed}");

    let rules = file(dir.path(), "rules", "node-1\n\nnode-2:http # wrong\n");
    let missing = dir.path().join("missing");
    let missing = missing.to_str().unwrap();
    for (path, printed) in [
        (rules.to_str().unwrap(), r#"line 3: "node-2:http" has no valid port"#),
        (missing, &format!("cannot read {missing} (--allow-replica-file)")),
    ] {
        let data = dir.path().join("data");
        let args = ["--allow-replica-file", path];
        let status = Daemon::try_start_on(&data, &args, &[]).await.err().unwrap();
        assert_eq!(status.code(), Some(1));
        let log = crate::support::daemon::log(&data);
        assert!(log.contains(printed), "{log}");
    }
}

#[tokio::test]
async fn a_redirect_to_a_forbidden_address_is_not_followed() {
    use crate::support::Behaviour;
    let to_metadata = "location: http://169.254.169.254/latest";
    let replica = Replica::with(move |_| Behaviour::Answer(307, to_metadata, "")).await;
    let daemon = Daemon::start(&[]).await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    daemon.until_metric("permanent_failures", 1).await;
    daemon.until_logged("307").await;
    assert_eq!(replica.seen().len(), 1);
}

#[tokio::test]
async fn a_get_request_makes_the_daemon_connect_nowhere() {
    let daemon = Daemon::start(&[]).await;
    // A request as to a proxy, with the full URL in the request line.
    let mut stream = std::net::TcpStream::connect(daemon.address()).unwrap();
    stream
        .write_all(
            b"GET http://169.254.169.254/latest HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        )
        .unwrap();
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 40"), "{answer}");
    let answer = client().request(reqwest::Method::CONNECT, daemon.url("/")).send().await;
    assert!(answer.map_or(true, |answer| answer.status().is_client_error()));
}

#[tokio::test]
async fn a_replica_cannot_be_renamed_to_a_forbidden_address() {
    let replica = Replica::start().await;
    let daemon = Daemon::start(&["--allow-replica", &replica.url()]).await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    replica.until_holds("k", "v").await;
    let node = replica.url().replace(':', "%3A").replace('/', "%2F");
    let path = daemon.url(&format!("/v1/replicas/{node}/rename"));
    for to in ["http://169.254.169.254", "http://other.example:8081"] {
        let answer = daemon.client().post(&path).json(&json!({ "to": to })).send().await.unwrap();
        assert_eq!(answer.status(), 403, "{to}");
        let answer: Value = answer.json().await.unwrap();
        assert!(answer["error"].as_str().unwrap().starts_with(to), "{answer}");
    }
    daemon.accept(&set("k2", "v", &[&replica])).await;
    replica.until_holds("k2", "v").await;
}
