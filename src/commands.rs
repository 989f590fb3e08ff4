//! Runs the daemon or a subcommand, and returns the exit code.
//!
//! Common exit codes: 0 success; 1 failure, with the reason on standard error; 2 invalid arguments.
//! [`admin`] has further ones.

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{CommandFactory, error::ErrorKind};
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

use crate::cli::admin::ConnectArgs;
use crate::cli::daemon::DaemonArgs;
use crate::cli::environment::{self, CommandLine, CommandLineError, Origins};
use crate::cli::{Cli, Command, ExportArgs, StoreArgs};
use crate::clock::wall_clock;
use crate::config::Config;
use crate::log::{self, StderrLog};
use crate::store;
use crate::text::without_secrets;
use output::fail;
use reload::SettingsReader;

mod admin;
mod aside;
mod check;
mod config;
mod demo;
mod dump;
mod generate;
mod notify;
mod output;
mod reload;
mod serve;
mod threads;
mod token;

#[must_use]
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let args: Vec<_> = args.into_iter().collect();
    let CommandLine { cli, origins, settings } = match environment::read(args.clone()) {
        Ok(line) => line,
        Err(error) => return print_error(&error),
    };
    protect_files_and_memory(cli.command.as_ref());
    match cli.command {
        None => daemon(args, CommandLine { cli, origins, settings }),
        Some(Command::Status(args)) => client(admin::status(&args)),
        Some(Command::Replicas(args)) => client(admin::replicas(&args)),
        Some(Command::Tasks(args)) => client(admin::tasks(&args)),
        Some(Command::Key(args)) => client(admin::key(&args)),
        Some(Command::DeadLetters(args)) => client(admin::dead_letters(&args)),
        Some(Command::Barrier(args)) => client(admin::barrier(&args)),
        Some(Command::Verify(args)) => client(admin::verify(&args)),
        Some(Command::Cluster(args)) => client(admin::cluster(&args)),
        Some(Command::Top(args)) => client(admin::top(&args)),
        Some(Command::Config(args)) => config::run(&args, &origins, &settings),
        Some(Command::Token(args)) => token::run(&args),
        Some(Command::Notify(args)) => client(notify::run(&args)),
        Some(Command::Completions(args)) => generate::completions(&args),
        Some(Command::Man(args)) => generate::man(&args),
        Some(Command::Demo(args)) => service(demo::run(&args)),
        Some(Command::Check(args)) => with_store(|| check::run(&args)),
        Some(Command::Export(ExportArgs { url: Some(url), connection, output, .. })) => {
            client(admin::export(ConnectArgs { url, connection }, output))
        }
        Some(Command::Export(args)) => with_store(|| dump::export(&args)),
        Some(Command::Import(args)) => with_store(|| dump::import(&args)),
        Some(Command::DemoReplica(args)) => service(demo::replica::run(&args)),
    }
}

/// Prints an error in the command line, or the help or version that it asks for.
fn print_error(CommandLineError { error, hint }: &CommandLineError) -> ExitCode {
    let code = u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
    if !error.use_stderr() {
        let printed = error.print().and_then(|()| std::io::stdout().flush());
        return output::exit_code(printed.map_err(Into::into), code);
    }
    output::say_invalid(error);
    if let Some(hint) = hint {
        output::say(hint);
    }
    code
}

/// Runs a command that talks to a daemon.
fn client(command: impl Future<Output = ExitCode>) -> ExitCode {
    run_on(&mut Builder::new_current_thread(), threads::FOR_CLIENT, async { Ok(command.await) })
        .unwrap_or_else(|why| fail(&why))
}

/// Runs a command that listens on a port.
fn service(command: impl Future<Output = ExitCode>) -> ExitCode {
    run_on(&mut Builder::new_multi_thread(), threads::for_daemon(), async { Ok(command.await) })
        .unwrap_or_else(|why| fail(&why))
}

/// Runs a tool that opens a store.
fn with_store(tool: impl FnOnce() -> ExitCode) -> ExitCode {
    match threads::check(threads::FOR_STORE) {
        Ok(()) => tool(),
        Err(why) => fail(&why),
    }
}

fn run_on(
    runtime: &mut Builder,
    threads: usize,
    command: impl Future<Output = Result<ExitCode, String>>,
) -> Result<ExitCode, String> {
    threads::check(threads)?;
    let runtime = runtime.enable_all().build();
    let runtime = runtime.map_err(|error| format!("cannot start the runtime: {error}"))?;
    let code = runtime.block_on(command);
    // A thread that is blocked on a hanging disk must not keep the process from exiting.
    runtime.shutdown_background();
    code
}

/// Hides files and memory from other users, for commands that handle clients' values.
///
/// The umask belongs to the process, so it is set before threads start. sled sets no mode for its
/// files, so the umask protects them too. A core dump would contain values and tokens; only Linux
/// can disable it here, other systems need `ulimit -c 0`.
fn protect_files_and_memory(command: Option<&Command>) {
    use rustix::fs::Mode;
    use rustix::process::umask;
    match command {
        None
        | Some(Command::Check(_) | Command::Export(_) | Command::Import(_) | Command::Demo(_)) => {}
        // Other commands write only manual pages and token files; the user's umask applies.
        Some(_) => return,
    }
    umask(Mode::RWXG | Mode::RWXO);
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{DumpableBehavior, set_dumpable_behavior};
        // Best effort: a kernel without this call writes no core dumps.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

/// The settings of the daemon and the filter of its log.
fn validated(
    args: &DaemonArgs,
    origins: &Origins,
) -> Result<(Config, EnvFilter), CommandLineError> {
    let invalid = |why: &dyn Display| {
        let error = Cli::command().error(ErrorKind::ValueValidation, why);
        CommandLineError { error, hint: origins.hint(&why.to_string()) }
    };
    let config = Config::from_args(args).map_err(|errors| invalid(&errors))?;
    let filter = log::filter(&args.process.log).map_err(|why| invalid(&why))?;
    Ok((config, log::without(filter, &args.process.log, store::CLIENT_LIBRARY)))
}

/// Runs the daemon. If it does not start, the last log line is the reason.
fn daemon(line: Vec<OsString>, CommandLine { cli, origins, settings }: CommandLine) -> ExitCode {
    let args = &cli.daemon;
    let (config, filter) = match validated(args, &origins) {
        Ok(valid) => valid,
        Err(error) => return print_error(&error),
    };
    let log = match StderrLog::open(filter, args.process.log_format) {
        Ok(log) => log,
        Err(error) => {
            let why = threads::check(threads::for_daemon()).err();
            return fail(&why.unwrap_or_else(|| format!("cannot start the log: {error}")));
        }
    };
    let reread = Arc::new(SettingsReader::new(line, settings, log.filter()));
    let daemon = serve::run(&config, reread);
    match run_on(&mut Builder::new_multi_thread(), threads::for_daemon(), daemon) {
        Ok(code) => code,
        Err(why) => {
            let hint = origins.hint(&why).map_or_else(String::new, |hint| format!(" ({hint})"));
            log.fail(&without_secrets(&format!("{why}{hint}")));
            ExitCode::FAILURE
        }
    }
}

fn store_settings(args: &StoreArgs) -> store::StoreSettings {
    const CACHE_BYTES: u64 = 64 << 20;
    store::StoreSettings {
        dir: args.data_dir.clone(),
        cache_bytes: CACHE_BYTES,
        now: wall_clock(),
        min_free_bytes: 0,
    }
}

/// An error with its causes, on one line. Skips a cause that the text so far contains.
fn with_causes(error: &dyn Error) -> String {
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
