//! Fuzz targets: arbitrary bytes as a batch, and as an operator's query and body.

#![allow(clippy::panic, reason = "a target reports a failure by a panic")]

use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue};
use serde_json::Value;

use super::Problem;
use super::batch::{MAX_WRITES, split};
use super::bodies::{
    BarrierBody, EmptyBody, LimitsBody, PauseBody, RenameBody, Selected, SelectionBody, object,
};
use super::extract::{CAUSES, Parameters, STATES};
use super::validate::batched;
use crate::dispatcher::LetterFilter;
use crate::server::addresses::Addresses;
use crate::server::fuzzing::{refused, settings, taken};
use crate::task::{Node, ReplicaLimits};

/// A batch is split into its writes in order, and each is accepted or rejected as if it were alone.
/// A leading exclamation mark selects the content type of lines.
pub(crate) fn batch(data: &[u8]) {
    let (data, announced) = match data.strip_prefix(b"!") {
        Some(rest) => (rest, true),
        None => (data, false),
    };
    let mut headers = HeaderMap::new();
    if announced {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    }
    let writes = match split(&headers, data) {
        Ok(writes) => writes,
        Err(problem) => return sentence(&problem),
    };
    assert!((1..=MAX_WRITES).contains(&writes.len()), "{} writes", writes.len());
    let array = !announced && data.trim_ascii_start().starts_with(b"[");
    if array {
        // The parser skips unknown fields without validating them as strictly as here.
        if let Ok(entries) = serde_json::from_slice::<Vec<Value>>(data) {
            let each = writes.iter().map(|write| serde_json::from_slice::<Value>(write).ok());
            assert!(each.eq(entries.into_iter().map(Some)));
        }
    } else {
        let lines = data.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
        assert!(lines.filter(|line| !line.is_empty()).eq(writes.iter().copied()));
    }
    let (settings, addresses) = (settings(), Addresses::default());
    for write in writes.iter().take(64) {
        match batched(write, &settings, &addresses) {
            Ok((read, key)) => {
                taken(write, &read);
                let plain = |key: &str| {
                    (1..=255).contains(&key.len())
                        && key.bytes().all(|byte| byte.is_ascii_graphic())
                };
                assert!(key.as_deref().is_none_or(plain), "{key:?}");
            }
            Err(problem) => refused(write, &problem),
        }
    }
}

/// A request is parsed faithfully or rejected with a sentence. The first line is a query, the rest a
/// body.
pub(crate) fn operator(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (query, body) = data.split_at(end);
    if let Ok(query) = std::str::from_utf8(query) {
        parameters(query);
    }
    body_of(body);
}

fn parameters(query: &str) {
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
            Ok(node) => normal(node.as_ref()),
            Err(problem) => sentence(&problem),
        },
        Err(problem) => sentence(&problem),
    }
}

fn body_of(body: &[u8]) {
    if let Err(problem) = object::<EmptyBody>(body) {
        sentence(&problem);
    }
    match object::<RenameBody<'_>>(body).and_then(RenameBody::checked) {
        Ok(node) => normal(Some(&node)),
        Err(problem) => sentence(&problem),
    }
    if let Err(problem) = object::<PauseBody<'_>>(body).and_then(PauseBody::checked) {
        sentence(&problem);
    }
    match object::<LimitsBody<'_>>(body).and_then(LimitsBody::checked) {
        Ok(change) => assert_eq!(change.apply(ReplicaLimits::default()).excess(), None),
        Err(problem) => sentence(&problem),
    }
    match object::<BarrierBody<'_>>(body).and_then(BarrierBody::checked) {
        Ok(nodes) => {
            for (at, node) in nodes.iter().enumerate() {
                normal(Some(node));
                assert!(
                    nodes.iter().take(at).all(|before| before != node),
                    "{node} is there twice"
                );
            }
        }
        Err(problem) => sentence(&problem),
    }
    let discarded = object::<SelectionBody<'_>>(body).and_then(SelectionBody::discarded);
    match object::<SelectionBody<'_>>(body).and_then(SelectionBody::redriven) {
        Ok(selected) => {
            selects(body, &selected);
            // The same selection, except that discarding takes no rate.
            match discarded {
                Ok(same) => assert_eq!(same, selected),
                Err(_) => assert!(selected.rate.is_some(), "{selected:?}"),
            }
        }
        Err(problem) => {
            sentence(&problem);
            assert!(discarded.is_err(), "{problem:?}, and {discarded:?}");
        }
    }
}

/// Only an explicit `all` selects all dead letters.
fn selects(body: &[u8], selected: &Selected) {
    let json = serde_json::from_slice::<Value>(body);
    let says_all = json.is_ok_and(|json| json.get("all") == Some(&Value::Bool(true)));
    assert_eq!(selected.filter == LetterFilter::default(), says_all, "{selected:?}");
    let ids = selected.filter.ids.iter().flatten();
    let named = ids.filter_map(|(_, node)| node.as_ref());
    named.chain(&selected.filter.replica).for_each(|node| normal(Some(node)));
}

fn normal(node: Option<&Node>) {
    if let Some(node) = node {
        assert_eq!(Node::parse(node.as_str()).ok().as_ref(), Some(node));
    }
}

/// An error is one sentence of bounded length.
fn sentence(problem: &Problem) {
    let (Problem::Invalid(said) | Problem::TooLarge(said)) = problem else { panic!("{problem:?}") };
    assert!(said.len() <= 3_000, "{} bytes: {said}", said.len());
    assert!(!said.contains(char::is_control), "{said:?}");
}
