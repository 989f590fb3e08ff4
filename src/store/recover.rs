//! Reads what is on disk, once, at the start: every live task in the order of acceptance.
//!
//! First everything is looked at and compared with the ledger, before anything is changed or
//! handed over: a row that is missing is for a person to decide. Then what cannot be read is set
//! aside, what crashes have left is removed, and the tasks are handed over in a second walk, which
//! leaves out the values.

use super::audit::{self, Depth, Found, Kept};
use super::database::Database;
use super::error::{Failure, Gone};
use super::quarantine::{Quarantine, SetAside};
use super::rows::Header;
use crate::faults;
use crate::task::{Progress, TaskId};

/// A task that was accepted and is not settled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The task, without its value.
    pub header: Header,
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
    /// The file `COMMITTED` was there and could be read, or the store is new. Without it, a log
    /// that has lost its end would not have been noticed at this start.
    pub witnessed: bool,
    /// What could not be read, and where it is now.
    pub set_aside: SetAside,
    /// Rows in the quarantine, those of former starts included.
    pub quarantined_rows: u64,
}

/// What recovery hands over, one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Handed {
    /// A task, in the order of acceptance.
    Task(Recovered),
    /// Something had to be set aside: what was handed over before is to be forgotten, and all of
    /// it comes once more as it is now.
    Anew,
}

impl Handed {
    /// Keeps `all` as what has been handed over and not to be forgotten.
    pub fn collect_into(self, all: &mut Vec<Recovered>) {
        match self {
            Self::Task(task) => all.push(task),
            Self::Anew => all.clear(),
        }
    }
}

/// What to do about rows that the ledger counts and that are not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    /// Change nothing and say so.
    Refuse,
    /// Go on with what is left.
    Accept,
}

/// What is there once the store is in order.
pub(super) struct Mended {
    pub(super) report: RecoveryReport,
    /// The highest task that any row has.
    pub(super) highest: Option<TaskId>,
    pub(super) kept: Kept,
}

/// Brings the store into order: compares it with the ledger, sets aside what cannot be read, and
/// removes what crashes have left.
///
/// Every task that is whole goes to `each`, and they are what there is, unless something was set
/// aside: that can change others.
pub(super) fn mend(
    database: &Database,
    quarantine: &Quarantine,
    missing: Missing,
    each: &mut dyn FnMut(Recovered),
) -> Result<Mended, Failure> {
    let mut found = audit::walk(database, Depth::Whole, each)?;
    if missing == Missing::Refuse
        && let Some(gone) = gone(database, &found)
    {
        return Err(Failure::Gone(gone));
    }
    database.adopt(found.highest, found.tallies, found.live_bytes);
    let set_aside = quarantine.set_aside(database, std::mem::take(&mut found.damaged))?;
    for (tree, key) in &found.orphans {
        faults::point("recover.orphan-found");
        database.take(*tree, key)?;
        faults::point("recover.orphan-removed");
    }
    let orphans_removed = found.orphans.len() as u64;
    let Found { tasks, value_bytes, dead_letters, highest, kept, .. } = found;
    let report = RecoveryReport {
        tasks,
        value_bytes,
        dead_letters,
        orphans_removed,
        set_aside,
        ..RecoveryReport::default()
    };
    Ok(Mended { report, highest, kept })
}

/// Hands every task to `each` once more, in order, and counts them anew in the report.
pub(super) fn hand_over_anew(
    database: &Database,
    each: &mut dyn FnMut(Recovered),
    report: RecoveryReport,
) -> Result<RecoveryReport, Failure> {
    let found = audit::walk(database, Depth::WithoutValues, each)?;
    if let Some(damage) = found.damaged.into_iter().next() {
        return Err(damage.into());
    }
    let Found { tasks, value_bytes, dead_letters, .. } = found;
    Ok(RecoveryReport { tasks, value_bytes, dead_letters, ..report })
}

/// What must be there by the ledger, and is not.
pub(super) fn gone(database: &Database, found: &Found) -> Option<Gone> {
    let (ledger, binding) = database.ledger();
    let differ = ledger.tallies.differ(&found.counted, &found.broken).filter(|_| binding)?;
    Some(Gone(differ))
}

#[cfg(test)]
mod tests;
