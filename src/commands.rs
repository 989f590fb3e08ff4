//! What the binary does: the daemon, and the tools beside it.
//!
//! Exit codes: 0 all is well; 1 it could not be done, the reason is on standard error; 2 the
//! arguments are wrong. Those of the commands that ask a running daemon are in [`operate`].

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "what a command prints is what it is for"
)]

use std::error::Error;
use std::fmt::Display;
use std::process::ExitCode;

use clap::{CommandFactory, error::ErrorKind};
use tokio::runtime::Runtime;
use tracing::error;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::cli::{Cli, Command, DaemonArgs, LogFormat, StoreArgs};
use crate::config::Config;
use crate::daemon::wall_clock;
use crate::store;

mod check;
mod demo;
mod dump;
mod generate;
mod operate;
mod serve;
mod token;

/// Does what the command line asks for.
#[must_use]
pub fn run(cli: Cli) -> ExitCode {
    protect(cli.command.as_ref());
    let runtime = match Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start the runtime: {error}")),
    };
    let code = match cli.command {
        None => with_config(&cli.daemon, |config| runtime.block_on(serve::run(config))),
        Some(Command::Status(args)) => runtime.block_on(operate::status(&args)),
        Some(Command::Replicas(args)) => runtime.block_on(operate::replicas(&args)),
        Some(Command::Tasks(args)) => runtime.block_on(operate::tasks(&args)),
        Some(Command::DeadLetters(args)) => runtime.block_on(operate::dead_letters(&args)),
        Some(Command::Barrier(args)) => runtime.block_on(operate::barrier(&args)),
        Some(Command::Top(args)) => runtime.block_on(operate::top(&args)),
        Some(Command::Token(args)) => token::run(&args),
        Some(Command::Completions(args)) => generate::completions(&args),
        Some(Command::Man(args)) => generate::man(&args),
        Some(Command::Demo(args)) => runtime.block_on(demo::run(&args)),
        Some(Command::Check(args)) => check::run(&args),
        Some(Command::Export(args)) => dump::export(&args),
        Some(Command::Import(args)) => dump::import(&args),
        Some(Command::DemoReplica(args)) => runtime.block_on(demo::replica::run(&args)),
    };
    // What is still blocked on a disk that hangs must not keep the process from its end.
    runtime.shutdown_background();
    code
}

/// Keeps what is in files and in memory from other users, where a command has values of clients.
///
/// The umask is the process's, so it is set before there are threads; it holds for sled's files too,
/// which have no mode of their own. A core dump would hold values and tokens. On other systems than
/// Linux that is left to `ulimit -c 0`.
fn protect(command: Option<&Command>) {
    use rustix::fs::Mode;
    use rustix::process::umask;
    match command {
        None
        | Some(Command::Check(_) | Command::Export(_) | Command::Import(_) | Command::Demo(_)) => {}
        // Their files, as manual pages, are for whoever the user's own umask says.
        Some(_) => return,
    }
    umask(Mode::RWXG | Mode::RWXO);
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        // Without it the process is as good, and a kernel that says no has no dumps to hide.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

/// Runs `command` with a log. Where it fails, it gives the reason.
fn with_config(
    args: &DaemonArgs,
    command: impl FnOnce(&Config) -> Result<ExitCode, String>,
) -> ExitCode {
    let config = match Config::from_args(args) {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{}", Cli::command().error(ErrorKind::ValueValidation, errors));
            return ExitCode::from(2);
        }
    };
    match filter(&args.log) {
        Ok(filter) => log_to_stderr(filter, args.log_format),
        Err(error) => {
            eprintln!("{}", Cli::command().error(ErrorKind::ValueValidation, error));
            return ExitCode::from(2);
        }
    }
    match (command(&config), args.log_format) {
        (Ok(code), _) => code,
        (Err(why), LogFormat::Text) => fail(&why),
        // Whoever reads the log of a daemon by machine is not to meet a line of another kind.
        (Err(why), LogFormat::Json) => {
            error!("{why}");
            ExitCode::FAILURE
        }
    }
}

/// A bare word that is no level would be the filter of a part of that name, of which there is none:
/// with `warning` nothing would be logged at all.
fn filter(text: &str) -> Result<EnvFilter, String> {
    let wrong = |why: &dyn Display| format!("--log {text:?} is no filter: {why}");
    let is_level = |word: &str| word.is_empty() || word.parse::<LevelFilter>().is_ok();
    match text.split(',').find(|word| !word.contains('=') && !is_level(word)) {
        Some(word) => Err(wrong(&format!(
            "{word:?} is no level (error, warn, info, debug, trace), and a part is PART=LEVEL"
        ))),
        None => EnvFilter::try_new(text).map_err(|error| wrong(&error)),
    }
}

fn log_to_stderr(filter: EnvFilter, format: LogFormat) {
    use std::io::IsTerminal;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => {
            log.json().flatten_event(true).with_current_span(false).with_span_list(false).init();
            std::panic::set_hook(Box::new(|panic| {
                error!(panic = panic.to_string(), "a part of the process has panicked");
            }));
        }
    }
}

/// The store of a tool.
fn store_settings(args: &StoreArgs) -> store::Settings {
    const CACHE_BYTES: u64 = 64 << 20;
    store::Settings {
        dir: args.data_dir.clone(),
        cache_bytes: CACHE_BYTES,
        now: wall_clock(),
        min_free_bytes: 0,
    }
}

fn fail(error: &dyn Display) -> ExitCode {
    eprintln!("replicator: {error}");
    ExitCode::FAILURE
}

/// An error with its causes, in one line. A cause that its error has told already is left out.
fn whole(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let why = error.to_string();
        if !text.contains(&why) {
            text = format!("{text}: {why}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_no_filter_of_a_part_that_does_not_exist() {
        for text in ["info", "WARN", "off", "3", "warn,audit=info", "info,a::b[span]=debug", ""] {
            assert!(filter(text).is_ok(), "{text}");
        }
        for text in ["verbose", "warning", "info,verbose", "a=b=c"] {
            let error = filter(text).unwrap_err();
            assert!(error.starts_with(&format!("--log {text:?} is no filter: ")), "{error}");
        }
    }
}
