//! Reads and checks every row once, for recovery and `replicator check`. Changes nothing.
//!
//! The four trees of tasks are walked side by side, in the order of the task id that all their keys
//! begin with. Only problems are collected, so memory does not grow with the number of tasks. A row
//! whose task is gone is an orphan, left by a crash between two writes.
//!
//! Then follow the two side tables, `replicas` and `idempotency`. They are collected, because the
//! daemon holds them in memory anyway.

use std::collections::BTreeMap;

use super::ledger::{COUNTED, Tallies};
use crate::store::local::database::Database;
use crate::store::local::error::{Damage, Failure};
use crate::store::local::keys::{self, Tree};
use crate::store::local::rows::{self, Nodes, PackedTask, TaskHead};
use crate::store::records::{IdempotencyRow, Recovered, ReplicaRow};
use crate::task::{Idempotency, Node, Progress, TaskId};

#[derive(Debug, Default)]
pub(crate) struct Scan {
    pub(crate) tasks: u64,
    pub(crate) value_bytes: u64,
    pub(crate) dead_letters: u64,
    /// The highest task id in any row.
    pub(crate) highest: Option<TaskId>,
    pub(crate) live_bytes: u64,
    pub(crate) tallies: Tallies,
    /// Only the rows up to the ledger's highest task.
    pub(crate) counted: Tallies,
    /// Trees with a row that fails its checksum: the sum of such a tree proves nothing.
    pub(crate) broken: Vec<Tree>,
    pub(crate) orphans: Vec<(Tree, sled::IVec)>,
    /// An orphan belongs to a task that the ledger knows as settled: removed rows are back, and no
    /// crash explains that.
    pub(crate) returned: bool,
    /// A tree with progress that no task was read with, and no crash explains that: it fails its
    /// checksum under its key, or its task is there.
    pub(crate) misplaced: Option<Tree>,
    /// The first damaged row of each task, each damaged row of several tasks, and each damaged row
    /// without a task.
    pub(crate) damaged: Vec<Damage>,
    pub(crate) side_tables: SideTables,
    /// Keys without a row of their own, from the rows of their tasks. `side_tables` has them too.
    pub(crate) keyless: BTreeMap<Box<str>, IdempotencyRow>,
}

/// The rows that belong to no task, in the order of their keys.
#[derive(Debug, Default)]
pub(crate) struct SideTables {
    pub(crate) replicas: Vec<(Node, ReplicaRow)>,
    pub(crate) idempotency: Vec<(Box<str>, IdempotencyRow)>,
}

/// Passes every intact task to `each`, in order.
pub(crate) fn walk(database: &Database, each: &mut dyn FnMut(Recovered)) -> Result<Scan, Failure> {
    let mut walk = Walk::of(database);
    for row in &database.tasks {
        let (key, row) = row?;
        walk.count(Tree::Tasks, &key, &row);
        let Some(first) = keys::task(&key) else {
            walk.found.damaged.push(unknown_key(Tree::Tasks, &key));
            continue;
        };
        let tasks = match walk.tasks(&key, &row) {
            Ok(tasks) => tasks,
            Err(Failure::Damaged(damage)) => {
                walk.lose(damage, first, database.last_in_reach(first)?)?;
                continue;
            }
            Err(failure) => return Err(failure),
        };
        for PackedTask { id, head, .. } in tasks {
            match walk.task(id, &head) {
                Ok(recovered) => {
                    walk.found.tasks += 1;
                    walk.found.value_bytes += recovered.header.value_bytes as u64;
                    let dead = |entry: &&Progress| matches!(entry, Progress::Dead(_));
                    let dead = recovered.progress.iter().filter(dead).count();
                    walk.found.dead_letters += dead as u64;
                    walk.check_key(&recovered)?;
                    each(recovered);
                }
                Err(Failure::Damaged(damage)) => walk.lose(damage, id, id)?,
                Err(failure) => return Err(failure),
            }
        }
    }
    // Rows behind the last task.
    for tree in [Tree::Values, Tree::Progress, Tree::DeadLetters] {
        while let Some((key, row)) = walk.advance(tree)? {
            walk.without_task(tree, key, &row)?;
        }
    }
    walk.side_tables()?;
    Ok(walk.found)
}

const NOT_FOUND: &str = "is not found by its key";

