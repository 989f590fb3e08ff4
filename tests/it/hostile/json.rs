//! Hostile JSON, posted to every path with a body.

use serde_json::Value;

use super::{MIB, memory};
use crate::support::Daemon;

/// Every operation with a body, from the OpenAPI description: method and path.
async fn operations(daemon: &Daemon) -> Vec<(String, String)> {
    let description = daemon.show("/v1/openapi.json").await;
    let mut found = Vec::new();
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if !operation["requestBody"].is_null() {
                let node = "http%3A%2F%2Fa";
                let path = path.replace("{node}", node).replace("{id}", "7");
                found.push((method.to_uppercase(), path));
            }
        }
    }
    found
}

/// Field names of some operation, so that the daemon parses their values.
const FIELDS: [&str; 8] = ["key", "value", "ttl", "replica_nodes", "ids", "replicas", "to", "rate"];

fn attacks() -> Vec<(&'static str, String)> {
    let (opened, closed) = ("[".repeat(100_000), "]".repeat(100_000));
    let objects = "{\"a\":".repeat(100_000);
    let mut attacks = vec![
        ("lists in lists", format!("{opened}{closed}")),
        ("lists that are not closed", opened.clone()),
        ("objects in objects", format!("{objects}1{}", "}".repeat(100_000))),
        ("a long list", format!("[{}1]", "1,".repeat(500_000))),
        ("a long list of objects", format!("[{}{{}}]", "{},".repeat(300_000))),
        ("lines of lists", "[[[[[[[[\n".repeat(50_000)),
        ("a text that is not closed", format!("\"{}", "x".repeat(1_000_000))),
        ("a key that is half of a pair", r#"{"key":"\ud800"}"#.to_owned()),
        ("bytes that are no text", String::from("{\"key\":\"\u{0}\"}")),
    ];
    for field in FIELDS {
        let with = |value: &str| format!("{{\"{field}\":{value}}}");
        attacks.extend([
            ("lists in a field", with(&format!("{opened}{closed}"))),
            ("objects in a field", with(&format!("{objects}1{}", "}".repeat(100_000)))),
            ("a long list in a field", with(&format!("[{}1]", "1,".repeat(500_000)))),
            ("a long number", with(&"9".repeat(1_000_000))),
            ("a large exponent", with("1e999999999")),
            (
                "a field many times",
                format!("{{{}\"{field}\":1}}", format!("\"{field}\":1,").repeat(50_000)),
            ),
        ]);
    }
    attacks
}

#[tokio::test]
async fn hostile_json_is_a_4xx_on_every_path_with_a_body() {
    let daemon = Daemon::start(&[]).await;
    let operations = operations(&daemon).await;
    assert!(operations.len() >= 6, "{operations:?}");
    let before = memory(&daemon, "VmRSS");
    for (method, path) in &operations {
        for (name, body) in attacks() {
            let method = method.parse().unwrap();
            let length = body.len();
            let request = daemon.client().request(method, daemon.url(path)).body(body);
            let answer =
                request.send().await.unwrap_or_else(|error| panic!("{path} {name}: {error:?}"));
            let status = answer.status().as_u16();
            let text = answer.text().await.unwrap();
            // A batch has an answer for each write.
            let batched =
                path.ends_with("/batch") && status == 200 && text.contains("\"accepted\":0");
            assert!((400..500).contains(&status) || batched, "{path} {name}: {status} {text:.300}");
            assert!(batched || text.len() < 1_000, "{path} {name}: {length} {text:.300}");
            if !batched {
                let answer: Value = serde_json::from_str(&text).unwrap();
                assert!(answer["error"].is_string(), "{path} {name}: {answer}");
            }
        }
    }
    // The longest body is 1 MB. Parsing may take a small multiple.
    let grown = memory(&daemon, "VmHWM").saturating_sub(before);
    assert!(grown < 128 * MIB, "{} MiB more", grown / MIB);
    assert_eq!(daemon.metrics().await["total_replications"], 0);
}
