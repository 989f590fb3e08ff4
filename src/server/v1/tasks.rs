//! `/v1/tasks`: what was accepted and is not settled, and the end of it where one asks.

use std::sync::Arc;

use axum::extract::{RawQuery, State};
use axum::response::Response;

use super::extract::{Named, NoParameters, Parameters, STATES};
use super::{Absent, Failures, Inbound, Problem, missing};
use crate::api;
use crate::dispatcher::TaskFilter;
use crate::server::errors::ok;
use crate::task::TaskId;

/// What tasks can be asked for by.
const PARAMETERS: [&str; 7] =
    ["state", "replica", "key", "key_prefix", "user_id", "limit", "cursor"];

#[utoipa::path(
    get, path = "/v1/tasks", tag = "tasks",
    operation_id = "listTasks",
    summary = "Unsettled tasks, oldest first",
    description = "A page may be shorter than `limit`, even empty, and still have a `next_cursor`: \
        go on until it is null.",
    params(
        ("state" = Option<String>, Query, description = "Of any delivery, or of `replica`'s: \
            queued, in_flight, retrying, parked or dead."),
        ("replica" = Option<String>, Query, description = "With a delivery to it."),
        ("key" = Option<String>, Query, description = "Of this key."),
        ("key_prefix" = Option<String>, Query, description = "Of the keys that begin so."),
        ("user_id" = Option<String>, Query, description = "Of this user."),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 1000,
            description = "At most so many; 100 where nothing is said."),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before."),
    ),
    responses((status = 200, body = api::TaskPage, description = "A page of them."), Failures),
)]
pub(super) async fn list(
    State(inbound): State<Arc<Inbound>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut asked = Parameters::read(query.as_deref(), &PARAMETERS)?;
    let filter = TaskFilter {
        state: asked.word("state", &STATES)?,
        replica: asked.node("replica")?,
        key: asked.text("key"),
        key_prefix: asked.text("key_prefix"),
        user_id: asked.text("user_id"),
    };
    let (limit, after) = (asked.limit()?, asked.cursor()?);
    let page = inbound.handle.tasks(filter, limit, after).await;
    Ok(ok(&inbound.operated(page)?))
}

#[utoipa::path(
    get, path = "/v1/tasks/{id}", tag = "tasks",
    operation_id = "getTask",
    summary = "One task",
    description = "A settled one is remembered for a while (`--task-history`).",
    params(("id" = String, Path, description = "Its `task_id`.")),
    responses((status = 200, body = api::Task, description = "The task."), Absent, Failures),
)]
pub(super) async fn show(
    State(inbound): State<Arc<Inbound>>,
    Named(name): Named,
    _: NoParameters,
) -> Result<Response, Problem> {
    let task = inbound.handle.task(id(&name)?).await;
    Ok(ok(&inbound.found(task, || what(&name))?))
}

#[utoipa::path(
    delete, path = "/v1/tasks/{id}", tag = "tasks",
    operation_id = "discardTask",
    summary = "Discard what is left of a task",
    description = "What is not settled and not on the wire is discarded, durably; what is on the \
        wire is not tried again. A settled task is answered as it is.",
    params(("id" = String, Path, description = "Its `task_id`.")),
    responses(
        (status = 200, body = api::Task, description = "As it stands then."), Absent, Failures,
    ),
)]
pub(super) async fn discard(
    State(inbound): State<Arc<Inbound>>,
    Named(name): Named,
    _: NoParameters,
) -> Result<Response, Problem> {
    let task = inbound.handle.discard_task(id(&name)?).await;
    Ok(ok(&inbound.found(task, || what(&name))?))
}

/// What is no id at all names no task either.
fn id(name: &str) -> Result<TaskId, Problem> {
    name.parse().map_err(|_| missing(&what(name)))
}

fn what(name: &str) -> String {
    format!("task {}", super::wire::shown(name))
}
