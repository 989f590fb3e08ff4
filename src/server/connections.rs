//! Connections: how many, how long, and how they end.
//!
//! HTTP/1.1 alone, with keep-alive, over TCP or TLS. At most so many at once, a handshake
//! included; beyond, the one that has waited longest for its client is closed for the next (see
//! `room`). A client that stops sending a head, or stops reading its answers, is cut after the
//! client timeout; the time for a body is kept in [`super::body`].

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::tls::Tls;

mod failures;
mod room;
mod stall;
mod turn;

use failures::Failures;
use room::{Place, Room};
use stall::CutIfStalled;
use turn::Turns;

/// What a connection may buffer of a head, and the largest piece in which a body comes in. Nobody
/// sends us long heads; hyper's own 400 KiB times some thousand connections would be gigabytes.
pub(super) const BUFFER_BYTES: usize = 64 * 1024;

/// How long to leave accepting alone after it failed for want of a resource (file descriptors,
/// mostly): only a connection that closes can help.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The bounds of [`accept`].
pub(super) struct Limits {
    pub(super) max_connections: usize,
    pub(super) client_timeout: Duration,
}

/// The other end of a connection, among the extensions of each of its requests.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// Who the client's certificate says it is, where it has shown one.
    pub(super) certificate: Option<String>,
    /// Gone with the connection, whoever still knows of it.
    stream: Weak<OwnedReadHalf>,
}

impl Peer {
    /// Returns when the client has closed its side, or the connection is gone. A client that has
    /// said all may still be there for its answer; for one without an end that is as good as gone.
    pub(super) async fn left(&self) {
        if let Some(stream) = self.stream.upgrade() {
            // Of what can be waited for, only this comes with the end and not with any byte before
            // it. It says nothing else here: no urgent data is asked for. An error is the end, too.
            let _ = stream.ready(Interest::PRIORITY).await;
        }
    }
}

/// Accepts and serves until `stop` resolves; returns when the last connection has closed.
pub(super) async fn accept(
    listener: TcpListener,
    router: Router,
    tls: Option<Tls>,
    limits: &Limits,
    stop: impl Future<Output = ()>,
) {
    let room = Room::new(limits.max_connections);
    let graceful = GracefulShutdown::new();
    let (stopping, watched) = watch::channel(());
    let each = Each { http: http(limits), router, tls, patience: limits.client_timeout, watched };
    let mut stop = pin!(stop);
    let mut failures = Failures::default();
    let mut crowded = Failures::default();
    loop {
        let (stream, address, place) = tokio::select! {
            biased;
            () = &mut stop => break,
            Some(next) = next(&listener, &room, &mut failures, &mut crowded) => next,
            else => break,
        };
        tokio::spawn(each.clone().serve(stream, address, place, graceful.watcher()));
    }
    drop((listener, stopping));
    // Its watch would be counted among the connections.
    drop(each);
    graceful.shutdown().await;
}

/// How each connection speaks.
fn http(limits: &Limits) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(limits.client_timeout)
        .max_buf_size(BUFFER_BYTES)
        // A client that sends its write and closes its side is answered, not dropped: the known
        // client never looks at the answer, and its writes count all the same.
        .half_close(true);
    http
}

/// What all connections have in common.
#[derive(Clone)]
struct Each {
    http: http1::Builder,
    router: Router,
    tls: Option<Tls>,
    patience: Duration,
    /// Changes when no more is accepted.
    watched: watch::Receiver<()>,
}

impl Each {
    /// Serves one connection to its end.
    async fn serve(
        mut self,
        stream: TcpStream,
        address: SocketAddr,
        place: Place,
        watcher: Watcher,
    ) {
        // Without it a small answer may wait for the acknowledgement of the one before. If it
        // fails the connection is gone, which serving it will find out.
        let _ = stream.set_nodelay(true);
        let place = Arc::new(place);
        let (read, write) = stream.into_split();
        let read = Arc::new(read);
        let mut peer = Peer { address, certificate: None, stream: Arc::downgrade(&read) };
        let stream = CutIfStalled::new(read, write, self.patience, Arc::clone(&place));
        let Some(tls) = self.tls.take() else {
            return self.speak(stream, peer, place, watcher).await;
        };
        let shaken = tokio::select! {
            biased;
            shaken = tls.handshake(stream) => shaken,
            () = tokio::time::sleep(self.patience) => return,
            () = place.given_up() => return,
            // Nobody has asked for anything yet.
            _ = self.watched.changed() => return,
        };
        match shaken {
            Ok((stream, certificate)) => {
                peer.certificate = certificate;
                self.speak(stream, peer, place, watcher).await;
            }
            Err(error) => tracing::debug!(%error, "a TLS handshake failed"),
        }
    }

    async fn speak<S>(self, stream: S, peer: Peer, place: Arc<Place>, watcher: Watcher)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let router = TowerToHyperService::new(self.router);
        let turns = Turns { router, place: Arc::clone(&place), peer: Arc::new(peer) };
        let connection = self.http.serve_connection(TokioIo::new(stream), turns);
        let mut connection = pin!(watcher.watch(connection));
        let end = tokio::select! {
            biased;
            end = &mut connection => end,
            () = place.given_up() => Ok(()),
        };
        if let Err(error) = end {
            tracing::debug!(%error, "a connection broke off");
        }
    }
}

/// The next connection and its place, however long that takes.
///
/// Cancel safe: what it has not returned is closed unserved.
async fn next(
    listener: &TcpListener,
    room: &Arc<Room>,
    failures: &mut Failures,
    crowded: &mut Failures,
) -> Option<(TcpStream, SocketAddr, Place)> {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => {
                failures.in_between += 1;
                if let Some(place) = room.try_place() {
                    crowded.in_between += 1;
                    return Some((stream, address, place));
                }
                if let Some(times) = crowded.told_now() {
                    tracing::warn!(
                        times,
                        "all connections (--max-connections) are in use: those that wait longest for their clients are closed for new ones"
                    );
                }
                return Some((stream, address, room.place().await?));
            }
            // This one client has gone away before its turn; the next may be there already.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                if let Some(failures) = failures.told_now() {
                    tracing::warn!(%error, failures, "cannot accept connections, trying on");
                }
                room.make_room();
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}
