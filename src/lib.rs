//! Carries the writes of a key-value store from its primary to its replicas: durably, in order.
//!
//! The parts, in reading order:
//!
//! - [`task`]: the words. Task, delivery, verdict, progress.
//! - [`clock`]: the one place where the time is read.
//! - [`api`]: what operators see and say, as JSON.
//! - [`access`]: who may ask. Tokens, roles, rates.
//! - [`engine`]: what happens next. Order, retries, quorum, capacities; a pure state machine.
//! - [`store`]: what survives. Tasks and their progress, durable in groups.
//! - [`policy`]: where the daemon may write.
//! - [`replica`]: the outbound side. One attempt, and what its answer means.
//! - [`server`]: the inbound side. Requests in, answers out.
//! - [`dispatcher`]: the loop around the engine, and the way into it.
//! - [`daemon`]: where they meet. Start, drain, stop.
//! - [`metrics`]: every figure, by name.
//! - [`traces`]: a write as spans, from its request to each replica.
//! - [`log`]: lines on standard error, which nothing waits for.
//! - [`text`]: text from outside, as it may be shown.
//! - [`tls`]: where the files of TLS are, and how PEM is read.
//! - [`cli`], [`config`], [`commands`]: arguments, settings, and what the binary does.
//! - [`faults`]: the steps at which a test can end the process; nothing in what is shipped.
//! - `fuzzing`: what must hold for any input; not in what is shipped.
//!
//! The path of one eventual write: `server::replicate` reads and checks the request and hands it
//! to [`dispatcher::Handle::replicate`]; the loop in `dispatcher::core` asks [`engine::Engine::admit`] for
//! room, numbers the task and gives it to [`store::Committer::accept`]; the committer's thread
//! writes and flushes it with all others that wait, and only then answers, which becomes the
//! `202`. It tells the loop, the engine finds the task at the head of its key's chain and asks
//! for it to be sent, and `dispatcher::attempt` sends it by [`replica::ReplicaClient::send`]. The verdict
//! goes back into the engine, and when the last replica has acknowledged, the committer removes
//! the task from the disk.
//!
//! Who may know whom: `task`, `api`, `text`, `tls` and `faults` know nobody; all may know `text`; `access`, `policy` and `traces` know
//! `task`; `clock` knows `task` and the moments of `engine`; `engine`, `store` and `replica` know `task` and not each other, `replica` the `policy` as
//! well; `server` knows `task`, `api`, `access`, `metrics`, `policy`, `traces` and the handle of `dispatcher`; `dispatcher` knows all but `server` and `daemon`; `daemon` knows all. A
//! test holds that.

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
