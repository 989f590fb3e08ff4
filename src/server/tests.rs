//! The server on a real socket, over a scripted daemon.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use self::support::{Client, PATIENCE, impatient, limited, posted, settings, start};
use super::*;
use crate::dispatcher::{AcceptedWrite, Health, Refusal};
use crate::engine::Levels;
use crate::metrics::Snapshot;
use crate::task::{Obstacle, ReplicaIndex, TaskId};

mod events;
mod lockout;
mod openapi;
mod page;
mod support;

const WRITE: &str = r#"{"key":"k","value":"dg==","operation":"SET","user_id":"u","replica_nodes":["http://A/","http://b"]}"#;

#[tokio::test]
async fn an_eventual_write_is_submitted_and_returns_202() {
    let mut server = start(settings()).await;
    let mut client = Client::connect(server.address).await;
    client.post(WRITE).await;
    let (task, reply) = server.next_write().await;
    assert_eq!((task.key.as_str(), &task.value[..]), ("k", &b"v"[..]));
    let id = TaskId(42);
    reply.send(Ok(AcceptedWrite { id, acked: vec![], replayed: false })).unwrap();
    let answer = client.answer().await;
    assert_eq!(answer.status, 202);
    assert_eq!(answer.json(), json!({"success": true, "node_id": "node-7", "task_id": "42"}));
}

#[tokio::test]
async fn a_strong_write_returns_the_acknowledged_nodes_as_the_client_spelled_them() {
    let address = start(settings()).await.answer_all(vec![ReplicaIndex(0)], Snapshot::default());
    let strong = WRITE.replace("\"key\"", "\"consistency\":\"strong\",\"key\"");
    let answer = posted(address, &strong).await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.json(),
        json!({
            "success": true, "node_id": "node-7", "task_id": "42", "acked_nodes": ["http://A/"],
        })
    );
}

#[tokio::test]
async fn a_strong_write_without_a_majority_is_a_503_with_the_details() {
    let mut server = start(settings()).await;
    let mut client = Client::connect(server.address).await;
    client.post(WRITE).await;
    let (_, reply) = server.next_write().await;
    let refusal = Refusal::NoMajority {
        id: TaskId(42),
        needed: 2,
        acked: vec![ReplicaIndex(1)],
        failed: vec![ReplicaIndex(0)],
        obstacles: vec![(ReplicaIndex(0), Obstacle::Paused)],
        replayed: false,
    };
    let error = "only 1 of the 2 replicas acknowledged the write, a majority is 2: http://A/ is \
                 paused; deliveries that are still pending continue in the background";
    reply.send(Err(refusal)).unwrap();
    let answer = client.answer().await;
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.json(),
        json!({
            "success": false, "error": error, "task_id": "42",
            "acked_nodes": ["http://b"], "failed_nodes": ["http://A/"],
        })
    );
}

#[tokio::test]
async fn a_full_queue_is_a_503_with_retry_after() {
    let mut server = start(settings()).await;
    let mut client = Client::connect(server.address).await;
    client.post(WRITE).await;
    let (_, reply) = server.next_write().await;
    let full = "the queue holds 1000 tasks, its limit";
    reply.send(Err(Refusal::Full(full.to_owned()))).unwrap();
    let answer = client.answer().await;
    answer.is_error(503, full);
    assert!(answer.head.contains("retry-after: 2\r\n"));
}

#[tokio::test]
async fn a_daemon_that_accepts_nothing_refuses_before_the_body_is_read() {
    let server = start(settings()).await;
    let head = "POST /replicate HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n";
    for (health, word) in [
        (Health::Draining, "shutting down"),
        (Health::StoreFailed("disk".into()), "the store has failed"),
    ] {
        server.health.send_replace(health);
        let mut client = Client::connect(server.address).await;
        client.send(head).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 503);
        assert!(answer.json()["error"].as_str().unwrap().contains(word));
        assert!(answer.head.contains("retry-after: 2\r\n"));
    }
}

