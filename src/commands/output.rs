//! What a command prints. Nothing in here panics, and nothing else prints.
//!
//! Standard output is what a command is for: where it cannot be written, the command fails, unless
//! its reader has seen enough and is gone (`| head`). Standard error is said to whom it may concern:
//! with nobody there, there is nobody else to say it to.

use std::fmt::{Arguments, Display};
use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;
use std::time::Duration;

use thiserror::Error;

use crate::log;
use crate::text;

/// How long the start of a service waits for the reader of its address.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(1);

/// Why standard output was not written.
#[derive(Debug, Error)]
#[error("cannot print: {0}")]
pub(super) struct Unprinted(#[from] io::Error);

/// Prints bytes as they are.
pub(super) fn print(bytes: &[u8]) -> Result<(), Unprinted> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    Ok(out.flush()?)
}

/// Prints a line.
pub(super) fn line(text: Arguments<'_>) -> Result<(), Unprinted> {
    print(format!("{text}\n").as_bytes())
}

/// Says something on standard error, in one line.
pub(super) fn say(text: &dyn Display) {
    // Rust's own standard error is not buffered: it is written whole, or not at all.
    let _ = writeln!(io::stderr(), "{}", text::plain(&text.to_string()));
}

/// Says why a command could not do what it is for.
pub(super) fn fail(error: &dyn Display) -> ExitCode {
    say(&format!("replicator: {error}"));
    ExitCode::FAILURE
}

/// How a command ends that has printed: as it would have, or with the reason why it could not.
pub(super) fn ended(printed: Result<(), Unprinted>, code: ExitCode) -> ExitCode {
    match printed {
        Ok(()) => code,
        // The reader has seen enough.
        Err(Unprinted(error)) if error.kind() == ErrorKind::BrokenPipe => code,
        Err(error) => fail(&error),
    }
}

/// Prints where a service listens. A service serves all the same where nobody reads that: a line
/// that is not taken is dropped, and counted as one of the log.
pub(super) async fn announce(url: &str) -> Result<(), &'static str> {
    let address = format!("listening on {url}");
    // On a thread of its own: a full pipe would stop the service for as long as it is full.
    let printing = tokio::task::spawn_blocking(move || line(format_args!("{address}")));
    let why = match tokio::time::timeout(ADDRESS_PATIENCE, printing).await {
        Ok(Ok(Ok(()))) => return Ok(()),
        Ok(Ok(Err(_)) | Err(_)) => "standard output cannot be written: the address is not printed",
        Err(_) => "standard output is not read: the address may not be printed",
    };
    log::count_dropped();
    Err(why)
}
