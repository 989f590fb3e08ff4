//! Where they meet.

mod handle;

pub use handle::{Accepted, Handle, Health, Refusal};
