use serde_json::Value;

use super::*;
use crate::store::local::Opened;
use crate::store::local::tests::{
    accept, accept_all, close, dead, failed, large, open, refusal, small,
};
use crate::store::records::Recovered;
use crate::store::{IdempotencyRow, ReplicaRow};
use crate::task::Task;

type Harm = fn(&Database);

fn flip(tree: &sled::Tree, id: u64, at: usize) {
    let row = tree.scan_prefix(keys::of_task(TaskId(id))).next().unwrap().unwrap();
    let mut bytes = row.1.to_vec();
    let at = at.min(bytes.len() - 1);
    bytes[at] ^= 1;
    tree.insert(row.0, bytes).unwrap();
}

fn harm(dir: &Path, harm: impl FnOnce(&Database)) {
    let (opened, ..) = open(dir);
    harm(&opened.reader.files.database());
    close(opened);
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn ids(recovered: &[Recovered]) -> Vec<u64> {
    recovered.iter().map(|task| task.header.id.0).collect()
}

/// Three tasks of different keys; the second has rows in every tree.
fn three(opened: &Opened) {
    for id in 1..=3 {
        accept(opened, &large(id, 20_000)).unwrap();
    }
    opened.committer.save(TaskId(2), vec![dead(Cause::GaveUp), failed(1)]);
}

#[test]
fn a_task_with_a_damaged_row_is_set_aside_whole_and_the_rest_is_served() {
    let harms: [(Harm, &str); 7] = [
        (|db| flip(&db.tasks, 2, 9), "the row 0000000000000002 of tasks fails its checksum"),
        (|db| flip(&db.tasks, 2, 3), "the row 0000000000000002 of tasks fails its checksum"),
        (|db| flip(&db.values, 2, 99), "the row 000000000000000200000000 of values fails"),
        (|db| flip(&db.progress, 2, 99), "the row 0000000000000002 of progress fails"),
        (|db| flip(&db.dead_letters, 2, 99), "the row 00000000000000020000 of dead_letters fails"),
        (
            |db| drop(db.values.remove(keys::of_chunk(TaskId(2), 1)).unwrap()),
            "the row 000000000000000200000001 of values is missing",
        ),
        (
            |db| {
                let row = db.tasks.get(keys::of_task(TaskId(2))).unwrap().unwrap();
                db.put(Tree::Tasks, &keys::of_task(TaskId(2)), &row).unwrap();
            },
            "the row 0000000000000002 of tasks does not decode",
        ),
    ];
    for (what, expected) in harms {
        let dir = tempfile::tempdir().unwrap();
        let (opened, ..) = open(dir.path());
        three(&opened);
        let rows: usize = 1 + 4 + 1 + 1;
        close(opened);
        harm(dir.path(), what);

        let (opened, recovered, report) = open(dir.path());
        assert_eq!(ids(&recovered), [1, 3]);
        let SetAside { file, damaged, tasks, rows: rows_aside, superseded } = report.set_aside;
        assert_eq!((damaged.len(), tasks, superseded), (1, 1, 0));
        assert!(damaged[0].to_string().starts_with(expected), "{}", damaged[0]);
        assert_eq!(damaged[0].task(), Some(TaskId(2)));
        let missing = usize::from(expected.ends_with("is missing"));
        assert_eq!(rows_aside, (rows - missing) as u64);
        assert_eq!(report.quarantined_rows, rows_aside);
        let lines = lines(&file.unwrap());
        assert_eq!(lines.len(), 1 + rows - missing);
        assert_eq!(lines[0]["store"], "store-000001");
        assert!(lines[1..].iter().all(|line| line["task"] == 2));
        let marked = lines[1..].iter().filter(|line| !line["damage"].is_null());
        assert_eq!(marked.count(), 1 - missing);
        assert_eq!(opened.reader.read(TaskId(3)).unwrap(), Some(large(3, 20_000)));
        close(opened);

        // The next start still reports the rows and does not set them aside again.
        let (opened, recovered, report) = open(dir.path());
        assert_eq!((recovered.len(), report.quarantined_rows), (2, rows_aside));
        assert_eq!((report.set_aside, report.orphans_removed), (SetAside::default(), 0));
        close(opened);
    }
}

/// A task, then ten of one commit in one row, then another. Some have progress.
fn ten_in_a_row(opened: &Opened) {
    let of_one_key = |id| Task { key: "one key".to_owned(), ..small(id) };
    accept(opened, &of_one_key(1)).unwrap();
    let ten: Vec<_> =
        (11..=20).map(|id| if id == 15 { of_one_key(id) } else { small(id) }).collect();
    accept_all(opened, &ten);
    accept(opened, &small(30)).unwrap();
    for id in [1, 12, 16, 30] {
        opened.committer.save(TaskId(id), vec![dead(Cause::RetryOverflow), failed(1)]);
    }
    opened.committer.remove(TaskId(11));
    opened.committer.remove(TaskId(19));
}

#[test]
fn a_damaged_row_of_several_tasks_is_set_aside_whole_and_the_rest_is_served() {
    // In the checksum, in the lengths and the offsets, in the first value, at the end.
    for at in [2, 5, 7, 8, 74, 10_000] {
        let dir = tempfile::tempdir().unwrap();
        let (opened, ..) = open(dir.path());
        ten_in_a_row(&opened);
        // The task of this key was set aside, and the next one was settled.
        for (key, task) in [("set aside", 15), ("settled", 1)] {
            let row = IdempotencyRow {
                task: TaskId(task),
                fingerprint: [1; 16],
                at: Timestamp(1),
                answer: None,
            };
            opened.committer.set_idempotency(key.into(), row);
        }
        close(opened);
        harm(dir.path(), |db| flip(&db.tasks, 11, at));
        let (opened, recovered, report) = open(dir.path());
        assert_eq!(ids(&recovered), [1, 30]);
        let aside = report.set_aside;
        assert_eq!(aside.damaged.len(), 1);
        let expected =
            "the row 000000000000000b of tasks fails its checksum; it may hold tasks up to 29";
        assert_eq!(aside.damaged[0].to_string(), expected);
        assert_eq!(aside.damaged[0].tasks(), Some(TaskId(11)..=TaskId(29)));
        assert!((1..=8).contains(&aside.tasks), "{}", aside.tasks);
        // With the progress and the dead letters of two tasks.
        assert_eq!((aside.rows, report.orphans_removed), (1 + 2 + 2, 0));
        let lines = lines(&aside.file.unwrap());
        let of = |id: u64| lines[1..].iter().filter(|line| line["task"] == id).count();
        assert_eq!((of(11), of(12), of(16)), (1, 2, 2));
        assert_eq!(recovered[1].progress, [dead(Cause::RetryOverflow), failed(1)]);
        if matches!(at, 2 | 74 | 10_000) {
            // The key can still be read.
            assert_eq!((aside.tasks, aside.superseded), (8, 2));
            assert_eq!(recovered[0].progress, [Progress::Superseded, Progress::Superseded]);
        }
        assert_eq!(
            opened.idempotency.iter().map(|(key, _)| &**key).collect::<Vec<_>>(),
            ["settled"]
        );
        close(opened);
        let (_, again, report) = open(dir.path());
        assert_eq!((again, report.rebuilt), (recovered, false));
    }
}

#[test]
fn a_task_with_damaged_progress_is_set_aside_alone_whatever_shares_its_row() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    ten_in_a_row(&opened);
    close(opened);
    harm(dir.path(), |db| {
        flip(&db.progress, 12, 9);
        flip(&db.dead_letters, 16, 9);
    });
    let (opened, recovered, report) = open(dir.path());
    assert_eq!(ids(&recovered), [1, 13, 14, 15, 17, 18, 20, 30]);
    let aside = report.set_aside;
    let damaged: Vec<_> = aside.damaged.iter().map(Damage::tasks).collect();
    assert_eq!(damaged, [12, 16].map(|id| Some(TaskId(id)..=TaskId(id))));
    // Each with the row that it shares.
    assert_eq!((aside.tasks, aside.rows), (2, 2 * 3));
    let lines = lines(&aside.file.unwrap());
    assert!(lines[1..4].iter().all(|line| line["task"] == 12));
    assert!(lines[4..].iter().all(|line| line["task"] == 16));
    close(opened);
    let (_, again, report) = open(dir.path());
    assert_eq!((again, report.rebuilt), (recovered, false));
}

