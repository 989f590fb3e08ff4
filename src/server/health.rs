//! `GET /health`, `/livez`, `/readyz`: for people, for whoever restarts, for whoever routes.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use serde::Serialize;
use serde_json::json;

use super::Inbound;
use super::errors::{ok, unavailable};
use crate::dispatcher::Health;

/// From so many hundredths of the queue's capacity on the replicator is degraded.
const DEGRADED_PERCENT: u128 = 90;

/// Why a store that does not answer is no store to write to.
const STALLED: &str =
    "the store does not answer, its disk hangs or is overloaded: new writes are refused";

/// How the replicator is, as `/health` says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    Healthy,
    Degraded,
    Unhealthy,
}

/// How full the queue and the disk are, or that nothing can be accepted: 503 only for that.
#[utoipa::path(
    get, path = "/health", tag = "service",
    operation_id = "health",
    summary = "How full the queue and the disk are",
    responses(
        (status = 200, body = Object, description = "`status` is healthy or degraded."),
        (status = 503, body = Object, description = "`status` is unhealthy."),
    ),
)]
pub(super) async fn health(State(inbound): State<Arc<Inbound>>) -> Response {
    let health = inbound.handle.health();
    let snapshot = inbound.handle.snapshot().await;
    let queue_size = snapshot.as_ref().map(|snapshot| snapshot.queue_tasks);
    let disk_low = snapshot.as_ref().is_some_and(|snapshot| snapshot.disk_low);
    let reason = match health {
        Health::Stalled { .. } => Some(STALLED),
        _ if disk_low => Some("the disk is nearly full (--min-free-disk): new writes are refused"),
        _ => None,
    };
    let status = match snapshot {
        _ if matches!(health, Health::StoreFailed(_)) => Status::Unhealthy,
        Some(_) if reason.is_some() => Status::Degraded,
        Some(snapshot) => status(snapshot.queue_tasks, snapshot.queue_capacity),
        None => Status::Unhealthy,
    };
    let body = match (status, reason) {
        (Status::Degraded, Some(reason)) => json!({
            "status": status, "service": "replicator", "queue_size": queue_size,
            "reason": reason,
        }),
        _ => json!({ "status": status, "service": "replicator", "queue_size": queue_size }),
    };
    match status {
        Status::Healthy | Status::Degraded => ok(&body),
        Status::Unhealthy => unavailable(&body),
    }
}

/// The process answers. Whether it can be of use, `/readyz` says.
#[utoipa::path(
    get, path = "/livez", tag = "service",
    operation_id = "livez",
    summary = "Whether the process answers",
    responses((status = 200, body = Object, description = "It does.")),
)]
pub(super) async fn livez() -> Response {
    ok(&json!({ "status": "alive" }))
}

/// Whether a write would be accepted now, as far as one knows.
#[utoipa::path(
    get, path = "/readyz", tag = "service",
    operation_id = "readyz",
    summary = "Whether a write would be accepted now",
    responses(
        (status = 200, body = Object, description = "It would."),
        (status = 503, body = Object, description = "Why not."),
    ),
)]
pub(super) async fn readyz(State(inbound): State<Arc<Inbound>>) -> Response {
    let error = match inbound.handle.health() {
        Health::Serving => return ok(&json!({ "status": "ready" })),
        Health::Stalled { .. } => STALLED,
        Health::Draining => "the replicator is shutting down",
        // Its reason names paths and goes to the log.
        Health::StoreFailed(_) => "the store has failed and nothing is accepted until a restart",
    };
    unavailable(&json!({ "status": "not ready", "error": error }))
}

fn status(tasks: u64, capacity: u64) -> Status {
    let full = u128::from(tasks) * 100 >= u128::from(capacity) * DEGRADED_PERCENT;
    if full { Status::Degraded } else { Status::Healthy }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_degraded_from_ninety_percent_on() {
        assert_eq!(status(0, 1_000), Status::Healthy);
        assert_eq!(status(899, 1_000), Status::Healthy);
        assert_eq!(status(900, 1_000), Status::Degraded);
        assert_eq!(status(1_000, 1_000), Status::Degraded);
        assert_eq!(status(8, 9), Status::Healthy);
        assert_eq!(status(9, 9), Status::Degraded);
        assert_eq!(status(u64::MAX, u64::MAX), Status::Degraded);
    }
}
