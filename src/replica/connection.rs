//! One connection to a replica: TCP, TLS, and HTTP/1.1 or HTTP/2 ([`super::http2`]).
//!
//! The bytes before the final head of an answer are bounded: hyper skips interim answers (`100
//! Continue`) without limit, and a replica that never stops to send them would keep a thread busy.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::http::uri::Scheme;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::ReplicaHttp2;
use super::age::ConnectionAge;
use super::bounded::{Bounded, MAX_HEAD_BYTES, ReadLimit};
use super::causes::Unanswered;
use super::fenced::{FencePlace, Fenced, FencedRequest};
use super::http2::{Http2, Http2Body, Http2Use};
use super::upload::Upload;
use crate::policy::Target;

/// An address that has not answered by then competes with the next one (RFC 8305).
const NEXT_ADDRESS: Duration = Duration::from_millis(300);

/// Time for a connection to end after its request was cancelled, to learn why.
const LAST_WORDS: Duration = Duration::from_millis(20);

pub(super) enum Connection {
    /// Carries one request at a time.
    Http1(Http1),
    /// The place of one request among others.
    Http2(Http2Use),
}

/// The body of an answer.
pub(super) enum ReceivedBody {
    Http1(Incoming),
    Http2(Http2Body),
}

impl ReceivedBody {
    /// The next bytes; `None` at the end.
    pub(super) async fn chunk(&mut self) -> Option<Result<Bytes, ()>> {
        match self {
            Self::Http1(body) => {
                let frame = body.frame().await?;
                Some(frame.map(|frame| frame.into_data().unwrap_or_default()).map_err(drop))
            }
            Self::Http2(body) => Some(body.chunk().await?.map_err(drop)),
        }
    }
}

impl Connection {
    pub(super) async fn open(
        target: &Target,
        addresses: Vec<IpAddr>,
        tls: &TlsConnector,
        protocol: ReplicaHttp2,
        now: Instant,
    ) -> Result<Self, Unanswered> {
        let stream = connect(addresses, target.port()).await.map_err(Unanswered::Connect)?;
        let (stream, place) = Fenced::over(stream);
        if !target.is_https() {
            return match protocol {
                ReplicaHttp2::PriorKnowledge => Self::http2(stream, Scheme::HTTP, now).await,
                ReplicaHttp2::Off | ReplicaHttp2::Auto => Self::http1(stream, place, now).await,
            };
        }
        let name = match target.literal() {
            Some(address) => Ok(ServerName::from(address)),
            None => ServerName::try_from(target.name().unwrap_or_default().to_owned()),
        };
        let name = name.map_err(|error| Unanswered::Tls(io::Error::other(error)))?;
        let stream = tls.connect(name, stream).await.map_err(Unanswered::Tls)?;
        // Only what was offered is chosen.
        match stream.get_ref().1.alpn_protocol() {
            Some(b"h2") => Self::http2(stream, Scheme::HTTPS, now).await,
            _ => Self::http1(stream, place, now).await,
        }
    }

    async fn http1<S>(stream: S, place: Arc<FencePlace>, now: Instant) -> Result<Self, Unanswered>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Ok(Self::Http1(Http1::over(stream, place, now).await?))
    }

    async fn http2<S>(stream: S, scheme: Scheme, now: Instant) -> Result<Self, Unanswered>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        Ok(Self::Http2(Http2::over(stream, scheme, now).await?))
    }

    /// Sends a request and returns the head of its answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Upload>,
        fenced: Option<&Arc<FencedRequest>>,
    ) -> Result<Response<ReceivedBody>, Unanswered> {
        match self {
            Self::Http1(connection) => {
                connection.place.set(fenced);
                Ok(connection.send(request).await?.map(ReceivedBody::Http1))
            }
            Self::Http2(connection) => {
                let answer = Box::pin(connection.send(request)).await?;
                Ok(answer.map(|body| ReceivedBody::Http2(Http2Body(body))))
            }
        }
    }

    /// Whether it has carried an answer: then it may have been closed since because it was idle.
    pub(super) fn has_served(&self) -> bool {
        match self {
            Self::Http1(connection) => connection.has_served,
            Self::Http2(connection) => connection.of.has_served(),
        }
    }
}

/// Dropping it closes the connection at once.
pub(super) struct Http1 {
    sender: SendRequest<Upload>,
    head: Arc<HeadBytes>,
    place: Arc<FencePlace>,
    driver: JoinHandle<hyper::Result<()>>,
    has_served: bool,
    pub(super) age: ConnectionAge,
}

