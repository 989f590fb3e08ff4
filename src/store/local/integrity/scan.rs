//! Looks at every row, once: the one walk behind recovery and `replicator check`.
//!
//! The four trees are walked side by side, in the order of their common prefix, the task's id.
//! Only what is wrong is collected, so a million tasks cost no more memory than one, and every
//! byte that is trusted later is checked here. A row whose task is gone is an orphan, left by a
//! crash between two writes. Nothing is changed.
//!
//! Behind them come the two trees whose rows belong to no task. What is in them is collected, for
//! whoever opens the store holds it in memory anyway.

use std::collections::BTreeMap;

use super::ledger::{COUNTED, Tallies};
use crate::store::local::database::Database;
use crate::store::local::error::{Damage, Failure};
use crate::store::local::keys::{self, Tree};
use crate::store::local::recover::Recovered;
use crate::store::local::rows::{self, Head, IdempotencyRow, Nodes, ReplicaRow};
use crate::task::{Idempotency, Node, Progress, TaskId};

/// What was found.
#[derive(Debug, Default)]
pub(in crate::store::local) struct Scan {
    /// Tasks that are whole.
    pub(in crate::store::local) tasks: u64,
    /// The length of their values together, in bytes.
    pub(in crate::store::local) value_bytes: u64,
    /// Dead letters among their deliveries.
    pub(in crate::store::local) dead_letters: u64,
    /// The highest task of any row.
    pub(in crate::store::local) highest: Option<TaskId>,
    /// The length of all keys and rows but those of `meta`, in bytes.
    pub(in crate::store::local) live_bytes: u64,
    /// All rows of the trees that are counted.
    pub(in crate::store::local) tallies: Tallies,
    /// Those that the ledger counts.
    pub(in crate::store::local) counted: Tallies,
    /// The trees among them with a row that fails its checksum, which may be what is wrong in it.
    pub(in crate::store::local) broken: Vec<Tree>,
    /// Rows whose task is gone.
    pub(in crate::store::local) orphans: Vec<(Tree, sled::IVec)>,
    /// One of them is of a task that the ledger knows to be settled: rows that were removed are back,
    /// which no crash explains.
    pub(in crate::store::local) returned: bool,
    /// What is not as it was written: of each task the first row.
    pub(in crate::store::local) damaged: Vec<Damage>,
    /// What is kept beside the tasks.
    pub(in crate::store::local) side_tables: SideTables,
    /// Keys that only the rows of their tasks know. They are among what is kept, too.
    pub(in crate::store::local) keyless: BTreeMap<Box<str>, IdempotencyRow>,
}

/// What is kept beside the tasks, in the order of the keys.
#[derive(Debug, Default)]
pub(in crate::store::local) struct SideTables {
    pub(in crate::store::local) replicas: Vec<(Node, ReplicaRow)>,
    pub(in crate::store::local) idempotency: Vec<(Box<str>, IdempotencyRow)>,
}

/// Hands every task that is whole to `each`, in order.
pub(in crate::store::local) fn walk(
    database: &Database,
    each: &mut dyn FnMut(Recovered),
) -> Result<Scan, Failure> {
    let (ledger, binds) = database.ledger();
    let cursor = |tree| Cursor { left: database.tree(tree).iter(), next: None };
    let mut walk = Walk {
        database,
        values: cursor(Tree::Values),
        progress: cursor(Tree::Progress),
        dead_letters: cursor(Tree::DeadLetters),
        nodes: Nodes::default(),
        found: Scan::default(),
        counted_up_to: ledger.highest,
        binds,
    };
    for row in &database.tasks {
        let (key, row) = row?;
        walk.count(Tree::Tasks, &key, &row);
        let Some(id) = keys::task(&key) else {
            walk.stray(Tree::Tasks, &key);
            continue;
        };
        let task = walk.found_by_key(Tree::Tasks, &key, &row);
        match task.and_then(|()| walk.task(id, &key, &row)) {
            Ok(recovered) => {
                walk.found.tasks += 1;
                walk.found.value_bytes += recovered.header.value_bytes as u64;
                let dead = |entry: &&Progress| matches!(entry, Progress::Dead(_));
                walk.found.dead_letters += recovered.progress.iter().filter(dead).count() as u64;
                walk.key_of(&recovered)?;
                each(recovered);
            }
            Err(Failure::Damaged(damage)) => {
                walk.found.damaged.push(damage);
                for tree in [Tree::Values, Tree::Progress, Tree::DeadLetters] {
                    while walk.next_of(tree, id)?.is_some() {}
                }
            }
            Err(failure) => return Err(failure),
        }
    }
    for tree in [Tree::Values, Tree::Progress, Tree::DeadLetters] {
        // Nothing belongs to a task behind the last one.
        while let Some((key, _)) = walk.advance(tree)? {
            walk.without_task(tree, key);
        }
    }
    walk.side_tables()?;
    Ok(walk.found)
}

