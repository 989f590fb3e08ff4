//! The config file: precedence, errors, `config check` and `config show`, and what SIGHUP applies.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Output;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::daemon::command;
use crate::support::{Behaviour, Daemon, Replica, set, strong, wait_until};

struct File {
    dir: TempDir,
}

impl File {
    fn new(text: &str) -> Self {
        let file = Self { dir: tempfile::tempdir().unwrap() };
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        fs::write(self.path(), text).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("replicator.toml")
    }
}

fn run(path: &Path, line: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = command();
    command.args(line).arg("--config").arg(path).envs(env.iter().copied());
    command.output().unwrap()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The setting of this name: value and source.
fn setting(output: &Output, name: &str) -> (Value, String) {
    let shown = serde_json::from_slice(&output.stdout);
    let shown: Value = shown.unwrap_or_else(|_| panic!("{}", err(output)));
    let settings = shown["settings"].as_array().unwrap();
    let setting = settings.iter().find(|setting| setting["name"] == name).expect(name);
    let detail = [&setting["line"], &setting["variable"]].into_iter().find(|d| !d.is_null());
    let source = setting["source"].as_str().unwrap();
    let detail = detail.map_or_else(String::new, |detail| format!(" {detail}"));
    (setting["value"].clone(), format!("{source}{detail}"))
}

#[test]
fn a_flag_wins_over_its_variable_a_variable_over_the_file_and_the_file_over_the_default() {
    let file = File::new(
        "# limits\nworkers = 7\nport = 1\nqueue-wait = \"1s\"\nallow-replica = [\"a:1\", \"b:2\"]\n\
         host-name = \"file\"\notlp-endpoint = \"off\"\n",
    );
    let show = ["config", "show", "--json", "--port", "3", "--host-name=a", "--host-name=b"];
    let env = [("REPLICATOR_PORT", "2"), ("REPLICATOR_WORKERS", "8"), ("REPLICATOR_LOG", " ")];
    let shown = run(&file.path(), &show, &env);
    assert_eq!(shown.status.code(), Some(0), "{}", err(&shown));
    let path = file.path().display().to_string();
    for (name, value, source) in [
        ("port", "3", "flag"),
        ("workers", "8", "variable \"REPLICATOR_WORKERS\""),
        ("queue-wait", "1s", "file 4"),
        ("allow-replica", "a:1,b:2", "file 5"),
        ("host-name", "a,b", "flag"),
        ("log", "info", "default"),
        ("config", &path, "flag"),
        ("queue-capacity", "1000", "default"),
    ] {
        assert_eq!(setting(&shown, name), (value.into(), source.into()), "{name}");
    }
    assert_eq!(setting(&shown, "auth-file"), (Value::Null, "default".into()));

    let table = run(&file.path(), &["config", "show"], &env);
    let table = String::from_utf8(table.stdout).unwrap();
    let row = |name: &str| {
        let row = table.lines().find(|row| row.starts_with(&format!("{name} "))).expect(name);
        row.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("workers"), "8 variable REPLICATOR_WORKERS");
    assert_eq!(row("queue-wait"), "1s file, line 4");
    assert_eq!(row("auth-file"), "- default");
}

#[test]
fn the_variable_names_the_file_too() {
    let file = File::new("queue-capacity = 17\n");
    let path = file.path().display().to_string();
    let show = |variable: &str| {
        command().args(["config", "show", "--json"]).env("REPLICATOR_CONFIG", variable).output()
    };
    let shown = show(&path).unwrap();
    assert_eq!(setting(&shown, "queue-capacity"), ("17".into(), "file 1".into()));
    let shown = show("").unwrap();
    assert_eq!(setting(&shown, "queue-capacity"), ("1000".into(), "default".into()));
    let checked = command().args(["config", "check"]).env("REPLICATOR_CONFIG", &path).output();
    assert_eq!(checked.unwrap().status.code(), Some(0));
    let mut another = command();
    another.args(["config", "check", &path]).env("REPLICATOR_CONFIG", "/nonexistent");
    assert_eq!(another.output().unwrap().status.code(), Some(0), "the argument wins");
}

#[test]
fn a_password_in_an_address_and_a_notify_url_are_not_shown() {
    let file = File::new(
        "otlp-endpoint = \"http://me:s3cret@c:4318\"\nnotify-url = \"http://c/s3cret\"\nnotify-format = \"slack\"\n",
    );
    let mode = |mode| fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).unwrap();
    mode(0o600);
    for line in [&["config", "show"][..], &["config", "show", "--json"]] {
        let shown = run(&file.path(), line, &[]);
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        assert_eq!(shown.status.code(), Some(0), "{}", err(&shown));
        assert!(text.contains("http://…@c:4318") && text.contains("(hidden)"), "{text}");
        assert!(!text.contains("s3cret"), "{text}");
    }
    // Only the owner may read it.
    mode(0o644);
    let shown = run(&file.path(), &["config", "show"], &[]);
    let text = err(&shown);
    assert!(
        text.contains("is open to others than its owner") && !text.contains("s3cret"),
        "{text}"
    );
}

