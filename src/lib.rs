//! Carries the writes of a key-value store from its primary to its replicas: durably, in order.

pub mod daemon;
pub mod engine;
pub mod metrics;
pub mod task;
