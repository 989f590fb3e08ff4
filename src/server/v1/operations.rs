//! `/v1/operations`: work over many dead letters, while it goes on and for a while after.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::extract::{Named, NoParameters};
use super::wire::shown;
use super::{Absent, Failures, Inbound, Problem, missing};
use crate::api;
use crate::server::errors::ok;

#[utoipa::path(
    get, path = "/v1/operations", tag = "operations",
    operation_id = "listOperations",
    summary = "Operations, newest first",
    responses(
        (status = 200, body = api::OperationPage, description = "Those that are remembered."),
        Failures,
    ),
)]
pub(super) async fn list(
    State(inbound): State<Arc<Inbound>>,
    _: NoParameters,
) -> Result<Response, Problem> {
    Ok(ok(&api::OperationPage { operations: inbound.handle.operations() }))
}

#[utoipa::path(
    get, path = "/v1/operations/{id}", tag = "operations",
    operation_id = "getOperation",
    summary = "One operation",
    params(("id" = String, Path, description = "Its `operation_id`.")),
    responses(
        (status = 200, body = api::Operation, description = "How it stands."), Absent, Failures,
    ),
)]
pub(super) async fn show(
    State(inbound): State<Arc<Inbound>>,
    Named(id): Named,
    _: NoParameters,
) -> Result<Response, Problem> {
    let operation = inbound.handle.operation(&id);
    Ok(ok(&operation.ok_or_else(|| missing(&what(&id)))?))
}

#[utoipa::path(
    delete, path = "/v1/operations/{id}", tag = "operations",
    operation_id = "cancelOperation",
    summary = "End an operation",
    description = "What it has done stays done. One that has ended is answered as it ended.",
    params(("id" = String, Path, description = "Its `operation_id`.")),
    responses(
        (status = 200, body = api::Operation, description = "How it stands then."),
        Absent, Failures,
    ),
)]
pub(super) async fn cancel(
    State(inbound): State<Arc<Inbound>>,
    Named(id): Named,
    _: NoParameters,
) -> Result<Response, Problem> {
    let operation = inbound.handle.cancel(&id).await;
    Ok(ok(&operation.ok_or_else(|| missing(&what(&id)))?))
}

fn what(id: &str) -> String {
    format!("operation {}", shown(id))
}
