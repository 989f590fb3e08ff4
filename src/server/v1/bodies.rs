//! Bodies of operators' requests: small JSON objects without unknown fields.

use std::borrow::Cow;
use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::time::{Duration, UNIX_EPOCH};

use axum::extract::Request;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};

use super::extract::{self, CAUSES, word, words};
use super::validate;
use super::wire::{Json, plain};
use super::{Problem, ServerState};
use crate::api::ClusterDrain;
use crate::dispatcher::{LetterFilter, LimitChange, LimitsChange, PauseEnd, VerifyOptions};
use crate::server::access::Caller;
use crate::server::errors::{invalid, must_be};
use crate::task::{Cause, Node, ReplicaLimits, ReplicaPause, TaskId, Timestamp};

/// How many dead letters can be listed by id, and how many replicas for a barrier.
const MAX_IDS: usize = 1000;

/// Keys of a verification.
const MAX_SAMPLE: usize = 1000;
const DEFAULT_SAMPLE: usize = 100;

/// An empty body, or an object without fields.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EmptyBody {}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct RenameBody<'a> {
    #[serde(borrow)]
    to: Json<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct PauseBody<'a> {
    #[serde(borrow)]
    for_seconds: Json<'a>,
    #[serde(borrow)]
    until: Json<'a>,
}

/// A field that is missing is not changed.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct LimitsBody<'a> {
    #[serde(borrow, deserialize_with = "present")]
    workers: Option<Json<'a>>,
    #[serde(borrow, deserialize_with = "present")]
    rate: Option<Json<'a>>,
    #[serde(borrow, deserialize_with = "present")]
    bandwidth: Option<Json<'a>>,
    #[serde(borrow, deserialize_with = "present")]
    redrive_rate: Option<Json<'a>>,
}

