//! The requests to the servers, as far as async-nats does not have them.
//!
//! - **Atomic batch** (ADR-50): at most 1000 messages, which are stored all or none, one after
//!   the other.
//! - **Direct get** (ADR-31): any server of the stream answers, from a prefix of the log. So a message
//!   that it does not have may exist.

use std::time::Duration;

use async_nats::{HeaderMap, Message, Request, RequestErrorKind};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;
use thiserror::Error;
use tokio::time::timeout;

use super::connect::Store;
use super::inbox::{NotSent, request_all};
use super::message::random;
use super::status::PartitionLog;
use crate::task::Partition;

const MESSAGE_ID: &str = "Nats-Msg-Id";
const EXPECTED: &str = "Nats-Expected-Last-Subject-Sequence";
const ROLLUP: &str = "Nats-Rollup";

/// Messages and bytes of one read.
const READ_MESSAGES: usize = 1000;
const READ_BYTES: usize = 4 << 20;

/// How long a server may take for an answer.
const ANSWER: Duration = Duration::from_secs(2);

/// A message to be stored.
#[derive(Clone, Debug)]
pub(super) struct Outgoing {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

impl Outgoing {
    pub(super) fn new(subject: String, payload: Bytes) -> Self {
        Self { subject, headers: HeaderMap::new(), payload }
    }

    #[cfg(test)]
    pub(super) fn into_parts(self) -> (String, Bytes) {
        (self.subject, self.payload)
    }

    /// Repeats of the same id are not stored.
    pub(super) fn with_id(mut self, id: &str) -> Self {
        self.headers.insert(MESSAGE_ID, id);
        self
    }

    /// Stored only if the last message of its subject has this sequence, and replaces that one.
    pub(super) fn after(self, sequence: u64) -> Self {
        let mut this = self.replacing();
        this.headers.insert(EXPECTED, sequence.to_string());
        this
    }

    /// Replaces earlier messages of its subject.
    pub(super) fn replacing(mut self) -> Self {
        self.headers.insert(ROLLUP, "sub");
        self
    }
}

/// A message is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ack {
    pub(super) sequence: u64,
    /// It was before.
    pub(super) is_duplicate: bool,
}

/// A message of a stream.
#[derive(Clone, Debug)]
pub(super) struct LogMessage {
    pub(super) sequence: u64,
    pub(super) subject: String,
    pub(super) payload: Bytes,
}

#[derive(Clone, Debug, Error)]
pub(super) enum StoreRequestError {
    /// The message did not follow the one that it should.
    #[error("another message came first")]
    OutOfTurn,
    /// A message with this id is stored.
    #[error("it is stored already")]
    Duplicate,
    #[error("the stream has reached its limit: {0}")]
    Full(String),
    /// It may have had an effect, or may have later.
    #[error("{0}")]
    Unanswered(String),
}

use StoreRequestError::Unanswered;

#[derive(Deserialize)]
struct StoreAnswer {
    error: Option<RequestRefusal>,
    #[serde(default)]
    seq: u64,
    #[serde(default)]
    duplicate: bool,
    message: Option<StoredMessage>,
    state: Option<StreamState>,
    config: Option<StreamLimits>,
    cluster: Option<StreamGroup>,
}

#[derive(Deserialize)]
struct StreamState {
    bytes: u64,
}

#[derive(Deserialize)]
struct StreamLimits {
    max_bytes: i64,
}

#[derive(Deserialize)]
struct StreamGroup {
    leader: Option<String>,
    #[serde(default)]
    replicas: Vec<StreamCopy>,
}

#[derive(Deserialize)]
struct StreamCopy {
    #[serde(default)]
    lag: u64,
}

#[derive(Deserialize)]
struct RequestRefusal {
    #[serde(default)]
    err_code: u64,
    #[serde(default)]
    description: String,
}

#[derive(Deserialize)]
struct StoredMessage {
    subject: String,
    seq: u64,
    #[serde(default)]
    data: String,
}

const NOT_FOUND: u64 = 10037;

/// The statuses of messages without a payload.
const END: u16 = 204;
const MISSING: u16 = 404;
const NO_RESPONDERS: u16 = 503;

impl RequestRefusal {
    fn into_error(self) -> StoreRequestError {
        match self.err_code {
            10071 | 10164 => StoreRequestError::OutOfTurn,
            10201 => StoreRequestError::Duplicate,
            10023 | 10047 | 10077 | 10122 => StoreRequestError::Full(self.description),
            _ => Unanswered(self.description),
        }
    }
}

