//! What the binary does: the daemon, and the tools beside it.
//!
//! Exit codes: 0 all is well; 1 it could not be done, the reason is on standard error; 2 the
//! arguments are wrong. Those of the commands that ask a running daemon are in [`admin`].

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, error::ErrorKind};
use tokio::runtime::Builder;

use crate::cli::environment::{self, Given, Refused, Variables};
use crate::cli::{Cli, Command, DaemonArgs, StoreArgs};
use crate::clock::wall_clock;
use crate::config::Config;
use crate::log::{self, Log};
use crate::store;
use output::fail;

mod admin;
mod check;
mod demo;
mod dump;
mod generate;
mod output;
mod serve;
mod threads;
mod token;

/// Does what the command line asks for.
#[must_use]
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let Given { cli, variables } = match environment::read(args) {
        Ok(given) => given,
        Err(refused) => return refuse(&refused),
    };
    protect(cli.command.as_ref());
    match cli.command {
        None => daemon(&cli.daemon, &variables),
        Some(Command::Status(args)) => ask(admin::status(&args)),
        Some(Command::Replicas(args)) => ask(admin::replicas(&args)),
        Some(Command::Tasks(args)) => ask(admin::tasks(&args)),
        Some(Command::DeadLetters(args)) => ask(admin::dead_letters(&args)),
        Some(Command::Barrier(args)) => ask(admin::barrier(&args)),
        Some(Command::Top(args)) => ask(admin::top(&args)),
        Some(Command::Token(args)) => token::run(&args),
        Some(Command::Completions(args)) => generate::completions(&args),
        Some(Command::Man(args)) => generate::man(&args),
        Some(Command::Demo(args)) => service(demo::run(&args)),
        Some(Command::Check(args)) => with_store(|| check::run(&args)),
        Some(Command::Export(args)) => with_store(|| dump::export(&args)),
        Some(Command::Import(args)) => with_store(|| dump::import(&args)),
        Some(Command::DemoReplica(args)) => service(demo::replica::run(&args)),
    }
}

/// Prints why the command line is refused, or the help that it asked for.
fn refuse(refused: &Refused) -> ExitCode {
    let code = u8::try_from(refused.error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from);
    let printed = refused.error.print().and_then(|()| std::io::stdout().flush());
    if let Some(hint) = &refused.hint {
        output::say(hint);
    }
    match refused.error.use_stderr() {
        true => code,
        false => output::ended(printed.map_err(Into::into), code),
    }
}

/// Runs a command that asks a daemon.
fn ask(command: impl Future<Output = ExitCode>) -> ExitCode {
    run_on(&mut Builder::new_current_thread(), threads::OF_CLIENT, async { Ok(command.await) })
        .unwrap_or_else(|why| fail(&why))
}

/// Runs a command that serves.
fn service(command: impl Future<Output = ExitCode>) -> ExitCode {
    run_on(&mut Builder::new_multi_thread(), threads::of_daemon(), async { Ok(command.await) })
        .unwrap_or_else(|why| fail(&why))
}

/// Runs a tool that opens a store.
fn with_store(tool: impl FnOnce() -> ExitCode) -> ExitCode {
    match threads::check(threads::OF_STORE) {
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

/// Runs the daemon with a log. Where it does not start, the reason is the last line.
fn daemon(args: &DaemonArgs, variables: &Variables) -> ExitCode {
    let wrong = |why: &dyn Display| {
        let error = Cli::command().error(ErrorKind::ValueValidation, why);
        refuse(&Refused { error, hint: variables.blame(&why.to_string()) })
    };
    let config = match Config::from_args(args) {
        Ok(config) => config,
        Err(errors) => return wrong(&errors),
    };
    let filter = match log::filter(&args.log) {
        Ok(filter) => filter,
        Err(why) => return wrong(&why),
    };
    let log = match Log::to_stderr(filter, args.log_format) {
        Ok(log) => log,
        Err(error) => {
            let why = threads::check(threads::of_daemon()).err();
            return fail(&why.unwrap_or_else(|| format!("cannot start the log: {error}")));
        }
    };
    let daemon = serve::run(&config);
    match run_on(&mut Builder::new_multi_thread(), threads::of_daemon(), daemon) {
        Ok(code) => code,
        Err(why) => {
            let hint = variables.blame(&why).map_or_else(String::new, |hint| format!(" ({hint})"));
            log.fail(&format!("{why}{hint}"));
            ExitCode::FAILURE
        }
    }
}

/// The store of a tool.
fn store_settings(args: &StoreArgs) -> store::StoreSettings {
    const CACHE_BYTES: u64 = 64 << 20;
    store::StoreSettings {
        dir: args.data_dir.clone(),
        cache_bytes: CACHE_BYTES,
        now: wall_clock(),
        min_free_bytes: 0,
    }
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
