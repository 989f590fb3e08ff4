//! The examples of docs/gateways.md and docs/nodes.md, run as they are, with the addresses of the test.

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

use crate::support::Daemon;
use crate::support::daemon::DemoReplica;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The fenced blocks of a page in this language, with these texts replaced.
fn blocks(page: &str, language: &str, replaced: &[(&str, &str)]) -> Vec<String> {
    let mut text = fs::read_to_string(root().join("docs").join(page)).unwrap();
    for (old, new) in replaced {
        assert!(text.contains(old), "{page} has no {old}");
        text = text.replace(old, new);
    }
    let opening = format!("\n```{language}\n");
    let blocks = text.split(opening.as_str()).skip(1);
    blocks.map(|rest| rest.split("\n```").next().unwrap().to_owned()).collect()
}

async fn printed(script: &str) -> String {
    let mut shell = Command::new("bash");
    shell.args(["-euo", "pipefail", "-c", script]).current_dir(root());
    for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().contains("REPLICATOR"))
    {
        shell.env_remove(name);
    }
    let Output { status, stdout, stderr } = shell.output().await.unwrap();
    let stdout = String::from_utf8(stdout).unwrap();
    assert!(status.success(), "{script}\n{stdout}{}", String::from_utf8_lossy(&stderr));
    stdout
}

/// The text with each task id, which differs from run to run, as `ID`.
fn without_ids(text: &str) -> String {
    let words = text.split_inclusive(|c: char| !c.is_ascii_digit());
    let words = words.map(|word| match word.find(|c: char| !c.is_ascii_digit()) {
        Some(16) => format!("ID{}", &word[16..]),
        _ => word.to_owned(),
    });
    words.collect()
}

/// The output of each of the scripts, without line breaks at the end, is the text beside it.
async fn assert_prints(scripts: &[String], texts: &[String]) {
    assert!(!scripts.is_empty() && scripts.len() == texts.len(), "{scripts:?} {texts:?}");
    // In one shell, for variables.
    let printed = printed(&scripts.join("\nprintf '\\n---\\n'\n")).await;
    for (number, output) in printed.split("\n---\n").enumerate() {
        assert_eq!(
            without_ids(output.trim_end()),
            without_ids(&texts[number]),
            "{}",
            scripts[number]
        );
    }
}

/// `go run` needs a compiler, and the others need curl.
fn is_go(script: &str) -> bool {
    script.starts_with("go ")
}

#[tokio::test]
async fn the_examples_for_gateways_print_what_the_page_says() {
    let daemon = Daemon::start(&[]).await;
    let replicas = [DemoReplica::start(&[]), DemoReplica::start(&[])];
    let url = daemon.url("");
    let replaced = [
        ("http://127.0.0.1:8085", url.as_str()),
        ("http://127.0.0.1:8081", &replicas[0].1),
        ("http://127.0.0.1:8082", &replicas[1].1),
    ];
    let scripts = blocks("gateways.md", "sh", &replaced);
    let texts = blocks("gateways.md", "text", &replaced);
    let pairs = scripts.into_iter().zip(texts).filter(|(script, _)| !is_go(script));
    let (scripts, texts): (Vec<_>, Vec<_>) = pairs.unzip();
    assert_eq!(scripts.len(), 4);
    assert_prints(&scripts, &texts).await;
}

#[tokio::test]
async fn the_example_for_nodes_prints_what_the_page_says() {
    let node = DemoReplica::start(&["--fenced"]);
    let start = "replicator demo-replica --port 8081 --fenced &\n";
    let replaced = [(start, ""), ("http://127.0.0.1:8081", node.1.as_str())];
    let scripts = blocks("nodes.md", "sh", &replaced);
    let output = printed(&scripts.concat()).await.replace('\r', "");
    let (first, second) = output.split_once("HTTP/1.1 409").unwrap();
    assert!(first.starts_with("HTTP/1.1 204 No Content\n"), "{output}");
    let text = blocks("nodes.md", "text", &[]).join("\n");
    let expected = text.lines().find(|line| line.contains("already replicated")).unwrap();
    assert!(second.ends_with(&format!("{expected}new")), "{output}");
}

/// Needs `go`, which `tests/run` installs.
#[tokio::test]
async fn the_go_client_repeats_a_refused_write_and_not_a_strong_one_without_its_majority() {
    let source = root().join("docs/examples/gateway/main.go");
    let dir = tempfile::tempdir().unwrap();
    let client = dir.path().join("gateway");
    let build = Command::new("go").arg("build").arg("-o").arg(&client).arg(&source).output().await;
    let Ok(build) = build else {
        eprintln!("skipped: there is no go (Debian's package golang-go has it)");
        return;
    };
    assert!(build.status.success(), "{build:?}");

    let daemon = Daemon::start(&["--queue-capacity", "1", "--queue-wait", "1ms"]).await;
    let replicas = [DemoReplica::start(&[]), DemoReplica::start(&[])];
    let nodes = replicas.each_ref().map(|replica| replica.1.as_str());
    let run = |args: &[&str]| {
        let mut command = Command::new(&client);
        command.args(["-url", &daemon.url(""), "-key", "user/7"]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.kill_on_drop(true);
        command.spawn().unwrap()
    };
    let ended = async |args: &[&str]| {
        let output = run(args).wait_with_output().await.unwrap();
        let printed = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), without_ids(&String::from_utf8(printed).unwrap()))
    };

    let strong = ["-strong", "-value", "one", nodes[0], nodes[1]];
    let (code, printed) = ended(&strong).await;
    assert_eq!(code, 0, "{printed}");
    let either = [(nodes[0], nodes[1]), (nodes[1], nodes[0])];
    let either = either.map(|(a, b)| format!("acknowledged by {a} {b}\n"));
    assert!(either.contains(&printed), "{printed}");

    // Nothing listens on this port.
    let closed = ["-strong", "-delete", "http://127.0.0.1:9"];
    let expected = "accepted as task ID, acknowledged by 0, not by 1\n".to_owned();
    assert_eq!(ended(&closed).await, (3, expected));
    let (code, printed) = ended(&["-value", "one", "node"]).await;
    assert_eq!(code, 1);
    assert!(
        printed.starts_with("400 Bad Request: {\"error\":\"field \\\"replica_nodes"),
        "{printed}"
    );
    let forget = "/v1/replicas/http%3A%2F%2F127.0.0.1%3A9/forget";
    let (status, answer) = daemon.post_to(forget, &serde_json::json!({})).await;
    assert!(matches!(status, 200 | 204), "{answer}");
    daemon.until_drained().await;

    // The queue is full until its only write is delivered.
    let path = format!("/v1/replicas/{}", crate::support::encoded(nodes[1]));
    daemon.post_to(&format!("{path}/pause"), &serde_json::Value::Null).await;
    let eventual = |value| ["-value", value, nodes[0], nodes[1]];
    assert_eq!(ended(&eventual("two")).await, (0, "accepted as task ID\n".to_owned()));
    let mut client = run(&eventual("three"));
    let mut lines = BufReader::new(client.stderr.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    assert!(line.contains("503 Service Unavailable") && line.contains("; again in 1"), "{line}");
    daemon.post_to(&format!("{path}/resume"), &serde_json::Value::Null).await;
    let output = client.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{output:?}");
    daemon.until_drained().await;
    for node in nodes {
        let value =
            crate::support::client().get(format!("{node}/store/user%2F7")).send().await.unwrap();
        assert_eq!(value.text().await.unwrap(), "three");
    }
}
