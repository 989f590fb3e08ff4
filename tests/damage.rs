//! Damaged data directories: a start recovers everything that was acknowledged, or sets tasks
//! aside and names them, or refuses with one sentence. A refused store is exported and imported.
//!
//! `DAMAGED_STORES=5000` tests more stores, `DAMAGE_SEED=N` starts with another seed. A failure prints
//! the seed and the damage.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    clippy::print_stderr,
    clippy::cast_possible_truncation,
    reason = "tests fail by panicking"
)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use fastrand::Rng;
use replicator::testing::store::{
    self, Damage, IdempotencyRow, LocalStore, Opened, Recovered, RecoveryEvent, ReplicaRow,
    StoreSettings,
};
use replicator::testing::task::{
    Cause, Consistency, DeadLetter, Idempotency, Node, Operation, Progress, ReplicaPause, Task,
    TaskId, Timestamp, Trace,
};

/// A start with a small store that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

fn settings(dir: &Path) -> StoreSettings {
    StoreSettings {
        dir: dir.to_owned(),
        cache_bytes: 8 << 20,
        now: Timestamp(5_000_000),
        min_free_bytes: 0,
    }
}

fn close(opened: Opened) {
    let closed = opened.committer.close();
    drop(opened);
    closed.blocking_recv().unwrap().unwrap();
}

#[derive(Default)]
struct Contents {
    tasks: BTreeMap<TaskId, (Task, Vec<Progress>)>,
    replicas: BTreeMap<Node, ReplicaRow>,
    idempotency: BTreeMap<Box<str>, IdempotencyRow>,
}

fn task(rng: &mut Rng, id: u64) -> Task {
    let bytes = if rng.u8(..) < 20 { rng.usize(4_000..40_000) } else { rng.usize(0..400) };
    Task {
        id: TaskId(id),
        // Few keys, so that tasks that are set aside have older writes of their key.
        key: format!("key-{}", rng.u8(0..40)),
        operation: Operation::Set,
        value: (0..bytes).map(|_| rng.u8(..)).collect(),
        accepted_at: Timestamp(id),
        expires_at: rng.bool().then_some(Timestamp(u64::MAX)),
        replicas: ["http://a", "http://b"].map(|node| Node::parse(node).unwrap()).to_vec(),
        user_id: rng.bool().then(|| "ann".to_owned()),
        client: None,
        consistency: if rng.bool() { Consistency::Strong } else { Consistency::Eventual },
        primary: None,
        trace: rng.bool().then(|| Trace { parent: "00-trace".into(), state: None }),
    }
}

fn progress(rng: &mut Rng) -> Progress {
    match rng.u8(0..5) {
        0 => Progress::Untouched,
        1 => Progress::Failed { failures: rng.u32(1..4), error: "connection refused".into() },
        2 => Progress::Delivered,
        3 => Progress::Superseded,
        _ => Progress::Dead(DeadLetter {
            cause: Cause::GaveUp,
            failures: 4,
            error: "503 Service Unavailable".into(),
            since: Timestamp(7),
        }),
    }
}

fn replica(rng: &mut Rng) -> (Node, ReplicaRow) {
    let node = |n: u8| Node::parse(&format!("http://node-{n}")).unwrap();
    let row = ReplicaRow {
        pause: rng.bool().then(|| ReplicaPause {
            since: Timestamp(rng.u64(..)),
            until: rng.bool().then(|| Timestamp(rng.u64(..))),
        }),
        renamed_to: rng.bool().then(|| node(rng.u8(..))),
        ..ReplicaRow::new(Timestamp(rng.u64(..)))
    };
    (node(rng.u8(0..20)), row)
}

fn key(rng: &mut Rng) -> Idempotency {
    let fingerprint = rng.u128(..).to_be_bytes();
    Idempotency { key: format!("key-{}", rng.u8(..)).into(), fingerprint }
}

/// Writes a store over two starts and settles much of it. Returns the rest.
fn used_store(dir: &Path, rng: &mut Rng, tasks: u64) -> Contents {
    let mut contents = Contents::default();
    for start in 0..2 {
        let store = LocalStore::open(&settings(dir)).unwrap();
        let (opened, _) = store.recover(&mut drop, Box::new(drop)).unwrap();
        for n in 1..=tasks {
            let task = task(rng, opened.next_id.0 + n);
            let (reply, durable) = tokio::sync::oneshot::channel();
            let reply = Box::new(move |result| {
                // Most receivers are gone.
                let _ = reply.send(result);
            });
            let key = (rng.u8(0..4) == 0).then(|| {
                let key = key(rng);
                let row = IdempotencyRow::of(&task, key.fingerprint);
                contents.idempotency.insert(key.key.clone(), row);
                key
            });
            opened.committer.accept(Arc::new(task.clone()), key, Some(reply));
            if rng.u8(0..10) == 0 {
                let (node, row) = replica(rng);
                contents.replicas.insert(node.clone(), row.clone());
                opened.committer.set_replica(node, Some(row), None);
            }
            if n % 50 == 0 {
                durable.blocking_recv().unwrap().unwrap();
            }
            let mut state = vec![Progress::Untouched; 2];
            match rng.u8(0..4) {
                0 => {}
                1 => {
                    state = vec![progress(rng), progress(rng)];
                    opened.committer.save(task.id, state.clone());
                }
                _ if start == 1 && n > tasks - 50 => {}
                _ => {
                    opened.committer.remove(task.id);
                    continue;
                }
            }
            contents.tasks.insert(task.id, (task, state));
        }
        close(opened);
    }
    contents
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![];
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &to);
        } else {
            fs::copy(&path, &to).unwrap();
        }
    }
}

