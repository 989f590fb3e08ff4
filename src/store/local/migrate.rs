//! Brings a store to the format of this binary, step by step.
//!
//! The steps are the files of `migrations/`, whose README has the rules. The version is written
//! after each step, and both are durable before the next one: after a crash the interrupted step
//! runs again from its beginning.

#[path = "../../../migrations/v0001_initial.rs"]
mod v0001_initial;
#[path = "../../../migrations/v0002_ledger.rs"]
mod v0002_ledger;
#[path = "../../../migrations/v0003_operators.rs"]
mod v0003_operators;
#[path = "../../../migrations/v0004_key_in_task.rs"]
mod v0004_key_in_task;
#[path = "../../../migrations/v0005_refused.rs"]
mod v0005_refused;
#[path = "../../../migrations/v0006_shared_rows.rs"]
mod v0006_shared_rows;
#[path = "../../../migrations/v0007_limits.rs"]
mod v0007_limits;

use super::error::Failure;
use super::integrity::ledger::Ledger;
use super::keys::{self, Tree};
use super::rows;
use crate::faults;

type MigrationStep = fn(&sled::Db) -> sled::Result<()>;

/// The n-th step leads to version n; a new store has version 0.
const STEPS: &[MigrationStep] = &[
    v0001_initial::run,
    v0002_ledger::run,
    v0003_operators::run,
    v0004_key_in_task::run,
    v0005_refused::run,
    v0006_shared_rows::run,
    v0007_limits::run,
];

/// Runs the missing steps. Refuses a store in a newer format.
pub(super) fn run(db: &sled::Db) -> Result<(), Failure> {
    run_steps(db, STEPS)
}

/// Writes a new ledger for a store whose ledger cannot be read.
pub(super) fn recount(db: &sled::Db) -> Result<(), Failure> {
    v0002_ledger::run(db)?;
    v0003_operators::run(db)?;
    let meta = db.open_tree(Tree::Meta.name())?;
    if let Some(mut ledger) = Ledger::load(&meta)? {
        // These steps take the key of a row for its last task.
        ledger.highest.0 = ledger.highest.0.saturating_add(rows::REACH);
        meta.insert(keys::LEDGER, rows::seal(Tree::Meta, keys::LEDGER, &ledger.payload()))?;
    }
    Ok(())
}

fn run_steps(db: &sled::Db, steps: &[MigrationStep]) -> Result<(), Failure> {
    let meta = db.open_tree(Tree::Meta.name())?;
    let found = version(&meta)?;
    let mut known = 0;
    for (number, step) in (1..).zip(steps) {
        known = number;
        if number > found {
            faults::point("migrate.begun");
            step(db)?;
            faults::point("migrate.stepped");
            db.flush()?;
            faults::point("migrate.flushed");
            set_version(&meta, number)?;
            faults::point("migrate.versioned");
            db.flush()?;
            faults::point("migrate.done");
        }
    }
    if found > known { Err(Failure::Newer { found, known }) } else { Ok(()) }
}

/// The version of a store; 0 if it is new.
pub(super) fn version(meta: &sled::Tree) -> Result<u32, Failure> {
    let number = |payload: &[u8]| Some(u32::from_be_bytes(payload.try_into().ok()?));
    Ok(rows::read_meta(meta, keys::FORMAT_VERSION, number)?.unwrap_or(0))
}

fn set_version(meta: &sled::Tree, version: u32) -> Result<(), Failure> {
    let key = keys::FORMAT_VERSION;
    meta.insert(key, rows::seal(Tree::Meta, key, &version.to_be_bytes()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::local::integrity::ledger::Tallies;
    use crate::task::TaskId;

    fn memory() -> sled::Db {
        sled::Config::new().temporary(true).open().unwrap()
    }

    #[test]
    fn a_new_store_runs_every_step_once() {
        fn count(db: &sled::Db) -> sled::Result<()> {
            let runs = db.get("runs")?.map_or(0, |runs| runs[0]);
            db.insert("runs", &[runs + 1])?;
            Ok(())
        }
        let db = memory();
        for _ in 0..2 {
            run_steps(&db, &[count, count]).unwrap();
            assert_eq!(db.get("runs").unwrap().unwrap()[0], 2);
        }
        run_steps(&db, &[count, count, count]).unwrap();
        assert_eq!(db.get("runs").unwrap().unwrap()[0], 3);
    }

    #[test]
    fn a_step_that_fails_runs_again_and_the_steps_before_it_do_not() {
        fn first(db: &sled::Db) -> sled::Result<()> {
            assert!(db.insert("first", b"")?.is_none());
            Ok(())
        }
        fn fails_once(db: &sled::Db) -> sled::Result<()> {
            match db.insert("second", b"")? {
                None => Err(sled::Error::Unsupported("not today".into())),
                Some(_) => Ok(()),
            }
        }
        let db = memory();
        assert!(run_steps(&db, &[first, fails_once]).is_err());
        run_steps(&db, &[first, fails_once]).unwrap();
    }

    #[test]
    fn the_ledger_of_a_store_of_format_1_is_what_its_rows_add_up_to() {
        let db = memory();
        run_steps(&db, &STEPS[..1]).unwrap();
        let mut tallies = Tallies::default();
        for (tree, ids) in [(Tree::Tasks, 1..9), (Tree::Progress, 3..5), (Tree::DeadLetters, 7..8)]
        {
            for id in ids {
                let key = keys::of_task(TaskId(id));
                let row = rows::seal(tree, &key, &[7]);
                tallies.replace(tree, None, Some(&row));
                db.open_tree(tree.name()).unwrap().insert(key, row).unwrap();
            }
        }
        let ledger = Ledger { number: 0, highest: TaskId(8), tallies };
        let meta = db.open_tree("meta").unwrap();
        // The second time as after a crash before the version was written.
        for _ in 0..2 {
            v0002_ledger::run(&db).unwrap();
            assert_eq!(Ledger::load(&meta).unwrap(), Some(ledger));
            assert_eq!(version(&meta).unwrap(), 1);
        }
        run(&db).unwrap();
        assert_eq!(version(&meta).unwrap(), 7);
        assert_eq!(Ledger::load(&meta).unwrap(), Some(ledger));
    }

    #[test]
    fn a_store_of_a_newer_release_is_not_changed() {
        let db = memory();
        set_version(&db.open_tree("meta").unwrap(), 8).unwrap();
        assert_eq!(run(&db), Err(Failure::Newer { found: 8, known: 7 }));
        assert_eq!(db.tree_names().len(), 2);
    }
}
