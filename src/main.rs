//! The `replicator` binary.

use std::process::ExitCode;

use replicator::commands;
use tikv_jemallocator::Jemalloc;

/// glibc's per-thread arenas keep the memory of an outage or a compaction forever. Measured by the
/// bench `resident`.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    commands::run(std::env::args_os())
}