#[test]
fn a_damaged_row_of_several_tasks_is_not_removed_with_one_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    ten_in_a_row(&opened);
    flip(&opened.reader.files.database().tasks, 11, 74);
    flip(&opened.reader.files.database().tasks, 30, 9);
    [11, 14, 30].into_iter().for_each(|id| opened.committer.remove(TaskId(id)));
    close(opened);
    let (_, recovered, report) = open(dir.path());
    // Only task 30 can have been alone in its row.
    assert_eq!((ids(&recovered), report.set_aside.rows), (vec![1], 1 + 2 + 2));
}

#[test]
fn a_row_that_was_set_aside_can_be_read_from_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    accept(&opened, &small(7)).unwrap();
    close(opened);
    harm(dir.path(), |db| flip(&db.tasks, 7, 2));
    let file = open(dir.path()).2.set_aside.file.unwrap();
    assert_eq!(file, dir.path().join("quarantine/000001.jsonl"));
    let line = &lines(&file)[1];
    let row = STANDARD.decode(line["row"].as_str().unwrap()).unwrap();
    assert!(row.windows(7).any(|window| window == b"value-7"));
    assert_eq!(
        (line["tree"].as_str(), line["key"].as_str()),
        (Some("tasks"), Some("0000000000000007"))
    );
}

