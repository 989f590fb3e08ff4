use std::num::NonZeroU32;
use std::path::Path;

use super::*;
use crate::store::local::tests::{accept, close, dead, failed, large, open, settings, small};
use crate::store::{IdempotencyAnswer, IdempotencyRow, ReplicaRow};
use crate::task::{
    Cause, Consistency, Node, Operation, ReplicaLimits, ReplicaPause, Task, Timestamp, Trace,
};

fn exported(dir: &Path) -> (String, Exported) {
    let mut out = Vec::new();
    let exported = export(&settings(dir), &mut out).unwrap().unwrap();
    (String::from_utf8(out).unwrap(), exported)
}

fn filled(dir: &Path) {
    let (opened, ..) = open(dir);
    accept(&opened, &small(1)).unwrap();
    accept(&opened, &large(2, 100_000)).unwrap();
    let delete = Task {
        operation: Operation::Delete,
        value: bytes::Bytes::new(),
        key: "\u{0}/%?#\u{1F980}\n".into(),
        expires_at: Some(Timestamp(u64::MAX)),
        user_id: Some("ürsula".into()),
        consistency: Consistency::Strong,
        primary: None,
        trace: Some(Trace { parent: "00-a-b-01".into(), state: Some("k=v".into()) }),
        ..small(4)
    };
    accept(&opened, &delete).unwrap();
    let node = |text| Node::parse(text).unwrap();
    let used = ReplicaRow::new(Timestamp(2));
    let until = Some(Timestamp(4));
    let row = ReplicaRow {
        pause: Some(ReplicaPause { since: Timestamp(3), until }),
        limits: ReplicaLimits { rate: NonZeroU32::new(9), ..ReplicaLimits::default() },
        renamed_to: Some(node("http://b")),
        ..used.clone()
    };
    opened.committer.set_replica(node("http://a"), Some(row), None);
    opened.committer.set_replica(node("http://b"), Some(used), None);
    let answer = IdempotencyAnswer { success: true, acked: vec![0, 1], failed: vec![], needed: 2 };
    let row = |answer| IdempotencyRow {
        task: TaskId(4),
        fingerprint: [0xa5; 16],
        at: Timestamp(6),
        answer,
    };
    opened.committer.set_idempotency("a \"key\"".into(), row(None));
    opened.committer.set_idempotency("z".into(), row(Some(answer)));
    opened.committer.save(TaskId(2), vec![failed(2), Progress::Delivered]);
    opened.committer.save(TaskId(4), vec![Progress::Resend, dead(Cause::Refused)]);
    close(opened);
}

#[test]
fn an_exported_and_imported_store_is_the_same() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    filled(from.path());
    let (text, out) = exported(from.path());
    assert_eq!(out, Exported { tasks: 3, problems: vec![] });
    assert_eq!(text.lines().count(), 9);
    let imported = import(&settings(to.path()), &mut text.as_bytes()).unwrap();
    assert_eq!(imported, Imported { tasks: 3, skipped: 0 });
    assert_eq!(exported(to.path()).0, text);
    let (before, tasks, _) = open(from.path());
    let (after, again, _) = open(to.path());
    assert_eq!(tasks, again);
    assert_eq!((before.replicas.len(), before.idempotency.len()), (2, 2));
    assert_eq!(before.replicas, after.replicas);
    assert_eq!(before.idempotency, after.idempotency);
    for id in [1, 2, 4] {
        assert_eq!(before.reader.read(TaskId(id)).unwrap(), after.reader.read(TaskId(id)).unwrap());
    }
    assert!(after.next_id >= before.next_id, "new ids stay above the old ones");
    let error = import(&settings(from.path()), &mut text.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("is in use"), "{error}");
    close(before);
    close(after);
    let error = import(&settings(to.path()), &mut text.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("holds a store already"), "{error}");
}

/// Clients send integers, so a hand-written file may contain them.
#[test]
fn a_user_id_that_is_an_integer_is_imported_as_text() {
    for (user, kept) in [
        ("-7", Some("-7")),
        ("18446744073709551615", Some("18446744073709551615")),
        ("\"a\"", Some("a")),
        ("null", None),
    ] {
        let to = tempfile::tempdir().unwrap();
        let text = EXPORT_1.replace("\"user_id\":null", &format!("\"user_id\":{user}"));
        import(&settings(to.path()), &mut text.as_bytes()).unwrap();
        assert_eq!(open(to.path()).1[0].header.user_id.as_deref(), kept);
    }
    let to = tempfile::tempdir().unwrap();
    let text = EXPORT_1.replace("\"user_id\":null", "\"user_id\":1.5");
    let error = import(&settings(to.path()), &mut text.as_bytes()).unwrap_err().to_string();
    let rule = "line 2: \"user_id\" must be a string, an integer of 64 bits or null";
    assert!(error.starts_with(rule), "{error}");
}

/// Version 1, as written by the first release.
const EXPORT_1: &str = r#"{"export":1,"tasks":1,"next_id":9}
{"task":7,"key":"k","operation":"SET","value":"dg==","accepted_at":7,"expires_at":null,"replicas":["http://a"],"user_id":null,"progress":[{"state":"delivered"}]}
{"end":1,"tasks":1,"skipped":0}
"#;

#[test]
fn an_export_of_version_1_is_imported() {
    let to = tempfile::tempdir().unwrap();
    let imported = import(&settings(to.path()), &mut EXPORT_1.as_bytes()).unwrap();
    assert_eq!(imported, Imported { tasks: 1, skipped: 0 });
    let (opened, recovered, _) = open(to.path());
    let header = &recovered[0].header;
    assert_eq!((header.id, header.consistency), (TaskId(7), Consistency::Eventual));
    assert_eq!((&header.trace, recovered[0].progress.len()), (&None, 1));
    assert!(opened.replicas.is_empty() && opened.idempotency.is_empty());
}

