//! Reads request bodies within limits on size, time and shared memory.
//!
//! Only large bodies are charged to the shared memory, of which each client has a share. Small ones,
//! which are nearly all, never wait for it.

use std::pin::pin;
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, EXPECT};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;

use super::ServerSettings;
use super::client_pool::{ClientPool, PoolClient, PoolShare};
use super::errors::Problem;
use super::wire::shown;

/// Bodies up to this size are not charged: a connection may buffer as much anyway, so the number of
/// connections bounds them. A client that announces large bodies and does not send them therefore
/// cannot block small writes.
pub(super) const SMALL_BYTES: usize = super::connections::BUFFER_BYTES;

/// A body without a Content-Length is charged in steps of this size.
const STEP_BYTES: usize = 64 * 1024;

/// Minimum bytes per second of a charged body while other requests wait for memory. A slower one
/// is cut.
const SLOWEST_BYTES: usize = 16 * 1024;

const PACE: Duration = Duration::from_secs(1);

/// Minimum size limit of a batch: 1000 writes of 16 KiB.
const BATCH_BYTES: usize = 16 << 20;

/// Size limit of an operator's body: 1000 dead letters named by task and replica.
const OPERATE_BYTES: usize = 2 << 20;

const UTF_8_MARK: &[u8] = b"\xef\xbb\xbf";
const UTF_16_MARKS: [&[u8]; 2] = [b"\xfe\xff", b"\xff\xfe"];

/// The memory shared by the bodies of all requests, and the limits of one body.
#[derive(Debug)]
pub(super) struct BodyMemory {
    pool: ClientPool,
    bytes: usize,
    max_body_bytes: usize,
    client_timeout: Duration,
}

/// A share of [`BodyMemory`]; `None` for a small body. A request holds it until it is answered,
/// because the body lives on as the value of the write.
pub(super) type Share = Option<PoolShare>;

enum BodyFailure {
    TooLarge,
    TooSlow,
    TooSlowForOthers,
    NoMemory,
    Truncated,
}

impl BodyMemory {
    pub(super) fn new(settings: &ServerSettings) -> Self {
        let bytes = settings.limits.request_memory.max(settings.limits.max_body_bytes);
        Self {
            bytes,
            pool: ClientPool::new(bytes),
            max_body_bytes: settings.limits.max_body_bytes,
            client_timeout: settings.limits.client_timeout,
        }
    }

    /// [`Self::read_up_to`] the size limit of a single write.
    pub(super) async fn read(
        &self,
        client: &PoolClient,
        headers: &HeaderMap,
        body: Body,
        retry_after: Duration,
    ) -> Result<(Bytes, Share), Problem> {
        self.read_up_to(self.max_body_bytes, client, headers, body, retry_after).await
    }

    /// The larger of the body limit and [`BATCH_BYTES`], capped by the shared memory.
    pub(super) fn max_batch_bytes(&self) -> usize {
        self.max_body_bytes.max(BATCH_BYTES.min(self.bytes))
    }

    pub(super) fn max_operate_bytes(&self) -> usize {
        OPERATE_BYTES.min(self.bytes)
    }

    /// Reads `body` to its end and strips a UTF-8 byte order mark. `limit` must not exceed the shared
    /// memory, or the read can never succeed. Fails with 413 before reading if the announced length is
    /// beyond the limit.
    pub(super) async fn read_up_to(
        &self,
        limit: usize,
        client: &PoolClient,
        headers: &HeaderMap,
        mut body: Body,
        retry_after: Duration,
    ) -> Result<(Bytes, Share), Problem> {
        if let Some(coding) = coded(headers) {
            self.discard(headers, body);
            return Err(Problem::Encoded(format!(
                "the body has the Content-Encoding {coding}: it must be sent without one"
            )));
        }
        let failure = match self.collect(limit, client, &mut body).await {
            Ok((read, share)) => return Ok((unmarked(read)?, share)),
            Err(failure) => failure,
        };
        match failure {
            BodyFailure::TooLarge => {
                self.discard(headers, body);
                Err(Problem::TooLarge(format!(
                    "the body is longer than the limit of {limit} bytes"
                )))
            }
            BodyFailure::TooSlow => {
                let limit = humantime::format_duration(self.client_timeout);
                Err(Problem::TooSlow(format!("the body did not arrive within {limit}")))
            }
            BodyFailure::TooSlowForOthers => Err(Problem::TooSlow(
                "the body arrived too slowly while other requests waited for memory".to_owned(),
            )),
            BodyFailure::NoMemory => {
                self.discard(headers, body);
                Err(Problem::Unavailable {
                    error: "the memory for large request bodies (--request-memory), or the share of this client, is in use"
                        .to_owned(),
                    retry_after,
                })
            }
            BodyFailure::Truncated => {
                Err(Problem::Invalid("the body ended before it was complete".to_owned()))
            }
        }
    }

