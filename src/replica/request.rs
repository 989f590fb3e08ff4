//! Builds the request of an attempt: path, headers and body. It sends nothing.
//!
//! Two mistakes would corrupt a replica: a node stores a value for ever if it cannot parse the ttl,
//! and a wrongly encoded key is another key.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Method, Request};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

use super::upload::Upload;
use crate::task::{Node, ReplicaCommand, Task, Trace};

const REPLICATION: HeaderName = HeaderName::from_static("x-replication");
const REPLICATION_ID: HeaderName = HeaderName::from_static("x-replication-id");
const REPLICATION_SEQUENCE: HeaderName = HeaderName::from_static("x-replication-sequence");
const REPLICATION_EPOCH: HeaderName = HeaderName::from_static("x-replication-epoch");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");
const ANYTHING: HeaderValue = HeaderValue::from_static("*/*");

/// Everything except the unreserved characters of RFC 3986, so that any key is one path segment.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'~').remove(b'.');

const LONGEST_GO_DURATION: Duration = Duration::from_nanos(i64::MAX.unsigned_abs());

/// Builds the request. `X-Replication-Id` is the same for every attempt of a delivery. `epoch` is that
/// of the owner of a partition.
pub(super) fn build(
    node_id: &str,
    node: &Node,
    task: &Task,
    command: ReplicaCommand,
    trace: Option<&Trace>,
    epoch: Option<u64>,
) -> hyper::http::Result<Request<Upload>> {
    let (authority, base) = parts(node);
    let mut request = Request::builder().header(HOST, authority).header(ACCEPT, ANYTHING);
    let body = match command {
        ReplicaCommand::Put { ttl } => {
            request = request
                .method(Method::PUT)
                .uri(path(base, &task.key, ttl))
                .header(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"))
                // By default hyper sends no length for an empty body.
                .header(CONTENT_LENGTH, task.value.len());
            Upload::of(Bytes::clone(&task.value))
        }
        ReplicaCommand::Delete => {
            request = request.method(Method::DELETE).uri(path(base, &task.key, None));
            Upload::of(Bytes::new())
        }
    };
    if let Some(trace) = trace {
        request = request.header(TRACEPARENT, &*trace.parent);
        if let Some(state) = &trace.state {
            request = request.header(TRACESTATE, &**state);
        }
    }
    if let Some(epoch) = epoch {
        request = request.header(REPLICATION_EPOCH, epoch);
    }
    request
        .header(REPLICATION, HeaderValue::from_static("true"))
        .header(REPLICATION_ID, format!("{node_id}-{}", task.id))
        .header(REPLICATION_SEQUENCE, task.id.0)
        .body(body)
}

/// Builds the request that reads the value of a key.
pub(super) fn read(node: &Node, key: &str) -> hyper::http::Result<Request<Upload>> {
    let (authority, base) = parts(node);
    Request::builder()
        .method(Method::GET)
        .uri(path(base, key, None))
        .header(HOST, authority)
        .header(ACCEPT, ANYTHING)
        .body(Upload::of(Bytes::new()))
}

/// The host with its port, and the base path, which may be empty.
fn parts(node: &Node) -> (&str, &str) {
    let text = node.as_str();
    let rest = text.split_once("://").map_or(text, |(_, rest)| rest);
    rest.split_at(rest.find('/').unwrap_or(rest.len()))
}

fn path(base: &str, key: &str, ttl: Option<Duration>) -> String {
    let mut path = format!("{base}/store/{}", segment(key));
    if let Some(ttl) = ttl {
        path.push_str("?ttl=");
        path.push_str(&go_duration(ttl));
    }
    path
}

#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn url(node: &Node, key: &str, ttl: Option<Duration>) -> String {
    let (authority, base) = parts(node);
    let scheme = if node.as_str().starts_with("https:") { "https" } else { "http" };
    format!("{scheme}://{authority}{}", path(base, key, ttl))
}

pub(super) fn segment(key: &str) -> PercentEncode<'_> {
    utf8_percent_encode(key, ENCODED)
}

