//! Commands whose output is not read, cannot be written or stalls, and commands without threads.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{PipeWriter, Write, pipe};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::fs::{OFlags, fcntl_setfl};

use crate::support::daemon::command;
use crate::support::{Daemon, wait_until};

/// Every command that prints and needs no daemon, with its exit code if its reader is gone.
const COMMANDS: [(&str, i32); 10] = [
    ("--help", 0),
    ("--version", 0),
    ("help status", 0),
    ("completions bash", 0),
    ("man", 0),
    ("demo --exit", 0),
    ("check --data-dir DIR", 0),
    ("check --json --data-dir DIR", 0),
    ("export --data-dir DIR", 1),
    // The token is lost.
    ("token new --name a --role observe", 1),
];

fn closed_pipe() -> PipeWriter {
    pipe().unwrap().1
}

fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").unwrap()
}

/// Runs a command; `DIR` in `line` stands for `dir`, a store that no daemon uses.
fn run(line: &str, dir: &Path, stdout: impl Into<Stdio>, stderr: impl Into<Stdio>) -> Output {
    let dir = dir.to_str().unwrap();
    let args = line.split(' ').map(|word| if word == "DIR" { dir } else { word });
    let mut command = command();
    command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(stderr);
    command.spawn().unwrap().wait_with_output().unwrap()
}

async fn store() -> (tempfile::TempDir, std::path::PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("data");
    assert!(Daemon::start_on(&dir, &[]).await.terminate().await.success());
    (temp, dir)
}

#[tokio::test]
async fn a_command_whose_output_pipe_is_closed_keeps_its_exit_code() {
    let (_temp, dir) = store().await;
    for (line, code) in COMMANDS {
        let output = run(line, &dir, closed_pipe(), Stdio::piped());
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{line}: {printed}");
        assert!(!printed.contains("panicked"), "{line}: {printed}");
        // The same without a reader of standard error.
        assert_eq!(
            run(line, &dir, closed_pipe(), closed_pipe()).status.code(),
            Some(code),
            "{line}"
        );
    }
}

#[tokio::test]
async fn a_command_that_cannot_write_its_output_exits_with_1_and_an_error() {
    let (_temp, dir) = store().await;
    for (line, _) in COMMANDS {
        let output = run(line, &dir, full(), Stdio::piped());
        let printed = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{line}: {printed}");
        assert!(
            printed.contains("No space left") && !printed.contains("panicked"),
            "{line}: {printed}"
        );
        assert_eq!(run(line, &dir, full(), full()).status.code(), Some(1), "{line}");
    }
}

/// A full pipe and its other end.
fn stalled() -> (std::io::PipeReader, PipeWriter) {
    let (reader, mut writer) = pipe().unwrap();
    fcntl_setfl(&writer, OFlags::NONBLOCK).unwrap();
    while writer.write(b"x").is_ok() {}
    fcntl_setfl(&writer, OFlags::empty()).unwrap();
    (reader, writer)
}

#[tokio::test]
async fn a_daemon_serves_even_if_it_cannot_print_its_address() {
    let (_reader, stalled) = stalled();
    for stdout in [Stdio::from(closed_pipe()), full().into(), stalled.into()] {
        let temp = tempfile::tempdir().unwrap();
        let log = temp.path().join("log");
        let mut daemon = command();
        daemon.args(["--port", "0", "--data-dir"]).arg(temp.path().join("data"));
        daemon.stdin(Stdio::null()).stdout(stdout).stderr(File::create(&log).unwrap());
        let mut daemon = daemon.spawn().unwrap();
        let read = || fs::read_to_string(&log).unwrap();
        wait_until("the address is in the log", || async {
            let printed = read();
            assert!(!printed.contains("panicked"), "{printed}");
            (printed.contains("standard output") && printed.contains("http://127.0.0.1:"))
                .then_some(())
        })
        .await;
        assert!(daemon.try_wait().unwrap().is_none(), "{}", read());
        let pid = daemon.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(daemon.wait().unwrap().success(), "{}", read());
    }
}

/// The limit does not apply to root, so the commands run as another user.
#[test]
fn with_too_few_threads_a_command_prints_one_sentence_and_does_not_panic() {
    const USER: u32 = 54_321;
    let root = rustix::process::geteuid().is_root();
    let temp = tempfile::tempdir().unwrap();
    let binary = temp.path().join("replicator");
    fs::copy(env!("CARGO_BIN_EXE_replicator"), &binary).unwrap();
    let data = temp.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, Permissions::from_mode(0o700)).unwrap();
    if root {
        fs::set_permissions(temp.path(), Permissions::from_mode(0o755)).unwrap();
        chown(&data, Some(USER), Some(USER)).unwrap();
    }
    // Other processes of the same user count too, so without root only a limit of 1 is certain.
    let limits: &[u32] = if root { &[1, 2, 4, 5, 9, 12] } else { &[1] };
    for limit in limits {
        for line in ["--port 0 --data-dir DIR", "check --data-dir DIR", "status", "demo --exit"] {
            if *limit > 4 && !line.starts_with("--port") {
                continue;
            }
            let args = line.split(' ').map(|w| if w == "DIR" { data.to_str().unwrap() } else { w });
            let mut command = Command::new("prlimit");
            command.arg(format!("--nproc={limit}:{limit}")).arg(&binary).args(args);
            command.env_clear().env("PATH", std::env::var_os("PATH").unwrap()).stdin(Stdio::null());
            if root {
                command.uid(USER).gid(USER);
            }
            let output = command.output().unwrap();
            let printed = String::from_utf8_lossy(&output.stderr).into_owned();
            if line == "status" && printed.contains("cannot reach") {
                continue;
            }
            assert_eq!(output.status.code(), Some(1), "{limit}: {line}: {printed}");
            assert!(
                printed.contains("thread") && !printed.contains("panicked"),
                "{limit}: {line}: {printed}"
            );
            assert_eq!(printed.lines().count(), 1, "{limit}: {line}: {printed}");
        }
    }
}
