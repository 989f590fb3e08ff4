use std::path::Path;

use super::super::tests::{accept, close, dead, failed, large, open, settings, small};
use super::*;

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
        ..small(4)
    };
    accept(&opened, &delete).unwrap();
    opened.committer.save(TaskId(2), vec![failed(2), Progress::Delivered]);
    opened.committer.save(TaskId(4), vec![Progress::Resend, dead(Cause::RetryOverflow)]);
    close(opened);
}

#[test]
fn what_is_exported_and_imported_is_the_same_store() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    filled(from.path());
    let (text, out) = exported(from.path());
    assert_eq!(out, Exported { tasks: 3, problems: vec![] });
    assert_eq!(text.lines().count(), 5);
    let imported = import(&settings(to.path()), &mut text.as_bytes()).unwrap();
    assert_eq!(imported, Imported { tasks: 3, skipped: 0 });
    assert_eq!(exported(to.path()).0, text);
    let (before, tasks, _) = open(from.path());
    let (after, again, _) = open(to.path());
    assert_eq!(tasks, again);
    for id in [1, 2, 4] {
        assert_eq!(before.reader.read(TaskId(id)).unwrap(), after.reader.read(TaskId(id)).unwrap());
    }
    assert!(after.next_id >= before.next_id, "ids stay above");
    let error = import(&settings(from.path()), &mut text.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("is in use"), "{error}");
    close(before);
    close(after);
    let error = import(&settings(to.path()), &mut text.as_bytes()).unwrap_err().to_string();
    assert!(error.contains("holds a store already"), "{error}");
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
fn a_cut_or_wrong_file_is_refused_by_its_line_and_leaves_no_store() {
    let from = tempfile::tempdir().unwrap();
    filled(from.path());
    let (text, _) = exported(from.path());
    let lines: Vec<_> = text.lines().collect();
    let join = |lines: &[&str]| lines.join("\n") + "\n";
    let wrong = [
        (String::new(), "line 1: the file is empty"),
        (text[..text.len() - 1].to_owned(), "line 5: it is cut"),
        (text[..lines[0].len() + 30].to_owned(), "line 2: it is cut"),
        (join(&lines[..4]), "line 5: the file ends without its last line"),
        (join(&[lines[0], lines[1], lines[4]]), "line 3: 3 tasks are announced and 1 came"),
        (join(&[lines[0], lines[2], lines[1], lines[3], lines[4]]), "line 3: \"task\" must be"),
        (text.clone() + "{}\n", "line 6: something follows the last line"),
        (text.replacen("\"export\":1", "\"export\":2", 1), "line 1: it is an export in a format"),
        (text.replacen("http://node-0", "gopher://node-0", 1), "line 2: \"replicas\": "),
        (text.replacen("retry_overflow", "boredom", 1), "line 4: \"cause\" \"boredom\" is not"),
        (text.replacen("\"value\":\"", "\"value\":\"!", 1), "line 2: \"value\": "),
        (text.replacen("\"key-1\"", "\"..\"", 1), "line 2: \"key\" must not be \"..\""),
        (text.replacen("\"user_id\"", "\"user\"", 1), "line 2: unknown field `user`"),
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
fn an_export_leaves_out_what_it_cannot_read_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let (opened, ..) = open(dir.path());
    let key = super::super::keys::of_chunk(TaskId(2), 3);
    opened.reader.files.database().values.remove(key).unwrap();
    close(opened);
    let (text, out) = exported(dir.path());
    assert_eq!(out.tasks, 2);
    assert_eq!(out.problems, ["the row 000000000000000200000003 of values is missing"]);
    assert!(text.ends_with("{\"end\":1,\"tasks\":2,\"skipped\":1}\n"), "{text}");
    let to = tempfile::tempdir().unwrap();
    let imported = import(&settings(to.path()), &mut text.as_bytes()).unwrap();
    assert_eq!(imported, Imported { tasks: 2, skipped: 1 });
}