/// Formats a duration for Go's `time.ParseDuration`, exact to the nanosecond: `1h0m0s`, `1m1.5s`,
/// `0.000000001s`. Longer durations become the longest that Go can parse, about 292 years.
///
/// Callers never pass zero ([`ReplicaCommand::Put`] never holds it): a node reads `0s` as no ttl.
pub fn go_duration(duration: Duration) -> String {
    let duration = duration.min(LONGEST_GO_DURATION);
    let seconds = duration.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);

    let mut text = String::new();
    let _ = match (hours, minutes) {
        (0, 0) => write!(text, "{seconds}"),
        (0, _) => write!(text, "{minutes}m{seconds}"),
        (_, _) => write!(text, "{hours}h{minutes}m{seconds}"),
    };
    let nanos = duration.subsec_nanos();
    if nanos > 0 {
        let fraction = format!("{nanos:09}");
        text.push('.');
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push('s');
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::replica::fuzzing::go_parse_duration;

    #[test]
    fn durations_are_formatted_as_in_go() {
        let cases = [
            (Duration::from_secs(1), "1s"),
            (Duration::from_secs(59), "59s"),
            (Duration::from_secs(60), "1m0s"),
            (Duration::from_millis(61_500), "1m1.5s"),
            (Duration::from_secs(3_600), "1h0m0s"),
            (Duration::from_secs(3_661), "1h1m1s"),
            (Duration::from_secs(90_000), "25h0m0s"),
            (Duration::from_millis(1_500), "1.5s"),
            (Duration::from_millis(10), "0.01s"),
            (Duration::from_nanos(1), "0.000000001s"),
            (Duration::from_nanos(1_000_000_001), "1.000000001s"),
            (Duration::from_nanos(999_999_999), "0.999999999s"),
            (Duration::from_millis(3_600_100), "1h0m0.1s"),
        ];
        for (duration, text) in cases {
            assert_eq!(go_duration(duration), text);
        }
    }

    #[test]
    fn the_parser_of_these_tests_is_as_strict_as_that_of_go() {
        for (text, nanos) in [
            ("0", 0),
            ("-5s", -5_000_000_000),
            ("+.5s", 500_000_000),
            ("5.s", 5_000_000_000),
            ("10ns11us12ms", 12_011_010),
            ("3h30.5m", 12_630_000_000_000),
            ("0.3333333333333333333h", 1_200_000_000_000),
            ("9223372036854775807ns", i64::MAX),
            ("-9223372036854775808ns", i64::MIN),
        ] {
            assert_eq!(go_parse_duration(text), Ok(nanos), "{text}");
        }
        for text in ["", "3", "-", "s", ".", "-.", ".s", "+.s", "1d", "5S", "1 s", "3000000h"] {
            assert!(go_parse_duration(text).is_err(), "{text}");
        }
        for text in ["9223372036854775808ns", "9223372036854775.808us", "-9223372036854775809ns"] {
            assert!(go_parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_duration_beyond_the_range_of_go_becomes_its_longest() {
        let longest = "2562047h47m16.854775807s";
        assert_eq!(go_duration(Duration::MAX), longest);
        assert_eq!(go_duration(Duration::from_nanos(u64::MAX)), longest);
        assert_eq!(go_parse_duration(longest), Ok(i64::MAX));
    }

    proptest! {
        #[test]
        fn go_parses_a_duration_exact_to_the_nanosecond(nanos in prop_oneof![
            1..10_000_000_000_i64,
            1..=i64::MAX,
            (1..100_000_i64).prop_map(|seconds| seconds * 1_000_000_000),
            (1..100_000_i64).prop_map(|millis| millis * 1_000_000),
        ]) {
            let text = go_duration(Duration::from_nanos(nanos.unsigned_abs()));
            prop_assert_eq!(go_parse_duration(&text), Ok(nanos), "{}", text);
        }

        #[test]
        fn any_key_is_one_segment_that_decodes_to_itself(key in "\\PC{1,64}") {
            let encoded = segment(&key).to_string();
            prop_assert!(
                encoded.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_~.%".contains(&b)),
                "{}", encoded
            );
            let decoded = percent_encoding::percent_decode_str(&encoded).decode_utf8().unwrap();
            prop_assert_eq!(decoded, key);
        }
    }
}
