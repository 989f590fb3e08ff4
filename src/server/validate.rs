//! Validates the body of a write and turns it into a [`NewTask`].
//!
//! The first broken rule becomes the error: one sentence with the field, the expected and the
//! actual value. The content of `value` is never quoted.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use super::ServerSettings;
use super::addresses::Addresses;
use super::errors::{Problem, invalid, must_be};
use super::idempotency;
use super::wire::{Fields, Json, MAX_ENTRIES, shown, shown_address};
use crate::task::{Consistency, NewTask, Node, NodeError, Operation};

#[cfg(test)]
mod tests;

const MAX_USER_ID_BYTES: usize = 256;

/// The range of the clients' type, Go's `time.Duration`.
const MAX_TTL_NANOS: u64 = i64::MAX.unsigned_abs();

#[derive(Debug)]
pub(super) struct ValidWrite {
    pub(super) task: NewTask,
    /// The replicas of `task` in order, in the client's first spelling.
    pub(super) spelled: Vec<Arc<str>>,
}

pub(super) fn write(
    body: &[u8],
    settings: &ServerSettings,
    addresses: &Addresses,
) -> Result<ValidWrite, Problem> {
    checked(fields(body)?, settings, addresses)
}

/// Parses a write of a batch, with its idempotency key.
pub(super) fn batched(
    body: &[u8],
    settings: &ServerSettings,
    addresses: &Addresses,
) -> Result<(ValidWrite, Option<Box<str>>), Problem> {
    let mut fields = fields(body)?;
    let key = idempotency::field(&std::mem::take(&mut fields.idempotency_key))?;
    Ok((checked(fields, settings, addresses)?, key))
}

fn checked(
    fields: Fields<'_>,
    settings: &ServerSettings,
    addresses: &Addresses,
) -> Result<ValidWrite, Problem> {
    let key = key(fields.key, settings.limits.max_key_bytes)?;
    let operation = operation(fields.operation)?;
    let ttl = ttl(&fields.ttl)?;
    let (value, ttl) = match operation {
        Operation::Set => {
            let encoding = encoding(fields.value_encoding)?;
            (value(fields.value, encoding, settings.limits.max_value_bytes)?, ttl)
        }
        Operation::Delete => (Bytes::new(), None),
    };
    let consistency = consistency(fields.consistency)?;
    // Any text is accepted; only an address can be compared with.
    let primary = text("primary_node", fields.primary_node)?;
    let primary = primary.and_then(|text| addresses.parse(&text).ok()).map(|address| address.node);
    let user_id = user_id(fields.user_id)?;
    let (replicas, spelled) = replicas(fields.replica_nodes, settings, addresses)?;
    let task = NewTask {
        key,
        operation,
        value,
        ttl,
        consistency,
        replicas,
        user_id,
        client: None,
        primary,
        trace: None,
    };
    Ok(ValidWrite { task, spelled })
}

fn fields(body: &[u8]) -> Result<Fields<'_>, Problem> {
    // serde would also accept a list, as a struct without field names.
    if body.trim_ascii_start().first() != Some(&b'{') {
        return Err(invalid("the body is not a JSON object"));
    }
    serde_json::from_slice(body)
        .map_err(|error| invalid(format!("the body is not a valid JSON object: {error}")))
}

