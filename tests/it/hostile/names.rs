//! Thousands of made-up replicas, users and keys.

use serde_json::json;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{MIB, figure, memory, raise_open_files};
use crate::support::Daemon;

/// A server on one port of every address of this machine; it answers every request.
async fn serve_every_address() -> u16 {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let listener = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let Ok((mut stream, _)) = listener.accept().await else { continue };
            tokio::spawn(async move {
                let mut held = Vec::new();
                while let Ok(1..) = stream.read_buf(&mut held).await {
                    // Each body is one byte.
                    if let Some(end) = held.windows(4).position(|four| four == b"\r\n\r\n")
                        && held.len() > end + 4
                    {
                        held.clear();
                        let ok = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                        if stream.write_all(ok).await.is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_made_up_replicas_users_and_keys_cost_a_bounded_share() {
    const KNOWN: u64 = 200;
    const WRITES: usize = 800;
    const REPLICAS_EACH: usize = 10;
    const CLIENTS: usize = 4;
    raise_open_files();
    let args = [
        "--max-known-replicas",
        &KNOWN.to_string(),
        "--queue-capacity",
        "10000",
        "--idempotency-keys",
        "500",
        // A write that finds no place for its replicas is rejected at once, and the client repeats
        // it.
        "--queue-wait",
        "0s",
    ];
    let daemon = Daemon::start(&args).await;
    let port = serve_every_address().await;
    let (memory_before, files_before) =
        (memory(&daemon, "VmRSS"), figure(&daemon, "process_open_fds").await);
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (http, url) = (daemon.client().clone(), daemon.url("/replicate"));
        clients.spawn(async move {
            let (mut accepted, mut refused) = (0, 0);
            for n in (client..WRITES).step_by(CLIENTS) {
                let node = |m: usize| {
                    let name = n * REPLICAS_EACH + m;
                    format!("http://127.{}.{}.1:{port}", 1 + name / 250, 1 + name % 250)
                };
                let body = json!({
                    "key": format!("{n}{}", "k".repeat(2_000)), "value": "v", "operation": "SET",
                    "user_id": format!("{n}{}", "u".repeat(200)),
                    "replica_nodes": (0..REPLICAS_EACH).map(node).collect::<Vec<_>>(),
                });
                loop {
                    let request = http.post(&url).json(&body);
                    let request = match n % 2 {
                        0 => request.header("idempotency-key", format!("{n}")),
                        _ => request,
                    };
                    match request.send().await.unwrap().status().as_u16() {
                        202 => break accepted += 1,
                        503 => refused += 1,
                        other => panic!("{other}"),
                    }
                }
            }
            (accepted, refused)
        });
    }
    let done: Vec<(usize, usize)> = clients.join_all().await;
    let accepted: usize = done.iter().map(|(accepted, _)| accepted).sum();
    assert_eq!(accepted, WRITES);
    daemon.until_drained().await;

    let page = daemon.metrics_page().await;
    let names = page.lines().filter(|line| line.starts_with("replicator_deliveries_pending{"));
    assert!(names.count() as u64 <= KNOWN);
    assert!(page.len() as u64 <= KNOWN * 16 * 1024, "{} bytes", page.len());
    let users = daemon.show("/metrics/users").await;
    assert!(users["users"].as_array().unwrap().len() <= 1000);
    // Connections to known replicas, and the clients.
    let files = figure(&daemon, "process_open_fds").await;
    assert!(files <= files_before + KNOWN + 50, "{files} files, {files_before} before");
    let grown = memory(&daemon, "VmHWM").saturating_sub(memory_before);
    assert!(grown < 128 * MIB, "{} MiB more", grown / MIB);
}
