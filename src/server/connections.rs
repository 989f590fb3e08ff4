//! The lifecycle of connections: limits, timeouts, eviction, graceful shutdown.
//!
//! HTTP/1.1 with keep-alive, over TCP or TLS. At `--max-connections`, handshakes included, a
//! connection that waits for its client is evicted for a new one; if none does, only probes are
//! answered (see `room`). A client that stops sending a head or stops reading responses is cut after
//! the client timeout; [`super::body`] enforces it for bodies.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::Response;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::tls::InboundTls;
use crate::task::Client;

mod failures;
mod room;
mod stall;
mod turn;

use failures::RepeatedWarning;
use room::{ConnectionSlot, ConnectionSlots};
use stall::CutIfStalled;
use turn::TurnService;

/// Read buffer of a connection: limits the head and the size of a body frame. hyper's default of
/// 400 KiB would be gigabytes at thousands of connections.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

/// Pause after accept failed for lack of a resource, mostly file descriptors, which only a closing
/// connection frees.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// How often in the client timeout an upload must make progress to be evicted last.
const UPLOAD_PROGRESSES: u32 = 5;

pub(super) struct ConnectionLimits {
    pub(super) max_connections: usize,
    pub(super) client_timeout: Duration,
}

/// The client of a connection, stored in the extensions of each of its requests.
#[derive(Debug)]
pub(super) struct ClientPeer {
    pub(super) address: SocketAddr,
    /// Name in the verified client certificate, if there is one.
    pub(super) certificate: Option<String>,
    /// Beyond the connection limit: only probes may be answered.
    pub(super) probes_only: bool,
    /// Weak, so that a request does not keep the connection open.
    stream: Weak<OwnedReadHalf>,
    slot: Weak<ConnectionSlot>,
}

impl ClientPeer {
    /// The client of this connection is known: others are evicted first.
    pub(super) fn authenticated(&self) {
        if let Some(slot) = self.slot.upgrade() {
            slot.authenticated();
        }
    }

    /// Resolves when the client has closed its side, or the connection is gone. For an endless
    /// response, such as an event stream, a half-closed client counts as gone.
    pub(super) async fn left(&self) {
        if let Some(stream) = self.stream.upgrade() {
            // Only PRIORITY becomes ready at the end of the stream and not with the bytes before it. No
            // urgent data is expected, and an error ends the connection as well.
            let _ = stream.ready(Interest::PRIORITY).await;
        }
    }
}

/// What answers the requests of connections.
pub(super) trait Answering: Send + Sync + 'static {
    fn answer(&self, request: Request) -> impl Future<Output = Response> + Send;
}

impl Answering for TowerToHyperService<Router> {
    async fn answer(&self, request: Request) -> Response {
        let answer = Box::pin(hyper::service::Service::call(self, request)).await;
        answer.unwrap_or_else(|never| match never {})
    }
}

/// Accepts and serves until `stop` resolves; returns when the last connection has closed.
pub(super) async fn accept(
    listener: TcpListener,
    answering: impl Answering,
    tls: Option<InboundTls>,
    limits: &ConnectionLimits,
    stop: impl Future<Output = ()>,
) {
    let progress_pause = limits.client_timeout / UPLOAD_PROGRESSES;
    let slots = ConnectionSlots::new(limits.max_connections, progress_pause);
    let graceful = GracefulShutdown::new();
    let (stopping, watched) = watch::channel(());
    let each = ConnectionServer {
        http: http(limits),
        answering: Arc::new(answering),
        tls,
        patience: limits.client_timeout,
        watched,
    };
    let mut stop = pin!(stop);
    let mut failures = RepeatedWarning::default();
    let mut crowded = RepeatedWarning::default();
    loop {
        let (stream, address, slot) = tokio::select! {
            biased;
            () = &mut stop => break,
            next = next(&listener, &slots, &mut failures, &mut crowded) => next,
        };
        tokio::spawn(each.clone().serve(stream, address, slot, graceful.watcher()));
    }
    drop((listener, stopping));
    // Its `watched` receiver would count as an open connection.
    drop(each);
    graceful.shutdown().await;
}

