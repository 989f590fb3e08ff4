//! `GET /v1/events`: what happens, as it happens, as server-sent events.
//!
//! A stream costs no more than its share: there are so many at once, each gathers at most one
//! chunk, and a reader that does not read is cut by its connection's patience while the daemon
//! goes on and counts what it missed. It ends when its reader closes its side, so that another has
//! its place, and when the server stops, so that it holds up no drain.

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
use super::validate::invalid;
use super::{Failures, Inbound, Problem};
use crate::dispatcher::{Event, EventKinds, Events};
use crate::server::connections::Peer;

/// A chunk that has come to so many bytes is sent, whatever else is there.
const CHUNK_BYTES: usize = 64 * 1024;

/// Events are taken in steps of so many.
const STEP: usize = 16;

/// Chunks follow each other no faster, unless they are full: what happens meanwhile is gathered.
/// A thousand events a second are then twenty writes and not a thousand.
const PACE: Duration = Duration::from_millis(50);

/// When there was nothing for so long a comment is sent, so that proxies and the two ends see that
/// the other is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What a stream begins with: how long a reader waits before it comes again, in milliseconds.
const BEGINNING: &str = "retry: 1000\n\n";

/// A proxy that gathers answers would hold events back.
const UNBUFFERED: HeaderName = HeaderName::from_static("x-accel-buffering");

/// The header in which a reader that comes again says what it had last.
const LAST_EVENT_ID: &str = "Last-Event-ID";

/// What can be asked for.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Task,
    Replica,
    Figures,
}

const KINDS: [(&str, Kind); 3] =
    [("task", Kind::Task), ("replica", Kind::Replica), ("figures", Kind::Figures)];

#[utoipa::path(
    get, path = "/v1/events", tag = "events",
    operation_id = "events",
    summary = "What happens, as it happens",
    description = "Server-sent events: `event: task` with a TaskEvent, `event: replica` with a \
        ReplicaEvent, `event: figures` with Figures every second, and `event: lagged` with \
        `{\"missed\":n}` where the reader was too slow, or asked to resume from what is not kept \
        any more. Each has an `id`. At most 64 streams at once; one ends when its reader closes its \
        side.",
    params(
        ("types" = Option<String>, Query, description = "Which: `task`, `replica` and `figures`, \
            with commas between them; all where nothing is said."),
        ("after" = Option<u64>, Query, description = "Begin behind the event with this id."),
        ("Last-Event-ID" = Option<u64>, Header, description = "The same, and goes before `after`: \
            browsers send it when they come again."),
    ),
    responses(
        (status = 200, body = String, content_type = "text/event-stream", description = "The \
            stream, which ends when the daemon stops."),
        Failures,
    ),
)]
pub(super) async fn events(
    State(inbound): State<Arc<Inbound>>,
    Extension(peer): Extension<Arc<Peer>>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let mut asked = Parameters::read(query.as_deref(), &["types", "after"])?;
    let kinds = asked.words("types", &KINDS)?;
    let after = asked.number("after")?;
    let after = last_event_id(&headers)?.or(after);
    let stay = inbound.stream()?;
    let wanted = |kind| kinds.as_ref().is_none_or(|kinds| kinds.contains(&kind));
    let kinds = EventKinds {
        task: wanted(Kind::Task),
        replica: wanted(Kind::Replica),
        figures: wanted(Kind::Figures),
    };
    let feed = Feed {
        events: inbound.handle.events(after, kinds),
        closing: inbound.closing.clone(),
        paced: None,
        begun: false,
        ended: false,
        _stay: stay,
    };
    let chunks = stream::unfold(feed, |mut feed| async move {
        let chunk = feed.chunk().await?;
        Some((Ok::<_, Infallible>(chunk), feed))
    });
    // Nothing may happen for long that would show that nobody reads.
    let chunks = chunks.take_until(async move { peer.left().await });
    let head =
        [(CONTENT_TYPE, "text/event-stream"), (CACHE_CONTROL, "no-store"), (UNBUFFERED, "no")];
    Ok((head, Body::from_stream(chunks)).into_response())
}

/// What a reader had last; some send an empty one, which says nothing.
fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Problem> {
    let Some(value) = headers.get(LAST_EVENT_ID).filter(|value| !value.is_empty()) else {
        return Ok(None);
    };
    let id = value.to_str().ok().and_then(|text| text.parse().ok());
    let wrong = || invalid(format!(r#"header "{LAST_EVENT_ID}" must be the id of an event"#));
    id.map(Some).ok_or_else(wrong)
}

/// One stream, and its share.
struct Feed {
    events: Events,
    closing: watch::Receiver<bool>,
    /// Since the last chunk, while the next one is still to gather.
    paced: Option<Pin<Box<Sleep>>>,
    begun: bool,
    ended: bool,
    _stay: Stay,
}

impl Feed {
    /// The next chunk; `None` at the end.
    async fn chunk(&mut self) -> Option<Bytes> {
        // At once, so that a reader knows that it is connected though nothing happens.
        if !std::mem::replace(&mut self.begun, true) {
            return Some(Bytes::from_static(BEGINNING.as_bytes()));
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
            events = self.events.next(STEP) => match events[..] {
                [] => return None,
                _ => put(&mut text, &events),
            },
            () = tokio::time::sleep(KEEP_ALIVE) => text.push_str(":\n\n"),
        }
        while text.len() < CHUNK_BYTES {
            match self.events.next(STEP).now_or_never() {
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

fn put(text: &mut String, events: &[Event]) {
    for Event { id, kind, data } in events {
        // Writing into a text cannot fail, and JSON has no line breaks.
        let _ = write!(text, "id: {id}\nevent: {}\ndata: {data}\n\n", kind.as_str());
    }
}
