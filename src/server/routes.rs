//! The map: every path that is answered, and by whom.

use std::sync::Arc;

use axum::Router;
use axum::routing::get;
use serde_json::Value;

use super::errors::Problem;
use super::{Inbound, access, page, v1};

/// All routes, and the description of those that make the API. A `GET` answers `HEAD` as well;
/// with a 405 comes the `Allow` header. The page is no part of the API.
pub(super) fn router() -> (Router<Arc<Inbound>>, Value) {
    let (router, openapi) = v1::router().split_for_parts();
    let router = router
        .route("/", get(page::index))
        .route("/assets/{name}", get(page::asset))
        .fallback(|| async { Problem::NotFound })
        .method_not_allowed_fallback(|| async { Problem::WrongMethod });
    // It is made of texts and numbers alone, which cannot fail to be written.
    let mut openapi = serde_json::to_value(openapi).unwrap_or_default();
    access::describe(&mut openapi);
    (router, openapi)
}
