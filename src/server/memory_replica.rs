//! An in-memory replica for the demo: `PUT`, `GET` and `DELETE` on `/store/{key}`, with TTLs.
//!
//! It behaves like the known nodes: the key is the percent-decoded path segment, a DELETE of a
//! missing key is a 404, and an unreadable or non-positive `ttl` means no expiration.
//!
//! A fenced one remembers the order of the writes of each key and refuses older ones.

use std::collections::HashMap;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Query, State};
use axum::http::HeaderMap;
use axum::response::Response;
use axum::routing::put;
use hyper::server::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::server::connections::{self, ConnectionLimits};
use crate::server::errors::{Problem, bytes, done};
use crate::task::Timestamp;

mod order;

use order::{Deletions, WriteOrder};

const MAX_VALUE_BYTES: usize = 64 << 20;

const LIMITS: ConnectionLimits =
    ConnectionLimits { max_connections: 1024, client_timeout: Duration::from_secs(30) };

/// The data of one replica. Clones share it.
#[derive(Clone, Debug)]
pub struct MemoryReplica {
    entries: Arc<Mutex<ReplicaEntries>>,
    clock: fn() -> Timestamp,
    fenced: bool,
}

#[derive(Debug, Default)]
struct ReplicaEntries {
    values: HashMap<String, StoredValue>,
    deletions: Deletions,
}

#[derive(Clone, Debug)]
struct StoredValue {
    value: Bytes,
    expires_at: Option<Timestamp>,
    order: Option<WriteOrder>,
}

impl ReplicaEntries {
    /// The order of the last write of a key, if it is remembered.
    fn order(&self, key: &str) -> Option<WriteOrder> {
        match self.values.get(key) {
            Some(stored) => stored.order,
            None => self.deletions.get(key),
        }
    }
}

#[derive(Debug, Deserialize)]
struct PutQuery {
    ttl: Option<String>,
}

impl MemoryReplica {
    pub fn new(clock: fn() -> Timestamp) -> Self {
        Self { entries: Arc::default(), clock, fenced: false }
    }

    /// Refuses a write that is older than the last one of its key.
    #[must_use]
    pub fn fenced(self, fenced: bool) -> Self {
        Self { fenced, ..self }
    }

    /// Serves requests from `listener` until `stop` resolves, then closes its connections.
    pub async fn serve(&self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let router = TowerToHyperService::new(self.router());
        connections::accept(listener, router, None, &LIMITS, stop).await;
    }

    /// The same over HTTP/2 without TLS. When `stop` resolves, its connections are cut.
    pub async fn serve_http2(&self, listener: TcpListener, stop: impl Future<Output = ()>) {
        let service = TowerToHyperService::new(self.router());
        let (mut connections, mut stop) = (JoinSet::new(), pin!(stop));
        loop {
            let accepted = tokio::select! {
                () = &mut stop => return,
                accepted = listener.accept() => accepted,
                // Lets go of those that have ended.
                Some(_) = connections.join_next() => continue,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let _ = stream.set_nodelay(true);
            let http = http2::Builder::new(TokioExecutor::new());
            let connection = http.serve_connection(TokioIo::new(stream), service.clone());
            connections.spawn(async { drop(connection.await) });
        }
    }

    fn router(&self) -> Router {
        let resource = put(store).get(load).delete(remove);
        Router::new()
            .route("/store/{key}", resource)
            .layer(axum::extract::DefaultBodyLimit::max(MAX_VALUE_BYTES))
            .with_state(self.clone())
    }

    /// The unexpired value of `key`.
    pub fn get(&self, key: &str) -> Option<Bytes> {
        let now = (self.clock)();
        let entries = self.entries.lock();
        let entry = entries.values.get(key)?;
        entry.expires_at.is_none_or(|end| end > now).then(|| entry.value.clone())
    }

    /// The order of a write, if this replica keeps it.
    ///
    /// # Errors
    ///
    /// A newer write of the key was applied. The daemon takes this text as an acknowledgement.
    fn admit(
        &self,
        entries: &ReplicaEntries,
        key: &str,
        headers: &HeaderMap,
    ) -> Result<Option<WriteOrder>, Problem> {
        let order = WriteOrder::of(headers).filter(|_| self.fenced);
        match entries.order(key).filter(|last| order.is_some_and(|order| order < *last)) {
            None => Ok(order),
            Some(last) => {
                let last = last.sequence();
                Err(Problem::Conflict(format!("already replicated: the key has sequence {last}")))
            }
        }
    }
}

async fn store(
    State(replica): State<MemoryReplica>,
    Path(key): Path<String>,
    Query(query): Query<PutQuery>,
    headers: HeaderMap,
    value: Bytes,
) -> Result<Response, Problem> {
    let ttl = query.ttl.as_deref().and_then(parse_go_duration);
    let expires_at = ttl.map(|ttl| (replica.clock)().saturating_add(ttl));
    let mut entries = replica.entries.lock();
    let order = replica.admit(&entries, &key, &headers)?;
    entries.deletions.forget(&key);
    entries.values.insert(key, StoredValue { value, expires_at, order });
    Ok(done())
}

async fn load(
    State(replica): State<MemoryReplica>,
    Path(key): Path<String>,
) -> Result<Response, Problem> {
    replica.get(&key).map(bytes).ok_or(Problem::NotFound)
}

async fn remove(
    State(replica): State<MemoryReplica>,
    Path(key): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let now = (replica.clock)();
    let mut entries = replica.entries.lock();
    let order = replica.admit(&entries, &key, &headers)?;
    let removed = entries.values.remove(&key);
    let held = removed.is_some_and(|stored| stored.expires_at.is_none_or(|end| end > now));
    if let Some(order) = order {
        entries.deletions.note(key, order);
    }
    if held { Ok(done()) } else { Err(Problem::NotFound) }
}

/// Parses a positive duration like Go's `time.ParseDuration`: `1h0m0s`, `1.5s`, `300ms`.
fn parse_go_duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, tail) = rest.split_at(digits);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = tail;
    }
    Duration::try_from_secs_f64(total).ok().filter(|ttl| !ttl.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ttl_is_parsed_as_a_go_duration() {
        assert_eq!(parse_go_duration("1h0m1.5s"), Some(Duration::from_millis(3_601_500)));
        assert_eq!(parse_go_duration("300ms"), Some(Duration::from_millis(300)));
        assert_eq!(parse_go_duration("0s"), None);
        assert_eq!(parse_go_duration("5"), None);
        assert_eq!(parse_go_duration("s"), None);
        assert_eq!(parse_go_duration(""), None);
        assert_eq!(parse_go_duration("-1s"), None);
    }
}
