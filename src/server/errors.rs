//! Every status code of the server, and the body of every error.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::{Value, json};

use crate::api::{BatchAnswer, NO_SUCH_PATH, WriteAccepted};
use crate::dispatcher::{AdminError, Handle, Refusal};
use crate::task::{Obstacle, ReplicaIndex, TaskId};

/// Set on the response to a repeated write with the same idempotency key.
const REPLAYED: HeaderName = HeaderName::from_static("idempotency-replayed");

pub(super) fn invalid(sentence: impl Into<String>) -> Problem {
    Problem::Invalid(sentence.into())
}

pub(super) fn must_be(field: &str, rule: &str, got: &impl fmt::Display) -> Problem {
    invalid(format!(r#"field "{field}" must be {rule}, got {got}"#))
}

/// Why a request failed. Texts are sent to the client.
#[derive(Debug)]
pub(super) enum Problem {
    Invalid(String),
    Unauthenticated(&'static str),
    Forbidden(String),
    TooMany {
        error: String,
        retry_after: Duration,
    },
    /// Unknown path.
    NotFound,
    /// Known path, but the object it names does not exist.
    Missing(String),
    WrongMethod,
    TooSlow(String),
    /// Carries the id under which the log shows the details.
    Internal(String),
    TooLarge(String),
    Encoded(String),
    Conflict(String),
    Mismatch(String),
    Unavailable {
        error: String,
        retry_after: Duration,
    },
    /// The strong write is accepted, but no majority acknowledged it in time.
    NoMajority {
        error: String,
        id: TaskId,
        /// Both as the client spelled them.
        acked: Vec<String>,
        failed: Vec<String>,
        replayed: bool,
    },
}

impl Problem {
    /// An internal error: details go to the log only.
    pub(super) fn internal(error: &dyn fmt::Display) -> Self {
        let id = format!("{:08x}", fastrand::u32(..));
        tracing::error!(id, %error, "a request failed with an internal error");
        Self::Internal(id)
    }

    pub(super) fn too_many(retry_after: Duration) -> Self {
        let error = "this token has exceeded its rate limit".to_owned();
        Self::TooMany { error, retry_after }
    }

    /// The accepted task, if the write was accepted despite the error.
    pub(super) fn task(&self) -> Option<TaskId> {
        match self {
            Self::NoMajority { id, .. } => Some(*id),
            _ => None,
        }
    }

    /// `spelled` are the replicas in order, as the client spelled them.
    pub(super) fn refused(refusal: &Refusal, spelled: &[Arc<str>], handle: &Handle) -> Self {
        let error = refusal.to_string();
        match refusal {
            Refusal::Full(_)
            | Refusal::Stalled
            | Refusal::Draining
            | Refusal::StoreFailed
            | Refusal::Unconfirmed
            | Refusal::NoOwner => Self::Unavailable { error, retry_after: handle.retry_after() },
            Refusal::OwnerChanged { id } => {
                let failed = spelled.iter().map(ToString::to_string).collect();
                Self::NoMajority { error, id: *id, acked: Vec::new(), failed, replayed: false }
            }
            Refusal::Invalid(_) => Self::Invalid(error),
            Refusal::Mismatch => Self::Mismatch(error),
            Refusal::NoMajority { id, acked, failed, obstacles, replayed, .. } => {
                Self::NoMajority {
                    error: without_majority(error, obstacles, spelled),
                    id: *id,
                    acked: as_spelled(spelled, acked),
                    failed: as_spelled(spelled, failed),
                    replayed: *replayed,
                }
            }
        }
    }

    pub(super) fn not_operated(error: AdminError, handle: &Handle) -> Self {
        let retry_after = handle.retry_after();
        match error {
            AdminError::Stopped => {
                let refusal = handle.health().refusal().unwrap_or(Refusal::Draining);
                Self::Unavailable { error: refusal.to_string(), retry_after }
            }
            AdminError::Unconfirmed => Self::Unavailable { error: error.to_string(), retry_after },
            AdminError::Unreadable(_) => Self::internal(&error),
            AdminError::TooMany(error) | AdminError::Unanswered(error) => {
                Self::Unavailable { error, retry_after }
            }
            AdminError::Invalid(error) => Self::Invalid(error),
            AdminError::Forbidden(error) => Self::Forbidden(error),
            AdminError::Conflict(error) => Self::Conflict(error),
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Invalid(_) => StatusCode::BAD_REQUEST,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) => StatusCode::FORBIDDEN,
            Self::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::NotFound | Self::Missing(_) => StatusCode::NOT_FOUND,
            Self::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            Self::TooSlow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::TooLarge(_) => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Encoded(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Conflict(_) => StatusCode::CONFLICT,
            Self::Mismatch(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Unavailable { .. } | Self::NoMajority { .. } => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn body(&self) -> Value {
        let error = match self {
            Self::Invalid(error)
            | Self::Forbidden(error)
            | Self::TooMany { error, .. }
            | Self::Missing(error)
            | Self::TooSlow(error)
            | Self::TooLarge(error)
            | Self::Encoded(error)
            | Self::Conflict(error)
            | Self::Mismatch(error)
            | Self::Unavailable { error, .. } => error.as_str(),
            Self::Unauthenticated(error) => error,
            Self::NotFound => NO_SUCH_PATH,
            Self::WrongMethod => "this path does not support this method, see the Allow header",
            Self::Internal(id) => {
                return json!({
                    "error": format!("internal error (id {id}), see the log"),
                });
            }
            Self::NoMajority { error, id, acked, failed, .. } => {
                return json!({
                    "success": false,
                    "error": error,
                    "task_id": id.to_string(),
                    "acked_nodes": acked,
                    "failed_nodes": failed,
                });
            }
        };
        json!({ "error": error })
    }

    pub(super) fn in_batch(&self) -> BatchAnswer {
        let replayed = matches!(self, Self::NoMajority { replayed: true, .. });
        BatchAnswer { status: self.status().as_u16(), body: self.body(), replayed }
    }
}

pub(super) fn done() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

pub(super) fn bytes(value: Bytes) -> Response {
    value.into_response()
}

pub(super) fn not_modified() -> Response {
    StatusCode::NOT_MODIFIED.into_response()
}

/// The error of a strong write without a majority. Names the paused and failing replicas.
fn without_majority(
    mut error: String,
    obstacles: &[(ReplicaIndex, Obstacle)],
    spelled: &[Arc<str>],
) -> String {
    let reason = |(replica, obstacle): &(ReplicaIndex, Obstacle)| {
        let why = match obstacle {
            Obstacle::Paused => "is paused",
            Obstacle::BreakerOpen => "is failing (its breaker is open)",
        };
        Some(format!("{} {why}", spelled.get(replica.get())?))
    };
    let reasons: Vec<_> = obstacles.iter().filter_map(reason).collect();
    match reasons.split_last() {
        None => {}
        Some((only, [])) => error.extend([": ", only]),
        Some((last, others)) => error.extend([": ", &others.join(", "), " and ", last]),
    }
    error.push_str("; deliveries that are still pending continue in the background");
    error
}

pub(super) fn as_spelled(spelled: &[Arc<str>], indexes: &[ReplicaIndex]) -> Vec<String> {
    let names = indexes.iter().filter_map(|index| spelled.get(index.get()));
    names.map(ToString::to_string).collect()
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let response = answer(self.status(), &self.body());
        match self {
            Self::TooSlow(_) => {
                // The rest of the body may still arrive and would be read as the next request.
                closing(response)
            }
            Self::Encoded(_) => {
                with(response, ACCEPT_ENCODING, HeaderValue::from_static("identity"))
            }
            Self::Unauthenticated(_) => {
                with(response, WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))
            }
            Self::Unavailable { retry_after, .. } | Self::TooMany { retry_after, .. } => {
                let seconds = HeaderValue::from(whole_seconds(retry_after));
                with(response, RETRY_AFTER, seconds)
            }
            Self::NoMajority { replayed: true, .. } => replayed(response),
            _ => response,
        }
    }
}

/// Response to an accepted write: 202 when durable, 200 when a majority has acknowledged.
pub(super) fn taken(body: &WriteAccepted, was_replayed: bool) -> Response {
    let response = answer(taken_status(body), body);
    if was_replayed { replayed(response) } else { response }
}

pub(super) fn taken_in_batch(body: &WriteAccepted, replayed: bool) -> BatchAnswer {
    let json = serde_json::to_value(body).unwrap_or_default();
    BatchAnswer { status: taken_status(body).as_u16(), body: json, replayed }
}

fn taken_status(body: &WriteAccepted) -> StatusCode {
    if body.acked_nodes.is_some() { StatusCode::OK } else { StatusCode::ACCEPTED }
}

fn replayed(response: Response) -> Response {
    with(response, REPLAYED, HeaderValue::from_static("true"))
}

/// Ends the connection after the response.
pub(super) fn closing(response: Response) -> Response {
    with(response, CONNECTION, HeaderValue::from_static("close"))
}

fn with(mut response: Response, name: HeaderName, value: HeaderValue) -> Response {
    response.headers_mut().insert(name, value);
    response
}

pub(super) fn ok(body: &impl Serialize) -> Response {
    answer(StatusCode::OK, body)
}

pub(super) fn created(body: &impl Serialize) -> Response {
    answer(StatusCode::CREATED, body)
}

pub(super) fn accepted(body: &impl Serialize) -> Response {
    answer(StatusCode::ACCEPTED, body)
}

pub(super) fn unavailable(body: &impl Serialize) -> Response {
    answer(StatusCode::SERVICE_UNAVAILABLE, body)
}

/// Headers of every answer, unless it has its own. No browser may guess a type, and no cache may
/// keep what a token was needed for.
pub(super) fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    let nosniff = HeaderValue::from_static("nosniff");
    headers.entry(X_CONTENT_TYPE_OPTIONS).or_insert(nosniff);
    headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

fn answer(status: StatusCode, body: &impl Serialize) -> Response {
    // Serialization cannot fail: no maps with non-string keys, no NaN.
    let mut response = json_text(serde_json::to_vec(body).unwrap_or_default().into());
    *response.status_mut() = status;
    response
}

pub(super) fn json_text(text: Bytes) -> Response {
    with(bytes(text), CONTENT_TYPE, HeaderValue::from_static("application/json"))
}

/// Rounded up and at least 1: a 0 would invite an immediate retry.
fn whole_seconds(wait: Duration) -> u64 {
    let started = u64::from(wait.subsec_nanos() > 0);
    wait.as_secs().saturating_add(started).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_of_a_missing_majority_fits_any_number_of_replicas() {
        let (handle, _requests, _health) = Handle::for_tests();
        let spelled = ["http://a", "http://b", "http://c", "http://d"].map(Arc::from);
        let said = |acked: u16, replicas: u16, obstacles: &[Obstacle]| {
            let missing = acked..replicas;
            let refusal = Refusal::NoMajority {
                id: TaskId(1),
                needed: usize::from(replicas) / 2 + 1,
                acked: (0..acked).map(ReplicaIndex).collect(),
                failed: missing.clone().map(ReplicaIndex).collect(),
                obstacles: missing.map(ReplicaIndex).zip(obstacles.iter().copied()).collect(),
                replayed: false,
            };
            let said = Problem::refused(&refusal, &spelled, &handle).body()["error"].clone();
            let said = said.as_str().unwrap().to_owned();
            let end = "; deliveries that are still pending continue in the background";
            said.strip_suffix(end).unwrap_or_else(|| panic!("{said}")).to_owned()
        };
        use Obstacle::{BreakerOpen, Paused};
        assert_eq!(said(0, 1, &[]), "the replica has not acknowledged the write");
        assert_eq!(
            said(0, 1, &[Paused]),
            "the replica has not acknowledged the write: http://a is paused"
        );
        assert_eq!(
            said(0, 2, &[]),
            "none of the 2 replicas has acknowledged the write, a majority is 2"
        );
        assert_eq!(
            said(1, 2, &[BreakerOpen]),
            "only 1 of the 2 replicas acknowledged the write, a majority is 2: http://b is failing (its breaker is open)"
        );
        assert_eq!(
            said(0, 4, &[Paused, BreakerOpen]),
            "none of the 4 replicas has acknowledged the write, a majority is 3: http://a is paused and http://b is failing (its breaker is open)"
        );
        assert_eq!(
            said(1, 4, &[Paused, Paused, Paused]),
            "only 1 of the 4 replicas acknowledged the write, a majority is 3: http://b is paused, http://c is paused and http://d is paused"
        );
    }

    #[test]
    fn retry_after_is_in_whole_seconds_rounded_up_and_never_zero() {
        assert_eq!(whole_seconds(Duration::ZERO), 1);
        assert_eq!(whole_seconds(Duration::from_millis(200)), 1);
        assert_eq!(whole_seconds(Duration::from_secs(2)), 2);
        assert_eq!(whole_seconds(Duration::from_millis(2_001)), 3);
    }

    #[test]
    fn an_admin_error_has_a_status_and_reveals_no_internals() {
        let (handle, _requests, _health) = Handle::for_tests();
        for (error, status, sentence) in [
            (AdminError::Stopped, 503, "the replicator is shutting down and accepts no new writes"),
            (AdminError::Unconfirmed, 503, &AdminError::Unconfirmed.to_string()),
            (AdminError::Unreadable("/secret/path".to_owned()), 500, "internal error"),
            (AdminError::TooMany("8 run".to_owned()), 503, "8 run"),
            (AdminError::Invalid("no".to_owned()), 400, "no"),
            (AdminError::Conflict("taken".to_owned()), 409, "taken"),
        ] {
            let problem = Problem::not_operated(error, &handle);
            let said = problem.body()["error"].as_str().unwrap().to_owned();
            let (begin, id) = said.split_once(" (id ").unwrap_or((&said, "0"));
            assert_eq!(begin, sentence);
            assert!(id.trim_end_matches("), see the log").chars().all(|c| c.is_ascii_hexdigit()));
            let response = problem.into_response();
            assert_eq!(response.status().as_u16(), status, "{sentence}");
            assert_eq!(response.headers().contains_key(RETRY_AFTER), status == 503, "{sentence}");
        }
    }
}