impl Store {
    pub(super) async fn publish(
        &self,
        message: Outgoing,
        within: Duration,
    ) -> Result<Ack, StoreRequestError> {
        let Outgoing { subject, headers, payload } = message;
        let request = Request::new().headers(headers).payload(payload);
        self.stored(subject, request, within).await
    }

    /// Stores messages of one stream, all or none. The answer is that to the last one; the others are
    /// right before it.
    pub(super) async fn publish_batch(
        &self,
        mut messages: Vec<Outgoing>,
        within: Duration,
    ) -> Result<Ack, StoreRequestError> {
        let id = format!("{:016x}", u64::from_be_bytes(random()));
        for (nth, message) in (1..).zip(&mut messages) {
            message.headers.insert("Nats-Batch-Id", &*id);
            message.headers.insert("Nats-Batch-Sequence", nth.to_string());
        }
        let Some(mut last) = messages.pop() else {
            return Err(Unanswered("there is nothing to store".to_owned()));
        };
        last.headers.insert("Nats-Batch-Commit", "1");
        // Without a connection the client takes a limited number of messages, and then waits for one.
        let all_but_last = async {
            for Outgoing { subject, headers, payload } in messages {
                let sent = self.client().publish_with_headers(subject, headers, payload).await;
                sent.map_err(|error| Unanswered(error.to_string()))?;
            }
            Ok(())
        };
        timeout(within, all_but_last)
            .await
            .unwrap_or_else(|_| Err(Unanswered(NotSent.to_string())))?;
        self.publish(last, within).await
    }

    async fn stored(
        &self,
        subject: String,
        request: Request,
        within: Duration,
    ) -> Result<Ack, StoreRequestError> {
        let answer = self.ask(subject, request, within).await?;
        match answer.error {
            Some(error) => Err(error.into_error()),
            None if answer.seq == 0 => Err(Unanswered("the answer has no sequence".to_owned())),
            None => Ok(Ack { sequence: answer.seq, is_duplicate: answer.duplicate }),
        }
    }

    async fn ask(
        &self,
        subject: String,
        request: Request,
        within: Duration,
    ) -> Result<StoreAnswer, StoreRequestError> {
        let message = self.request(subject, request, within).await?;
        serde_json::from_slice(&message.payload)
            .map_err(|error| Unanswered(format!("the answer cannot be read: {error}")))
    }

    async fn request(
        &self,
        subject: String,
        request: Request,
        within: Duration,
    ) -> Result<Message, StoreRequestError> {
        let request = request.timeout(None);
        let answer = timeout(within, self.client().send_request(subject, request)).await;
        let answer = answer.map_err(|_| Unanswered("there is no answer".to_owned()))?;
        answer.map_err(|error| {
            Unanswered(match error.kind() {
                RequestErrorKind::NoResponders => "the stream has no leader".to_owned(),
                _ => error.to_string(),
            })
        })
    }

    /// Reads messages of a partition from `first` on, in order: those that one of the servers has, up
    /// to a limit. A missing sequence between two of them does not exist.
    pub(super) async fn read_from(
        &self,
        partition: Partition,
        first: u64,
    ) -> Result<Vec<LogMessage>, StoreRequestError> {
        self.read_batch(partition, first, READ_MESSAGES).await
    }

    pub(super) async fn read_batch(
        &self,
        partition: Partition,
        first: u64,
        messages: usize,
    ) -> Result<Vec<LogMessage>, StoreRequestError> {
        let failed = |error: String| Unanswered(error);
        let subject = format!("$JS.API.DIRECT.GET.{}", self.names().stream(partition));
        let request = json!({ "seq": first, "batch": messages, "max_bytes": READ_BYTES });
        let (client, request) = (self.client(), Bytes::from(request.to_string()));
        let answers = request_all(client, subject, client.new_inbox(), request, ANSWER).await;
        let mut answers = answers.map_err(|error| failed(error.to_string()))?;
        let mut read = Vec::new();
        loop {
            let answer = timeout(ANSWER, answers.next()).await;
            let answer = answer.map_err(|_| failed("there is no answer".to_owned()))?;
            let answer = answer.ok_or_else(|| failed("the connection is closed".to_owned()))?;
            match answer.status {
                None => read.push(stored(answer)?),
                Some(status) if status == END || status == MISSING => return Ok(read),
                Some(status) if status == NO_RESPONDERS => {
                    return Err(failed("no server of the stream answers".to_owned()));
                }
                Some(status) => {
                    let why = answer.description.unwrap_or_default();
                    return Err(failed(format!("the server answers {status} {why}")));
                }
            }
        }
    }

