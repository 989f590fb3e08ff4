//! All routes of the server, and what every request passes before and after its handler.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::Method;
use axum::response::Response;
use axum::routing::get;
use hyper_util::service::TowerToHyperService;
use serde_json::Value;

use super::access::Caller;
use super::connections::Answering;
use super::errors::{Problem, guarded};
use super::replicate::replicate;
use super::{ServerState, access, page, v1};

/// The router, and the OpenAPI description of the API, which does not include the page.
pub(super) fn router() -> (Router<Arc<ServerState>>, Value) {
    let (router, openapi) = v1::router().split_for_parts();
    let router = router
        .route("/", get(page::index))
        .route("/assets/{name}", get(page::asset))
        .fallback(|| async { Problem::NotFound })
        .method_not_allowed_fallback(|| async { Problem::WrongMethod });
    let mut openapi = serde_json::to_value(openapi).unwrap_or_default();
    access::describe(&mut openapi);
    (router, openapi)
}

/// Answers requests: the access rules, the handler, and the headers of every answer.
#[derive(Debug)]
pub(super) struct Routes {
    server: Arc<ServerState>,
    router: TowerToHyperService<Router>,
}

impl Answering for Routes {
    async fn answer(&self, request: Request) -> Response {
        let handle = |request, caller| self.handle(request, caller);
        guarded(access::check(&self.server, request, handle).await)
    }
}

impl Routes {
    pub(super) fn new(server: ServerState, router: Router<Arc<ServerState>>) -> Self {
        let server = Arc::new(server);
        let router = TowerToHyperService::new(router.with_state(Arc::clone(&server)));
        Self { server, router }
    }

    async fn handle(&self, mut request: Request, caller: Caller) -> Response {
        // Nearly all requests are writes: they skip the router, whose layers cost as much as their
        // handler.
        if request.method() == Method::POST && request.uri().path() == "/replicate" {
            return replicate(State(Arc::clone(&self.server)), caller, request).await;
        }
        request.extensions_mut().insert(caller);
        self.router.answer(request).await
    }
}
