//! The verdict of an answer, as a pure function.
//!
//! | answer | verdict |
//! | --- | --- |
//! | 2xx; 404 or 410 to a DELETE; any answer whose body says `already replicated`, in any case | delivered |
//! | 5xx, 408, 425, 429, and a status that HTTP does not know (600 and above) | retry |
//! | 401, 403, 407, 421 | refused: the replica takes no write with these credentials |
//! | any other 4xx, 3xx, and 1xx as the final answer | rejected |
//!
//! It also writes the error texts. They are stored and shown to operators, so they are short and
//! printable, and contain neither the key nor the value.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;

use super::quote::{first, quote};
use crate::task::{ReplicaCommand, Timestamp, Verdict};

const MAX_ERROR_CHARS: usize = 200;

/// Upper limit of `Retry-After`. Proxies send defaults such as 86400 and clocks can be wrong: without
/// the limit the replica would stay stale for a day after it is back.
pub(super) const MAX_RETRY_AFTER: Duration = Duration::from_secs(5 * 60);

const ALREADY: &[u8] = b"already replicated";

#[derive(Clone, Copy, Debug)]
pub(super) struct Sent<'a> {
    pub(super) command: ReplicaCommand,
    pub(super) key: &'a str,
    pub(super) value: &'a [u8],
}

#[derive(Clone, Copy, Debug)]
pub(super) struct ReplicaAnswer<'a> {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<Duration>,
    /// May be empty for a 2xx, where only the status counts.
    pub(super) body: &'a [u8],
}

pub(super) fn verdict(sent: &Sent<'_>, answer: &ReplicaAnswer<'_>) -> Verdict {
    let status = answer.status;
    let gone = matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE);
    if status.is_success()
        || (sent.command == ReplicaCommand::Delete && gone)
        || says_already_replicated(sent, answer.body)
    {
        Verdict::Delivered
    } else if is_retryable(status) {
        Verdict::Retry {
            after: answer.retry_after,
            error: shorten(&format!("the replica answered {}", status_text(status))),
        }
    } else {
        let (quote, status_text) = (quote(sent, answer.body), status_text(status));
        let colon = if quote.is_empty() { "" } else { ": " };
        match remedy(status) {
            Some(remedy) => Verdict::Refused {
                error: shorten(&format!(
                    "{status_text}: the replica refused the write ({remedy}){colon}{quote}"
                )),
            },
            None => Verdict::Rejected {
                error: shorten(&format!(
                    "the replica rejected the write with {status_text}{colon}{quote}"
                )),
            },
        }
    }
}

/// What an operator can do about a status by which a replica refuses all writes.
fn remedy(status: StatusCode) -> Option<&'static str> {
    Some(match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => "check its credentials",
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => "check the credentials for its proxy",
        StatusCode::MISDIRECTED_REQUEST => "check its address",
        _ => return None,
    })
}

/// RFC 9110 treats a status of 600 or above as a 5xx.
fn is_retryable(status: StatusCode) -> bool {
    status.as_u16() >= 500
        || matches!(
            status,
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
        )
}

/// Error pages repeat the request. If the key or the value contains the phrase, finding it in the
/// answer proves nothing, and believing it could lose the write.
fn says_already_replicated(sent: &Sent<'_>, body: &[u8]) -> bool {
    // The short body first: most values are never searched.
    has_phrase(body) && !has_phrase(sent.key.as_bytes()) && !has_phrase(sent.value)
}

fn has_phrase(text: &[u8]) -> bool {
    text.windows(ALREADY.len()).any(|bytes| bytes.eq_ignore_ascii_case(ALREADY))
}

