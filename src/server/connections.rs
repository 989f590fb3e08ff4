//! Connections: how many, how long, and how they end.
//!
//! HTTP/1.1 alone, with keep-alive. At most so many at once: while all slots are taken nothing is
//! accepted, and the kernel's backlog holds the next ones. A client that stops sending a head, or
//! stops reading its answers, is cut after the client timeout; the time for a body is kept in
//! [`super::body`].

use std::io::{self, ErrorKind, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// What a connection may buffer of a head, and the largest piece in which a body comes in. Nobody
/// sends us long heads; hyper's own 400 KiB times some thousand connections would be gigabytes.
const BUFFER_BYTES: usize = 64 * 1024;

/// How long to leave accepting alone after it failed for want of a resource (file descriptors,
/// mostly): only a connection that closes can help.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// The bounds of [`accept`].
pub(super) struct Limits {
    pub(super) max_connections: usize,
    pub(super) client_timeout: Duration,
}

/// Accepts and serves until `stop` resolves; returns when the last connection has closed.
pub(super) async fn accept(
    listener: TcpListener,
    router: Router,
    limits: &Limits,
    stop: impl Future<Output = ()>,
) {
    let slots = Arc::new(Semaphore::new(limits.max_connections.min(Semaphore::MAX_PERMITS)));
    let http = http(limits);
    let graceful = GracefulShutdown::new();
    let mut stop = pin!(stop);
    let mut failures = Failures::default();
    loop {
        let (stream, slot) = tokio::select! {
            biased;
            () = &mut stop => break,
            Some(next) = next(&listener, &slots, &mut failures) => next,
            else => break,
        };
        // Without it a small answer may wait for the acknowledgement of the one before. If it
        // fails the connection is gone, which serving it will find out.
        let _ = stream.set_nodelay(true);
        let io = TokioIo::new(CutIfStalled::new(stream, limits.client_timeout));
        let service = TowerToHyperService::new(router.clone());
        let connection = graceful.watch(http.serve_connection(io, service));
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection broke off");
            }
            drop(slot);
        });
    }
    drop(listener);
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

/// The next connection and its slot, however long that takes; `None` never comes while `slots` is
/// open.
///
/// Cancel safe: what it has not returned it has not accepted.
async fn next(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    failures: &mut Failures,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                failures.in_between += 1;
                return Some((stream, slot));
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
                tokio::time::sleep(ACCEPT_BACKOFF).await;
            }
        }
    }
}

/// How often accepting has failed. While file descriptors are short each connection that closes
/// lets another one in, and then it fails again, up to ten times a second.
#[derive(Default)]
struct Failures {
    untold: u64,
    /// Connections that were accepted since the last failure.
    in_between: u64,
}

impl Failures {
    /// About a minute of them are one line.
    const A_LINE: u64 = 600;
    /// After so many connections without one it is another matter.
    const ANOTHER: u64 = 1000;

    /// It has failed again. Gives how often, if that is to be told now.
    fn told_now(&mut self) -> Option<u64> {
        let first = self.untold == 0 || self.in_between > Self::ANOTHER;
        self.in_between = 0;
        self.untold += 1;
        if first {
            self.untold = 1;
            return Some(1);
        }
        let due = self.untold > Self::A_LINE;
        due.then(|| std::mem::replace(&mut self.untold, 1) - 1)
    }
}

/// A stream whose writes fail when the other side has taken nothing for `patience`. Without it a
/// client that asks and never reads would keep its connection, and a shutdown, for ever.
struct CutIfStalled {
    stream: TcpStream,
    patience: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl CutIfStalled {
    fn new(stream: TcpStream, patience: Duration) -> Self {
        Self { stream, patience, stalled: None }
    }

    fn watched<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let patience = self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        stalled.as_mut().poll(cx).map(|()| {
            let text = "the client does not read its answers";
            Err(io::Error::new(ErrorKind::TimedOut, text))
        })
    }
}

impl AsyncRead for CutIfStalled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for CutIfStalled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watched(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watched(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::Failures;

    #[test]
    fn accepting_that_fails_again_and_again_is_a_line_a_minute() {
        let mut failures = Failures::default();
        assert_eq!(failures.told_now(), Some(1));
        let mut lines = Vec::new();
        for _ in 0..1800 {
            failures.in_between += 1;
            lines.extend(failures.told_now());
        }
        assert_eq!(lines, [600, 600, 600]);
        failures.in_between = 2000;
        assert_eq!(failures.told_now(), Some(1), "after all was well for a while");
    }
}
