//! A connection to a replica that carries many requests at the same time: HTTP/2.
//!
//! A replica can send much that answers nothing: settings, pings, window updates, resets, interim
//! answers. [`Allowance`] bounds it. h2 bounds the rest: the size of a head with its continuations,
//! resets, and the bytes of bodies that were not read.

use std::future::poll_fn;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture, SendRequest};
use h2::{Reason, RecvStream, SendStream};
use http_body::Body;
use hyper::header::HOST;
use hyper::http::uri::{Authority, Scheme, Uri};
use hyper::{Request, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::age::ConnectionAge;
use super::bounded::{Bounded, MAX_HEAD_BYTES, ReadLimit};
use super::causes::{Http2Loss, Unanswered};
use super::upload::Upload;

/// Bytes of an answer that h2 holds until they are read. More than the first 64 KiB is never read.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// Requests at the same time before the replica says how many it takes.
const FIRST_STREAMS: usize = 100;

/// Dropping the last use closes the connection at once.
pub(super) struct Http2 {
    sender: SendRequest<Bytes>,
    scheme: Scheme,
    allowance: Arc<Allowance>,
    driver: JoinHandle<()>,
    /// No new request may use it.
    has_ended: Arc<AtomicBool>,
    has_served: AtomicBool,
    uses: AtomicUsize,
    pub(super) age: ConnectionAge,
}

impl Drop for Http2 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The place of one request.
pub(super) struct Http2Use {
    pub(super) of: Arc<Http2>,
    /// What its request has added to the allowance.
    granted: usize,
}

impl Drop for Http2Use {
    fn drop(&mut self) {
        self.of.uses.fetch_sub(1, Ordering::Relaxed);
        self.of.allowance.take_back(self.granted);
    }
}

impl Http2 {
    pub(super) async fn over<S>(
        stream: S,
        scheme: Scheme,
        made: Instant,
    ) -> Result<Http2Use, Unanswered>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let allowance = Arc::<Allowance>::default();
        let stream = Bounded { stream, limit: Arc::clone(&allowance) };
        let mut builder = Builder::new();
        builder
            .enable_push(false)
            .initial_max_send_streams(FIRST_STREAMS)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_header_list_size(u32::try_from(MAX_HEAD_BYTES).unwrap_or(u32::MAX));
        let shaken = builder.handshake(stream).await;
        let (sender, connection) =
            shaken.map_err(|error| Unanswered::Http2(Http2Loss::unsent(error)))?;
        let has_ended = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&has_ended);
        let driver = tokio::spawn(async move {
            // Its requests get the error.
            let _ = connection.await;
            ended.store(true, Ordering::Relaxed);
        });
        let (has_served, uses) = (AtomicBool::new(false), AtomicUsize::new(1));
        let age = ConnectionAge::from(made);
        let this = Self { sender, scheme, allowance, driver, has_ended, has_served, uses, age };
        Ok(Http2Use { of: Arc::new(this), granted: 0 })
    }

    /// `None` when it carries as many requests as the replica takes.
    pub(super) fn take(this: &Arc<Self>) -> Option<Http2Use> {
        let most = this.sender.current_max_send_streams();
        let one_more = |uses| (uses < most).then_some(uses + 1);
        this.uses.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Http2Use { of: Arc::clone(this), granted: 0 })
    }

    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed)
    }

    pub(super) fn is_in_use(&self) -> bool {
        self.uses.load(Ordering::Relaxed) > 0
    }

    pub(super) fn has_served(&self) -> bool {
        self.has_served.load(Ordering::Relaxed)
    }

    fn lost(&self, error: h2::Error, is_unsent: bool) -> Unanswered {
        let flooded = self.allowance.is_reached();
        let tls = self.allowance.tls.get().cloned();
        let loss = Http2Loss { flooded, tls, is_unsent, ..Http2Loss::unsent(error) };
        // A replica that refuses a stream may take others.
        if !loss.is_of_the_stream() {
            self.has_ended.store(true, Ordering::Relaxed);
        }
        Unanswered::Http2(loss)
    }
}

