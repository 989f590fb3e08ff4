//! Arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use replicator::cli::Cli;
use replicator::commands;

fn main() -> ExitCode {
    commands::run(Cli::parse())
}
