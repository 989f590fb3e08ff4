//! Single rows of the cluster's own streams: read from the leader, written by compare-and-set.
//!
//! A row is the only message of its subject. Its version is the sequence of that message, 0 without
//! one.

use std::time::Duration;

use async_nats::client::Request;
use async_nats::{Client, HeaderMap, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

use crate::task::Timestamp;

/// Another message of the subject was stored, or is being stored.
const WRONG_LAST_SEQUENCE: [u64; 2] = [10071, 10164];
const NO_MESSAGE_FOUND: u64 = 10037;
const STORE_FAILED: u64 = 10077;

/// The longest wait for one answer, after which the request is sent again. A request that was sent
/// while a stream had no leader is not answered later.
const ONE_TRY: Duration = Duration::from_secs(2);

const PAUSE: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) subject: String,
    pub(super) sequence: u64,
    pub(super) payload: Vec<u8>,
    /// By the clock of the server.
    pub(super) stored_at: Timestamp,
}

/// The outcome of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// With this sequence.
    Stored(u64),
    /// The row has another version.
    Refused,
    /// The stream is full.
    Full,
    /// The write may have been stored.
    Unanswered,
    Failed(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Got {
    Row(Row),
    None,
    Unanswered,
    Failed(String),
}

/// Which row is read.
#[derive(Serialize)]
#[serde(untagged)]
pub(super) enum Wanted<'a> {
    Last {
        #[serde(rename = "last_by_subj")]
        subject: &'a str,
    },
    /// The first one from this sequence on.
    Next {
        seq: u64,
        #[serde(rename = "next_by_subj")]
        subjects: &'a str,
    },
}

#[derive(Deserialize)]
struct PutAnswer {
    #[serde(default)]
    seq: u64,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct GetAnswer {
    message: Option<Message>,
    error: Option<ApiError>,
}

#[derive(Deserialize)]
struct ApiError {
    #[serde(default)]
    code: u64,
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct Message {
    subject: String,
    seq: u64,
    #[serde(default)]
    data: String,
    time: String,
}

/// Writes a row if it has the version `expected`, whatever it has with `None`. Sent more than once if
/// there is no answer: it may find its own message.
pub(super) async fn put(
    client: &Client,
    subject: String,
    payload: Bytes,
    expected: Option<u64>,
    ttl: Option<Duration>,
    timeout: Duration,
) -> Put {
    let mut headers = HeaderMap::new();
    if let Some(expected) = expected {
        headers.insert(header::NATS_EXPECTED_LAST_SUBJECT_SEQUENCE, expected.to_string());
    }
    if let Some(ttl) = ttl {
        headers.insert(header::NATS_MESSAGE_TTL, format!("{}s", ttl.as_secs().max(1)));
    }
    let Some(answer) = ask::<PutAnswer>(client, subject, headers, payload, timeout).await else {
        return Put::Unanswered;
    };
    match answer.error {
        None => Put::Stored(answer.seq),
        Some(error) if WRONG_LAST_SEQUENCE.contains(&error.err_code) => Put::Refused,
        Some(error) if error.err_code == STORE_FAILED && error.description.contains("maximum") => {
            Put::Full
        }
        Some(error) if error.code == 503 => Put::Unanswered,
        Some(error) => Put::Failed(error.description),
    }
}

/// Reads a row from the leader of a stream: no write that was acknowledged before is missing.
pub(super) async fn get(
    client: &Client,
    stream: &str,
    wanted: &Wanted<'_>,
    timeout: Duration,
) -> Got {
    let subject = format!("$JS.API.STREAM.MSG.GET.{stream}");
    let payload = match serde_json::to_vec(wanted) {
        Ok(payload) => payload.into(),
        Err(error) => return Got::Failed(error.to_string()),
    };
    let answer = ask::<GetAnswer>(client, subject, HeaderMap::new(), payload, timeout).await;
    match answer {
        None => Got::Unanswered,
        Some(GetAnswer { error: Some(error), .. }) => match error {
            ApiError { err_code: NO_MESSAGE_FOUND, .. } => Got::None,
            ApiError { code: 503, .. } => Got::Unanswered,
            ApiError { description, .. } => Got::Failed(description),
        },
        Some(GetAnswer { message: None, .. }) => Got::Failed("an empty answer".to_owned()),
        Some(GetAnswer { message: Some(message), .. }) => {
            match (STANDARD.decode(&message.data), humantime::parse_rfc3339(&message.time)) {
                (Ok(payload), Ok(time)) => {
                    let since = time.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
                    let stored_at = Timestamp(0).saturating_add(since);
                    let Message { subject, seq: sequence, .. } = message;
                    Got::Row(Row { subject, sequence, payload, stored_at })
                }
                _ => Got::Failed("an unreadable answer".to_owned()),
            }
        }
    }
}

/// Sends a request until it is answered. `None` without an answer.
async fn ask<T: for<'de> Deserialize<'de>>(
    client: &Client,
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
    within: Duration,
) -> Option<T> {
    let deadline = now() + within;
    loop {
        let left = deadline.saturating_duration_since(now());
        let request = Request::new().payload(payload.clone()).headers(headers.clone());
        let answer = client.send_request(subject.clone(), request.timeout(None));
        // The timeout covers sending, too: without a connection the client can block before it sends.
        if let Ok(Ok(answer)) = timeout(ONE_TRY.min(left), answer).await
            && let Ok(answer) = serde_json::from_slice(&answer.payload)
        {
            return Some(answer);
        }
        if now() + PAUSE >= deadline {
            return None;
        }
        sleep(PAUSE).await;
    }
}

#[expect(clippy::disallowed_methods, reason = "for the deadlines of requests")]
pub(super) fn now() -> Instant {
    Instant::now()
}
