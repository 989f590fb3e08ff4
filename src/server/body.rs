//! The body of a request: read in full, within its size, its time and the memory that all share.
//!
//! The memory is for long bodies. Small ones, as nearly all are, never wait for it.

use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::body::{Body, HttpBody};
use axum::http::HeaderMap;
use axum::http::header::{CONTENT_ENCODING, EXPECT};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::Settings;
use super::errors::Problem;
use super::wire::shown;

/// Memory is counted in pages of so many bytes, so that a body of any size fits the semaphore's
/// counts.
const PAGE_BYTES: usize = 1024;

/// A body of up to so many bytes is not charged. It is no more than what its connection may buffer
/// anyway, so the number of connections bounds it; and nobody who announces long bodies and does not
/// send them holds up the writes of others, which are small.
const SMALL_BYTES: usize = super::connections::BUFFER_BYTES;

/// A body whose length nobody announced is charged in steps of so many bytes, not frame by frame.
const STEP_BYTES: usize = 64 * 1024;

/// While others wait for memory, a body that is charged has to come at so many bytes a second from
/// its first second on. Whoever announces a long one and is slow to send it is cut for those who wait.
const SLOWEST_BYTES: usize = 16 * 1024;

/// How often that is looked at.
const PACE: Duration = Duration::from_secs(1);

/// What a batch may be long at least, in bytes: a thousand writes of 16 KiB.
const BATCH_BYTES: usize = 16 << 20;

/// What an operator's body may be long, in bytes: a thousand dead letters by task and replica.
const OPERATE_BYTES: usize = 2 << 20;

const UTF_8_MARK: &[u8] = b"\xef\xbb\xbf";
const UTF_16_MARKS: [&[u8]; 2] = [b"\xfe\xff", b"\xff\xfe"];

/// The memory that the bodies of all requests share, and the bounds of one of them.
#[derive(Debug)]
pub(super) struct Memory {
    pages: Semaphore,
    /// Bodies that wait for their share.
    wanted: AtomicUsize,
    bytes: usize,
    max_body_bytes: usize,
    client_timeout: Duration,
}

/// A share of [`Memory`], free again when it is dropped. A request keeps it until its answer, for
/// what was read lives on as the value.
pub(super) type Share<'a> = SemaphorePermit<'a>;

/// Why a body could not be had.
enum Failure {
    TooLarge,
    TooSlow,
    TooSlowForOthers,
    NoMemory,
    BrokenOff,
}

impl Memory {
    pub(super) fn new(settings: &Settings) -> Self {
        let bytes = settings.request_memory.max(settings.max_body_bytes);
        Self {
            bytes,
            wanted: AtomicUsize::new(0),
            pages: Semaphore::new(pages(bytes).min(Semaphore::MAX_PERMITS)),
            max_body_bytes: settings.max_body_bytes,
            client_timeout: settings.client_timeout,
        }
    }

    /// Reads `body` to its end, up to as many bytes as one write may have.
    ///
    /// # Errors
    ///
    /// As [`Self::read_up_to`].
    pub(super) async fn read(
        &self,
        headers: &HeaderMap,
        body: Body,
        retry_after: Duration,
    ) -> Result<(Bytes, Share<'_>), Problem> {
        self.read_up_to(self.max_body_bytes, headers, body, retry_after).await
    }

    /// As many bytes as a batch may have: a body's limit or [`BATCH_BYTES`], whichever is larger,
    /// but never more than all requests may have together.
    pub(super) fn max_batch_bytes(&self) -> usize {
        self.max_body_bytes.max(BATCH_BYTES.min(self.bytes))
    }

    /// As many bytes as what an operator posts may have, within the same.
    pub(super) fn max_operate_bytes(&self) -> usize {
        OPERATE_BYTES.min(self.bytes)
    }

    /// Reads `body` to its end, up to `limit` bytes. What is beyond all the memory there is can
    /// never be had: `limit` must not be. A byte order mark before it is dropped.
    ///
    /// # Errors
    ///
    /// 415 for a body that is compressed; 413 beyond the limit, before anything is read where the
    /// length is announced; 400 for one in UTF-16; 408 when it takes longer than the client may, or
    /// is slow while others wait for the memory; 503 when the memory is in use for so long.
    pub(super) async fn read_up_to(
        &self,
        limit: usize,
        headers: &HeaderMap,
        mut body: Body,
        retry_after: Duration,
    ) -> Result<(Bytes, Share<'_>), Problem> {
        if let Some(coding) = coded(headers) {
            self.discard(headers, body);
            return Err(Problem::Encoded(format!(
                "the body has the Content-Encoding {coding}: it must be sent without one"
            )));
        }
        let failure = match self.collect(limit, &mut body).await {
            Ok((read, share)) => return Ok((unmarked(read)?, share)),
            Err(failure) => failure,
        };
        match failure {
            Failure::TooLarge => {
                self.discard(headers, body);
                Err(Problem::TooLarge(format!(
                    "the body is longer than the limit of {limit} bytes"
                )))
            }
            Failure::TooSlow => {
                let limit = humantime::format_duration(self.client_timeout);
                Err(Problem::TooSlow(format!("the body did not arrive within {limit}")))
            }
            Failure::TooSlowForOthers => Err(Problem::TooSlow(
                "the body arrived too slowly while other requests waited for memory".to_owned(),
            )),
            Failure::NoMemory => {
                self.discard(headers, body);
                Err(Problem::Unavailable {
                    error: "the memory for large request bodies is in use (--request-memory)"
                        .to_owned(),
                    retry_after,
                })
            }
            Failure::BrokenOff => {
                Err(Problem::Invalid("the body broke off before its end".to_owned()))
            }
        }
    }

