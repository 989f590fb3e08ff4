//! Reads what is on disk, once, at the start: every live task in the order of acceptance.
//!
//! The four trees are walked side by side, in the order of their common prefix, the task's id.
//! Nothing is collected, so a million tasks cost no more memory than one, and every byte that is
//! trusted later is checked here. A row whose task is gone is an orphan, left by a crash between
//! two writes, and is removed.

use super::database::Database;
use super::error::{Damage, Failure};
use super::keys::{self, Tree};
use super::rows::{self, Head, Header, Nodes};
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
}

/// Hands every task to `each`, in order. The id is that of the last one.
pub(super) fn scan(
    database: &Database,
    each: &mut dyn FnMut(Recovered),
) -> Result<(RecoveryReport, Option<TaskId>), Failure> {
    let mut walk = Walk {
        values: Cursor::new(Tree::Values, &database.values),
        progress: Cursor::new(Tree::Progress, &database.progress),
        dead_letters: Cursor::new(Tree::DeadLetters, &database.dead_letters),
        nodes: Nodes::default(),
    };
    let mut report = RecoveryReport::default();
    let mut last = None;
    for row in &database.tasks {
        let (key, row) = row?;
        let id = keys::task(&key).ok_or_else(|| no_such_key(Tree::Tasks, &key))?;
        let recovered = walk.task(id, &key, &row)?;
        last = Some(id);
        report.tasks += 1;
        report.value_bytes += recovered.header.value_bytes as u64;
        let dead = |entry: &&Progress| matches!(entry, Progress::Dead(_));
        report.dead_letters += recovered.progress.iter().filter(dead).count() as u64;
        each(recovered);
    }
    for cursor in [walk.values, walk.progress, walk.dead_letters] {
        report.orphans_removed += cursor.finish()?;
    }
    Ok((report, last))
}

struct Walk {
    values: Cursor,
    progress: Cursor,
    dead_letters: Cursor,
    nodes: Nodes,
}

impl Walk {
    /// Puts together what belongs to one task.
    fn task(&mut self, id: TaskId, key: &[u8], row: &[u8]) -> Result<Recovered, Failure> {
        let head = Head::read(key, row)?;
        let spilled = self.chunks(id, &head)?;
        let envelope = spilled.as_deref().unwrap_or(head.bytes);
        let header = envelope
            .get(..head.envelope)
            .and_then(|envelope| rows::header(id, envelope, head.value, &mut self.nodes))
            .ok_or_else(|| rows::damage(Tree::Tasks, key, "does not decode"))?;
        let progress = self.progress(id, header.replicas.len())?;
        Ok(Recovered { header, progress })
    }

    /// Checks that all chunks are there. Returns the stream up to the end of the envelope if that
    /// is not in the row itself.
    fn chunks(&mut self, id: TaskId, head: &Head<'_>) -> Result<Option<Vec<u8>>, Failure> {
        let mut spilled = (head.envelope > head.bytes.len()).then(|| head.bytes.to_vec());
        for (number, expected) in (0..).take(head.chunks()).enumerate() {
            let expected = keys::of_chunk(id, expected);
            let missing = || rows::damage(Tree::Values, &expected, "is missing");
            let (key, row) = self.values.next_of(id)?.ok_or_else(missing)?;
            if *key != expected {
                return Err(missing().into());
            }
            let payload = rows::unseal(Tree::Values, &key, &row)?;
            if payload.len() != head.chunk_bytes(number) {
                return Err(rows::damage(Tree::Values, &key, "has the wrong length").into());
            }
            if let Some(stream) = &mut spilled
                && stream.len() < head.envelope
            {
                stream.extend_from_slice(payload);
            }
        }
        match self.values.next_of(id)? {
            Some((key, _)) => Err(rows::damage(Tree::Values, &key, "belongs to no value").into()),
            None => Ok(spilled),
        }
    }

    /// What each of the task's replicas has had. A dead letter counts more than the progress: its
    /// row is the first to be written and the last to go.
    fn progress(&mut self, id: TaskId, replicas: usize) -> Result<Vec<Progress>, Failure> {
        let (key, mut entries) = match self.progress.next_of(id)? {
            None => ((&keys::of_task(id)).into(), vec![Some(Progress::Untouched); replicas]),
            Some((key, row)) => {
                let payload = rows::unseal(Tree::Progress, &key, &row)?;
                let entries = rows::read_progress(payload)
                    .filter(|entries| entries.len() == replicas)
                    .ok_or_else(|| rows::damage(Tree::Progress, &key, "does not decode"))?;
                (key, entries)
            }
        };
        while let Some((key, row)) = self.dead_letters.next_of(id)? {
            let (_, replica) =
                keys::dead_letter(&key).ok_or_else(|| no_such_key(Tree::DeadLetters, &key))?;
            let payload = rows::unseal(Tree::DeadLetters, &key, &row)?;
            let letter = rows::read_dead_letter(payload)
                .ok_or_else(|| rows::damage(Tree::DeadLetters, &key, "does not decode"))?;
            let entry = entries
                .get_mut(replica.get())
                .ok_or_else(|| rows::damage(Tree::DeadLetters, &key, "is for no replica"))?;
            *entry = Some(Progress::Dead(letter));
        }
        let lacks_letter = || rows::damage(Tree::Progress, &key, "lacks a dead letter").into();
        entries.into_iter().collect::<Option<_>>().ok_or_else(lacks_letter)
    }
}

fn no_such_key(tree: Tree, key: &[u8]) -> Damage {
    rows::damage(tree, key, "has a key that was never written")
}

type Row = (sled::IVec, sled::IVec);

/// Walks a tree beside the tasks, removing what belongs to none.
struct Cursor {
    tree: Tree,
    rows: sled::Tree,
    left: sled::Iter,
    /// Read and not handed out.
    next: Option<Row>,
    orphans_removed: u64,
}

impl Cursor {
    fn new(tree: Tree, rows: &sled::Tree) -> Self {
        Self { tree, rows: rows.clone(), left: rows.iter(), next: None, orphans_removed: 0 }
    }

    /// The next row of this task; `None` when there is none left. Ids must not go back.
    fn next_of(&mut self, id: TaskId) -> Result<Option<Row>, Failure> {
        while let Some((key, row)) = self.advance()? {
            let owner = key.get(..8).and_then(keys::task);
            let owner = owner.ok_or_else(|| no_such_key(self.tree, &key))?;
            if owner == id {
                return Ok(Some((key, row)));
            }
            if owner > id {
                self.next = Some((key, row));
                return Ok(None);
            }
            self.remove(&key)?;
        }
        Ok(None)
    }

    /// No task is left: nor should a row be. Returns how many were removed.
    fn finish(mut self) -> Result<u64, Failure> {
        while let Some((key, _)) = self.advance()? {
            self.remove(&key)?;
        }
        Ok(self.orphans_removed)
    }

    fn advance(&mut self) -> Result<Option<Row>, Failure> {
        match self.next.take() {
            Some(row) => Ok(Some(row)),
            None => Ok(self.left.next().transpose()?),
        }
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), Failure> {
        self.rows.remove(key)?;
        self.orphans_removed += 1;
        Ok(())
    }
}
