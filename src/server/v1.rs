//! `/v1`: what operators see and say, a file a resource.
//!
//! The handlers read and check, ask the daemon, and answer with the types of [`crate::api`]; they
//! decide nothing. `asked` reads paths and queries, `bodies` what is posted: whatever is unknown
//! in either is a 400 that names it, so that a filter with a slip of the pen never selects more
//! than was meant.

use super::errors::Problem;
use super::{Inbound, idempotency, validate, wire};
use crate::api;
use crate::dispatcher::AdminError;

mod barriers;
mod batch;
mod bodies;
mod dead_letters;
mod events;
mod extract;
#[cfg(any(test, feature = "fuzzing"))]
pub(super) mod fuzzing;
mod long_polls;
mod openapi;
mod operations;
mod replicas;
mod tasks;

pub(super) use long_polls::LongPolls;
pub(super) use openapi::router;

impl Inbound {
    /// The answer to what an operator asked of the daemon.
    fn operated<T>(&self, outcome: Result<T, AdminError>) -> Result<T, Problem> {
        outcome.map_err(|error| Problem::not_operated(error, &self.handle))
    }

    /// The same, where it may not be there; `what` says what, as in "there is no `what`".
    fn found<T>(
        &self,
        outcome: Result<Option<T>, AdminError>,
        what: impl FnOnce() -> String,
    ) -> Result<T, Problem> {
        self.operated(outcome)?.ok_or_else(|| missing(&what()))
    }
}

fn missing(what: &str) -> Problem {
    Problem::Missing(format!("there is no {what}"))
}

/// What every operation may answer besides what it is for.
#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "for the API's description alone")]
enum Failures {
    /// A parameter or a field breaks a rule; the sentence names it.
    #[response(status = 400)]
    Invalid(api::Error),
    /// Something failed inside; the log says what.
    #[response(status = 500)]
    Internal(api::Error),
    /// The daemon stops, its store has failed, or too much is asked of it at once.
    #[response(status = 503)]
    Unavailable(api::Error),
}

/// Of a path that names something.
#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "for the API's description alone")]
enum Absent {
    /// There is no such thing.
    #[response(status = 404)]
    Missing(api::Error),
}

/// Of a request with a body.
#[derive(utoipa::IntoResponses)]
#[allow(dead_code, reason = "for the API's description alone")]
enum Bodily {
    /// The body did not arrive in time.
    #[response(status = 408)]
    TooSlow(api::Error),
    /// The body is too long.
    #[response(status = 413)]
    TooLarge(api::Error),
    /// The body is compressed.
    #[response(status = 415)]
    Encoded(api::Error),
}
