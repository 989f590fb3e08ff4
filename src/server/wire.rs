//! The JSON of a write, parsed without types.
//!
//! Every field accepts any kind of JSON, so that parsing fails for bad syntax only and
//! [`super::validate`] reports a wrong type by field. Values nested deeper than a write needs are
//! skipped, so that a body cannot expand to many times its size in memory.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

use crate::text;

/// Entries kept of a list. One more is kept to show that there are too many.
pub(super) const MAX_ENTRIES: usize = 1024;

const SHOWN_CHARS: usize = 100;

/// The fields of a write. A missing one is [`Json::Null`]; unknown ones are ignored.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Fields<'a> {
    #[serde(borrow)]
    pub(super) key: Json<'a>,
    #[serde(borrow)]
    pub(super) value: Json<'a>,
    #[serde(borrow)]
    pub(super) value_encoding: Json<'a>,
    #[serde(borrow)]
    pub(super) operation: Json<'a>,
    #[serde(borrow)]
    pub(super) ttl: Json<'a>,
    #[serde(borrow)]
    pub(super) consistency: Json<'a>,
    #[serde(borrow)]
    pub(super) primary_node: Json<'a>,
    #[serde(borrow)]
    pub(super) replica_nodes: Json<'a>,
    #[serde(borrow)]
    pub(super) user_id: Json<'a>,
    /// Only for a write in a batch. A single write uses the header.
    #[serde(borrow)]
    pub(super) idempotency_key: Json<'a>,
}

/// Any JSON. Strings without escapes are borrowed from the body.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Json<'a> {
    #[default]
    Null,
    Bool(bool),
    /// An integer from 0 to 2⁶⁴−1 without fraction and exponent.
    Unsigned(u64),
    Negative(i64),
    Float(f64),
    Text(Cow<'a, str>),
    /// Up to [`MAX_ENTRIES`] entries plus one. Nested lists are empty.
    List(Vec<Json<'a>>),
    Object,
}

impl Json<'_> {
    /// The kind of JSON, for errors that must not quote the value.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Unsigned(_) | Self::Negative(_) | Self::Float(_) => "a number",
            Self::Text(_) => "a string",
            Self::List(_) => "a list",
            Self::Object => "an object",
        }
    }
}

/// Formats for an error: `the string "1h"`, `the number 1.5`, `a list`.
impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null | Self::List(_) | Self::Object => f.write_str(self.kind()),
            Self::Bool(bool) => write!(f, "{bool}"),
            Self::Unsigned(number) => write!(f, "the number {number}"),
            Self::Negative(number) => write!(f, "the number {number}"),
            // Debug keeps the point or exponent, which shows why it is not an integer.
            Self::Float(number) => write!(f, "the number {number:?}"),
            Self::Text(text) => write!(f, "the string {}", shown(text)),
        }
    }
}

/// Quotes, escapes and truncates a text.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        None => text::quoted(text),
        Some((end, _)) => text::quoted(text.get(..end).unwrap_or_default()) + "…",
    }
}

/// Like [`shown`] for an address, without its user info, which may contain a password.
pub(super) fn shown_address(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_, rest)) => shown(&format!("…@{rest}")),
        None => shown(text),
    }
}

/// Makes a sentence that may contain client text safe: on one line, and cut in the middle if long.
pub(super) fn plain(sentence: &str) -> String {
    let chars = sentence.chars().count();
    let kept = |at: usize| at < 2 * SHOWN_CHARS || at >= chars.saturating_sub(SHOWN_CHARS);
    let mut plain = String::new();
    for (at, c) in sentence.chars().enumerate() {
        match c {
            _ if at == 2 * SHOWN_CHARS && !kept(at) => plain.push('…'),
            _ if !kept(at) => {}
            c => plain.push(c),
        }
    }
    text::plain(&plain).into_owned()
}

impl<'de: 'a, 'a> Deserialize<'de> for Json<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        JsonVisitor { lists: true }.deserialize(deserializer)
    }
}

/// Parses a [`Json`]. Skips the entries of lists unless `lists` is set.
#[derive(Clone, Copy)]
struct JsonVisitor {
    lists: bool,
}

impl<'de> DeserializeSeed<'de> for JsonVisitor {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for JsonVisitor {
    type Value = Json<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Json<'de>, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E: de::Error>(self, bool: bool) -> Result<Json<'de>, E> {
        Ok(Json::Bool(bool))
    }

    fn visit_u64<E: de::Error>(self, number: u64) -> Result<Json<'de>, E> {
        Ok(Json::Unsigned(number))
    }

    fn visit_i64<E: de::Error>(self, number: i64) -> Result<Json<'de>, E> {
        Ok(u64::try_from(number).map_or(Json::Negative(number), Json::Unsigned))
    }

    fn visit_f64<E: de::Error>(self, number: f64) -> Result<Json<'de>, E> {
        Ok(Json::Float(number))
    }

    fn visit_borrowed_str<E: de::Error>(self, text: &'de str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Borrowed(text)))
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<Json<'de>, E> {
        Ok(Json::Text(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Json<'de>, A::Error> {
        let mut entries = Vec::new();
        while self.lists && entries.len() <= MAX_ENTRIES {
            match list.next_element_seed(Self { lists: false })? {
                Some(entry) => entries.push(entry),
                None => return Ok(Json::List(entries)),
            }
        }
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Json::List(entries))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Json<'de>, A::Error> {
        while object.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Json::Object)
    }
}
