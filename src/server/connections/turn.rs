//! Whose turn it is on a connection: the client's until its request is whole, ours until it has
//! its answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{Request, Response};
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;

use super::Peer;
use super::room::Place;

/// The router, for the requests of one connection.
pub(super) struct Turns {
    pub(super) router: TowerToHyperService<Router>,
    pub(super) place: Arc<Place>,
    pub(super) peer: Arc<Peer>,
}

impl Service<Request<Incoming>> for Turns {
    type Response = Response<Answer>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Answer>, Self::Error>> + Send>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let place = Arc::clone(&self.place);
        let ours = Ours(Arc::clone(&place));
        let mut request = request.map(|body| {
            if body.is_end_stream() {
                place.busy();
                Body::empty()
            } else {
                Body::new(Asked { body, place })
            }
        });
        request.extensions_mut().insert(Arc::clone(&self.peer));
        let answer = Service::call(&self.router, request);
        Box::pin(async move { Ok(answer.await?.map(|body| Answer { body, _ours: ours })) })
    }
}

/// The body of a request. With its end the request is whole.
struct Asked {
    body: Incoming,
    place: Arc<Place>,
}

impl HttpBody for Asked {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if self.body.is_end_stream() || matches!(frame, Poll::Ready(None)) {
            self.place.busy();
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

/// The turn is ours until this is dropped.
struct Ours(Arc<Place>);

impl Drop for Ours {
    fn drop(&mut self) {
        self.0.waits();
    }
}

/// The body of an answer. hyper drops it when all of it is written, or the client is gone.
pub(super) struct Answer {
    body: Body,
    _ours: Ours,
}

impl HttpBody for Answer {
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
