//! The body of a large value, in pieces, so that it is seen how far it has come.
//!
//! A body that the HTTP client has whole says nothing until all of it is in the socket.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Smaller values go out whole: they fit into the buffer of any socket.
pub(super) const LARGE: usize = 64 * 1024;

/// The client takes up to sixteen pieces before it writes them: progress is seen every 256 KiB.
const PIECE: usize = 16 * 1024;

/// How much of a body the socket has taken, but for what the client holds.
#[derive(Debug)]
pub(super) struct Progress {
    of: u64,
    taken: AtomicU64,
}

impl Progress {
    pub(super) fn of_body(bytes: u64) -> Arc<Self> {
        Arc::new(Self { of: bytes, taken: AtomicU64::new(0) })
    }

    /// The length of the body.
    pub(super) fn of(&self) -> u64 {
        self.of
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A body in pieces.
#[derive(Debug)]
pub(super) struct Upload {
    rest: Bytes,
    progress: Arc<Progress>,
}

impl Upload {
    pub(super) fn of(value: Bytes) -> (Self, Arc<Progress>) {
        let progress = Progress::of_body(value.len() as u64);
        (Self { rest: value, progress: Arc::clone(&progress) }, progress)
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            return Poll::Ready(None);
        }
        let piece = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(piece);
        self.progress.take(piece.len() as u64);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
