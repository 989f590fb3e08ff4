//! `DIR/quarantine/`: damaged tasks, set aside so that the rest can be served.
//!
//! Recovery writes them to a file `NNNNNN.jsonl`, syncs it, and then replaces the store by one without
//! them (`rebuild.rs`). A crash in between leaves the rows in two files. A task is set aside with all
//! its rows, one per line; `damage` marks the first damaged one. If the damaged row is one of several
//! tasks, all of them are set aside: its checksum does not say which part is wrong. If it is another
//! row of a task, the others that share a row with the task are served.
//!
//! ```text
//! {"quarantine":1,"store":"store-000001","commit":57,"set_aside_at":1700000000000000000}
//! {"task":12,"tree":"values","key":"000000000000000c00000001","row":"AQ…","damage":"fails its checksum"}
//! ```
//!
//! `key` is hexadecimal, `row` is base64 of frame and payload (`rows.rs`). A damaged row of a replica
//! or a key is set aside alone, with `task` null: the replica then counts as never paused or renamed,
//! the key as new.
//!
//! **No stale write over a newer one.** A task that was set aside is no longer delivered, but a replica
//! may already have it. So it supersedes older pending writes of its key to the same replica, if the
//! damaged row still shows the key. If not, the older writes are sent.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::ops::RangeInclusive;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::store::local::database::Database;
use crate::store::local::error::{Damage, Failure};
use crate::store::local::keys::{self, Tree};
use crate::store::local::rows::{self, Nodes, PackedTask};
use crate::store::records::Header;
use crate::task::{Cause, Node, Progress, TaskId, Timestamp};

const NAME: &str = "quarantine";

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetAside {
    pub file: Option<PathBuf>,
    /// One entry per task, one per row of several tasks, and one per row without a task.
    pub damaged: Vec<Damage>,
    /// At least: a damaged row of several tasks may hold more than can be counted.
    pub tasks: u64,
    pub rows: u64,
    /// Older deliveries that were superseded to keep the order.
    pub superseded: u64,
}

/// Writes the damaged tasks and rows of `store` to a new file, durably. Does not change the store.
pub(crate) fn set_aside(
    data_dir: &Path,
    store: &str,
    now: Timestamp,
    database: &Database,
    damaged: Vec<Damage>,
) -> Result<SetAside, Failure> {
    if damaged.is_empty() {
        return Ok(SetAside::default());
    }
    let dir = data_dir.join(NAME);
    let (path, file) = new_file(&dir)?;
    let mut file = BufWriter::new(file);
    let (mut tasks, mut rows) = (0, 0);
    let header = json!({
        "quarantine": 1,
        "store": store,
        "commit": database.ledger().0.number,
        "set_aside_at": now.0,
    });
    writeln!(file, "{header}").map_err(io(&path))?;
    for damage in &damaged {
        if damage.task().is_some() {
            tasks += guess_headers(database, damage)?.len().max(1) as u64;
        }
        for (tree, key, row) in rows_of(database, damage)? {
            let what = (tree == damage.tree && *key == *damage.key).then_some(damage.what);
            let line = json!({
                "task": task_of(damage, tree, &key).map(|id| id.0),
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
    for dir in [&*dir, data_dir] {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(io(dir))?;
    }
    Ok(SetAside { file: Some(path), damaged, tasks, rows, superseded: 0 })
}

fn new_file(dir: &Path) -> Result<(PathBuf, File), Failure> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
    for number in 1..=u64::MAX {
        let path = dir.join(format!("{number:06}.jsonl"));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            file => return Ok((path.clone(), file.map_err(io(&path))?)),
        }
    }
    Err(Failure::Database(format!("no file name is left in {}", dir.display())))
}

pub(crate) fn rows_in(data_dir: &Path) -> std::io::Result<u64> {
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

/// The task that a row is set aside for: for a row of several intact tasks the damaged one.
fn task_of(damage: &Damage, tree: Tree, key: &[u8]) -> Option<TaskId> {
    if tree == Tree::Tasks { damage.task() } else { tree.owner(key) }
}

type QuarantinedRow = (Tree, sled::IVec, sled::IVec);

/// All rows of the damaged tasks, or the damaged row alone if it has no task.
fn rows_of(database: &Database, damage: &Damage) -> Result<Vec<QuarantinedRow>, Failure> {
    let tasks = damage.tasks().filter(|_| damage.key.len() == damage.tree.key_bytes());
    let Some((first, last)) = tasks.map(RangeInclusive::into_inner) else {
        let row = database.tree(damage.tree).get(&damage.key)?;
        return Ok(row.map(|row| (damage.tree, (&*damage.key).into(), row)).into_iter().collect());
    };
    let row = database.row_of(first)?;
    let mut rows: Vec<_> = row.map(|(key, row)| (Tree::Tasks, key, row)).into_iter().collect();
    for tree in [Tree::Values, Tree::Progress, Tree::DeadLetters] {
        for row in database.rows_beside(tree, first, last) {
            let (key, row) = row?;
            rows.push((tree, key, row));
        }
    }
    Ok(rows)
}

/// The newest task that was set aside for each key and replica, as far as they can be read.
pub(crate) struct NewerTasks(BTreeMap<(String, Node), TaskId>);

impl NewerTasks {
    pub(crate) fn among(database: &Database, damaged: &[Damage]) -> Result<Self, Failure> {
        let mut gone = BTreeMap::new();
        for damage in damaged {
            let headers = guess_headers(database, damage)?;
            gone.extend(headers.into_iter().map(|header| (header.id, header)));
        }
        let mut newest = BTreeMap::new();
        for (id, Header { key, replicas, .. }) in gone {
            newest.extend(replicas.into_iter().map(|node| ((key.clone(), node), id)));
        }
        Ok(Self(newest))
    }

    /// Supersedes the pending deliveries of an older task. Returns how many.
    pub(crate) fn supersede(&self, older: &Header, progress: &mut [Progress]) -> u64 {
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

/// Decodes the rows of damaged tasks whatever their checksums say, as far as that is possible.
fn guess_headers(database: &Database, damage: &Damage) -> Result<Vec<Header>, Failure> {
    let mut headers = Vec::new();
    let Some(lost) = damage.tasks() else { return Ok(headers) };
    let Some((key, row)) = database.row_of(*lost.start())? else { return Ok(headers) };
    let Some(first) = keys::task(&key) else { return Ok(headers) };
    let (tasks, _) = rows::parse(first, rows::unchecked_payload(&row));
    for PackedTask { id, head, .. } in tasks.iter().filter(|task| lost.contains(&task.id)) {
        let mut stream = head.bytes.to_vec();
        for number in (0..).take(head.chunks()) {
            if stream.len() >= head.envelope {
                break;
            }
            let Some(chunk) = database.values.get(keys::of_chunk(*id, number))? else { break };
            stream.extend_from_slice(rows::unchecked_payload(&chunk));
        }
        let nodes = &mut Nodes::default();
        let header = stream
            .get(..head.envelope)
            .and_then(|envelope| rows::header(*id, envelope, head.value, nodes));
        headers.extend(header);
    }
    Ok(headers)
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
