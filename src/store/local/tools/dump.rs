//! `replicator export` and `import`: a store as lines of JSON.
//!
//! ```text
//! {"export":2,"tasks":2,"next_id":1700000000000003}
//! {"task":1700000000000001,"key":"k","operation":"SET","value":"dg==", … ,"progress":[ … ]}
//! {"task":1700000000000002, … }
//! {"replica":"http://a:8080","first_used":1700000000000000000,"paused_since":null,"renamed_to":null}
//! {"idempotency":"client's key","task":1700000000000002,"fingerprint":"00…", … ,"answer":null}
//! {"end":1,"tasks":2,"skipped":0,"replicas":1,"idempotency_keys":1}
//! ```
//!
//! The first line has the expected number of tasks, the last line the exported number. Ids are kept,
//! and new ids start at `next_id` or above. An export reads a copy of the store and skips what it
//! cannot read. An import creates a store aside and names it last, so it is complete or absent.
//! Exports of version 1, which hold only tasks, can be imported.

use std::io::{BufRead, Read, Write};
use std::path::Path;

use bytesize::ByteSize;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::lines::{EndLine, HeadLine};
use super::check::StoreCopy;
use crate::store::local::database::{Database, open_sled};
use crate::store::local::directory::Directory;
use crate::store::local::error::{Failure, OpenError, guarded};
use crate::store::local::integrity::scan::{self, SideTables};
use crate::store::local::keys::Tree;
use crate::store::local::recover::missing_rows;
use crate::store::local::{SMALL_CACHE, StoreSettings, fsync, is_used, migrate, rows};
use crate::task::{Progress, TaskId};
use crate::text::{plain, unmarked};

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod lines;

const VERSION: u32 = 2;

/// More than a task with the longest value (1 GiB in base64), the longest key and all replicas.
const MAX_LINE_BYTES: u64 = 3 << 29;

const MAX_HEAD_BYTES: u64 = 64 << 10;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    pub tasks: u64,
    /// What was skipped, one sentence each.
    pub problems: Vec<String>,
}

/// Writes all readable tasks to `out`. The inner error is that of `out`.
pub fn export(
    settings: &StoreSettings,
    out: &mut dyn Write,
) -> Result<std::io::Result<Exported>, OpenError> {
    let copied = StoreCopy::make(settings)?;
    let opened = copied.open(settings);
    copied.check_reads(&settings.dir)?;
    let (database, _) = opened?;
    let exported = || Ok(write_all(&database, out));
    let exported = guarded::<_, Failure>(exported).map_err(OpenError::in_store(&settings.dir))?;
    copied.check_reads(&settings.dir)?;
    Ok(exported)
}

fn write_all(database: &Database, out: &mut dyn Write) -> std::io::Result<Exported> {
    let mut exported = Exported::default();
    let next_id = database.sequence().unwrap_or_else(|failure| {
        exported.problems.push(failure.to_string());
        None
    });
    let expected = expected_tasks(database);
    let next_id = next_id.map_or(0, |id| id.0);
    write_line(out, &HeadLine { export: VERSION, tasks: expected, next_id })?;
    let mut failed = None;
    let mut unread = Vec::new();
    let mut tasks = 0;
    let walk = || {
        scan::walk(database, &mut |recovered| {
            if failed.is_some() {
                return;
            }
            match database.read(recovered.header.id) {
                Ok(Some(task)) => match write_line(out, &lines::line(&task, &recovered.progress)) {
                    Ok(()) => tasks += 1,
                    Err(error) => failed = Some(error),
                },
                Ok(None) => {}
                Err(failure) => unread.push(failure.to_string()),
            }
        })
    };
    let mut side_tables = SideTables::default();
    match guarded(walk) {
        Ok(found) => {
            exported
                .problems
                .extend(missing_rows(database, &found, true).map(|rows| rows.to_string()));
            exported.problems.extend(found.damaged.iter().map(ToString::to_string));
            side_tables = found.side_tables;
        }
        Err(failure) => exported.problems.push(format!("nothing more can be read: {failure}")),
    }
    if let Some(error) = failed {
        return Err(error);
    }
    exported.problems.extend(unread);
    exported.tasks = tasks;
    for (node, row) in &side_tables.replicas {
        write_line(out, &lines::replica_line(node, row))?;
    }
    for (key, row) in &side_tables.idempotency {
        write_line(out, &lines::key_line(key, row))?;
    }
    let end = EndLine {
        end: 1,
        tasks,
        skipped: expected.saturating_sub(tasks),
        replicas: side_tables.replicas.len() as u64,
        idempotency_keys: side_tables.idempotency.len() as u64,
    };
    write_line(out, &end)?;
    out.flush()?;
    Ok(exported)
}

