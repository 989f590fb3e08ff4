//! Makes stores of older formats with tasks for running replicas.
//!
//! The fixtures in `tests/fixtures/` were written by old releases, but their replicas do not exist. So
//! a new store is downgraded step by step, and compared with the fixture of its format: the trees, and
//! the rows of `meta` with their lengths. Before format 6, a row held a single task. Apart from that,
//! the rows of a task without an idempotency key, as used here, have not changed since format 1.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use super::support::copy;

fn fixture(format: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/format-{format}"))
}

/// The formats with a fixture, except the newest, which needs no migration.
pub fn formats() -> std::ops::Range<u32> {
    let newest = (1..).take_while(|&format| fixture(format).is_dir()).last().unwrap();
    1..newest
}

fn open(dir: &Path) -> sled::Db {
    let store = dir.join("store-000001");
    // A thread of sled can hold the lock for a moment after the last handle is dropped.
    File::open(store.join("db")).unwrap().lock().unwrap();
    sled::Config::new().path(store).flush_every_ms(None).open().unwrap()
}

/// A row of `meta`: a version byte, a CRC-32, the payload.
fn sealed(key: &str, payload: &[u8]) -> Vec<u8> {
    sealed_in(b'm', key.as_bytes(), payload)
}

fn sealed_in(tree: u8, key: &[u8], payload: &[u8]) -> Vec<u8> {
    let covered = [&[1, tree], key, payload].concat();
    [&[1][..], &crc32fast::hash(&covered).to_be_bytes(), payload].concat()
}

/// Gives each task a row of its own.
fn split_rows(db: &sled::Db) {
    let (tasks, meta) = (db.open_tree("tasks").unwrap(), db.open_tree("meta").unwrap());
    for row in &tasks {
        let (key, row) = row.unwrap();
        tasks.remove(&key).unwrap();
        let first = u64::from_be_bytes((*key).try_into().unwrap());
        for (offset, task) in tasks_in(&row[5..]) {
            let key = (first + u64::from(offset)).to_be_bytes();
            tasks.insert(key, sealed_in(b't', &key, task)).unwrap();
        }
    }
    let (mut rows, mut sum) = (0u64, 0u64);
    for row in tasks.iter().values() {
        rows += 1;
        sum += u64::from(u32::from_be_bytes(row.unwrap()[1..5].try_into().unwrap()));
    }
    let mut ledger = meta.get("ledger").unwrap().unwrap()[5..].to_vec();
    ledger[16..32].copy_from_slice(&[rows.to_be_bytes(), sum.to_be_bytes()].concat());
    meta.insert("ledger", sealed("ledger", &ledger)).unwrap();
}

/// The offsets of the tasks in the payload of a row, and their bytes.
fn tasks_in(payload: &[u8]) -> Vec<(u8, &[u8])> {
    const HEAD: usize = 4096 - 5 - 18;
    let (mut tasks, mut offset, mut rest) = (vec![], 0, payload);
    loop {
        let (envelope, bytes) = number(rest);
        let (value, more) = number(&rest[bytes..]);
        let (task, behind) = rest.split_at(bytes + more + (envelope + value).min(HEAD));
        if envelope > 0 {
            tasks.push((offset, task));
        }
        match behind {
            [] => return tasks,
            [next, behind @ ..] => (offset, rest) = (*next, behind),
        }
    }
}

/// A number in bincode's encoding, and its length.
fn number(bytes: &[u8]) -> (usize, usize) {
    let length = match bytes[0] {
        251 => 2,
        252 => 4,
        small => return (small.into(), 1),
    };
    let number =
        bytes[1..=length].iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte));
    (number, 1 + length)
}

/// Downgrades a store of the newest format.
pub fn downgrade(dir: &Path, format: u32) {
    let db = open(dir);
    let meta = db.open_tree("meta").unwrap();
    if format < 6 {
        split_rows(&db);
    }
    if format < 3 {
        for tree in ["replicas", "idempotency"] {
            db.drop_tree(tree).unwrap();
        }
        let ledger = meta.get("ledger").unwrap().unwrap();
        meta.insert("ledger", sealed("ledger", &ledger[5..69])).unwrap();
    }
    if format < 2 {
        for row in ["ledger", "settling"] {
            meta.remove(row).unwrap();
        }
        std::fs::remove_file(dir.join("COMMITTED")).unwrap();
    }
    meta.insert("format_version", sealed("format_version", &format.to_be_bytes())).unwrap();
    db.flush().unwrap();
    drop((meta, db));
    let copied = tempfile::tempdir().unwrap();
    copy(&fixture(format), copied.path());
    assert_eq!(shape(dir), shape(copied.path()), "format {format}");
}

/// The trees, the lengths of the rows of `meta`, and whether `COMMITTED` exists.
fn shape(dir: &Path) -> (Vec<String>, BTreeMap<String, usize>, bool) {
    let db = open(dir);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut trees: Vec<_> = db.tree_names().iter().map(|name| text(name)).collect();
    trees.sort();
    let rows = db.open_tree("meta").unwrap().iter().map(Result::unwrap);
    let mut rows: BTreeMap<_, _> = rows.map(|(key, row)| (text(&key), row.len())).collect();
    // Present only while settlements are pending.
    rows.remove("settling");
    (trees, rows, dir.join("COMMITTED").exists())
}
