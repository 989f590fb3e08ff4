//! The terminal output of a command.
//!
//! Colour and progress lines are for terminals only; `NO_COLOR` disables colour.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use crate::clock::wall_clock;
use crate::task::Timestamp;
use crate::text::{json, plain};

pub(super) struct Screen {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    colour: bool,
    live: bool,
    drawn: usize,
    clock: fn() -> Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Severity {
    Ok,
    Warning,
    Error,
}

impl Screen {
    pub(super) fn of_process() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            colour: io::stdout().is_terminal() && !set("NO_COLOR") && !dumb,
            live: io::stderr().is_terminal() && !dumb,
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            drawn: 0,
            clock: wall_clock,
        }
    }

    #[cfg(test)]
    pub(super) fn scripted(
        out: impl Write + Send + 'static,
        err: impl Write + Send + 'static,
        clock: fn() -> Timestamp,
    ) -> Self {
        Self { out: Box::new(out), err: Box::new(err), colour: false, live: true, drawn: 0, clock }
    }

    pub(super) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    pub(super) fn print(&mut self, text: &str) -> io::Result<()> {
        self.clear_progress();
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    pub(super) fn json(&mut self, value: &Value) -> io::Result<()> {
        self.print(&json(&format!("{value}\n")))
    }

    pub(super) fn show(&mut self, json: bool, answer: &Value, text: &str) -> io::Result<()> {
        if json { self.json(answer) } else { self.print(text) }
    }

    /// Prints to standard error; errors are ignored.
    pub(super) fn message(&mut self, text: &str) {
        self.clear_progress();
        let _ = writeln!(self.err, "replicator: {}", plain(text));
    }

    /// Replaces the progress line, on a terminal only.
    pub(super) fn progress(&mut self, text: &str) {
        if self.live {
            let columns = unicode_width::UnicodeWidthStr::width(text);
            let _ = write!(self.err, "\r{text:width$}", width = self.drawn.max(columns));
            let _ = self.err.flush();
            self.drawn = columns;
        }
    }

    fn clear_progress(&mut self) {
        if self.drawn > 0 {
            let _ = write!(self.err, "\r{:width$}\r", "", width = self.drawn);
            let _ = self.err.flush();
            self.drawn = 0;
        }
    }

    pub(super) fn paint(&self, severity: Severity, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match severity {
            Severity::Ok => 32,
            Severity::Warning => 33,
            Severity::Error => 31,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.clear_progress();
    }
}