#[tokio::test]
async fn an_invalid_write_is_a_400_that_names_the_field() {
    let server = start(settings()).await;
    let answer = posted(server.address, &WRITE.replace("SET", "PUT")).await;
    answer.is_error(400, r#"field "operation" must be "SET" or "DELETE", got the string "PUT""#);
    let answer = posted(server.address, "").await;
    answer.is_error(400, "the body is not a JSON object");
}

#[tokio::test]
async fn an_unknown_path_is_a_404_and_a_wrong_method_a_405() {
    let server = start(settings()).await;
    let mut client = Client::connect(server.address).await;
    for path in ["//", "/replicate/", "/nothing", "/assets/", "/assets/nothing"] {
        let answer = client.get(path, "").await;
        answer.is_error(404, "this path does not exist");
    }
    let answer = client.get("/replicate", "").await;
    answer.is_error(405, "this path does not support this method, see the Allow header");
    assert!(answer.head.contains("allow: POST\r\n"), "{}", answer.head);
}

#[tokio::test]
async fn no_answer_may_be_cached_or_sniffed() {
    let address = start(settings()).await.answer_all(vec![], Snapshot::default());
    let mut answers = vec![posted(address, WRITE).await, posted(address, "").await];
    let mut client = Client::connect(address).await;
    for path in ["/livez", "/metrics", "/v1/operations", "/v1/tasks/x", "/nothing", "/replicate"] {
        answers.push(client.get(path, "").await);
    }
    let foreign = "POST /replicate HTTP/1.1\r\nhost: h\r\norigin: http://evil\r\n\r\n";
    client.send(foreign).await;
    answers.push(client.answer().await);
    for answer in answers {
        assert!(answer.head.contains("x-content-type-options: nosniff\r\n"), "{}", answer.head);
        assert!(answer.head.contains("cache-control: no-store\r\n"), "{}", answer.head);
    }
}

#[tokio::test]
async fn a_body_announced_too_long_is_refused_before_it_is_sent() {
    let server = start(settings()).await;
    let sentence = "the body is longer than the limit of 200000 bytes";
    let head = "POST /replicate HTTP/1.1\r\nhost: h\r\ncontent-length: 200001\r\n";
    for expect in ["", "expect: 100-continue\r\n"] {
        let mut client = Client::connect(server.address).await;
        client.send(&format!("{head}{expect}\r\n")).await;
        client.answer().await.is_error(413, sentence);
    }
}

#[tokio::test]
async fn a_client_that_sends_a_body_too_long_to_its_end_still_gets_the_413() {
    let server = start(settings()).await;
    let mut client = Client::connect(server.address).await;
    client.post(&"x".repeat(20_000_000)).await;
    assert_eq!(client.answer().await.status, 413);
    // The connection stays usable.
    assert_eq!(client.get("/livez", "").await.status, 200);
}

#[tokio::test]
async fn a_body_in_chunks_is_put_together() {
    let mut server = start(settings()).await;
    let mut client = Client::connect(server.address).await;
    let value = "ä".repeat(70_000);
    let body = WRITE.replace("dg==", &value);
    let (first, second) = body.split_at(body.len() - 7);
    client.send("POST /replicate HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n").await;
    for chunk in [first, second, ""] {
        let length = chunk.len();
        client.send(&format!("{length:x}\r\n{chunk}\r\n")).await;
    }
    let (task, _) = server.next_write().await;
    assert_eq!(task.value, value.as_bytes());
}

#[tokio::test]
async fn a_body_in_chunks_that_grows_too_long_is_a_413() {
    let server = start(settings()).await;
    let mut client = Client::connect(server.address).await;
    client.send("POST /replicate HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n").await;
    let chunk = "x".repeat(0x8000);
    for _ in 0..7 {
        client.send(&format!("8000\r\n{chunk}\r\n")).await;
    }
    let answer = client.answer().await;
    answer.is_error(413, "the body is longer than the limit of 200000 bytes");
}

#[tokio::test]
async fn a_client_that_expects_100_continue_gets_it_before_the_answer() {
    let mut server = start(settings()).await;
    let mut client = Client::connect(server.address).await;
    let length = WRITE.len();
    client
        .send(&format!(
            "POST /replicate HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        ))
        .await;
    assert_eq!(client.answer().await.status, 100);
    client.send(WRITE).await;
    server.next_write().await;
}

#[tokio::test]
async fn a_connection_carries_many_writes() {
    let address = start(settings()).await.answer_all(vec![], Snapshot::default());
    let mut client = Client::connect(address).await;
    for _ in 0..5 {
        client.post(WRITE).await;
        assert_eq!(client.answer().await.status, 202);
    }
}

#[tokio::test]
async fn a_client_that_is_slow_to_send_its_head_is_cut() {
    let server = start(impatient()).await;
    let mut client = Client::connect(server.address).await;
    client.send("POST /replicate HTTP/1.1\r\nhos").await;
    client.closed().await;
}

#[tokio::test]
async fn an_idle_connection_is_closed() {
    let server = start(impatient()).await;
    let mut client = Client::connect(server.address).await;
    assert_eq!(client.get("/livez", "").await.status, 200);
    assert_eq!(client.closed().await, b"");
}

#[tokio::test]
async fn a_client_that_is_slow_to_send_its_body_gets_a_408() {
    let server = start(impatient()).await;
    let mut client = Client::connect(server.address).await;
    client.send("POST /replicate HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n{").await;
    let answer = client.answer().await;
    answer.is_error(408, "the body did not arrive within 3s");
    assert!(answer.head.contains("connection: close\r\n"));
    client.closed().await;
}

#[tokio::test]
async fn a_client_that_never_reads_its_answers_is_cut() {
    let server = start(impatient()).await;
    let mut client = Client::connect(server.address).await;
    let many = "GET /nothing HTTP/1.1\r\nhost: h\r\n\r\n".repeat(1_000);
    let flood = async { while client.0.write_all(many.as_bytes()).await.is_ok() {} };
    timeout(PATIENCE, flood).await.unwrap();
}

#[tokio::test]
async fn memory_in_use_is_a_503_for_the_next_large_body() {
    let settings = limited(ServerLimits {
        request_memory: 200_000,
        client_timeout: Duration::from_secs(3),
        ..settings().limits
    });
    let mut server = start(settings).await;
    let large = WRITE.replace("dg==", &"MTIz".repeat(40_000));
    let mut first = Client::connect(server.address).await;
    first.post(&large).await;
    let (_, reply) = server.next_write().await;

    let refused = posted(server.address, &large).await;
    let error = "the memory for large request bodies (--request-memory), or the share of this client, is in use";
    refused.is_error(503, error);
    assert!(refused.head.contains("retry-after: 2\r\n"));

    let id = TaskId(1);
    reply.send(Ok(AcceptedWrite { id, acked: vec![], replayed: false })).unwrap();
    assert_eq!(first.answer().await.status, 202);
    let mut next = Client::connect(server.address).await;
    next.post(&large).await;
    server.next_write().await;
}

#[tokio::test]
async fn a_client_that_disconnects_during_its_request_leaves_nothing_behind() {
    let mut server = start(settings()).await;
    let mut cut = Client::connect(server.address).await;
    let length = WRITE.len();
    cut.send(&format!(
        "POST /replicate HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n{}",
        &WRITE[..length - 1]
    ))
    .await;
    cut.0.shutdown().await.unwrap();
    cut.closed().await;
    // The daemon receives only the following write.
    let mut client = Client::connect(server.address).await;
    client.post(&WRITE.replace("\"k\"", "\"later\"")).await;
    assert_eq!(server.next_write().await.0.key, "later");
}

#[tokio::test]
async fn a_client_that_closes_its_side_after_its_write_is_answered() {
    let mut server = start(settings()).await;
    let mut client = Client::connect(server.address).await;
    client.post(WRITE).await;
    client.0.shutdown().await.unwrap();
    let (_, reply) = server.next_write().await;
    let id = TaskId(1);
    reply.send(Ok(AcceptedWrite { id, acked: vec![], replayed: false })).unwrap();
    assert_eq!(client.answer().await.status, 202);
}

#[tokio::test]
async fn silent_and_slow_clients_lock_no_one_out() {
    let settings = limited(ServerLimits { max_connections: 4, ..settings().limits });
    let server = start(settings).await;
    let mut hostile = Vec::new();
    for n in 0..40 {
        let mut client = Client::connect(server.address).await;
        match n % 3 {
            0 => {}
            1 => client.send("POST /repl").await,
            _ => {
                client
                    .send("POST /replicate HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\n{")
                    .await;
            }
        }
        hostile.push(client);
    }
    for _ in 0..10 {
        let mut honest = Client::connect(server.address).await;
        assert_eq!(honest.get("/livez", "").await.status, 200);
    }
}

#[tokio::test]
async fn stopping_waits_for_the_request_in_flight_and_for_no_idle_connection() {
    let mut server = start(settings()).await;
    let mut idle = Client::connect(server.address).await;
    assert_eq!(idle.get("/livez", "").await.status, 200);
    let silent = Client::connect(server.address).await;
    let mut client = Client::connect(server.address).await;
    client.post(WRITE).await;
    let (_, reply) = server.next_write().await;

    server.stop.send(()).unwrap();
    idle.closed().await;
    silent.closed().await;
    assert!(TcpStream::connect(server.address).await.is_err());
    assert!(!server.serving.is_finished());

    let id = TaskId(1);
    reply.send(Ok(AcceptedWrite { id, acked: vec![], replayed: false })).unwrap();
    assert_eq!(client.answer().await.status, 202);
    client.closed().await;
    timeout(PATIENCE, server.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn metrics_are_json_or_text_by_the_accept_header() {
    let address = start(settings()).await.answer_all(vec![], Snapshot::default());
    let mut client = Client::connect(address).await;
    let json = client.get("/metrics", "accept: */*\r\n").await;
    assert_eq!((json.status, &json.json()["queue_size"]), (200, &json!(0)));
    let text = client.get("/metrics", "accept: text/plain\r\n").await;
    assert_eq!(text.status, 200);
    assert!(text.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(serde_json::from_str::<Value>(&text.body).is_err());
}

#[tokio::test]
async fn users_are_counted_by_their_valid_writes() {
    let address = start(settings()).await.answer_all(vec![], Snapshot::default());
    posted(address, WRITE).await;
    posted(address, &WRITE.replace("SET", "PUT")).await;
    posted(address, &WRITE.replace("\"u\"", "null")).await;
    let mut client = Client::connect(address).await;
    let users = client.get("/metrics/users", "").await;
    assert_eq!(users.status, 200);
    assert_eq!(
        users.json(),
        json!({"users": [{"user_id": "u", "requests": 1, "requests_over_by": 0, "bytes": 2}]})
    );
}

#[tokio::test]
async fn health_says_how_full_the_queue_is() {
    for (tasks, status) in [(899, "healthy"), (900, "degraded")] {
        let levels = Levels { queue: tasks, ..Levels::default() };
        let snapshot = Snapshot { levels, queue_capacity: 1_000, ..Snapshot::default() };
        let address = start(settings()).await.answer_all(vec![], snapshot);
        let answer = Client::connect(address).await.get("/health", "").await;
        assert_eq!(answer.status, 200);
        assert_eq!(
            answer.json(),
            json!({"status": status, "service": "replicator", "queue_size": tasks})
        );
    }
}

#[tokio::test]
async fn health_says_that_no_other_replica_can_be_named() {
    let snapshot =
        Snapshot { replicas_refused: true, queue_capacity: 1_000, ..Snapshot::default() };
    let address = start(settings()).await.answer_all(vec![], snapshot);
    let answer = Client::connect(address).await.get("/health", "").await;
    assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("degraded")));
    assert!(answer.body.contains("--max-known-replicas"), "{}", answer.body);
}

#[tokio::test]
async fn a_failed_store_is_unhealthy_and_not_ready_but_alive() {
    let server = start(settings()).await;
    server.health.send_replace(Health::StoreFailed("/secret/path: EIO".into()));
    let address = server.address;
    // The daemon has also stopped.
    drop(server.requests);
    let mut client = Client::connect(address).await;
    let health = client.get("/health", "").await;
    assert_eq!(health.status, 503);
    assert_eq!(health.json()["status"], "unhealthy");
    let ready = client.get("/readyz", "").await;
    assert_eq!(ready.status, 503);
    assert!(ready.body.contains("the store has failed") && !ready.body.contains("secret"));
    let alive = client.get("/livez", "").await;
    assert_eq!((alive.status, alive.json()), (200, json!({"status": "alive"})));
    assert_eq!(client.get("/metrics", "").await.status, 503);
}

#[tokio::test]
async fn a_draining_daemon_is_alive_and_not_ready() {
    let server = start(settings()).await;
    let mut client = Client::connect(server.address).await;
    assert_eq!(client.get("/readyz", "").await.status, 200);
    server.health.send_replace(Health::Draining);
    assert_eq!(client.get("/readyz", "").await.status, 503);
    assert_eq!(client.get("/livez", "").await.status, 200);
}
