//! The log: lines on standard error, which nothing in the daemon waits for.
//!
//! A reader of the log may be gone, slow or stopped, and a disk full; the daemon does its work all
//! the same. A line is handed to the thread of the [`outlet`], which alone writes. What that thread
//! cannot write, and what finds no room before it, is dropped and counted ([`dropped_lines`]); once
//! lines are taken again, one of them says how many are missing.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tracing::{error, warn};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::cli::daemon::LogFormat;
use crate::text;
use outlet::Outlet;

mod outlet;

/// How long the end of the process waits for a reader of its last lines.
const LAST_WORDS: Duration = Duration::from_secs(1);

static DROPPED: AtomicU64 = AtomicU64::new(0);

/// How many lines were dropped since the start, because nothing took them.
#[must_use]
pub fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Counts a line that could not be written elsewhere.
pub(crate) fn count_dropped() {
    DROPPED.fetch_add(1, Ordering::Relaxed);
}

/// The log of the process. Its end waits until what was logged is written, but not for long.
#[derive(Debug)]
pub(crate) struct Log {
    outlet: Outlet,
    format: LogFormat,
}

impl Log {
    /// Sends what is logged to standard error, panics included.
    ///
    /// # Errors
    ///
    /// There is no thread for it.
    pub(crate) fn to_stderr(filter: EnvFilter, format: LogFormat) -> io::Result<Self> {
        let outlet = Outlet::open(io::stderr(), &DROPPED, |lines| {
            let total = dropped_lines();
            warn!(lines, total, "lines of this log are missing: nothing took them");
        })?;
        let coloured = format == LogFormat::Text && io::stderr().is_terminal();
        let lines = Lines { outlet: outlet.clone(), format, coloured };
        let log = tracing_subscriber::fmt().with_env_filter(filter).log_internal_errors(false);
        let log = log.with_writer(move || lines.clone());
        match format {
            LogFormat::Text => log.with_ansi(coloured).init(),
            LogFormat::Json => {
                let log = log.json().flatten_event(true);
                log.with_current_span(false).with_span_list(false).init();
            }
        }
        // The hook of the standard library writes to standard error itself, and waits for it.
        std::panic::set_hook(Box::new(|panic| {
            let backtrace = Backtrace::capture();
            let backtrace =
                (backtrace.status() == BacktraceStatus::Captured).then(|| backtrace.to_string());
            error!(panic = panic.to_string(), backtrace, "a part of the process has panicked");
        }));
        Ok(Self { outlet, format })
    }

    /// Says why the process ends: in text as any command does.
    pub(crate) fn fail(&self, why: &str) {
        match self.format {
            LogFormat::Text => self.outlet.push(format!("replicator: {}\n", text::plain(why))),
            // A machine that reads the log understands no line of another kind.
            LogFormat::Json => error!("{why}"),
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.outlet.flush(LAST_WORDS);
    }
}

/// Where the subscriber writes: each event at once, as one line that does nothing to a terminal.
#[derive(Clone, Debug)]
struct Lines {
    outlet: Outlet,
    format: LogFormat,
    coloured: bool,
}

impl Write for Lines {
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

/// A bare word that is no level would be the filter of a part of that name, of which there is none:
/// with `warning` nothing would be logged at all.
pub(crate) fn filter(text: &str) -> Result<EnvFilter, String> {
    let wrong = |why: &dyn Display| format!("--log {text:?} is no filter: {why}");
    let is_level = |word: &str| word.is_empty() || word.parse::<LevelFilter>().is_ok();
    match text.split(',').find(|word| !word.contains('=') && !is_level(word)) {
        Some(word) => Err(wrong(&format!(
            "{word:?} is no level (error, warn, info, debug, trace), and a part is PART=LEVEL"
        ))),
        None => EnvFilter::try_new(text).map_err(|error| wrong(&error)),
    }
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
