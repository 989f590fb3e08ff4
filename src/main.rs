//! Arguments in, exit code out.

use std::process::ExitCode;

use replicator::commands;

fn main() -> ExitCode {
    commands::run(std::env::args_os())
}
