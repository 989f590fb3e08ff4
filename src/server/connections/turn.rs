//! Tracks whether a connection waits for its client or for the daemon: for the client until its
//! request is complete, for the daemon until the response is written.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::Service;

use super::room::{ConnectionSlot, PROGRESS_BYTES};
use super::{Answering, ClientPeer};

pub(super) struct TurnService<A> {
    pub(super) answering: Arc<A>,
    pub(super) slot: Arc<ConnectionSlot>,
    pub(super) peer: Arc<ClientPeer>,
}

impl<A: Answering> Service<Request<Incoming>> for TurnService<A> {
    type Response = Response<AnswerBody>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<AnswerBody>, Self::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let slot = Arc::clone(&self.slot);
        let turn = OurTurn(Arc::clone(&slot));
        let mut request = request.map(|body| {
            if body.is_end_stream() {
                slot.busy();
                Body::empty()
            } else {
                Body::new(RequestBody { body, slot, unreported: 0 })
            }
        });
        request.extensions_mut().insert(Arc::clone(&self.peer));
        let answering = Arc::clone(&self.answering);
        Box::pin(async move {
            let answer = answering.answer(request).await;
            Ok(answer.map(|body| AnswerBody { body, _turn: turn }))
        })
    }
}

struct RequestBody {
    body: Incoming,
    slot: Arc<ConnectionSlot>,
    /// Bytes since the last progress.
    unreported: usize,
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if self.body.is_end_stream() || matches!(frame, Poll::Ready(None)) {
            self.slot.busy();
        } else if let Poll::Ready(Some(Ok(frame))) = &frame {
            self.unreported += frame.data_ref().map_or(0, Bytes::len);
            if self.unreported >= PROGRESS_BYTES {
                self.unreported = 0;
                self.slot.progresses();
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Marks the slot as waiting for its client when dropped.
struct OurTurn(Arc<ConnectionSlot>);

impl Drop for OurTurn {
    fn drop(&mut self) {
        self.0.waits();
    }
}

/// A response body. hyper drops it once it is written or the client is gone.
pub(super) struct AnswerBody {
    body: Body,
    _turn: OurTurn,
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
