//! Clients that exhaust a resource to lock others out.

use super::*;
use crate::dispatcher::EventKind;

/// A head that announces `bytes`, and the first of them.
fn announced(bytes: usize) -> String {
    format!("POST /replicate HTTP/1.1\r\nhost: h\r\ncontent-length: {bytes}\r\n\r\n{{")
}

#[tokio::test]
async fn clients_that_read_no_answer_lock_no_one_out() {
    let server = start(limited(ServerLimits { max_connections: 4, ..settings().limits })).await;
    let mut hostile = Vec::new();
    let many = "GET /assets/style.css HTTP/1.1\r\nhost: h\r\n\r\n".repeat(1_000);
    for _ in 0..4 {
        let mut client = Client::connect(server.address).await;
        // More than the buffers of both ends hold, so that its answers block.
        let _ = timeout(Duration::from_millis(300), client.send(&many)).await;
        hostile.push(client);
    }
    for _ in 0..4 {
        let mut honest = Client::connect(server.address).await;
        assert_eq!(honest.get("/livez", "").await.status, 200);
    }
}

#[tokio::test]
async fn a_stalled_event_stream_is_evicted_for_others() {
    let patient = Duration::from_secs(300);
    let settings =
        limited(ServerLimits { max_connections: 4, client_timeout: patient, ..settings().limits });
    let mut server = start(settings).await;
    let mut stalled = Client::connect(server.address).await;
    assert_eq!(stalled.get("/v1/events", "").await.status, 200);
    // More than the buffers of both ends hold.
    let large = "x".repeat(100_000);
    for _ in 0..100 {
        server.handle.publish(EventKind::Figures, &large);
    }
    let mut busy = Vec::new();
    for _ in 0..3 {
        let mut client = Client::connect(server.address).await;
        client.post(WRITE).await;
        busy.push((client, server.next_write().await));
    }
    let mut honest = Client::connect(server.address).await;
    assert_eq!(honest.get("/livez", "").await.status, 200);
}

#[tokio::test]
async fn large_bodies_that_are_announced_and_not_sent_block_no_write() {
    let server =
        start(limited(ServerLimits { request_memory: 200_000, ..settings().limits })).await;
    let mut hostile = Client::connect(server.address).await;
    // All the memory there is.
    hostile.send(&announced(200_000)).await;
    let address = server.address;
    server.answer_all(vec![], Snapshot::default());
    assert_eq!(posted(address, WRITE).await.status, 202);
    assert!(hostile.0.try_read(&mut [0]).is_err(), "it must not be cut, since no request waited");
}

#[tokio::test]
async fn a_slow_large_body_is_cut_for_a_waiting_one() {
    let server =
        start(limited(ServerLimits { request_memory: 200_000, ..settings().limits })).await;
    let mut slow = Client::connect(server.address).await;
    slow.send(&announced(200_000)).await;
    let address = server.address;
    server.answer_all(vec![], Snapshot::default());
    let large = WRITE.replace("dg==", &"MTIz".repeat(40_000));
    assert_eq!(posted(address, &large).await.status, 202);
    let answer = slow.answer().await;
    answer.is_error(408, "the body arrived too slowly while other requests waited for memory");
}

#[tokio::test]
async fn long_lived_requests_are_limited_to_a_quarter_of_the_connections() {
    let server = start(limited(ServerLimits { max_connections: 8, ..settings().limits })).await;
    let mut watching = Client::connect(server.address).await;
    assert_eq!(watching.get("/v1/events", "").await.status, 200);
    let mut second = Client::connect(server.address).await;
    assert_eq!(second.get("/v1/events", "").await.status, 200);
    let mut refused = Client::connect(server.address).await;
    let limit = "too many requests wait or stream events, the limit is 2 (a quarter of --max-connections), of which each client has a share";
    for path in ["/v1/events", "/v1/barriers/0?wait=60s"] {
        let answer = refused.get(path, "").await;
        answer.is_error(503, limit);
        assert!(answer.head.contains("retry-after: 2\r\n"), "{}", answer.head);
    }
    drop(second);
    // The server may notice the disconnect only when it sends something.
    let free = async {
        while refused.get("/v1/barriers/x?wait=1s", "").await.status != 404 {
            server.handle.publish(EventKind::Figures, &"gone?");
        }
    };
    timeout(PATIENCE, free).await.unwrap();
}

#[tokio::test]
async fn probes_are_answered_while_requests_hold_all_connections() {
    let settings = limited(ServerLimits { max_connections: 1, ..settings().limits });
    let mut server = start(settings).await;
    let mut first = Client::connect(server.address).await;
    first.post(WRITE).await;
    let (_, reply) = server.next_write().await;
    let mut hostile = Vec::new();
    for n in 0..100 {
        let mut client = Client::connect(server.address).await;
        match n % 3 {
            0 => {}
            1 => client.send(&announced(200_000)).await,
            _ => client.send("GET /v1/events HTTP/1.1\r\nhost: h\r\n\r\n").await,
        }
        hostile.push(client);
    }
    let mut probe = Client::connect(server.address).await;
    assert_eq!(probe.get("/livez", "").await.status, 200);
    assert_eq!(probe.get("/readyz", "").await.status, 200);
    probe.post(WRITE).await;
    let answer = probe.answer().await;
    answer.is_error(
        503,
        "all connections (--max-connections), or the share of this client, are in use",
    );
    assert!(
        answer.head.contains("retry-after: 2\r\n") && answer.head.contains("connection: close")
    );
    probe.closed().await;

    reply.send(Ok(AcceptedWrite { id: TaskId(1), acked: vec![], replayed: false })).unwrap();
    assert_eq!(first.answer().await.status, 202);
    let mut next = Client::connect(server.address).await;
    next.post(WRITE).await;
    server.next_write().await;
    first.closed().await;
}

/// Connections without a token cut the uploads of others.
#[tokio::test]
async fn an_upload_outlives_any_number_of_idle_connections() {
    let settings = limited(ServerLimits { max_connections: 4, ..settings().limits });
    let mut server = start(settings).await;
    let large = WRITE.replace("dg==", &"MTIz".repeat(40_000));
    let mut upload = Client::connect(server.address).await;
    let length = large.len();
    upload
        .send(&format!("POST /replicate HTTP/1.1\r\nhost: h\r\ncontent-length: {length}\r\n\r\n"))
        .await;
    let mut hostile = Vec::new();
    for part in large.as_bytes().chunks(40_000) {
        upload.send(std::str::from_utf8(part).unwrap()).await;
        // An answer shows that the server has read the part.
        let mut honest = Client::connect(server.address).await;
        assert_eq!(honest.get("/livez", "").await.status, 200);
        for _ in 0..10 {
            hostile.push(Client::connect(server.address).await);
        }
    }
    let (task, _reply) = server.next_write().await;
    assert_eq!(task.value.len(), 120_000);
}
