//! What a fuzzer runs: a function a target, which takes any bytes and panics where something that
//! is promised does not hold.
//!
//! For tests alone: it is built for them and with the feature `fuzzing`, which `fuzz/` asks for. A
//! target lies in the part that it is about, as it looks inside; [`TARGETS`] has them all.
//! `tests.rs` runs each over its corpus in `fuzz/corpus/` and over what can be made of that at
//! random, with nothing but stable Rust; `fuzz/` runs the same functions under libFuzzer.
//!
//! A target is no table of examples: it compares with a second, simpler reading of the same bytes,
//! or asks for what must hold of any.

use crate::{access, engine, policy, replica, server, store, task, traces};

mod input;
#[cfg(test)]
mod tests;

pub(crate) use input::Input;

/// Its name, which is that of its corpus and of its file in `fuzz/fuzz_targets/`, and what it runs.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 13] = [
    ("answer", replica::fuzzing::answer),
    ("batch", server::fuzzing::batch),
    ("body", server::fuzzing::body),
    ("engine", engine::fuzzing::engine),
    ("import", store::fuzzing::import),
    ("node", task::fuzzing::node),
    ("operator", server::fuzzing::operator),
    ("policy", policy::fuzzing::policy),
    ("request", replica::fuzzing::request),
    ("rows", store::fuzzing::rows),
    ("tokens", access::fuzzing::tokens),
    ("trace", traces::fuzzing::trace),
    ("ttl", replica::fuzzing::ttl),
];

/// Runs the target of this name.
///
/// # Panics
///
/// Where something does not hold, and where there is no such target.
pub fn run(name: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    let Some((_, target)) = found else { unreachable!("there is no target {name}") };
    target(data);
}
