//! The log as machines read it.

use serde_json::{Value, json};

use crate::support::{Behaviour, Daemon, Replica, set, wait_until};

const QUICK: [&str; 8] = [
    "--log-format",
    "json",
    "--retry-base",
    "10ms",
    "--queue-capacity",
    "3000",
    "--retry-capacity",
    "3000",
];

fn lines(daemon: &Daemon) -> Vec<Value> {
    let log = daemon.log();
    log.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Two thousand writes to a replica that is down and one that refuses them: ten thousand failures.
#[tokio::test]
async fn an_outage_of_thousands_of_failures_is_a_few_lines_of_json_without_a_value() {
    let mut daemon = Daemon::start(&QUICK).await;
    let (down, refusing) =
        (Replica::start().await, Replica::with(|_| Behaviour::Answer(400, "", "no")).await);
    down.stop();
    // In two goes: how long they take is not to be a matter of how quickly the disk is.
    for first in [0, 1_000] {
        let write = |n| set(&format!("hidden-{n}"), &format!("secret-{n}"), &[&down, &refusing]);
        let writes: Vec<_> = (first..first + 1_000).map(write).collect();
        let (status, answer) = daemon.order("/v1/replicate/batch", &json!(writes)).await;
        assert_eq!((status, &answer["accepted"]), (200, &json!(1_000)));
    }
    daemon.until_drained().await;
    wait_until("all is given up", || async {
        let failures = daemon.metrics().await["permanent_failures"].as_u64().unwrap();
        (failures >= 4_000).then_some(())
    })
    .await;
    let metrics = daemon.metrics().await;
    let [sent, unsent] =
        ["failed_replicas", "unsent_replicas"].map(|name| metrics[name].as_u64().unwrap());
    assert!(sent + unsent >= 10_000, "{metrics}");
    assert!(daemon.terminate().await.success());
    let lines = lines(&daemon);
    for line in &lines {
        for field in ["timestamp", "level", "target", "message"] {
            assert!(line[field].as_str().is_some_and(|text| !text.is_empty()), "{field} in {line}");
        }
    }
    assert!((5..60).contains(&lines.len()), "{} lines", lines.len());
    let log = daemon.log();
    assert!(!log.contains("secret-") && !log.contains("hidden-"), "{log}");
    for replica in [&down, &refusing] {
        let url = replica.url();
        let of = |line: &&Value| line["replica"] == url.as_str() && line["deliveries"].is_u64();
        assert!(lines.iter().any(|line| of(&line)), "{url} in {log}");
    }
    // With the end of the daemon all are told of, the last ones too.
    let told = lines.iter().filter_map(|line| line["deliveries"].as_u64());
    assert_eq!(told.sum::<u64>(), 4_000, "{log}");
    let opened: Vec<_> = lines.iter().filter(|line| line["changes"].is_u64()).collect();
    assert!(!opened.is_empty() && opened.len() <= 14, "{opened:?}");
}

#[tokio::test]
async fn a_start_that_fails_is_a_line_of_json_too() {
    let daemon = Daemon::start(&[]).await;
    let args = ["--log-format", "json"];
    let second = Daemon::try_start_on(daemon.dir(), &args, &[]).await;
    assert_eq!(second.err().unwrap().code(), Some(1));
    let log = daemon.log();
    let json: Vec<Value> = log.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let told = |line: &Value| line["message"].as_str().unwrap().contains("in use by another");
    assert!(json.iter().any(told), "{log}");
}
