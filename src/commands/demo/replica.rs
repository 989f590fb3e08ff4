//! `replicator demo-replica`: one in-memory replica.

use std::net::SocketAddr;
use std::process::ExitCode;

use tokio::net::TcpListener;

use super::super::output::{self, fail};
use super::super::serve::Signals;
use crate::cli::DemoReplicaArgs;
use crate::clock::wall_clock;
use crate::server::MemoryReplica;

pub(in crate::commands) async fn run(args: &DemoReplicaArgs) -> ExitCode {
    let address = SocketAddr::new(args.bind, args.port);
    let listener = match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => return fail(&format!("cannot listen on {address}: {error}")),
    };
    let mut signals = match Signals::catch() {
        Ok(signals) => signals,
        Err(error) => return fail(&format!("cannot catch signals: {error}")),
    };
    let url = format!("http://{}", listener.local_addr().unwrap_or(address));
    if let Err(why) = output::announce(&url).await {
        output::say(&format!("replicator: {why}"));
    }
    let stop = async {
        signals.next().await;
    };
    let replica = MemoryReplica::new(wall_clock).fenced(args.fenced);
    if args.http2 {
        replica.serve_http2(listener, stop).await;
    } else {
        replica.serve(listener, stop).await;
    }
    ExitCode::SUCCESS
}
