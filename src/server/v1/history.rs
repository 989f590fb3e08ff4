//! `/v1/history`: the figures of the last hour. `/v1/instance`: the daemon itself.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;

use super::extract::{NoParameters, Parameters};
use super::{CommonErrors, NotFoundError, Problem, ServerState};
use crate::api::{self, StoreState};
use crate::dispatcher::{AdminError, Health};
use crate::server::errors::ok;

#[utoipa::path(
    get, path = "/v1/history", tag = "figures",
    operation_id = "getHistory",
    summary = "Figures of the last hour",
    description = "Of the daemon, one value per second; or of a replica, one value per ten seconds. \
        Kept in memory, from the start of the daemon on. In a cluster those of all instances: \
        counts and rates are added, the lag is the largest.",
    params(("replica" = Option<String>, Query, description = "Address of a replica.")),
    responses(
        (status = 200, body = api::PastFigures, description = "Arrays, oldest first."),
        NotFoundError, CommonErrors,
    ),
)]
pub(super) async fn show(
    State(server): State<Arc<ServerState>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let node = Parameters::read(query.as_deref(), &["replica"])?.node("replica")?;
    let what = node.as_ref().map_or_else(String::new, |node| format!("replica {node}"));
    let past = server.handle.past_figures(node).await;
    server.found(past, what)
}

#[utoipa::path(
    get, path = "/v1/instance", tag = "figures",
    operation_id = "getInstance",
    summary = "The running daemon",
    responses(
        (status = 200, body = api::Instance, description = "Name, version, queue, disk and store."),
        CommonErrors,
    ),
)]
pub(super) async fn instance(
    State(server): State<Arc<ServerState>>,
    _: NoParameters,
) -> Result<Response, Problem> {
    let snapshot = server.handle.snapshot().await.ok_or(AdminError::Stopped);
    let snapshot = server.operated(snapshot)?;
    let health = server.handle.health();
    let store = match health {
        Health::StoreFailed(_) => StoreState::StoreFailed,
        Health::Stalled { .. } => StoreState::Stalled,
        _ if snapshot.store.is_full => StoreState::DiskLow,
        Health::Serving | Health::Draining => StoreState::Working,
    };
    Ok(ok(&api::Instance {
        node_id: server.settings.node_id.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        uptime_seconds: snapshot.uptime_seconds,
        draining: health == Health::Draining,
        store,
        queue_tasks: snapshot.levels.queue as u64,
        queue_capacity: snapshot.queue_capacity as u64,
        store_bytes: snapshot.store.file_bytes,
        disk_free_bytes: snapshot.store.free_bytes,
        cluster: snapshot.cluster.map(|cluster| api::ClusterStore {
            name: cluster.cluster,
            connected: cluster.is_connected,
            server: cluster.server,
            sync_always: cluster.sync_always,
            servers: cluster
                .servers
                .into_iter()
                .map(|server| api::ClusterServer {
                    name: server.name,
                    version: server.version,
                    sync_always: server.sync_always,
                })
                .collect(),
            partitions: cluster
                .partitions
                .into_iter()
                .map(|(partition, owner)| api::ClusterPartition {
                    id: partition.0,
                    epoch: owner.as_ref().map_or(0, |owner| owner.epoch),
                    here: owner.as_ref().is_some_and(|owner| owner.is_me),
                    owner: owner.map(|owner| owner.node),
                })
                .collect(),
        }),
    }))
}
