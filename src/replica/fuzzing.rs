//! Fuzz targets for requests to replicas and for their answers.

#![allow(clippy::panic, clippy::indexing_slicing, reason = "a target fails by panicking")]

use std::time::Duration;

use bytes::Bytes;
use hyper::StatusCode;
use percent_encoding::percent_decode_str;
use url::Url;

use super::request::{go_duration, url};
use super::verdict::{MAX_RETRY_AFTER, ReplicaAnswer, Sent, retry_after, verdict};
use crate::fuzzing::input::Input;
use crate::policy::Target;
use crate::task::{
    Consistency, NewTask, Node, Operation, ReplicaCommand, Task, TaskId, Timestamp, Verdict,
};

/// The default of `--max-key-bytes`.
const MAX_KEY_BYTES: usize = 4096;

/// Go parses the remaining ttl exact to the nanosecond, or the write is sent as a DELETE.
pub(crate) fn ttl(data: &[u8]) {
    let mut input = Input::new(data);
    let longest = i64::MAX.unsigned_abs();
    let unit = [1, 1_000, 1_000_000, 1_000_000_000, 60_000_000_000, 3_600_000_000_000];
    let ttl = input.size().saturating_mul(unit[input.below(unit.len())]).min(longest);
    let (accepted, passed) = (Timestamp(input.size()), input.size());
    let task = Task::accepted(
        NewTask {
            key: "k".to_owned(),
            operation: Operation::Set,
            value: Bytes::new(),
            ttl: (ttl > 0).then(|| Duration::from_nanos(ttl)),
            consistency: Consistency::Eventual,
            replicas: vec![Node::from_normal("http://a")],
            user_id: None,
            client: None,
            primary: None,
            trace: None,
        },
        TaskId(1),
        accepted,
    );
    let end = accepted.0.saturating_add(ttl);
    let now = Timestamp(accepted.0.saturating_add(passed));
    let left = match task.command_at(now) {
        ReplicaCommand::Delete => {
            assert!(ttl > 0 && now.0 >= end, "{ttl} of {accepted:?} at {now:?}");
            return;
        }
        ReplicaCommand::Put { ttl: None } => {
            assert_eq!(ttl, 0, "a write with a ttl was sent without it");
            return;
        }
        ReplicaCommand::Put { ttl: Some(left) } => left,
    };
    assert_eq!(left.as_nanos(), u128::from(end - now.0));
    let text = go_duration(left);
    assert_eq!(go_parse_duration(&text), Ok(i64::try_from(end - now.0).unwrap_or(i64::MAX)));
    assert!(text.ends_with('s') && !text.contains(['-', '+', '%', '&']), "{text}");
    let beyond = Duration::new(input.size(), u32::from(input.byte()) << 20);
    let expected = i64::try_from(beyond.as_nanos()).unwrap_or(i64::MAX);
    assert_eq!(go_parse_duration(&go_duration(beyond)), Ok(expected), "{beyond:?}");
}

/// For any valid address and any key, the request goes to that node and names exactly that key.
pub(crate) fn request(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (spelled, key) = text.split_once('\n').unwrap_or((text, "k"));
    let Ok(node) = Node::parse(spelled) else { return };
    if matches!(key, "" | "." | "..") || key.len() > MAX_KEY_BYTES {
        return;
    }
    let ttl = Duration::from_nanos(u64::from(crc32fast::hash(data)));
    for ttl in [None, (!ttl.is_zero()).then_some(ttl)] {
        let sent = url(&node, key, ttl);
        let (sent, base) = match (Url::parse(&sent), Url::parse(node.as_str())) {
            (Ok(sent), Ok(base)) => (sent, base),
            other => panic!("{node}: {other:?}"),
        };
        let place = |url: &Url| (url.scheme().to_owned(), url.host_str().map(str::to_owned));
        assert_eq!(place(&sent), place(&base), "{node}");
        assert_eq!(sent.port_or_known_default(), base.port_or_known_default(), "{node}");
        assert!(sent.username().is_empty() && sent.password().is_none(), "{node}");
        assert_eq!(sent.fragment(), None, "{node} {key:?}");
        // The policy judges the host that the client connects to.
        let Ok(judged) = Target::of(&node) else { panic!("{node}") };
        let host = sent.host_str().unwrap_or_default().trim_matches(['[', ']']);
        assert_eq!(judged.literal(), host.parse().ok(), "{node}");
        let Some((before, segment)) = sent.path().rsplit_once('/') else { panic!("{sent}") };
        assert_eq!(before, format!("{}/store", base.path().trim_end_matches('/')), "{node}");
        let decoded = percent_decode_str(segment).decode_utf8();
        assert_eq!(decoded.as_deref(), Ok(key), "{segment}");
        let query = sent.query().map(|query| query.strip_prefix("ttl=").map(go_parse_duration));
        let nanos = ttl.map(|ttl| i64::try_from(ttl.as_nanos()).unwrap_or(i64::MAX));
        assert_eq!(query, nanos.map(|nanos| Some(Ok(nanos))), "{sent}");
    }
}

