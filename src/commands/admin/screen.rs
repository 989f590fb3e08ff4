//! The terminal output of a command, and the one place that escapes it.
//!
//! Keys, addresses and errors in the daemon's answers may contain anything, and the daemon itself
//! may be an impostor. So text is printed as lines, each escaped here: no answer can add a line,
//! move the cursor or change a colour. Colour and progress lines are for terminals only; `NO_COLOR`
//! disables colour.

use std::io::{self, IsTerminal, Write};

use super::answer::JsonAnswer;
use crate::clock::wall_clock;
use crate::commands::output::{is_dumb, may_colour};
use crate::task::Timestamp;
use crate::text::{json, plain, without_secrets};

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

/// A line that is not escaped yet.
pub(super) struct ScreenLine {
    /// Before the text, coloured.
    mark: Option<(Severity, &'static str)>,
    text: String,
}

impl ScreenLine {
    pub(super) fn marked(severity: Severity, mark: &'static str, text: String) -> Self {
        Self { mark: Some((severity, mark)), text }
    }
}

impl<T: Into<String>> From<T> for ScreenLine {
    fn from(text: T) -> Self {
        Self { mark: None, text: text.into() }
    }
}

impl Screen {
    pub(super) fn of_process() -> Self {
        Self {
            colour: may_colour(&io::stdout()),
            live: io::stderr().is_terminal() && !is_dumb(),
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

    pub(super) fn print(
        &mut self,
        lines: impl IntoIterator<Item = impl Into<ScreenLine>>,
    ) -> io::Result<()> {
        self.clear_progress();
        for line in lines {
            let ScreenLine { mark, text } = line.into();
            if let Some((severity, word)) = mark {
                let word = self.paint(severity, &plain(word));
                write!(self.out, "{word} ")?;
            }
            writeln!(self.out, "{}", plain(&text))?;
        }
        self.out.flush()
    }

    /// Prints an answer on one line.
    pub(super) fn json(&mut self, answer: &JsonAnswer) -> io::Result<()> {
        self.json_part(answer.raw().get())?;
        self.end_json()
    }

    /// Prints a part of a JSON document. A string must not be cut.
    pub(super) fn json_part(&mut self, text: &str) -> io::Result<()> {
        self.clear_progress();
        let text = json(text);
        // JSON has them between tokens only.
        let breaks = ['\n', '\r', '\t'];
        text.split(breaks).try_for_each(|part| self.out.write_all(part.as_bytes()))
    }

    pub(super) fn end_json(&mut self) -> io::Result<()> {
        self.out.write_all(b"\n")?;
        self.out.flush()
    }

    pub(super) fn show(
        &mut self,
        json: bool,
        answer: &JsonAnswer,
        lines: impl IntoIterator<Item = impl Into<ScreenLine>>,
    ) -> io::Result<()> {
        if json { self.json(answer) } else { self.print(lines) }
    }

    /// Prints to standard error; errors are ignored.
    pub(super) fn message(&mut self, text: &str) {
        self.clear_progress();
        let _ = writeln!(self.err, "replicator: {}", plain(&without_secrets(text)));
    }

    /// Replaces the progress line, on a terminal only.
    pub(super) fn progress(&mut self, text: &str) {
        if self.live {
            let text = &*plain(text);
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

    fn paint(&self, severity: Severity, text: &str) -> String {
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
