//! The lines of `replicator export` and `import`, the same for every store.
//!
//! ```text
//! {"export":2,"tasks":2,"next_id":1700000000000003}
//! {"task":1700000000000001,"key":"k","operation":"SET","value":"dg==", … ,"progress":[ … ]}
//! {"task":1700000000000002, … }
//! {"replica":"http://a:8080","first_used":1700000000000000000,"paused_since":null,"renamed_to":null}
//! {"replica":"http://b:8080","first_used":1700000000000000000, … ,"limits":{"workers":2, … }}
//! {"idempotency":"client's key","task":1700000000000002,"fingerprint":"00…", … ,"answer":null}
//! {"end":1,"tasks":2,"skipped":0,"replicas":1,"idempotency_keys":1}
//! ```
//!
//! The first line has the expected number of tasks, the last line the exported number. New ids start at
//! `next_id` or above. Exports of version 1, which hold only tasks, can be imported.

use std::io::{BufRead, Read as _, Write};

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::format::{EndLine, HeadLine};
use super::records::{IdempotencyRow, ReplicaRow};
use crate::task::{Node, Progress, Task, TaskId};
use crate::text::{plain, unmarked};

pub(super) mod format;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

pub(super) const VERSION: u32 = 2;

/// More than a task with the longest value (1 GiB in base64), the longest key and all replicas.
const MAX_LINE_BYTES: u64 = 3 << 29;

const MAX_HEAD_BYTES: u64 = 64 << 10;

const MAX_ERROR_CHARS: usize = 500;

/// The highest id that is imported. New ids must be above it, and ids are never exhausted: they
/// start at the microseconds of the store's creation.
pub(crate) const MAX_ID: u64 = u64::MAX / 2;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    pub tasks: u64,
    /// What was skipped, one sentence each.
    pub problems: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    pub tasks: u64,
    /// Tasks that the export skipped.
    pub skipped: u64,
}

/// A line that cannot be imported. The text starts with its number, from 1.
#[derive(Debug, Error)]
#[error("line {line}: {what}; nothing was imported")]
pub struct WrongLine {
    pub line: u64,
    pub what: String,
}

pub(super) fn write_line(out: &mut dyn Write, line: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// A new store that takes the content of an export, in the order of its lines.
pub(super) trait ImportTarget {
    type Error: From<WrongLine>;

    /// Ids of the store the export was made of are below `next_id`.
    fn begin(&mut self, next_id: TaskId) -> Result<(), Self::Error>;

    /// Tasks come in the order of their ids.
    fn task(&mut self, task: Task, progress: Vec<Progress>) -> Result<(), Self::Error>;

    fn replica(&mut self, node: Node, row: ReplicaRow) -> Result<(), Self::Error>;

    fn key(&mut self, key: Box<str>, row: IdempotencyRow) -> Result<(), Self::Error>;

    /// The export is complete. New ids are `next_id` or above; 0 leaves them to the store.
    fn end(&mut self, next_id: TaskId) -> Result<(), Self::Error>;
}

/// Reads an export into a store.
pub(super) fn import<T: ImportTarget>(
    input: &mut dyn BufRead,
    target: &mut T,
) -> Result<Imported, T::Error> {
    let mut lines = LineReader { input, number: 0, max_bytes: MAX_LINE_BYTES };
    let head = lines.text()?.ok_or_else(|| lines.wrong("the file is empty"))?;
    let head: HeadLine = lines.parse(&head)?;
    if !(1..=VERSION).contains(&head.export) {
        return Err(lines.wrong("this binary does not know this export format").into());
    }
    if head.next_id > MAX_ID {
        return Err(lines.wrong(&format!("\"next_id\" must not be above {MAX_ID}")).into());
    }
    target.begin(TaskId(head.next_id))?;
    let (mut last_task, mut last_node, mut last_key) = (None, None, None);
    let (mut tasks, mut replicas, mut idempotency_keys) = (0, 0, 0);
    loop {
        let text = lines.text()?;
        let text = text.ok_or_else(|| lines.wrong("the file ends without its last line"))?;
        if text.starts_with("{\"end\"") {
            let end: EndLine = lines.parse(&text)?;
            if end.tasks != tasks {
                return Err(lines
                    .wrong(&format!("expected {} tasks, got {tasks}", end.tasks))
                    .into());
            }
            if (end.replicas, end.idempotency_keys) != (replicas, idempotency_keys) {
                return Err(lines
                    .wrong(&format!(
                        "expected {} replicas and {} idempotency keys, got {replicas} and \
                     {idempotency_keys}",
                        end.replicas, end.idempotency_keys
                    ))
                    .into());
            }
            if lines.text()?.is_some() {
                return Err(lines.wrong("nothing must follow the last line").into());
            }
            let after = last_task.map_or(0, |TaskId(id)| id.saturating_add(1));
            target.end(TaskId(head.next_id.max(after)))?;
            return Ok(Imported { tasks, skipped: end.skipped });
        }
        if text.starts_with("{\"replica\"") {
            let (node, row) = lines.parse_with(&text, format::replica)?;
            lines.ascending("replica", &mut last_node, node.clone())?;
            target.replica(node, row)?;
            replicas += 1;
        } else if text.starts_with("{\"idempotency\"") {
            let (key, row) = lines.parse_with(&text, format::key)?;
            lines.ascending("idempotency", &mut last_key, key.clone())?;
            target.key(key, row)?;
            idempotency_keys += 1;
        } else {
            let (task, progress) = lines.parse_with(&text, format::task)?;
            lines.ascending("task", &mut last_task, task.id)?;
            target.task(task, progress)?;
            tasks += 1;
        }
    }
}

struct LineReader<'a> {
    input: &'a mut dyn BufRead,
    number: u64,
    max_bytes: u64,
}

