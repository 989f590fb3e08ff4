//! Other users of the machine have no access to the files and the memory of the daemon.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::daemon::command;
use crate::support::tls::Authority;
use crate::support::{Behaviour, Daemon, Replica, set};

fn run(args: &[&str], dir: &Path) -> Output {
    command().args(args).arg("--data-dir").arg(dir).stdin(Stdio::null()).output().unwrap()
}

/// The one sentence of a rejected start.
#[track_caller]
fn refused(args: &[&str], dir: &Path) -> String {
    let output = run(args, dir);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let printed = String::from_utf8(output.stderr).unwrap();
    let printed: Vec<_> = printed.lines().filter(|line| line.starts_with("replicator: ")).collect();
    assert_eq!(printed.len(), 1, "{printed:?}");
    printed[0].to_owned()
}

/// A directory and everything in it.
fn all(dir: &Path) -> Vec<PathBuf> {
    let mut found = vec![dir.to_owned()];
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(all(&path)) } else { found.push(path) }
    }
    found
}

#[track_caller]
fn is_private(dir: &Path) {
    for path in all(dir) {
        let mode = fs::metadata(&path).unwrap().mode() & 0o777;
        let wanted = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(mode, wanted, "{mode:o} {}", path.display());
    }
}

/// A used data directory with a write that is not delivered.
async fn used(dir: &Path) {
    let replica = Replica::start().await;
    replica.behave(|_| Behaviour::Answer(503, "", ""));
    let mut daemon = Daemon::start_on(dir, &["--retry-base", "1h"]).await;
    daemon.accept(&set("key", "value", &[&replica])).await;
    assert!(daemon.terminate().await.success());
}

/// With the usual umask, under which everyone could read the files that sled creates.
#[tokio::test]
async fn every_file_is_private_to_its_user_whatever_the_umask() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("deep/data");
    let export = temp.path().join("export.jsonl");
    let script = "umask 0; exec \"$0\" \"$@\"";
    let binary = command().get_program().to_owned();
    let under_no_mask = |args: &[&str], dir: &Path| {
        let mut shell = Command::new("sh");
        let shell = shell.args(["-c", script]).arg(&binary).args(args).arg("--data-dir").arg(dir);
        let output = shell.stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    };
    fs::create_dir(temp.path().join("deep")).unwrap();
    used(&dir).await;
    is_private(&dir);
    under_no_mask(&["check"], &dir);
    under_no_mask(&["export", "--output", export.to_str().unwrap()], &dir);
    is_private(&dir);
    assert_eq!(fs::metadata(&export).unwrap().mode() & 0o777, 0o600);
    let there = temp.path().join("there");
    under_no_mask(&["import", "--input", export.to_str().unwrap()], &there);
    is_private(&there);
}

#[tokio::test]
async fn permissions_that_an_older_release_left_open_are_removed_at_the_next_start() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("data");
    used(&dir).await;
    for path in all(&dir).into_iter().skip(1) {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    }
    used(&dir).await;
    is_private(&dir);
}

#[tokio::test]
async fn a_data_directory_that_other_users_can_write_to_is_rejected() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("data");
    used(&dir).await;
    for mode in [0o770, 0o702, 0o1777] {
        fs::set_permissions(&dir, Permissions::from_mode(mode)).unwrap();
        let tools: [&[&str]; 3] = [&["--port", "0"], &["check"], &["export"]];
        for args in tools {
            let printed = refused(args, &dir);
            assert!(
                printed.contains("chmod go-w") && printed.contains(&format!("{mode:04o}")),
                "{printed}"
            );
        }
    }
    // The remedy in the message works.
    fs::set_permissions(&dir, Permissions::from_mode(0o1777)).unwrap();
    assert!(Command::new("chmod").arg("go-w").arg(&dir).status().unwrap().success());
    used(&dir).await;
    let fresh = temp.path().join("fresh");
    fs::create_dir(&fresh).unwrap();
    fs::set_permissions(&fresh, Permissions::from_mode(0o777)).unwrap();
    assert!(refused(&["import"], &fresh).contains("chmod go-w"));
    assert_eq!(fs::read_dir(&fresh).unwrap().count(), 0);
}

/// Only root can change the owner of a directory. `src/store/local/permissions.rs` tests the rule
/// for other users.
#[test]
fn a_data_directory_of_another_user_is_rejected() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("data");
    fs::create_dir(&dir).unwrap();
    fs::set_permissions(&dir, Permissions::from_mode(0o755)).unwrap();
    if fs::metadata(&dir).unwrap().uid() != 0 || chown(&dir, Some(61_234), Some(61_235)).is_err() {
        eprintln!("skipped: not root");
        return;
    }
    let printed = refused(&["--port", "0"], &dir);
    assert!(printed.contains("setpriv --reuid=61234 --regid=61235"), "{printed}");
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 0, "nothing was created in it");
}

