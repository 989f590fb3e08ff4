//! `POST /replicate`: one write, from its body to its response.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};

use super::ServerState;
use super::access::Caller;
use super::errors::{Problem, as_spelled, taken};
use super::idempotency;
use super::validate::{self, ValidWrite};
use crate::api;
use crate::dispatcher::{AcceptedWrite, Refusal};
use crate::metrics::Reason;
use crate::task::{Consistency, NewTask, TaskId, Trace};
use crate::traces::{self, Span};

/// Cancel safe: if the client disconnects before its request is complete, nothing happens. After
/// that the daemon processes the write regardless of the client.
#[utoipa::path(
    post, path = "/replicate", tag = "writes",
    operation_id = "replicate",
    summary = "Replicate a write",
    description = "An eventual write returns 202 as soon as it is durable here, a strong one 200 \
        when a majority of its replicas has acknowledged.",
    params(("Idempotency-Key" = Option<String>, Header, min_length = 1, max_length = 255,
        description = "A repeated key with the same body refers to the same task: the first \
            response is repeated, with `Idempotency-Replayed: true`.")),
    request_body(content = api::WriteRequest, content_type = "application/json"),
    responses(
        (status = 200, body = api::WriteAccepted, description = "A majority has acknowledged."),
        (status = 202, body = api::WriteAccepted, description = "The write is durable."),
        (status = 400, body = api::Error, description = "A field is not valid."),
        (status = 403, body = api::Error, description = "Writing to a replica is not allowed."),
        (status = 408, body = api::Error, description = "The body did not arrive in time."),
        (status = 413, body = api::Error, description = "The body or the value is too large."),
        (status = 415, body = api::Error, description = "The body is compressed."),
        (status = 422, body = api::Error, description = "The idempotency key was used with another body."),
        (status = 503, body = inline(Unavailable), description = "A limit is reached, the daemon \
            stops, or a majority did not acknowledge. In the last case the body has `success` and the \
            write stays accepted."),
    ),
)]
pub(super) async fn replicate(
    State(server): State<Arc<ServerState>>,
    caller: Caller,
    request: Request,
) -> Response {
    let parent = trace_of(request.headers());
    let span = server.settings.tracer.accept(parent.as_ref());
    // Deliveries join the span or, if it is not sampled, the trace of the request.
    let trace = span.as_ref().map(Span::trace).or(parent);
    let (answer, task) = match write(&server, &caller, request, trace).await {
        Ok((task, response)) => (response, Some(task)),
        Err(problem) => {
            let task = problem.task();
            (problem.into_response(), task)
        }
    };
    let status = answer.status().as_u16();
    server.handle.counts().answered(status);
    if let Some(span) = span {
        span.answered(status, task);
    }
    answer
}

/// The trace context of a request. A malformed one is ignored.
pub(super) fn trace_of(headers: &HeaderMap) -> Option<Trace> {
    let mut parents = headers.get_all("traceparent").iter();
    let only = parents.next().filter(|_| parents.next().is_none())?;
    let parent = traces::parent(only.to_str().ok()?)?;
    let lines = headers.get_all("tracestate").iter();
    let state = traces::state(lines.filter_map(|line| line.to_str().ok()));
    Some(Trace { parent, state })
}

async fn write(
    server: &ServerState,
    caller: &Caller,
    request: Request,
    trace: Option<Trace>,
) -> Result<(TaskId, Response), Problem> {
    let ServerState { handle, settings, memory, addresses, .. } = server;
    let (head, body) = request.into_parts();
    // Checked before the body, so that a client does not send megabytes in vain.
    let key = match server.serving().and_then(|()| idempotency::header(&head.headers)) {
        Ok(key) => key,
        Err(problem) => {
            memory.discard(&head.headers, body);
            return Err(problem);
        }
    };
    let read = memory.read(&caller.client(), &head.headers, body, handle.retry_after()).await;
    let (body, _share) = read.inspect_err(|problem| server.count_memory_refusal(problem))?;
    let ValidWrite { mut task, spelled } = validate::write(&body, settings, addresses)?;
    caller.may_name(&task.replicas)?;
    let idempotency = key.map(|key| idempotency::of(caller, key, &body));
    (task.trace, task.client) = (trace, caller.client());
    drop(body);
    server.count_user(&task);
    let consistency = task.consistency;
    let accepted = handle.replicate(task, idempotency).await;
    let accepted = accepted.map_err(|refusal| server.refused(&refusal, &spelled))?;
    let body = server.success(&accepted, consistency, &spelled);
    Ok((accepted.id, taken(&body, accepted.replayed)))
}

#[derive(serde::Serialize, utoipa::ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "for the API's description alone")]
enum Unavailable {
    Refused(api::Error),
    NoMajority(api::NoMajority),
}

impl ServerState {
    pub(super) fn serving(&self) -> Result<(), Problem> {
        match self.handle.health().refusal() {
            None => Ok(()),
            Some(refusal) => Err(self.refused(&refusal, &[])),
        }
    }

    /// Counts a refusal and turns it into a response.
    pub(super) fn refused(&self, refusal: &Refusal, spelled: &[Arc<str>]) -> Problem {
        match refusal {
            Refusal::Stalled | Refusal::Unconfirmed => {
                self.handle.counts().refused(Reason::StoreStalled);
            }
            Refusal::Draining => self.handle.counts().refused(Reason::Draining),
            Refusal::StoreFailed => self.handle.counts().refused(Reason::StoreFailed),
            // The dispatcher counts the limits, since only it knows which one was hit.
            Refusal::Full(_)
            | Refusal::NoMajority { .. }
            | Refusal::NoOwner
            | Refusal::OwnerChanged { .. }
            | Refusal::Invalid(_)
            | Refusal::Mismatch => {}
        }
        Problem::refused(refusal, spelled, &self.handle)
    }

    pub(super) fn count_memory_refusal(&self, problem: &Problem) {
        if matches!(problem, Problem::Unavailable { .. }) {
            self.handle.counts().refused(Reason::Memory);
        }
    }

    pub(super) fn success(
        &self,
        accepted: &AcceptedWrite,
        consistency: Consistency,
        spelled: &[Arc<str>],
    ) -> api::WriteAccepted {
        api::WriteAccepted {
            success: true,
            node_id: self.settings.node_id.clone(),
            task_id: accepted.id.to_string(),
            acked_nodes: match consistency {
                Consistency::Eventual => None,
                Consistency::Strong => Some(as_spelled(spelled, &accepted.acked)),
            },
        }
    }

    pub(super) fn count_user(&self, task: &NewTask) {
        let Some(user) = &task.user_id else { return };
        let bytes = task.key.len().saturating_add(task.value.len());
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        self.users.lock().record(user, bytes);
    }
}