fn http(limits: &ConnectionLimits) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.client_timeout)
        .max_buf_size(BUFFER_BYTES)
        // The known gateway may close its side after sending a write and ignore the response. Its
        // write must still be accepted.
        .half_close(true);
    http
}

struct ConnectionServer<A> {
    http: http1::Builder,
    answering: Arc<A>,
    tls: Option<InboundTls>,
    patience: Duration,
    /// Its sender is dropped when accepting stops.
    watched: watch::Receiver<()>,
}

impl<A> Clone for ConnectionServer<A> {
    fn clone(&self) -> Self {
        Self {
            http: self.http.clone(),
            answering: Arc::clone(&self.answering),
            tls: self.tls.clone(),
            patience: self.patience,
            watched: self.watched.clone(),
        }
    }
}

impl<A: Answering> ConnectionServer<A> {
    async fn serve(
        mut self,
        stream: TcpStream,
        address: SocketAddr,
        slot: ConnectionSlot,
        watcher: Watcher,
    ) {
        // Nagle's algorithm would delay small responses. An error means that the connection is gone,
        // which serving it notices.
        let _ = stream.set_nodelay(true);
        let slot = Arc::new(slot);
        let (read, write) = stream.into_split();
        let read = Arc::new(read);
        let mut peer = ClientPeer {
            address,
            certificate: None,
            probes_only: slot.is_for_probes(),
            stream: Arc::downgrade(&read),
            slot: Arc::downgrade(&slot),
        };
        let stream = CutIfStalled::new(read, write, self.patience, Arc::clone(&slot));
        let Some(tls) = self.tls.take() else {
            return self.speak(stream, peer, slot, watcher).await;
        };
        let shaken = tokio::select! {
            biased;
            shaken = tls.handshake(stream) => shaken,
            () = tokio::time::sleep(self.patience) => return,
            () = slot.evicted() => return,
            // No request is in progress before the handshake.
            _ = self.watched.changed() => return,
        };
        match shaken {
            Ok((stream, certificate)) => {
                if certificate.is_some() {
                    slot.authenticated();
                }
                peer.certificate = certificate;
                self.speak(stream, peer, slot, watcher).await;
            }
            Err(error) => tracing::debug!(%error, "TLS handshake failed"),
        }
    }

    async fn speak<S>(
        self,
        stream: S,
        peer: ClientPeer,
        slot: Arc<ConnectionSlot>,
        watcher: Watcher,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (answering, peer) = (self.answering, Arc::new(peer));
        let turns = TurnService { answering, slot: Arc::clone(&slot), peer };
        let connection = self.http.serve_connection(TokioIo::new(stream), turns);
        let mut connection = pin!(watcher.watch(connection));
        let end = tokio::select! {
            biased;
            end = &mut connection => end,
            () = slot.evicted() => Ok(()),
        };
        if let Err(error) = end {
            tracing::debug!(%error, "connection failed");
        }
    }
}

/// Cancel safe: a connection that was not returned is closed unserved.
async fn next(
    listener: &TcpListener,
    slots: &Arc<ConnectionSlots>,
    failures: &mut RepeatedWarning,
    crowded: &mut RepeatedWarning,
) -> (TcpStream, SocketAddr, ConnectionSlot) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                failures.successes += 1;
                if !slots.is_full() {
                    crowded.successes += 1;
                } else if let Some(times) = crowded.failed() {
                    tracing::warn!(
                        times,
                        "the connection limit (--max-connections) is reached: connections that wait for their clients are closed for new ones, and while all wait for the daemon only /livez and /readyz are answered"
                    );
                }
                if let Some(slot) = slots.enter(Client::at(address.ip())) {
                    return (stream, address, slot);
                }
            }
            // The client gave up before it was accepted.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                if let Some(failures) = failures.failed() {
                    tracing::warn!(%error, failures, "cannot accept connections, will retry");
                }
                slots.evict_one();
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}
