//! `GET /metrics` and `GET /metrics/users`, with content negotiation. Scrapes at the same time share
//! one rendering.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::ServerState;
use super::access::Caller;
use super::errors::{Problem, json_text, ok};
use crate::api;
use crate::dispatcher::Refusal;
use crate::metrics::{ProcessFigures, Snapshot, to_json, to_prometheus};

/// A scraper that asks for OpenMetrics accepts this format as well.
const PROMETHEUS_TEXT: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

#[utoipa::path(
    get, path = "/metrics", tag = "service",
    operation_id = "metrics",
    summary = "All metrics",
    responses(
        (status = 200, description = "JSON, or Prometheus text if `Accept` prefers it.",
            content((Object = "application/json"), (String = "text/plain"))),
        (status = 500, body = api::Error, description = "Internal error."),
        (status = 503, body = api::Error, description = "The daemon has stopped."),
    ),
)]
pub(super) async fn figures(
    State(server): State<Arc<ServerState>>,
    caller: Caller,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let answers = &server.answers;
    if wants_text(&headers) {
        let text = answers.text_figures.get(async {
            let mut snapshot = server.snapshot().await?;
            snapshot.process = ProcessFigures::read();
            let text = to_prometheus(&snapshot).map_err(|error| Problem::internal(&error))?;
            server.charge(&caller.client(), text.into())
        });
        return Ok(([(CONTENT_TYPE, PROMETHEUS_TEXT)], text.await?).into_response());
    }
    let figures = answers.json_figures.get(async {
        let snapshot = server.snapshot().await?;
        let figures = serde_json::to_vec(&to_json(&snapshot));
        let figures = figures.map_err(|error| Problem::internal(&error))?;
        server.charge(&caller.client(), figures.into())
    });
    Ok(json_text(figures.await?))
}

impl ServerState {
    async fn snapshot(&self) -> Result<Box<Snapshot>, Problem> {
        let snapshot = self.handle.snapshot().await;
        snapshot.ok_or_else(|| Problem::refused(&Refusal::Draining, &[], &self.handle))
    }
}

#[utoipa::path(
    get, path = "/metrics/users", tag = "service",
    operation_id = "users",
    summary = "Requests and bytes of the busiest users",
    responses((status = 200, body = Object, description = "Up to 1000 users.")),
)]
pub(super) async fn users(State(server): State<Arc<ServerState>>) -> Response {
    let users = server.users.lock();
    let busiest = users.busiest();
    drop(users);
    ok(&json!({ "users": busiest }))
}

/// Whether `Accept` prefers Prometheus text over JSON: by quality, then by the more specific range.
/// The default (no header, `*/*`, a browser) is JSON.
fn wants_text(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(ACCEPT).iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    let ranges: Vec<_> = lines.flat_map(|line| line.split(',')).filter_map(range).collect();
    let text = wish(&ranges, "text", "plain");
    let open = wish(&ranges, "application", "openmetrics-text");
    text.max(open) > wish(&ranges, "application", "json")
}

/// The media range and quality, in thousandths, of an entry of `Accept`.
fn range(entry: &str) -> Option<(&str, u16)> {
    let mut parts = entry.split(';').map(str::trim);
    let range = parts.next()?;
    let quality = parts.find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.eq_ignore_ascii_case("q").then_some(value)
    });
    Some((range, quality.map_or(Some(1000), thousandths)?))
}

fn thousandths(quality: &str) -> Option<u16> {
    let (whole, fraction) = quality.split_once('.').unwrap_or((quality, ""));
    let digits = format!("{whole}{fraction:0<3}");
    digits.parse().ok().filter(|quality| *quality <= 1000)
}

/// Quality of a media type by its most specific range, and the specificity of that range. `(0, 0)`
/// if it is not acceptable.
fn wish(ranges: &[(&str, u16)], main: &str, sub: &str) -> (u16, u8) {
    let exactness = |range: &str| {
        let (range_main, range_sub) = range.split_once('/')?;
        let is = |range: &str, name: &str| range.eq_ignore_ascii_case(name);
        match (range_main, range_sub) {
            ("*", "*") => Some(1),
            (m, "*") if is(m, main) => Some(2),
            (m, s) if is(m, main) && is(s, sub) => Some(3),
            _ => None,
        }
    };
    let matching = ranges.iter().filter_map(|(range, quality)| Some((exactness(range)?, *quality)));
    match matching.max() {
        None | Some((_, 0)) => (0, 0),
        Some((exactness, quality)) => (quality, exactness),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn text(wanted: bool, accept: &str) {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_str(accept).unwrap());
        assert_eq!(wants_text(&headers), wanted, "{accept}");
    }

    #[test]
    fn the_default_format_is_json() {
        assert!(!wants_text(&HeaderMap::new()));
        text(false, "");
        text(false, "*/*");
        text(false, "application/json");
        text(false, "application/*");
        text(false, "image/png");
        text(false, "nonsense, ;q=1, text/plain;q=7");
        text(false, "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8");
        text(false, "application/json, text/plain, */*");
    }

    #[test]
    fn text_is_sent_if_it_is_requested() {
        text(true, "text/plain");
        text(true, "TEXT/Plain; version=0.0.4");
        text(true, "text/*");
        text(true, "application/openmetrics-text");
        text(true, "text/plain, */*");
        text(
            true,
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1",
        );
    }

    #[test]
    fn quality_takes_precedence_over_specificity() {
        text(false, "text/plain;q=0.5, application/json");
        text(true, "text/plain, application/json; Q=0.9");
        text(false, "text/plain;q=0");
        text(false, "text/plain;q=0, */*;q=0.1");
        text(true, "text/plain;q=0.2, application/json;q=0.125");
    }

    #[test]
    fn all_lines_of_the_header_count() {
        let mut headers = HeaderMap::new();
        headers.append(ACCEPT, HeaderValue::from_static("application/json;q=0.1"));
        headers.append(ACCEPT, HeaderValue::from_static("text/plain"));
        assert!(wants_text(&headers));
    }
}
