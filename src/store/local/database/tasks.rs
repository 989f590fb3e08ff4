//! The rows of tasks: chunks, rows in `tasks`, progress and dead letters.

use std::iter;
use std::ops::Bound;

use bytes::Bytes;

use super::Database;
use crate::faults;
use crate::store::local::error::Failure;
use crate::store::local::keys::{self, Tree};
use crate::store::local::rows::{self, NewRow, Nodes, PackedTask, TaskStream};
use crate::store::records::Header;
use crate::task::{Idempotency, Progress, ReplicaIndex, Task, TaskId};

impl Database {
    /// Writes the first of these new tasks of one commit, and those that share its row; returns how
    /// many. Their ids ascend. Chunks come before the row, which includes the idempotency keys.
    pub(crate) fn insert<'a>(
        &self,
        tasks: impl IntoIterator<Item = (&'a Task, Option<&'a Idempotency>)>,
    ) -> Result<usize, Failure> {
        let mut tasks = tasks.into_iter();
        let Some((first, idempotency)) = tasks.next() else { return Ok(0) };
        if first.id <= self.highest() {
            // The ledger on disk counts all ids up to `highest`, but not this new task.
            self.begin_settling()?;
        }
        let stream = TaskStream::of(first, idempotency)?;
        for (number, bytes) in stream.chunks() {
            self.put(Tree::Values, &keys::of_chunk(first.id, number), &bytes)?;
        }
        faults::point("commit.chunks-written");
        let mut row = NewRow::of(first.id, &stream)?;
        let mut written = 1;
        for (task, idempotency) in tasks {
            if !row.add(task.id, &TaskStream::of(task, idempotency)?)? {
                break;
            }
            written += 1;
        }
        self.put(Tree::Tasks, &row.key(), row.payload())?;
        faults::point("commit.row-written");
        let mut write_state = self.write_state();
        write_state.ledger.highest = write_state.ledger.highest.max(row.last());
        Ok(written)
    }

    fn highest(&self) -> TaskId {
        self.write_state().ledger.highest
    }

    /// The row of `tasks` that holds this task, unless the task is settled. Then there may be none, or
    /// a row of other tasks.
    pub(crate) fn row_of(&self, id: TaskId) -> Result<Option<(sled::IVec, sled::IVec)>, Failure> {
        let key = keys::of_task(id);
        if let Some(row) = self.tasks.get(key)? {
            return Ok(Some(((&key).into(), row)));
        }
        let lowest = keys::of_task(TaskId(id.0.saturating_sub(rows::REACH)));
        Ok(self.tasks.range(lowest..key).next_back().transpose()?)
    }

    /// The last task that the row of `tasks` with the first task `first` can hold, whatever its bytes
    /// are: ids do not overlap, and a commit that a ledger counts is complete.
    pub(crate) fn last_in_reach(&self, first: TaskId) -> Result<TaskId, Failure> {
        let behind = (Bound::Excluded(keys::of_task(first)), Bound::Unbounded);
        let next = self.tasks.range(behind).keys().next().transpose()?;
        let next = next.and_then(|key| keys::task(&key)).filter(|next| *next > first);
        let reach = TaskId(first.0.saturating_add(rows::REACH));
        let last = next.map_or(reach, |next| reach.min(TaskId(next.0 - 1)));
        let highest = self.highest();
        Ok(if first <= highest { last.min(highest) } else { last })
    }

    /// Whether the task is on disk, or may be in a row that is damaged.
    pub(crate) fn may_hold(&self, id: TaskId) -> Result<bool, Failure> {
        let Some((key, row)) = self.row_of(id)? else { return Ok(false) };
        Ok(match rows::tasks(&key, &row) {
            Ok(tasks) => tasks.iter().any(|task| task.id == id),
            Err(_) => true,
        })
    }

    pub(crate) fn save(&self, id: TaskId, progress: &[Progress]) -> Result<(), Failure> {
        self.begin_settling()?;
        for (index, entry) in (0..=u16::MAX).zip(progress) {
            if let Progress::Dead(letter) = entry {
                let key = keys::of_dead_letter(id, ReplicaIndex(index));
                let payload = rows::dead_letter(letter)?;
                self.put(Tree::DeadLetters, &key, &payload)?;
                faults::point("settle.letter-written");
            }
        }
        let key = keys::of_task(id);
        if progress.iter().all(|entry| *entry == Progress::Untouched) {
            self.take(Tree::Progress, &key)?;
        } else {
            self.put(Tree::Progress, &key, &rows::progress(progress)?)?;
        }
        for entry in self.dead_letters.scan_prefix(key).keys() {
            let key = entry?;
            let replica = keys::dead_letter(&key).map(|(_, replica)| replica.get());
            let entry = replica.and_then(|replica| progress.get(replica));
            if !matches!(entry, Some(Progress::Dead(_))) {
                self.take(Tree::DeadLetters, &key)?;
            }
        }
        faults::point("settle.saved");
        Ok(())
    }

    /// Removes a task, and with it others of its row: `next` takes the next task to remove, if it is
    /// not above the given one. All of them leave the row in one write.
    pub(crate) fn remove(
        &self,
        id: TaskId,
        mut next: impl FnMut(TaskId) -> Option<TaskId>,
    ) -> Result<(), Failure> {
        let Some((key, row)) = self.row_of(id)? else {
            // Already removed; recovery has removed any orphans.
            return Ok(());
        };
        let Ok(tasks) = rows::tasks(&key, &row) else {
            return self.remove_damaged(id, &key);
        };
        let last = tasks.last().map_or(id, |task| task.id);
        let settled: Vec<_> = iter::once(id).chain(iter::from_fn(|| next(last))).collect();
        let is_settled = |id: TaskId| settled.binary_search(&id).is_ok();
        let removed: Vec<_> = tasks.iter().filter(|task| is_settled(task.id)).collect();
        let [first, ..] = removed[..] else { return Ok(()) };
        match rows::without(&key, &tasks, is_settled) {
            Some(payload) => {
                self.begin_settling()?;
                self.put(Tree::Tasks, &key, &payload)?;
            }
            None => drop(self.take(Tree::Tasks, &key)?),
        }
        faults::point("settle.row-removed");
        // Only a task that is alone in its row has chunks.
        for number in (0..).take(first.head.chunks()) {
            self.take(Tree::Values, &keys::of_chunk(first.id, number))?;
        }
        let to = removed.last().map_or(id, |task| task.id);
        self.remove_beside(Tree::Progress, first.id, to, is_settled)?;
        self.remove_beside(Tree::DeadLetters, first.id, to, is_settled)?;
        faults::point("settle.removed");
        Ok(())
    }

    /// Removes a damaged row if it can only be that of this task. Otherwise the row stays, because it
    /// may hold others, and the next start sets it aside.
    fn remove_damaged(&self, id: TaskId, key: &[u8]) -> Result<(), Failure> {
        if *key != keys::of_task(id) || self.last_in_reach(id)? != id {
            return Ok(());
        }
        self.take(Tree::Tasks, key)?;
        faults::point("settle.row-removed");
        // The row does not say how many chunks there are.
        for tree in [Tree::Values, Tree::Progress, Tree::DeadLetters] {
            self.remove_beside(tree, id, id, |_| true)?;
        }
        faults::point("settle.removed");
        Ok(())
    }

    /// Removes the rows of tasks between two ids from `tree`.
    fn remove_beside(
        &self,
        tree: Tree,
        from: TaskId,
        to: TaskId,
        is_settled: impl Fn(TaskId) -> bool,
    ) -> Result<(), Failure> {
        for key in self.rows_beside(tree, from, to).keys() {
            let key = key?;
            if keys::owner(&key).is_some_and(&is_settled) {
                self.take(tree, &key)?;
            }
        }
        Ok(())
    }

    /// The rows of the tasks from one id to another in `values`, `progress` or `dead_letters`.
    pub(crate) fn rows_beside(&self, tree: Tree, from: TaskId, to: TaskId) -> sled::Iter {
        let behind = to.0.checked_add(1).map(|next| keys::of_task(TaskId(next)));
        let end = behind.map_or(Bound::Unbounded, |key| Bound::Excluded(key.to_vec()));
        self.tree(tree).range((Bound::Included(keys::of_task(from).to_vec()), end))
    }

    /// `None` if the task is gone.
    pub(crate) fn read(&self, id: TaskId) -> Result<Option<Task>, Failure> {
        let read = self.read_stream(id, true, &mut Nodes::default())?;
        Ok(read.map(|(header, value)| header.into_task(value)))
    }

    /// The other tasks without chunks of the row of a task, and of the `more` rows behind it. What
    /// cannot be read is left out.
    pub(crate) fn read_beside(&self, id: TaskId, more: usize) -> Result<Vec<Task>, Failure> {
        let Some((key, row)) = self.row_of(id)? else { return Ok(Vec::new()) };
        let behind = (Bound::Excluded(key.clone()), Bound::Unbounded);
        let rows = iter::once(Ok((key, row))).chain(self.tasks.range(behind).take(more));
        let (mut tasks, mut nodes) = (Vec::new(), Nodes::default());
        for row in rows {
            let (key, row) = row?;
            let Ok(packed) = rows::tasks(&key, &row) else { break };
            let others = packed.into_iter().filter(|task| task.id != id);
            for PackedTask { id, head, .. } in others.filter(|task| task.head.chunks() == 0) {
                let read = decoded(id, &head, head.bytes.to_vec(), &mut nodes);
                tasks.extend(read.map(|(header, value)| header.into_task(value)));
            }
        }
        Ok(tasks)
    }

    pub(crate) fn header(&self, id: TaskId, nodes: &mut Nodes) -> Result<Option<Header>, Failure> {
        let read = self.read_stream(id, false, nodes)?;
        Ok(read.map(|(header, _)| header))
    }

    /// The value is complete only if `whole`. Otherwise reading stops after the envelope.
    fn read_stream(
        &self,
        id: TaskId,
        whole: bool,
        nodes: &mut Nodes,
    ) -> Result<Option<(Header, Bytes)>, Failure> {
        let Some((key, row)) = self.row_of(id)? else {
            return Ok(None);
        };
        let task = rows::tasks(&key, &row)?.into_iter().find(|task| task.id == id);
        let Some(PackedTask { head, .. }) = task else {
            return Ok(None);
        };
        let bytes = if whole { head.stream() } else { head.envelope };
        let mut stream = head.bytes.to_vec();
        for (at, number) in (0..head.chunks()).zip(0..) {
            if stream.len() >= bytes {
                break;
            }
            let chunk_key = keys::of_chunk(id, number);
            let Some(row) = self.values.get(chunk_key)? else {
                // The task may be being removed: then its own row is gone already.
                return match self.tasks.contains_key(&key)? {
                    true => Err(rows::damage(Tree::Values, &chunk_key, "is missing").into()),
                    false => Ok(None),
                };
            };
            stream.extend_from_slice(rows::chunk(&chunk_key, &row, &head, at)?);
        }
        let read = decoded(id, &head, stream, nodes);
        read.map(Some).ok_or_else(|| rows::undecodable(Tree::Tasks, &keys::of_task(id)).into())
    }
}

/// A task from its stream, which is complete or ends after the envelope.
fn decoded(
    id: TaskId,
    head: &rows::TaskHead<'_>,
    stream: Vec<u8>,
    nodes: &mut Nodes,
) -> Option<(Header, Bytes)> {
    let mut value = Bytes::from(stream);
    // Cannot panic: `rows::tasks` and `rows::chunk` check that the lengths add up.
    let envelope = value.split_to(head.envelope);
    Some((rows::header(id, &envelope, head.value, nodes)?, value))
}
