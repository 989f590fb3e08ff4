//! The map: every path that is answered, and by whom.

use std::sync::Arc;

use axum::Router;
use axum::routing::{get, post};

use super::errors::Problem;
use super::{Inbound, health, metrics, replicate};

/// All routes. A `GET` answers `HEAD` as well; with a 405 comes the `Allow` header.
pub(super) fn router(inbound: Arc<Inbound>) -> Router {
    Router::new()
        .route("/replicate", post(replicate::replicate))
        .route("/metrics", get(metrics::figures))
        .route("/metrics/users", get(metrics::users))
        .route("/health", get(health::health))
        .route("/livez", get(health::livez))
        .route("/readyz", get(health::readyz))
        .fallback(|| async { Problem::NotFound })
        .method_not_allowed_fallback(|| async { Problem::WrongMethod })
        .with_state(inbound)
}
