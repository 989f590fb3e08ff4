//! The log: lines on standard error. No part of the daemon waits for it.
//!
//! The reader of the log may be gone, slow or stopped, or its disk full. Only the thread of
//! [`outlet`] writes. Lines that it cannot write or queue are dropped and counted
//! ([`dropped_lines`]); when writing works again, one line reports how many are missing.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::{self, Display};
use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::{error, warn};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::{EnvFilter, reload};

use crate::cli::daemon::LogFormat;
use crate::text;
use outlet::Outlet;

mod outlet;

const EXIT_FLUSH: Duration = Duration::from_secs(1);

static DROPPED: AtomicU64 = AtomicU64::new(0);

pub fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Counts a line that another part of the process could not write.
pub(crate) fn count_dropped() {
    DROPPED.fetch_add(1, Ordering::Relaxed);
}

/// The log of the process. On drop it waits up to [`EXIT_FLUSH`] until all lines are written.
#[derive(Debug)]
pub(crate) struct StderrLog {
    outlet: Outlet,
    format: LogFormat,
    filter: LogFilter,
}

/// The filter of the log, which can be replaced.
#[derive(Clone)]
pub(crate) struct LogFilter(Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl fmt::Debug for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogFilter")
    }
}

impl LogFilter {
    pub(crate) fn replace(&self, filter: EnvFilter) {
        if let Err(error) = (self.0)(filter) {
            error!(%error, "the filter of the log (--log) cannot be replaced");
        }
    }
}

impl StderrLog {
    /// Installs the subscriber and the panic hook. Fails if the thread cannot be started.
    pub(crate) fn open(filter: EnvFilter, format: LogFormat) -> io::Result<Self> {
        let outlet = Outlet::open(io::stderr(), &DROPPED, |lines| {
            let total = dropped_lines();
            warn!(lines, total, "log lines were dropped: standard error was blocked or failed");
        })?;
        let coloured = format == LogFormat::Text && io::stderr().is_terminal();
        let lines = LineWriter { outlet: outlet.clone(), format, coloured };
        let log = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
        let log = log.with_writer(move || lines.clone());
        let filter = match format {
            LogFormat::Text => {
                let log = log.with_ansi(coloured).with_filter_reloading();
                let handle = log.reload_handle();
                log.init();
                LogFilter(Arc::new(move |filter| handle.reload(filter)))
            }
            LogFormat::Json => {
                let log = log.json().flatten_event(true);
                let log = log.with_current_span(false).with_span_list(false);
                let log = log.with_filter_reloading();
                let handle = log.reload_handle();
                log.init();
                LogFilter(Arc::new(move |filter| handle.reload(filter)))
            }
        };
        // The default hook writes to standard error itself, and blocks.
        std::panic::set_hook(Box::new(|panic| {
            let backtrace = Backtrace::capture();
            let backtrace =
                (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
            error!(panic = panic.to_string(), backtrace, "a thread panicked");
        }));
        Ok(Self { outlet, format, filter })
    }

    pub(crate) fn filter(&self) -> LogFilter {
        self.filter.clone()
    }

    /// Reports why the process ends, in the form of every command, or as JSON.
    pub(crate) fn fail(&self, why: &str) {
        match self.format {
            LogFormat::Text => self.outlet.push(format!("replicator: {}\n", text::plain(why))),
            LogFormat::Json => error!("{why}"),
        }
    }
}

impl Drop for StderrLog {
    fn drop(&mut self) {
        self.outlet.flush(EXIT_FLUSH);
    }
}

/// The writer of the subscriber, which writes one event per call. Escapes control characters.
#[derive(Clone, Debug)]
struct LineWriter {
    outlet: Outlet,
    format: LogFormat,
    coloured: bool,
}

impl Write for LineWriter {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let event_text = String::from_utf8_lossy(event);
        let line = event_text.trim_end_matches('\n');
        let line = match self.format {
            LogFormat::Text => text::line(line, self.coloured),
            LogFormat::Json => text::json(line),
        };
        self.outlet.push(format!("{line}\n"));
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Parses `--log`. `EnvFilter` reads an unknown word as the name of a part, so that `warning` would
/// log nothing at all; here it is an error.
pub(crate) fn filter(text: &str) -> Result<EnvFilter, String> {
    let wrong = |why: &dyn Display| format!("--log {text:?} is not a valid filter: {why}");
    let is_level = |word: &str| word.is_empty() || word.parse::<LevelFilter>().is_ok();
    match text.split(',').find(|word| !word.contains('=') && !is_level(word)) {
        Some(word) => Err(wrong(&format!(
            "{word:?} must be a level (off, error, warn, info, debug or trace) or PART=LEVEL"
        ))),
        None => EnvFilter::try_new(text).map_err(|error| wrong(&error)),
    }
}

/// Leaves out the lines of a library, unless the filter names it.
pub(crate) fn without(filter: EnvFilter, text: &str, library: &str) -> EnvFilter {
    match format!("{library}=off").parse() {
        Ok(directive) if !text.contains(library) => filter.add_directive(directive),
        _ => filter,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_is_not_a_level_is_rejected() {
        for text in ["info", "WARN", "off", "3", "warn,audit=info", "info,a::b[span]=debug", ""] {
            assert!(filter(text).is_ok(), "{text}");
        }
        for text in ["verbose", "warning", "info,verbose", "a=b=c"] {
            let error = filter(text).unwrap_err();
            assert!(
                error.starts_with(&format!("--log {text:?} is not a valid filter: ")),
                "{error}"
            );
        }
    }
}
