//! The tools on a store that is not in use: `check.rs` looks for damage, `dump.rs` exports and
//! imports.

pub(super) mod check;
pub(super) mod dump;