    /// Reads on what the client is still sending and throws it away, behind the answer and within
    /// the client timeout. Closing at once would reset the connection, and most clients would
    /// report that instead of the answer.
    pub(super) fn discard(&self, headers: &HeaderMap, mut body: Body) {
        // Whoever waits for a `100 Continue` sends nothing once it has the answer; reading would
        // make hyper send the `100` after it.
        if headers.contains_key(EXPECT) || body.is_end_stream() {
            return;
        }
        let rest = async move { while let Some(Ok(_)) = body.frame().await {} };
        tokio::spawn(tokio::time::timeout(self.client_timeout, rest));
    }

    async fn collect(&self, limit: usize, body: &mut Body) -> Result<(Bytes, Share<'_>), Failure> {
        let announced = body.size_hint().exact();
        // Beyond what can be addressed is beyond any limit.
        let length = announced.map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        if length.is_some_and(|length| length > limit) {
            return Err(Failure::TooLarge);
        }
        // What is free of charge, or paid for.
        let mut charged = length.unwrap_or(SMALL_BYTES.min(limit));
        let mut share = self.reserve(if charged > SMALL_BYTES { charged } else { 0 }).await?;
        let mut late = pin!(tokio::time::sleep(self.client_timeout));
        // Not an interval: its first tick comes with the next millisecond of the timer and not at
        // once, and to wait for it took up to 1 ms of every write.
        let mut pace = pin!(tokio::time::sleep(PACE));
        let mut seconds = 0_usize;
        let mut whole = Gathered::default();
        loop {
            let frame = tokio::select! {
                biased;
                frame = body.frame() => frame,
                () = &mut late => return Err(Failure::TooSlow),
                () = &mut pace => {
                    // From now: the time that this task was kept from looking does not count.
                    pace.set(tokio::time::sleep(PACE));
                    seconds += 1;
                    let slow = whole.len() < seconds.saturating_mul(SLOWEST_BYTES);
                    if slow && share.num_permits() > 0 && self.wanted.load(Ordering::Relaxed) > 0 {
                        return Err(Failure::TooSlowForOthers);
                    }
                    continue;
                }
            };
            let Some(frame) = frame else {
                return Ok((whole.finish(), share));
            };
            // Trailers carry nothing that is asked for here.
            let Ok(data) = frame.map_err(|_| Failure::BrokenOff)?.into_data() else {
                continue;
            };
            let total = whole.len().saturating_add(data.len());
            if total > limit {
                return Err(Failure::TooLarge);
            }
            if total > charged {
                let step = STEP_BYTES.max(total - charged);
                // Never beyond the one longest body, for which there is always memory.
                let step = step.min(limit - charged);
                let unpaid = if share.num_permits() == 0 { charged } else { 0 };
                share.merge(self.reserve(unpaid.saturating_add(step)).await?);
                charged = charged.saturating_add(step);
            }
            whole.push(data, charged);
        }
    }

    /// A share of so many bytes, at once where possible.
    async fn reserve(&self, bytes: usize) -> Result<Share<'_>, Failure> {
        let count = u32::try_from(pages(bytes)).map_err(|_| Failure::TooLarge)?;
        if let Ok(share) = self.pages.try_acquire_many(count) {
            return Ok(share);
        }
        let _waiting = Wanted::new(&self.wanted);
        let share = self.pages.acquire_many(count);
        match tokio::time::timeout(self.client_timeout, share).await {
            Ok(Ok(share)) => Ok(share),
            Ok(Err(_)) | Err(_) => Err(Failure::NoMemory),
        }
    }
}

/// The content coding of a body, as an error shows it. `identity` is none.
fn coded(headers: &HeaderMap) -> Option<String> {
    let codings = headers.get_all(CONTENT_ENCODING).iter();
    let mut codings = codings.flat_map(|line| line.as_bytes().split(|byte| *byte == b','));
    let plain = |coding: &[u8]| coding.is_empty() || coding.eq_ignore_ascii_case(b"identity");
    let coding = codings.find(|coding| !plain(coding.trim_ascii()))?;
    Some(shown(&String::from_utf8_lossy(coding.trim_ascii())))
}

/// A body without the byte order mark that some clients write before UTF-8. It is no part of the
/// JSON behind it: in a batch it would have made an array a line, and spoilt the first of the lines.
fn unmarked(mut body: Bytes) -> Result<Bytes, Problem> {
    if body.starts_with(UTF_8_MARK) {
        return Ok(body.split_off(UTF_8_MARK.len()));
    }
    if UTF_16_MARKS.iter().any(|mark| body.starts_with(mark)) {
        let rule = "the body begins with a byte order mark of UTF-16: it must be UTF-8";
        return Err(Problem::Invalid(rule.to_owned()));
    }
    Ok(body)
}

/// Counts one who waits, for as long as it lives.
struct Wanted<'a>(&'a AtomicUsize);

impl<'a> Wanted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn pages(bytes: usize) -> usize {
    bytes.div_ceil(PAGE_BYTES)
}

/// Frames put together. A body in one frame, as nearly all are, is not copied.
#[derive(Default)]
struct Gathered {
    first: Bytes,
    joined: BytesMut,
}

impl Gathered {
    fn len(&self) -> usize {
        self.first.len().saturating_add(self.joined.len())
    }

    /// Adds `data` to a body that is going to be `length` bytes long, as far as one knows.
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
