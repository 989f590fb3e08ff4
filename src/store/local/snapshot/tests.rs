use std::num::NonZeroU32;
use std::path::Path;

use tokio::sync::oneshot;

use super::*;
use crate::store::journal::Journal;
use crate::store::local::tests::{
    accept, accept_all, close, dead, failed, large, open, settings, small, sync,
};
use crate::store::local::{LocalStore, Opened, StoreSettings, export, import};
use crate::store::{IdempotencyRow, ReplicaRow};
use crate::task::{Cause, Node, ReplicaLimits, Timestamp};

fn begin(opened: &Opened) -> Result<Box<dyn StoreSnapshot>, SnapshotError> {
    let (reply, begun) = oneshot::channel();
    opened.journal.snapshot(Box::new(move |snapshot| drop(reply.send(snapshot))));
    begun.blocking_recv().unwrap()
}

fn text(snapshot: Box<dyn StoreSnapshot>) -> String {
    let mut out = Vec::new();
    snapshot.write(&mut out).unwrap();
    String::from_utf8(out).unwrap()
}

fn node(n: u64) -> Node {
    Node::parse(&format!("http://node-{n}")).unwrap()
}

fn set_replica(opened: &Opened, n: u64, paused: Option<u64>) {
    let pause = paused.map(|since| Timestamp(since).into());
    let limits = ReplicaLimits { rate: NonZeroU32::new(7), ..ReplicaLimits::default() };
    let row = ReplicaRow { pause, limits, renamed_to: None, first_used: Timestamp(1) };
    opened.committer.set_replica(node(n), Some(row), None);
}

fn set_key(opened: &Opened, key: &str, task: u64) {
    let (task, at) = (TaskId(task), Timestamp(task));
    let row = IdempotencyRow { task, fingerprint: [7; 16], at, answer: None };
    opened.committer.set_idempotency(key.into(), row);
}

const TASKS: u64 = 700;

/// Small tasks in rows of their own and in shared ones, large ones, progress of each kind.
fn fill(opened: &Opened) {
    for id in 1..=40 {
        accept(opened, &if id % 8 == 0 { large(id, 30_000) } else { small(id) }).unwrap();
    }
    accept_all(opened, &(41..=TASKS).map(small).collect::<Vec<_>>());
    for id in (1..=TASKS).step_by(3) {
        let other = if id % 2 == 0 { dead(Cause::GaveUp) } else { Progress::Delivered };
        opened.committer.save(TaskId(id), vec![failed(2), other]);
    }
    for n in 1..=300 {
        set_replica(opened, n, None);
        set_key(opened, &format!("key {n:03}"), n);
    }
    sync(opened);
}

/// Changes rows of each tree; `step` makes each call another one.
fn change(opened: &Opened, step: u64) {
    let id = TaskId(step * 7 % TASKS + 1);
    match step % 3 {
        0 => opened.committer.remove(id),
        1 => opened.committer.save(id, vec![Progress::Delivered, failed(9)]),
        _ => opened.committer.save(id, vec![dead(Cause::Rejected), dead(Cause::GaveUp)]),
    }
    accept(opened, &small(TASKS + 1 + step)).unwrap();
    set_replica(opened, step % 400 + 1, Some(step));
    set_key(opened, &format!("key {:03}", step % 400 + 1), TASKS + 1 + step);
    opened.committer.forget_idempotency(vec![format!("key {:03}", (step + 200) % 300).into()]);
    sync(opened);
}

/// A reader that changes the store before it takes more.
struct Changing<'a> {
    opened: &'a Opened,
    text: Vec<u8>,
    lines: u64,
    every: u64,
    step: u64,
}

