//! Every status code of the server is made here, and the body of every error.

use std::time::Duration;

use axum::body::Bytes;
use axum::http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::daemon::{Handle, Refusal};
use crate::task::{ReplicaIndex, TaskId};

/// Why a request has no success to report.
#[derive(Debug)]
pub(super) enum Problem {
    /// The request breaks a rule. Says which.
    Invalid(String),
    /// There is nothing under this path.
    NotFound,
    /// The path is right, the method is not.
    WrongMethod,
    /// The body did not come within this time.
    TooSlow(Duration),
    /// Something went wrong in here; the log says what.
    Internal,
    /// The body or the value is beyond a limit. Says which.
    TooLarge(String),
    /// Not now; the client may come again after a while.
    Unavailable { error: String, retry_after: Duration },
    /// A strong write is accepted, but no majority acknowledged it in time.
    NoMajority {
        error: String,
        id: TaskId,
        /// As the client spelled them.
        acked: Vec<String>,
        failed: Vec<String>,
    },
}

impl Problem {
    /// An error that no client can do anything about: it goes to the log.
    pub(super) fn internal(error: &dyn std::error::Error) -> Self {
        tracing::error!(%error, "a request failed inside");
        Self::Internal
    }

    /// The task that the request became all the same.
    pub(super) fn task(&self) -> Option<TaskId> {
        match self {
            Self::NoMajority { id, .. } => Some(*id),
            _ => None,
        }
    }

    /// What the daemon refused, in the words of the wire. `spelled` are the replicas in their
    /// order, as the client wrote them.
    pub(super) fn refused(refusal: &Refusal, spelled: &[String], handle: &Handle) -> Self {
        let error = refusal.to_string();
        match refusal {
            Refusal::Full(_) | Refusal::Draining | Refusal::StoreFailed => {
                Self::Unavailable { error, retry_after: handle.retry_after() }
            }
            Refusal::Invalid(_) | Refusal::Mismatch => Self::Invalid(error),
            Refusal::NoMajority { id, acked, failed, .. } => Self::NoMajority {
                error,
                id: *id,
                acked: as_spelled(spelled, acked),
                failed: as_spelled(spelled, failed),
            },
        }
    }
}

/// 204: it was done, and there is nothing to say.
pub(super) fn done() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// 200 with these bytes.
pub(super) fn bytes(value: Bytes) -> Response {
    value.into_response()
}

/// The replicas at `indexes`, as the client spelled them.
pub(super) fn as_spelled(spelled: &[String], indexes: &[ReplicaIndex]) -> Vec<String> {
    let names = indexes.iter().filter_map(|index| spelled.get(index.get()));
    names.cloned().collect()
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        match self {
            Self::Invalid(error) => failure(StatusCode::BAD_REQUEST, &error),
            Self::NotFound => failure(StatusCode::NOT_FOUND, "there is nothing under this path"),
            Self::WrongMethod => failure(
                StatusCode::METHOD_NOT_ALLOWED,
                "this path does not answer this method, the Allow header says which it does",
            ),
            Self::TooSlow(limit) => {
                let seconds = limit.as_secs_f64();
                let error = format!("the body did not arrive within {seconds} seconds");
                let mut response = failure(StatusCode::REQUEST_TIMEOUT, &error);
                // The rest of that body may still come: nothing after it can be understood.
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
                response
            }
            Self::Internal => {
                failure(StatusCode::INTERNAL_SERVER_ERROR, "this went wrong inside, see the log")
            }
            Self::TooLarge(error) => failure(StatusCode::PAYLOAD_TOO_LARGE, &error),
            Self::Unavailable { error, retry_after } => {
                let mut response = failure(StatusCode::SERVICE_UNAVAILABLE, &error);
                let seconds = HeaderValue::from(whole_seconds(retry_after));
                response.headers_mut().insert(RETRY_AFTER, seconds);
                response
            }
            Self::NoMajority { error, id, acked, failed } => unavailable(&serde_json::json!({
                "success": false,
                "error": error,
                "task_id": id.to_string(),
                "acked_nodes": acked,
                "failed_nodes": failed,
            })),
        }
    }
}

/// 200 with this body.
pub(super) fn ok(body: &impl Serialize) -> Response {
    answer(StatusCode::OK, body)
}

/// 202 with this body.
pub(super) fn accepted(body: &impl Serialize) -> Response {
    answer(StatusCode::ACCEPTED, body)
}

/// 503 with this body, for those who ask how things are.
pub(super) fn unavailable(body: &impl Serialize) -> Response {
    answer(StatusCode::SERVICE_UNAVAILABLE, body)
}

fn failure(status: StatusCode, error: &str) -> Response {
    #[derive(Serialize)]
    struct Failure<'a> {
        error: &'a str,
    }
    answer(status, &Failure { error })
}

fn answer(status: StatusCode, body: &impl Serialize) -> Response {
    // Nothing that is answered here can fail to be written: no maps with odd keys, no floats
    // that JSON lacks.
    let bytes = serde_json::to_vec(body).unwrap_or_default();
    let mut response = bytes.into_response();
    *response.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// Rounded up, and never 0: that would ask for the next request at once.
fn whole_seconds(wait: Duration) -> u64 {
    let started = u64::from(wait.subsec_nanos() > 0);
    wait.as_secs().saturating_add(started).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_told_in_whole_seconds_rounded_up_and_never_zero() {
        assert_eq!(whole_seconds(Duration::ZERO), 1);
        assert_eq!(whole_seconds(Duration::from_millis(200)), 1);
        assert_eq!(whole_seconds(Duration::from_secs(2)), 2);
        assert_eq!(whole_seconds(Duration::from_millis(2_001)), 3);
    }
}