#[test]
fn an_empty_store_is_exported_and_imported_too() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    close(open(from.path()).0);
    let (text, _) = exported(from.path());
    import(&settings(to.path()), &mut text.as_bytes()).unwrap();
    assert!(open(to.path()).1.is_empty());
}

#[test]
fn a_line_without_an_end_is_refused_at_the_limit() {
    let to = tempfile::tempdir().unwrap();
    let mut endless = std::io::BufReader::new(std::io::repeat(b' '));
    let error = import(&settings(to.path()), &mut endless).unwrap_err().to_string();
    let expected = "line 1: it is longer than 64.0 KiB, the limit of a line";
    assert!(error.starts_with(expected) && error.ends_with("nothing was imported"), "{error}");
}

#[test]
fn a_truncated_or_invalid_file_is_refused_with_the_line_and_leaves_no_store() {
    let from = tempfile::tempdir().unwrap();
    filled(from.path());
    let (text, _) = exported(from.path());
    let lines: Vec<_> = text.lines().collect();
    let join = |lines: &[&str]| lines.join("\n") + "\n";
    let next_id = |id| {
        let (before, after) = text.split_once("\"next_id\":").unwrap();
        format!(
            "{before}\"next_id\":{id}{}",
            after.trim_start_matches(|c: char| c.is_ascii_digit())
        )
    };
    let wrong = [
        (String::new(), "line 1: the file is empty"),
        (text[..text.len() - 1].to_owned(), "line 9: it is cut"),
        (text[..lines[0].len() + 30].to_owned(), "line 2: it is cut"),
        (join(&lines[..8]), "line 9: the file ends without its last line"),
        (join(&[lines[0], lines[1], lines[8]]), "line 3: expected 3 tasks, got 1"),
        (join(&[lines[0], lines[2], lines[1]]), "line 3: \"task\" must be"),
        (join(&[lines[0], lines[5], lines[4]]), "line 3: \"replica\" must be greater"),
        (join(&[lines[0], lines[7], lines[6]]), "line 3: \"idempotency\" must be greater"),
        (
            join(&[&lines[..6], &lines[7..]].concat()),
            "line 8: expected 2 replicas and 2 idempotency keys, got 2 and 1",
        ),
        (
            text.replacen("\"renamed_to\":\"http", "\"renamed_to\":\"ftp", 1),
            "line 5: \"renamed_to\": ",
        ),
        (text.replacen("a5a5", "+5a5", 1), "line 7: \"fingerprint\" must be 32"),
        (
            text.replacen("\"z\"", &format!("{:?}", "z".repeat(321)), 1),
            "line 8: \"idempotency\" must have",
        ),
        (text.replacen("\"00-a-b-01\"", "null", 1), "line 4: \"trace_state\" needs"),
        // There would be no id left after it.
        (
            text.replacen("\"task\":4", &format!("\"task\":{}", u64::MAX), 1),
            "line 4: \"task\" must",
        ),
        (next_id(u64::MAX / 2 + 1), "line 1: \"next_id\" must not be above"),
        (text.replacen("00-a-b-01", &"0".repeat(65), 1), "line 4: \"trace_parent\" or"),
        (text.clone() + "{}\n", "line 10: nothing must follow the last line"),
        (
            text.replacen("\"export\":2", "\"export\":3", 1),
            "line 1: this binary does not know this export format",
        ),
        (text.replacen("http://node-0", "gopher://node-0", 1), "line 2: \"replicas\": "),
        (
            text.replacen("\"cause\":\"refused\"", "\"cause\":\"boredom\"", 1),
            "line 4: \"cause\" \"boredom\" is not",
        ),
        (text.replacen("\"value\":\"", "\"value\":\"!", 1), "line 2: \"value\": "),
        (text.replacen("\"key-1\"", "\"..\"", 1), "line 2: \"key\" must not be \"..\""),
        (text.replacen("\"user_id\"", "\"user\"", 1), "line 2: unknown field `user`"),
        (text.replacen("\"user_id\"", "\"\\u001b[2J\"", 1), "line 2: unknown field `\\u{1b}[2J`"),
        (
            text.replacen("http://node-1:8001", "HTTP://node-0:8000", 1),
            "line 2: \"replicas\" names http://node-0:8000/base twice",
        ),
        (text.replacen("00-a-b-01", "\\n", 1), "line 4: \"trace_parent\" and"),
    ];
    for (text, expected) in wrong {
        let to = tempfile::tempdir().unwrap();
        let error = import(&settings(to.path()), &mut text.as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
        assert!(error.ends_with("nothing was imported"), "{error}");
        assert!(open(to.path()).1.is_empty());
    }
}

#[test]
fn an_export_skips_and_reports_what_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let (opened, ..) = open(dir.path());
    let key = crate::store::local::keys::of_chunk(TaskId(2), 3);
    opened.reader.files.database().values.remove(key).unwrap();
    close(opened);
    let (text, out) = exported(dir.path());
    assert_eq!(out.tasks, 2);
    assert_eq!(out.problems, ["the row 000000000000000200000003 of values is missing"]);
    assert!(text.contains("{\"end\":1,\"tasks\":2,\"skipped\":1,"), "{text}");
    let to = tempfile::tempdir().unwrap();
    let imported = import(&settings(to.path()), &mut text.as_bytes()).unwrap();
    assert_eq!(imported, Imported { tasks: 2, skipped: 1 });
}