#[test]
fn check_names_the_file_the_line_the_setting_and_the_limit() {
    for (text, code, words) in [
        ("workers = 5\n", 0, &["the settings are valid"][..]),
        ("\nworkers = 9999\n", 2, &["--workers 9999 must be at most 1024", "line 2"]),
        ("\nworkers = \"many\"\n", 2, &["'many' for '--workers <N>'", "1 to 1024", "line 2"]),
        ("queue-wait = 5\n", 2, &["--queue-wait", "such as 250ms", "line 1"]),
        ("\n\nquue-wait = 5\n", 2, &["line 3: unknown setting", "did you mean queue-wait?"]),
        ("port = 1\nport = 2\n", 2, &["line 2: duplicate key"]),
        ("port = [1]\n", 2, &["line 1: port must be one value, such as port = 8085"]),
        ("insecure = 1\n", 2, &["'1' for '--insecure[=<BOOL>]'", "line 1"]),
        ("bind = \"0.0.0.0\"\n", 2, &["--bind 0.0.0.0 would give everyone", "line 1"]),
        ("tls-cert = \"a\"\n", 2, &["--tls-cert and --tls-key must be given together", "line 1"]),
        ("data-dir = \"d\"\nstore = \"nats://h\"\n", 2, &["--data-dir", "line 1", "line 2"]),
        ("log = \"loud\"\n", 2, &["--log \"loud\" is not a valid filter", "line 1"]),
        ("auth-file = \"/nonexistent\"\n", 1, &["cannot read the token list /nonexistent"]),
        ("allow-replica-file = \"/nonexistent\"\n", 1, &["(--allow-replica-file)", "line 1"]),
    ] {
        let file = File::new(text);
        let output = command().args(["config", "check"]).arg(file.path()).output().unwrap();
        let printed = format!("{}{}", String::from_utf8_lossy(&output.stdout), err(&output));
        assert_eq!(output.status.code(), Some(code), "{text}: {printed}");
        let path = file.path().display().to_string();
        for word in words {
            assert!(printed.contains(word), "{word} is not in {printed}");
        }
        assert!(printed.contains(&path) || code == 1, "{text}: {printed}");
    }
    let missing = command().args(["config", "check", "/nonexistent"]).output().unwrap();
    assert_eq!(missing.status.code(), Some(2));
    assert!(err(&missing).contains("cannot read /nonexistent (--config)"), "{}", err(&missing));
}

