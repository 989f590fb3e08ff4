//! The rows that a snapshot has not read yet, as they were when it began.
//!
//! A snapshot reads the trees while the committer writes. Before a row changes that it has not read, the
//! old row is appended to a file here. So a row of the snapshot is the kept one, or else the one in
//! its tree. The file has no name: it ends with the snapshot or with the process. Memory holds about 80
//! bytes for each kept row, and at most the rows of the beginning are kept.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::store::local::error::Failure;
use crate::store::local::keys::{self, Tree};
use crate::store::local::permissions;
use crate::task::TaskId;

/// Its name in the data directory until it is removed, at once.
const FILE: &str = "snapshot.new";

/// Where a kept row is in the file; `None` if there was no row.
pub(crate) type KeptPlace = Option<(u64, u32)>;

#[derive(Debug)]
pub(crate) struct KeptRows {
    /// The last task of the snapshot.
    through: TaskId,
    /// Tasks below are read.
    unread: TaskId,
    rows: BTreeMap<(Tree, sled::IVec), KeptPlace>,
    file: Arc<File>,
    end: u64,
    /// Why nothing is kept any more.
    failure: Option<String>,
}

impl KeptRows {
    pub(crate) fn new(dir: &Path, through: TaskId) -> io::Result<Self> {
        let path = dir.join(FILE);
        // Left by a kill between the next two calls.
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let file = Arc::new(permissions::create(&path)?);
        fs::remove_file(&path)?;
        let (unread, rows) = (TaskId(0), BTreeMap::new());
        Ok(Self { through, unread, rows, file, end: 0, failure: None })
    }

    /// Keeps a row that changes.
    pub(crate) fn keep(&mut self, tree: Tree, key: &[u8], old: Option<&[u8]>) {
        let is_wanted = match tree {
            Tree::Meta => false,
            Tree::Replicas => true,
            // New keys are of tasks that came later.
            Tree::Idempotency => old.is_some(),
            Tree::Tasks | Tree::Values | Tree::Progress | Tree::DeadLetters => {
                keys::owner(key).is_some_and(|id| self.unread <= id && id <= self.through)
            }
        };
        if !is_wanted || self.failure.is_some() {
            return;
        }
        let entry = (tree, sled::IVec::from(key));
        if self.rows.contains_key(&entry) {
            return;
        }
        let place = match old {
            None => None,
            Some(row) => {
                if let Err(error) = self.file.write_all_at(row, self.end) {
                    return self.give_up(&format!("cannot keep a row for the snapshot: {error}"));
                }
                let place = (self.end, u32::try_from(row.len()).unwrap_or(u32::MAX));
                self.end += row.len() as u64;
                Some(place)
            }
        };
        self.rows.insert(entry, place);
    }

    /// Frees the disk space. The snapshot cannot be read to its end.
    pub(crate) fn give_up(&mut self, why: &str) {
        self.rows.clear();
        // It fails only if the file system does, and then the file has no name.
        let _ = self.file.set_len(0);
        self.failure = Some(why.to_owned());
    }

    /// All tasks up to this one are read.
    pub(crate) fn pass(&mut self, id: TaskId) {
        self.unread = TaskId(id.0.saturating_add(1));
        for tree in [Tree::Tasks, Tree::Values, Tree::Progress, Tree::DeadLetters] {
            let (from, to) = ((tree, sled::IVec::default()), (tree, end_of(id)));
            while let Some((key, _)) = self.rows.range(&from..&to).next() {
                let key = key.clone();
                self.rows.remove(&key);
            }
        }
    }

    fn check(&self) -> Result<(), Failure> {
        self.failure.as_ref().map_or(Ok(()), |why| Err(Failure::Database(why.clone())))
    }

    /// The kept row of a key, if there is one.
    pub(crate) fn place(&self, tree: Tree, key: &[u8]) -> Result<Option<KeptPlace>, Failure> {
        self.check()?;
        Ok(self.rows.get(&(tree, sled::IVec::from(key))).copied())
    }

    /// At most `limit` kept rows between two keys.
    pub(crate) fn places(
        &self,
        tree: Tree,
        from: Bound<sled::IVec>,
        to: &Bound<sled::IVec>,
        limit: usize,
    ) -> Result<Vec<(sled::IVec, KeptPlace)>, Failure> {
        self.check()?;
        let is_before = |key: &sled::IVec| match to {
            Bound::Included(to) => key <= to,
            Bound::Excluded(to) => key < to,
            Bound::Unbounded => true,
        };
        let from = match from {
            Bound::Included(key) => Bound::Included((tree, key)),
            Bound::Excluded(key) => Bound::Excluded((tree, key)),
            Bound::Unbounded => Bound::Included((tree, sled::IVec::default())),
        };
        let behind = self.rows.range((from, Bound::Unbounded));
        let rows = behind.take_while(|((of, key), _)| *of == tree && is_before(key));
        Ok(rows.take(limit).map(|((_, key), place)| (key.clone(), *place)).collect())
    }

    pub(crate) fn file(&self) -> Arc<File> {
        Arc::clone(&self.file)
    }
}

/// Reads a kept row.
pub(crate) fn read(file: &File, place: KeptPlace) -> Result<Option<sled::IVec>, Failure> {
    let Some((at, length)) = place else { return Ok(None) };
    let mut row = vec![0; length as usize];
    let failed =
        |error| Failure::Database(format!("cannot read a row kept for the snapshot: {error}"));
    file.read_exact_at(&mut row, at).map_err(failed)?;
    Ok(Some(row.into()))
}

/// Behind all keys of a task.
pub(crate) fn end_of(id: TaskId) -> sled::IVec {
    (&keys::of_task(TaskId(id.0.saturating_add(1)))).into()
}
