//! `GET /health` for people, `/livez` for supervisors, `/readyz` for load balancers.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use serde_json::json;

use super::ServerState;
use super::errors::{ok, unavailable};
use crate::dispatcher::Health;

/// Percentage of the queue's capacity from which the status is degraded (SERVICE.md: 900 of 1000).
const DEGRADED_PERCENT: u128 = 90;

const STALLED: &str = "the store does not answer, its disk hangs or is overloaded, or too few servers of --store are up: new writes are refused";

const NOT_CONNECTED: &str = "no server of --store can be reached: new writes wait for --store-timeout, nothing is delivered";

const NOT_SYNCED: &str = "a server of --store does not sync each write to disk (sync_interval: always): a power cut can lose accepted writes";

const NOT_OWNED: &str = "no instance delivers the writes of some partitions of the cluster yet";

const NOT_LED: &str = "no server answers for some partitions of the cluster, which take no writes until then: too few servers of --store are up, or an election takes place";

const CLUSTER_FULL: &str = "the queue of the cluster is full (--queue-capacity, --queue-max-bytes): new writes are refused";

const REPLICAS_FULL: &str = "all places for known replicas are in use (--max-known-replicas): writes that name another replica were refused in the last minute";

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Healthy,
    Degraded,
    Unhealthy,
}

/// 503 only if nothing can be accepted.
#[utoipa::path(
    get, path = "/health", tag = "service",
    operation_id = "health",
    summary = "Health of the queue, the disk and the store",
    responses(
        (status = 200, body = Object, description = "`status` is healthy or degraded."),
        (status = 503, body = Object, description = "`status` is unhealthy."),
    ),
)]
pub(super) async fn health(State(server): State<Arc<ServerState>>) -> Response {
    let health = server.handle.health();
    let snapshot = server.handle.snapshot().await;
    let queue_size = snapshot.as_ref().map(|snapshot| snapshot.levels.queue);
    let disk_low = snapshot.as_ref().is_some_and(|snapshot| snapshot.store.is_full);
    let refused = snapshot.as_ref().is_some_and(|snapshot| snapshot.replicas_refused);
    let cluster = snapshot.as_ref().and_then(|snapshot| snapshot.cluster.as_ref());
    let (unowned, unled) = match cluster {
        Some(cluster) => (cluster.without_owner(), cluster.without_leader()),
        None => Default::default(),
    };
    let reason = match health {
        Health::Stalled { .. } => Some(STALLED),
        _ if cluster.is_some_and(|cluster| !cluster.is_connected) => Some(NOT_CONNECTED),
        _ if cluster.is_some_and(|c| c.demands_sync && c.sync_always == Some(false)) => {
            Some(NOT_SYNCED)
        }
        _ if !unled.is_empty() => Some(NOT_LED),
        _ if !unowned.is_empty() => Some(NOT_OWNED),
        _ if disk_low && cluster.is_some() => Some(CLUSTER_FULL),
        _ if disk_low => Some("the disk is nearly full (--min-free-disk): new writes are refused"),
        _ if refused => Some(REPLICAS_FULL),
        _ => None,
    };
    let status = match snapshot {
        _ if matches!(health, Health::StoreFailed(_)) => Status::Unhealthy,
        Some(_) if reason.is_some() => Status::Degraded,
        Some(snapshot) => status(snapshot.levels.queue, snapshot.queue_capacity),
        None => Status::Unhealthy,
    };
    let mut body = json!({ "status": status, "service": "replicator", "queue_size": queue_size });
    if status == Status::Degraded
        && let Some(fields) = body.as_object_mut()
    {
        fields.extend(reason.map(|reason| ("reason".to_owned(), reason.into())));
        for (name, numbers) in
            [("partitions_without_owner", unowned), ("partitions_without_leader", unled)]
        {
            if !numbers.is_empty() {
                fields.insert(name.to_owned(), numbers.into());
            }
        }
    }
    match status {
        Status::Healthy | Status::Degraded => ok(&body),
        Status::Unhealthy => unavailable(&body),
    }
}

#[utoipa::path(
    get, path = "/livez", tag = "service",
    operation_id = "livez",
    summary = "Liveness of the process",
    responses((status = 200, body = Object, description = "The process is alive.")),
)]
pub(super) async fn livez() -> Response {
    ok(&json!({ "status": "alive" }))
}

#[utoipa::path(
    get, path = "/readyz", tag = "service",
    operation_id = "readyz",
    summary = "Readiness to accept writes",
    responses(
        (status = 200, body = Object, description = "Writes are accepted."),
        (status = 503, body = Object, description = "Writes are refused; `error` is the reason."),
    ),
)]
pub(super) async fn readyz(State(server): State<Arc<ServerState>>) -> Response {
    let error = match server.handle.health() {
        Health::Serving => return ok(&json!({ "status": "ready" })),
        Health::Stalled { .. } => STALLED,
        Health::Draining => "the replicator is shutting down",
        // The detail contains paths and goes to the log only.
        Health::StoreFailed(_) => "the store has failed and nothing is accepted until a restart",
    };
    unavailable(&json!({ "status": "not ready", "error": error }))
}

fn status(tasks: usize, capacity: usize) -> Status {
    let full = tasks as u128 * 100 >= capacity as u128 * DEGRADED_PERCENT;
    if full { Status::Degraded } else { Status::Healthy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_degraded_at_ninety_percent() {
        assert_eq!(status(0, 1_000), Status::Healthy);
        assert_eq!(status(899, 1_000), Status::Healthy);
        assert_eq!(status(900, 1_000), Status::Degraded);
        assert_eq!(status(1_000, 1_000), Status::Degraded);
        assert_eq!(status(8, 9), Status::Healthy);
        assert_eq!(status(9, 9), Status::Degraded);
        assert_eq!(status(usize::MAX, usize::MAX), Status::Degraded);
    }
}
