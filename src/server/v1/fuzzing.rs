//! Any bytes as a batch, and as what an operator asks and posts.

#![allow(clippy::panic, reason = "a target says by a panic what does not hold")]

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
use crate::server::fuzzing::{refused, settings, taken};
use crate::task::Node;

/// A batch comes apart into the writes that stand in it, in their order; each is taken or refused as
/// it would be alone. An exclamation mark in front has it announced as lines.
pub(crate) fn batch(data: &[u8]) {
    let (data, announced) = match data.strip_prefix(b"!") {
        Some(rest) => (rest, true),
        None => (data, false),
    };
    let mut headers = HeaderMap::new();
    if announced {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-ndjson"));
    }
    let writes = match apart(&headers, data) {
        Ok(writes) => writes,
        Err(problem) => return sentence(&problem),
    };
    assert!((1..=MAX_WRITES).contains(&writes.len()), "{} writes", writes.len());
    let array = !announced && data.trim_ascii_start().starts_with(b"[");
    if array {
        // What is only read over is not looked at as closely as here.
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

/// What an operator asks for is read as it stands there, or refused in a sentence. The first line is
/// a query, the rest a body.
pub(crate) fn operator(data: &[u8]) {
    let end = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (query, body) = data.split_at(end);
    if let Ok(query) = std::str::from_utf8(query) {
        asked(query);
    }
    posted(body);
}

fn asked(query: &str) {
    const KNOWN: [&str; 7] = ["state", "replica", "key", "limit", "cursor", "types", "wait"];
    let most = Duration::from_secs(60);
    let read = |asked: &mut Parameters| {
        let state = asked.words("state", &STATES)?;
        assert!(state.is_none_or(|states| !states.is_empty()));
        asked.word("types", &CAUSES)?;
        let limit = asked.limit()?;
        assert!((1..=1000).contains(&limit), "{limit}");
        let wait = asked.duration("wait", most)?;
        assert!(wait.is_none_or(|wait| wait <= most), "{wait:?}");
        asked.cursor::<u64>()?;
        asked.node("replica")
    };
    match Parameters::read(Some(query), &KNOWN) {
        Ok(mut asked) => match read(&mut asked) {
            Ok(node) => normal(node.as_ref()),
            Err(problem) => sentence(&problem),
        },
        Err(problem) => sentence(&problem),
    }
}

fn posted(body: &[u8]) {
    if let Err(problem) = object::<Nothing>(body) {
        sentence(&problem);
    }
    match object::<Rename<'_>>(body).and_then(Rename::checked) {
        Ok(node) => normal(Some(&node)),
        Err(problem) => sentence(&problem),
    }
    match object::<NewBarrier<'_>>(body).and_then(NewBarrier::checked) {
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
    let discarded = object::<Selection<'_>>(body).and_then(Selection::discarded);
    match object::<Selection<'_>>(body).and_then(Selection::redriven) {
        Ok(selected) => {
            selects(body, &selected);
            // The same letters, but for the rate, which discarding does not have.
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

/// All dead letters are only ever selected by a body that says so.
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

/// A refusal is one sentence, of bounded length.
fn sentence(problem: &Problem) {
    let (Problem::Invalid(said) | Problem::TooLarge(said)) = problem else { panic!("{problem:?}") };
    assert!(said.len() <= 3_000, "{} bytes: {said}", said.len());
    assert!(!said.contains(char::is_control), "{said:?}");
}