impl Http2Use {
    /// Sends a request and returns the head of its answer. Dropping the future resets the stream.
    pub(super) async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<RecvStream>, Unanswered> {
        let (mut parts, upload) = request.into_parts();
        let host = parts.headers.remove(HOST);
        let authority = host.and_then(|host| Authority::from_maybe_shared(host).ok());
        let mut uri = std::mem::take(&mut parts.uri).into_parts();
        (uri.scheme, uri.authority) = (Some(self.of.scheme.clone()), authority);
        parts.uri =
            Uri::from_parts(uri).map_err(|_| self.of.lost(Reason::PROTOCOL_ERROR.into(), true))?;
        let request = Request::from_parts(parts, ());

        self.granted = self.of.allowance.grant(upload.size_hint().exact().unwrap_or(0));
        let mut sender = self.of.sender.clone();
        let sent = sender.send_request(request, upload.is_end_stream());
        let (mut answer, stream) = sent.map_err(|error| self.of.lost(error, true))?;
        let answered = self.exchange(&mut answer, stream, upload).await;
        let response = answered.map_err(|error| self.of.lost(error, false))?;
        self.of.has_served.store(true, Ordering::Relaxed);
        Ok(response)
    }

    /// A replica may answer before it has read the body.
    async fn exchange(
        &self,
        answer: &mut ResponseFuture,
        stream: SendStream<Bytes>,
        upload: Upload,
    ) -> Result<Response<RecvStream>, h2::Error> {
        if !upload.is_end_stream() {
            tokio::select! {
                biased;
                answered = &mut *answer => return answered,
                // If it fails, the answer says why.
                _ = push(stream, upload) => {}
            }
        }
        answer.await
    }
}

/// Sends the body in as many pieces as the windows of the replica take.
async fn push(mut stream: SendStream<Bytes>, mut upload: Upload) -> Result<(), h2::Error> {
    while let Some(mut piece) = upload.next_piece() {
        while !piece.is_empty() {
            stream.reserve_capacity(piece.len());
            let room = match stream.capacity() {
                0 => match poll_fn(|context| stream.poll_capacity(context)).await {
                    Some(room) => room?,
                    // The stream was reset.
                    None => return Ok(()),
                },
                room => room,
            };
            let part = piece.split_to(room.min(piece.len()));
            stream.send_data(part, piece.is_empty() && upload.is_end_stream())?;
        }
    }
    Ok(())
}

/// The body of an answer.
pub(super) struct Http2Body(pub(super) RecvStream);

impl Http2Body {
    pub(super) async fn chunk(&mut self) -> Option<Result<Bytes, h2::Error>> {
        let chunk = self.0.data().await?;
        if let Ok(chunk) = &chunk {
            // It fails only for more than what was received.
            let _ = self.0.flow_control().release_capacity(chunk.len());
        }
        Some(chunk)
    }
}

/// How much the replica may send: a little at any time, and for each request its interim answers, its
/// head, its body and the window updates of its upload. What a request has not used is taken back
/// when it ends.
#[derive(Debug)]
struct Allowance {
    read: AtomicUsize,
    /// For all requests in flight.
    granted: AtomicUsize,
    /// h2 passes on only the text of an error.
    tls: OnceLock<rustls::Error>,
}

const AT_ANY_TIME: usize = 256 << 10;
const A_REQUEST: usize = 2 * MAX_HEAD_BYTES + STREAM_WINDOW as usize;

/// Two window updates of 13 bytes for each 512 bytes.
const UPLOADED_PER_BYTE: u64 = 16;

impl Default for Allowance {
    fn default() -> Self {
        let (read, granted) = (AtomicUsize::new(0), AtomicUsize::new(AT_ANY_TIME));
        Self { read, granted, tls: OnceLock::new() }
    }
}

impl Allowance {
    fn grant(&self, upload: u64) -> usize {
        let updates = usize::try_from(upload / UPLOADED_PER_BYTE).unwrap_or(usize::MAX);
        let granted = A_REQUEST.saturating_add(updates);
        self.granted.fetch_add(granted, Ordering::Relaxed);
        granted
    }

    fn take_back(&self, granted: usize) {
        // Beyond it, the connection has failed.
        if !self.is_reached() {
            self.read.store(0, Ordering::Relaxed);
        }
        self.granted.fetch_sub(granted, Ordering::Relaxed);
    }
}

impl ReadLimit for Allowance {
    fn is_reached(&self) -> bool {
        self.read.load(Ordering::Relaxed) >= self.granted.load(Ordering::Relaxed)
    }

    fn has_read(&self, bytes: usize) {
        self.read.fetch_add(bytes, Ordering::Relaxed);
    }

    fn has_failed(&self, error: &io::Error) {
        let tls = error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>());
        let _ = tls.is_none_or(|tls| self.tls.set(tls.clone()).is_ok());
    }
}