#[tokio::test]
async fn a_link_in_the_data_directory_is_rejected_and_not_followed() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("data");
    used(&dir).await;
    fs::create_dir(dir.join("quarantine")).unwrap();
    let names =
        ["LOCK", "CURRENT", "COMMITTED", "CLOCK", "quarantine", "store-000001", "store-000001/db"];
    for name in names {
        let (path, away) = (dir.join(name), temp.path().join("away"));
        fs::rename(&path, &away).unwrap();
        let before = away.is_file().then(|| fs::read(&away).unwrap());
        symlink(&away, &path).unwrap();
        let tools: [&[&str]; 3] = [&["--port", "0"], &["check"], &["export"]];
        for args in tools {
            let printed = refused(args, &dir);
            assert!(printed.contains(&format!("{name} is a symbolic link")), "{printed}");
        }
        assert_eq!(away.is_file().then(|| fs::read(&away).unwrap()), before);
        fs::remove_file(&path).unwrap();
        fs::rename(&away, &path).unwrap();
    }
    // Names of temporary files.
    for name in ["CURRENT.new", "CLOCK.new", "store-000001.new", "store-000002.new", "check.tmp"] {
        symlink(temp.path().join("nowhere"), dir.join(name)).unwrap();
        let printed = refused(&["--port", "0"], &dir);
        assert!(printed.contains(&format!("{name} is a symbolic link")), "{printed}");
        assert!(!temp.path().join("nowhere").exists());
        fs::remove_file(dir.join(name)).unwrap();
    }
    let pipe = dir.join("check.tmp");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    assert!(refused(&["check"], &dir).contains("neither a file nor a directory"));
    fs::remove_file(&pipe).unwrap();
    used(&dir).await;
}

#[tokio::test]
async fn the_path_to_the_data_directory_may_be_a_link() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, link) = (temp.path().join("data"), temp.path().join("link"));
    used(&dir).await;
    symlink(&dir, &link).unwrap();
    // Other names in the data directory are not checked.
    symlink("/nowhere", dir.join("lost+found")).unwrap();
    used(&link).await;
    assert!(run(&["check"], &link).status.success());
}

/// Whether a process leaves a core dump when such a signal ends it. `script` runs it as `$0`
/// without a limit on the size of dumps, and ends it.
#[cfg(target_os = "linux")]
fn dumps_core(script: &str, dir: &Path) -> bool {
    use std::os::unix::process::ExitStatusExt;
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("ulimit -c unlimited && {script}")]).arg(command().get_program());
    let mut child = shell.arg(dir).current_dir(dir).stdout(Stdio::piped()).spawn().unwrap();
    // Until it listens or ends.
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let pid = child.id().to_string();
    assert!(Command::new("kill").args(["-ABRT", &pid]).status().unwrap().success());
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(6), "{status}");
    status.core_dumped()
}

#[cfg(target_os = "linux")]
#[test]
fn the_daemon_leaves_no_core_dump() {
    let temp = tempfile::tempdir().unwrap();
    if !dumps_core("echo listening && exec sleep 60", temp.path()) {
        eprintln!("skipped: this system makes no core dumps");
        return;
    }
    let daemon = "exec \"$0\" --port 0 --data-dir \"$1/data\"";
    assert!(!dumps_core(daemon, temp.path()));
}

/// Some editors and shells write a byte order mark.
#[tokio::test]
async fn a_byte_order_mark_before_a_file_is_ignored() {
    let temp = tempfile::tempdir().unwrap();
    let marked = |name: &str, text: &str| {
        let path = temp.path().join(name);
        fs::write(&path, format!("\u{feff}{text}")).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let authority = Authority::new("authority");
    let server = authority.issue("127.0.0.1");
    let made =
        command().args(["token", "new", "--name", "a", "--role", "observe"]).output().unwrap();
    let line = String::from_utf8(made.stderr).unwrap();
    let tokens = marked("tokens", &format!("{}\n", line.lines().nth(1).unwrap()));
    let token = marked("token", &String::from_utf8(made.stdout).unwrap());
    let rules = marked("rules", "127.0.0.0/8:1-65535\n");
    let ours = marked("ours", "http://127.0.0.1:8081 secret\n");
    let ca = marked("ca.pem", &authority.pem());
    let (cert, key) = (marked("cert.pem", &server.certificate), marked("key.pem", &server.key));
    let mut daemon = Daemon::start(&[
        "--auth-file",
        &tokens,
        "--allow-replica-file",
        &rules,
        "--replica-token-file",
        &ours,
        "--replica-ca",
        &ca,
        "--replica-cert",
        &cert,
        "--replica-key",
        &key,
        "--tls-cert",
        &cert,
        "--tls-key",
        &key,
    ])
    .await;
    let mut status = command();
    status.args(["status", "--token-file", &token, "--ca-file", &ca, "--url"]);
    let asked = status.arg(daemon.url("")).output().unwrap();
    assert!(asked.status.success(), "{asked:?}");
    assert!(daemon.terminate().await.success());

    // An export that an editor has saved can be imported.
    let export = run(&["export"], daemon.dir());
    let file = marked("export", &String::from_utf8(export.stdout).unwrap());
    let imported = run(&["import", "--input", &file], &temp.path().join("fresh"));
    assert!(imported.status.success(), "{imported:?}");
}
