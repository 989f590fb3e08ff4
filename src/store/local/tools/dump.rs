//! `replicator export` and `import`: a store as lines of JSON, and back.
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
//! The first line says how many tasks the store should hold, the last one how many came. Ids are
//! kept, and the ids to come stay above `next_id`. An export works on a copy of the store and
//! leaves out what it cannot read. An import makes a new store aside and names it last, so it is
//! there whole or not at all. Exports of version 1, which knew of tasks alone, are imported as well.

use std::cell::RefCell;
use std::io::{BufRead, Write};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::lines::{End, Head, Line};
use super::check::Copied;
use crate::store::local::database::{Database, open_sled};
use crate::store::local::directory::Directory;
use crate::store::local::error::{Failure, OpenError, guarded};
use crate::store::local::integrity::scan::{self, SideTables};
use crate::store::local::{CREATING, Settings, fsync, migrate};
use crate::task::{Progress, TaskId};
use crate::text::{plain, unmarked};

#[cfg(any(test, feature = "fuzzing"))]
pub(in crate::store::local) mod fuzzing;
mod lines;

/// The version of what is written here.
const EXPORT: u32 = 2;

/// What came of an export.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exported {
    /// Tasks written.
    pub tasks: u64,
    /// What was left out, a sentence each.
    pub problems: Vec<String>,
}

/// Writes all tasks that can be read to `out`. The outer error is the store's, the inner `out`'s.
///
/// # Errors
///
/// An [`OpenError`] if there is no store or it cannot be opened at all.
pub fn export(
    settings: &Settings,
    out: &mut dyn Write,
) -> Result<std::io::Result<Exported>, OpenError> {
    let copied = Copied::make(settings)?;
    let opened = copied.open(settings);
    copied.was_read(&settings.dir)?;
    let (database, _) = opened?;
    let exported = || Ok(write_all(&database, out));
    let exported = guarded::<_, Failure>(exported).map_err(OpenError::in_store(&settings.dir))?;
    copied.was_read(&settings.dir)?;
    Ok(exported)
}

