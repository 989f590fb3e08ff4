//! `/v1/operations`: running and recently ended operations on dead letters.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::extract::{NoParameters, PathName};
use super::wire::shown;
use super::{CommonErrors, NotFoundError, Problem, ServerState};
use crate::api;
use crate::server::errors::ok;

#[utoipa::path(
    get, path = "/v1/operations", tag = "operations",
    operation_id = "listOperations",
    summary = "Operations, newest first",
    responses(
        (status = 200, body = api::OperationPage, description = "Running and recently ended operations."),
        CommonErrors,
    ),
)]
pub(super) async fn list(
    State(server): State<Arc<ServerState>>,
    _: NoParameters,
) -> Result<Response, Problem> {
    let operations = server.handle.operations().await;
    Ok(ok(&server.operated(operations)?))
}

#[utoipa::path(
    get, path = "/v1/operations/{id}", tag = "operations",
    operation_id = "getOperation",
    summary = "One operation",
    params(("id" = String, Path, description = "`operation_id` of the operation.")),
    responses(
        (status = 200, body = api::BulkOperation, description = "The operation."), NotFoundError, CommonErrors,
    ),
)]
pub(super) async fn show(
    State(server): State<Arc<ServerState>>,
    PathName(id): PathName,
    _: NoParameters,
) -> Result<Response, Problem> {
    let operation = server.handle.operation(&id).await;
    server.found(operation, format_args!("operation {}", shown(&id)))
}

#[utoipa::path(
    delete, path = "/v1/operations/{id}", tag = "operations",
    operation_id = "cancelOperation",
    summary = "Cancel an operation",
    description = "Work already done is kept. An operation that has ended is returned unchanged.",
    params(("id" = String, Path, description = "`operation_id` of the operation.")),
    responses(
        (status = 200, body = api::BulkOperation, description = "The operation after the call."),
        NotFoundError, CommonErrors,
    ),
)]
pub(super) async fn cancel(
    State(server): State<Arc<ServerState>>,
    PathName(id): PathName,
    _: NoParameters,
) -> Result<Response, Problem> {
    let operation = server.handle.cancel(&id).await;
    server.found(operation, format_args!("operation {}", shown(&id)))
}
