//! `/v1/tasks`: list, show and discard tasks.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;

use super::extract::{NoParameters, Parameters, PathName, STATES};
use super::{CommonErrors, NotFoundError, Problem, ServerState, missing};
use crate::api;
use crate::dispatcher::TaskFilter;
use crate::server::access::Caller;
use crate::server::errors::ok;
use crate::task::TaskId;

const PARAMETERS: [&str; 7] =
    ["state", "replica", "key", "key_prefix", "user_id", "limit", "cursor"];

#[utoipa::path(
    get, path = "/v1/tasks", tag = "tasks",
    operation_id = "listTasks",
    summary = "Unsettled tasks, oldest first",
    description = "A page may be shorter than `limit`, even empty, and still have a `next_cursor`: \
        continue until it is null. It ends after 1 MiB.",
    params(
        ("state" = Option<String>, Query, description = "Filter by the state of any delivery, or \
            of the delivery to `replica`: queued, in_flight, retrying, parked or dead."),
        ("replica" = Option<String>, Query, description = "Filter by replica."),
        ("key" = Option<String>, Query, description = "Filter by key."),
        ("key_prefix" = Option<String>, Query, description = "Filter by prefix of the key."),
        ("user_id" = Option<String>, Query, description = "Filter by user."),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 1000,
            description = "Maximum size of the page; default 100."),
            ("cursor" = Option<String>, Query, description = "The `next_cursor` of the previous page."),
    ),
    responses((status = 200, body = api::TaskPage, description = "A page."), CommonErrors),
)]
pub(super) async fn list(
    State(server): State<Arc<ServerState>>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::read(query.as_deref(), &PARAMETERS)?;
    let filter = TaskFilter {
        state: parameters.word("state", &STATES)?,
        replica: parameters.node("replica")?,
        key: parameters.text("key"),
        key_prefix: parameters.text("key_prefix"),
        user_id: parameters.text("user_id"),
    };
    let (limit, after) = (parameters.limit()?, parameters.cursor()?);
    let _turn = server.answers.list(&caller.client()).await;
    let page = server.handle.tasks(filter, limit, after).await;
    Ok(ok(&server.operated(page)?))
}

#[utoipa::path(
    get, path = "/v1/tasks/{id}", tag = "tasks",
    operation_id = "getTask",
    summary = "One task",
    description = "A settled task is remembered for a while (`--task-history`).",
    params(("id" = String, Path, description = "`task_id` of the task.")),
    responses((status = 200, body = api::TaskInfo, description = "The task."), NotFoundError, CommonErrors),
)]
pub(super) async fn show(
    State(server): State<Arc<ServerState>>,
    PathName(name): PathName,
    _: NoParameters,
) -> Result<Response, Problem> {
    let task = server.handle.task(id(&name)?).await;
    server.found(task, what(&name))
}

#[utoipa::path(
    delete, path = "/v1/tasks/{id}", tag = "tasks",
    operation_id = "discardTask",
    summary = "Discard a task",
    description = "Discards its pending deliveries, durably. A delivery in flight is not retried. A \
        settled task is returned unchanged.",
    params(("id" = String, Path, description = "`task_id` of the task.")),
    responses(
        (status = 200, body = api::TaskInfo, description = "The task after the call."), NotFoundError, CommonErrors,
    ),
)]
pub(super) async fn discard(
    State(server): State<Arc<ServerState>>,
    PathName(name): PathName,
    _: NoParameters,
) -> Result<Response, Problem> {
    let task = server.handle.discard_task(id(&name)?).await;
    server.found(task, what(&name))
}

/// A malformed id is a 404: no task has it.
fn id(name: &str) -> Result<TaskId, Problem> {
    name.parse().map_err(|_| missing(what(name)))
}

fn what(name: &str) -> String {
    format!("task {}", super::wire::shown(name))
}
