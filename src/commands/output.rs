//! Output of commands. Nothing here panics; no other module prints.
//!
//! A command fails if standard output cannot be written, except for a closed pipe (`| head`).
//! Errors of standard error are ignored: there is no other place to report them.

use std::fmt::{Arguments, Display};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use thiserror::Error;

use crate::log;
use crate::text;

/// How long a starting service waits for its address to be read.
const ADDRESS_TIMEOUT: Duration = Duration::from_secs(1);

#[derive(Debug, Error)]
#[error("cannot print: {0}")]
pub(super) struct PrintError(#[from] io::Error);

pub(super) fn print(bytes: &[u8]) -> Result<(), PrintError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

pub(super) fn line(text: Arguments<'_>) -> Result<(), PrintError> {
    print(format!("{text}\n").as_bytes())
}

/// Prints one line to standard error, escaped and without secrets.
pub(super) fn say(text: &dyn Display) {
    let _ = writeln!(io::stderr(), "{}", text::plain(&text::without_secrets(&text.to_string())));
}

/// Prints an error in the arguments, which quotes them.
pub(super) fn say_invalid(error: &clap::Error) {
    let (text, mut err) = (error.render(), io::stderr().lock());
    let coloured = may_colour(&err);
    let text = if coloured { text.ansi().to_string() } else { text.to_string() };
    for line in text::without_secrets(&text).lines() {
        let _ = writeln!(err, "{}", text::line(line, coloured));
    }
}

/// Whether a stream is a terminal with colours. `NO_COLOR` disables them.
pub(super) fn may_colour(stream: &impl IsTerminal) -> bool {
    let disabled = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    stream.is_terminal() && !disabled && !is_dumb()
}

/// Whether the terminal cannot move its cursor.
pub(super) fn is_dumb() -> bool {
    std::env::var_os("TERM").is_some_and(|term| term == "dumb")
}

pub(super) fn fail(error: &dyn Display) -> ExitCode {
    say(&format!("replicator: {error}"));
    ExitCode::FAILURE
}

/// The exit code of a command after it has printed: `code`, unless printing failed.
pub(super) fn exit_code(printed: Result<(), PrintError>, code: ExitCode) -> ExitCode {
    match printed {
        Ok(()) => code,
        Err(PrintError(error)) if error.kind() == ErrorKind::BrokenPipe => code,
        Err(error) => fail(&error),
    }
}

/// Prints the address of a service. A service runs even if standard output is closed or not read:
/// the line is then dropped, and counted as a dropped log line.
pub(super) async fn announce(url: &str) -> Result<(), &'static str> {
    let address = format!("listening on {url}");
    // On another thread: a full pipe blocks.
    let printing = tokio::task::spawn_blocking(move || line(format_args!("{address}")));
    let why = match tokio::time::timeout(ADDRESS_TIMEOUT, printing).await {
        Ok(Ok(Ok(()))) => return Ok(()),
        Ok(Ok(Err(_)) | Err(_)) => "standard output cannot be written: the address is not printed",
        Err(_) => "standard output is not read: the address may not be printed",
    };
    log::count_dropped();
    Err(why)
}
