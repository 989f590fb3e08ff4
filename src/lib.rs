//! A daemon that replicates the writes of a key-value store from its primary to its replica nodes:
//! durably, in order, with retries.
//!
//! ARCHITECTURE.md has the path of a write, the map of the modules and the import rule;
//! `tests/it/layering.rs` enforces the rule. Read `task` and `engine` first.

mod access;
mod api;
mod cli;
mod clock;
pub mod commands;
mod config;
mod daemon;
mod dispatcher;
mod engine;
mod faults;
#[cfg(any(test, feature = "fuzzing"))]
mod fuzzing;
mod lease;
mod log;
mod metrics;
mod notify;
mod policy;
mod replica;
mod server;
mod share;
mod store;
mod task;
#[doc(hidden)]
pub mod testing;
mod text;
mod tls;
mod traces;
mod trusted_file;
