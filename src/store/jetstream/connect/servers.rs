//! Whether the servers sync a write to disk before they acknowledge it.
//!
//! A server tells that only in `$SYS.REQ.SERVER.PING.STATSZ`, a subject of the system account. An
//! ordinary account may ask if the system account exports this one service to it, as in
//! `deploy/nats.conf`. Without that the answer is unknown.

use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::Deserialize;

use crate::store::jetstream::inbox::request_all;

const SUBJECT: &str = "$SYS.REQ.SERVER.PING.STATSZ";

/// For the answers of all servers.
const PATIENCE: Duration = Duration::from_secs(1);

/// A server of the cluster store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreServer {
    pub name: String,
    pub version: String,
    /// `None` without JetStream on this server.
    pub sync_always: Option<bool>,
}

#[derive(Deserialize)]
struct Answer {
    server: Named,
    statsz: Statistics,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    ver: String,
}

#[derive(Deserialize)]
struct Statistics {
    #[serde(default)]
    active_servers: usize,
    jetstream: Option<JetStream>,
}

#[derive(Deserialize)]
struct JetStream {
    config: JetStreamConfig,
}

#[derive(Deserialize)]
struct JetStreamConfig {
    #[serde(default)]
    sync_always: bool,
}

/// Asks all servers. Without permission the list is empty.
pub(super) async fn ask(client: &Client) -> Vec<StoreServer> {
    let inbox = client.new_inbox();
    let mut servers = Vec::new();
    let answers = request_all(client, SUBJECT, inbox, Bytes::new(), PATIENCE).await;
    let Ok(mut answers) = answers else { return servers };
    let deadline = tokio::time::sleep(PATIENCE).deadline();
    while let Ok(Some(message)) = tokio::time::timeout_at(deadline, answers.next()).await {
        // Also if no server answers: then the message has a status and no content.
        let Ok(answer) = serde_json::from_slice::<Answer>(&message.payload) else { break };
        let sync_always = answer.statsz.jetstream.map(|jetstream| jetstream.config.sync_always);
        let Named { name, ver } = answer.server;
        servers.push(StoreServer { name, version: ver, sync_always });
        if servers.len() >= answer.statsz.active_servers {
            break;
        }
    }
    servers.sort_by(|a, b| a.name.cmp(&b.name));
    servers
}

/// Whether all servers with JetStream sync each write; `None` if they do not tell.
pub(super) fn sync_always(servers: &[StoreServer]) -> Option<bool> {
    let known = servers.iter().filter_map(|server| server.sync_always);
    known.reduce(|all, one| all && one)
}

/// The major and the minor number of a version.
pub(super) fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split(['.', '-']);
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_major_and_minor() {
        assert_eq!(version("2.15.1"), Some((2, 15)));
        assert_eq!(version("v3.0.0-beta"), Some((3, 0)));
        assert_eq!(version("latest"), None);
        assert!(version("2.9.10") < Some((2, 15)));
    }

    #[test]
    fn one_server_that_does_not_sync_is_enough() {
        let server =
            |sync_always| StoreServer { name: String::new(), version: String::new(), sync_always };
        assert_eq!(sync_always(&[]), None);
        assert_eq!(sync_always(&[server(None)]), None);
        assert_eq!(sync_always(&[server(Some(true)), server(None)]), Some(true));
        assert_eq!(sync_always(&[server(Some(true)), server(Some(false))]), Some(false));
    }
}