struct Walk<'a> {
    database: &'a Database,
    /// The last task of the rows of `tasks` so far.
    last: Option<TaskId>,
    values: Cursor,
    progress: Cursor,
    dead_letters: Cursor,
    nodes: Nodes,
    found: Scan,
    counted_up_to: TaskId,
    /// The trees must match the ledger.
    binds: bool,
}

type KeyAndRow = (sled::IVec, sled::IVec);

struct Cursor {
    rest: sled::Iter,
    /// Read, but not consumed yet.
    next: Option<KeyAndRow>,
}

impl<'a> Walk<'a> {
    fn of(database: &'a Database) -> Self {
        let (ledger, binds) = database.ledger();
        let cursor = |tree| Cursor { rest: database.tree(tree).iter(), next: None };
        Self {
            database,
            last: None,
            values: cursor(Tree::Values),
            progress: cursor(Tree::Progress),
            dead_letters: cursor(Tree::DeadLetters),
            nodes: Nodes::default(),
            found: Scan::default(),
            counted_up_to: ledger.highest,
            binds,
        }
    }

    /// The tasks of a row of `tasks`, which must also be found by the ids of the first and the last.
    fn tasks<'b>(&mut self, key: &[u8], row: &'b [u8]) -> Result<Vec<PackedTask<'b>>, Failure> {
        self.check_index(Tree::Tasks, key, row)?;
        let tasks = rows::tasks(key, row)?;
        let ids = tasks.first().zip(tasks.last()).map(|(first, last)| (first.id, last.id));
        let Some((first, last)) = ids else {
            return Err(rows::undecodable(Tree::Tasks, key).into());
        };
        if self.last.is_some_and(|before| before >= first) {
            return Err(rows::damage(Tree::Tasks, key, "overlaps the row before it").into());
        }
        self.last = Some(last);
        self.found.highest = self.found.highest.max(Some(last));
        let is_found = |(found, _): (sled::IVec, sled::IVec)| *found == *key;
        if *key != keys::of_task(last) && !self.database.row_of(last)?.is_some_and(is_found) {
            return Err(rows::damage(Tree::Tasks, key, NOT_FOUND).into());
        }
        Ok(tasks)
    }

    /// Takes note of damage that makes the tasks between two ids unreadable, and skips their rows.
    fn lose(&mut self, damage: Damage, first: TaskId, last: TaskId) -> Result<(), Failure> {
        self.found.highest = self.found.highest.max(Some(last));
        self.found.damaged.push(Damage { last: (last > first).then_some(last), ..damage });
        for tree in [Tree::Values, Tree::Progress, Tree::DeadLetters] {
            while self.next_between(tree, first, last)?.is_some() {}
        }
        Ok(())
    }

    fn task(&mut self, id: TaskId, head: &TaskHead<'_>) -> Result<Recovered, Failure> {
        let spilled = self.chunks(id, head)?;
        let envelope = spilled.as_deref().unwrap_or(head.bytes);
        let nodes = &mut self.nodes;
        let (header, idempotency) = envelope
            .get(..head.envelope)
            .and_then(|envelope| rows::header_and_key(id, envelope, head.value, nodes))
            .ok_or_else(|| rows::undecodable(Tree::Tasks, &keys::of_task(id)))?;
        let progress = self.progress(id, header.replicas.len())?;
        Ok(Recovered { header, idempotency, progress, is_awaited: false })
    }

    /// Checks that all chunks are present. Returns the stream up to the end of the envelope if the
    /// row itself does not hold all of it.
    fn chunks(&mut self, id: TaskId, head: &TaskHead<'_>) -> Result<Option<Vec<u8>>, Failure> {
        let mut spilled = (head.envelope > head.bytes.len()).then(|| head.bytes.to_vec());
        for (at, number) in (0..head.chunks()).zip(0..) {
            let expected = keys::of_chunk(id, number);
            let missing = || rows::damage(Tree::Values, &expected, "is missing");
            let (key, row) = self.next_of(Tree::Values, id)?.ok_or_else(missing)?;
            if *key != expected {
                return Err(missing().into());
            }
            self.check_index(Tree::Values, &key, &row)?;
            let payload = rows::chunk(&key, &row, head, at)?;
            if let Some(stream) = &mut spilled
                && stream.len() < head.envelope
            {
                stream.extend_from_slice(payload);
            }
        }
        match self.next_of(Tree::Values, id)? {
            Some((key, _)) => Err(rows::damage(Tree::Values, &key, "belongs to no value").into()),
            None => Ok(spilled),
        }
    }

    fn progress(&mut self, id: TaskId, replicas: usize) -> Result<Vec<Progress>, Failure> {
        let row = self.next_of(Tree::Progress, id)?;
        let mut letters = Vec::new();
        while let Some(letter) = self.next_of(Tree::DeadLetters, id)? {
            letters.push(letter);
        }
        let row = row.as_ref().map(|(key, row)| (&**key, &**row));
        let letters = letters.iter().map(|(key, row)| (&**key, &**row));
        Ok(rows::progress_of(id, replicas, row, letters)?)
    }

    /// Checks that a row found by iteration is also found by its key, as a later read will look it
    /// up. If a page of sled's index is damaged, the two can differ.
    fn check_index(&self, tree: Tree, key: &[u8], row: &[u8]) -> Result<(), Failure> {
        match self.database.tree(tree).get(key)? {
            Some(found) if *found == *row => Ok(()),
            Some(_) | None => Err(rows::damage(tree, key, NOT_FOUND).into()),
        }
    }

    /// Collects the idempotency key of a task if the key's own row is missing, damaged, or still
    /// that of an earlier task. The row is written after the task's row, so a crash can separate
    /// them; but only behind the ledger. Before it, a missing key was forgotten on purpose.
    fn check_key(&mut self, task: &Recovered) -> Result<(), Failure> {
        let Recovered { header, idempotency: Some(Idempotency { key, fingerprint }), .. } = task
        else {
            return Ok(());
        };
        let is_new = !self.binds || header.id > self.counted_up_to;
        let row = self.database.tree(Tree::Idempotency).get(key.as_bytes())?;
        let is_keyless = match row.map(|row| idempotency(key.as_bytes(), &row)) {
            None => is_new,
            Some(Ok((_, row))) => is_new && row.task < header.id,
            Some(Err(_)) => true,
        };
        if is_keyless {
            let at = header.accepted_at;
            let row =
                IdempotencyRow { task: header.id, fingerprint: *fingerprint, at, answer: None };
            // Tasks come in order, so the last one with this key wins.
            self.found.keyless.insert(key.clone(), row);
        }
        Ok(())
    }

    fn side_tables(&mut self) -> Result<(), Failure> {
        self.found.side_tables.replicas = self.side_table(Tree::Replicas, replica)?;
        let mut keys = self.side_table(Tree::Idempotency, idempotency)?;
        if !self.found.keyless.is_empty() {
            let mut all: BTreeMap<_, _> = keys.into_iter().collect();
            all.extend(self.found.keyless.clone());
            keys = all.into_iter().collect();
        }
        self.found.side_tables.idempotency = keys;
        Ok(())
    }

    fn side_table<T>(
        &mut self,
        tree: Tree,
        read: fn(&[u8], &[u8]) -> Result<T, Damage>,
    ) -> Result<Vec<T>, Failure> {
        let mut entries = Vec::new();
        for row in self.database.tree(tree) {
            let (key, row) = row?;
            self.count(tree, &key, &row);
            match read(&key, &row) {
                Ok(entry) => entries.push(entry),
                Err(damage) => self.found.damaged.push(damage),
            }
        }
        Ok(entries)
    }

    fn cursor(&mut self, tree: Tree) -> &mut Cursor {
        match tree {
            Tree::Progress => &mut self.progress,
            Tree::DeadLetters => &mut self.dead_letters,
            Tree::Meta | Tree::Tasks | Tree::Values | Tree::Replicas | Tree::Idempotency => {
                &mut self.values
            }
        }
    }

    /// The next row of this task in `tree`. Must be called with ascending ids.
    fn next_of(&mut self, tree: Tree, id: TaskId) -> Result<Option<KeyAndRow>, Failure> {
        self.next_between(tree, id, id)
    }

    fn next_between(
        &mut self,
        tree: Tree,
        first: TaskId,
        last: TaskId,
    ) -> Result<Option<KeyAndRow>, Failure> {
        while let Some((key, row)) = self.advance(tree)? {
            match keys::owner(&key) {
                Some(owner) if (first..=last).contains(&owner) => return Ok(Some((key, row))),
                Some(owner) if owner > last => {
                    self.cursor(tree).next = Some((key, row));
                    return Ok(None);
                }
                _ => self.without_task(tree, key, &row)?,
            }
        }
        Ok(None)
    }

    fn advance(&mut self, tree: Tree) -> Result<Option<KeyAndRow>, Failure> {
        let cursor = self.cursor(tree);
        if let Some(row) = cursor.next.take() {
            return Ok(Some(row));
        }
        let Some((key, row)) = cursor.rest.next().transpose()? else {
            return Ok(None);
        };
        self.count(tree, &key, &row);
        Ok(Some((key, row)))
    }

    fn count(&mut self, tree: Tree, key: &[u8], row: &[u8]) {
        let owner = tree.owner(key);
        self.found.highest = self.found.highest.max(owner);
        self.found.live_bytes += (key.len() + row.len()) as u64;
        self.found.tallies.replace(tree, None, Some(row));
        if owner.is_none_or(|owner| owner <= self.counted_up_to) {
            self.found.counted.replace(tree, None, Some(row));
        }
        let known = !COUNTED.contains(&tree) || self.found.broken.contains(&tree);
        if !known && rows::unseal(tree, key, row).is_err() {
            self.found.broken.push(tree);
        }
    }

    fn without_task(&mut self, tree: Tree, key: sled::IVec, row: &[u8]) -> Result<(), Failure> {
        let owner = keys::owner(&key);
        if matches!(tree, Tree::Progress | Tree::DeadLetters) {
            // In a damaged store, an iterator can go on after it has returned `None`.
            let is_late = match owner {
                Some(id) => self.database.may_hold(id)?,
                None => false,
            };
            if is_late || rows::unseal(tree, &key, row).is_err() {
                self.found.misplaced.get_or_insert(tree);
            }
        }
        match owner {
            Some(owner) => {
                self.found.returned |= self.binds && owner <= self.counted_up_to;
                self.found.orphans.push((tree, key));
            }
            None => self.found.damaged.push(unknown_key(tree, &key)),
        }
        Ok(())
    }
}

