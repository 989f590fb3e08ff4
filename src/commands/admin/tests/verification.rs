//! What `verify` sends, shows and exits with.

use super::*;

fn counts(changes: &Value) -> Value {
    let mut counts = json!({
        "equal": 3, "different": 0, "missing": 0, "extra": 0, "unreadable": 0, "pending": 0,
        "rewritten": 0, "repaired": 0,
    });
    for (name, value) in changes.as_object().unwrap() {
        counts[name] = value.clone();
    }
    counts
}

fn verification(changes: &Value, unchecked: u64, findings: &Value) -> Value {
    let counts = counts(changes);
    json!({
        "keys": 4, "unchecked": unchecked, "counts": counts, "findings": findings,
        "replicas": [{ "replica": "http://b", "counts": counts }],
    })
}

fn found(result: &str, repaired_by: Option<&str>) -> Value {
    json!([{
        "key": "k\u{1b}", "sequence": "7", "primary": "http://p", "replica": "http://b",
        "result": result, "detail": null, "repaired_by": repaired_by,
    }])
}

async fn verify(line: &str, answer: Value) -> Ran {
    run(line, vec![step("POST /v1/verify", 200, answer)]).await
}

#[tokio::test]
async fn a_verification_without_a_difference_succeeds() {
    let ran = verify("verify", verification(&json!({}), 0, &json!([]))).await;
    let out = ran.is(CommandOutcome::Done);
    assert!(out.starts_with("compared 4 keys: no difference\n"), "{out}");
    assert!(out.contains("http://b"), "{out}");
    let sent: Value = serde_json::from_str(&ran.seen[0].1).unwrap();
    assert_eq!(sent, json!({ "sample": 100, "repair": false }));
    let line = "verify --replica b --sample 7 --repair";
    let ran = verify(line, verification(&json!({}), 0, &json!([]))).await;
    let sent: Value = serde_json::from_str(&ran.seen[0].1).unwrap();
    assert_eq!(sent, json!({ "replica": "http://b", "sample": 7, "repair": true }));
}

#[tokio::test]
async fn a_difference_is_an_exit_code_of_its_own_until_it_is_repaired() {
    let differs = json!({ "different": 1 });
    let ran = verify("verify", verification(&differs, 0, &found("different", None))).await;
    let out = ran.is(CommandOutcome::GivenUp);
    assert!(out.starts_with("compared 4 keys: 1 difference, 0 being repaired\n"), "{out}");
    assert!(out.ends_with("different: key \"k\\u{1b}\" at http://b\n"), "{out}");
    let repaired = json!({ "different": 1, "repaired": 1 });
    let answer = verification(&repaired, 0, &found("different", Some("9")));
    let ran = verify("verify --repair", answer).await;
    assert!(ran.is(CommandOutcome::Done).ends_with(": repaired by task 9\n"), "{}", ran.out);
}

#[tokio::test]
async fn what_could_not_be_compared_is_told_and_not_taken_for_equal() {
    for (changes, unchecked) in
        [(json!({ "unreadable": 1 }), 0), (json!({ "pending": 1 }), 0), (json!({}), 1)]
    {
        let ran = verify("verify", verification(&changes, unchecked, &json!([]))).await;
        let out = ran.is(CommandOutcome::Incomplete);
        assert_eq!(out.contains("; 1 key not compared in time\n"), unchecked == 1, "{out}");
    }
}