/// Damages a file and returns a description.
fn damage(dir: &Path, rng: &mut Rng) -> String {
    let files = files(dir);
    let database = files.iter().find(|path| path.ends_with("db")).unwrap();
    // Mostly the database, which has most of the data.
    let path = if rng.u8(0..10) < 7 { database } else { &files[rng.usize(..files.len())] };
    let mut bytes = fs::read(path).unwrap();
    let used: Vec<_> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
    let at = if used.is_empty() { 0 } else { used[rng.usize(..used.len())] };
    let what = match rng.u8(0..8) {
        _ if bytes.is_empty() => {
            fs::remove_file(path).unwrap();
            return format!("removed {}", path.display());
        }
        0 => {
            fs::remove_file(path).unwrap();
            return format!("removed {}", path.display());
        }
        1 => {
            bytes.truncate(at);
            format!("cut to {at}")
        }
        2 => {
            let page = at / 4096 * 4096;
            let end = bytes.len().min(page + 4096);
            bytes[page..end].fill(0);
            format!("zeroed the page at {page}")
        }
        3 => {
            let end = bytes.len().min(at + rng.usize(1..300));
            bytes[at..end].iter_mut().for_each(|byte| *byte = rng.u8(..));
            format!("scribbled over {at}..{end}")
        }
        _ => {
            bytes[at] ^= 1 << rng.u8(0..8);
            format!("flipped a bit of byte {at}")
        }
    };
    fs::write(path, bytes).unwrap();
    format!("{what} of {}", path.strip_prefix(dir).unwrap().display())
}

/// Exports and imports the store, checks every task, and returns their number.
fn salvaged(dir: &Path, contents: &Contents) -> Option<usize> {
    let mut out = Vec::new();
    store::export(&settings(dir), &mut out).ok()?.unwrap();
    let text = String::from_utf8(out).unwrap();
    let to = tempfile::tempdir().unwrap();
    let imported = store::import(&settings(to.path()), &mut text.as_bytes()).unwrap();
    let mut found = Vec::new();
    let (opened, _) = LocalStore::open(&settings(to.path()))
        .unwrap()
        .recover(&mut |handed: RecoveryEvent| handed.collect_into(&mut found), Box::new(drop))
        .unwrap();
    assert_eq!(found.len() as u64, imported.tasks);
    for found in &found {
        // If the end of the log is gone, settled tasks may be back. Values never change.
        if let Some((task, _)) = contents.tasks.get(&found.header.id) {
            assert_eq!(opened.reader.read(task.id).unwrap().as_ref(), Some(task));
        }
    }
    close(opened);
    Some(found.len())
}

enum Outcome {
    Whole,
    SetAside,
    Refused(String),
}

