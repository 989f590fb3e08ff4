//! `check`, `export` and `import` as an operator runs them, and a daemon on a damaged store.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use crate::support::daemon::command;
use crate::support::{Behaviour, Daemon, Replica, delete, set};

fn run(args: &[&str], dir: &Path) -> Output {
    let command = command().args(args).arg("--data-dir").arg(dir).stdin(Stdio::null()).output();
    command.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// A stopped store with writes for one replica that is up and one that is down.
async fn backlog(dir: &Path, up: &Replica, down: &Replica) {
    down.behave(|_| Behaviour::Answer(503, "", ""));
    let mut daemon = Daemon::start_on(dir, &["--retry-base", "1h"]).await;
    daemon.accept(&set("small", "value", &[up, down])).await;
    daemon.accept(&set("large", &"x".repeat(100_000), &[up, down])).await;
    daemon.accept(&set("gone", "soon", &[up, down])).await;
    daemon.accept(&delete("gone", &[up, down])).await;
    down.until_seen(4).await;
    up.until_seen(4).await;
    assert!(daemon.terminate().await.success());
}

#[tokio::test]
async fn an_imported_backlog_is_delivered() {
    let (up, down) = (Replica::start().await, Replica::start().await);
    let temp = tempfile::tempdir().unwrap();
    let (here, there) = (temp.path().join("here"), temp.path().join("there"));
    backlog(&here, &up, &down).await;
    let sequence = up.seen().last().unwrap().sequence();

    let file = temp.path().join("export.jsonl");
    let output = run(&["export", "--output", file.to_str().unwrap()], &here);
    assert!(output.status.success(), "{output:?}");
    let again = run(&["export"], &here);
    assert_eq!(text(&again.stdout), fs::read_to_string(&file).unwrap());
    let overwrite = run(&["export", "--output", file.to_str().unwrap()], &here);
    assert_eq!(overwrite.status.code(), Some(1), "no file is overwritten");

    let output = run(&["import", "--input", file.to_str().unwrap()], &there);
    assert!(output.status.success(), "{output:?}");
    assert!(run(&["check"], &there).status.success());
    let output = run(&["import", "--input", file.to_str().unwrap()], &there);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("holds a store already"), "{output:?}");

    down.behave(|_| Behaviour::Apply);
    let daemon = Daemon::start_on(&there, &[]).await;
    daemon.until_drained().await;
    down.until_holds("small", "value").await;
    down.until_holds("large", &"x".repeat(100_000)).await;
    down.until_gone("gone").await;
    daemon.accept(&set("new", "one", &[&down])).await;
    down.until_holds("new", "one").await;
    assert!(down.seen().last().unwrap().sequence() > sequence, "the sequence continues");
    // Settled deliveries are not repeated by the other daemon.
    assert_eq!(up.seen().len(), 4);
}

#[tokio::test]
async fn a_store_that_lost_its_end_is_rejected_with_one_line_until_it_is_repaired() {
    let (up, down) = (Replica::start().await, Replica::start().await);
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("data");
    backlog(&dir, &up, &down).await;
    let whole = run(&["check", "--json"], &dir);
    assert!(whole.status.success(), "{whole:?}");
    let report: serde_json::Value = serde_json::from_slice(&whole.stdout).unwrap();
    assert_eq!((&report["whole"], &report["format"]), (&true.into(), &7.into()));

    // The `COMMITTED` of a store with later commits.
    let store = dir.join("store-000001/db");
    let before = fs::read(&store).unwrap();
    let witness = fs::read(dir.join("COMMITTED")).unwrap();
    let mut daemon = Daemon::start_on(&dir, &["--retry-base", "1h"]).await;
    daemon.accept(&set("more", "value", &[&up, &down])).await;
    daemon.kill();
    assert_ne!(fs::read(dir.join("COMMITTED")).unwrap(), witness);
    fs::write(&store, before).unwrap();
    for name in fs::read_dir(dir.join("store-000001")).unwrap() {
        let path = name.unwrap().path();
        if path.file_name().unwrap().to_str().unwrap().starts_with("snap.") {
            fs::remove_file(path).unwrap();
        }
    }

    let output = run(&["--port", "0"], &dir);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let printed = text(&output.stderr);
    let printed: Vec<_> = printed.lines().filter(|line| line.starts_with("replicator: ")).collect();
    assert_eq!(printed.len(), 1, "{output:?}");
    assert!(printed[0].contains("has lost the end of") && printed[0].contains("check --repair"));
    assert!(!text(&output.stderr).contains("panicked"), "{output:?}");

    let output = run(&["check"], &dir);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stdout).contains("damaged: the end of"), "{output:?}");
    let output = run(&["check", "--repair"], &dir);
    assert!(output.status.success(), "{output:?}");
    assert!(run(&["check"], &dir).status.success());
    down.behave(|_| Behaviour::Apply);
    let daemon = Daemon::start_on(&dir, &[]).await;
    daemon.until_drained().await;
    down.until_holds("small", "value").await;
}

