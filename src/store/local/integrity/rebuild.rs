//! Copies the intact tasks of a damaged store into a fresh one.
//!
//! When sled silently drops a part of its log, its pages may no longer fit together. Such a store can
//! still be read, because every row is checked. But when such pages are later merged or split, sled
//! loses rows, including those of newly accepted tasks. So nothing is written to a damaged store: a
//! fresh one replaces it before anything is accepted.
//!
//! The fresh store is made aside and named last, as in a compaction, and needs as much disk space.
//! After a crash before that, the next start begins again with the damaged store.

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;

use super::quarantine::NewerTasks;
use super::scan::{self, Scan};
use crate::faults;
use crate::store::local::database::{Database, open_sled};
use crate::store::local::directory::{self, Directory};
use crate::store::local::error::{Damage, Failure, MissingRows};
use crate::store::local::keys::{self, Tree};
use crate::store::local::{migrate, rows};
use crate::store::records::{IdempotencyRow, Recovered};
use crate::task::{Progress, TaskId, Timestamp};

/// Tasks per flush.
const BATCH: u64 = 4096;

#[derive(Clone, Copy)]
pub(crate) struct RebuildSource<'a> {
    pub(crate) directory: &'a Directory,
    pub(crate) store: &'a str,
    pub(crate) cache_bytes: u64,
    pub(crate) now: Timestamp,
    /// As far as it was durable.
    pub(crate) log_is_whole: bool,
}

/// An intact and durable store that is not the current one yet.
pub(crate) struct Rebuilt {
    pub(crate) name: String,
    pub(crate) database: Database,
    /// Deliveries superseded by tasks that were set aside.
    pub(crate) superseded: u64,
}

/// Copies `old`, of which `found` is a scan. New ids start at `unused`.
pub(crate) fn rebuild(
    old: &Database,
    found: &Scan,
    newer: &NewerTasks,
    source: RebuildSource<'_>,
    unused: TaskId,
) -> Result<Rebuilt, Failure> {
    let name = source.directory.unused_name(source.store)?;
    let path = source.directory.unfinished(&name);
    let made = copy(old, found, newer, source.cache_bytes, &path);
    let made = made.and_then(|(database, superseded)| {
        faults::point("rebuild.filled");
        database.set_sequence(unused)?;
        database.flush()?;
        directory::sync_store(&path)?;
        directory::sync(source.directory.path())?;
        faults::point("rebuild.synced");
        Ok(Rebuilt { name, database, superseded })
    });
    if made.is_err() {
        // It may have filled the disk. The next successful start removes the rest.
        let _ = fs::remove_dir_all(&path);
    }
    made
}

fn copy(
    old: &Database,
    found: &Scan,
    newer: &NewerTasks,
    cache_bytes: u64,
    path: &Path,
) -> Result<(Database, u64), Failure> {
    directory::make_empty(path)?;
    faults::point("rebuild.begun");
    let db = open_sled(path, cache_bytes)?;
    migrate::run(&db)?;
    let fresh = Database::new(db)?;
    let (mut tasks, mut superseded) = (0, 0);
    let mut copy_task = |Recovered { header, idempotency, mut progress, .. }: Recovered| {
        let id = header.id;
        superseded += newer.supersede(&header, &mut progress);
        let gone = || rows::damage(Tree::Tasks, &keys::of_task(id), "is missing");
        let task = old.read(id)?.ok_or_else(gone)?;
        fresh.insert([(&task, idempotency.as_ref())])?;
        if progress.iter().any(|entry| *entry != Progress::Untouched) {
            fresh.save(id, &progress)?;
        }
        tasks += 1;
        if tasks % BATCH == 0 { fresh.flush() } else { Ok(()) }
    };
    let mut copied = Ok(());
    let again = scan::walk(old, &mut |task| {
        if copied.is_ok() {
            copied = copy_task(task);
        }
    })?;
    copied?;
    for (node, row) in &again.side_tables.replicas {
        fresh.set_replica(node, Some(row))?;
    }
    // A key without an answer refers to its task. If the task was set aside, drop the key, so that
    // a repeat becomes a new task.
    let set_aside = found.damaged.iter().filter_map(Damage::tasks).map(RangeInclusive::into_inner);
    let set_aside: BTreeMap<_, _> = set_aside.collect();
    let is_set_aside =
        |id: TaskId| set_aside.range(..=id).next_back().is_some_and(|(_, last)| id <= *last);
    let is_usable = |row: &IdempotencyRow| row.answer.is_some() || !is_set_aside(row.task);
    for (key, row) in again.side_tables.idempotency.iter().filter(|(_, row)| is_usable(row)) {
        fresh.set_idempotency(key, Some(row))?;
    }
    // Reading, too, makes sled merge and split pages. Rows lost by that are neither copied nor set
    // aside.
    let same = again.tallies == found.tallies
        && again.broken == found.broken
        && again.orphans == found.orphans
        && again.damaged == found.damaged;
    if !same {
        let changing = "its rows change while they are read".to_owned();
        return Err(Failure::RowsGone(MissingRows(changing)));
    }
    Ok((fresh, superseded))
}
