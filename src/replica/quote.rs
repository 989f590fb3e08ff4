//! What an error may quote of an answer: its beginning, up to the first part that the write contains.
//!
//! Error pages repeat the request, often in another form. Errors are stored, logged and shown to
//! operators who may not see values, so the value is also looked for in other case, with other
//! punctuation, and in Base64 and hexadecimal form. Only the beginning of a large value is compared:
//! an error page that repeats a request repeats that.

use std::collections::HashSet;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD_NO_PAD;

use super::request::segment;
use super::verdict::Sent;

pub(super) const MAX_QUOTE_CHARS: usize = 100;

/// Bytes of a value that identify it in an answer that repeats it, perhaps cut.
const VALUE_MARK_BYTES: usize = 16;

/// A run of this many letters and digits that the value contains too is taken from it.
const REPEATED: usize = 8;

/// Shorter forms of a value are in any text by chance.
const SHORTEST_FORM: usize = 4;

const COMPARED_VALUE_BYTES: usize = 64 << 10;

/// The beginning of a body, cut before it repeats the key or the value.
pub(super) fn quote(sent: &Sent<'_>, body: &[u8]) -> String {
    let key = segment(sent.key).to_string();
    let value = sent.value.get(..VALUE_MARK_BYTES).unwrap_or(sent.value);
    let end = [sent.key.as_bytes(), key.as_bytes(), value]
        .into_iter()
        .filter_map(|secret| find(body, secret))
        .min();
    let body = end.and_then(|end| body.get(..end)).unwrap_or(body);
    let text = printable(&String::from_utf8_lossy(body));
    let text = first(&text, MAX_QUOTE_CHARS);
    let repeated = repeated(text, sent.value);
    let text = repeated.and_then(|at| text.get(..at)).unwrap_or(text).trim_end();
    match end.or(repeated) {
        Some(_) if text.is_empty() => String::new(),
        Some(_) => format!("{text} …"),
        None => text.to_owned(),
    }
}

/// Where the text begins to repeat a form of the value.
fn repeated(text: &str, value: &[u8]) -> Option<usize> {
    let value = value.get(..COMPARED_VALUE_BYTES).unwrap_or(value);
    let (at, letters): (Vec<usize>, Vec<u8>) =
        text.bytes().enumerate().filter_map(|(at, byte)| Some((at, comparable(byte)?))).unzip();
    let hex = value.iter().flat_map(|byte| [hex(byte >> 4), hex(byte & 15)]).collect();
    // Three ways, because the value may be in the middle of what was encoded.
    let base64 = (0..3).filter_map(|skipped| value.get(skipped..));
    let base64 = base64.map(|value| BASE64_STANDARD_NO_PAD.encode(value).into_bytes());
    let forms = [value.to_vec(), hex].into_iter().chain(base64);
    forms
        .filter_map(|form| {
            let form: Vec<u8> = form.into_iter().filter_map(comparable).collect();
            let length = form.len().min(REPEATED);
            if length < SHORTEST_FORM {
                return None;
            }
            let parts: HashSet<&[u8]> = form.windows(length).collect();
            let first = letters.windows(length).position(|part| parts.contains(part))?;
            let first = *at.get(first)?;
            (0..=first).rev().find(|&at| text.is_char_boundary(at))
        })
        .min()
}

/// Letters and digits in lower case, and parts of characters beyond ASCII.
fn comparable(byte: u8) -> Option<u8> {
    (byte.is_ascii_alphanumeric() || !byte.is_ascii()).then(|| byte.to_ascii_lowercase())
}

fn hex(digit: u8) -> u8 {
    if digit < 10 { b'0' + digit } else { b'a' + digit - 10 }
}

/// Keeps letters, digits, ASCII punctuation and single spaces: no terminal escapes.
fn printable(text: &str) -> String {
    let safe = |c: char| c.is_alphanumeric() || c.is_ascii_graphic();
    let words: Vec<&str> = text.split(|c| !safe(c)).filter(|w| !w.is_empty()).collect();
    words.join(" ")
}

pub(super) fn first(text: &str, chars: usize) -> &str {
    let end = text.char_indices().nth(chars).map(|(at, _)| at);
    end.and_then(|end| text.get(..end)).unwrap_or(text)
}

fn find(hay: &[u8], needle: &[u8]) -> Option<usize> {
    if needle.is_empty() {
        return None;
    }
    hay.windows(needle.len()).position(|bytes| bytes == needle)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::task::ReplicaCommand;

    const VALUE: &[u8] = b"{\"card\": \"4111-2222\", \"name\": \"Jane Q. Public\"}";

    fn quoted(value: &[u8], body: &str) -> String {
        let command = ReplicaCommand::Put { ttl: None };
        quote(&Sent { command, key: "the/key", value }, body.as_bytes())
    }

    #[test]
    fn a_quote_ends_where_the_answer_repeats_the_value_in_another_form() {
        for repeated in [
            "{\"card\": \"4111-2222\"",
            "CARD: 4111-2222, NAME: JANE Q. PUBLIC",
            "%7B%22card%22%3A%20%224111-2222%22",
            "4111 2222 jane",
            "{\\\"card\\\": \\\"4111-2222\\\"",
            "name&quot;: &quot;Jane Q. Public",
            &BASE64_STANDARD_NO_PAD.encode(VALUE),
            &BASE64_STANDARD_NO_PAD.encode([b"x", VALUE].concat()),
            &BASE64_STANDARD_NO_PAD.encode([b"xy", VALUE].concat()),
            "7b2263617264223a202234313131",
            "7B:22:63:61:72:64:22:3A:20:22",
        ] {
            let quote = quoted(VALUE, &format!("cannot parse {repeated} at line 1"));
            assert!(quote.starts_with("cannot parse ") && quote.ends_with('…'), "{quote}");
            for part in ["4111", "2222", "jane", "public"] {
                assert!(!quote.to_lowercase().contains(part), "{repeated}: {quote}");
            }
        }
    }

    #[test]
    fn an_answer_that_repeats_nothing_is_quoted() {
        let text = "no such bucket: the quota of 4096 keys is used up, see http://wiki/quota";
        for value in [VALUE, b"", b"1", b"42", &[0; 100_000]] {
            assert_eq!(quoted(value, text), text);
        }
    }
}
