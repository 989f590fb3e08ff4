//! Fuzz target: any bytes as the body of a write.

#![allow(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a target fails by panicking; a missing field of a JSON value is null"
)]

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::errors::Problem;
use super::validate::{Write, write};
use super::{Access, Settings};
use crate::policy::{Own, Policy};
use crate::task::{Consistency, NewTask, Node, Operation};
use crate::traces::Tracer;

pub(crate) use super::v1::fuzzing::{batch, operator};

const MAX_KEY_BYTES: usize = 32;
const MAX_VALUE_BYTES: usize = 64;
const MAX_REPLICAS: usize = 4;

/// Longest error: it shows up to 100 characters of a text, each of which may be escaped, and a
/// scheme can be as long as an address.
const MAX_SENTENCE_BYTES: usize = 3_000;

pub(super) fn settings() -> Settings {
    let own = Own { address: ([127, 0, 0, 1], 8085).into(), is_local: |_| false };
    Settings {
        access: Access::open(),
        tls: None,
        tracer: Tracer::off(),
        node_id: "replicator".to_owned(),
        max_connections: 1,
        client_timeout: Duration::from_secs(1),
        max_body_bytes: 1 << 20,
        request_memory: 1 << 20,
        max_value_bytes: MAX_VALUE_BYTES,
        max_key_bytes: MAX_KEY_BYTES,
        max_replicas: MAX_REPLICAS,
        policy: Policy::new(None, Some(own)),
    }
}

/// An accepted write equals its body and is within every limit. The error of a rejected one names
/// the field and not the value.
pub(crate) fn body(data: &[u8]) {
    let settings = settings();
    match write(data, &settings) {
        Ok(write) => {
            check_accepted(data, &write);
            round_trip(&write, &settings);
        }
        Err(problem) => check_rejected(data, &problem),
    }
}

pub(super) fn check_accepted(body: &[u8], Write { task, spelled }: &Write) {
    assert!(!matches!(&*task.key, "" | "." | "..") && task.key.len() <= MAX_KEY_BYTES);
    assert!(task.value.len() <= MAX_VALUE_BYTES, "{} bytes", task.value.len());
    assert!((1..=MAX_REPLICAS).contains(&task.replicas.len()), "{:?}", task.replicas);
    assert_eq!(spelled.len(), task.replicas.len());
    assert!(task.user_id.as_ref().is_none_or(|user| (1..=256).contains(&user.len())));
    assert!(task.trace.is_none());
    // The server skips unknown fields without the checks of this parser.
    let Ok(json) = serde_json::from_slice::<Value>(body) else { return };
    let text = |field: &str| json[field].as_str().unwrap_or_default();
    assert_eq!(task.key, text("key"));
    let user = match &json["user_id"] {
        Value::Number(number) => number.to_string(),
        other => other.as_str().unwrap_or_default().to_owned(),
    };
    assert_eq!(task.user_id.as_deref().unwrap_or_default(), user);
    let strong = task.consistency == Consistency::Strong;
    assert_eq!(strong, text("consistency") == "strong");
    let delete = task.operation == Operation::Delete;
    assert_eq!(text("operation"), if delete { "DELETE" } else { "SET" });
    if delete {
        assert!(task.value.is_empty() && task.ttl.is_none());
    } else {
        let (given, raw) = (text("value"), text("value").as_bytes());
        let expected = match text("value_encoding") {
            "raw" => raw.to_vec(),
            _ => STANDARD.decode(given).unwrap_or_else(|_| raw.to_vec()),
        };
        assert_eq!(task.value, expected);
        assert_eq!(
            task.ttl.map_or(0, |ttl| ttl.as_nanos()),
            json["ttl"].as_u64().unwrap_or(0).into()
        );
    }
    let mut nodes = Vec::new();
    for entry in json["replica_nodes"].as_array().into_iter().flatten() {
        let text = entry.as_str().unwrap_or_default();
        let Ok(node) = Node::parse(text) else { panic!("{entry} was accepted") };
        if !nodes.contains(&node) {
            assert_eq!(spelled.get(nodes.len()).map(String::as_str), Some(text));
            nodes.push(node);
        }
    }
    assert_eq!(task.replicas, nodes);
}

/// Parsing the canonical body of a write gives the same write.
fn round_trip(Write { task, .. }: &Write, settings: &Settings) {
    let plain = json!({
        "key": task.key,
        "value": STANDARD.encode(&task.value),
        "value_encoding": "base64",
        "operation": task.operation.to_string(),
        "ttl": task.ttl.map_or(0, |ttl| u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX)),
        "consistency": if task.consistency == Consistency::Strong { "strong" } else { "eventual" },
        "replica_nodes": task.replicas.iter().map(Node::as_str).collect::<Vec<_>>(),
        "user_id": task.user_id,
    });
    let read = write(plain.to_string().as_bytes(), settings);
    let read: Result<&NewTask, _> = read.as_ref().map(|write| &write.task);
    assert!(read.as_ref().is_ok_and(|read| *read == task), "{task:?}, and then {read:?}");
}

pub(super) fn check_rejected(body: &[u8], problem: &Problem) {
    let (Problem::Invalid(error) | Problem::TooLarge(error) | Problem::Forbidden(error)) = problem
    else {
        panic!("{problem:?}")
    };
    assert!(error.len() <= MAX_SENTENCE_BYTES, "{} bytes: {error}", error.len());
    assert!(!error.contains(|c: char| c.is_control()), "{error:?}");
    let names = ["field \"", "the body is not"].iter().any(|word| error.starts_with(word));
    assert!(names, "{error:?} names no field");
    // Only values that are too long to be in the text by chance.
    let Ok(json) = serde_json::from_slice::<Value>(body) else { return };
    let Some(value) = json["value"].as_str().filter(|value| value.len() >= 12) else { return };
    let elsewhere = json
        .as_object()
        .into_iter()
        .flatten()
        .any(|(field, other)| field != "value" && other.to_string().contains(value));
    assert!(elsewhere || !error.contains(value), "{error:?} contains the value");
}
