//! `DIR/quarantine/`: tasks that cannot be read whole, set aside so that the rest is served.
//!
//! A recovery that finds such tasks writes one file, `NNNNNN.jsonl`, syncs it, and only then puts a
//! store without them in the place of this one (`rebuild.rs`). The first line says where they are
//! from:
//!
//! ```text
//! {"quarantine":1,"store":"store-000001","commit":57,"set_aside_at":1700000000000000000}
//! ```
//!
//! Each line after it is a row as it lay in the store, whole tasks at a time, the good rows of a
//! damaged task with the bad ones; `damage` says of the first bad one what is wrong with it:
//!
//! ```text
//! {"task":12,"tree":"values","key":"000000000000000c00000001","row":"AQ…","damage":"fails its checksum"}
//! ```
//!
//! A damaged row that is kept beside the tasks, of a replica or an idempotency key, is set aside by
//! itself: `task` is null. Without it the replica is one that was never paused or renamed, and the
//! key one that was never given.
//!
//! `key` is hexadecimal, `row` is base64 of frame and payload, as `rows.rs` describes them. A
//! crash between the two leaves the rows in two files.
//!
//! **Nothing stale over something newer.** A task that is set aside is not delivered any more,
//! whatever its replicas have had of it: nobody can say. An older write of the same key that
//! still waits for one of the same replicas is superseded by it as by any newer write, for the
//! replica may have had the newer one: acknowledged, but not written down before the last crash.
//! The key is taken from the damaged row where that still decodes. Where it does not, the older
//! writes go out, and the order is kept as far as anything is known of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::store::local::database::Database;
use crate::store::local::error::{Damage, Failure};
use crate::store::local::keys::{self, Tree};
use crate::store::local::rows::{self, Header};
use crate::task::{Cause, Node, Progress, TaskId, Timestamp};

const NAME: &str = "quarantine";

/// Where rows are set aside, and what is said of them.
#[derive(Clone, Debug)]
pub(in crate::store::local) struct Quarantine {
    dir: PathBuf,
    /// The name of the store that they come from.
    store: String,
    now: Timestamp,
}

/// What was set aside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAside {
    /// The file that holds it; `None` if nothing was.
    pub file: Option<PathBuf>,
    /// What was wrong, one entry a task, and one a row that belongs to none.
    pub damaged: Vec<Damage>,
    /// Rows in the file.
    pub rows: u64,
    /// Older deliveries that were superseded for the sake of the order.
    pub superseded: u64,
}

impl SetAside {
    /// How many tasks are among it.
    #[must_use]
    pub fn tasks(&self) -> usize {
        self.damaged.iter().filter(|damage| damage.task().is_some()).count()
    }
}

impl Quarantine {
    pub(in crate::store::local) fn of(data_dir: &Path, store: &str, now: Timestamp) -> Self {
        Self { dir: data_dir.join(NAME), store: store.to_owned(), now }
    }

    /// Writes the tasks of these rows down, durably. The store is left as it is.
    pub(in crate::store::local) fn set_aside(
        &self,
        database: &Database,
        damaged: Vec<Damage>,
    ) -> Result<SetAside, Failure> {
        if damaged.is_empty() {
            return Ok(SetAside::default());
        }
        let (path, file) = self.file()?;
        let mut file = BufWriter::new(file);
        let mut rows = 0;
        let header = json!({
            "quarantine": 1,
            "store": self.store,
            "commit": database.ledger().0.number,
            "set_aside_at": self.now.0,
        });
        writeln!(file, "{header}").map_err(io(&path))?;
        for damage in &damaged {
            for (tree, key, row) in rows_of(database, damage)? {
                let what = (tree == damage.tree && *key == *damage.key).then_some(damage.what);
                let line = json!({
                    "task": tree.owner(&key).map(|id| id.0),
                    "tree": tree.name(),
                    "key": keys::hex(&key),
                    "row": STANDARD.encode(&row),
                    "damage": what,
                });
                writeln!(file, "{line}").map_err(io(&path))?;
                rows += 1;
            }
        }
        let file = file.into_inner().map_err(|error| io(&path)(error.into_error()))?;
        file.sync_all().map_err(io(&path))?;
        for dir in [Some(&*self.dir), self.dir.parent()].into_iter().flatten() {
            File::open(dir).and_then(|dir| dir.sync_all()).map_err(io(dir))?;
        }
        Ok(SetAside { file: Some(path), damaged, rows, superseded: 0 })
    }

