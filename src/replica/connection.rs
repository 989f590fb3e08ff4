//! One connection to a replica: TCP, TLS and HTTP/1.1.
//!
//! The bytes before the final head of an answer are bounded: hyper skips interim answers (`100
//! Continue`) without limit, and a replica that never stops to send them would keep a thread busy.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;

use super::causes::Unanswered;
use super::upload::Upload;
use crate::policy::Target;

/// For the interim answers together, and again for the final head.
pub(super) const MAX_HEAD_BYTES: usize = 64 << 10;

/// An address that has not answered by then competes with the next one (RFC 8305).
const NEXT_ADDRESS: Duration = Duration::from_millis(300);

/// Time for a connection to end after its request was cancelled, to learn why.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// Dropping it closes the connection at once.
pub(super) struct Connection {
    sender: SendRequest<Upload>,
    head: Arc<HeadBytes>,
    driver: JoinHandle<hyper::Result<()>>,
    has_served: bool,
    pub(super) made: Instant,
    /// The part of the maximum age that it may reach, so that the replicas are not all reconnected to
    /// at once.
    pub(super) age_share: f64,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Connection {
    pub(super) async fn open(
        target: &Target,
        addresses: Vec<IpAddr>,
        tls: &TlsConnector,
        now: Instant,
    ) -> Result<Self, Unanswered> {
        let stream = connect(addresses, target.port()).await.map_err(Unanswered::Connect)?;
        if !target.is_https() {
            return Self::over(stream, now).await;
        }
        let name = match target.literal() {
            Some(address) => Ok(ServerName::from(address)),
            None => ServerName::try_from(target.name().unwrap_or_default().to_owned()),
        };
        let name = name.map_err(|error| Unanswered::Tls(io::Error::other(error)))?;
        Self::over(tls.connect(name, stream).await.map_err(Unanswered::Tls)?, now).await
    }

    async fn over<S>(stream: S, made: Instant) -> Result<Self, Unanswered>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let head = Arc::<HeadBytes>::default();
        let stream = BoundedHead { stream, head: Arc::clone(&head) };
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
        let age_share = 0.8 + 0.2 * fastrand::f64();
        Ok(Self { sender, head, driver, has_served: false, made, age_share })
    }

    /// Sends a request and returns the head of its answer.
    pub(super) async fn send(
        &mut self,
        request: Request<Upload>,
    ) -> Result<Response<Incoming>, Unanswered> {
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

    /// Whether it has carried an answer: then it may have been closed since because it was idle.
    pub(super) fn has_served(&self) -> bool {
        self.has_served
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

#[derive(Clone, Copy, Debug, Error)]
#[error("more than {} KiB before the final answer", MAX_HEAD_BYTES >> 10)]
pub(super) struct HeadTooLong;

struct BoundedHead<S> {
    stream: S,
    head: Arc<HeadBytes>,
}

impl<S: AsyncRead + Unpin> AsyncRead for BoundedHead<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let expected = self.head.expected.load(Ordering::Relaxed);
        // Checked before the read: the final head and a part of its body may come in one read.
        if expected && self.head.read() >= MAX_HEAD_BYTES {
            return Poll::Ready(Err(io::Error::other(HeadTooLong)));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        if expected {
            self.head.read.fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        }
        result
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for BoundedHead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