    /// The last message of a subject that one of the servers has.
    pub(super) async fn last(
        &self,
        partition: Partition,
        subject: &str,
    ) -> Result<Option<LogMessage>, StoreRequestError> {
        let stream = self.names().stream(partition);
        let subject = format!("$JS.API.DIRECT.GET.{stream}.{subject}");
        let message = self.request(subject, Request::new(), ANSWER).await?;
        match message.status {
            None => stored(message).map(Some),
            Some(status) if status == MISSING => Ok(None),
            Some(status) => Err(Unanswered(format!("the server answers {status}"))),
        }
    }

    /// The last message of a subject, as the leader has it.
    pub(super) async fn last_of_leader(
        &self,
        partition: Partition,
        subject: &str,
    ) -> Result<Option<LogMessage>, StoreRequestError> {
        self.get(partition, &json!({ "last_by_subj": subject })).await
    }

    /// One message, as the leader has it.
    pub(super) async fn of_leader(
        &self,
        partition: Partition,
        sequence: u64,
    ) -> Result<Option<LogMessage>, StoreRequestError> {
        self.get(partition, &json!({ "seq": sequence })).await
    }

    async fn get(
        &self,
        partition: Partition,
        what: &serde_json::Value,
    ) -> Result<Option<LogMessage>, StoreRequestError> {
        let subject = format!("$JS.API.STREAM.MSG.GET.{}", self.names().stream(partition));
        let request = Request::new().payload(what.to_string().into());
        let answer = self.ask(subject, request, ANSWER).await?;
        match (answer.error, answer.message) {
            (Some(error), _) if error.err_code == NOT_FOUND => Ok(None),
            (Some(error), _) => Err(Unanswered(error.description)),
            (None, Some(StoredMessage { subject, seq: sequence, data })) => {
                let payload = STANDARD.decode(data);
                let payload = payload.map_err(|error| Unanswered(error.to_string()))?.into();
                Ok(Some(LogMessage { sequence, subject, payload }))
            }
            (None, None) => Err(Unanswered("the answer has no message".to_owned())),
        }
    }

    /// The log of a partition, as its leader knows it.
    pub(super) async fn log(
        &self,
        partition: Partition,
    ) -> Result<PartitionLog, StoreRequestError> {
        let subject = format!("$JS.API.STREAM.INFO.{}", self.names().stream(partition));
        let answer = self.ask(subject, Request::new(), ANSWER).await?;
        match (answer.error, answer.state) {
            (Some(error), _) => Err(Unanswered(error.description)),
            (None, Some(StreamState { bytes })) => {
                // A server of a group without a leader answers, too.
                let (leader, lag) = match answer.cluster {
                    Some(StreamGroup { leader: None, .. }) => {
                        return Err(Unanswered("the stream has no leader".to_owned()));
                    }
                    Some(StreamGroup { leader, replicas }) => {
                        (leader, replicas.iter().map(|copy| copy.lag).max().unwrap_or_default())
                    }
                    None => (None, 0),
                };
                let limit = answer.config.and_then(|config| u64::try_from(config.max_bytes).ok());
                Ok(PartitionLog { leader, lag, bytes, max_bytes: limit })
            }
            (None, None) => Err(Unanswered("the answer has no state".to_owned())),
        }
    }

    /// Removes all messages of a partition before `sequence`.
    pub(super) async fn purge_before(
        &self,
        partition: Partition,
        sequence: u64,
    ) -> Result<(), StoreRequestError> {
        let subject = format!("$JS.API.STREAM.PURGE.{}", self.names().stream(partition));
        let request = Request::new().payload(json!({ "seq": sequence }).to_string().into());
        let answer = self.ask(subject, request, ANSWER).await?;
        answer.error.map_or(Ok(()), |error| Err(Unanswered(error.description)))
    }
}

fn stored(message: Message) -> Result<LogMessage, StoreRequestError> {
    let header = |name| {
        let value = message.headers.as_ref().and_then(|headers| headers.get(name));
        value.map(async_nats::HeaderValue::as_str)
    };
    let sequence = header("Nats-Sequence").and_then(|text| text.parse().ok());
    let (Some(sequence), Some(subject)) = (sequence, header("Nats-Subject")) else {
        return Err(Unanswered("a message has no sequence".to_owned()));
    };
    Ok(LogMessage { sequence, subject: subject.to_owned(), payload: message.payload })
}
