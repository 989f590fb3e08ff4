//! The rows of a task: its chunks, its row in `tasks`, its progress and dead letters.

use bytes::Bytes;

use super::Database;
use crate::faults;
use crate::store::local::error::Failure;
use crate::store::local::keys::{self, Tree};
use crate::store::local::rows::{self, Nodes, TaskHead, TaskStream};
use crate::store::records::Header;
use crate::task::{Idempotency, Progress, ReplicaIndex, Task, TaskId};

impl Database {
    /// Writes a new task: its chunks, then its row, which includes the idempotency key.
    pub(crate) fn insert(
        &self,
        task: &Task,
        idempotency: Option<&Idempotency>,
    ) -> Result<(), Failure> {
        if task.id <= self.write_state().ledger.highest {
            // The ledger on disk counts all ids up to `highest`, but not this new task.
            self.begin_settling()?;
        }
        let stream = TaskStream::of(task, idempotency)?;
        for (number, bytes) in stream.chunks() {
            self.put(Tree::Values, &keys::of_chunk(task.id, number), &bytes)?;
        }
        faults::point("commit.chunks-written");
        self.put(Tree::Tasks, &keys::of_task(task.id), &stream.head()?)?;
        faults::point("commit.row-written");
        let mut write_state = self.write_state();
        write_state.ledger.highest = write_state.ledger.highest.max(task.id);
        Ok(())
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

    pub(crate) fn remove(&self, id: TaskId) -> Result<(), Failure> {
        let key = keys::of_task(id);
        let Some(row) = self.take(Tree::Tasks, &key)? else {
            // Already removed; recovery has removed any orphans.
            return Ok(());
        };
        faults::point("settle.row-removed");
        match TaskHead::read(&key, &row) {
            Ok(head) => {
                for number in (0..).take(head.chunks()) {
                    self.take(Tree::Values, &keys::of_chunk(id, number))?;
                }
            }
            // A damaged row does not say how many chunks there are. The scan is slower.
            Err(_) => {
                for entry in self.values.scan_prefix(key).keys() {
                    self.take(Tree::Values, &entry?)?;
                }
            }
        }
        self.take(Tree::Progress, &key)?;
        for entry in self.dead_letters.scan_prefix(key).keys() {
            self.take(Tree::DeadLetters, &entry?)?;
        }
        faults::point("settle.removed");
        Ok(())
    }

    /// `None` if the task is gone.
    pub(crate) fn read(&self, id: TaskId) -> Result<Option<Task>, Failure> {
        let read = self.read_stream(id, true, &mut Nodes::default())?;
        Ok(read.map(|(header, value)| header.into_task(value)))
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
        let task_key = keys::of_task(id);
        let Some(row) = self.tasks.get(task_key)? else {
            return Ok(None);
        };
        let head = TaskHead::read(&task_key, &row)?;
        let bytes = if whole { head.stream() } else { head.envelope };
        let mut stream = head.bytes.to_vec();
        for (at, number) in (0..head.chunks()).zip(0..) {
            if stream.len() >= bytes {
                break;
            }
            let key = keys::of_chunk(id, number);
            let Some(row) = self.values.get(key)? else {
                // The task may be being removed: then its own row is gone already.
                return match self.tasks.contains_key(task_key)? {
                    true => Err(rows::damage(Tree::Values, &key, "is missing").into()),
                    false => Ok(None),
                };
            };
            stream.extend_from_slice(rows::chunk(&key, &row, &head, at)?);
        }
        let mut value = Bytes::from(stream);
        // Cannot panic: `TaskHead` and `rows::chunk` check that the lengths add up.
        let envelope = value.split_to(head.envelope);
        let header = rows::header(id, &envelope, head.value, nodes)
            .ok_or_else(|| rows::undecodable(Tree::Tasks, &task_key))?;
        Ok(Some((header, value)))
    }
}
