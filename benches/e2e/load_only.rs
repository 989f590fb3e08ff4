//! Only a load, for `benches/profile`: a daemon under the writes of one part.

use std::time::Duration;

use crate::load::post;
use crate::parts::{WIDE, body};
use crate::roles::Process;

/// `work` is `accept:64:10`: the part, the connections and the seconds. Prints the process of the
/// daemon first, and at the end how many writes it answered and how long its threads ran for them.
/// `E2E_DAEMON` names another binary, `E2E_FLAGS` has more flags for it. With `E2E_STORE`, the daemon is
/// an instance on those nats-servers.
pub async fn load_only(work: &str) {
    let mut words = work.split(':');
    let mut next = || words.next().expect("load:PART:CONNECTIONS:SECONDS");
    let (part, connections, seconds): (_, usize, u64) =
        (next(), next().parse().unwrap(), next().parse().unwrap());
    let (consistency, role) = match part {
        "accept" => ("eventual", "silent-replica"),
        "deliver" => ("eventual", "null-replica"),
        "strong" => ("strong", "null-replica"),
        other => panic!("no part {other}: accept, deliver or strong"),
    };
    let replicas = [Process::role(role), Process::role(role)];
    let nodes: Vec<_> = replicas.iter().map(|replica| replica.address.clone()).collect();
    let binary = std::env::var("E2E_DAEMON");
    let binary = binary.as_deref().unwrap_or(env!("CARGO_BIN_EXE_replicator"));
    let flags = if part == "accept" { WIDE } else { &[] };
    let more = std::env::var("E2E_FLAGS").unwrap_or_default();
    let flags: Vec<_> = flags.iter().copied().chain(more.split_whitespace()).collect();
    let daemon = match std::env::var("E2E_STORE") {
        Ok(store) => Process::instance_at(binary, &store, "load", &flags),
        Err(_) => Process::daemon_at(binary, &flags),
    };
    let make = move |connection: usize, n: u64| {
        let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
        body(consistency, &format!("k-{connection}-{n}"), &nodes)
    };
    let (ticks, pid) = (daemon.cpu_ticks(), daemon.pid());
    println!("daemon {pid}");
    let load = post(&daemon.address, connections, Duration::from_secs(seconds), make).await;
    println!("writes {} ticks {}", load.times.len(), daemon.cpu_ticks() - ticks);
}
