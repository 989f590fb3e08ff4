//! The JSON of a write, field by field, as whatever it is.
//!
//! Every field is taken as any kind of JSON, so that reading fails for bad syntax alone and
//! [`super::validate`] can say in one sentence what a field should have been. What is nested deeper
//! than a write has any use for is read over and not kept, so that a body cannot unfold into
//! many times its size.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, de};

use crate::text;

/// How many entries of a list are kept; one more is read as a sign that there are too many.
pub(super) const MAX_ENTRIES: usize = 1024;

/// What an error shows of a text, in characters.
const SHOWN_CHARS: usize = 100;

/// The fields of a write. One that is missing is [`Json::Null`]; unknown ones are ignored.
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
    /// Of a write in a batch; a single one has a header for it.
    #[serde(borrow)]
    pub(super) idempotency_key: Json<'a>,
}

/// Any JSON. Texts without escapes are borrowed from the body.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Json<'a> {
    #[default]
    Null,
    Bool(bool),
    /// An integer from 0 to 2⁶⁴−1, written without fraction and exponent.
    Unsigned(u64),
    Negative(i64),
    Float(f64),
    Text(Cow<'a, str>),
    /// The first [`MAX_ENTRIES`] entries and one; of lists in lists, none.
    List(Vec<Json<'a>>),
    /// What is in it is of no use here.
    Object,
}

impl Json<'_> {
    /// What kind of JSON it is, where what it says must not be shown.
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

/// As an error shows it: `the string "1h"`, `the number 1.5`, `a list`.
impl fmt::Display for Json<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null | Self::List(_) | Self::Object => f.write_str(self.kind()),
            Self::Bool(bool) => write!(f, "{bool}"),
            Self::Unsigned(number) => write!(f, "the number {number}"),
            Self::Negative(number) => write!(f, "the number {number}"),
            // With its point, or its exponent: that is what makes it none of the integers.
            Self::Float(number) => write!(f, "the number {number:?}"),
            Self::Text(text) => write!(f, "the string {}", shown(text)),
        }
    }
}

/// A text in quotes, escaped, and cut where it is long.
pub(super) fn shown(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS) {
        None => text::quoted(text),
        Some((end, _)) => text::quoted(text.get(..end).unwrap_or_default()) + "…",
    }
}

/// The same of an address, which may have a password in it.
pub(super) fn shown_address(text: &str) -> String {
    match text.rsplit_once('@') {
        Some((_, rest)) => shown(&format!("…@{rest}")),
        None => shown(text),
    }
}

/// A sentence in which texts of a client may stand as they are: on one line, and cut in the middle
/// where it is long.
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
        Reader { lists: true }.deserialize(deserializer)
    }
}

/// Reads a [`Json`]; the entries of a list only where `lists` says so.
#[derive(Clone, Copy)]
struct Reader {
    lists: bool,
}

impl<'de> DeserializeSeed<'de> for Reader {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Reader {
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
