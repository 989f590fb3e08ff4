//! `/v1/dead-letters`: list, redrive and discard deliveries that were given up.

use std::sync::Arc;

use axum::extract::{RawQuery, Request, State};
use axum::response::Response;

use super::bodies::{self, SelectionBody, object};
use super::extract::{CAUSES, NoParameters, Parameters};
use super::{BodyErrors, CommonErrors, Problem, ServerState};
use crate::api;
use crate::dispatcher::LetterFilter;
use crate::server::access::{About, Caller};
use crate::server::errors::{accepted, ok};
use crate::task::Cause;

const PARAMETERS: [&str; 7] =
    ["replica", "key", "key_prefix", "user_id", "cause", "limit", "cursor"];

#[utoipa::path(
    get, path = "/v1/dead-letters", tag = "dead letters",
    operation_id = "listDeadLetters",
    summary = "Dead letters, oldest task first",
    description = "Includes parked deliveries. A page may be shorter than `limit`, even empty, and \
        still have a `next_cursor`: continue until it is null. It ends after 1 MiB.",
    params(
        ("replica" = Option<String>, Query, description = "Filter by replica."),
        ("key" = Option<String>, Query, description = "Filter by key."),
        ("key_prefix" = Option<String>, Query, description = "Filter by prefix of the key."),
        ("user_id" = Option<String>, Query, description = "Filter by user."),
        ("cause" = Option<Cause>, Query, description = "Filter by cause."),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 1000,
            description = "Maximum size of the page; default 100."),
            ("cursor" = Option<String>, Query, description = "The `next_cursor` of the previous page."),
    ),
    responses(
        (status = 200, body = api::DeadLetterPage, description = "A page."), CommonErrors,
    ),
)]
pub(super) async fn list(
    State(server): State<Arc<ServerState>>,
    caller: Caller,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::read(query.as_deref(), &PARAMETERS)?;
    let filter = LetterFilter {
        ids: None,
        replica: parameters.node("replica")?,
        key: parameters.text("key"),
        key_prefix: parameters.text("key_prefix"),
        user_id: parameters.text("user_id"),
        cause: parameters.word("cause", &CAUSES)?,
    };
    let (limit, after) = (parameters.limit()?, parameters.cursor()?);
    let _turn = server.answers.list(&caller.client()).await;
    let page = server.handle.dead_letters(filter, limit, after).await;
    Ok(ok(&server.operated(page)?))
}

#[utoipa::path(
    get, path = "/v1/dead-letters/summary", tag = "dead letters",
    operation_id = "summarizeDeadLetters",
    summary = "Number of dead letters by replica, cause and error",
    responses(
        (status = 200, body = api::LetterSummary, description = "The largest groups first."),
        CommonErrors,
    ),
)]
pub(super) async fn summary(
    State(server): State<Arc<ServerState>>,
    _: NoParameters,
) -> Result<Response, Problem> {
    let summary = server.handle.dead_letter_summary().await;
    Ok(ok(&server.operated(summary)?))
}

#[utoipa::path(
    post, path = "/v1/dead-letters/redrive", tag = "dead letters",
    operation_id = "redriveDeadLetters",
    summary = "Redrive dead letters",
    description = "Skips a dead letter if a newer write of its key is pending. An empty selection is \
        an error; set `all` to select everything. In a cluster each instance redrives its own, \
        at an equal share of the rate.",
    request_body(content = api::RedriveRequest, content_type = "application/json"),
    responses(
        (status = 202, body = api::BulkOperation, description = "The operation runs in the background."),
        BodyErrors, CommonErrors,
    ),
)]
pub(super) async fn redrive(
    State(server): State<Arc<ServerState>>,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    let check = |body: &[u8]| object::<SelectionBody<'_>>(body)?.redriven();
    let selected = bodies::read(&server, request, check).await?;
    let begun = server.handle.redrive(selected.filter, selected.dry_run, selected.rate).await;
    let begun = server.operated(begun)?;
    Ok(About::of(format!("operation {}", begun.operation_id)).on(accepted(&begun)))
}

#[utoipa::path(
    post, path = "/v1/dead-letters/discard", tag = "dead letters",
    operation_id = "discardDeadLetters",
    summary = "Discard dead letters",
    description = "An empty selection is an error; set `all` to select everything.",
    request_body(content = api::DiscardRequest, content_type = "application/json"),
    responses(
        (status = 202, body = api::BulkOperation, description = "The operation runs in the background."),
        BodyErrors, CommonErrors,
    ),
)]
pub(super) async fn discard(
    State(server): State<Arc<ServerState>>,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    let check = |body: &[u8]| object::<SelectionBody<'_>>(body)?.discarded();
    let selected = bodies::read(&server, request, check).await?;
    let begun = server.handle.discard(selected.filter, selected.dry_run).await;
    let begun = server.operated(begun)?;
    Ok(About::of(format!("operation {}", begun.operation_id)).on(accepted(&begun)))
}
