//! Every validation rule of a write: accepted and rejected examples.

use serde_json::{Value, json};

use super::*;
use crate::server::ServerLimits;
use crate::server::fuzzing::write;

fn settings() -> ServerSettings {
    ServerSettings {
        access: crate::server::Access::open(),
        tls: None,
        tracer: crate::traces::Tracer::off(),
        node_id: "replicator".to_owned(),
        policy: crate::policy::Policy::new(None, None),
        limits: ServerLimits {
            max_connections: 1,
            client_timeout: Duration::from_secs(1),
            max_body_bytes: 1 << 20,
            request_memory: 1 << 20,
            max_value_bytes: 8,
            max_key_bytes: 10,
            max_replicas: 3,
        },
    }
}

/// A valid write with the fields of `change` replaced.
fn body(change: &Value) -> Vec<u8> {
    let mut body = json!({
        "key": "k",
        "value": "dmFsdWU=",
        "operation": "SET",
        "replica_nodes": ["http://a", "http://b"],
    });
    for (name, value) in change.as_object().unwrap() {
        body[name] = value.clone();
    }
    serde_json::to_vec(&body).unwrap()
}

#[track_caller]
fn taken(change: &Value) -> ValidWrite {
    match write(&body(change), &settings()) {
        Ok(write) => write,
        Err(problem) => panic!("{change} was refused: {problem:?}"),
    }
}

/// The sentence of a 400 to `body`.
#[track_caller]
fn refused_body(body: &[u8]) -> String {
    match write(body, &settings()) {
        Err(Problem::Invalid(sentence)) => sentence,
        other => panic!("{}: {other:?}", body.escape_ascii()),
    }
}

#[track_caller]
fn refused(change: &Value, sentence: &str) {
    assert_eq!(refused_body(&body(change)), sentence, "{change}");
}

#[track_caller]
fn has_value(change: &Value, value: &[u8]) {
    assert_eq!(taken(change).task.value, value, "{change}");
}

#[test]
fn a_minimal_write_gets_the_defaults() {
    let task = taken(&json!({})).task;
    assert_eq!(
        task,
        NewTask {
            key: "k".to_owned(),
            operation: Operation::Set,
            value: Bytes::from_static(b"value"),
            ttl: None,
            consistency: Consistency::Eventual,
            replicas: vec![Node::parse("http://a").unwrap(), Node::parse("http://b").unwrap()],
            user_id: None,
            client: None,
            primary: None,
            trace: None,
        }
    );
}

#[test]
fn all_optional_fields_are_read_and_unknown_ones_ignored() {
    let task = taken(&json!({
        "ttl": 5_000_000_000_u64,
        "consistency": "strong",
        "primary_node": "http://p",
        "user_id": "u",
        "trace": {"unknown": ["fields", 1, null, {}]},
    }))
    .task;
    assert_eq!(task.ttl, Some(Duration::from_secs(5)));
    assert_eq!(task.consistency, Consistency::Strong);
    assert_eq!(task.user_id.as_deref(), Some("u"));
    assert_eq!(task.primary, Some(Node::parse("http://p").unwrap()));
}

#[test]
fn null_and_empty_are_the_default_of_every_optional_field() {
    let plain = taken(&json!({})).task;
    let nulls = json!({
        "ttl": null, "consistency": null, "primary_node": null, "user_id": null,
        "value_encoding": null,
    });
    assert_eq!(taken(&nulls).task, plain);
    let empty = json!({
        "ttl": 0, "consistency": "", "primary_node": "", "user_id": "", "value_encoding": "",
    });
    assert_eq!(taken(&empty).task, plain);
}

#[test]
fn a_key_may_be_any_text_that_a_url_can_carry() {
    for key in ["...", "a/b", "%2e", " ", "é\u{1f980}", "\n", "\u{0}", "..a"] {
        assert_eq!(taken(&json!({ "key": key })).task.key, key);
    }
}

