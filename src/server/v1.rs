//! `/v1`: the operators' API, one file per resource.
//!
//! Handlers parse and validate, call the daemon, and respond with the types of [`crate::api`].
//! `extract` parses paths and queries, `bodies` parses bodies. Both reject unknown names with a
//! 400, so that a filter with a typo never selects more than intended.

use std::fmt::Display;

use axum::response::Response;
use serde::Serialize;

use super::errors::{Problem, ok};
use super::{ServerState, idempotency, validate, wire};
use crate::api;
use crate::dispatcher::AdminError;

mod barriers;
mod batch;
mod bodies;
mod cluster;
mod dead_letters;
mod events;
mod extract;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;
mod history;
mod keys;
mod long_polls;
mod openapi;
mod operations;
mod replicas;
mod snapshot;
mod tasks;
mod verify;

pub(super) use long_polls::LongPolls;
pub(super) use openapi::router;

impl ServerState {
    fn operated<T>(&self, outcome: Result<T, AdminError>) -> Result<T, Problem> {
        outcome.map_err(|error| Problem::not_operated(error, &self.handle))
    }

    /// Turns `None` into a 404 that reads "there is no `what`".
    fn found<T: Serialize>(
        &self,
        outcome: Result<Option<T>, AdminError>,
        what: impl Display,
    ) -> Result<Response, Problem> {
        let found = self.operated(outcome)?.ok_or_else(|| missing(what))?;
        Ok(ok(&found))
    }
}

fn missing(what: impl Display) -> Problem {
    Problem::Missing(format!("there is no {what}"))
}

/// Responses that every operation may return.
#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "for the API's description alone")]
enum CommonErrors {
    /// A parameter or a field is not valid. The error names it.
    #[response(status = 400)]
    Invalid(api::Error),
    /// Internal error. The log contains the details.
    #[response(status = 500)]
    Internal(api::Error),
    /// The daemon is stopping, its store has failed, or it is overloaded.
    #[response(status = 503)]
    Unavailable(api::Error),
}

#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "for the API's description alone")]
enum NotFoundError {
    /// The object does not exist.
    #[response(status = 404)]
    Missing(api::Error),
}

#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "for the API's description alone")]
enum BodyErrors {
    /// The body did not arrive in time.
    #[response(status = 408)]
    TooSlow(api::Error),
    /// The body is too large.
    #[response(status = 413)]
    TooLarge(api::Error),
    /// The body is compressed.
    #[response(status = 415)]
    Encoded(api::Error),
}