fn of_repository(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

#[tokio::test]
async fn the_daemon_starts_with_the_example_of_the_documentation() {
    let page = of_repository("docs/configuration.md");
    let (_, example) = page.split_once("```toml\n").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let file = File::new(example);
    let path = file.path().display().to_string();
    let daemon = Daemon::start(&["--config", &path]).await;
    let replica = Replica::start().await;
    daemon.accept(&set("k", "v", &[&replica])).await;
    replica.until_holds("k", "v").await;
    let shown = run(&file.path(), &["config", "show", "--json"], &[]);
    let settings: Value = serde_json::from_slice(&shown.stdout).unwrap();
    let of_file = |setting: &&Value| setting["source"] == "file";
    let set_by_file = settings["settings"].as_array().unwrap().iter().filter(of_file).count();
    let keys = example.lines().filter(|line| line.contains(" = ")).count();
    assert!(set_by_file >= 5 && set_by_file == keys, "{set_by_file} of {keys}: {example}");
}

/// Each setting is commented out, with its default.
#[test]
fn the_shipped_file_is_valid_with_and_without_its_comments() {
    let shipped = of_repository("deploy/replicator.toml");
    let active: Vec<_> =
        shipped.lines().map(|line| line.strip_prefix("#").unwrap_or(line)).collect();
    let is_setting = |line: &&&str| !line.starts_with(' ');
    let active: Vec<_> = active.iter().filter(is_setting).copied().collect();
    assert!(active.len() > 10, "{active:?}");
    for text in [shipped.clone(), active.join("\n")] {
        let file = File::new(&text);
        let shown = run(&file.path(), &["config", "show", "--json"], &[]);
        assert_eq!(shown.status.code(), Some(0), "{text}\n{}", err(&shown));
    }
}

#[tokio::test]
async fn sighup_applies_what_needs_no_restart_and_names_what_does() {
    let (first, second) = (Replica::start().await, Replica::start().await);
    let allowed = |replicas: &[&Replica]| {
        let rules: Vec<_> = replicas.iter().map(|replica| format!("{:?}", replica.url())).collect();
        format!("allow-replica = [{}]\n", rules.join(", "))
    };
    let before = "workers = 1\nretry-base = \"1h\"\nstrong-timeout = \"1h\"\n\
        drain-timeout = \"1h\"\nredrive-rate = 3\nqueue-wait = \"1h\"\n";
    let file = File::new(&format!("{before}{}", allowed(&[&first])));
    let path = file.path().display().to_string();
    let mut daemon =
        Daemon::start(&["--config", &path, "--queue-capacity", "5", "--request-timeout", "1h"])
            .await;
    let (status, answer) = daemon.post(&set("k", "v", &[&second])).await;
    assert_eq!(status, 403, "{answer}");
    first.behave(|_| Behaviour::Hang);
    daemon.accept(&set("a", "1", &[&first])).await;
    daemon.accept(&set("b", "1", &[&first])).await;
    wait_until("one write is in flight", || async { (first.seen().len() == 1).then_some(()) })
        .await;

    let after = "workers = 2\nretry-base = \"10ms\"\nmax-retries = 0\nstrong-timeout = \"50ms\"\n\
        drain-timeout = \"0s\"\nredrive-rate = 4\nqueue-wait = \"0s\"\nlog = \"debug\"\n\
        port = 1\nnode-id = \"other\"\n";
    file.write(&format!("{after}{}", allowed(&[&first, &second])));
    daemon.signal("-HUP");
    daemon.until_logged("the config file is reloaded").await;
    // A flag sets the port.
    daemon
        .until_logged("settings that need a restart: they stay as they were settings=\"node-id\"")
        .await;

    wait_until("two writes are in flight", || async { (first.seen().len() == 2).then_some(()) })
        .await;
    let answer = daemon.post(&strong("s", "1", &[&first])).await;
    assert_eq!(answer.0, 503, "{}", answer.1);
    second.behave(|_| Behaviour::Answer(500, "", "no"));
    daemon.accept(&set("c", "1", &[&second])).await;
    daemon.until_metric("permanent_failures", 1).await;
    let dry = json!({ "replica": second.url(), "dry_run": true });
    let (status, operation) = daemon.post_to("/v1/dead-letters/redrive", &dry).await;
    assert!(status < 300 && operation["rate"] == 4, "{status} {operation}");
    while daemon.post(&set("d", "1", &[&first])).await.0 == 202 {}
    daemon.until_logged("DEBUG").await;
    // Two deliveries hang: with the old time it would wait for them.
    assert!(daemon.terminate().await.success());
}

#[tokio::test]
async fn an_invalid_file_changes_nothing_at_a_reload() {
    let file = File::new("max-retries = 0\nqueue-wait = \"0s\"\n");
    let path = file.path().display().to_string();
    let daemon = Daemon::start(&["--config", &path]).await;
    for (text, why) in [
        ("max-retries = 3\nwokers = 1\n", "line 2: unknown setting"),
        ("max-retries = 3\nworkers = 9999\n", "--workers 9999 must be at most 1024"),
        ("max-retries = 3\nlog = \"loud\"\n", "is not a valid filter"),
    ] {
        file.write(text);
        daemon.signal("-HUP");
        daemon.until_logged(why).await;
    }
    fs::remove_file(file.path()).unwrap();
    daemon.signal("-HUP");
    daemon.until_logged("cannot read").await;
    assert!(!daemon.log().contains("the config file is reloaded"));
    let replica = Replica::start().await;
    replica.behave(|_| Behaviour::Answer(500, "", "no"));
    daemon.accept(&set("k", "v", &[&replica])).await;
    daemon.until_metric("permanent_failures", 1).await;
}
