//! The body of a request: a large value in pieces, so that its progress is visible.
//!
//! hyper reports no progress for a body in one piece until the socket has taken the whole body.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

/// Smaller values go out in one piece: they fit into any socket buffer.
const LARGE: usize = 64 * 1024;

/// hyper buffers up to 16 pieces before it writes them, so progress is visible every 256 KiB.
const PIECE: usize = 16 * 1024;

/// Counts the bytes of a body that hyper has taken.
#[derive(Debug)]
pub(super) struct UploadProgress {
    total: u64,
    taken: AtomicU64,
}

impl UploadProgress {
    pub(super) fn of_body(bytes: u64) -> Arc<Self> {
        Arc::new(Self { total: bytes, taken: AtomicU64::new(0) })
    }

    pub(super) fn total(&self) -> u64 {
        self.total
    }

    pub(super) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    pub(super) fn take(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }
}

#[derive(Debug)]
pub(super) struct Upload {
    rest: Bytes,
    /// Only of a large value.
    progress: Option<Arc<UploadProgress>>,
}

impl Upload {
    pub(super) fn of(value: Bytes) -> Self {
        let large = value.len() > LARGE;
        let progress = large.then(|| UploadProgress::of_body(value.len() as u64));
        Self { rest: value, progress }
    }

    pub(super) fn progress(&self) -> Option<Arc<UploadProgress>> {
        self.progress.clone()
    }
}

impl Upload {
    pub(super) fn next_piece(&mut self) -> Option<Bytes> {
        if self.rest.is_empty() {
            return None;
        }
        let piece = match &self.progress {
            Some(progress) => {
                let piece = self.rest.len().min(PIECE);
                progress.take(piece as u64);
                piece
            }
            None => self.rest.len(),
        };
        Some(self.rest.split_to(piece))
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.next_piece().map(|piece| Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.rest.len() as u64)
    }
}
