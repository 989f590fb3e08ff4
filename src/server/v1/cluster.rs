//! `/v1/cluster`: the instances and partitions of a cluster store.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use super::bodies::{self, DrainBody, object};
use super::extract::NoParameters;
use super::wire::shown;
use super::{BodyErrors, CommonErrors, NotFoundError, Problem, ServerState, missing};
use crate::api;
use crate::server::access::About;

const NO_CLUSTER: &str = "cluster: this daemon has a data directory, a cluster needs --store";

#[utoipa::path(
    get, path = "/v1/cluster", tag = "cluster",
    operation_id = "getCluster",
    summary = "The instances and partitions of the cluster",
    description = "As the instance that answers sees them. Only with `--store`.",
    responses(
        (status = 200, body = api::Cluster, description = "The cluster."), NotFoundError, CommonErrors,
    ),
)]
pub(super) async fn show(
    State(server): State<Arc<ServerState>>,
    _: NoParameters,
) -> Result<Response, Problem> {
    let cluster = server.handle.cluster().await;
    server.found(cluster, NO_CLUSTER)
}

#[utoipa::path(
    post, path = "/v1/cluster/drain", tag = "cluster",
    operation_id = "drainInstance",
    summary = "Drain an instance, or end its drain",
    description = "The instance hands its partitions over one after the other and claims none; it \
        accepts writes as before. A drain ends with its process. Only with `--store`.",
    request_body(content = api::ClusterDrain, content_type = "application/json"),
    responses(
        (status = 200, body = api::Cluster, description = "The cluster after the call."),
        NotFoundError, BodyErrors, CommonErrors,
    ),
)]
pub(super) async fn drain(
    State(server): State<Arc<ServerState>>,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    let check = |body: &[u8]| object::<DrainBody<'_>>(body)?.checked();
    let api::ClusterDrain { node, drain } = bodies::read(&server, request, check).await?;
    if !server.handle.is_of_cluster() {
        return Err(missing(NO_CLUSTER));
    }
    let what = if drain { "drain" } else { "end the drain of" };
    let about = About::of(format!("{what} {}", shown(&node)));
    let cluster = server.handle.drain(&node, drain).await;
    Ok(about.on(server.found(cluster, format_args!("live instance {}", shown(&node)))?))
}
