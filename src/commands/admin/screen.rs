//! Where a command prints, and what it may assume of the reader.
//!
//! A pipe that is closed early (`| head`) is not an error. Colour and lines that are drawn over are
//! for terminals alone, and colour not where `NO_COLOR` is set.

use std::io::{self, IsTerminal, Write};

use serde_json::Value;

use crate::clock::wall_clock;
use crate::task::Timestamp;
use crate::text::{json, plain};

/// Standard output and standard error, or what stands for them in a test.
pub(super) struct Screen {
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    colour: bool,
    live: bool,
    /// Columns of the line on standard error that is drawn over.
    drawn: usize,
    clock: fn() -> Timestamp,
}

/// How something is to be seen at a glance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Good,
    Doubtful,
    Bad,
}

impl Screen {
    /// The process's own.
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

    /// One that a test reads.
    #[cfg(test)]
    pub(super) fn scripted(
        out: impl Write + Send + 'static,
        err: impl Write + Send + 'static,
        clock: fn() -> Timestamp,
    ) -> Self {
        Self { out: Box::new(out), err: Box::new(err), colour: false, live: true, drawn: 0, clock }
    }

    /// The moment that ages are counted to.
    pub(super) fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Prints what the command is for.
    pub(super) fn print(&mut self, text: &str) -> io::Result<()> {
        self.wipe();
        self.out.write_all(text.as_bytes())?;
        self.out.flush()
    }

    /// Prints a line of JSON.
    pub(super) fn json(&mut self, value: &Value) -> io::Result<()> {
        self.print(&json(&format!("{value}\n")))
    }

    /// Prints the one or the other.
    pub(super) fn show(&mut self, json: bool, answer: &Value, text: &str) -> io::Result<()> {
        if json { self.json(answer) } else { self.print(text) }
    }

    /// Tells something beside that. Where nobody can hear it there is nobody else to tell.
    pub(super) fn tell(&mut self, text: &str) {
        self.wipe();
        let _ = writeln!(self.err, "replicator: {}", plain(text));
    }

    /// Draws a line over the one before; nothing where nobody watches.
    pub(super) fn progress(&mut self, text: &str) {
        if self.live {
            let columns = unicode_width::UnicodeWidthStr::width(text);
            let _ = write!(self.err, "\r{text:width$}", width = self.drawn.max(columns));
            let _ = self.err.flush();
            self.drawn = columns;
        }
    }

    /// Takes the line that was drawn away.
    fn wipe(&mut self) {
        if self.drawn > 0 {
            let _ = write!(self.err, "\r{:width$}\r", "", width = self.drawn);
            let _ = self.err.flush();
            self.drawn = 0;
        }
    }

    /// A text in the colour of its mood.
    pub(super) fn paint(&self, mood: Mood, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match mood {
            Mood::Good => 32,
            Mood::Doubtful => 33,
            Mood::Bad => 31,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        self.wipe();
    }
}
