use super::*;
use crate::store::local::tests::{
    accept, close, dead, failed, large, open, refusal, settings, small,
};
use crate::task::{Cause, TaskId};

/// A store with three tasks that was closed.
fn three(dir: &Path) {
    let (opened, ..) = open(dir);
    for id in 1..=3 {
        accept(&opened, &large(id, 20_000)).unwrap();
    }
    opened.committer.save(TaskId(2), vec![dead(Cause::GaveUp), failed(1)]);
    close(opened);
}

fn harm(dir: &Path, harm: impl FnOnce(&Database)) {
    let (opened, ..) = open(dir);
    harm(&opened.reader.files.database());
    close(opened);
}

fn bytes(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(bytes(&path)),
            // Holds the number of the last process.
            false if path.ends_with("LOCK") => {}
            false => all.push((path.clone(), fs::read(path).unwrap())),
        }
    }
    all.sort();
    all
}

#[test]
fn an_intact_store_is_reported_as_such_and_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path());
    let before = bytes(dir.path());
    for repair in [false, true] {
        let checked = check(&settings(dir.path()), repair).unwrap();
        assert_eq!((checked.problems.len(), checked.notes.len()), (0, 0), "{checked:?}");
        assert_eq!((checked.tasks, checked.dead_letters, checked.format), (3, 1, 7));
        assert_eq!((checked.value_bytes, checked.orphans), (60_000, 0));
        assert!(checked.commit > 3 && checked.repaired.is_none());
    }
    assert!(bytes(dir.path()) == before, "a check changes nothing");
}

#[test]
fn damage_is_reported_and_stays_until_a_repair() {
    type Harm = fn(&Database);
    let harms: [(Harm, &str, usize); 5] = [
        (
            |db| drop(db.values.insert(keys::of_chunk(TaskId(2), 0), b"?").unwrap()),
            "the row 000000000000000200000000 of values is cut short",
            2,
        ),
        (
            |db| drop(db.tasks.remove(keys::of_task(TaskId(3))).unwrap()),
            "tasks holds 2 rows, expected 3",
            2,
        ),
        (
            |db| drop(db.meta.insert(keys::SEQUENCE, b"?").unwrap()),
            "the row sequence of meta is cut short",
            3,
        ),
        (
            |db| drop(db.meta.insert(keys::LEDGER, b"?").unwrap()),
            "the row ledger of meta is cut short",
            3,
        ),
        (|db| drop(db.meta.remove(keys::LEDGER).unwrap()), "the row ledger of meta is missing", 3),
    ];
    for (what, expected, left) in harms {
        let dir = tempfile::tempdir().unwrap();
        three(dir.path());
        harm(dir.path(), what);
        let before = bytes(dir.path());
        let checked = check(&settings(dir.path()), false).unwrap();
        assert_eq!(checked.problems, [expected]);
        assert!(bytes(dir.path()) == before, "a check changes nothing");

        let checked = check(&settings(dir.path()), true).unwrap();
        assert_eq!(checked.problems, [expected]);
        let aside = checked.repaired.unwrap();
        assert_eq!(aside.damaged.len(), usize::from(expected.contains("of values")));
        let checked = check(&settings(dir.path()), false).unwrap();
        assert_eq!((checked.problems.len(), checked.tasks), (0, left as u64), "{checked:?}");
        let (opened, recovered, report) = open(dir.path());
        assert_eq!(recovered.len(), left);
        assert!(report.had_marker && opened.next_id > TaskId(3));
        close(opened);
    }
}

#[test]
fn a_store_that_lost_its_end_opens_after_a_repair() {
    let dir = tempfile::tempdir().unwrap();
    three(dir.path());
    let marker_file = MarkerFile::begin(dir.path(), "store-000001", 1_000).unwrap();
    drop(marker_file);
    assert!(refusal(dir.path()).contains("check --repair"));
    let checked = check(&settings(dir.path()), true).unwrap();
    assert_eq!(checked.problems.len(), 1);
    assert!(checked.problems[0].contains("commit 1000"), "{:?}", checked.problems);
    assert_eq!(open(dir.path()).1.len(), 3);
}

#[test]
fn a_store_in_use_or_none_at_all_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = check(&settings(&dir.path().join("none")), false).unwrap_err().to_string();
    assert!(error.contains("none holds no store"), "{error}");
    assert!(!dir.path().join("none").exists(), "it is not created");
    let (opened, ..) = open(dir.path());
    accept(&opened, &small(1)).unwrap();
    let error = check(&settings(dir.path()), true).unwrap_err().to_string();
    assert!(error.contains("is in use"), "{error}");
    close(opened);
}

#[test]
fn a_damaged_log_is_reported_even_if_no_row_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    for id in 1..=30 {
        accept(&opened, &large(id, 100_000)).unwrap();
        opened.committer.remove(TaskId(id));
    }
    accept(&opened, &large(31, 1_000)).unwrap();
    close(opened);
    let file = dir.path().join("store-000001/db");
    let intact = fs::read(&file).unwrap();
    // At least one segment holds only removed rows.
    let reported = (0..intact.len() / (512 << 10)).any(|segment| {
        let mut bytes = intact.clone();
        bytes[segment * (512 << 10) + 1_000] ^= 1;
        fs::write(&file, bytes).unwrap();
        let checked = check(&settings(dir.path()), false).unwrap();
        let reported = checked.notes.iter().any(|note| note.contains("log is damaged"));
        reported && checked.problems.is_empty() && checked.tasks == 1
    });
    assert!(reported);
    assert!(open(dir.path()).2.rebuilt);
}