#[test]
fn a_row_with_an_unknown_key_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    three(&opened);
    close(opened);
    harm(dir.path(), |db| drop(db.values.insert(b"odd", b"bytes").unwrap()));
    let (opened, recovered, report) = open(dir.path());
    assert_eq!((recovered.len(), report.set_aside.rows), (3, 1));
    assert_eq!(opened.reader.files.database().values.len(), 3 * 4);
}

#[test]
fn a_damaged_row_without_a_task_is_set_aside_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    three(&opened);
    for node in ["http://a", "http://b"] {
        let row = ReplicaRow::new(Timestamp(1));
        opened.committer.set_replica(Node::parse(node).unwrap(), Some(row), None);
    }
    // The first key begins with the bytes of task 2.
    for key in ["\0\0\0\0\0\0\0\x02", "key"] {
        let (task, at) = (TaskId(2), Timestamp(1));
        let row = IdempotencyRow { task, fingerprint: [1; 16], at, answer: None };
        opened.committer.set_idempotency(key.into(), row);
    }
    close(opened);
    harm(dir.path(), |db| {
        let replicas = db.tree(Tree::Replicas);
        let mut row = replicas.get(b"http://b").unwrap().unwrap().to_vec();
        row[6] ^= 1;
        replicas.insert(b"http://b", row).unwrap();
        let keys = db.tree(Tree::Idempotency);
        keys.insert("\0\0\0\0\0\0\0\x02", b"?").unwrap();
    });
    let (opened, recovered, report) = open(dir.path());
    assert_eq!(ids(&recovered), [1, 2, 3]);
    assert_eq!(
        opened.replicas.iter().map(|(node, _)| node.as_str()).collect::<Vec<_>>(),
        ["http://a"]
    );
    assert_eq!(opened.idempotency.iter().map(|(key, _)| &**key).collect::<Vec<_>>(), ["key"]);
    let damaged: Vec<_> = report.set_aside.damaged.iter().map(ToString::to_string).collect();
    let cut = "the row 0000000000000002 of idempotency is cut short";
    assert_eq!(damaged, ["the row http://b of replicas fails its checksum", cut]);
    assert!(report.set_aside.damaged.iter().all(|damage| damage.task().is_none()));
    assert_eq!((report.set_aside.rows, report.set_aside.superseded), (2, 0));
    let lines = lines(&report.set_aside.file.unwrap());
    assert!(lines[1..].iter().all(|line| line["task"].is_null() && line["damage"].is_string()));
    close(opened);
    let (opened, recovered, report) = open(dir.path());
    assert_eq!((recovered.len(), report.set_aside), (3, SetAside::default()));
    assert_eq!((opened.replicas.len(), opened.idempotency.len()), (1, 1));
}

