//! The fence of the request in flight on a connection, checked right before each system call that
//! writes.
//!
//! The check is below TLS and after all buffers: a process that was stopped in the middle of a request
//! does not write the rest when it runs again and has lost the partition. Without a fence it costs a
//! branch. HTTP/2 is not covered: a connection carries requests of several partitions.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::lease::Fence;

/// A request that only the owner of its partition may send.
#[derive(Debug)]
pub(super) struct FencedRequest {
    fence: Fence,
    begun: AtomicBool,
    refused: AtomicBool,
}

impl FencedRequest {
    /// `None` if nothing can end the right to send.
    pub(super) fn of(fence: &Fence) -> Option<Arc<Self>> {
        let (begun, refused) = (AtomicBool::new(false), AtomicBool::new(false));
        match fence {
            Fence::Open => None,
            fence => Some(Arc::new(Self { fence: fence.clone(), begun, refused })),
        }
    }

    /// Waits until this process may not send it.
    pub(super) async fn ended(&self) {
        self.fence.ended().await;
    }

    /// Whether this process may have sent some of its bytes. Once the fence has ended, this does not change.
    pub(super) fn has_begun(&self) -> bool {
        self.begun.load(Ordering::SeqCst)
    }

    /// Whether a write was refused, so that its connection failed.
    pub(super) fn was_refused(&self) -> bool {
        self.refused.load(Ordering::SeqCst)
    }

    /// Called right before each write.
    fn before_write(&self) -> io::Result<()> {
        // Before the check: otherwise the fence could end between the two, and this request would
        // count as not begun.
        let begun = self.begun.swap(true, Ordering::SeqCst);
        if self.fence.is_held() {
            return Ok(());
        }
        self.begun.store(begun, Ordering::SeqCst);
        self.refused.store(true, Ordering::SeqCst);
        Err(io::Error::other("the lease of the partition has ended"))
    }
}

/// The fenced request in flight on a connection. It stays until the next one: bytes of an answered
/// request can still be in a buffer.
#[derive(Debug, Default)]
pub(super) struct FencePlace {
    is_taken: AtomicBool,
    request: Mutex<Option<Arc<FencedRequest>>>,
}

impl FencePlace {
    /// Called before the request is given to the connection.
    pub(super) fn set(&self, request: Option<&Arc<FencedRequest>>) {
        if request.is_some() || self.is_taken.load(Ordering::Acquire) {
            *self.request.lock() = request.cloned();
            self.is_taken.store(request.is_some(), Ordering::Release);
        }
    }

    /// The first is whether there is a fence.
    fn before_write(&self) -> (bool, io::Result<()>) {
        if !self.is_taken.load(Ordering::Acquire) {
            return (false, Ok(()));
        }
        let request = self.request.lock();
        (true, request.as_ref().map_or(Ok(()), |request| request.before_write()))
    }
}

/// The stream of a connection.
pub(super) struct Fenced {
    stream: TcpStream,
    place: Arc<FencePlace>,
    /// Closing it discards what the kernel has not sent.
    resets: bool,
}

impl Fenced {
    pub(super) fn over(stream: TcpStream) -> (Self, Arc<FencePlace>) {
        let place = Arc::<FencePlace>::default();
        (Self { stream, place: Arc::clone(&place), resets: false }, place)
    }

    fn before_write(&mut self) -> io::Result<()> {
        let (is_fenced, result) = self.place.before_write();
        if is_fenced && !self.resets {
            // Otherwise the kernel continues to send what it has, for minutes to a replica that cannot
            // be reached, although the request was cut or this process was killed. It fails only for
            // a connection that has failed.
            self.resets = self.stream.set_zero_linger().is_ok();
        }
        result
    }
}

impl AsyncRead for Fenced {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Fenced {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.before_write()?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.before_write()?;
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    // Neither writes anything.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
