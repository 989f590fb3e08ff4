//! Reads what is on disk, once, at the start: every live task in the order of acceptance.
//!
//! Everything is looked at and compared with the ledger before anything is changed: a row that is
//! missing is for a person to decide. Then what crashes have left is removed. If anything cannot be
//! read, it is set aside and the rest is written into a fresh store (`rebuild.rs`), from which the
//! tasks are handed over once more.

use super::database::Database;
use super::error::{Failure, Gone};
use super::integrity::quarantine::{Newer, Quarantine, SetAside};
use super::integrity::rebuild::{Place, Rebuilt, rebuild, told};
use super::integrity::scan::{self, Scan, SideTables};
use super::rows::Header;
use crate::faults;
use crate::task::{Idempotency, Progress, TaskId};

/// A task that was accepted and is not settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The task, without its value.
    pub header: Header,
    /// The key that its client gave it; `None` also for a task from before format 4.
    pub idempotency: Option<Idempotency>,
    /// What each replica has had of it, one entry for each of [`Header::replicas`].
    pub progress: Vec<Progress>,
}

/// What recovery found, for the log and the metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Tasks handed over.
    pub tasks: u64,
    /// The length of their values together, in bytes.
    pub value_bytes: u64,
    /// Dead letters among their deliveries.
    pub dead_letters: u64,
    /// Rows removed because their task is gone.
    pub orphans_removed: u64,
    /// Idempotency keys that a crash had left in the rows of their tasks alone.
    pub keys_restored: u64,
    /// The file `COMMITTED` was there and could be read, or the store is new. Without it, a log
    /// that has lost its end would not have been noticed at this start.
    pub witnessed: bool,
    /// What could not be read, and where it is now.
    pub set_aside: SetAside,
    /// The store was damaged, and a fresh one with what is whole has taken its place.
    pub rebuilt: bool,
    /// Rows in the quarantine, those of former starts included.
    pub quarantined_rows: u64,
}

/// What recovery hands over, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "nearly all are tasks")]
pub enum Handed {
    /// A task, in the order of acceptance.
    Task(Recovered),
    /// The store is damaged: what was handed over before is to be forgotten, and what is whole comes
    /// once more as it is now.
    Restart,
}

impl Handed {
    /// Keeps `all` as what has been handed over and not to be forgotten.
    pub fn collect_into(self, all: &mut Vec<Recovered>) {
        match self {
            Self::Task(task) => all.push(task),
            Self::Restart => all.clear(),
        }
    }
}

/// What to do about rows that the ledger counts and that are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OnMissing {
    /// Change nothing and say so.
    Refuse,
    /// Go on with what is left.
    Accept,
}

/// What is there once the store is in order.
pub(super) struct Recovery {
    pub(super) report: RecoveryReport,
    /// Every id from here on is unused.
    pub(super) unused: TaskId,
    pub(super) side_tables: SideTables,
    /// The name of the store that took the place of a damaged one, and the store.
    pub(super) fresh: Option<(String, Database)>,
}

/// Brings the store into order: compares it with the ledger and removes what crashes have left; or,
/// if anything is damaged, the log among it, sets that aside and puts a fresh store with the rest in
/// its place. With [`OnMissing::Accept`] it is taken for damaged.
pub(super) fn mend(
    database: &Database,
    place: Place<'_>,
    missing: OnMissing,
    each: &mut dyn FnMut(Handed),
) -> Result<Recovery, Failure> {
    let mut found = scan::walk(database, &mut |task| each(Handed::Task(task)))?;
    if missing == OnMissing::Refuse
        && let Some(gone) = gone(database, &found)
    {
        return Err(Failure::Gone(gone));
    }
    let after = found.highest.map_or(0, |id| id.0.saturating_add(1));
    let born = TaskId(place.now.0 / 1_000);
    let unused = database.sequence()?.unwrap_or(born).max(TaskId(after));
    let orphans_removed = found.orphans.len() as u64;
    let keys_restored = found.keyless.len() as u64;
    let (mut set_aside, mut fresh) = (SetAside::default(), None);
    let intact = place.log_is_whole && !found.returned && found.damaged.is_empty();
    if missing == OnMissing::Accept || !intact {
        each(Handed::Restart);
        let quarantine = Quarantine::of(place.directory.path(), place.store, place.now);
        set_aside = quarantine.set_aside(database, found.damaged.clone())?;
        let newer = Newer::among(database, &found.damaged)?;
        let Rebuilt { name, database, superseded } =
            rebuild(database, &found, &newer, place, unused)?;
        set_aside.superseded = superseded;
        found = scan::walk(&database, &mut |task| each(Handed::Task(task)))?;
        if let Some(damage) = found.damaged.pop() {
            return Err(damage.into());
        }
        if let Some(gone) = gone(&database, &found) {
            return Err(Failure::Gone(gone));
        }
        place.directory.announce(&name).map_err(told)?;
        place.directory.adopt(&name).map_err(told)?;
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
    let Scan { tasks, value_bytes, dead_letters, side_tables, .. } = found;
    let rebuilt = fresh.is_some();
    let report = RecoveryReport {
        tasks,
        value_bytes,
        dead_letters,
        orphans_removed,
        keys_restored,
        set_aside,
        rebuilt,
        ..RecoveryReport::default()
    };
    Ok(Recovery { report, unused, side_tables, fresh })
}

/// What must be there by the ledger, and is not.
pub(super) fn gone(database: &Database, found: &Scan) -> Option<Gone> {
    let (ledger, binding) = database.ledger();
    let differ = ledger.tallies.differ(&found.counted, &found.broken).filter(|_| binding)?;
    Some(Gone(differ))
}

#[cfg(test)]
mod tests;
