//! Fuzz targets: arbitrary bytes as the body of a write.

#![allow(
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a target reports a failure by a panic; a missing field of a JSON value is null"
)]

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::addresses::Addresses;
use super::errors::Problem;
use super::validate::{self, ValidWrite};
use super::{Access, ServerLimits, ServerSettings};
use crate::policy::{Own, Policy};
use crate::task::{Consistency, NewTask, Node, Operation};
use crate::traces::Tracer;

pub(crate) use super::v1::fuzzing::{batch, operator};

const MAX_KEY_BYTES: usize = 32;
const MAX_VALUE_BYTES: usize = 64;
const MAX_REPLICAS: usize = 4;

/// Bound of an error text: it quotes up to 100 characters, each possibly escaped, and a scheme can
/// be as long as an address.
const MAX_SENTENCE_BYTES: usize = 3_000;

pub(super) fn settings() -> ServerSettings {
    let own = Own { address: ([127, 0, 0, 1], 8085).into(), is_local: |_| false };
    ServerSettings {
        access: Access::open(),
        tls: None,
        tracer: Tracer::off(),
        node_id: "replicator".to_owned(),
        policy: Policy::new(None, Some(own)),
        limits: ServerLimits {
            max_connections: 1,
            client_timeout: Duration::from_secs(1),
            max_body_bytes: 1 << 20,
            request_memory: 1 << 20,
            max_value_bytes: MAX_VALUE_BYTES,
            max_key_bytes: MAX_KEY_BYTES,
            max_replicas: MAX_REPLICAS,
        },
    }
}

pub(super) fn write(body: &[u8], settings: &ServerSettings) -> Result<ValidWrite, Problem> {
    validate::write(body, settings, &Addresses::default())
}

/// An accepted write equals its body and respects every limit. An error names the field and never
/// quotes the value.
pub(crate) fn body(data: &[u8]) {
    let settings = settings();
    match write(data, &settings) {
        Ok(write) => {
            taken(data, &write);
            again(&write, &settings);
        }
        Err(problem) => refused(data, &problem),
    }
}

/// Checks an accepted write against a second, independent parse of its body.
pub(super) fn taken(body: &[u8], ValidWrite { task, spelled }: &ValidWrite) {
    assert!(!matches!(&*task.key, "" | "." | "..") && task.key.len() <= MAX_KEY_BYTES);
    assert!(task.value.len() <= MAX_VALUE_BYTES, "{} bytes", task.value.len());
    assert!((1..=MAX_REPLICAS).contains(&task.replicas.len()), "{:?}", task.replicas);
    assert_eq!(spelled.len(), task.replicas.len());
    assert!(task.user_id.as_ref().is_none_or(|user| (1..=256).contains(&user.len())));
    assert!(task.trace.is_none());
    // The parser skips unknown fields without validating them as strictly as here.
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
        let Ok(node) = Node::parse(text) else { panic!("{entry} was taken") };
        if !nodes.contains(&node) {
            assert_eq!(spelled.get(nodes.len()).map(|text| &**text), Some(text));
            nodes.push(node);
        }
    }
    assert_eq!(task.replicas, nodes);
}

/// The same write, said as plainly as it can be, is the same write.
fn again(ValidWrite { task, .. }: &ValidWrite, settings: &ServerSettings) {
    let plain = json!({
        "key": task.key,
        "value": STANDARD.encode(&task.value),
        "value_encoding": "base64",
        "operation": task.operation.to_string(),
        "ttl": task.ttl.map_or(0, |ttl| u64::try_from(ttl.as_nanos()).unwrap_or(u64::MAX)),
        "consistency": if task.consistency == Consistency::Strong { "strong" } else { "eventual" },
        "replica_nodes": task.replicas.iter().map(Node::as_str).collect::<Vec<_>>(),
        "user_id": task.user_id,
        "primary_node": task.primary.as_ref().map(Node::as_str),
    });
    let read = write(plain.to_string().as_bytes(), settings);
    let read: Result<&NewTask, _> = read.as_ref().map(|write| &write.task);
    assert!(read.as_ref().is_ok_and(|read| *read == task), "{task:?}, and then {read:?}");
}

/// Checks the error of a rejected body.
pub(super) fn refused(body: &[u8], problem: &Problem) {
    let (Problem::Invalid(said) | Problem::TooLarge(said) | Problem::Forbidden(said)) = problem
    else {
        panic!("{problem:?}")
    };
    assert!(said.len() <= MAX_SENTENCE_BYTES, "{} bytes: {said}", said.len());
    assert!(!said.contains(|c: char| c.is_control()), "{said:?}");
    let names = ["field \"", "the body is not"].iter().any(|word| said.starts_with(word));
    assert!(names, "{said:?} names no field");
    // Long enough not to occur in an error text by chance.
    let Ok(json) = serde_json::from_slice::<Value>(body) else { return };
    let Some(value) = json["value"].as_str().filter(|value| value.len() >= 12) else { return };
    let elsewhere = json
        .as_object()
        .into_iter()
        .flatten()
        .any(|(field, other)| field != "value" && other.to_string().contains(value));
    assert!(elsewhere || !said.contains(value), "{said:?} quotes the value");
}
