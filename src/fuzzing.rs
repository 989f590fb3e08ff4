//! The fuzz targets: functions that take any bytes and panic if a property does not hold.
//!
//! Built for tests and with the feature `fuzzing`. A target is in the module that it tests, because
//! it uses private items. `tests.rs` runs each target on stable Rust over its corpus in
//! `fuzz/corpus/` and over random mutations of it; `fuzz/` runs the same functions under libFuzzer.
//!
//! A target compares the code with a second, simpler parser, or checks a property of any input.

use crate::{access, engine, policy, replica, server, store, task, traces};

pub(crate) mod input;
#[cfg(test)]
mod tests;

/// Name and function. The corpus and the file in `fuzz/fuzz_targets/` have the same name.
pub type FuzzTarget = (&'static str, fn(&[u8]));

pub const TARGETS: [FuzzTarget; 13] = [
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

/// Panics if a property does not hold, or if there is no target `name`.
pub fn run(name: &str, data: &[u8]) {
    let found = TARGETS.iter().find(|(known, _)| *known == name);
    let Some((_, target)) = found else { unreachable!("no fuzz target {name}") };
    target(data);
}