#[tokio::test]
async fn a_damaged_database_is_reported_without_a_panic() {
    let (up, down) = (Replica::start().await, Replica::start().await);
    let temp = tempfile::tempdir().unwrap();
    let origin = temp.path().join("origin");
    backlog(&origin, &up, &down).await;
    let db = fs::read(origin.join("store-000001/db")).unwrap();
    let used: Vec<_> = (0..db.len()).filter(|&at| db[at] != 0).collect();
    for eighth in 0..8 {
        let dir = temp.path().join(format!("copy-{eighth}"));
        fs::create_dir_all(dir.join("store-000001")).unwrap();
        for name in ["CURRENT", "COMMITTED", "store-000001/conf"] {
            fs::copy(origin.join(name), dir.join(name)).unwrap();
        }
        let mut damaged = db.clone();
        damaged[used[eighth * used.len() / 8]] ^= 4;
        fs::write(dir.join("store-000001/db"), damaged).unwrap();
        let checked = run(&["check"], &dir);
        let printed = format!("{}{}", text(&checked.stderr), text(&checked.stdout));
        assert!(!printed.contains("panicked") && !printed.contains("backtrace"), "{printed}");
        if checked.status.success() {
            continue;
        }
        assert_eq!(checked.status.code(), Some(1), "{printed}");
        let started = run(&["--port", "0"], &dir);
        let printed = text(&started.stderr);
        assert_eq!(started.status.code(), Some(1), "{printed}");
        assert!(!printed.contains("panicked") && printed.contains("restore"), "{printed}");
    }
}

#[tokio::test]
async fn a_running_daemon_is_copied_into_a_file_that_is_complete_or_absent() {
    use std::os::unix::fs::PermissionsExt;

    let (up, down) = (Replica::start().await, Replica::start().await);
    let temp = tempfile::tempdir().unwrap();
    let (here, there) = (temp.path().join("here"), temp.path().join("there"));
    backlog(&here, &up, &down).await;
    let expected = text(&run(&["export"], &here).stdout);
    let mut daemon = Daemon::start_on(&here, &["--retry-base", "1h"]).await;
    let (url, file) = (daemon.url("/"), temp.path().join("copy"));
    let copy = || {
        let args = ["export", "--url", &url, "--output", file.to_str().unwrap()];
        command().args(args).stdin(Stdio::null()).output().unwrap()
    };
    let output = copy();
    assert!(output.status.success(), "{output:?}");
    assert!(text(&output.stderr).contains("tasks exported"), "{output:?}");
    let copied = fs::read_to_string(&file).unwrap();
    // The first line has the lease of ids, and progress the attempts since the start.
    assert_eq!(copied.lines().count(), expected.lines().count());
    assert_eq!(copied.lines().last(), expected.lines().last());
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let output = copy();
    assert_eq!(output.status.code(), Some(1), "no file is overwritten");
    let names = fs::read_dir(temp.path()).unwrap().map(|entry| entry.unwrap().file_name());
    let aside: Vec<_> = names.filter(|name| name.to_string_lossy().contains(".part")).collect();
    assert!(aside.is_empty(), "{aside:?}");

    // A copy without a reader: it is the only one, and delays neither writes nor a stop.
    for key in ["one", "two", "three"] {
        daemon.accept(&set(key, &"x".repeat(7 << 20), &[&down])).await;
    }
    let unread = daemon.client().post(daemon.url("/v1/snapshot")).send().await.unwrap();
    assert_eq!(unread.status(), 200);
    let (status, answer) = daemon.post_to("/v1/snapshot", &serde_json::Value::Null).await;
    assert_eq!(status, 503, "{answer}");
    assert!(answer["error"].as_str().unwrap().contains("only one is possible"), "{answer}");
    daemon.accept(&set("later", "value", &[&down])).await;
    assert!(daemon.terminate().await.success());
    assert!(unread.bytes().await.is_err(), "it is cut");

    let output = run(&["import", "--input", file.to_str().unwrap()], &there);
    assert!(output.status.success(), "{output:?}");
    down.behave(|_| Behaviour::Apply);
    let daemon = Daemon::start_on(&there, &[]).await;
    daemon.until_drained().await;
    down.until_holds("small", "value").await;
    down.until_gone("gone").await;
}
