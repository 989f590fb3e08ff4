//! The API routes and `GET /v1/openapi.json`, generated from the same macros so that they cannot
//! differ.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::extract::NoParameters;
use super::{
    Problem, ServerState, barriers, batch, cluster, dead_letters, events, history, keys,
    operations, replicas, snapshot, tasks, verify,
};
use crate::server::errors::ok;
use crate::server::{health, metrics, replicate};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "replicator",
        description = "Replicates the writes of a key-value store from its primary to its replicas, \
            durably and in order."
    ),
    components(schemas(crate::api::TaskEvent, crate::api::ReplicaEvent, crate::api::Figures))
)]
struct Described;

pub(in crate::server) fn router() -> OpenApiRouter<Arc<ServerState>> {
    OpenApiRouter::with_openapi(Described::openapi())
        .routes(routes!(replicate::replicate))
        .routes(routes!(batch::batch))
        .routes(routes!(tasks::list))
        .routes(routes!(tasks::show, tasks::discard))
        .routes(routes!(keys::show))
        .routes(routes!(replicas::list))
        .routes(routes!(replicas::show, replicas::limit))
        .routes(routes!(replicas::pause))
        .routes(routes!(replicas::resume))
        .routes(routes!(replicas::probe))
        .routes(routes!(replicas::forget))
        .routes(routes!(replicas::rename))
        .routes(routes!(dead_letters::list))
        .routes(routes!(dead_letters::summary))
        .routes(routes!(dead_letters::redrive))
        .routes(routes!(dead_letters::discard))
        .routes(routes!(operations::list))
        .routes(routes!(operations::show, operations::cancel))
        .routes(routes!(barriers::create))
        .routes(routes!(barriers::show))
        .routes(routes!(snapshot::create))
        .routes(routes!(verify::verify))
        .routes(routes!(cluster::show))
        .routes(routes!(cluster::drain))
        .routes(routes!(events::events))
        .routes(routes!(history::show))
        .routes(routes!(history::instance))
        .routes(routes!(described))
        .routes(routes!(metrics::figures))
        .routes(routes!(metrics::users))
        .routes(routes!(health::health))
        .routes(routes!(health::livez))
        .routes(routes!(health::readyz))
}

#[utoipa::path(
    get, path = "/v1/openapi.json", tag = "service",
    operation_id = "openapi",
    summary = "This description",
    responses(
        (status = 200, body = Object, description = "OpenAPI 3.1."),
        (status = 400, body = crate::api::Error, description = "The path takes no parameters."),
    ),
)]
pub(super) async fn described(
    State(server): State<Arc<ServerState>>,
    _: NoParameters,
) -> Result<Response, Problem> {
    Ok(ok(&server.openapi))
}
