//! `replicator export` and `import`: a store as lines of JSON, and back.
//!
//! ```text
//! {"export":1,"tasks":2,"next_id":1700000000000003}
//! {"task":1700000000000001,"key":"k","operation":"SET","value":"dg==", … ,"progress":[ … ]}
//! {"task":1700000000000002, … }
//! {"end":1,"tasks":2,"skipped":0}
//! ```
//!
//! The first line says how many tasks the store should hold, the last one how many came. Ids are
//! kept, and the ids to come stay above `next_id`. An export works on a copy of the store and
//! leaves out what it cannot read. An import makes a new store aside and names it last, so it is
//! there whole or not at all.

use std::cell::RefCell;
use std::io::{BufRead, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::audit::{self, Depth};
use super::check::Copied;
use super::database::{Database, open_sled};
use super::directory::Directory;
use super::error::{Failure, OpenError, guarded};
use super::{CREATING, Settings, barrier, migrate};
use crate::task::{
    Cause, DeadLetter, Node, Operation, Progress, ReplicaIndex, Task, TaskId, Timestamp,
};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Head {
    export: u32,
    tasks: u64,
    next_id: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    task: u64,
    key: String,
    operation: Kind,
    value: String,
    accepted_at: u64,
    expires_at: Option<u64>,
    replicas: Vec<String>,
    user_id: Option<String>,
    progress: Vec<State>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct End {
    end: u32,
    tasks: u64,
    skipped: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Kind {
    Set,
    Delete,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
enum State {
    Untouched,
    Failed { failures: u32, error: String },
    Delivered,
    Superseded,
    Dead { cause: String, failures: u32, error: String, since: u64 },
    Doubted { since: u64 },
    Resend,
}

const CAUSES: [Cause; 3] = [Cause::Rejected, Cause::GaveUp, Cause::RetryOverflow];

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
    let (database, _) = copied.open(settings)?;
    let exported = || Ok(write_all(&database, out));
    guarded::<_, Failure>(exported).map_err(OpenError::in_store(&settings.dir))
}

fn write_all(database: &Database, out: &mut dyn Write) -> std::io::Result<Exported> {
    let mut exported = Exported::default();
    let next_id = database.sequence().unwrap_or_else(|failure| {
        exported.problems.push(failure.to_string());
        None
    });
    let (mut ledger, _) = database.ledger();
    let expected = ledger.tallies.of(super::keys::Tree::Tasks).map_or(0, |tally| tally.rows);
    let next_id = next_id.map_or(0, |id| id.0);
    write_line(out, &Head { export: 1, tasks: expected, next_id })?;
    let mut failed = None;
    let mut unread = Vec::new();
    let mut tasks = 0;
    let walk = || {
        audit::walk(database, Depth::Whole, &mut |recovered| {
            if failed.is_some() {
                return;
            }
            match database.read(recovered.header.id) {
                Ok(Some(task)) => match write_line(out, &line(&task, &recovered.progress)) {
                    Ok(()) => tasks += 1,
                    Err(error) => failed = Some(error),
                },
                Ok(None) => {}
                Err(failure) => unread.push(failure.to_string()),
            }
        })
    };
    match guarded(walk) {
        Ok(found) => {
            exported.problems.extend(super::recover::gone(database, &found).map(|g| g.to_string()));
            exported.problems.extend(found.damaged.iter().map(ToString::to_string));
        }
        Err(failure) => exported.problems.push(format!("nothing more can be read: {failure}")),
    }
    if let Some(error) = failed {
        return Err(error);
    }
    exported.problems.extend(unread);
    exported.tasks = tasks;
    write_line(out, &End { end: 1, tasks, skipped: expected.saturating_sub(tasks) })?;
    out.flush()?;
    Ok(exported)
}

fn write_line(out: &mut dyn Write, line: &impl Serialize) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

fn line(task: &Task, progress: &[Progress]) -> Line {
    let state = |progress: &Progress| match progress {
        Progress::Untouched => State::Untouched,
        Progress::Failed { failures, error } => {
            State::Failed { failures: *failures, error: error.to_string() }
        }
        Progress::Delivered => State::Delivered,
        Progress::Superseded => State::Superseded,
        Progress::Dead(letter) => State::Dead {
            cause: letter.cause.as_str().to_owned(),
            failures: letter.failures,
            error: letter.error.to_string(),
            since: letter.since.0,
        },
        Progress::Doubted { since } => State::Doubted { since: since.0 },
        Progress::Resend => State::Resend,
    };
    Line {
        task: task.id.0,
        key: task.key.clone(),
        operation: match task.operation {
            Operation::Set => Kind::Set,
            Operation::Delete => Kind::Delete,
        },
        value: STANDARD.encode(&task.value),
        accepted_at: task.accepted_at.0,
        expires_at: task.expires_at.map(|end| end.0),
        replicas: task.replicas.iter().map(|node| node.as_str().to_owned()).collect(),
        user_id: task.user_id.clone(),
        progress: progress.iter().map(state).collect(),
    }
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
    barrier::check().map_err(|answered| OpenError::Barrier { answered })?;
    let directory = Directory::lock(&settings.dir)?;
    let used = |path: &std::path::Path| super::is_used(path);
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
    if head.export != 1 {
        return Err(lines.wrong("it is an export in a format that this binary does not know"));
    }
    let mut last = None;
    let mut tasks = 0;
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
        let line: Line = lines.parse(&text)?;
        let (task, progress) = task(line).map_err(|what| lines.wrong(&what))?;
        if last.is_some_and(|last| task.id <= last) {
            return Err(lines.wrong("\"task\" must be greater than in the line before"));
        }
        last = Some(task.id);
        database.insert(&task)?;
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
        Wrong::Line(self.number, what.to_owned())
    }

    fn text(&mut self) -> Result<Option<String>, Wrong> {
        self.number += 1;
        let mut text = String::new();
        let read = self.input.read_line(&mut text);
        match read.map_err(|error| self.wrong(&format!("cannot be read: {error}")))? {
            0 => Ok(None),
            _ if !text.ends_with('\n') => Err(self.wrong("it is cut")),
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

fn task(line: Line) -> Result<(Task, Vec<Progress>), String> {
    if matches!(&*line.key, "" | "." | "..") {
        return Err(format!("\"key\" must not be {:?}", line.key));
    }
    let parse = |text: &String| Node::parse(text).map_err(|why| format!("\"replicas\": {why}"));
    let replicas = line.replicas.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    if replicas.is_empty() || u16::try_from(replicas.len()).map(ReplicaIndex).is_err() {
        return Err("\"replicas\" must name 1 to 65535 nodes".to_owned());
    }
    if line.progress.len() != replicas.len() {
        return Err("\"progress\" must have an entry for each of \"replicas\"".to_owned());
    }
    let value = STANDARD.decode(&line.value).map_err(|why| format!("\"value\": {why}"))?;
    let operation = match line.operation {
        Kind::Set => Operation::Set,
        Kind::Delete if value.is_empty() => Operation::Delete,
        Kind::Delete => return Err("\"value\" must be empty for a DELETE".to_owned()),
    };
    let progress = line.progress.into_iter().map(progress).collect::<Result<_, _>>()?;
    let task = Task {
        id: TaskId(line.task),
        key: line.key,
        operation,
        value: value.into(),
        accepted_at: Timestamp(line.accepted_at),
        expires_at: line.expires_at.map(Timestamp),
        replicas,
        user_id: line.user_id,
    };
    Ok((task, progress))
}

fn progress(state: State) -> Result<Progress, String> {
    Ok(match state {
        State::Untouched => Progress::Untouched,
        State::Failed { failures, error } => Progress::Failed { failures, error: error.into() },
        State::Delivered => Progress::Delivered,
        State::Superseded => Progress::Superseded,
        State::Doubted { since } => Progress::Doubted { since: Timestamp(since) },
        State::Resend => Progress::Resend,
        State::Dead { cause, failures, error, since } => {
            let known = CAUSES.into_iter().find(|known| known.as_str() == cause);
            let cause = known.ok_or_else(|| format!("\"cause\" {cause:?} is not known"))?;
            let (error, since) = (error.into(), Timestamp(since));
            Progress::Dead(DeadLetter { cause, failures, error, since })
        }
    })
}

#[cfg(test)]
mod tests;