impl Drop for Http1 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Http1 {
    async fn over<S>(stream: S, place: Arc<FencePlace>, made: Instant) -> Result<Self, Unanswered>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let head = Arc::<HeadBytes>::default();
        let stream = Bounded { stream, limit: Arc::clone(&head) };
        // Malformed headers that other clients accept are accepted: the write was applied, and a
        // rejected answer would make it a dead letter.
        let mut http = http1::Builder::new();
        http.allow_obsolete_multiline_headers_in_responses(true)
            .allow_spaces_after_header_name_in_responses(true)
            .ignore_invalid_headers_in_responses(true)
            .max_buf_size(MAX_HEAD_BYTES);
        let (sender, connection) =
            http.handshake(TokioIo::new(stream)).await.map_err(Unanswered::Unsent)?;
        let driver = tokio::spawn(connection);
        let age = ConnectionAge::from(made);
        Ok(Self { sender, head, place, driver, has_served: false, age })
    }

    async fn send(&mut self, request: Request<Upload>) -> Result<Response<Incoming>, Unanswered> {
        self.head.expect();
        match self.sender.send_request(request).await {
            Ok(response) => {
                self.head.arrived();
                self.has_served = true;
                Ok(response)
            }
            // The connection had ended before any byte of the request was written.
            Err(error) if error.is_canceled() => {
                match timeout(LAST_WORDS, &mut self.driver).await {
                    Ok(Ok(Err(why))) => Err(Unanswered::Unsent(why)),
                    _ => Err(Unanswered::Unsent(error)),
                }
            }
            Err(error) => Err(Unanswered::Sent { error, answered: self.head.read() > 0 }),
        }
    }

    /// Waits until the connection can carry another request; `false` if it never will. The body of
    /// the last answer must have been read to its end.
    pub(super) async fn is_reusable(&mut self, patience: Duration) -> bool {
        timeout(patience, self.sender.ready()).await.is_ok_and(|ready| ready.is_ok())
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }
}

/// Connects to the first address that answers.
async fn connect(addresses: Vec<IpAddr>, port: u16) -> io::Result<TcpStream> {
    let mut error = io::Error::new(ErrorKind::NotFound, "the name has no address");
    let mut addresses = addresses.into_iter();
    let mut attempts = JoinSet::new();
    loop {
        if let Some(address) = addresses.next() {
            attempts.spawn(TcpStream::connect(SocketAddr::new(address, port)));
        } else if attempts.is_empty() {
            return Err(error);
        }
        let ended = if addresses.len() > 0 {
            timeout(NEXT_ADDRESS, attempts.join_next()).await.ok().flatten()
        } else {
            attempts.join_next().await
        };
        match ended {
            Some(Ok(Ok(stream))) => {
                // Only a matter of speed.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            // An address without a route, such as one of IPv6, does not hide why another one failed.
            Some(Ok(Err(refused)))
                if error.kind() == ErrorKind::NotFound || is_reached(&refused) =>
            {
                error = refused;
            }
            Some(Ok(Err(_))) => {}
            Some(Err(panicked)) => error = io::Error::other(panicked),
            None => {}
        }
    }
}

fn is_reached(error: &io::Error) -> bool {
    use ErrorKind::{AddrNotAvailable, HostUnreachable, NetworkUnreachable};
    !matches!(error.kind(), AddrNotAvailable | HostUnreachable | NetworkUnreachable)
}

/// Counts the bytes that a connection reads until the head of an answer is complete.
#[derive(Debug, Default)]
struct HeadBytes {
    expected: AtomicBool,
    read: AtomicUsize,
}

impl HeadBytes {
    fn expect(&self) {
        self.read.store(0, Ordering::Relaxed);
        self.expected.store(true, Ordering::Relaxed);
    }

    fn arrived(&self) {
        self.expected.store(false, Ordering::Relaxed);
    }

    fn read(&self) -> usize {
        self.read.load(Ordering::Relaxed)
    }
}

impl ReadLimit for HeadBytes {
    // Checked before the read: the final head and a part of its body may come in one read.
    fn is_reached(&self) -> bool {
        self.expected.load(Ordering::Relaxed) && self.read() >= MAX_HEAD_BYTES
    }

    fn has_read(&self, bytes: usize) {
        if self.expected.load(Ordering::Relaxed) {
            self.read.fetch_add(bytes, Ordering::Relaxed);
        }
    }
}