#[test]
fn a_missing_row_is_refused_even_beside_a_damaged_one() {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    three(&opened);
    close(opened);
    harm(dir.path(), |db| {
        flip(&db.tasks, 2, 2);
        db.tasks.remove(keys::of_task(TaskId(3))).unwrap().unwrap();
    });
    let error = refusal(dir.path());
    assert!(error.contains("tasks holds 2 rows, expected 3"), "{error}");
    assert!(!dir.path().join(NAME).exists());
}

/// Recovers three writes of one key, with the progress of the first, after damage.
#[track_caller]
fn after_damage(older: Vec<Progress>, damaged: Harm) -> (Vec<Recovered>, SetAside) {
    let dir = tempfile::tempdir().unwrap();
    let (opened, ..) = open(dir.path());
    let of_one_key = |id| Task { key: "one key".to_owned(), ..small(id) };
    accept(&opened, &of_one_key(1)).unwrap();
    accept(&opened, &small(2)).unwrap();
    accept(&opened, &of_one_key(3)).unwrap();
    accept(&opened, &of_one_key(4)).unwrap();
    opened.committer.save(TaskId(1), older);
    opened.committer.save(TaskId(3), vec![failed(1), Progress::Untouched]);
    close(opened);
    harm(dir.path(), damaged);
    let (opened, recovered, report) = open(dir.path());
    close(opened);
    assert_eq!(open(dir.path()).1, recovered);
    (recovered, report.set_aside)
}

#[test]
fn an_older_write_of_the_key_is_not_sent_after_one_that_was_set_aside() {
    let damaged: [Harm; 3] = [
        |db| flip(&db.progress, 3, 99),
        // The checksum is wrong, but the key can still be read.
        |db| flip(&db.tasks, 3, 2),
        |db| flip(&db.tasks, 3, 10_000),
    ];
    for harm in damaged {
        let older = vec![Progress::Untouched, dead(Cause::RetryOverflow)];
        let (recovered, set_aside) = after_damage(older, harm);
        assert_eq!(ids(&recovered), [1, 2, 4]);
        assert_eq!(set_aside.superseded, 2);
        assert_eq!(recovered[0].progress, [Progress::Superseded, Progress::Superseded]);
        // Other keys, and newer writes of this key, stay pending.
        assert_eq!(recovered[1].progress, [Progress::Untouched, Progress::Untouched]);
        assert_eq!(recovered[2].progress, [Progress::Untouched, Progress::Untouched]);
    }
}

#[test]
fn settled_deliveries_of_an_older_write_are_not_superseded() {
    let older = vec![Progress::Delivered, dead(Cause::GaveUp)];
    let (recovered, set_aside) = after_damage(older.clone(), |db| flip(&db.progress, 3, 99));
    assert_eq!(set_aside.superseded, 0);
    assert_eq!(recovered[0].progress, older);
}

#[test]
fn older_writes_stay_pending_if_the_key_cannot_be_read() {
    let (recovered, set_aside) = after_damage(vec![Progress::Untouched; 2], |db| {
        let key = keys::of_task(TaskId(3));
        db.tasks.insert(key, vec![0xff; 60]).unwrap();
    });
    assert_eq!(set_aside.superseded, 0);
    assert_eq!(ids(&recovered), [1, 2, 4]);
}

#[test]
fn damage_in_meta_is_refused() {
    for key in [keys::LEDGER, keys::SEQUENCE, keys::SETTLING, keys::FORMAT_VERSION] {
        let dir = tempfile::tempdir().unwrap();
        let (opened, ..) = open(dir.path());
        three(&opened);
        close(opened);
        harm(dir.path(), |db| {
            // After the last ledger, so that closing does not write the row again.
            let mut row = db.meta.get(key).unwrap().unwrap().to_vec();
            row[1] ^= 1;
            db.meta.insert(key, row).unwrap();
        });
        let error = refusal(dir.path());
        assert!(error.contains("of meta fails its checksum"), "{error}");
    }
}