/// Opens a store and compares its contents.
fn start(dir: &Path, contents: &Contents) -> Outcome {
    let mut found: Vec<Recovered> = Vec::new();
    let store = match LocalStore::open(&settings(dir)) {
        Ok(store) => store,
        Err(error) => return Outcome::Refused(whole(&error)),
    };
    let (opened, report) = match store
        .recover(&mut |handed: RecoveryEvent| handed.collect_into(&mut found), Box::new(drop))
    {
        Ok(recovered) => recovered,
        Err(error) => return Outcome::Refused(whole(&error)),
    };
    let aside: Vec<_> = report.set_aside.damaged.iter().filter_map(Damage::tasks).collect();
    let mut expected = contents.tasks.clone();
    expected.retain(|id, _| !aside.iter().any(|tasks| tasks.contains(id)));
    let ids: Vec<_> = found.iter().map(|task| task.header.id).collect();
    assert_eq!(ids, expected.keys().copied().collect::<Vec<_>>(), "{:?}", report.set_aside);
    let mut superseded = 0;
    for (task, (written, progress)) in found.iter().zip(expected.values()) {
        for (is, was) in task.progress.iter().zip(progress) {
            if is != was {
                let id = written.id;
                assert_eq!(*is, Progress::Superseded, "{id} was {was:?}: {report:?}");
                superseded += 1;
            }
        }
        let read = opened.reader.read(written.id);
        assert_eq!(
            read.as_ref().ok().map(Option::as_ref),
            Some(Some(written)),
            "{read:?} {report:?}"
        );
    }
    assert_eq!(superseded, report.set_aside.superseded);
    for (node, row) in &opened.replicas {
        assert_eq!(contents.replicas.get(node), Some(row));
    }
    for (key, row) in &opened.idempotency {
        // An older row of the key may be back.
        assert!(contents.idempotency.get(key).is_some_and(|newest| row.task <= newest.task));
    }
    // Idempotency keys may be lost: the ledger does not count them.
    let others = report.set_aside.damaged.len() - aside.len();
    assert!(opened.replicas.len() + others >= contents.replicas.len());
    // The contents survive more writes, settlements and reads.
    let mut rng = Rng::with_seed(expected.len() as u64);
    for (id, task) in found.iter().map(|task| (task.header.id, task)) {
        if rng.bool() {
            opened.committer.remove(id);
            expected.remove(&id);
        } else {
            expected.get_mut(&id).unwrap().1 = task.progress.clone();
        }
    }
    for n in 0..100 {
        let task = task(&mut rng, opened.next_id.0 + n);
        opened.committer.accept(Arc::new(task.clone()), None, None);
        expected.insert(task.id, (task, vec![Progress::Untouched; 2]));
    }
    let (reply, synced) = tokio::sync::oneshot::channel();
    opened.committer.sync(Box::new(|result| {
        let _ = reply.send(result);
    }));
    synced.blocking_recv().unwrap().unwrap();
    for (id, (written, _)) in &expected {
        let read = opened.reader.read(*id);
        assert_eq!(read.as_ref().ok().map(Option::as_ref), Some(Some(written)), "{read:?}");
    }
    close(opened);
    let mut found = Vec::new();
    let (opened, again) = LocalStore::open(&settings(dir))
        .unwrap()
        .recover(&mut |handed: RecoveryEvent| handed.collect_into(&mut found), Box::new(drop))
        .unwrap();
    assert_eq!(again.set_aside.file, None, "{:?}", again.set_aside);
    let found: Vec<_> = found.into_iter().map(|task| (task.header.id, task.progress)).collect();
    let all: Vec<_> = expected.iter().map(|(id, (_, progress))| (*id, progress.clone())).collect();
    assert_eq!(found, all);
    for (id, (written, _)) in &expected {
        let read = opened.reader.read(*id);
        assert_eq!(read.as_ref().ok().map(Option::as_ref), Some(Some(written)), "{read:?}");
    }
    close(opened);
    if aside.is_empty() { Outcome::Whole } else { Outcome::SetAside }
}

fn whole(error: &dyn std::error::Error) -> String {
    let source = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    format!("{error}{source}")
}

/// Checks that an error is one sentence that names a path in the directory and says what to do.
fn is_a_sentence(text: &str, dir: &Path) {
    assert!(!text.contains('\n') && text.len() < 1_000, "{text}");
    assert!(text.contains(&*dir.to_string_lossy()), "{text}");
    assert!(!text.contains(".rs:") && !text.contains("panicked"), "{text}");
    let advice = ["restore", "remove", "move it away", "replicator check"];
    assert!(advice.iter().any(|advice| text.contains(advice)), "{text}");
}

#[test]
fn a_damaged_store_is_recovered_or_set_aside_or_refused() {
    let first = number("DAMAGE_SEED", 1);
    let stores = number("DAMAGED_STORES", 250);
    let temp = tempfile::tempdir().unwrap();
    let origin = temp.path().join("origin");
    let contents = Arc::new(used_store(&origin, &mut Rng::with_seed(first), 400));
    let (mut recovered, mut set_aside) = (0, 0);
    let (mut exports, mut exported) = (0, 0);
    let mut refused: BTreeMap<String, u64> = BTreeMap::new();
    for seed in first..first + stores {
        let dir = temp.path().join(format!("seed-{seed}"));
        copy(&origin, &dir);
        let mut rng = Rng::with_seed(seed);
        let done = damage(&dir, &mut rng);
        let (send, receive) = mpsc::channel();
        let (there, contents) = (dir.clone(), Arc::clone(&contents));
        let starting = thread::spawn(move || {
            let outcome = start(&there, &contents);
            let refused = matches!(outcome, Outcome::Refused(_));
            let left = if refused { salvaged(&there, &contents) } else { None };
            send.send((outcome, left))
        });
        let (outcome, left) = match receive.recv_timeout(PATIENCE) {
            Ok((outcome, left)) => (Ok(outcome), left),
            Err(error) => (Err(error), None),
        };
        match outcome {
            Ok(Outcome::Whole) => recovered += 1,
            Ok(Outcome::SetAside) => set_aside += 1,
            Ok(Outcome::Refused(why)) => {
                is_a_sentence(&why, &dir);
                if let Some(left) = left {
                    exports += 1;
                    exported += left;
                }
                *refused.entry(why.replace(&*dir.to_string_lossy(), "DIR")).or_default() += 1;
            }
            Err(mpsc::RecvTimeoutError::Timeout) => panic!("seed {seed} hangs: {done}"),
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("seed {seed} fails: {done}"),
        }
        starting.join().unwrap().unwrap();
        fs::remove_dir_all(&dir).unwrap();
    }
    eprintln!(
        "seeds {first}.. of {stores} stores: {recovered} whole, {set_aside} with tasks set aside, refused:"
    );
    let all = contents.tasks.len();
    eprintln!("{exports} refused stores were exported with {exported} tasks; each had {all}");
    refused.iter().for_each(|(why, times)| eprintln!("{times:5} {why}"));
}

