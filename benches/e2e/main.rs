//! The daemon end to end, as ratios to references measured in the same run.
//!
//! ```text
//! cargo bench --bench e2e              everything, about two minutes
//! cargo bench --bench e2e -- accept    one part: accept, deliver or strong
//! cargo bench --bench e2e -- latency   one write at a time beside a bare commit; half a minute
//! cargo bench --bench e2e -- compare   accept and strong beside another build of the daemon, whose
//!                                      binary E2E_BASELINE names; two minutes
//! cargo bench --bench e2e -- memory    a million queued tasks; a few minutes and 2 GiB of disk
//! cargo bench --bench e2e -- resident  memory over 20 compactions and after an outage, of this build
//!                                      and of the one that E2E_BASELINE names; four minutes
//! cargo bench --bench e2e -- restart   a restart with 1,000 to 1,000,000 queued tasks; three minutes
//! cargo bench --bench e2e -- isolation four healthy replicas beside a bad one; twelve minutes
//! cargo bench --bench e2e -- outage    a replica down for a minute and back; six minutes
//! cargo bench --bench e2e -- auto      --workers auto beside 5 and 64; two minutes
//! cargo bench --bench e2e -- auth      behind tokens and TLS, and without; three minutes
//! cargo bench --bench e2e -- hostile   beside thousands of hostile connections, and without; two minutes
//! cargo bench --bench e2e -- watched   with a scrape, events and the page open, and without; two minutes
//! ```
//!
//! Each reference shares the daemon's stack and machine and runs in turn with it, several rounds
//! each; what is printed are medians. The null handler is a process with the same HTTP server
//! that parses the same JSON and stores nothing; the null replica is a process that answers
//! every write at once. The load comes from this process over keep-alive connections.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a benchmark fails by panicking, and reads the clock"
)]

mod auth;
mod auto;
mod compare;
mod hostile;
mod isolation;
mod latency;
mod load;
mod memory;
mod node;
mod outage;
mod parts;
mod resident;
mod restart;
mod roles;
mod watched;

fn main() {
    replicator::replica::install_crypto();
    if let Ok(role) = std::env::var(roles::ROLE) {
        return roles::play(&role);
    }
    let wanted: Vec<_> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|arg| arg == part);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        if wants("accept") {
            parts::accept().await;
        }
        if wants("deliver") {
            parts::deliver().await;
        }
        if wants("strong") {
            parts::strong().await;
        }
        let asked_for = |part: &str| wanted.iter().any(|arg| arg == part);
        if asked_for("latency") {
            latency::latency().await;
        }
        if asked_for("compare") {
            compare::compare().await;
        }
        if asked_for("memory") {
            memory::memory().await;
        }
        if asked_for("resident") {
            resident::resident().await;
        }
        if asked_for("isolation") {
            isolation::isolation().await;
        }
        if asked_for("outage") {
            outage::outage().await;
        }
        if asked_for("restart") {
            restart::restart().await;
        }
        if asked_for("auto") {
            auto::auto().await;
        }
        if asked_for("auth") {
            auth::auth().await;
        }
        if asked_for("hostile") {
            hostile::hostile().await;
        }
        if asked_for("watched") {
            watched::watched().await;
        }
    });
}
