//! Many writes in one request.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What one write of a batch was answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchAnswer {
    /// What `POST /replicate` would have answered: 202, 200, 400, 413, 422 or 503.
    pub status: u16,
    /// Its body.
    #[schema(value_type = Object)]
    pub body: serde_json::Value,
}

/// One answer for each write, in their order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct BatchAnswers {
    /// Writes accepted.
    pub accepted: usize,
    /// Writes refused.
    pub refused: usize,
    /// The answers.
    pub answers: Vec<BatchAnswer>,
}