/// Skips damaged rows.
pub(crate) fn replicas(database: &Database) -> Result<Vec<(Node, ReplicaRow)>, Failure> {
    let mut found = Vec::new();
    for row in database.tree(Tree::Replicas).iter() {
        let (key, row) = row?;
        found.extend(replica(&key, &row).ok());
    }
    Ok(found)
}

pub(crate) fn replica(key: &[u8], row: &[u8]) -> Result<(Node, ReplicaRow), Damage> {
    let tree = Tree::Replicas;
    let row = rows::read(tree, key, row, rows::read_replica)?;
    let node = std::str::from_utf8(key).map_err(|_| unknown_key(tree, key))?;
    Ok((Node::from_normal(node), row))
}

pub(crate) fn idempotency(key: &[u8], row: &[u8]) -> Result<(Box<str>, IdempotencyRow), Damage> {
    let tree = Tree::Idempotency;
    let row = rows::read(tree, key, row, rows::read_idempotency)?;
    let key = std::str::from_utf8(key).map_err(|_| unknown_key(tree, key))?;
    Ok((key.into(), row))
}

fn unknown_key(tree: Tree, key: &[u8]) -> Damage {
    rows::damage(tree, key, "has a key that was never written")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::local::tests::{accept, close, dead, failed, open, small};
    use crate::task::Cause;

    #[test]
    fn progress_that_comes_after_its_task_was_read_is_no_orphan() {
        for (tree, progress) in [
            (Tree::Progress, [failed(1), failed(2)]),
            (Tree::DeadLetters, [dead(Cause::GaveUp), failed(2)]),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let (opened, ..) = open(dir.path());
            for id in 1..=2 {
                accept(&opened, &small(id)).unwrap();
            }
            opened.committer.save(TaskId(1), progress.to_vec());
            close(opened);
            let (opened, ..) = open(dir.path());
            let database = opened.reader.files.database();
            let mut walk = Walk::of(&database);
            // As if the iterator had returned no row for the first task.
            assert_eq!(walk.next_of(tree, TaskId(2)), Ok(None));
            assert_eq!(walk.found.misplaced, Some(tree));
        }
    }
}