struct Walk<'a> {
    database: &'a Database,
    values: Cursor,
    progress: Cursor,
    dead_letters: Cursor,
    nodes: Nodes,
    found: Scan,
    counted_up_to: TaskId,
    /// The trees must hold what the ledger says.
    binds: bool,
}

type Row = (sled::IVec, sled::IVec);

/// Where the walk is in a tree.
struct Cursor {
    left: sled::Iter,
    /// Read and not handed out.
    next: Option<Row>,
}

impl Walk<'_> {
    /// Puts together what belongs to one task.
    fn task(&mut self, id: TaskId, key: &[u8], row: &[u8]) -> Result<Recovered, Failure> {
        let head = Head::read(key, row)?;
        let spilled = self.chunks(id, &head)?;
        let envelope = spilled.as_deref().unwrap_or(head.bytes);
        let nodes = &mut self.nodes;
        let (header, idempotency) = envelope
            .get(..head.envelope)
            .and_then(|envelope| rows::header_and_key(id, envelope, head.value, nodes))
            .ok_or_else(|| rows::damage(Tree::Tasks, key, "does not decode"))?;
        let progress = self.progress(id, header.replicas.len())?;
        Ok(Recovered { header, idempotency, progress })
    }

    /// Checks that all chunks are there. Returns the stream up to the end of the envelope if that
    /// is not in the row itself.
    fn chunks(&mut self, id: TaskId, head: &Head<'_>) -> Result<Option<Vec<u8>>, Failure> {
        let mut spilled = (head.envelope > head.bytes.len()).then(|| head.bytes.to_vec());
        for (number, expected) in (0..).take(head.chunks()).enumerate() {
            let expected = keys::of_chunk(id, expected);
            let missing = || rows::damage(Tree::Values, &expected, "is missing");
            let (key, row) = self.next_of(Tree::Values, id)?.ok_or_else(missing)?;
            if *key != expected {
                return Err(missing().into());
            }
            self.found_by_key(Tree::Values, &key, &row)?;
            let payload = rows::chunk(&key, &row, head, number)?;
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

    /// What each of the task's replicas has had. A dead letter counts more than the progress: its
    /// row is the first to be written and the last to go.
    fn progress(&mut self, id: TaskId, replicas: usize) -> Result<Vec<Progress>, Failure> {
        let (key, mut entries) = match self.next_of(Tree::Progress, id)? {
            None => ((&keys::of_task(id)).into(), vec![Some(Progress::Untouched); replicas]),
            Some((key, row)) => {
                let payload = rows::unseal(Tree::Progress, &key, &row)?;
                let entries = rows::read_progress(payload)
                    .filter(|entries| entries.len() == replicas)
                    .ok_or_else(|| rows::damage(Tree::Progress, &key, "does not decode"))?;
                (key, entries)
            }
        };
        while let Some((key, row)) = self.next_of(Tree::DeadLetters, id)? {
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

    /// A row that a walk comes upon must also be found by its key, as it is when its turn comes:
    /// where a page of sled's index is damaged the two can differ.
    fn found_by_key(&self, tree: Tree, key: &[u8], row: &[u8]) -> Result<(), Failure> {
        match self.database.tree(tree).get(key)? {
            Some(found) if *found == *row => Ok(()),
            Some(_) | None => Err(rows::damage(tree, key, "is not found by its key").into()),
        }
    }

    /// The key of a task has a row of its own as well, written behind the task's. A crash between
    /// the two leaves it out, or one that the key had before. Behind the ledger alone: what it
    /// counts has its key, unless that was forgotten since. A row that is damaged is no better
    /// than none.
    fn key_of(&mut self, task: &Recovered) -> Result<(), Failure> {
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
            // In the order of the tasks: the last that came with it has it.
            self.found.keyless.insert(key.clone(), row);
        }
        Ok(())
    }

    /// The rows that belong to no task.
    fn side_tables(&mut self) -> Result<(), Failure> {
        for row in self.database.tree(Tree::Replicas) {
            let (key, row) = row?;
            self.count(Tree::Replicas, &key, &row);
            match replica(&key, &row) {
                Ok(row) => self.found.side_tables.replicas.push(row),
                Err(damage) => self.found.damaged.push(damage),
            }
        }
        for row in self.database.tree(Tree::Idempotency) {
            let (key, row) = row?;
            self.count(Tree::Idempotency, &key, &row);
            match idempotency(&key, &row) {
                Ok(row) => self.found.side_tables.idempotency.push(row),
                Err(damage) => self.found.damaged.push(damage),
            }
        }
        if !self.found.keyless.is_empty() {
            let kept = std::mem::take(&mut self.found.side_tables.idempotency);
            let mut all: BTreeMap<_, _> = kept.into_iter().collect();
            all.extend(self.found.keyless.clone());
            self.found.side_tables.idempotency = all.into_iter().collect();
        }
        Ok(())
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

    /// The next row of this task; `None` when there is none left. Ids must not go back.
    fn next_of(&mut self, tree: Tree, id: TaskId) -> Result<Option<Row>, Failure> {
        while let Some((key, row)) = self.advance(tree)? {
            match keys::owner(&key) {
                Some(owner) if owner == id => return Ok(Some((key, row))),
                Some(owner) if owner > id => {
                    self.cursor(tree).next = Some((key, row));
                    return Ok(None);
                }
                _ => self.without_task(tree, key),
            }
        }
        Ok(None)
    }

    fn advance(&mut self, tree: Tree) -> Result<Option<Row>, Failure> {
        let cursor = self.cursor(tree);
        if let Some(row) = cursor.next.take() {
            return Ok(Some(row));
        }
        let Some((key, row)) = cursor.left.next().transpose()? else {
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

    fn without_task(&mut self, tree: Tree, key: sled::IVec) {
        match keys::owner(&key) {
            Some(owner) => {
                self.found.returned |= self.binds && owner <= self.counted_up_to;
                self.found.orphans.push((tree, key));
            }
            None => self.stray(tree, &key),
        }
    }

    fn stray(&mut self, tree: Tree, key: &[u8]) {
        self.found.damaged.push(no_such_key(tree, key));
    }
}

/// The rows of replicas that can be read.
pub(in crate::store::local) fn replicas(
    database: &Database,
) -> Result<Vec<(Node, ReplicaRow)>, Failure> {
    let mut found = Vec::new();
    for row in database.tree(Tree::Replicas).iter() {
        let (key, row) = row?;
        found.extend(replica(&key, &row).ok());
    }
    Ok(found)
}

fn replica(key: &[u8], row: &[u8]) -> Result<(Node, ReplicaRow), Damage> {
    let tree = Tree::Replicas;
    let row = rows::read_replica(rows::unseal(tree, key, row)?);
    let row = row.ok_or_else(|| rows::damage(tree, key, "does not decode"))?;
    let node = std::str::from_utf8(key).map_err(|_| no_such_key(tree, key))?;
    Ok((Node::from_normal(node), row))
}

fn idempotency(key: &[u8], row: &[u8]) -> Result<(Box<str>, IdempotencyRow), Damage> {
    let tree = Tree::Idempotency;
    let row = rows::read_idempotency(rows::unseal(tree, key, row)?);
    let row = row.ok_or_else(|| rows::damage(tree, key, "does not decode"))?;
    let key = std::str::from_utf8(key).map_err(|_| no_such_key(tree, key))?;
    Ok((key.into(), row))
}

fn no_such_key(tree: Tree, key: &[u8]) -> Damage {
    rows::damage(tree, key, "has a key that was never written")
}
