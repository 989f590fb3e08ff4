//! `replicator export` and `import` of a store on the local disk. `src/store/lines.rs` has the format.
//!
//! Ids are kept. An export reads a copy of the store and skips what it cannot read. An import creates a
//! store aside and names it last, so it is complete or absent.

use std::io::{BufRead, Write};
use std::path::Path;

use thiserror::Error;

use super::check::StoreCopy;
use crate::store::lines::format::{self, EndLine, HeadLine};
use crate::store::lines::{self, Exported, ImportTarget, Imported, VERSION, WrongLine, write_line};
use crate::store::local::database::{Database, open_sled};
use crate::store::local::directory::Directory;
use crate::store::local::error::{Failure, OpenError, guarded};
use crate::store::local::integrity::scan::{self, SideTables};
use crate::store::local::keys::Tree;
use crate::store::local::recover::missing_rows;
use crate::store::local::{SMALL_CACHE, StoreSettings, fsync, is_used, migrate, rows};
use crate::store::records::{IdempotencyRow, ReplicaRow};
use crate::task::{Node, Progress, Task, TaskId};

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
                Ok(Some(task)) => {
                    match write_line(out, &format::line(&task, &recovered.progress)) {
                        Ok(()) => tasks += 1,
                        Err(error) => failed = Some(error),
                    }
                }
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
        write_line(out, &format::replica_line(node, row))?;
    }
    for (key, row) in &side_tables.idempotency {
        write_line(out, &format::key_line(key, row))?;
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

#[derive(Debug, Error)]
pub enum ImportError {
    #[error(transparent)]
    Store(#[from] OpenError),
    #[error(transparent)]
    Input(#[from] WrongLine),
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
        Err(Wrong::Line(wrong)) => {
            directory.remove_stores()?;
            Err(wrong.into())
        }
        Err(Wrong::Store(failure)) => {
            directory.remove_stores()?;
            Err(OpenError::in_store(&settings.dir)(failure).into())
        }
    }
}

enum Wrong {
    Line(WrongLine),
    Store(Failure),
    Directory(OpenError),
}

impl From<WrongLine> for Wrong {
    fn from(wrong: WrongLine) -> Self {
        Self::Line(wrong)
    }
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

/// Tasks per flush.
const BATCH: u64 = 4096;

fn read_all(
    path: &Path,
    settings: &StoreSettings,
    input: &mut dyn BufRead,
) -> Result<Imported, Wrong> {
    let db = open_sled(path, settings.cache_bytes.max(SMALL_CACHE))?;
    migrate::run(&db)?;
    let mut target = LocalTarget { database: Database::new(db)?, unflushed: 0 };
    lines::import(input, &mut target)
}

struct LocalTarget {
    database: Database,
    unflushed: u64,
}

impl ImportTarget for LocalTarget {
    type Error = Wrong;

    fn begin(&mut self, _: TaskId) -> Result<(), Wrong> {
        Ok(())
    }

    fn task(&mut self, task: Task, progress: Vec<Progress>) -> Result<(), Wrong> {
        self.database.insert([(&task, None)])?;
        if progress.iter().any(|entry| *entry != Progress::Untouched) {
            self.database.save(task.id, &progress)?;
        }
        self.unflushed += 1;
        if self.unflushed >= BATCH {
            self.unflushed = 0;
            self.database.flush()?;
        }
        Ok(())
    }

    fn replica(&mut self, node: Node, row: ReplicaRow) -> Result<(), Wrong> {
        Ok(self.database.set_replica(&node, Some(&row))?)
    }

    fn key(&mut self, key: Box<str>, row: IdempotencyRow) -> Result<(), Wrong> {
        Ok(self.database.set_idempotency(&key, Some(&row))?)
    }

    fn end(&mut self, next_id: TaskId) -> Result<(), Wrong> {
        // Without it, ids start at the time of the first start, as in a new store.
        if next_id.0 > 0 {
            self.database.set_sequence(next_id)?;
        }
        self.database.flush()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
