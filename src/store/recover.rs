//! Reads what is on disk, once, at the start: every live task in the order of acceptance.
//!
//! First everything is looked at and compared with the ledger, before anything is changed or
//! handed over. Then what crashes have left is removed, and the tasks are handed over in a second
//! walk, which leaves out the values.

use super::audit::{self, Depth, Found};
use super::database::Database;
use super::error::{Failure, Gone};
use super::rows::Header;
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
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
}

/// Hands every task to `each`, in order. The id is the highest that any row has.
pub(super) fn recover(
    database: &Database,
    each: &mut dyn FnMut(Recovered),
) -> Result<(RecoveryReport, Option<TaskId>), Failure> {
    let found = audit::walk(database, Depth::Whole, &mut drop)?;
    if let Some(first) = found.damaged.first() {
        return Err(first.clone().into());
    }
    if let Some(gone) = missing(database, &found) {
        return Err(Failure::Gone(gone));
    }
    database.adopt(found.highest, found.tallies);
    for (tree, key) in &found.orphans {
        database.take(*tree, key)?;
    }
    let handed_over = audit::walk(database, Depth::WithoutValues, each)?;
    if let Some(first) = handed_over.damaged.first() {
        return Err(first.clone().into());
    }
    let report = RecoveryReport {
        tasks: handed_over.tasks,
        value_bytes: handed_over.value_bytes,
        dead_letters: handed_over.dead_letters,
        orphans_removed: found.orphans.len() as u64,
        witnessed: true,
    };
    Ok((report, found.highest))
}

/// What must be there by the ledger, and is not.
pub(super) fn missing(database: &Database, found: &Found) -> Option<Gone> {
    let (ledger, binding) = database.ledger();
    let differ = ledger.tallies.differ(&found.counted).filter(|_| binding)?;
    Some(Gone(differ))
}

#[cfg(test)]
mod tests;
