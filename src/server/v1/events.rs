//! `GET /v1/events`: live events as server-sent events.
//!
//! The cost of a stream is bounded: their number is limited, each buffers at most one chunk, and a
//! stalled reader is cut by the connection while the daemon counts the events it missed. A stream
//! ends when its reader closes its side, to free its slot, when its token is revoked, and when the
//! server stops, so that it does not delay a drain.

use std::convert::Infallible;
use std::fmt::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName};
use axum::response::{IntoResponse, Response};
use futures_util::{FutureExt, StreamExt, stream};
use tokio::sync::watch;
use tokio::time::Sleep;

use super::extract::Parameters;
use super::long_polls::Stay;
use super::{CommonErrors, Problem, ServerState};
use crate::dispatcher::{EventKinds, EventSubscription, StreamEvent};
use crate::server::access::Caller;
use crate::server::connections::ClientPeer;
use crate::server::errors::invalid;

/// A chunk of this size is full.
const CHUNK_BYTES: usize = 64 * 1024;

const EVENTS_PER_STEP: usize = 16;

/// Minimum time between chunks that are not full: 1000 events a second become 20 writes.
const PACE: Duration = Duration::from_millis(50);

/// Silence after which a comment shows proxies and both ends that the connection is alive.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// First chunk: the reconnection delay in milliseconds.
const PREAMBLE: &str = "retry: 1000\n\n";

/// Without it, a buffering proxy would hold events back.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

const LAST_EVENT_ID: &str = "Last-Event-ID";

#[derive(Clone, Copy, PartialEq)]
enum EventType {
    Task,
    Replica,
    Figures,
}

const KINDS: [(&str, EventType); 3] =
    [("task", EventType::Task), ("replica", EventType::Replica), ("figures", EventType::Figures)];

#[utoipa::path(
    get, path = "/v1/events", tag = "events",
    operation_id = "events",
    summary = "Live events",
    description = "Server-sent events: `event: task` with a TaskEvent, `event: replica` with a \
        ReplicaEvent, `event: figures` with Figures every second, and `event: lagged` with \
        `{\"missed\":n}` if the reader was too slow or resumes from an event that is no longer \
        kept. Each event has an `id`. In a cluster they are those of the instance that is asked. At most 64 streams at once. A stream ends when its reader \
        closes its side, and when its token is removed or changed.",
    params(
        ("types" = Option<String>, Query, description = "Comma-separated list of `task`, \
            `replica` and `figures`; default all."),
        ("after" = Option<u64>, Query, description = "Start after the event with this id."),
        ("Last-Event-ID" = Option<u64>, Header, description = "Like `after`, which it overrides. \
            Browsers send it when they reconnect."),
    ),
    responses(
        (status = 200, body = String, content_type = "text/event-stream", description = "The \
            stream, which ends when the daemon stops."),
        CommonErrors,
    ),
)]
pub(super) async fn events(
    State(server): State<Arc<ServerState>>,
    Extension(peer): Extension<Arc<ClientPeer>>,
    caller: Caller,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut parameters = Parameters::read(query.as_deref(), &["types", "after"])?;
    let kinds = parameters.words("types", &KINDS)?;
    let after = parameters.number("after")?;
    let after = last_event_id(&headers)?.or(after);
    let stay = server.stream(&caller)?;
    let wanted = |kind| kinds.as_ref().is_none_or(|kinds| kinds.contains(&kind));
    let kinds = EventKinds {
        task: wanted(EventType::Task),
        replica: wanted(EventType::Replica),
        figures: wanted(EventType::Figures),
    };
    let feed = EventFeed {
        events: server.handle.events(after, kinds),
        closing: server.closing.clone(),
        paced: None,
        begun: false,
        ended: false,
        _stay: stay,
    };
    let chunks = stream::unfold(feed, |mut feed| async move {
        let chunk = feed.next_chunk().await?;
        Some((Ok::<_, Infallible>(chunk), feed))
    });
    // Without events to send, a disconnected reader would go unnoticed for long.
    let chunks = chunks.take_until(async move {
        tokio::select! {
            () = peer.left() => {}
            () = caller.revoked(&server.settings.access) => {}
        }
    });
    let head =
        [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store"), (UNBUFFERED, "no")];
    Ok((head, Body::from_stream(chunks)).into_response())
}

/// The `Last-Event-ID` header. Some clients send an empty one, which counts as missing.
fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let id = value.to_str().ok().and_then(|text| text.parse().ok());
    let wrong = || invalid(format!(r#"header "{LAST_EVENT_ID}" must be the id of an event"#));
    id.map(Some).ok_or_else(wrong)
}

struct EventFeed {
    events: EventSubscription,
    closing: watch::Receiver<bool>,
    /// Set while the next chunk must not be sent yet.
    paced: Option<Pin<Box<Sleep>>>,
    begun: bool,
    ended: bool,
    _stay: Stay,
}

impl EventFeed {
    async fn next_chunk(&mut self) -> Option<Bytes> {
        // Sent at once, so that a reader knows that it is connected.
        if !std::mem::replace(&mut self.begun, true) {
            return Some(Bytes::from_static(PREAMBLE.as_bytes()));
        }
        if self.ended {
            return None;
        }
        if let Some(paced) = &mut self.paced {
            tokio::select! {
                _ = self.closing.wait_for(|closing| *closing) => return None,
                () = paced => self.paced = None,
            }
        }
        let mut text = String::new();
        tokio::select! {
            _ = self.closing.wait_for(|closing| *closing) => return None,
            events = self.events.next(EVENTS_PER_STEP) => match events[..] {
                [] => return None,
                _ => put(&mut text, &events),
            },
            () = tokio::time::sleep(KEEP_ALIVE) => text.push_str(":\n\n"),
        }
        while text.len() < CHUNK_BYTES {
            match self.events.next(EVENTS_PER_STEP).now_or_never() {
                Some(events) if events.is_empty() => {
                    self.ended = true;
                    break;
                }
                Some(events) => put(&mut text, &events),
                None => {
                    self.paced = Some(Box::pin(tokio::time::sleep(PACE)));
                    break;
                }
            }
        }
        Some(text.into())
    }
}

fn put(text: &mut String, events: &[StreamEvent]) {
    for StreamEvent { id, kind, data } in events {
        // Writing to a String cannot fail. JSON contains no line breaks.
        let _ = write!(text, "id: {id}\nevent: {}\ndata: {data}\n\n", kind.as_str());
    }
}
