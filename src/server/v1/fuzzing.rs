//! Fuzz targets: any bytes as a batch, and as the query and body of an operator's request.

#![allow(clippy::panic, reason = "a target fails by panicking")]

use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use serde_json::Value;

use super::Problem;
use super::batch::{MAX_WRITES, apart};
use super::bodies::{NewBarrier, Nothing, Rename, Selected, Selection, object};
use super::extract::{CAUSES, Parameters, STATES};
use super::validate::batched;
use crate::dispatcher::LetterFilter;
use crate::server::fuzzing::{check_accepted, check_rejected, settings};
use crate::task::Node;

/// A batch is split into its writes, in order; each is accepted or rejected as it would be alone. An
/// exclamation mark in front sets the content type of lines.
pub(crate) fn batch(data: &[u8]) {
    let (data, as_lines) = match data.strip_prefix(b"!") {
        Some(rest) => (rest, true),
        None => (data, false),
    };
    let mut headers = HeaderMap::new();
    if as_lines {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    }
    let writes = match apart(&headers, data) {
        Ok(writes) => writes,
        Err(problem) => return check_sentence(&problem),
    };
    assert!((1..=MAX_WRITES).contains(&writes.len()), "{} writes", writes.len());
    let array = !as_lines && data.trim_ascii_start().starts_with(b"[");
    if array {
        // The server skips parts of the text without the checks of this parser.
        if let Ok(entries) = serde_json::from_slice::<Vec<Value>>(data) {
            let each = writes.iter().map(|write| serde_json::from_slice::<Value>(write).ok());
            assert!(each.eq(entries.into_iter().map(Some)));
        }
    } else {
        let lines = data.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        assert!(lines.filter(|line| !line.is_empty()).eq(writes.iter().copied()));
    }
    let settings = settings();
    for write in writes.iter().take(64) {
        match batched(write, &settings) {
            Ok((read, key)) => {
                check_accepted(write, &read);
                let plain = |key: &str| {
                    (1..=255).contains(&key.len())
                        && key.bytes().all(|byte| byte.is_ascii_graphic())
                };
                assert!(key.as_deref().is_none_or(plain), "{key:?}");
            }
            Err(problem) => check_rejected(write, &problem),
        }
    }
}

/// A request of an operator is parsed exactly, or rejected with one sentence. The first line is the
/// query, the rest the body.
pub(crate) fn operator(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (query, body) = data.split_at(end);
    if let Ok(query) = std::str::from_utf8(query) {
        check_query(query);
    }
    check_body(body);
}

fn check_query(query: &str) {
    const KNOWN: [&str; 7] = ["state", "replica", "key", "limit", "cursor", "types", "wait"];
    let most = Duration::from_secs(60);
    let read = |parameters: &mut Parameters| {
        let state = parameters.words("state", &STATES)?;
        assert!(state.is_none_or(|states| !states.is_empty()));
        parameters.word("types", &CAUSES)?;
        let limit = parameters.limit()?;
        assert!((1..=1000).contains(&limit), "{limit}");
        let wait = parameters.duration("wait", most)?;
        assert!(wait.is_none_or(|wait| wait <= most), "{wait:?}");
        parameters.cursor::<u64>()?;
        parameters.node("replica")
    };
    match Parameters::read(Some(query), &KNOWN) {
        Ok(mut parameters) => match read(&mut parameters) {
            Ok(node) => check_normal(node.as_ref()),
            Err(problem) => check_sentence(&problem),
        },
        Err(problem) => check_sentence(&problem),
    }
}

fn check_body(body: &[u8]) {
    if let Err(problem) = object::<Nothing>(body) {
        check_sentence(&problem);
    }
    match object::<Rename<'_>>(body).and_then(Rename::checked) {
        Ok(node) => check_normal(Some(&node)),
        Err(problem) => check_sentence(&problem),
    }
    match object::<NewBarrier<'_>>(body).and_then(NewBarrier::checked) {
        Ok(nodes) => {
            for (at, node) in nodes.iter().enumerate() {
                check_normal(Some(node));
                assert!(
                    nodes.iter().take(at).all(|before| before != node),
                    "{node} is there twice"
                );
            }
        }
        Err(problem) => check_sentence(&problem),
    }
    let discarded = object::<Selection<'_>>(body).and_then(Selection::discarded);
    match object::<Selection<'_>>(body).and_then(Selection::redriven) {
        Ok(selected) => {
            check_selection(body, &selected);
            // Discarding selects the same letters, except that it takes no rate.
            match discarded {
                Ok(same) => assert_eq!(same, selected),
                Err(_) => assert!(selected.rate.is_some(), "{selected:?}"),
            }
        }
        Err(problem) => {
            check_sentence(&problem);
            assert!(discarded.is_err(), "{problem:?}, and {discarded:?}");
        }
    }
}

/// Only a body with `"all":true` selects all dead letters.
fn check_selection(body: &[u8], selected: &Selected) {
    let json = serde_json::from_slice::<Value>(body);
    let says_all = json.is_ok_and(|json| json.get("all") == Some(&Value::Bool(true)));
    assert_eq!(selected.filter == LetterFilter::default(), says_all, "{selected:?}");
    let ids = selected.filter.ids.iter().flatten();
    let named = ids.filter_map(|(_, node)| node.as_ref());
    named.chain(&selected.filter.replica).for_each(|node| check_normal(Some(node)));
}

fn check_normal(node: Option<&Node>) {
    if let Some(node) = node {
        assert_eq!(Node::parse(node.as_str()).ok().as_ref(), Some(node));
    }
}

fn check_sentence(problem: &Problem) {
    let (Problem::Invalid(error) | Problem::TooLarge(error)) = problem else {
        panic!("{problem:?}")
    };
    assert!(error.len() <= 3_000, "{} bytes: {error}", error.len());
    assert!(!error.contains(char::is_control), "{error:?}");
}