#[test]
fn a_key_that_breaks_a_rule_is_refused() {
    refused(&json!({"key": null}), r#"field "key" is missing"#);
    refused(&json!({"key": ""}), r#"field "key" is empty"#);
    let step = "URL paths treat it as a step";
    refused(&json!({"key": "."}), &format!(r#"field "key" must not be ".": {step}"#));
    refused(&json!({"key": ".."}), &format!(r#"field "key" must not be "..": {step}"#));
    refused(&json!({"key": "éééééé"}), r#"field "key" is 12 bytes long, the limit is 10"#);
    refused(&json!({"key": 7}), r#"field "key" must be a string, got the number 7"#);
    refused(&json!({"key": ["k"]}), r#"field "key" must be a string, got a list"#);
}

#[test]
fn an_operation_is_set_or_delete_in_capitals() {
    assert_eq!(taken(&json!({"operation": "DELETE"})).task.operation, Operation::Delete);
    refused(
        &json!({"operation": null}),
        r#"field "operation" is missing, it must be "SET" or "DELETE""#,
    );
    refused(
        &json!({"operation": "set"}),
        r#"field "operation" must be "SET" or "DELETE", got the string "set""#,
    );
    refused(
        &json!({"operation": true}),
        r#"field "operation" must be "SET" or "DELETE", got true"#,
    );
}

#[test]
fn a_ttl_is_an_integer_of_nanoseconds() {
    assert_eq!(
        taken(&json!({"ttl": i64::MAX})).task.ttl,
        Some(Duration::from_nanos(MAX_TTL_NANOS))
    );
    for (ttl, got) in [
        (json!("1h"), r#"the string "1h""#),
        (json!(-1), "the number -1"),
        (json!(1.0), "the number 1.0"),
        (json!(1_u64 << 63), "the number 9223372036854775808"),
        (json!(1e300), "the number 1e300"),
        (json!(false), "false"),
        (json!({}), "an object"),
    ] {
        let rule = "an integer number of nanoseconds from 0 to 9223372036854775807";
        refused(&json!({ "ttl": ttl }), &format!(r#"field "ttl" must be {rule}, got {got}"#));
    }
}

#[test]
fn a_value_is_base64_if_it_decodes_and_raw_text_otherwise() {
    has_value(&json!({"value": ""}), b"");
    has_value(&json!({"value": null}), b"");
    has_value(&json!({"value": "AP8="}), b"\x00\xff");
    has_value(&json!({"value": "abcd"}), b"\x69\xb7\x1d");
    has_value(&json!({"value": "AP8"}), b"AP8");
    has_value(&json!({"value": "AP9="}), b"AP9=");
    has_value(&json!({"value": "_-8="}), b"_-8=");
    has_value(&json!({"value": "hello!"}), b"hello!");
    has_value(&json!({"value": "é\n\"\\"}), "é\n\"\\".as_bytes());
}

#[test]
fn value_encoding_selects_base64_or_raw() {
    has_value(&json!({"value": "abcd", "value_encoding": "raw"}), b"abcd");
    has_value(&json!({"value": "abcd", "value_encoding": "base64"}), b"\x69\xb7\x1d");
    has_value(&json!({"value": "", "value_encoding": "base64"}), b"");
    refused(
        &json!({"value": "secret", "value_encoding": "base64"}),
        r#"field "value" must be standard base64 with padding, as field "value_encoding" requires"#,
    );
    refused(
        &json!({"value_encoding": "hex"}),
        r#"field "value_encoding" must be "base64" or "raw", got the string "hex""#,
    );
}

#[test]
fn json_escapes_in_a_value_are_decoded() {
    let body =
        br#"{"key":"k","operation":"SET","replica_nodes":["http:\/\/a"],"value":"AP\u0038="}"#;
    let write = write(body, &settings()).unwrap();
    assert_eq!(write.task.value, b"\x00\xff"[..]);
}

#[test]
fn the_error_of_a_bad_value_does_not_quote_it() {
    for value in [json!(42), json!(["secret"]), json!({"secret": 1}), json!(true)] {
        let sentence = refused_body(&body(&json!({ "value": value })));
        assert!(
            sentence.starts_with(r#"field "value" must be a string or null, got a"#),
            "{sentence}"
        );
        assert!(!sentence.contains("secret") && !sentence.contains("42"));
    }
}

#[test]
fn the_value_limit_applies_after_decoding() {
    has_value(&json!({"value": "MTIzNDU2Nzg="}), b"12345678");
    let too_long = write(&body(&json!({"value": "MTIzNDU2Nzg5"})), &settings());
    let Err(Problem::TooLarge(sentence)) = too_long else {
        panic!("{too_long:?}");
    };
    assert_eq!(sentence, r#"field "value" is 9 bytes long after decoding, the limit is 8"#);
}

#[test]
fn a_delete_ignores_its_value_and_ttl_but_the_ttl_must_be_valid() {
    for value in [json!("abcd"), json!(7), json!("x".repeat(100))] {
        let delete = json!({
            "operation": "DELETE", "value": value, "value_encoding": "hex", "ttl": 5,
        });
        let task = taken(&delete).task;
        assert_eq!((task.value, task.ttl), (Bytes::new(), None));
    }
    let sentence = refused_body(&body(&json!({"operation": "DELETE", "ttl": -1})));
    assert!(sentence.starts_with(r#"field "ttl""#));
}

#[test]
fn a_consistency_is_eventual_or_strong() {
    let eventual = taken(&json!({"consistency": "eventual"}));
    assert_eq!(eventual.task.consistency, Consistency::Eventual);
    refused(
        &json!({"consistency": "STRONG"}),
        r#"field "consistency" must be "eventual" or "strong", got the string "STRONG""#,
    );
}

#[test]
fn a_primary_node_may_be_any_string() {
    assert_eq!(taken(&json!({"primary_node": "not a url"})).task.primary, None);
    refused(
        &json!({"primary_node": {}}),
        r#"field "primary_node" must be a string, got an object"#,
    );
}

#[test]
fn a_user_id_has_at_most_256_bytes() {
    let longest = "u".repeat(256);
    let task = taken(&json!({ "user_id": longest })).task;
    assert_eq!(task.user_id, Some(longest));
    refused(
        &json!({"user_id": "u".repeat(257)}),
        r#"field "user_id" is 257 bytes long, the limit is 256"#,
    );
}

#[test]
fn a_user_id_may_be_a_64_bit_integer_and_is_stored_as_text() {
    for number in ["0", "1", "-1", "9223372036854775807", "-9223372036854775808"] {
        let task = taken(&json!({"user_id": number.parse::<i64>().unwrap()})).task;
        assert_eq!(task.user_id.as_deref(), Some(number));
    }
    let task = taken(&json!({"user_id": u64::MAX})).task;
    assert_eq!(task.user_id.as_deref(), Some("18446744073709551615"));
    assert_eq!(taken(&json!({"user_id": 12})).task, taken(&json!({"user_id": "12"})).task);
}

#[test]
fn a_user_id_that_is_neither_a_string_nor_a_64_bit_integer_is_refused() {
    let write = |user: &str| {
        let head = r#""key":"k","operation":"DELETE","replica_nodes":["http://a"]"#;
        refused_body(format!(r#"{{{head},"user_id":{user}}}"#).as_bytes())
    };
    for (user, got) in [
        ("1.0", "the number 1.0"),
        ("1e3", "the number 1000.0"),
        ("-0", "the number -0.0"),
        ("18446744073709551616", "the number 1.8446744073709552e19"),
        ("-9223372036854775809", "the number -9.223372036854776e18"),
        ("true", "true"),
        ("[1]", "a list"),
        ("{}", "an object"),
    ] {
        let rule = "a string or an integer from -9223372036854775808 to 18446744073709551615";
        assert_eq!(write(user), format!(r#"field "user_id" must be {rule}, got {got}"#));
    }
}

#[test]
fn a_duplicate_node_counts_once_in_its_first_spelling() {
    let nodes = ["http://A:80/", "http://b", "http://a", "http://b/", "http://c"];
    let write = taken(&json!({ "replica_nodes": nodes }));
    let normal: Vec<_> = write.task.replicas.iter().map(Node::as_str).collect();
    assert_eq!(normal, ["http://a", "http://b", "http://c"]);
    let spelled: Vec<_> = write.spelled.iter().map(|text| &**text).collect();
    assert_eq!(spelled, ["http://A:80/", "http://b", "http://c"]);
}

#[test]
fn replica_nodes_that_break_a_rule_are_refused() {
    let none = r#"field "replica_nodes" must name at least one replica"#;
    refused(&json!({"replica_nodes": null}), none);
    refused(&json!({"replica_nodes": []}), none);
    refused(
        &json!({"replica_nodes": "http://a"}),
        r#"field "replica_nodes" must be a list of URLs, got the string "http://a""#,
    );
    refused(
        &json!({"replica_nodes": ["http://a", 5]}),
        r#"field "replica_nodes[1]" must be a URL, got the number 5"#,
    );
    refused(
        &json!({"replica_nodes": ["http://a", ["http://b"]]}),
        r#"field "replica_nodes[1]" must be a URL, got a list"#,
    );
    refused(
        &json!({"replica_nodes": ["http://a", "ftp://b"]}),
        r#"field "replica_nodes[1]": "ftp://b" must begin with http:// or https://"#,
    );
    refused(
        &json!({"replica_nodes": ["localhost:8083"]}),
        r#"field "replica_nodes[0]": "localhost:8083" must begin with http:// or https://, e.g. "http://localhost:8083""#,
    );
    for (text, shown) in [("//h:1", "//h:1"), ("u:secret@h", "…@h"), ("h:port", "h:port"), ("", "")]
    {
        refused(
            &json!({"replica_nodes": [text]}),
            &format!(r#"field "replica_nodes[0]": "{shown}" must begin with http:// or https://"#),
        );
    }
    refused(
        &json!({"replica_nodes": ["http://a", "http://b", "http://c", "http://d"]}),
        r#"field "replica_nodes" names too many replicas, the limit is 3"#,
    );
    refused(
        &json!({"replica_nodes": vec!["http://a"; 1_025]}),
        r#"field "replica_nodes" has more than 1024 entries"#,
    );
    taken(&json!({"replica_nodes": vec!["http://a"; 1_024]}));
}

#[test]
fn a_long_text_is_truncated_in_an_error() {
    let sentence = refused_body(&body(&json!({"replica_nodes": ["é".repeat(300)]})));
    assert!(sentence.contains(&format!("{:?}… ", "é".repeat(100))), "{sentence}");
}

#[test]
fn a_body_that_is_not_a_json_object_is_refused() {
    for body in ["", "  ", "[]", r#"["k"]"#, "null", "7", "key=k", "\u{feff}{}"] {
        assert_eq!(refused_body(body.as_bytes()), "the body is not a JSON object");
    }
    for body in [
        "{",
        "{\"key\":\"k\"",
        "{\"key\":\"k\"} x",
        "{'key':'k'}",
        "{\"value\":\"\n\"}",
        r#"{"key":"a","key":"b"}"#,
        &format!("{{\"key\":{}", "[".repeat(10_000)),
    ] {
        let sentence = refused_body(body.as_bytes());
        assert!(sentence.starts_with("the body is not a valid JSON object: "), "{sentence}");
    }
    let not_utf8 = refused_body(b"{\"value\":\"secret\xff\"}");
    assert!(!not_utf8.contains("secret"), "{not_utf8}");
}

#[test]
fn deeply_nested_json_in_unknown_fields_is_skipped() {
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let body =
        format!(r#" {{"key":"k","operation":"DELETE","replica_nodes":["http://a"],"x":{deep}}}"#);
    write(body.as_bytes(), &settings()).unwrap();
}
