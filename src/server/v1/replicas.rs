//! `/v1/replicas`: state of the replicas, and operations on them.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use super::bodies::{self, LimitsBody, PauseBody, RenameBody, nothing, object};
use super::extract::{NoParameters, PathNode};
use super::{BodyErrors, CommonErrors, NotFoundError, Problem, ServerState};
use crate::api;
use crate::server::access::About;
use crate::server::errors::ok;
use crate::task::ReplicaLimits;

#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "for the API's description alone")]
enum Taken {
    /// Writing to the new address is not allowed.
    #[response(status = 403)]
    Forbidden(api::Error),
    /// The new address is already in use.
    #[response(status = 409)]
    Conflict(api::Error),
}

#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "for the API's description alone")]
enum NewReplica {
    /// The replica is not known, and writes for it are not allowed.
    #[response(status = 403)]
    Forbidden(api::Error),
    /// The replica is not known, and no other one can be (`--max-known-replicas`).
    #[response(status = 409)]
    Conflict(api::Error),
}

#[utoipa::path(
    get, path = "/v1/replicas", tag = "replicas",
    operation_id = "listReplicas",
    summary = "All replicas, by address",
    description = "With a cluster store they are merged from all instances: counts, bytes, workers, \
        rates and books are added; lag and latencies are the largest, `oldest_accepted_at` and \
        `next_probe_at` the first, `last_error` the last. Each instance has a breaker of its own: \
        `state` is the worst, or paused, and `state_since` is of that state.",
    responses((status = 200, body = api::ReplicaPage, description = "All of them."), CommonErrors),
)]
pub(super) async fn list(
    State(server): State<Arc<ServerState>>,
    _: NoParameters,
) -> Result<Response, Problem> {
    let replicas = server.handle.replicas().await;
    Ok(ok(&server.operated(replicas)?))
}

#[utoipa::path(
    get, path = "/v1/replicas/{node}", tag = "replicas",
    operation_id = "getReplica",
    summary = "One replica",
    params(("node" = String, Path, description = "Address of the replica, percent-encoded; the \
        default scheme is `http`.")),
    responses((status = 200, body = api::Replica, description = "The replica."), NotFoundError, CommonErrors),
)]
pub(super) async fn show(
    State(server): State<Arc<ServerState>>,
    PathNode(node): PathNode,
    _: NoParameters,
) -> Result<Response, Problem> {
    let replica = server.handle.replica(&node).await;
    server.found(replica, format_args!("replica {node}"))
}

#[utoipa::path(
    patch, path = "/v1/replicas/{node}", tag = "replicas",
    operation_id = "limitReplica",
    summary = "Limit what is sent to a replica",
    description = "Durable when it returns. A field that is missing stays as it is; `null` unsets \
        the limit. A replica that is not known becomes known. In a cluster `workers` counts for each \
        instance, the rates are divided by the live instances, and it returns as a pause does.",
    params(("node" = String, Path, description = "Address of the replica, percent-encoded.")),
    request_body(content = ReplicaLimits, content_type = "application/json"),
    responses(
        (status = 200, body = api::Replica, description = "The replica after the call."),
        NotFoundError, NewReplica, BodyErrors, CommonErrors,
    ),
)]
pub(super) async fn limit(
    State(server): State<Arc<ServerState>>,
    PathNode(node): PathNode,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    let change =
        bodies::read(&server, request, |body| object::<LimitsBody<'_>>(body)?.checked()).await?;
    let replica = server.handle.limit(&node, change).await;
    server.found(replica, format_args!("replica {node}"))
}

#[utoipa::path(
    post, path = "/v1/replicas/{node}/pause", tag = "replicas",
    operation_id = "pauseReplica",
    summary = "Pause deliveries to a replica",
    description = "Durable when it returns. Attempts in flight finish, accepted writes are kept. \
        The body may say when it ends by itself; for a paused replica, the new end replaces the old \
        one. A replica that is not known becomes known, and its first write waits. In a cluster it \
        returns when every live instance has applied it, or after 5 s with the others in \
        `unconfirmed`.",
    params(("node" = String, Path, description = "Address of the replica, percent-encoded.")),
    request_body(content = Option<api::PauseRequest>, content_type = "application/json"),
    responses(
        (status = 200, body = api::Replica, description = "The replica after the call."),
        NewReplica, BodyErrors, CommonErrors,
    ),
)]
pub(super) async fn pause(
    State(server): State<Arc<ServerState>>,
    PathNode(node): PathNode,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    let end =
        bodies::read(&server, request, |body| object::<PauseBody<'_>>(body)?.checked()).await?;
    let replica = server.handle.pause(&node, Some(end)).await;
    server.found(replica, format_args!("replica {node}"))
}

#[utoipa::path(
    post, path = "/v1/replicas/{node}/resume", tag = "replicas",
    operation_id = "resumeReplica",
    summary = "Resume deliveries to a replica",
    description = "Durable when it returns. Has no effect on a replica that is not paused. In a \
        cluster it returns as a pause does.",
    params(("node" = String, Path, description = "Address of the replica, percent-encoded.")),
    responses(
        (status = 200, body = api::Replica, description = "The replica after the call."),
        NotFoundError, BodyErrors, CommonErrors,
    ),
)]
pub(super) async fn resume(
    State(server): State<Arc<ServerState>>,
    PathNode(node): PathNode,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    nothing(&server, request).await?;
    let replica = server.handle.pause(&node, None).await;
    server.found(replica, format_args!("replica {node}"))
}

