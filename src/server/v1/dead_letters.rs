//! `/v1/dead-letters`: what was given up, and what becomes of it.

use std::sync::Arc;

use axum::extract::{RawQuery, Request, State};
use axum::response::Response;

use super::bodies::{self, Selection, object};
use super::extract::{CAUSES, NoParameters, Parameters};
use super::{Bodily, Failures, Inbound, Problem};
use crate::api;
use crate::dispatcher::LetterFilter;
use crate::server::access::About;
use crate::server::errors::{accepted, ok};

/// What dead letters can be asked for by.
const PARAMETERS: [&str; 7] =
    ["replica", "key", "key_prefix", "user_id", "cause", "limit", "cursor"];

#[utoipa::path(
    get, path = "/v1/dead-letters", tag = "dead letters",
    operation_id = "listDeadLetters",
    summary = "Dead letters, oldest task first",
    description = "The parked ones included. A page may be shorter than `limit`, even empty, and \
        still have a `next_cursor`: go on until it is null.",
    params(
        ("replica" = Option<String>, Query, description = "Of this replica."),
        ("key" = Option<String>, Query, description = "Of this key."),
        ("key_prefix" = Option<String>, Query, description = "Of the keys that begin so."),
        ("user_id" = Option<String>, Query, description = "Of this user."),
        ("cause" = Option<api::Cause>, Query, description = "With this cause."),
        ("limit" = Option<usize>, Query, minimum = 1, maximum = 1000,
            description = "At most so many; 100 where nothing is said."),
        ("cursor" = Option<String>, Query, description = "The `next_cursor` of the page before."),
    ),
    responses(
        (status = 200, body = api::DeadLetterPage, description = "A page of them."), Failures,
    ),
)]
pub(super) async fn list(
    State(inbound): State<Arc<Inbound>>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let mut asked = Parameters::read(query.as_deref(), &PARAMETERS)?;
    let filter = LetterFilter {
        ids: None,
        replica: asked.node("replica")?,
        key: asked.text("key"),
        key_prefix: asked.text("key_prefix"),
        user_id: asked.text("user_id"),
        cause: asked.word("cause", &CAUSES)?,
    };
    let (limit, after) = (asked.limit()?, asked.cursor()?);
    let page = inbound.handle.dead_letters(filter, limit, after).await;
    Ok(ok(&inbound.operated(page)?))
}

#[utoipa::path(
    post, path = "/v1/dead-letters/redrive", tag = "dead letters",
    operation_id = "redriveDeadLetters",
    summary = "Make dead letters ready again",
    description = "Leaves out those whose key has a newer write on its way. A 400 where nothing is \
        selected; all of them have to be asked for.",
    request_body(content = api::RedriveRequest, content_type = "application/json"),
    responses(
        (status = 202, body = api::Operation, description = "It goes on behind this answer."),
        Bodily, Failures,
    ),
)]
pub(super) async fn redrive(
    State(inbound): State<Arc<Inbound>>,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    let check = |body: &[u8]| object::<Selection<'_>>(body)?.redriven();
    let selected = bodies::read(&inbound, request, check).await?;
    let begun = inbound.handle.redrive(selected.filter, selected.dry_run, selected.rate).await;
    let begun = inbound.operated(begun)?;
    Ok(About::of(format!("operation {}", begun.operation_id)).on(accepted(&begun)))
}

#[utoipa::path(
    post, path = "/v1/dead-letters/discard", tag = "dead letters",
    operation_id = "discardDeadLetters",
    summary = "Throw dead letters away",
    description = "A 400 where nothing is selected; all of them have to be asked for.",
    request_body(content = api::DiscardRequest, content_type = "application/json"),
    responses(
        (status = 202, body = api::Operation, description = "It goes on behind this answer."),
        Bodily, Failures,
    ),
)]
pub(super) async fn discard(
    State(inbound): State<Arc<Inbound>>,
    _: NoParameters,
    request: Request,
) -> Result<Response, Problem> {
    let check = |body: &[u8]| object::<Selection<'_>>(body)?.discarded();
    let selected = bodies::read(&inbound, request, check).await?;
    let begun = inbound.handle.discard(selected.filter, selected.dry_run).await;
    let begun = inbound.operated(begun)?;
    Ok(About::of(format!("operation {}", begun.operation_id)).on(accepted(&begun)))
}