pub(super) fn retry_after(text: &str, now: Timestamp) -> Option<Duration> {
    let text = text.trim();
    let wait = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let date = httpdate::parse_http_date(text).ok()?;
        let since_epoch = date.duration_since(std::time::UNIX_EPOCH).ok()?;
        Timestamp(0).saturating_add(since_epoch).saturating_since(now)
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// A gateway that timed out does not know whether the replica applied the write.
pub(super) fn is_ambiguous(status: StatusCode) -> bool {
    status == StatusCode::GATEWAY_TIMEOUT
}

pub(super) fn unanswered(error: &str) -> Verdict {
    Verdict::Retry { after: None, error: shorten(error) }
}

pub(super) fn shortage(error: &str) -> Verdict {
    Verdict::Shortage { error: shorten(error) }
}

pub(super) fn unsendable(error: &str) -> Verdict {
    Verdict::Rejected { error: shorten(error) }
}

fn status_text(status: StatusCode) -> String {
    match status.canonical_reason() {
        Some(reason) => format!("{} {reason}", status.as_u16()),
        None => status.as_u16().to_string(),
    }
}

fn shorten(text: &str) -> Arc<str> {
    first(text, MAX_ERROR_CHARS).into()
}

#[cfg(test)]
mod tests {
    use super::super::quote::MAX_QUOTE_CHARS;
    use super::*;

    const PUT: ReplicaCommand = ReplicaCommand::Put { ttl: None };

    fn sent(command: ReplicaCommand) -> Sent<'static> {
        Sent { command, key: "the/key", value: b"the value of the write" }
    }

    fn verdict_on(command: ReplicaCommand, status: u16, body: &str) -> Verdict {
        let answer = ReplicaAnswer {
            status: StatusCode::from_u16(status).unwrap(),
            retry_after: None,
            body: body.as_bytes(),
        };
        verdict(&sent(command), &answer)
    }

    fn kind(verdict: &Verdict) -> &'static str {
        match verdict {
            Verdict::Delivered => "delivered",
            Verdict::Retry { .. } => "retry",
            Verdict::Shortage { .. } => "shortage",
            Verdict::Rejected { .. } => "rejected",
            Verdict::Refused { .. } => "refused",
        }
    }

    fn text(verdict: &Verdict) -> String {
        verdict.error().unwrap().to_string()
    }

    #[test]
    fn every_status_has_the_verdict_of_the_table() {
        for command in [PUT, ReplicaCommand::Delete] {
            for status in 100..1000 {
                let expected = match status {
                    200..300 => "delivered",
                    404 | 410 if command == ReplicaCommand::Delete => "delivered",
                    408 | 425 | 429 | 500.. => "retry",
                    401 | 403 | 407 | 421 => "refused",
                    _ => "rejected",
                };
                let verdict = verdict_on(command, status, "");
                assert_eq!(kind(&verdict), expected, "{status} to {command:?}");
            }
        }
    }

    #[test]
    fn already_replicated_is_delivered_with_any_status() {
        for status in [101, 302, 400, 404, 409, 429, 500, 503] {
            for command in [PUT, ReplicaCommand::Delete] {
                let body = r#"{"error":"sequence 7 already replicated"}"#;
                assert_eq!(verdict_on(command, status, body), Verdict::Delivered);
            }
        }
        assert_eq!(kind(&verdict_on(PUT, 409, "already there")), "rejected");
    }

    #[test]
    fn already_replicated_counts_in_any_case() {
        for body in ["Already Replicated", "ALREADY REPLICATED", "error: aLREADY rEPLICATED."] {
            assert_eq!(verdict_on(PUT, 409, body), Verdict::Delivered, "{body}");
        }
    }

    #[test]
    fn an_answer_that_only_repeats_the_write_does_not_deliver_it() {
        let answer = ReplicaAnswer {
            status: StatusCode::INTERNAL_SERVER_ERROR,
            retry_after: None,
            body: b"cannot store 'Already replicated'",
        };
        for key in ["already replicated", "ALREADY Replicated"] {
            assert_eq!(kind(&verdict(&Sent { key, ..sent(PUT) }, &answer)), "retry", "{key}");
        }
        for value in [b"it says already replicated".as_slice(), b"it says Already Replicated"] {
            assert_eq!(kind(&verdict(&Sent { value, ..sent(PUT) }, &answer)), "retry");
        }
    }

    #[test]
    fn every_retryable_answer_carries_its_retry_after() {
        for status in [408, 425, 429, 500, 503] {
            let answer = ReplicaAnswer {
                status: StatusCode::from_u16(status).unwrap(),
                retry_after: Some(Duration::from_secs(7)),
                body: b"",
            };
            let Verdict::Retry { after, .. } = verdict(&sent(PUT), &answer) else {
                panic!("{status} is retryable");
            };
            assert_eq!(after, Some(Duration::from_secs(7)));
        }
    }

    #[test]
    fn retry_after_is_parsed_as_seconds_or_as_a_date() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now = Timestamp(784_111_777_000_000_000);
        let seconds = |s| Some(Duration::from_secs(s));
        assert_eq!(retry_after("120", now), seconds(120));
        assert_eq!(retry_after(" 0 ", now), seconds(0));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:50:07 GMT", now), seconds(30));
        assert_eq!(
            retry_after("Sun, 06 Nov 1994 08:00:00 GMT", now),
            seconds(0),
            "a date in the past is now"
        );
        for nonsense in ["", "-1", "1.5", "soon", "12s", "+5"] {
            assert_eq!(retry_after(nonsense, now), None, "{nonsense:?}");
        }
    }

    #[test]
    fn retry_after_is_limited_to_five_minutes() {
        let now = Timestamp(784_111_777_000_000_000);
        for long in ["301", "86400", "99999999999999999999999999", "Mon, 07 Nov 1994 08:49:37 GMT"]
        {
            assert_eq!(retry_after(long, now), Some(MAX_RETRY_AFTER), "{long}");
        }
    }

    #[test]
    fn a_rejection_names_its_status_and_quotes_the_answer() {
        assert_eq!(
            text(&verdict_on(PUT, 400, "value\n\tis \u{1b}[31mtoo   odd\0")),
            "the replica rejected the write with 400 Bad Request: value is [31mtoo odd"
        );
        assert_eq!(text(&verdict_on(PUT, 499, "")), "the replica rejected the write with 499");
    }

    #[test]
    fn a_refusal_names_its_status_and_what_to_check_and_quotes_the_answer() {
        for (status, expected) in [
            (401, "401 Unauthorized: the replica refused the write (check its credentials)"),
            (403, "403 Forbidden: the replica refused the write (check its credentials)"),
            (
                407,
                "407 Proxy Authentication Required: the replica refused the write (check the credentials for its proxy)",
            ),
            (421, "421 Misdirected Request: the replica refused the write (check its address)"),
        ] {
            assert_eq!(text(&verdict_on(PUT, status, "")), expected);
            let quoted = text(&verdict_on(PUT, status, "no\u{1b}[31m role"));
            assert_eq!(quoted, format!("{expected}: no [31m role"));
        }
    }

    #[test]
    fn a_failure_names_its_status() {
        assert_eq!(
            text(&verdict_on(PUT, 503, "<html>down</html>")),
            "the replica answered 503 Service Unavailable"
        );
    }

    #[test]
    fn a_quote_ends_where_the_answer_repeats_the_key_or_the_value() {
        for body in [
            "no room for the/key at all",
            "no room for the%2Fkey at all",
            "no room for the value of the write at all",
            "no room for the value of the wr",
        ] {
            let error = text(&verdict_on(PUT, 400, body));
            assert!(error.ends_with(": no room for …"), "{error}");
        }
    }

    #[test]
    fn an_error_is_short_and_cut_between_characters() {
        let long = "ü".repeat(1000);
        let rejected = text(&verdict_on(PUT, 400, &long));
        assert!(rejected.ends_with('ü'));
        assert_eq!(rejected.matches('ü').count(), MAX_QUOTE_CHARS);
        assert!(rejected.chars().count() <= MAX_ERROR_CHARS);

        let unanswered = text(&unanswered(&long));
        assert_eq!(unanswered.chars().count(), MAX_ERROR_CHARS);
    }
}
