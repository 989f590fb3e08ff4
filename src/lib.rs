//! A daemon that replicates the writes of a key-value store from its primary to its replica nodes:
//! durably, in order, with retries.
//!
//! Modules, in reading order:
//!
//! - [`task`]: the domain types. Task, delivery, verdict, progress.
//! - [`clock`]: the only place that reads the time.
//! - [`api`]: the JSON types of `/v1`.
//! - [`access`]: tokens, roles and rate limits of clients.
//! - [`engine`]: a pure state machine. Order, retries, quorum, capacities.
//! - [`store`]: durable tasks and their progress, group commit.
//! - [`policy`]: which addresses the daemon may send to.
//! - [`replica`]: outbound. One attempt and its verdict.
//! - [`server`]: inbound HTTP.
//! - [`dispatcher`]: the loop around the engine, and its handle.
//! - [`daemon`]: the composition root. Start, reload, drain, stop.
//! - [`metrics`], [`traces`], [`log`]: observability. Nothing waits for a reader of the log.
//! - [`text`]: escapes untrusted text.
//! - [`tls`]: TLS file settings and PEM parsing.
//! - [`cli`], [`config`], [`commands`]: arguments, validated settings, subcommands.
//! - [`faults`]: named points at which a test can end the process; empty in release builds.
//! - `fuzzing`: properties that hold for any input; tests only.
//!
//! An eventual write: `server::replicate` validates the request and calls
//! [`dispatcher::Handle::replicate`]. The loop in `dispatcher::core` reserves capacity with
//! [`engine::Engine::admit`], numbers the task and passes it to [`store::Committer::accept`]. The
//! committer flushes it together with the other waiting writes; then the client gets its `202` and
//! the engine the task. When the task is at the head of its key's chain, `dispatcher::attempt`
//! sends it with [`replica::ReplicaClient::send`] and returns the verdict to the engine. After the last
//! replica has acknowledged, the committer removes the task from disk.
//!
//! ARCHITECTURE.md has the import rule; `tests/it/layering.rs` enforces it.

pub mod access;
pub mod api;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod daemon;
pub mod dispatcher;
pub mod engine;
pub mod faults;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
pub mod log;
pub mod metrics;
pub mod policy;
pub mod replica;
pub mod server;
pub mod store;
pub mod task;
pub mod text;
pub mod tls;
pub mod traces;
