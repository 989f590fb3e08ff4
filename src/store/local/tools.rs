//! Tools for a store that is not in use: `check.rs` finds damage, `dump.rs` exports and imports.

pub(super) mod check;
pub(super) mod dump;
