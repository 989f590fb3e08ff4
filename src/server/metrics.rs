//! `GET /metrics` and `GET /metrics/users`: the figures, in the form that is asked for.

use std::sync::{Arc, PoisonError};

use axum::extract::State;
use axum::http::header::{ACCEPT, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::Inbound;
use super::errors::{Problem, ok};
use crate::api;
use crate::dispatcher::Refusal;
use crate::metrics::{ProcessFigures, to_json, to_prometheus};

/// What Prometheus wants to hear; one that asks for OpenMetrics reads this as well.
const PROMETHEUS_TEXT: HeaderValue =
    HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// The figures of this moment: JSON, or Prometheus text where `Accept` asks for it.
#[utoipa::path(
    get, path = "/metrics", tag = "service",
    operation_id = "metrics",
    summary = "Every figure",
    responses(
        (status = 200, description = "JSON; Prometheus text where `Accept` prefers it.",
            content((Object = "application/json"), (String = "text/plain"))),
        (status = 500, body = api::Error, description = "Something failed inside."),
        (status = 503, body = api::Error, description = "The daemon has stopped."),
    ),
)]
pub(super) async fn figures(
    State(inbound): State<Arc<Inbound>>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Some(mut snapshot) = inbound.handle.snapshot().await else {
        let gone = Refusal::Draining;
        return Err(Problem::refused(&gone, &[], &inbound.handle));
    };
    if !wants_text(&headers) {
        return Ok(ok(&to_json(&snapshot)));
    }
    snapshot.process = ProcessFigures::read();
    let text = to_prometheus(&snapshot).map_err(|error| Problem::internal(&error))?;
    Ok(([(CONTENT_TYPE, PROMETHEUS_TEXT)], text).into_response())
}

/// Requests and bytes of the busiest users.
#[utoipa::path(
    get, path = "/metrics/users", tag = "service",
    operation_id = "users",
    summary = "Requests and bytes of the busiest users",
    responses((status = 200, body = Object, description = "Of up to 1000 of them.")),
)]
pub(super) async fn users(State(inbound): State<Arc<Inbound>>) -> Response {
    let users = inbound.users.lock().unwrap_or_else(PoisonError::into_inner);
    let busiest = users.busiest();
    drop(users);
    ok(&json!({ "users": busiest }))
}

/// Whether `Accept` prefers Prometheus text over JSON: by quality, and of two alike the one that
/// is named more exactly. All else is JSON: no header, `*/*`, what a browser sends.
fn wants_text(headers: &HeaderMap) -> bool {
    let lines = headers.get_all(ACCEPT).iter();
    let lines = lines.filter_map(|line| line.to_str().ok());
    let ranges: Vec<_> = lines.flat_map(|line| line.split(',')).filter_map(range).collect();
    let text = wish(&ranges, "text", "plain");
    let open = wish(&ranges, "application", "openmetrics-text");
    text.max(open) > wish(&ranges, "application", "json")
}

/// One entry of `Accept` as its media range and its quality in thousandths.
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

/// How much a client wants a media type: the quality that the most exact range gives it, and how
/// exact that range is. Nothing where it does not want it at all.
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
    fn json_is_what_anyone_gets_who_does_not_ask_for_text() {
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
    fn text_is_for_those_who_name_it() {
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
    fn quality_decides_before_the_name_does() {
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
