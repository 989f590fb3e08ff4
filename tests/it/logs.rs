//! The log as machines read it.

use serde_json::Value;

use crate::support::{Behaviour, Daemon, Replica, set, wait_until};

const QUICK: [&str; 8] = [
    "--log-format",
    "json",
    "--retry-base",
    "10ms",
    "--request-timeout",
    "200ms",
    "--queue-wait",
    "20s",
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
    for n in 0..2_000 {
        let value = format!("secret-{n}");
        daemon.accept(&set(&format!("hidden-{n}"), &value, &[&down, &refusing])).await;
    }
    daemon.until_drained().await;
    wait_until("all is given up", || async {
        let failures = daemon.metrics().await["permanent_failures"].as_u64().unwrap();
        (failures >= 4_000).then_some(())
    })
    .await;
    assert!(daemon.metrics().await["failed_replicas"].as_u64().unwrap() >= 10_000);
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
