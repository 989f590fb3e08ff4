//! A snapshot: reads the store as it was between two commits, while the committer writes.
//!
//! It begins on the committer's thread, when everything written is durable. So it holds what a kill at
//! that instant would have left: all tasks up to the newest, with a prefix of their settlements. The
//! committer never waits for it: rows that change before they are read are kept
//! (`database/kept.rs`). Rows are read in small parts, each from the current database, so that a
//! compaction does not wait for a slow reader either.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::ops::Bound;
use std::sync::Arc;

use tracing::warn;

use super::Files;
use super::database::Database;
use super::database::kept::{self, KeptRows};
use super::error::{Damage, Failure, guarded};
use super::integrity::scan;
use super::keys::{self, Tree};
use super::rows::{self, Nodes, PackedTask};
use crate::store::journal::{SnapshotError, StoreSnapshot};
use crate::store::lines::format::{self, EndLine, HeadLine};
use crate::store::lines::{Exported, VERSION, write_line};
use crate::task::{Progress, Task, TaskId};

/// Rows that are read at once.
const PART: usize = 256;

pub(super) struct LocalSnapshot {
    files: Arc<Files>,
    through: TaskId,
    next_id: TaskId,
}

/// Why an export ended early.
enum Broken {
    Store(Failure),
    Output(io::Error),
}

