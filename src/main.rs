//! Arguments in, exit code out.

use std::process::ExitCode;

use replicator::commands;
use tikv_jemallocator::Jemalloc;

/// glibc's arenas keep what an outage or a compaction needed once, for each thread of their own.
/// See the bench `resident`.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    commands::run(std::env::args_os())
}
