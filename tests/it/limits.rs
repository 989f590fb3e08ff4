//! At a limit the answer is a 503 with Retry-After, never a silent drop.

use std::time::{Duration, Instant};

use crate::support::replica::Gate;
use crate::support::{Behaviour, Daemon, Replica, client, set, strong};

/// A hanging replica holds its places longer than a test takes.
const STEADY: [&str; 2] = ["--request-timeout", "5m"];

#[tokio::test]
async fn a_full_queue_is_a_503_with_retry_after() {
    let args = ["--queue-capacity", "2", "--queue-wait", "50ms", "--workers", "1"];
    let daemon = Daemon::start(&[&args[..], &STEADY].concat()).await;
    let replica = Replica::with(|_| Behaviour::Hang).await;
    daemon.accept(&set("a", "v", &[&replica])).await;
    daemon.accept(&set("b", "v", &[&replica])).await;
    let asked = Instant::now();
    let request = client().post(daemon.url("/replicate")).json(&set("c", "v", &[&replica]));
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 503);
    assert!(answer.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() >= 1);
    let answer: serde_json::Value = answer.json().await.unwrap();
    assert!(answer["error"].as_str().unwrap().contains("--queue-capacity"), "{answer}");
    assert!(asked.elapsed() >= Duration::from_millis(50));
    let metrics = daemon.metrics().await;
    assert_eq!(metrics["queue_size"], 2);
    assert_eq!(metrics["total_replications"], 3);
}

#[tokio::test]
async fn a_request_waits_for_room_and_gets_it() {
    let daemon = Daemon::start(&["--queue-capacity", "1", "--queue-wait", "5m"]).await;
    let replica = Replica::with(|_| Behaviour::ApplyAfter(Duration::from_millis(30))).await;
    let posts = (0..10).map(|n| {
        let (client, url) = (client(), daemon.url("/replicate"));
        let body = set(&format!("k{n}"), "v", &[&replica]);
        tokio::spawn(async move { client.post(url).json(&body).send().await.unwrap().status() })
    });
    for post in posts.collect::<Vec<_>>() {
        assert_eq!(post.await.unwrap(), 202);
    }
    daemon.until_metric("successful_replicas", 10).await;
}

#[tokio::test]
async fn the_bytes_on_disk_have_a_limit() {
    let args = ["--queue-max-bytes", "64KiB", "--max-value-bytes", "30KiB", "--queue-wait", "0s"];
    let daemon = Daemon::start(&[&args[..], &STEADY].concat()).await;
    let replica = Replica::with(|_| Behaviour::Hang).await;
    let value = "x".repeat(30 * 1024);
    daemon.accept(&set("a", &value, &[&replica])).await;
    daemon.accept(&set("b", &value, &[&replica])).await;
    let (status, answer) = daemon.post(&set("c", &value, &[&replica])).await;
    assert_eq!(status, 503);
    assert!(answer["error"].as_str().unwrap().contains("--queue-max-bytes"), "{answer}");
}

#[tokio::test]
async fn a_full_eventual_queue_does_not_reject_a_strong_write() {
    let args = ["--queue-capacity", "1", "--queue-wait", "0s"];
    let daemon = Daemon::start(&[&args[..], &STEADY].concat()).await;
    let (hanging, good) = (Replica::with(|_| Behaviour::Hang).await, Replica::start().await);
    daemon.accept(&set("a", "v", &[&hanging])).await;
    assert_eq!(daemon.post(&set("b", "v", &[&good])).await.0, 503);
    assert_eq!(daemon.post(&strong("c", "v", &[&good])).await.0, 200);
}