    /// The first file with a number that is not taken.
    fn file(&self) -> Result<(PathBuf, File), Failure> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(io(&self.dir))?;
        for number in 1..=u64::MAX {
            let path = self.dir.join(format!("{number:06}.jsonl"));
            match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                file => return Ok((path.clone(), file.map_err(io(&path))?)),
            }
        }
        Err(Failure::Database(format!("no name is left in {}", self.dir.display())))
    }
}

/// How many rows lie in the quarantine of a data directory.
pub(in crate::store::local) fn rows_in(data_dir: &Path) -> std::io::Result<u64> {
    let entries = match fs::read_dir(data_dir.join(NAME)) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(0),
        entries => entries?,
    };
    let mut rows = 0;
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "jsonl") {
            let lines = BufReader::new(File::open(path)?).split(b'\n');
            rows += (lines.count() as u64).saturating_sub(1);
        }
    }
    Ok(rows)
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    let path = path.to_owned();
    move |error| Failure::Database(format!("cannot write {}: {error}", path.display()))
}

type Row = (Tree, sled::IVec, sled::IVec);

/// All rows of the damaged task; of a row without an owner, that row.
fn rows_of(database: &Database, damage: &Damage) -> Result<Vec<Row>, Failure> {
    let (trees, prefix) = match damage.task() {
        Some(id) if damage.key.len() == damage.tree.key_bytes() => {
            let trees = &[Tree::Tasks, Tree::Values, Tree::Progress, Tree::DeadLetters][..];
            (trees, keys::of_task(id).to_vec())
        }
        _ => (&[damage.tree][..], damage.key.clone()),
    };
    let mut rows = Vec::new();
    for &tree in trees {
        for row in database.tree(tree).scan_prefix(&prefix) {
            let (key, row) = row?;
            if trees.len() > 1 || *key == *prefix {
                rows.push((tree, key, row));
            }
        }
    }
    Ok(rows)
}

/// The newest of the tasks that were set aside, by key and replica, as far as these can be read.
pub(in crate::store::local) struct Newer(BTreeMap<(String, Node), TaskId>);

impl Newer {
    pub(in crate::store::local) fn among(
        database: &Database,
        damaged: &[Damage],
    ) -> Result<Self, Failure> {
        let gone: BTreeSet<_> = damaged.iter().filter_map(Damage::task).collect();
        let mut newest = BTreeMap::new();
        for id in gone {
            if let Some(Header { key, replicas, .. }) = rows::guess_header(database, id)? {
                newest.extend(replicas.into_iter().map(|node| ((key.clone(), node), id)));
            }
        }
        Ok(Self(newest))
    }

    /// Supersedes what an older task has left for the same replicas. Says how many deliveries.
    pub(in crate::store::local) fn supersede(
        &self,
        older: &Header,
        progress: &mut [Progress],
    ) -> u64 {
        let mut superseded = 0;
        for (node, entry) in older.replicas.iter().zip(progress) {
            let newer = self.0.get(&(older.key.clone(), node.clone()));
            if newer.is_some_and(|newer| *newer > older.id) && is_pending(entry) {
                *entry = Progress::Superseded;
                superseded += 1;
            }
        }
        superseded
    }
}

fn is_pending(progress: &Progress) -> bool {
    match progress {
        Progress::Untouched | Progress::Failed { .. } | Progress::Resend => true,
        Progress::Dead(letter) => letter.cause == Cause::RetryOverflow,
        Progress::Delivered | Progress::Superseded | Progress::Ambiguous { .. } => false,
    }
}

#[cfg(test)]
mod tests;