/// The size of sled's segments and of their headers.
const SEGMENT: usize = 512 << 10;
const SEGMENT_HEADER: usize = 20;

/// Parses a number in sled's encoding, and returns its length.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let at = |n: usize| bytes.get(n).copied().map(u64::from);
    Some(match at(0)? {
        n @ 0..=240 => (n, 1),
        n @ 241..=248 => (240 + 256 * (n - 241) + at(1)?, 2),
        249 => (2288 + 256 * at(1)? + at(2)?, 3),
        n => {
            let bytes = bytes.get(1..n as usize - 246)?;
            let number = bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
            (number, 1 + bytes.len())
        }
    })
}

/// The offsets of the messages that a start reads from sled's log (those after the last snapshot), in
/// write order.
fn messages(store: &Path, log: &[u8]) -> Vec<usize> {
    let snapshot = files(store).iter().find_map(|path| {
        let name = path.file_name()?.to_string_lossy().into_owned();
        i64::from_str_radix(name.strip_prefix("snap.")?, 16).ok()
    });
    let mut segments = BTreeMap::new();
    for (number, segment) in log.chunks(SEGMENT).enumerate() {
        let lsn = i64::from_le_bytes(segment[4..12].try_into().unwrap()) ^ i64::MAX;
        if segment[..SEGMENT_HEADER] != [0; SEGMENT_HEADER] && lsn >= snapshot.unwrap() {
            segments.insert(lsn, (number * SEGMENT, segment));
        }
    }
    let mut found = Vec::new();
    for (begins, segment) in segments.into_values() {
        let mut at = SEGMENT_HEADER;
        // A checksum, the kind of the message, and three numbers, the first of which is its length.
        while let Some(&[_, _, _, _, kind @ 1..=11, ref rest @ ..]) = segment.get(at..) {
            found.push(begins + at);
            let Some((length, mut bytes)) = varint(rest) else { break };
            for _ in 0..2 {
                bytes += varint(&rest[bytes..]).map_or(0, |(_, bytes)| bytes);
            }
            at += 5 + bytes + length as usize;
            if kind == CAP {
                break;
            }
        }
    }
    found
}

/// The message that ends a segment.
const CAP: u8 = 2;

/// sled silently drops a damaged message and the rest of its segment, and continues with pages of
/// different age. Tasks that such a store still has, and later writes, must not be lost.
#[test]
fn a_store_whose_log_lost_the_end_of_a_segment_loses_nothing_that_it_serves() {
    let first = number("DAMAGE_SEED", 1);
    let tried = number("DAMAGED_MESSAGES", 100) as usize;
    let temp = tempfile::tempdir().unwrap();
    let origin = temp.path().join("origin");
    let contents = used_store(&origin, &mut Rng::with_seed(first), 3000);
    let store = origin.join("store-000001");
    let log = fs::read(store.join("db")).unwrap();
    let messages = messages(&store, &log);
    let (mut recovered, mut set_aside, mut refused) = (0, 0, 0);
    for at in messages.iter().step_by(messages.len() / tried) {
        let dir = temp.path().join(format!("message-{at}"));
        copy(&origin, &dir);
        let mut bytes = log.clone();
        bytes[*at] ^= 1;
        fs::write(dir.join("store-000001/db"), bytes).unwrap();
        match start(&dir, &contents) {
            Outcome::Whole => recovered += 1,
            Outcome::SetAside => set_aside += 1,
            Outcome::Refused(why) => {
                is_a_sentence(&why, &dir);
                refused += 1;
            }
        }
        fs::remove_dir_all(&dir).unwrap();
    }
    eprintln!(
        "{} messages: {recovered} whole, {set_aside} set aside, {refused} refused",
        messages.len()
    );
}
