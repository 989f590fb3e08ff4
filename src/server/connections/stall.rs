//! Cuts clients that stop reading their responses.

use std::io::{self, ErrorKind, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::Sleep;

use super::room::ConnectionSlot;

/// A stream whose writes fail once the client has read nothing for `patience`. Otherwise a client
/// that never reads would hold its connection, and a shutdown, forever. While a write is blocked,
/// the slot counts as waiting for its client: a client that reads a byte now and then never times
/// out, but is evicted for others.
pub(super) struct CutIfStalled {
    /// Shared with [`super::ClientPeer::left`].
    read: Arc<OwnedReadHalf>,
    write: OwnedWriteHalf,
    patience: Duration,
    slot: Arc<ConnectionSlot>,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl CutIfStalled {
    pub(super) fn new(
        read: Arc<OwnedReadHalf>,
        write: OwnedWriteHalf,
        patience: Duration,
        slot: Arc<ConnectionSlot>,
    ) -> Self {
        Self { read, write, patience, slot, stalled: None }
    }

    fn watched<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            if self.stalled.take().is_some() {
                self.slot.flows();
            }
            return written;
        }
        let Self { patience, slot, .. } = self;
        let stalled = self.stalled.get_or_insert_with(|| {
            slot.stalls();
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