impl From<Failure> for Broken {
    fn from(failure: Failure) -> Self {
        Self::Store(failure)
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl LocalSnapshot {
    /// Must be called by the committer, with nothing unflushed.
    pub(super) fn begin(
        files: Arc<Files>,
        database: &Database,
    ) -> Result<Box<dyn StoreSnapshot>, SnapshotError> {
        let through = database.ledger().0.highest;
        let unread = |failure: Failure| SnapshotError::Disk(io::Error::other(failure.to_string()));
        let next_id = database.sequence().map_err(unread)?.unwrap_or(TaskId(0));
        let mut kept = database.kept();
        if kept.is_some() {
            return Err(SnapshotError::Busy);
        }
        let rows = KeptRows::new(files.directory.path(), through).map_err(SnapshotError::Disk)?;
        *kept = Some(rows);
        drop(kept);
        Ok(Box::new(Self { files, through, next_id }))
    }

    /// One row of the snapshot.
    fn row(&self, tree: Tree, key: &[u8]) -> Result<Option<sled::IVec>, Failure> {
        let database = self.files.database();
        let row = database.tree(tree).get(key)?;
        // In this order: a row that changed before it was read is kept by now.
        let (place, file) = match &*database.kept() {
            Some(kept) => (kept.place(tree, key)?, kept.file()),
            None => return Ok(row),
        };
        place.map_or(Ok(row), |place| kept::read(&file, place))
    }

    /// The next rows of the snapshot between two keys; none at the end.
    fn rows(
        &self,
        tree: Tree,
        mut from: Bound<sled::IVec>,
        to: &Bound<sled::IVec>,
    ) -> Result<Vec<(sled::IVec, sled::IVec)>, Failure> {
        // A part without rows is not the end if all of its rows are new.
        loop {
            let database = self.files.database();
            let found = database.tree(tree).range((from.clone(), to.clone())).take(PART);
            let mut part = found.collect::<Result<BTreeMap<_, _>, _>>()?;
            // The part ends with the row that fills it, in the tree or among the kept rows.
            let mut last = to.clone();
            if part.len() == PART
                && let Some((key, _)) = part.last_key_value()
            {
                last = Bound::Included(key.clone());
            }
            let (places, file) = match &*database.kept() {
                Some(kept) => (kept.places(tree, from, &last, PART)?, Some(kept.file())),
                None => (Vec::new(), None),
            };
            if places.len() == PART
                && let Some((key, _)) = places.last()
            {
                last = Bound::Included(key.clone());
                part.retain(|row, _| row <= key);
            }
            for (key, place) in places {
                part.remove(&key);
                if let Some(file) = &file
                    && let Some(row) = kept::read(file, place)?
                {
                    part.insert(key, row);
                }
            }
            if !part.is_empty() || last == *to {
                return Ok(part.into_iter().collect());
            }
            from = match last {
                Bound::Included(key) | Bound::Excluded(key) => Bound::Excluded(key),
                Bound::Unbounded => Bound::Unbounded,
            };
        }
    }

    /// Passes each row between two keys to `each`.
    fn walk<E: From<Failure>>(
        &self,
        tree: Tree,
        mut from: Bound<sled::IVec>,
        to: &Bound<sled::IVec>,
        each: &mut dyn FnMut(&sled::IVec, &sled::IVec) -> Result<(), E>,
    ) -> Result<(), E> {
        loop {
            let part = guarded(|| self.rows(tree, from, to))?;
            let Some((last, _)) = part.last() else { return Ok(()) };
            for (key, row) in &part {
                each(key, row)?;
            }
            from = Bound::Excluded(last.clone());
        }
    }

    fn walk_tasks<E: From<Failure>>(
        &self,
        each: &mut dyn FnMut(&sled::IVec, &sled::IVec) -> Result<(), E>,
    ) -> Result<(), E> {
        let to = Bound::Excluded(kept::end_of(self.through));
        self.walk(Tree::Tasks, Bound::Unbounded, &to, each)
    }

    /// The rows of one task in a tree.
    fn rows_of(&self, tree: Tree, id: TaskId) -> Result<Vec<(sled::IVec, sled::IVec)>, Failure> {
        let from = Bound::Included((&keys::of_task(id)).into());
        let mut rows = Vec::new();
        self.walk(tree, from, &Bound::Excluded(kept::end_of(id)), &mut |key, row| {
            rows.push((key.clone(), row.clone()));
            Ok::<_, Failure>(())
        })?;
        Ok(rows)
    }

    fn task(
        &self,
        PackedTask { id, head, .. }: &PackedTask<'_>,
        nodes: &mut Nodes,
    ) -> Result<(Task, Vec<Progress>), Failure> {
        let mut stream = Vec::with_capacity(head.stream());
        stream.extend_from_slice(head.bytes);
        for (at, number) in (0..head.chunks()).zip(0..) {
            let key = keys::of_chunk(*id, number);
            let row = self.row(Tree::Values, &key)?;
            let row = row.ok_or_else(|| rows::damage(Tree::Values, &key, "is missing"))?;
            stream.extend_from_slice(rows::chunk(&key, &row, head, at)?);
        }
        let mut value = bytes::Bytes::from(stream);
        // Cannot panic: `rows::tasks` and `rows::chunk` check that the lengths add up.
        let envelope = value.split_to(head.envelope);
        let header = rows::header(*id, &envelope, head.value, nodes)
            .ok_or_else(|| rows::undecodable(Tree::Tasks, &keys::of_task(*id)))?;
        let key = keys::of_task(*id);
        let row = self.row(Tree::Progress, &key)?;
        let letters = self.rows_of(Tree::DeadLetters, *id)?;
        let row = row.as_ref().map(|row| (&key[..], &**row));
        let letters = letters.iter().map(|(key, row)| (&**key, &**row));
        let progress = rows::progress_of(*id, header.replicas.len(), row, letters)?;
        Ok((header.into_task(value), progress))
    }

    fn write_all(&self, out: &mut dyn Write) -> Result<Exported, Broken> {
        let mut expected = 0;
        self.walk_tasks(&mut |key, row| {
            expected += rows::tasks(key, row).map_or(1, |tasks| tasks.len() as u64);
            Ok::<_, Failure>(())
        })?;
        let (tasks, next_id) = (expected, self.next_id.0);
        write_line(out, &HeadLine { export: VERSION, tasks, next_id })?;
        let (mut tasks, mut problems, mut nodes) = (0, Vec::new(), Nodes::default());
        self.walk_tasks::<Broken>(&mut |key, row| {
            let packed = match rows::tasks(key, row) {
                Ok(packed) => packed,
                Err(damage) => {
                    problems.push(damage.to_string());
                    return Ok(());
                }
            };
            for task in &packed {
                match guarded(|| self.task(task, &mut nodes)) {
                    Ok((task, progress)) => {
                        write_line(out, &format::line(&task, &progress))?;
                        tasks += 1;
                    }
                    Err(Failure::Damaged(damage)) => problems.push(damage.to_string()),
                    Err(failure) => return Err(failure.into()),
                }
            }
            if let Some(last) = packed.last()
                && let Some(kept) = &mut *self.files.database().kept()
            {
                kept.pass(last.id);
            }
            Ok(())
        })?;
        let (mut replicas, mut idempotency_keys) = (0, 0);
        let all = Bound::Unbounded;
        let mut damaged = |damage: Damage| problems.push(damage.to_string());
        self.walk::<Broken>(Tree::Replicas, Bound::Unbounded, &all, &mut |key, row| {
            match scan::replica(key, row) {
                Ok((node, row)) => {
                    write_line(out, &format::replica_line(&node, &row))?;
                    replicas += 1;
                }
                Err(damage) => damaged(damage),
            }
            Ok(())
        })?;
        self.walk::<Broken>(Tree::Idempotency, Bound::Unbounded, &all, &mut |key, row| {
            match scan::idempotency(key, row) {
                // Of a task that came later.
                Ok((_, row)) if row.task > self.through => {}
                Ok((key, row)) => {
                    write_line(out, &format::key_line(&key, &row))?;
                    idempotency_keys += 1;
                }
                Err(damage) => damaged(damage),
            }
            Ok(())
        })?;
        let skipped = expected.saturating_sub(tasks);
        write_line(out, &EndLine { end: 1, tasks, skipped, replicas, idempotency_keys })?;
        out.flush()?;
        Ok(Exported { tasks, problems })
    }
}

impl StoreSnapshot for LocalSnapshot {
    fn write(self: Box<Self>, out: &mut dyn Write) -> io::Result<Exported> {
        let exported = self.write_all(out).map_err(|broken| match broken {
            Broken::Store(failure) => io::Error::other(failure.to_string()),
            Broken::Output(error) => error,
        })?;
        for problem in &exported.problems {
            warn!(error = %problem, "a snapshot lacks a row that cannot be read");
        }
        Ok(exported)
    }
}

impl fmt::Debug for LocalSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalSnapshot").field("through", &self.through).finish_non_exhaustive()
    }
}

impl Drop for LocalSnapshot {
    fn drop(&mut self) {
        // Freed after the lock, for which the committer may wait.
        let kept = self.files.database().kept().take();
        drop(kept);
    }
}

#[cfg(test)]
mod tests;