/// Tells `null` from a missing field.
fn present<'de: 'a, 'a, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Json<'a>>, D::Error> {
    Json::deserialize(deserializer).map(Some)
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct BarrierBody<'a> {
    #[serde(borrow)]
    replicas: Json<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct VerifyBody<'a> {
    #[serde(borrow)]
    replica: Json<'a>,
    #[serde(borrow)]
    sample: Json<'a>,
    #[serde(borrow)]
    repair: Json<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct DrainBody<'a> {
    #[serde(borrow)]
    node: Json<'a>,
    #[serde(borrow)]
    drain: Json<'a>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct SelectionBody<'a> {
    #[serde(borrow)]
    ids: LetterIdsBody<'a>,
    #[serde(borrow)]
    replica: Json<'a>,
    #[serde(borrow)]
    key: Json<'a>,
    #[serde(borrow)]
    key_prefix: Json<'a>,
    #[serde(borrow)]
    user_id: Json<'a>,
    #[serde(borrow)]
    cause: Json<'a>,
    #[serde(borrow)]
    all: Json<'a>,
    #[serde(borrow)]
    dry_run: Json<'a>,
    #[serde(borrow)]
    rate: Json<'a>,
}

#[derive(Debug, PartialEq)]
pub(super) struct Selected {
    pub(super) filter: LetterFilter,
    pub(super) dry_run: bool,
    /// Limit per second.
    pub(super) rate: Option<NonZeroU32>,
}

pub(super) async fn read<T>(
    server: &ServerState,
    request: Request,
    check: impl FnOnce(&[u8]) -> Result<T, Problem>,
) -> Result<T, Problem> {
    let ServerState { handle, memory, .. } = server;
    let (head, body) = request.into_parts();
    let (limit, retry_after) = (memory.max_operate_bytes(), handle.retry_after());
    let client = Caller::of(&head.extensions)?.client();
    let read = memory.read_up_to(limit, &client, &head.headers, body, retry_after);
    let (body, _share) = read.await?;
    check(&body)
}

pub(super) async fn nothing(server: &ServerState, request: Request) -> Result<(), Problem> {
    read(server, request, |body| object::<EmptyBody>(body).map(|_| ())).await
}

/// Parses a JSON object. An empty body counts as an object without fields.
pub(super) fn object<'a, T: Deserialize<'a> + Default>(body: &'a [u8]) -> Result<T, Problem> {
    match body.trim_ascii_start().first() {
        None => Ok(T::default()),
        Some(b'{') => serde_json::from_slice(body).map_err(|error| {
            // The error may quote client text of any length.
            let error = plain(&error.to_string());
            invalid(format!("the body is not valid: {error}"))
        }),
        Some(_) => Err(invalid("the body is not a JSON object")),
    }
}

impl RenameBody<'_> {
    pub(super) fn checked(self) -> Result<Node, Problem> {
        match node("to", self.to)? {
            Some(node) => Ok(node),
            None => Err(invalid(r#"field "to" is missing: it must be the new address"#)),
        }
    }
}

impl PauseBody<'_> {
    /// That `until` is in the future is checked where the time is known.
    pub(super) fn checked(self) -> Result<PauseEnd, Problem> {
        let most = ReplicaPause::LONGEST.as_secs();
        match (self.for_seconds, self.until) {
            (Json::Null, Json::Null) => Ok(PauseEnd::Never),
            (Json::Unsigned(seconds), Json::Null) if (1..=most).contains(&seconds) => {
                Ok(PauseEnd::After(Duration::from_secs(seconds)))
            }
            (other, Json::Null) => {
                Err(must_be("for_seconds", &format!("an integer from 1 to {most}"), &other))
            }
            (Json::Null, Json::Text(text)) => time(&text).map(PauseEnd::At).ok_or_else(|| {
                must_be("until", "a time such as 2026-12-01T06:00:00Z", &Json::Text(text))
            }),
            (Json::Null, other) => {
                Err(must_be("until", "a time such as 2026-12-01T06:00:00Z", &other))
            }
            _ => Err(invalid(r#"the fields "for_seconds" and "until" cannot be combined"#)),
        }
    }
}

/// A time in UTC, by RFC 3339.
fn time(text: &str) -> Option<Timestamp> {
    let since = humantime::parse_rfc3339(text).ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(Timestamp(0).saturating_add(since))
}

impl LimitsBody<'_> {
    pub(super) fn checked(self) -> Result<LimitsChange, Problem> {
        const RATE: u64 = ReplicaLimits::MOST_RATE;
        const BANDWIDTH: u64 = ReplicaLimits::MOST_BANDWIDTH;
        let change = LimitsChange {
            workers: limit("workers", self.workers, ReplicaLimits::MOST_WORKERS, small)?,
            rate: limit("rate", self.rate, RATE, small)?,
            bandwidth: limit("bandwidth", self.bandwidth, BANDWIDTH, NonZeroU64::new)?,
            redrive_rate: limit("redrive_rate", self.redrive_rate, RATE, small)?,
        };
        if change == LimitsChange::default() {
            return Err(invalid(
                r#"nothing is changed: set "workers", "rate", "bandwidth" or "redrive_rate""#,
            ));
        }
        Ok(change)
    }
}

fn small(number: u64) -> Option<NonZeroU32> {
    u32::try_from(number).ok().and_then(NonZeroU32::new)
}

fn limit<T>(
    field: &str,
    json: Option<Json<'_>>,
    most: u64,
    convert: fn(u64) -> Option<T>,
) -> Result<LimitChange<T>, Problem> {
    let limit = match &json {
        None => return Ok(LimitChange::Keep),
        Some(Json::Null) => return Ok(LimitChange::Unset),
        Some(Json::Unsigned(number)) if *number <= most => convert(*number),
        Some(_) => None,
    };
    let rule = || format!("an integer from 1 to {most}, or null");
    let got = json.unwrap_or_default();
    limit.map(LimitChange::Set).ok_or_else(|| must_be(field, &rule(), &got))
}

impl BarrierBody<'_> {
    pub(super) fn checked(self) -> Result<Vec<Node>, Problem> {
        let entries = match self.replicas {
            Json::Null => return Ok(Vec::new()),
            Json::List(entries) => entries,
            other => return Err(must_be("replicas", "a list of addresses", &other)),
        };
        if entries.len() > MAX_IDS {
            return Err(invalid(format!(r#"field "replicas" has more than {MAX_IDS} entries"#)));
        }
        let mut nodes = Vec::with_capacity(entries.len());
        for (index, entry) in entries.into_iter().enumerate() {
            let field = format!("replicas[{index}]");
            match node(&field, entry)? {
                Some(node) if nodes.contains(&node) => {}
                Some(node) => nodes.push(node),
                None => return Err(must_be(&field, "an address", &Json::Null)),
            }
        }
        Ok(nodes)
    }
}

impl VerifyBody<'_> {
    pub(super) fn checked(self) -> Result<VerifyOptions, Problem> {
        let sample = match &self.sample {
            Json::Null => Some(DEFAULT_SAMPLE),
            Json::Unsigned(sample) => usize::try_from(*sample).ok(),
            _ => None,
        };
        let sample = sample.filter(|sample| (1..=MAX_SAMPLE).contains(sample));
        let rule = || format!("an integer from 1 to {MAX_SAMPLE}");
        Ok(VerifyOptions {
            replica: node("replica", self.replica)?,
            sample: sample.ok_or_else(|| must_be("sample", &rule(), &self.sample))?,
            repair: flag("repair", &self.repair)?,
        })
    }
}

impl DrainBody<'_> {
    pub(super) fn checked(self) -> Result<ClusterDrain, Problem> {
        let Some(node) = text("node", self.node)? else {
            return Err(invalid(
                r#"field "node" is missing: it must be the --node-id of an instance"#,
            ));
        };
        match self.drain {
            Json::Bool(drain) => Ok(ClusterDrain { node, drain }),
            Json::Null => Err(invalid(r#"field "drain" is missing: it must be true or false"#)),
            other => Err(must_be("drain", "true or false", &other)),
        }
    }
}

impl SelectionBody<'_> {
    pub(super) fn redriven(self) -> Result<Selected, Problem> {
        let all = flag("all", &self.all)?;
        let filter = LetterFilter {
            ids: self.ids.checked()?,
            replica: node("replica", self.replica)?,
            key: text("key", self.key)?,
            key_prefix: text("key_prefix", self.key_prefix)?,
            user_id: given("user_id", validate::user(self.user_id)?)?,
            cause: cause(&self.cause)?,
        };
        match (all, filter == LetterFilter::default()) {
            (false, true) => {
                return Err(invalid(
                    r#"nothing is selected: set "ids", "replica", "key", "key_prefix", "user_id" or "cause", or set "all" to true"#,
                ));
            }
            (true, false) => {
                return Err(invalid(r#"field "all" cannot be combined with other selectors"#));
            }
            (true, true) | (false, false) => {}
        }
        let dry_run = flag("dry_run", &self.dry_run)?;
        Ok(Selected { filter, dry_run, rate: per_second(&self.rate)? })
    }

    /// Like [`Self::redriven`], but without a rate.
    pub(super) fn discarded(self) -> Result<Selected, Problem> {
        match self.rate {
            Json::Null => self.redriven(),
            _ => Err(invalid(r#"field "rate" is not supported: discarding has no rate limit"#)),
        }
    }
}

fn per_second(json: &Json<'_>) -> Result<Option<NonZeroU32>, Problem> {
    let rate = match json {
        Json::Null => return Ok(None),
        Json::Unsigned(rate) => u32::try_from(*rate).ok().and_then(NonZeroU32::new),
        _ => None,
    };
    let rule = || format!("an integer from 1 to {}", u32::MAX);
    rate.map(Some).ok_or_else(|| must_be("rate", &rule(), json))
}

fn cause(json: &Json<'_>) -> Result<Option<Cause>, Problem> {
    let cause = match json {
        Json::Null => return Ok(None),
        Json::Text(text) => word(&CAUSES, text),
        _ => None,
    };
    cause.map(Some).ok_or_else(|| must_be("cause", &words(&CAUSES), json))
}

fn flag(field: &str, json: &Json<'_>) -> Result<bool, Problem> {
    match json {
        Json::Null => Ok(false),
        Json::Bool(flag) => Ok(*flag),
        other => Err(must_be(field, "true or false", other)),
    }
}

fn text(field: &str, json: Json<'_>) -> Result<Option<String>, Problem> {
    match json {
        Json::Null => Ok(None),
        Json::Text(text) => given(field, Some(text)),
        other => Err(must_be(field, "a string", &other)),
    }
}

fn given(field: &str, text: Option<Cow<'_, str>>) -> Result<Option<String>, Problem> {
    match text {
        Some(text) if text.is_empty() => Err(invalid(format!(
            r#"field "{field}" must not be empty, omit it to not filter by it"#
        ))),
        text => Ok(text.map(Cow::into_owned)),
    }
}

fn node(field: &str, json: Json<'_>) -> Result<Option<Node>, Problem> {
    let what = format!(r#"field "{field}""#);
    text(field, json)?.map(|text| extract::node(&what, &text)).transpose()
}

/// Dead letters listed by id: up to [`MAX_IDS`], plus one to detect too many.
#[derive(Debug, Default)]
struct LetterIdsBody<'a>(Option<Vec<LetterIdBody<'a>>>);

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct LetterIdBody<'a> {
    #[serde(borrow)]
    task_id: Json<'a>,
    #[serde(borrow)]
    replica: Json<'a>,
}

/// A task, and one of its replicas or all (`None`).
type LetterKey = (TaskId, Option<Node>);

impl LetterIdsBody<'_> {
    fn checked(self) -> Result<Option<Vec<LetterKey>>, Problem> {
        let Some(ids) = self.0 else { return Ok(None) };
        if ids.is_empty() {
            return Err(invalid(r#"field "ids" must not be empty, omit it to not filter by it"#));
        }
        if ids.len() > MAX_IDS {
            return Err(invalid(format!(r#"field "ids" has more than {MAX_IDS} entries"#)));
        }
        let mut checked = Vec::with_capacity(ids.len());
        for (index, id) in ids.into_iter().enumerate() {
            let task = match &id.task_id {
                Json::Text(text) => text.parse().ok(),
                _ => None,
            };
            let field = format!("ids[{index}].task_id");
            let task = task.ok_or_else(|| must_be(&field, "the id of a task", &id.task_id))?;
            checked.push((task, node(&format!("ids[{index}].replica"), id.replica)?));
        }
        Ok(Some(checked))
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for LetterIdsBody<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LetterIdsVisitor)
    }
}

struct LetterIdsVisitor;

impl<'de> Visitor<'de> for LetterIdsVisitor {
    type Value = LetterIdsBody<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"a list of {"task_id": …, "replica": …} as "ids""#)
    }

    fn visit_unit<E>(self) -> Result<LetterIdsBody<'de>, E> {
        Ok(LetterIdsBody(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<LetterIdsBody<'de>, A::Error> {
        let mut ids = Vec::new();
        while ids.len() <= MAX_IDS {
            match list.next_element()? {
                Some(id) => ids.push(id),
                None => return Ok(LetterIdsBody(Some(ids))),
            }
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(LetterIdsBody(Some(ids)))
    }
}

#[cfg(test)]
mod tests;
