//! Black-box tests: the binary over HTTP, against replicas that follow a script.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::print_stdout,
    dead_code,
    reason = "tests fail by panicking"
)]

mod support;

mod access;
mod admin;
mod cli;
mod config;
mod connections;
mod contract;
mod delivery;
mod deploy;
mod disk;
mod environment;
mod examples;
mod files;
mod fixtures;
mod hostile;
mod language;
mod layering;
mod lifecycle;
mod limits;
mod logs;
mod notify;
mod outage;
mod output;
mod page;
mod policy;
mod readme;
mod refused;
mod service;
mod telemetry;
mod tls_in;
mod tls_out;
mod tokens;
mod tools;
mod traces;
