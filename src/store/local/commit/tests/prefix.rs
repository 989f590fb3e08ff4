//! Property test: wherever a crash cuts the rows that were written, a start finds a prefix of what was
//! handed in: tasks in the order of their ids, then settlements in the order of the ids.

use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::store::Recovered;
use crate::store::local::database::WrittenRow;
use crate::store::local::tests::{dead, untouched};
use crate::store::local::{SMALL_CACHE, open_sled};
use crate::task::{Cause, Progress};

/// The sizes of the new tasks of a turn, and then its settlements: of which task, and what.
type Turn = (Vec<usize>, Vec<(Index, u8)>);

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let bytes = prop_oneof![12 => 0..400usize, 1 => 400..4_200usize, 1 => Just(9_000usize)];
    let settlement = (any::<Index>(), 0..6u8);
    prop::collection::vec(
        (prop::collection::vec(bytes, 0..30), prop::collection::vec(settlement, 0..30)),
        1..5,
    )
}

type Held = BTreeMap<TaskId, Recovered>;

/// The states of the store in the order in which a crash can leave them.
#[derive(Default)]
struct States {
    held: Held,
    all: Vec<Held>,
}

impl States {
    fn next(&mut self, change: impl FnOnce(&mut Held)) {
        change(&mut self.held);
        self.all.push(self.held.clone());
    }

    /// A dead letter is written before the progress and removed after it, and counts as long as it is
    /// there.
    fn save(&mut self, id: TaskId, progress: &[Progress]) {
        let is_dead = |entry: &Progress| matches!(entry, Progress::Dead(_));
        for (at, letter) in progress.iter().enumerate().filter(|(_, entry)| is_dead(entry)) {
            self.next(|held| held.get_mut(&id).unwrap().progress[at] = letter.clone());
        }
        self.next(|held| {
            for (old, new) in held.get_mut(&id).unwrap().progress.iter_mut().zip(progress) {
                if !is_dead(old) {
                    *old = new.clone();
                }
            }
        });
        self.next(|held| held.get_mut(&id).unwrap().progress = progress.to_vec());
    }
}

/// Applies rows to a copy of a store.
fn replayed(base: &Path, rows: &[WrittenRow]) -> tempfile::TempDir {
    let copy = image(base);
    let db = open_sled(&copy.path().join("store-000001"), SMALL_CACHE).unwrap();
    for (tree, key, row) in rows {
        let tree = db.open_tree(tree.name()).unwrap();
        match row {
            Some(row) => drop(tree.insert(key, &**row).unwrap()),
            None => drop(tree.remove(key).unwrap()),
        }
    }
    db.flush().unwrap();
    copy
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..Default::default() })]

    #[test]
    fn a_crash_leaves_a_prefix_of_the_tasks_and_settlements(
        turns in turns(),
        cuts in prop::collection::vec(any::<Index>(), 8),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let (opened, ..) = open(dir.path());
        let base = image(dir.path());
        let database = opened.reader.files.database();
        database.record_rows();
        let (mut states, mut id) = (States::default(), opened.next_id.0);
        states.next(|_| {});
        // From how many rows on a state is confirmed.
        let mut confirmed = vec![];
        for (tasks, settlements) in turns {
            let rows = database.recorded_rows().len();
            let is_commit = !tasks.is_empty();
            let mut settle = BTreeMap::new();
            let tasks: Vec<_> = tasks.into_iter().map(|bytes| {
                id += 1;
                (large(id, bytes), (id % 3 == 0).then(|| idempotency(&format!("key {id}"))))
            }).collect();
            for (task, key) in &tasks {
                let found = Recovered { idempotency: key.clone(), ..untouched(task) };
                states.next(|held| drop(held.insert(task.id, found)));
            }
            let with_tasks = states.all.len() - 1;
            for (which, kind) in settlements {
                if states.held.is_empty() {
                    break;
                }
                let id = *which.get(&states.held.keys().copied().collect::<Vec<_>>());
                let is_new = states.held[&id].progress.iter().all(|one| *one == Progress::Untouched);
                settle.insert(id, match kind {
                    0 => Some(vec![failed(1), Progress::Delivered]),
                    1 if is_new => Some(vec![dead(Cause::GaveUp), failed(2)]),
                    _ => None,
                });
            }
            for (id, progress) in &settle {
                match progress {
                    Some(progress) => states.save(*id, progress),
                    None => states.next(|held| drop(held.remove(id))),
                }
            }
            run(&opened, |committer| {
                for (task, key) in tasks {
                    committer.accept(Arc::new(task), key, None);
                }
                // In any order.
                for (id, progress) in settle.into_iter().rev() {
                    match progress {
                        Some(progress) => committer.save(id, progress),
                        None => committer.remove(id),
                    }
                }
            });
            let written = database.recorded_rows();
            let ledger = written[rows..].iter().position(|(_, key, _)| **key == *keys::LEDGER);
            confirmed.extend(ledger.filter(|_| is_commit).map(|at| (rows + at + 1, with_tasks)));
            confirmed.push((written.len(), states.all.len() - 1));
        }
        let rows = database.recorded_rows();
        let mut cuts: Vec<_> = cuts.into_iter().map(|cut| cut.index(rows.len() + 1)).collect();
        cuts.push(rows.len());
        cuts.sort_unstable();
        let mut at_least = 0;
        for cut in cuts {
            let copy = replayed(base.path(), &rows[..cut]);
            let (again, found, report) = open(copy.path());
            prop_assert!(!report.rebuilt);
            let reached = confirmed.iter().filter(|(rows, _)| *rows <= cut).map(|(_, state)| *state);
            at_least = reached.max().unwrap_or(0).max(at_least);
            let state = states.all[at_least..].iter().position(|held| found.iter().eq(held.values()));
            prop_assert!(state.is_some(), "after {cut} of {} rows: {found:?}", rows.len());
            at_least += state.unwrap();
            let held = &states.all[at_least];
            for id in (opened.next_id.0..=id).map(TaskId) {
                let header = again.reader.read(id).unwrap().map(|task| Header::of(&task));
                prop_assert_eq!(header.as_ref(), held.get(&id).map(|task| &task.header));
            }
            for task in held.values() {
                let Some(Idempotency { key, .. }) = &task.idempotency else { continue };
                let row = again.idempotency.iter().find(|(known, _)| known == key);
                prop_assert_eq!(row.map(|(_, row)| row.task), Some(task.header.id));
            }
            close(again);
            let (again, same, report) = open(copy.path());
            prop_assert_eq!((same, report.orphans_removed), (found, 0));
            close(again);
        }
    }
}
