//! All routes of the server.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use serde_json::Value;

use super::errors::Problem;
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
