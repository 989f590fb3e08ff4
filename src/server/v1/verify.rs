//! `/v1/verify`: compares replicas with the primary.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use super::bodies::{self, VerifyBody, object};
use super::extract::NoParameters;
use super::{BodyErrors, CommonErrors, Problem, ServerState};
use crate::api;
use crate::dispatcher::AdminError;
use crate::server::errors::ok;

#[utoipa::path(
    post, path = "/v1/verify", tag = "replicas",
    operation_id = "verifyReplicas",
    summary = "Compare recent writes at the replicas with the primary",
    description = "Reads `GET {node}/store/{key}` from the `primary_node` of the last write of a key and \
        from its replicas, once the write has arrived there. The answer comes after at most a minute. \
        Only writes that were accepted since the start are known, and only those whose `primary_node` is \
        an address. Not available in a cluster.",
    request_body(content = Option<api::NewVerification>, content_type = "application/json"),
    responses(
        (status = 200, body = api::Verification, description = "The comparison."),
        (status = 409, body = api::Error, description = "The daemon has a cluster store."),
        BodyErrors, CommonErrors,
    ),
)]
pub(super) async fn verify(
    State(server): State<Arc<ServerState>>,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    let check = |body: &[u8]| object::<VerifyBody<'_>>(body)?.checked();
    let options = bodies::read(&server, request, check).await?;
    let verification = tokio::select! {
        verification = server.handle.verify(options) => verification,
        // A waiting client must not delay the shutdown.
        () = server.closing() => Err(AdminError::Stopped),
    };
    Ok(ok(&server.operated(verification)?))
}
