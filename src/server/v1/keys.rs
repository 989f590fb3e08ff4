//! `/v1/keys`: what is known of one key.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;

use super::extract::{NoParameters, PathName};
use super::{CommonErrors, Problem, ServerState};
use crate::api;
use crate::server::access::Caller;
use crate::server::errors::ok;

#[utoipa::path(
    get, path = "/v1/keys/{key}", tag = "tasks",
    operation_id = "getKey",
    summary = "The last writes of a key, and which replica has which of them",
    description = "A replica whose `acknowledged_sequence` is at least the `task_id` of a write has \
        that write, or a newer one of the key. Settled writes are known for a while \
        (`--task-history`), so a key without any pending write may have empty lists. The parts of \
        the answer are read one after the other, while deliveries continue.",
    params(("key" = String, Path, description = "The key, percent-encoded.")),
    responses((status = 200, body = api::KeyInfo, description = "The key."), CommonErrors),
)]
pub(super) async fn show(
    State(server): State<Arc<ServerState>>,
    caller: Caller,
    PathName(key): PathName,
    _: NoParameters,
) -> Result<Response, Problem> {
    let _turn = server.answers.list(&caller.client()).await;
    let key = server.handle.key(key).await;
    Ok(ok(&server.operated(key)?))
}
