//! Whoever asks and never reads is cut.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Sleep;

use super::room::Place;

/// A stream whose writes fail when the other side has taken nothing for `patience`. Without it a
/// client that asks and never reads would keep its connection, and a shutdown, for ever. Meanwhile
/// its place counts as one that waits for its client: whoever reads a little now and then is never
/// cut by time, but gives way to others.
pub(super) struct CutIfStalled {
    /// Shared with whoever waits for the client to leave.
    read: Arc<OwnedReadHalf>,
    write: OwnedWriteHalf,
    patience: Duration,
    place: Arc<Place>,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl CutIfStalled {
    pub(super) fn new(
        read: Arc<OwnedReadHalf>,
        write: OwnedWriteHalf,
        patience: Duration,
        place: Arc<Place>,
    ) -> Self {
        Self { read, write, patience, place, stalled: None }
    }

    fn watched<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.stalled.take().is_some() {
                self.place.flows();
            }
            return written;
        }
        let Self { patience, place, .. } = self;
        let stalled = self.stalled.get_or_insert_with(|| {
            place.stalls();
            Box::pin(tokio::time::sleep(*patience))
        });
        stalled.as_mut().poll(cx).map(|()| {
            let text = "the client does not read its answers";
            Err(io::Error::new(ErrorKind::TimedOut, text))
        })
    }
}

impl AsyncRead for CutIfStalled {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = OwnedReadHalf::as_ref(&self.read);
        loop {
            ready!(stream.poll_read_ready(cx))?;
            match stream.try_read_buf(buf) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(drop)),
            }
        }
    }
}

impl AsyncWrite for CutIfStalled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.write).poll_write(cx, buf);
        self.watched(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.write).poll_write_vectored(cx, bufs);
        self.watched(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.write.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }
}
