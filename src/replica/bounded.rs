//! A stream from which only so much is read.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// For the interim answers together, and again for the final head.
pub(super) const MAX_HEAD_BYTES: usize = 64 << 10;

pub(super) trait ReadLimit {
    /// Asked before each read.
    fn is_reached(&self) -> bool;

    fn has_read(&self, bytes: usize);

    fn has_failed(&self, _: &io::Error) {}
}

#[derive(Clone, Copy, Debug, Error)]
#[error("more than {} KiB before the final answer", MAX_HEAD_BYTES >> 10)]
pub(super) struct HeadTooLong;

pub(super) struct Bounded<S, L> {
    pub(super) stream: S,
    pub(super) limit: Arc<L>,
}

impl<S: AsyncRead + Unpin, L: ReadLimit> AsyncRead for Bounded<S, L> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.limit.is_reached() {
            return Poll::Ready(Err(io::Error::other(HeadTooLong)));
        }
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        match &result {
            Poll::Ready(Err(error)) => self.limit.has_failed(error),
            _ => self.limit.has_read(buffer.filled().len() - before),
        }
        result
    }
}

impl<S: AsyncWrite + Unpin, L: Unpin> AsyncWrite for Bounded<S, L> {
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