fn key(json: Json<'_>, limit: usize) -> Result<String, Problem> {
    let Some(key) = text("key", json)? else {
        return Err(invalid(r#"field "key" is missing"#));
    };
    match &*key {
        "" => Err(invalid(r#"field "key" is empty"#)),
        "." | ".." => Err(invalid(format!(
            r#"field "key" must not be {key:?}: URL paths treat it as a step"#
        ))),
        _ if key.len() > limit => Err(invalid(format!(
            r#"field "key" is {} bytes long, the limit is {limit}"#,
            key.len()
        ))),
        _ => Ok(key.into_owned()),
    }
}

fn operation(json: Json<'_>) -> Result<Operation, Problem> {
    match json {
        Json::Text(text) if text == "SET" => Ok(Operation::Set),
        Json::Text(text) if text == "DELETE" => Ok(Operation::Delete),
        Json::Null => Err(invalid(r#"field "operation" is missing, it must be "SET" or "DELETE""#)),
        other => Err(must_be("operation", r#""SET" or "DELETE""#, &other)),
    }
}

fn ttl(json: &Json<'_>) -> Result<Option<Duration>, Problem> {
    match json {
        Json::Null | Json::Unsigned(0) => Ok(None),
        Json::Unsigned(nanos @ ..=MAX_TTL_NANOS) => Ok(Some(Duration::from_nanos(*nanos))),
        other => {
            let integer = format!("an integer number of nanoseconds from 0 to {MAX_TTL_NANOS}");
            Err(must_be("ttl", &integer, other))
        }
    }
}

#[derive(Clone, Copy)]
enum Encoding {
    Base64,
    Raw,
    /// Base64 if the text decodes as such, raw otherwise.
    Either,
}

fn encoding(json: Json<'_>) -> Result<Encoding, Problem> {
    match json {
        Json::Null => Ok(Encoding::Either),
        Json::Text(text) if text.is_empty() => Ok(Encoding::Either),
        Json::Text(text) if text == "base64" => Ok(Encoding::Base64),
        Json::Text(text) if text == "raw" => Ok(Encoding::Raw),
        other => Err(must_be("value_encoding", r#""base64" or "raw""#, &other)),
    }
}

fn value(json: Json<'_>, encoding: Encoding, limit: usize) -> Result<Bytes, Problem> {
    let text = match json {
        Json::Null => return Ok(Bytes::new()),
        Json::Text(text) => text,
        other => {
            let kind = other.kind();
            return Err(invalid(format!(r#"field "value" must be a string or null, got {kind}"#)));
        }
    };
    let value = match encoding {
        Encoding::Raw => raw(text),
        Encoding::Either => STANDARD.decode(&*text).unwrap_or_else(|_| raw(text)),
        Encoding::Base64 => STANDARD.decode(&*text).map_err(|_| {
            let reason = r#"as field "value_encoding" requires"#;
            invalid(format!(r#"field "value" must be standard base64 with padding, {reason}"#))
        })?,
    };
    if value.len() > limit {
        return Err(Problem::TooLarge(format!(
            r#"field "value" is {} bytes long after decoding, the limit is {limit}"#,
            value.len()
        )));
    }
    Ok(value.into())
}

fn raw(text: Cow<'_, str>) -> Vec<u8> {
    text.into_owned().into_bytes()
}

fn consistency(json: Json<'_>) -> Result<Consistency, Problem> {
    match json {
        Json::Null => Ok(Consistency::Eventual),
        Json::Text(text) if text.is_empty() || text == "eventual" => Ok(Consistency::Eventual),
        Json::Text(text) if text == "strong" => Ok(Consistency::Strong),
        other => Err(must_be("consistency", r#""eventual" or "strong""#, &other)),
    }
}

fn user_id(json: Json<'_>) -> Result<Option<String>, Problem> {
    let Some(user) = user(json)?.filter(|user| !user.is_empty()) else {
        return Ok(None);
    };
    if user.len() > MAX_USER_ID_BYTES {
        return Err(invalid(format!(
            r#"field "user_id" is {} bytes long, the limit is {MAX_USER_ID_BYTES}"#,
            user.len()
        )));
    }
    Ok(Some(user.into_owned()))
}

/// A user id as text. The gateway sends a 64-bit integer, other clients send a string.
pub(super) fn user(json: Json<'_>) -> Result<Option<Cow<'_, str>>, Problem> {
    let (least, most) = (i64::MIN, u64::MAX);
    match json {
        Json::Null => Ok(None),
        Json::Text(text) => Ok(Some(text)),
        Json::Unsigned(number) => Ok(Some(number.to_string().into())),
        Json::Negative(number) => Ok(Some(number.to_string().into())),
        other => {
            let rule = format!("a string or an integer from {least} to {most}");
            Err(must_be("user_id", &rule, &other))
        }
    }
}

/// The distinct nodes, and the first spelling of each.
fn replicas(
    json: Json<'_>,
    settings: &ServerSettings,
    addresses: &Addresses,
) -> Result<(Vec<Node>, Vec<Arc<str>>), Problem> {
    let limit = settings.limits.max_replicas;
    let entries = match json {
        Json::List(entries) => entries,
        Json::Null => Vec::new(),
        other => return Err(must_be("replica_nodes", "a list of URLs", &other)),
    };
    if entries.is_empty() {
        let rule = r#"field "replica_nodes" must name at least one replica"#;
        return Err(invalid(rule));
    }
    if entries.len() > MAX_ENTRIES {
        return Err(invalid(format!(
            r#"field "replica_nodes" has more than {MAX_ENTRIES} entries"#
        )));
    }
    let mut nodes = Vec::with_capacity(entries.len().min(limit));
    let mut spelled = Vec::with_capacity(entries.len().min(limit));
    for (index, entry) in entries.into_iter().enumerate() {
        let Json::Text(text) = entry else {
            return Err(must_be(&format!("replica_nodes[{index}]"), "a URL", &entry));
        };
        let address = addresses.parse(&text).map_err(|error| {
            let (shown, example) = (shown_address(&text), with_scheme(&text, &error));
            invalid(format!(r#"field "replica_nodes[{index}]": {shown} {error}{example}"#))
        })?;
        if nodes.contains(&address.node) {
            continue;
        }
        if nodes.len() == limit {
            return Err(invalid(format!(
                r#"field "replica_nodes" names too many replicas, the limit is {limit}"#
            )));
        }
        address.admit(&settings.policy).map_err(|why| {
            let text = shown_address(&text);
            Problem::Forbidden(format!(r#"field "replica_nodes[{index}]": {text} {why}"#))
        })?;
        nodes.push(address.node);
        spelled.push(address.spelled);
    }
    Ok((nodes, spelled))
}

/// Suggests the URL for an address that lacks only its scheme, as the end of a sentence.
fn with_scheme(text: &str, error: &NodeError) -> String {
    // With `//` it has another scheme or is not an address.
    let lacks_it = matches!(error, NodeError::Scheme) && !text.contains("//");
    let url = format!("http://{text}");
    if lacks_it && Node::parse(&url).is_ok() {
        format!(", e.g. {}", shown(&url))
    } else {
        String::new()
    }
}

fn text<'a>(field: &str, json: Json<'a>) -> Result<Option<Cow<'a, str>>, Problem> {
    match json {
        Json::Null => Ok(None),
        Json::Text(text) => Ok(Some(text)),
        other => Err(must_be(field, "a string", &other)),
    }
}
