//! `/v1/replicas`: how far behind each is and why, and what an operator can do about it.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use super::bodies::{self, Rename, nothing, object};
use super::extract::{NamedNode, NoParameters};
use super::{Absent, Bodily, Failures, Inbound, Problem};
use crate::api;
use crate::server::access::About;
use crate::server::errors::ok;
use crate::task::Node;

/// Of renaming alone.
#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "for the API's description alone")]
enum Taken {
    /// The new address may not be written to.
    #[response(status = 403)]
    Forbidden(api::Error),
    /// The new address was sent to before.
    #[response(status = 409)]
    Conflict(api::Error),
}

#[utoipa::path(
    get, path = "/v1/replicas", tag = "replicas",
    operation_id = "listReplicas",
    summary = "All replicas, by address",
    responses((status = 200, body = api::ReplicaPage, description = "All of them."), Failures),
)]
pub(super) async fn list(
    State(inbound): State<Arc<Inbound>>,
    _: NoParameters,
) -> Result<Response, Problem> {
    let replicas = inbound.handle.replicas().await;
    Ok(ok(&api::ReplicaPage { replicas: inbound.operated(replicas)? }))
}

#[utoipa::path(
    get, path = "/v1/replicas/{node}", tag = "replicas",
    operation_id = "getReplica",
    summary = "One replica",
    params(("node" = String, Path, description = "Its address, percent-encoded; `http` where it \
        has no scheme.")),
    responses((status = 200, body = api::Replica, description = "The replica."), Absent, Failures),
)]
pub(super) async fn show(
    State(inbound): State<Arc<Inbound>>,
    NamedNode(node): NamedNode,
    _: NoParameters,
) -> Result<Response, Problem> {
    let replica = inbound.handle.replica(&node).await;
    Ok(ok(&inbound.found(replica, || what(&node))?))
}

#[utoipa::path(
    post, path = "/v1/replicas/{node}/pause", tag = "replicas",
    operation_id = "pauseReplica",
    summary = "Send nothing to a replica",
    description = "Durable when it is answered. What is on the wire is finished, what is accepted \
        is kept. Of one that is paused, nothing changes.",
    params(("node" = String, Path, description = "Its address, percent-encoded.")),
    responses(
        (status = 200, body = api::Replica, description = "As it stands then."),
        Absent, Bodily, Failures,
    ),
)]
pub(super) async fn pause(
    State(inbound): State<Arc<Inbound>>,
    NamedNode(node): NamedNode,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    nothing(&inbound, request).await?;
    let replica = inbound.handle.pause(&node, true).await;
    Ok(ok(&inbound.found(replica, || what(&node))?))
}

#[utoipa::path(
    post, path = "/v1/replicas/{node}/resume", tag = "replicas",
    operation_id = "resumeReplica",
    summary = "Send to a replica again",
    description = "Durable when it is answered. Of one that is not paused, nothing changes.",
    params(("node" = String, Path, description = "Its address, percent-encoded.")),
    responses(
        (status = 200, body = api::Replica, description = "As it stands then."),
        Absent, Bodily, Failures,
    ),
)]
pub(super) async fn resume(
    State(inbound): State<Arc<Inbound>>,
    NamedNode(node): NamedNode,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    nothing(&inbound, request).await?;
    let replica = inbound.handle.pause(&node, false).await;
    Ok(ok(&inbound.found(replica, || what(&node))?))
}

#[utoipa::path(
    post, path = "/v1/replicas/{node}/probe", tag = "replicas",
    operation_id = "probeReplica",
    summary = "Try a replica now",
    description = "Of one whose breaker is open, without waiting for its next probe.",
    params(("node" = String, Path, description = "Its address, percent-encoded.")),
    responses(
        (status = 200, body = api::Probed, description = "What came of it."),
        Absent, Bodily, Failures,
    ),
)]
pub(super) async fn probe(
    State(inbound): State<Arc<Inbound>>,
    NamedNode(node): NamedNode,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    nothing(&inbound, request).await?;
    let probed = inbound.handle.probe(&node).await;
    Ok(ok(&inbound.found(probed, || what(&node))?))
}

#[utoipa::path(
    post, path = "/v1/replicas/{node}/forget", tag = "replicas",
    operation_id = "forgetReplica",
    summary = "Throw away everything for a replica",
    description = "Its deliveries and its dead letters, durably. Once nothing of it is left it is listed no \
        more, until a write names it again.",
    params(("node" = String, Path, description = "Its address, percent-encoded.")),
    responses(
        (status = 200, body = api::Forgotten, description = "What was thrown away."),
        Absent, Bodily, Failures,
    ),
)]
pub(super) async fn forget(
    State(inbound): State<Arc<Inbound>>,
    NamedNode(node): NamedNode,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    nothing(&inbound, request).await?;
    let forgotten = inbound.handle.forget(&node).await;
    Ok(ok(&inbound.found(forgotten, || what(&node))?))
}

#[utoipa::path(
    post, path = "/v1/replicas/{node}/rename", tag = "replicas",
    operation_id = "renameReplica",
    summary = "Find a replica under another address",
    description = "What waits for the old address goes to the new one, and so do writes that name \
        the old one.",
    params(("node" = String, Path, description = "Its old address, percent-encoded.")),
    request_body(content = api::Rename, content_type = "application/json"),
    responses(
        (status = 200, body = api::Replica, description = "The replica under its new address."),
        Absent, Taken, Bodily, Failures,
    ),
)]
pub(super) async fn rename(
    State(inbound): State<Arc<Inbound>>,
    NamedNode(node): NamedNode,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    let to = bodies::read(&inbound, request, |body| object::<Rename<'_>>(body)?.checked()).await?;
    let about = About::of(format!("to {to}"));
    let replica = inbound.handle.rename(&node, to).await;
    Ok(about.on(ok(&inbound.found(replica, || what(&node))?)))
}

fn what(node: &Node) -> String {
    format!("replica {node}")
}
