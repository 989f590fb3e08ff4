//! `POST /replicate`: one write, from its first byte to its answer.

use std::sync::{Arc, PoisonError};

use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::Inbound;
use super::errors::{Problem, accepted, as_spelled, ok};
use super::validate::{self, Write};
use crate::daemon::{Health, Refusal};
use crate::metrics::Reason;
use crate::task::{Consistency, NewTask, TaskId, Trace};
use crate::traces::{self, Span};

/// What a client hears of an accepted write.
#[derive(Serialize)]
struct Success<'a> {
    success: bool,
    node_id: &'a str,
    task_id: String,
    /// A strong write's alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    acked_nodes: Option<Vec<String>>,
}

/// Reads the write, checks it, hands it to the daemon and says how it went.
///
/// # Cancel safety
///
/// When the client hangs up before its request is complete, nothing has happened. After that the
/// write belongs to the daemon, answer or not.
pub(super) async fn replicate(State(inbound): State<Arc<Inbound>>, request: Request) -> Response {
    let came = trace_of(request.headers());
    let span = inbound.settings.tracer.accept(came.as_ref());
    // The deliveries belong to the span, or, without one, to what the request came with.
    let trace = span.as_ref().map(Span::trace).or(came);
    let (answer, task) = match write(&inbound, request, trace).await {
        Ok((task, response)) => (response, Some(task)),
        Err(problem) => {
            let task = problem.task();
            (problem.into_response(), task)
        }
    };
    let status = answer.status().as_u16();
    inbound.handle.counts().answered(status);
    if let Some(span) = span {
        span.answered(status, task);
    }
    answer
}

/// The trace that a request belongs to, as far as it keeps the rules.
fn trace_of(headers: &HeaderMap) -> Option<Trace> {
    let mut parents = headers.get_all("traceparent").iter();
    let only = parents.next().filter(|_| parents.next().is_none())?;
    let parent = traces::parent(only.to_str().ok()?)?;
    let lines = headers.get_all("tracestate").iter();
    let state = traces::state(lines.filter_map(|line| line.to_str().ok()));
    Some(Trace { parent, state })
}

async fn write(
    inbound: &Inbound,
    request: Request,
    trace: Option<Trace>,
) -> Result<(TaskId, Response), Problem> {
    let Inbound { handle, settings, memory, .. } = inbound;
    let (head, body) = request.into_parts();
    // Before the body: a client should not send megabytes to hear that.
    if let Some(refusal) = refusal(&handle.health()) {
        memory.discard(&head.headers, body);
        inbound.count_refusal(&refusal);
        return Err(Problem::refused(&refusal, &[], handle));
    }
    let read = memory.read(&head.headers, body, handle.retry_after()).await;
    let (body, _share) = read.inspect_err(|problem| {
        if matches!(problem, Problem::Unavailable { .. }) {
            handle.counts().refused(Reason::Memory);
        }
    })?;
    let Write { mut task, spelled } = validate::write(&body, settings)?;
    task.trace = trace;
    drop(body);
    inbound.count_user(&task);
    let consistency = task.consistency;
    let taken = handle.replicate(task, None).await;
    let taken = taken.map_err(|refusal| {
        inbound.count_refusal(&refusal);
        Problem::refused(&refusal, &spelled, handle)
    })?;
    let success = |acked_nodes| Success {
        success: true,
        node_id: &settings.node_id,
        task_id: taken.id.to_string(),
        acked_nodes,
    };
    let response = match consistency {
        Consistency::Eventual => accepted(&success(None)),
        Consistency::Strong => ok(&success(Some(as_spelled(&spelled, &taken.acked)))),
    };
    Ok((taken.id, response))
}

fn refusal(health: &Health) -> Option<Refusal> {
    match health {
        Health::Serving => None,
        Health::Draining => Some(Refusal::Draining),
        Health::StoreFailed(_) => Some(Refusal::StoreFailed),
    }
}

impl Inbound {
    /// The limits are counted by the daemon, which knows them.
    fn count_refusal(&self, refusal: &Refusal) {
        match refusal {
            Refusal::Draining => self.handle.counts().refused(Reason::Draining),
            Refusal::StoreFailed => self.handle.counts().refused(Reason::StoreFailed),
            Refusal::Full(_)
            | Refusal::NoMajority { .. }
            | Refusal::Invalid(_)
            | Refusal::Mismatch => {}
        }
    }

    fn count_user(&self, task: &NewTask) {
        let Some(user) = &task.user_id else { return };
        let bytes = task.key.len().saturating_add(task.value.len());
        let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
        // Counters are right enough whatever panicked while it held them.
        let mut users = self.users.lock().unwrap_or_else(PoisonError::into_inner);
        users.record(user, bytes);
    }
}
