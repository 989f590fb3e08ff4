//! Settings from the environment, as compose files, Helm charts, unit files and Kubernetes set
//! them.

use std::process::{Command, Output, Stdio};

use clap::CommandFactory;
use replicator::testing::Cli;

use crate::support::Daemon;
use crate::support::daemon::command;

/// Every variable of every command.
fn variables(of: &clap::Command) -> Vec<String> {
    let own = of.get_arguments().filter_map(|arg| arg.get_env()?.to_str().map(str::to_owned));
    let below = of.get_subcommands().flat_map(variables);
    let mut all: Vec<_> = own.chain(below).collect();
    all.sort();
    all.dedup();
    all
}

fn all() -> Vec<String> {
    let all = variables(&Cli::command());
    assert!(all.len() > 45 && all.contains(&"REPLICATOR_CA_FILE".to_owned()), "{all:?}");
    all
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A daemon that never starts: its name is invalid, which it reports after it has parsed
/// everything.
fn misnamed() -> Command {
    let mut daemon = command();
    daemon.args(["--node-id", "a b"]).stdin(Stdio::null());
    daemon
}

#[tokio::test]
async fn an_empty_variable_counts_as_unset() {
    for nothing in ["", " ", "\n"] {
        let dir = tempfile::tempdir().unwrap();
        let env: Vec<_> = all().into_iter().map(|name| (name, nothing.to_owned())).collect();
        let env: Vec<_> = env.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let path = dir.path().join("data");
        let mut daemon = Daemon::try_start_on(&path, &[], &env).await.expect("it starts");
        assert!(daemon.log().contains(" INFO "), "it logs as by default: {}", daemon.log());
        let ask = |line: &str| {
            let args = line.split(' ').chain(["--url"]);
            let env = env.iter().filter(|(name, _)| *name != "REPLICATOR_URL");
            command().args(args).arg(daemon.url("")).envs(env.copied()).output().unwrap()
        };
        for line in ["status", "replicas", "tasks list", "dead-letters", "barrier"] {
            let output = ask(line);
            assert!(output.status.success(), "{line}: {}", printed(&output));
        }
        assert!(daemon.terminate().await.success());
        let check = command().arg("check").arg("--data-dir").arg(&path).envs(env).output().unwrap();
        assert!(check.status.success(), "{}", printed(&check));
    }
}

#[test]
fn an_invalid_value_is_rejected_with_the_name_of_its_variable() {
    let mut refused = 0;
    for variable in all() {
        let output = misnamed().env(&variable, "tcp://10.0.0.1:8085").output().unwrap();
        let printed = printed(&output);
        assert_eq!(output.status.code(), Some(2), "{variable}: {printed}");
        // Any text is a valid path, and the daemon ignores the variables of the commands.
        if !printed.contains("--node-id") || printed.contains("set by the variable") {
            assert!(printed.contains(&format!("the variable {variable}, ")), "{printed}");
            assert!(printed.contains("enableServiceLinks: false"), "{printed}");
            refused += 1;
        }
    }
    assert!(refused >= 30, "{refused}");
    // The same for limits, and for errors that the start finds.
    let output = misnamed().env("REPLICATOR_WORKERS", "9999").output().unwrap();
    assert!(printed(&output).contains("--workers is set by the variable REPLICATOR_WORKERS: "));
    let dir = tempfile::tempdir().unwrap();
    let mut daemon = command();
    daemon.args(["--port", "0"]).arg("--data-dir").arg(dir.path().join("data"));
    let output = daemon.env("REPLICATOR_AUTH_FILE", "/nonexistent").output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
}

#[test]
fn a_flag_overrides_its_variable_and_its_error_does_not_name_the_variable() {
    let output =
        misnamed().args(["--port", "x"]).env("REPLICATOR_PORT", "tcp://a").output().unwrap();
    let printed = printed(&output);
    assert!(printed.contains("--port") && !printed.contains("REPLICATOR_PORT"), "{printed}");
}

/// As `kubectl exec` runs it in a cluster with a service named `replicator`.
#[test]
fn a_command_does_not_read_the_variables_of_the_daemon() {
    for line in ["token new --name a --role observe", "completions bash", "man"] {
        let mut command = command();
        command.args(line.split(' ')).env("REPLICATOR_PORT", "tcp://10.0.0.1:8085");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{line}: {}", printed(&output));
    }
}

#[test]
fn a_required_flag_may_come_from_its_variable() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens");
    let mut new = command();
    new.args(["token", "new", "--name", "a", "--role", "observe", "--append"]).arg(&file);
    assert!(new.output().unwrap().status.success());
    let list = || command().args(["token", "list"]).env("REPLICATOR_AUTH_FILE", &file).output();
    let output = list().unwrap();
    assert!(output.status.success(), "{}", printed(&output));
    let output = command().args(["token", "list"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(printed(&output).contains("--auth-file <FILE>"), "{}", printed(&output));
}

#[test]
fn the_help_shows_the_variables_even_if_they_are_empty() {
    let output = command().arg("--help").env("REPLICATOR_PORT", "").output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && help.contains("[env: REPLICATOR_PORT=]"), "{help}");
}