    /// Reads and drops the rest of a body in the background, within the client timeout. Closing at
    /// once would reset the connection, and most clients would report the reset instead of the
    /// response.
    pub(super) fn discard(&self, headers: &HeaderMap, mut body: Body) {
        // A client waiting for `100 Continue` sends nothing after the final response. Reading would
        // make hyper send the `100` after it.
        if headers.contains_key(EXPECT) || body.is_end_stream() {
            return;
        }
        let rest = async move { while let Some(Ok(_)) = body.frame().await {} };
        tokio::spawn(tokio::time::timeout(self.client_timeout, rest));
    }

    async fn collect(
        &self,
        limit: usize,
        client: &PoolClient,
        body: &mut Body,
    ) -> Result<(Bytes, Share), BodyFailure> {
        let announced = body.size_hint().exact();
        let length = announced.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        if length.is_some_and(|length| length > limit) {
            return Err(BodyFailure::TooLarge);
        }
        // Bytes covered so far: by the share, or free because the body is small.
        let mut charged = length.unwrap_or(SMALL_BYTES.min(limit));
        let mut share: Share = None;
        if charged > SMALL_BYTES {
            share = Some(self.reserve(client, charged).await?);
        }
        let mut late = pin!(tokio::time::sleep(self.client_timeout));
        // Not an interval: its first tick waits for the timer's next millisecond, which added up to
        // 1 ms to every write.
        let mut pace = pin!(tokio::time::sleep(PACE));
        let mut seconds = 0_usize;
        let mut whole = Gathered::default();
        loop {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = &mut late => return Err(BodyFailure::TooSlow),
                () = &mut pace => {
                    // Restarted from now, so that time this task was not scheduled does not count.
                    pace.set(tokio::time::sleep(PACE));
                    seconds += 1;
                    let slow = whole.len() < seconds.saturating_mul(SLOWEST_BYTES);
                    if slow && share.is_some() && self.pool.is_awaited() {
                        return Err(BodyFailure::TooSlowForOthers);
                    }
                    continue;
                }
            };
            let Some(frame) = frame else {
                return Ok((whole.finish(), share));
            };
            let Ok(data) = frame.map_err(|_| BodyFailure::Truncated)?.into_data() else {
                continue;
            };
            let total = whole.len().saturating_add(data.len());
            if total > limit {
                return Err(BodyFailure::TooLarge);
            }
            if total > charged {
                let step = STEP_BYTES.max(total - charged);
                // Never beyond `limit`, for which the memory always suffices.
                let step = step.min(limit - charged);
                match &mut share {
                    Some(share) => self.in_time(share.grow(step)).await?,
                    None => share = Some(self.reserve(client, charged + step).await?),
                }
                charged = charged.saturating_add(step);
            }
            whole.push(data, charged);
        }
    }

    async fn reserve(&self, client: &PoolClient, bytes: usize) -> Result<PoolShare, BodyFailure> {
        self.in_time(self.pool.take(client, bytes)).await
    }

    async fn in_time<T>(&self, share: impl Future<Output = T>) -> Result<T, BodyFailure> {
        let share = tokio::time::timeout(self.client_timeout, share).await;
        share.map_err(|_| BodyFailure::NoMemory)
    }
}

/// The content coding of a body, formatted for an error. `identity` counts as none.
fn coded(headers: &HeaderMap) -> Option<String> {
    let codings = headers.get_all(CONTENT_ENCODING).iter();
    let mut codings = codings.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let plain = |coding: &[u8]| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity");
    let coding = codings.find(|coding| !plain(coding.trim_ascii()))?;
    Some(shown(&String::from_utf8_lossy(coding.trim_ascii())))
}

/// Strips the byte order mark that some clients write before UTF-8. Left in, it would turn a batch
/// array into a line and break the first of the lines.
fn unmarked(mut body: Bytes) -> Result<Bytes, Problem> {
    if body.starts_with(UTF_8_MARK) {
        return Ok(body.split_off(UTF_8_MARK.len()));
    }
    if UTF_16_MARKS.iter().any(|mark| body.starts_with(mark)) {
        let rule = "the body begins with a UTF-16 byte order mark: it must be UTF-8";
        return Err(Problem::Invalid(rule.to_owned()));
    }
    Ok(body)
}

/// Joins frames. A body in a single frame, the usual case, is not copied.
#[derive(Default)]
struct Gathered {
    first: Bytes,
    joined: BytesMut,
}

impl Gathered {
    fn len(&self) -> usize {
        self.first.len().saturating_add(self.joined.len())
    }

    /// `length` is the expected total, for the first allocation.
    fn push(&mut self, data: Bytes, length: usize) {
        if self.len() == 0 {
            self.first = data;
            return;
        }
        if self.joined.is_empty() {
            self.joined.reserve(length);
            self.joined.extend_from_slice(&std::mem::take(&mut self.first));
        }
        self.joined.extend_from_slice(&data);
    }

    fn finish(self) -> Bytes {
        if self.joined.is_empty() { self.first } else { self.joined.freeze() }
    }
}

#[cfg(test)]
mod tests;