/// The tasks on disk, and one for each row that is damaged or missing.
fn expected_tasks(database: &Database) -> u64 {
    let (mut ledger, _) = database.ledger();
    let mut missing = ledger.tallies.of(Tree::Tasks).map_or(0, |tally| tally.rows);
    let mut tasks = 0;
    let count = || {
        for row in &database.tasks {
            let (key, row) = row?;
            tasks += rows::tasks(&key, &row).map_or(1, |tasks| tasks.len() as u64);
            missing = missing.saturating_sub(1);
        }
        Ok::<_, Failure>(())
    };
    // If this fails, so does the walk, which reports it.
    let _ = guarded(count);
    tasks + missing
}

fn write_line(out: &mut dyn Write, line: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

#[derive(Debug, Error)]
pub enum ImportError {
    #[error(transparent)]
    Store(#[from] OpenError),
    /// `line` counts from 1.
    #[error("line {line}: {what}; nothing was imported")]
    Input { line: u64, what: String },
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    pub tasks: u64,
    /// Tasks that the export skipped.
    pub skipped: u64,
}

/// Creates a store from an export. The data directory must not hold a store; after an error it still
/// holds none.
pub fn import(settings: &StoreSettings, input: &mut dyn BufRead) -> Result<Imported, ImportError> {
    fsync::check().map_err(|function| OpenError::Barrier { function })?;
    let directory = Directory::lock(&settings.dir)?;
    if directory.current(is_used)?.is_some() {
        return Err(OpenError::NotEmpty { dir: settings.dir.clone() }.into());
    }
    match directory.create(|path| guarded(|| read_all(path, settings, input))) {
        Ok((_, imported)) => Ok(imported),
        Err(Wrong::Directory(error)) => Err(error.into()),
        Err(Wrong::Line(line, what)) => {
            directory.remove_stores()?;
            Err(ImportError::Input { line, what })
        }
        Err(Wrong::Store(failure)) => {
            directory.remove_stores()?;
            Err(OpenError::in_store(&settings.dir)(failure).into())
        }
    }
}

enum Wrong {
    Line(u64, String),
    Store(Failure),
    Directory(OpenError),
}

impl From<Failure> for Wrong {
    fn from(failure: Failure) -> Self {
        Self::Store(failure)
    }
}

impl From<OpenError> for Wrong {
    fn from(error: OpenError) -> Self {
        Self::Directory(error)
    }
}

const MAX_ERROR_CHARS: usize = 500;

/// The highest id that is imported. New ids must be above it, and ids are never exhausted: they
/// start at the microseconds of the store's creation.
pub(crate) const MAX_ID: u64 = u64::MAX / 2;

/// Tasks per flush.
const BATCH: u64 = 4096;

fn read_all(
    path: &Path,
    settings: &StoreSettings,
    input: &mut dyn BufRead,
) -> Result<Imported, Wrong> {
    let db = open_sled(path, settings.cache_bytes.max(SMALL_CACHE))?;
    migrate::run(&db)?;
    let database = Database::new(db)?;
    let mut lines = LineReader { input, number: 0, max_bytes: MAX_LINE_BYTES };
    let head = lines.text()?.ok_or_else(|| lines.wrong("the file is empty"))?;
    let head: HeadLine = lines.parse(&head)?;
    if !(1..=VERSION).contains(&head.export) {
        return Err(lines.wrong("this binary does not know this export format"));
    }
    if head.next_id > MAX_ID {
        return Err(lines.wrong(&format!("\"next_id\" must not be above {MAX_ID}")));
    }
    let (mut last_task, mut last_node, mut last_key) = (None, None, None);
    let (mut tasks, mut replicas, mut idempotency_keys) = (0, 0, 0);
    loop {
        let text = lines.text()?;
        let text = text.ok_or_else(|| lines.wrong("the file ends without its last line"))?;
        if text.starts_with("{\"end\"") {
            let end: EndLine = lines.parse(&text)?;
            if end.tasks != tasks {
                return Err(lines.wrong(&format!("expected {} tasks, got {tasks}", end.tasks)));
            }
            if (end.replicas, end.idempotency_keys) != (replicas, idempotency_keys) {
                return Err(lines.wrong(&format!(
                    "expected {} replicas and {} idempotency keys, got {replicas} and \
                     {idempotency_keys}",
                    end.replicas, end.idempotency_keys
                )));
            }
            if lines.text()?.is_some() {
                return Err(lines.wrong("nothing must follow the last line"));
            }
            let after = last_task.map_or(0, |TaskId(id)| id.saturating_add(1));
            // If both are 0, ids start at the time of the first start, as in a new store.
            if head.next_id.max(after) > 0 {
                database.set_sequence(TaskId(head.next_id.max(after)))?;
            }
            database.flush()?;
            return Ok(Imported { tasks, skipped: end.skipped });
        }
        if text.starts_with("{\"replica\"") {
            let (node, row) = lines.parse_with(&text, lines::replica)?;
            database.set_replica(&node, Some(&row))?;
            lines.ascending("replica", &mut last_node, node)?;
            replicas += 1;
        } else if text.starts_with("{\"idempotency\"") {
            let (key, row) = lines.parse_with(&text, lines::key)?;
            database.set_idempotency(&key, Some(&row))?;
            lines.ascending("idempotency", &mut last_key, key)?;
            idempotency_keys += 1;
        } else {
            let (task, progress) = lines.parse_with(&text, lines::task)?;
            lines.ascending("task", &mut last_task, task.id)?;
            database.insert([(&task, None)])?;
            if progress.iter().any(|entry| *entry != Progress::Untouched) {
                database.save(task.id, &progress)?;
            }
            tasks += 1;
            if tasks % BATCH == 0 {
                database.flush()?;
            }
        }
    }
}

struct LineReader<'a> {
    input: &'a mut dyn BufRead,
    number: u64,
    max_bytes: u64,
}

impl LineReader<'_> {
    fn wrong(&self, what: &str) -> Wrong {
        // `what` may quote the file: escaped and shortened.
        Wrong::Line(self.number, plain(what).chars().take(MAX_ERROR_CHARS).collect())
    }

    fn text(&mut self) -> Result<Option<String>, Wrong> {
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

    fn parse<T: for<'de> Deserialize<'de>>(&self, text: &str) -> Result<T, Wrong> {
        serde_json::from_str(text).map_err(|error| self.wrong(&error.to_string()))
    }

    fn parse_with<L: for<'de> Deserialize<'de>, T>(
        &self,
        text: &str,
        convert: fn(L) -> Result<T, String>,
    ) -> Result<T, Wrong> {
        convert(self.parse(text)?).map_err(|what| self.wrong(&what))
    }

    /// Requires `next` to be greater than `last`, and replaces `last` by it.
    fn ascending<T: PartialOrd>(
        &self,
        field: &str,
        last: &mut Option<T>,
        next: T,
    ) -> Result<(), Wrong> {
        if last.as_ref().is_some_and(|last| next <= *last) {
            let what = format!("\"{field}\" must be greater than in the line before");
            return Err(self.wrong(&what));
        }
        *last = Some(next);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
