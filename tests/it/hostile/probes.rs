//! Supervisors and load balancers get an answer while clients use up the connections.

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::connect;
use crate::support::{Behaviour, Daemon, Replica, client, strong, wait_until};

const CONNECTIONS: usize = 16;

/// Connections that have each sent this text and read nothing.
async fn hold(daemon: &Daemon, count: usize, text: &str) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let mut stream = connect(daemon.address()).await;
        // The daemon may have closed it, or does not read all of it.
        let _ = stream.try_write(text.as_bytes());
        let _ = stream.flush().await;
        held.push(stream);
    }
    held
}

/// A probe may be cut: when a connection that was chosen to make room has its next request already,
/// it stays, and the newest connection may be the only other one that waits. A supervisor repeats
/// the probe.
async fn probed(daemon: &Daemon, attack: &str) {
    for path in ["/livez", "/readyz"] {
        wait_until(&format!("{path} under {attack}"), || async {
            let answer = client().get(daemon.url(path)).send().await.ok()?;
            (answer.status() == 200).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn livez_and_readyz_are_answered_under_every_attack_on_the_connections() {
    let most = CONNECTIONS.to_string();
    let args = ["--max-connections", &most, "--strong-timeout", "5m", "--request-timeout", "5m"];
    let daemon = Daemon::start(&args).await;
    daemon.until_logged("set --max-connections above --queue-capacity").await;
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: localhost\r\n\r\n");
    let upload = format!(
        "POST /replicate HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000000\r\n\r\n{}",
        "x".repeat(50_000)
    );
    for (attack, text) in [
        ("idle connections", String::new()),
        ("half a head", "POST /replicate HTT".to_owned()),
        ("uploads that stop", upload),
        ("event streams", get("/v1/events")),
        ("waits for a barrier", get("/v1/barriers/1?wait=60s")),
        ("figures that are not read", get("/metrics").repeat(200)),
        ("tasks that are not read", get("/v1/tasks?limit=1000").repeat(200)),
        ("wrong paths", get("/nothing").repeat(200)),
    ] {
        let held = hold(&daemon, 4 * CONNECTIONS, &text).await;
        probed(&daemon, attack).await;
        drop(held);
    }

    // A new one: the connections of the last attack may not be closed yet.
    drop(daemon);
    let daemon = Daemon::start(&args).await;
    let replica = Replica::with(|_| Behaviour::Hang).await;
    let mut writes = Vec::new();
    for n in 0..CONNECTIONS {
        let body = strong(&format!("k{n}"), "v", &[&replica]).to_string();
        let length = body.len();
        let text = format!(
            "POST /replicate HTTP/1.1\r\nhost: localhost\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        writes.extend(hold(&daemon, 1, &text).await);
        replica.until_seen(n + 1).await;
    }
    let attack = "strong writes to a replica that hangs";
    probed(&daemon, attack).await;
    // No place is left.
    let more = hold(&daemon, 4 * CONNECTIONS, &get("/metrics")).await;
    probed(&daemon, attack).await;
    let refused = super::exchange(daemon.address(), get("/health").as_bytes()).await;
    assert!(
        refused.starts_with("HTTP/1.1 503 ") && refused.contains("--max-connections"),
        "{refused}"
    );
    drop((writes, more));
}
