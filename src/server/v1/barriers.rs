//! `/v1/barriers`: wait until all writes accepted before a point are delivered.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, Request, State};
use axum::response::Response;

use super::bodies::{self, BarrierBody, object};
use super::extract::{NoParameters, Parameters, PathName};
use super::wire::shown;
use super::{BodyErrors, CommonErrors, NotFoundError, Problem, ServerState};
use crate::api;
use crate::server::access::{Caller, INVALID_TOKEN};
use crate::server::errors::created;

const MAX_WAIT: Duration = Duration::from_secs(60);

#[utoipa::path(
    post, path = "/v1/barriers", tag = "barriers",
    operation_id = "createBarrier",
    summary = "Create a barrier behind all writes accepted so far",
    description = "Without a body it covers all replicas.",
    request_body(content = Option<api::NewBarrier>, content_type = "application/json"),
    responses(
        (status = 201, body = api::Barrier, description = "The barrier."), BodyErrors, CommonErrors,
    ),
)]
pub(super) async fn create(
    State(server): State<Arc<ServerState>>,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    let check = |body: &[u8]| object::<BarrierBody<'_>>(body)?.checked();
    let replicas = bodies::read(&server, request, check).await?;
    let barrier = server.handle.barrier(replicas).await;
    Ok(created(&server.operated(barrier)?))
}

#[utoipa::path(
    get, path = "/v1/barriers/{id}", tag = "barriers",
    operation_id = "getBarrier",
    summary = "State of a barrier",
    params(
        ("id" = String, Path, description = "`barrier_id` of the barrier."),
        ("wait" = Option<String>, Query, description = "How long to wait for the barrier, such as \
            30s; at most 60s. Returns at once if the daemon stops."),
    ),
    responses((status = 200, body = api::Barrier, description = "The barrier."), NotFoundError, CommonErrors),
)]
pub(super) async fn show(
    State(server): State<Arc<ServerState>>,
    PathName(id): PathName,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::read(query.as_deref(), &["wait"])?;
    let wait = parameters.duration("wait", MAX_WAIT)?.unwrap_or_default();
    let _stay = if wait.is_zero() { None } else { Some(server.stay(&caller)?) };
    let waited = tokio::select! {
        state = server.handle.barrier_state(&id, wait) => Some(state),
        () = server.closing() => None,
        () = caller.revoked(&server.settings.access) => {
            return Err(Problem::Unauthenticated(INVALID_TOKEN));
        }
    };
    // A waiting client must not delay the shutdown.
    let state = match waited {
        Some(state) => state,
        None => server.handle.barrier_state(&id, Duration::ZERO).await,
    };
    server.found(state, format_args!("barrier {}", shown(&id)))
}
