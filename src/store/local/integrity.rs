//! Protection against silent loss in sled, which takes damage in its log for the end of an
//! interrupted write, drops what follows, and does not say how far it is durable.
//!
//! `ledger.rs` counts the rows, `commit_marker.rs` keeps the number of the last commit outside
//! sled, `sled_log.rs` checks the log before sled opens it, `scan.rs` reads every row.
//! `quarantine.rs` sets damaged rows aside; `rebuild.rs` copies the rest into a fresh store.

pub(super) mod commit_marker;
pub(super) mod ledger;
pub(super) mod quarantine;
pub(super) mod rebuild;
pub(super) mod scan;
pub(super) mod sled_log;
