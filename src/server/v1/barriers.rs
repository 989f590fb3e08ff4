//! `/v1/barriers`: is everything that was accepted before this moment where it belongs?

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, Request, State};
use axum::response::Response;

use super::bodies::{self, NewBarrier, object};
use super::extract::{Named, NoParameters, Parameters};
use super::wire::shown;
use super::{Absent, Bodily, Failures, Inbound, Problem};
use crate::api;
use crate::server::errors::{created, ok};

/// The longest that a request waits for a barrier.
const MAX_WAIT: Duration = Duration::from_secs(60);

#[utoipa::path(
    post, path = "/v1/barriers", tag = "barriers",
    operation_id = "createBarrier",
    summary = "Draw a line behind all that was accepted so far",
    description = "Without a body it is about all replicas.",
    request_body(content = Option<api::NewBarrier>, content_type = "application/json"),
    responses(
        (status = 201, body = api::Barrier, description = "The barrier."), Bodily, Failures,
    ),
)]
pub(super) async fn create(
    State(inbound): State<Arc<Inbound>>,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    let check = |body: &[u8]| object::<NewBarrier<'_>>(body)?.checked();
    let replicas = bodies::read(&inbound, request, check).await?;
    let barrier = inbound.handle.barrier(replicas).await;
    Ok(created(&inbound.operated(barrier)?))
}

#[utoipa::path(
    get, path = "/v1/barriers/{id}", tag = "barriers",
    operation_id = "getBarrier",
    summary = "How a barrier stands",
    params(
        ("id" = String, Path, description = "Its `barrier_id`."),
        ("wait" = Option<String>, Query, description = "How long to wait for it to be reached, \
            such as 30s; up to 60s. When the daemon stops it is answered at once."),
    ),
    responses((status = 200, body = api::Barrier, description = "The barrier."), Absent, Failures),
)]
pub(super) async fn show(
    State(inbound): State<Arc<Inbound>>,
    Named(id): Named,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut asked = Parameters::read(query.as_deref(), &["wait"])?;
    let wait = asked.duration("wait", MAX_WAIT)?.unwrap_or_default();
    let _stay = if wait.is_zero() { None } else { Some(inbound.stay()?) };
    let waited = tokio::select! {
        state = inbound.handle.barrier_state(&id, wait) => Some(state),
        () = inbound.closing() => None,
    };
    // Whoever waits must not hold up the end.
    let state = match waited {
        Some(state) => state,
        None => inbound.handle.barrier_state(&id, Duration::ZERO).await,
    };
    Ok(ok(&inbound.found(state, || format!("barrier {}", shown(&id)))?))
}
