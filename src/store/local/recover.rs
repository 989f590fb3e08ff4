//! Reads every unsettled task at the start, in the order of acceptance.
//!
//! First everything is read and compared with the ledger, and nothing is changed: missing rows are
//! for a person to decide. Then orphans are removed. If anything is damaged, it is set aside and
//! the rest is copied into a fresh store (`integrity/rebuild.rs`), from which the tasks are read
//! again.

use super::database::Database;
use super::error::{Failure, MissingRows};
use super::integrity::quarantine::{self, NewerTasks, SetAside};
use super::integrity::rebuild::{RebuildSource, Rebuilt, rebuild};
use super::integrity::scan::{self, Scan, SideTables};
use crate::faults;
use crate::store::records::Recovered;
use crate::task::TaskId;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    pub tasks: u64,
    pub value_bytes: u64,
    pub dead_letters: u64,
    /// Rows that were removed because their task is gone.
    pub orphans_removed: u64,
    /// Idempotency keys whose own row a crash had kept from the disk.
    pub keys_restored: u64,
    /// `COMMITTED` could be read, or the store is new. Without it a lost end of the log would not
    /// have been noticed at this start.
    pub had_marker: bool,
    pub set_aside: SetAside,
    /// The store was damaged and has been replaced by a fresh one.
    pub rebuilt: bool,
    /// The last process was not closed, and may have sent strong writes that are not on disk.
    pub sent_early: bool,
    /// Rows in the quarantine, including those of earlier starts.
    pub quarantined_rows: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all are tasks")]
pub enum RecoveryEvent {
    Task(Recovered),
    /// The store is damaged: discard all tasks so far. The intact ones follow again.
    Restart,
}

impl RecoveryEvent {
    pub fn collect_into(self, all: &mut Vec<Recovered>) {
        match self {
            Self::Task(task) => all.push(task),
            Self::Restart => all.clear(),
        }
    }
}

/// What to do about rows that the ledger counts and that are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnMissing {
    /// Fail and change nothing.
    Refuse,
    /// Continue with what is left, in a fresh store.
    Accept,
}

pub(super) struct Recovery {
    pub(super) report: RecoveryReport,
    /// The first unused id.
    pub(super) unused: TaskId,
    pub(super) side_tables: SideTables,
    /// The store that replaced a damaged one, and its name.
    pub(super) fresh: Option<(String, Database)>,
}

/// Brings the store into order: compares it with the ledger and removes orphans; or, if anything in
/// it or in its log is damaged, sets that aside and replaces the store by a fresh one.
pub(super) fn mend(
    database: &Database,
    source: RebuildSource<'_>,
    missing: OnMissing,
    each: &mut dyn FnMut(RecoveryEvent),
) -> Result<Recovery, Failure> {
    let mut found = scan::walk(database, &mut |task| each(RecoveryEvent::Task(task)))?;
    if missing == OnMissing::Refuse {
        refuse_missing(database, &found, source.log_is_whole)?;
    }
    let after = found.highest.map_or(0, |id| id.0.saturating_add(1));
    let first_id = TaskId(source.now.0 / 1_000);
    let unused = database.sequence()?.unwrap_or(first_id).max(TaskId(after));
    let orphans_removed = found.orphans.len() as u64;
    let keys_restored = found.keyless.len() as u64;
    let (mut set_aside, mut fresh) = (SetAside::default(), None);
    let intact = source.log_is_whole && !found.returned && found.damaged.is_empty();
    if missing == OnMissing::Accept || !intact {
        each(RecoveryEvent::Restart);
        let RebuildSource { directory, store, now, .. } = source;
        let damaged = found.damaged.clone();
        set_aside = quarantine::set_aside(directory.path(), store, now, database, damaged)?;
        let newer = NewerTasks::among(database, &found.damaged)?;
        let Rebuilt { name, database, superseded } =
            rebuild(database, &found, &newer, source, unused)?;
        set_aside.superseded = superseded;
        found = scan::walk(&database, &mut |task| each(RecoveryEvent::Task(task)))?;
        if let Some(damage) = found.damaged.pop() {
            return Err(damage.into());
        }
        refuse_missing(&database, &found, true)?;
        source.directory.announce(&name)?;
        source.directory.adopt(&name)?;
        fresh = Some((name, database));
    } else {
        database.adopt(found.highest, found.tallies, found.live_bytes);
        for (tree, key) in &found.orphans {
            faults::point("recover.orphan-found");
            database.take(*tree, key)?;
            faults::point("recover.orphan-removed");
        }
        for (key, row) in &found.keyless {
            database.set_idempotency(key, Some(row))?;
            faults::point("recover.key-written");
        }
    }
    let report = RecoveryReport {
        tasks: found.tasks,
        value_bytes: found.value_bytes,
        dead_letters: found.dead_letters,
        orphans_removed,
        keys_restored,
        set_aside,
        rebuilt: fresh.is_some(),
        ..RecoveryReport::default()
    };
    Ok(Recovery { report, unused, side_tables: found.side_tables, fresh })
}

fn refuse_missing(database: &Database, found: &Scan, log_is_whole: bool) -> Result<(), Failure> {
    missing_rows(database, found, log_is_whole)
        .map_or(Ok(()), |missing| Err(Failure::RowsGone(missing)))
}

/// What the ledger counts and the scan did not find under its key.
///
/// A torn log can show rows under other keys: sled stores only the end of a key, and the beginning is
/// in a page that the tear may have replaced by an older one. Then the counts are right, but a row
/// that fails its checksum is that of another task than its key tells.
pub(super) fn missing_rows(
    database: &Database,
    found: &Scan,
    log_is_whole: bool,
) -> Option<MissingRows> {
    let (ledger, binding) = database.ledger();
    let differ = ledger.tallies.differ(&found.counted, &found.broken).filter(|_| binding);
    let misplaced =
        || Some(format!("{} holds rows that are not found with their tasks", found.misplaced?));
    let moved = || {
        let tree = found.broken.first().filter(|_| !log_is_whole)?;
        Some(format!("{tree} holds rows under keys that they were not written under"))
    };
    differ.or_else(misplaced).or_else(moved).map(MissingRows)
}

#[cfg(test)]
mod tests;
