//! Several instances over three real nats-servers: what is lost, stale or late when any of them is
//! killed, stopped or cut off. The contract of the service holds there, too.
//!
//! `tests/run` installs `nats-server`. Each test prints its figures (`--nocapture`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stderr,
    dead_code,
    reason = "tests fail by panicking"
)]

#[path = "it"]
mod it {
    mod contract;
    mod service;
    pub mod support;
}
#[path = "cluster/damage.rs"]
mod damage;
#[path = "cluster/faults.rs"]
mod faults;
#[path = "cluster/fencing.rs"]
mod fencing;
#[path = "cluster/figures.rs"]
mod figures;
#[path = "cluster/judge.rs"]
mod judge;
#[path = "cluster/keys.rs"]
mod keys;
#[path = "cluster/operators.rs"]
mod operators;
#[path = "cluster/proxy.rs"]
mod proxy;
#[path = "cluster/sharing.rs"]
mod sharing;
#[path = "cluster/space.rs"]
mod space;
#[path = "cluster/strong.rs"]
mod strong;
#[path = "cluster/torture.rs"]
mod torture;
#[path = "cluster/traffic.rs"]
mod traffic;
#[path = "cluster/world.rs"]
mod world;

use it::support;