#[utoipa::path(
    post, path = "/v1/replicas/{node}/probe", tag = "replicas",
    operation_id = "probeReplica",
    summary = "Probe a replica now",
    description = "Sends a probe to a failing replica, ahead of schedule.",
    params(("node" = String, Path, description = "Address of the replica, percent-encoded.")),
    responses(
        (status = 200, body = api::Probed, description = "Whether a probe was sent."),
        NotFoundError, BodyErrors, CommonErrors,
    ),
)]
pub(super) async fn probe(
    State(server): State<Arc<ServerState>>,
    PathNode(node): PathNode,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    nothing(&server, request).await?;
    let probed = server.handle.probe(&node).await;
    server.found(probed, format_args!("replica {node}"))
}

#[utoipa::path(
    post, path = "/v1/replicas/{node}/forget", tag = "replicas",
    operation_id = "forgetReplica",
    summary = "Forget a replica",
    description = "Discards its deliveries and dead letters, durably. Once nothing is left, the \
        replica is no longer listed, until a write names it again.",
    params(("node" = String, Path, description = "Address of the replica, percent-encoded.")),
    responses(
        (status = 200, body = api::Forgotten, description = "The number of discarded deliveries."),
        NotFoundError, BodyErrors, CommonErrors,
    ),
)]
pub(super) async fn forget(
    State(server): State<Arc<ServerState>>,
    PathNode(node): PathNode,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    nothing(&server, request).await?;
    let forgotten = server.handle.forget(&node).await;
    server.found(forgotten, format_args!("replica {node}"))
}

#[utoipa::path(
    post, path = "/v1/replicas/{node}/rename", tag = "replicas",
    operation_id = "renameReplica",
    summary = "Change the address of a replica",
    description = "Pending deliveries, and future writes that name the old address, go to the new \
        one.",
    params(("node" = String, Path, description = "Old address of the replica, percent-encoded.")),
    request_body(content = api::Rename, content_type = "application/json"),
    responses(
        (status = 200, body = api::Replica, description = "The replica under its new address."),
        NotFoundError, Taken, BodyErrors, CommonErrors,
    ),
)]
pub(super) async fn rename(
    State(server): State<Arc<ServerState>>,
    PathNode(node): PathNode,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    let to =
        bodies::read(&server, request, |body| object::<RenameBody<'_>>(body)?.checked()).await?;
    let about = About::of(format!("to {to}"));
    let replica = server.handle.rename(&node, to).await;
    Ok(about.on(server.found(replica, format_args!("replica {node}"))?))
}