impl LineReader<'_> {
    fn wrong(&self, what: &str) -> WrongLine {
        // `what` may quote the file: escaped and shortened.
        let what = plain(what).chars().take(MAX_ERROR_CHARS).collect();
        WrongLine { line: self.number, what }
    }

    fn text(&mut self) -> Result<Option<String>, WrongLine> {
        self.number += 1;
        // A file that is no export may have no line end.
        let limit = if self.number == 1 { MAX_HEAD_BYTES } else { self.max_bytes };
        let mut text = Vec::new();
        let read = (&mut *self.input).take(limit + 1).read_until(b'\n', &mut text);
        match read.map_err(|error| self.wrong(&format!("cannot be read: {error}")))? as u64 {
            0 => return Ok(None),
            read if read > limit => {
                let limit = ByteSize::b(limit);
                return Err(self.wrong(&format!("it is longer than {limit}, the limit of a line")));
            }
            _ if !text.ends_with(b"\n") => return Err(self.wrong("it is cut")),
            _ => {}
        }
        let text = String::from_utf8(text).map_err(|_| self.wrong("it is not UTF-8"))?;
        // An editor may have put a byte order mark before the first line.
        Ok(Some(if self.number == 1 { unmarked(&text).to_owned() } else { text }))
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self, text: &str) -> Result<T, WrongLine> {
        serde_json::from_str(text).map_err(|error| self.wrong(&error.to_string()))
    }

    fn parse_with<L: for<'de> Deserialize<'de>, T>(
        &self,
        text: &str,
        convert: fn(L) -> Result<T, String>,
    ) -> Result<T, WrongLine> {
        convert(self.parse(text)?).map_err(|what| self.wrong(&what))
    }

    /// Requires `next` to be greater than `last`, and replaces `last` by it.
    fn ascending<T: PartialOrd>(
        &self,
        field: &str,
        last: &mut Option<T>,
        next: T,
    ) -> Result<(), WrongLine> {
        if last.as_ref().is_some_and(|last| next <= *last) {
            let what = format!("\"{field}\" must be greater than in the line before");
            return Err(self.wrong(&what));
        }
        *last = Some(next);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_at_the_limit() {
        let mut input = "head\n1234567\n12345678\né".as_bytes();
        let mut lines = LineReader { input: &mut input, number: 0, max_bytes: 8 };
        assert_eq!(lines.text().ok(), Some(Some("head\n".to_owned())));
        assert_eq!(lines.text().ok(), Some(Some("1234567\n".to_owned())));
        let wrong = lines.text().unwrap_err();
        let why = "it is longer than 8 B, the limit of a line";
        assert_eq!((wrong.line, wrong.what.as_str()), (3, why));
        let mut input = &b"head\n\xff\n"[..];
        let mut lines = LineReader { input: &mut input, number: 0, max_bytes: 8 };
        lines.text().ok();
        let wrong = lines.text().unwrap_err();
        assert_eq!((wrong.line, wrong.what.as_str()), (2, "it is not UTF-8"));
    }
}