impl Write for Changing<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        if bytes.ends_with(b"\n") {
            self.lines += 1;
            if self.lines.is_multiple_of(self.every) {
                change(self.opened, self.step);
                self.step += 1;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Without the lease of ids, which each start renews.
fn without_lease(text: &str) -> String {
    let (_, rest) = text.split_once('\n').unwrap();
    rest.to_owned()
}

/// What the store in a closed directory holds.
fn exported(dir: &Path) -> String {
    let mut out = Vec::new();
    export(&settings(dir), &mut out).unwrap().unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_snapshot_is_the_store_at_its_beginning_whatever_changes_while_it_is_read() {
    for every in [1, 3, 50] {
        let dir = tempfile::tempdir().unwrap();
        let (opened, ..) = open(dir.path());
        fill(&opened);
        close(opened);
        let expected = exported(dir.path());
        let (opened, ..) = open(dir.path());
        let snapshot = begin(&opened).unwrap();
        // Some change before anything is read.
        (0..100).for_each(|step| change(&opened, step));
        let mut out = Changing { opened: &opened, text: Vec::new(), lines: 0, every, step: 100 };
        let written = snapshot.write(&mut out).unwrap();
        assert_eq!(written, Exported { tasks: TASKS, problems: vec![] });
        let read = String::from_utf8(out.text).unwrap();
        assert!(without_lease(&read) == without_lease(&expected), "every {every} lines");
        close(opened);
    }
}

#[test]
fn a_snapshot_survives_compactions_and_removals_of_everything() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    fill(&opened);
    let free = opened.reader.free_bytes().unwrap();
    close(opened);
    let expected = exported(dir.path());
    // On a nearly full disk even a small file is rewritten; the reserve itself is not touched.
    let low = StoreSettings { min_free_bytes: free - free / 10, ..settings(dir.path()) };
    let (opened, _) = LocalStore::open(&low).unwrap().recover(&mut drop, Box::new(drop)).unwrap();
    let snapshot = begin(&opened).unwrap();
    (1..=TASKS).for_each(|id| opened.committer.remove(TaskId(id)));
    let mut last = TASKS;
    while opened.reader.compactions() == 0 {
        last += 1;
        accept(&opened, &large(last, 100_000)).unwrap();
        opened.committer.remove(TaskId(last));
        sync(&opened);
    }
    assert!(without_lease(&text(snapshot)) == without_lease(&expected));
    close(opened);
}

#[test]
fn a_snapshot_is_imported() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (opened, ..) = open(from.path());
    fill(&opened);
    let text = text(begin(&opened).unwrap());
    close(opened);
    import(&settings(to.path()), &mut text.as_bytes()).unwrap();
    assert!(exported(to.path()) == text);
    let (cut, _) = text.trim_end().rsplit_once('\n').unwrap();
    let other = tempfile::tempdir().unwrap();
    let error = import(&settings(other.path()), &mut format!("{cut}\n").as_bytes()).unwrap_err();
    assert!(error.to_string().contains("without its last line"), "{error}");
}

#[test]
fn there_is_one_snapshot_at_a_time_and_it_ends_when_it_is_dropped() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    accept(&opened, &small(1)).unwrap();
    let first = begin(&opened).unwrap();
    assert!(matches!(begin(&opened), Err(SnapshotError::Busy)));
    opened.committer.remove(TaskId(1));
    sync(&opened);
    let names = || std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert!(!names().any(|name| name.to_string_lossy().contains("snapshot")), "{:?}", names());
    drop(first);
    assert!(opened.reader.files.database().kept().is_none());
    let second = text(begin(&opened).unwrap());
    assert!(second.ends_with(
        "{\"end\":1,\"tasks\":0,\"skipped\":0,\"replicas\":0,\"idempotency_keys\":0}\n"
    ));
    close(opened);
}

#[test]
fn a_snapshot_of_a_full_disk_ends_with_an_error_and_the_store_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    fill(&opened);
    let snapshot = begin(&opened).unwrap();
    if let Some(kept) = &mut *opened.reader.files.database().kept() {
        kept.give_up("the disk is nearly full");
    }
    change(&opened, 0);
    let error = snapshot.write(&mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "the disk is nearly full");
    change(&opened, 1);
    text(begin(&opened).unwrap());
    close(opened);
}