/// Any answer has the verdict of the table, and an error that is short, printable and without the
/// key and the value.
pub(crate) fn answer(data: &[u8]) {
    let mut input = Input::new(data);
    let status = 100 + u16::try_from(input.size() % 900).unwrap_or_default();
    let Ok(status) = StatusCode::from_u16(status) else { panic!("{status}") };
    let command =
        if input.flag() { ReplicaCommand::Delete } else { ReplicaCommand::Put { ttl: None } };
    let wait_text = input.text();
    let now = Timestamp(input.size());
    let (key, value) = (input.text(), input.bytes());
    let body = input.rest();
    let wait = retry_after(&wait_text, now);
    assert!(wait.is_none_or(|wait| wait <= MAX_RETRY_AFTER), "{wait_text:?}: {wait:?}");
    let sent = Sent { command, key: &key, value };
    let verdict = verdict(&sent, &ReplicaAnswer { status, retry_after: wait, body });
    let phrase = b"already replicated".as_slice();
    let has = |hay: &[u8], needle: &[u8]| hay.windows(needle.len()).any(|part| part == needle);
    let says = |text: &[u8]| has(&text.to_ascii_lowercase(), phrase);
    let had = says(body) && !says(key.as_bytes()) && !says(value);
    let code = status.as_u16();
    let gone = matches!(code, 404 | 410) && command == ReplicaCommand::Delete;
    let expected = match code {
        200..300 => "delivered",
        _ if gone || had => "delivered",
        408 | 425 | 429 | 500.. => "retry",
        401 | 403 | 407 | 421 => "refused",
        _ => "rejected",
    };
    let (kind, error) = match &verdict {
        Verdict::Delivered => ("delivered", ""),
        Verdict::Retry { after, error, .. } => {
            assert_eq!(*after, wait);
            ("retry", &**error)
        }
        Verdict::Shortage { error } => ("shortage", &**error),
        Verdict::Rejected { error } => ("rejected", &**error),
        Verdict::Refused { error } => ("refused", &**error),
    };
    assert_eq!(kind, expected, "{code} to {command:?}");
    assert!(error.chars().count() <= 200 && !error.contains(char::is_control), "{error:?}");
    // Only the quote: the text before it may contain a short key by chance.
    let before = if kind == "refused" { "): " } else { ": " };
    let Some((_, quote)) = error.split_once(before) else { return };
    let mark = value.get(..16).unwrap_or(value);
    for secret in [key.as_bytes(), mark] {
        // The quote replaces white space and unprintable characters, so it cannot contain them.
        let whole = !secret.is_empty() && secret.iter().all(u8::is_ascii_graphic);
        assert!(!whole || !has(quote.as_bytes(), secret), "{quote:?} contains a part of the write");
    }
}

/// A port of Go's `time.ParseDuration`, with its overflows, its floating-point fractions and its
/// errors.
pub(super) fn go_parse_duration(text: &str) -> Result<i64, &'static str> {
    let (negative, mut rest) = match text.as_bytes() {
        [b'-', ..] => (true, &text[1..]),
        [b'+', ..] => (false, &text[1..]),
        _ => (false, text),
    };
    if rest == "0" {
        return Ok(0);
    }
    if rest.is_empty() {
        return Err("invalid duration");
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (whole, after) = digits(rest);
        let mut value = whole.bytes().try_fold(0_u64, |value, digit| {
            let value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
            (value <= 1 << 63).then_some(value)
        });
        let (fraction, after) = match after.strip_prefix('.') {
            Some(after) => digits(after),
            None => ("", after),
        };
        if whole.is_empty() && fraction.is_empty() {
            return Err("invalid duration");
        }
        let end = after.find(|c: char| c == '.' || c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let unit: u64 = match unit {
            "" => return Err("missing unit"),
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err("unknown unit"),
        };
        value = value.and_then(|value| value.checked_mul(unit)).filter(|value| *value <= 1 << 63);
        let Some(mut value) = value else { return Err("invalid duration") };
        // As in Go, digits that do not fit into an integer are ignored.
        let (mut part, mut scale, mut full) = (0_u64, 1.0_f64, false);
        for digit in fraction.bytes() {
            let next = part.checked_mul(10).and_then(|p| p.checked_add(u64::from(digit - b'0')));
            match next.filter(|next| !full && *next <= i64::MAX.unsigned_abs()) {
                Some(next) => (part, scale) = (next, scale * 10.0),
                None => full = true,
            }
        }
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "the same conversions as in Go"
        )]
        {
            value += (part as f64 * (unit as f64 / scale)) as u64;
        }
        total += value;
        if value > 1 << 63 || total > 1 << 63 {
            return Err("invalid duration");
        }
        rest = after;
    }
    match i64::try_from(total) {
        Ok(total) => Ok(if negative { -total } else { total }),
        Err(_) if negative && total == 1 << 63 => Ok(i64::MIN),
        Err(_) => Err("invalid duration"),
    }
}

fn digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}
