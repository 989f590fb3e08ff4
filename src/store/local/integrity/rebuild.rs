//! Makes a damaged store anew: what is whole in it goes, task by task, into a fresh one.
//!
//! What sled drops of its log it drops in silence, and goes on with pages that do not fit together:
//! two that hold the same keys, or one that its neighbour does not lead to. Such a store can be read,
//! for every row in it is checked; but where two such pages are merged or split later, sled loses
//! rows, those of tasks that were accepted since among them. So a store in which anything is damaged
//! is not written to: another one takes its place before anything is accepted.
//!
//! The fresh one is made aside and named last, as in a compaction, and needs as much room. A crash
//! before that leaves the damaged one, and the next start begins again.

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use super::quarantine::Newer;
use super::scan::{self, Scan};
use crate::faults;
use crate::store::local::database::{Database, open_sled};
use crate::store::local::directory::{self, Directory};
use crate::store::local::error::{Damage, Failure, Gone, OpenError};
use crate::store::local::keys::{self, Tree};
use crate::store::local::recover::Recovered;
use crate::store::local::rows::IdempotencyRow;
use crate::store::local::{migrate, rows};
use crate::task::{Progress, TaskId, Timestamp};

/// So many tasks are flushed together.
const BATCH: u64 = 4096;

/// Where a store is.
#[derive(Clone, Copy)]
pub(in crate::store::local) struct Place<'a> {
    pub(in crate::store::local) directory: &'a Directory,
    /// Its name.
    pub(in crate::store::local) store: &'a str,
    pub(in crate::store::local) cache_bytes: u64,
    /// The present.
    pub(in crate::store::local) now: Timestamp,
    /// As far as it was durable.
    pub(in crate::store::local) log_is_whole: bool,
}

/// A store that is whole and durable, and not the current one yet.
pub(in crate::store::local) struct Rebuilt {
    pub(in crate::store::local) name: String,
    pub(in crate::store::local) database: Database,
    /// Deliveries that were superseded by what is not in it.
    pub(in crate::store::local) superseded: u64,
}

/// Makes it of what is whole in `old`, where `found` was; ids go on from `unused`.
pub(in crate::store::local) fn rebuild(
    old: &Database,
    found: &Scan,
    newer: &Newer,
    place: Place<'_>,
    unused: TaskId,
) -> Result<Rebuilt, Failure> {
    let name = place.directory.unused_name(place.store).map_err(told)?;
    let path = place.directory.unfinished(&name);
    let made = make(old, found, newer, place, &path);
    let made = made.and_then(|(database, superseded)| {
        faults::point("rebuild.filled");
        database.set_sequence(unused)?;
        database.flush()?;
        directory::sync_store(&path).map_err(told)?;
        directory::sync(place.directory.path()).map_err(told)?;
        faults::point("rebuild.synced");
        Ok(Rebuilt { name, database, superseded })
    });
    if made.is_err() {
        // It may have filled the disk. What is left of it is removed by the next start that succeeds.
        let _ = fs::remove_dir_all(&path);
    }
    made
}

fn make(
    old: &Database,
    found: &Scan,
    newer: &Newer,
    place: Place<'_>,
    path: &Path,
) -> Result<(Database, u64), Failure> {
    directory::make_empty(path).map_err(told)?;
    faults::point("rebuild.begun");
    let db = open_sled(path, place.cache_bytes)?;
    migrate::run(&db)?;
    let fresh = Database::new(db)?;
    let (mut tasks, mut superseded) = (0, 0);
    let mut copy = |Recovered { header, idempotency, mut progress }: Recovered| {
        let id = header.id;
        superseded += newer.supersede(&header, &mut progress);
        let gone = || rows::damage(Tree::Tasks, &keys::of_task(id), "is missing");
        let task = old.read(id)?.ok_or_else(gone)?;
        fresh.insert(&task, idempotency.as_ref())?;
        if progress.iter().any(|entry| *entry != Progress::Untouched) {
            fresh.save(id, &progress)?;
        }
        tasks += 1;
        if tasks % BATCH == 0 { fresh.flush() } else { Ok(()) }
    };
    let mut copied = Ok(());
    let again = scan::walk(old, &mut |task| {
        if copied.is_ok() {
            copied = copy(task);
        }
    })?;
    copied?;
    for (node, row) in &again.side_tables.replicas {
        fresh.set_replica(node, Some(row))?;
    }
    // A key without an answer promises what only its task can keep. Without the task a repeat must
    // become another one.
    let set_aside: HashSet<_> = found.damaged.iter().filter_map(Damage::task).collect();
    let kept = |row: &IdempotencyRow| row.answer.is_some() || !set_aside.contains(&row.task);
    for (key, row) in again.side_tables.idempotency.iter().filter(|(_, row)| kept(row)) {
        fresh.set_idempotency(key, Some(row))?;
    }
    // Reading as well has sled merge and split pages. What it lost then is neither copied nor set aside.
    if again.damaged != found.damaged || again.tallies != found.tallies {
        let changing = "its rows change while they are read".to_owned();
        return Err(Failure::Gone(Gone(changing)));
    }
    Ok((fresh, superseded))
}

/// For `map_err`: what the operating system refused, as a failure of the store.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(in crate::store::local) fn told(error: OpenError) -> Failure {
    Failure::Database(match std::error::Error::source(&error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    })
}