fn write_all(database: &Database, out: &mut dyn Write) -> std::io::Result<Exported> {
    let mut exported = Exported::default();
    let next_id = database.sequence().unwrap_or_else(|failure| {
        exported.problems.push(failure.to_string());
        None
    });
    let (mut ledger, _) = database.ledger();
    let expected =
        ledger.tallies.of(crate::store::local::keys::Tree::Tasks).map_or(0, |tally| tally.rows);
    let next_id = next_id.map_or(0, |id| id.0);
    write_line(out, &Head { export: EXPORT, tasks: expected, next_id })?;
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
            exported.problems.extend(
                crate::store::local::recover::gone(database, &found).map(|g| g.to_string()),
            );
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
    let end = End {
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

fn write_line(out: &mut dyn Write, line: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

/// Why nothing was imported.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The data directory.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// What is read.
    #[error("line {line}: {what}; nothing was imported")]
    Input {
        /// From 1.
        line: u64,
        /// What is wrong with it.
        what: String,
    },
}

/// What came of an import.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Imported {
    /// Tasks.
    pub tasks: u64,
    /// Tasks that the export had to leave out.
    pub skipped: u64,
}

/// Makes a store of what [`export`] wrote, in a data directory that holds none.
///
/// # Errors
///
/// An [`ImportError`]; the directory then still holds no store.
pub fn import(settings: &Settings, input: &mut dyn BufRead) -> Result<Imported, ImportError> {
    fsync::check().map_err(|function| OpenError::Barrier { function })?;
    let directory = Directory::lock(&settings.dir)?;
    let used = |path: &std::path::Path| crate::store::local::is_used(path);
    if directory.current(used)?.is_some() {
        return Err(OpenError::NotEmpty { dir: settings.dir.clone() }.into());
    }
    // The directory knows only failures of the database; ours waits here.
    let outcome = RefCell::new(Ok(Imported::default()));
    let fill = |path: &std::path::Path| {
        let filled = guarded(|| read_all(path, settings, input));
        let failed = filled.is_err();
        *outcome.borrow_mut() = filled;
        if failed { Err(Failure::Database("nothing was imported".to_owned())) } else { Ok(()) }
    };
    let created = directory.create(fill);
    match outcome.into_inner() {
        Ok(imported) => {
            created?;
            Ok(imported)
        }
        Err(wrong) => {
            directory.remove_unfinished()?;
            Err(match wrong {
                Wrong::Line(line, what) => ImportError::Input { line, what },
                Wrong::Store(failure) => OpenError::in_store(&settings.dir)(failure).into(),
            })
        }
    }
}

enum Wrong {
    Line(u64, String),
    Store(Failure),
}

impl From<Failure> for Wrong {
    fn from(failure: Failure) -> Self {
        Self::Store(failure)
    }
}

/// The longest text of an error.
const MAX_ERROR_CHARS: usize = 500;

/// The highest id: ids begin with the microseconds of a store's creation, and there must be others to
/// come, for ever, behind every one.
pub(in crate::store::local) const MAX_ID: u64 = u64::MAX / 2;

/// So many tasks are flushed together.
const BATCH: u64 = 4096;

fn read_all(
    path: &std::path::Path,
    settings: &Settings,
    input: &mut dyn BufRead,
) -> Result<Imported, Wrong> {
    let db = open_sled(path, settings.cache_bytes.max(CREATING))?;
    migrate::run(&db)?;
    let database = Database::new(db)?;
    let mut lines = Lines { input, number: 0 };
    let head: Head = lines.next()?.ok_or_else(|| lines.wrong("the file is empty"))?;
    if !(1..=EXPORT).contains(&head.export) {
        return Err(lines.wrong("it is an export in a format that this binary does not know"));
    }
    if head.next_id > MAX_ID {
        return Err(lines.wrong(&format!("\"next_id\" must not be above {MAX_ID}")));
    }
    let mut last = None;
    let (mut last_node, mut last_key) = (None, None);
    let (mut tasks, mut replicas, mut idempotency_keys) = (0, 0, 0);
    loop {
        let text = lines.text()?;
        let text = text.ok_or_else(|| lines.wrong("the file ends without its last line"))?;
        if text.starts_with("{\"end\"") {
            let end: End = lines.parse(&text)?;
            if end.tasks != tasks {
                return Err(
                    lines.wrong(&format!("{} tasks are announced and {tasks} came", end.tasks))
                );
            }
            if (end.replicas, end.idempotency_keys) != (replicas, idempotency_keys) {
                return Err(lines.wrong(&format!(
                    "{} replicas and {} idempotency keys are announced, {replicas} and \
                     {idempotency_keys} came",
                    end.replicas, end.idempotency_keys
                )));
            }
            if lines.text()?.is_some() {
                return Err(lines.wrong("something follows the last line"));
            }
            let after = last.map_or(0, |TaskId(id)| id.saturating_add(1));
            // Without any, the first start takes the time, as in a new store.
            if head.next_id.max(after) > 0 {
                database.set_sequence(TaskId(head.next_id.max(after)))?;
            }
            database.flush()?;
            return Ok(Imported { tasks, skipped: end.skipped });
        }
        if text.starts_with("{\"replica\"") {
            let (node, row) =
                lines::replica(lines.parse(&text)?).map_err(|what| lines.wrong(&what))?;
            if last_node.as_ref().is_some_and(|last| node <= *last) {
                return Err(lines.wrong("\"replica\" must be greater than in the line before"));
            }
            database.set_replica(&node, Some(&row))?;
            last_node = Some(node);
            replicas += 1;
            continue;
        }
        if text.starts_with("{\"idempotency\"") {
            let (key, row) = lines::key(lines.parse(&text)?).map_err(|what| lines.wrong(&what))?;
            if last_key.as_ref().is_some_and(|last| key <= *last) {
                return Err(lines.wrong("\"idempotency\" must be greater than in the line before"));
            }
            database.set_idempotency(&key, Some(&row))?;
            last_key = Some(key);
            idempotency_keys += 1;
            continue;
        }
        let line: Line = lines.parse(&text)?;
        let (task, progress) = lines::task(line).map_err(|what| lines.wrong(&what))?;
        if last.is_some_and(|last| task.id <= last) {
            return Err(lines.wrong("\"task\" must be greater than in the line before"));
        }
        last = Some(task.id);
        database.insert(&task, None)?;
        if progress.iter().any(|entry| *entry != Progress::Untouched) {
            database.save(task.id, &progress)?;
        }
        tasks += 1;
        if tasks % BATCH == 0 {
            database.flush()?;
        }
    }
}

struct Lines<'a> {
    input: &'a mut dyn BufRead,
    number: u64,
}

impl Lines<'_> {
    fn wrong(&self, what: &str) -> Wrong {
        // Texts of the file stand in it: on one line, whatever they are, and not all of them.
        Wrong::Line(self.number, plain(what).chars().take(MAX_ERROR_CHARS).collect())
    }

    fn text(&mut self) -> Result<Option<String>, Wrong> {
        self.number += 1;
        let mut text = String::new();
        let read = self.input.read_line(&mut text);
        match read.map_err(|error| self.wrong(&format!("cannot be read: {error}")))? {
            0 => Ok(None),
            _ if !text.ends_with('\n') => Err(self.wrong("it is cut")),
            // An editor on the way may have put a mark before the first line.
            _ if self.number == 1 => Ok(Some(unmarked(&text).to_owned())),
            _ => Ok(Some(text)),
        }
    }

    fn next<T: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<T>, Wrong> {
        let text = self.text()?;
        text.map(|text| self.parse(&text)).transpose()
    }

    fn parse<T: for<'de> Deserialize<'de>>(&self, text: &str) -> Result<T, Wrong> {
        serde_json::from_str(text).map_err(|error| self.wrong(&error.to_string()))
    }
}

#[cfg(test)]
mod tests;