#[tokio::test]
async fn a_hanging_replica_leaves_room_in_the_queue_and_its_writes_delay_no_others() {
    let args = ["--queue-capacity", "20", "--queue-wait", "5m"];
    let daemon = Daemon::start(&[&args[..], &STEADY].concat()).await;
    let (hanging, healthy) = (Replica::with(|_| Behaviour::Hang).await, Replica::start().await);
    daemon.accept(&set("first", "v", &[&healthy])).await;
    // More than its share: the remaining requests wait.
    let posts = (0..40).map(|n| {
        let (client, url) = (client(), daemon.url("/replicate"));
        let body = set(&format!("k{n}"), "v", &[&hanging]);
        tokio::spawn(async move { client.post(url).json(&body).send().await.unwrap().status() })
    });
    let posts: Vec<_> = posts.collect();
    daemon.until_metric("waiting_requests", 22).await;
    for n in 0..50 {
        daemon.accept(&set(&format!("h{n}"), "v", &[&healthy])).await;
    }
    assert_eq!(daemon.metrics().await["waiting_requests"], 22);
    // When the replica answers again, they are accepted.
    hanging.behave(|_| Behaviour::Apply);
    hanging.stop();
    hanging.come_back().await;
    for post in posts {
        assert_eq!(post.await.unwrap(), 202);
    }
}

#[tokio::test]
async fn a_write_that_waits_for_the_share_of_another_replica_does_not_delay_those_behind_it() {
    let args = ["--queue-capacity", "100", "--queue-wait", "5m", "--workers", "1"];
    let daemon = Daemon::start(&[&args[..], &STEADY].concat()).await;
    let gate = Gate::default();
    let healthy = Replica::with({
        let gate = gate.clone();
        move |_| Behaviour::ApplyBehind(gate.clone())
    })
    .await;
    let hanging = Replica::with(|_| Behaviour::Hang).await;
    // Room is reserved for other replicas only if there are any.
    let other = Replica::start().await;
    daemon.accept(&set("other", "v", &[&other])).await;
    daemon.until_metric("queue_size", 0).await;
    // Of a hundred places one replica gets ninety, and the other gets five of the remaining ten.
    for n in 0..95 {
        let replica = if n < 90 { &hanging } else { &healthy };
        daemon.accept(&set(&format!("k{n}"), "v", &[replica])).await;
    }
    let post = |key: &str, replicas: &[&Replica]| {
        let request = client().post(daemon.url("/replicate")).json(&set(key, "v", replicas));
        tokio::spawn(async move { request.send().await.unwrap().status() })
    };
    let both = post("both", &[&healthy, &hanging]);
    daemon.until_metric("waiting_requests", 1).await;
    let behind = post("behind", &[&healthy]);
    daemon.until_metric("waiting_requests", 2).await;
    gate.open();
    assert_eq!(behind.await.unwrap(), 202);
    assert_eq!(daemon.metrics().await["waiting_requests"], 1);
    both.abort();
}

#[tokio::test]
async fn a_client_that_disconnects_in_the_middle_of_its_body_leaves_no_trace() {
    use tokio::io::AsyncWriteExt;
    let daemon = Daemon::start(&[]).await;
    let mut stream = tokio::net::TcpStream::connect(daemon.address()).await.unwrap();
    let head =
        "POST /replicate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{\"key\":";
    stream.write_all(head.as_bytes()).await.unwrap();
    drop(stream);
    assert_eq!(daemon.metrics().await["total_replications"], 0);
    assert_eq!(daemon.get("/health").await.0, 200);
}

#[tokio::test]
async fn a_client_that_sends_too_slowly_is_cut() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let daemon = Daemon::start(&["--client-timeout", "3s"]).await;
    let mut slow_body = tokio::net::TcpStream::connect(daemon.address()).await.unwrap();
    let head = "POST /replicate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\n{";
    slow_body.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    slow_body.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("\"error\""), "{answer}");

    let mut slow_head = tokio::net::TcpStream::connect(daemon.address()).await.unwrap();
    slow_head.write_all(b"POST /repl").await.unwrap();
    let mut answer = Vec::new();
    // A reset counts as closed.
    let _ = slow_head.read_to_end(&mut answer).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408"), "{answer:?}");
}

#[tokio::test]
async fn large_values_are_read_back_from_disk_unchanged() {
    let args = ["--memory-budget", "0B", "--max-value-bytes", "4MiB", "--workers", "2"];
    let daemon = Daemon::start(&args).await;
    let replica = Replica::start().await;
    let value = |n: usize| "abcdefg".repeat(n * 40_000 + n);
    for n in 0..8 {
        daemon.accept(&set(&format!("k{n}"), &value(n), &[&replica])).await;
    }
    for n in 0..8 {
        replica.until_holds(&format!("k{n}"), &value(n)).await;
    }
}
