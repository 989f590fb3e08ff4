//! What only sled makes necessary: it takes damage for the end of an interrupted write, drops it
//! and what follows it in silence, and does not say how far it is durable.
//!
//! `ledger.rs` counts the rows, `commit_marker.rs` keeps the number of the last commit outside of
//! sled, `sled_log.rs` checks the log before sled opens it, `scan.rs` reads every row. What is
//! damaged goes to `quarantine.rs`, and the rest into a fresh store, by `rebuild.rs`.

pub(super) mod commit_marker;
pub(super) mod ledger;
pub(super) mod quarantine;
pub(super) mod rebuild;
pub(super) mod scan;
pub(super) mod sled_log;
