//! Validation of operators' bodies.

use super::*;
use crate::task::Cause;

#[track_caller]
fn refused<T: fmt::Debug>(outcome: Result<T, Problem>, sentence: &str) {
    match outcome {
        Err(Problem::Invalid(said)) => assert_eq!(said, sentence),
        other => panic!("{other:?}"),
    }
}

fn redrive(body: &str) -> Result<Selected, Problem> {
    object::<SelectionBody<'_>>(body.as_bytes())?.redriven()
}

#[test]
fn a_selection_is_read_field_by_field() {
    let body = r#"{
        "ids": [{"task_id": "7", "replica": "h:1"}, {"task_id": "8"}], "replica": "http://h:1/",
        "key": "k", "key_prefix": "p/", "user_id": "u", "cause": "gave_up", "dry_run": true,
        "rate": 5
    }"#;
    let node = Node::parse("http://h:1").unwrap();
    let filter = LetterFilter {
        ids: Some(vec![(TaskId(7), Some(node.clone())), (TaskId(8), None)]),
        replica: Some(node),
        key: Some("k".to_owned()),
        key_prefix: Some("p/".to_owned()),
        user_id: Some("u".to_owned()),
        cause: Some(Cause::GaveUp),
    };
    let selected = Selected { filter, dry_run: true, rate: NonZeroU32::new(5) };
    assert_eq!(redrive(body).unwrap(), selected);
}

/// A write may carry either form.
#[test]
fn a_user_is_selected_by_an_integer_or_by_its_text() {
    let user = |json: &str| redrive(&format!(r#"{{"user_id":{json}}}"#));
    assert_eq!(user("-5").unwrap(), user(r#""-5""#).unwrap());
    assert_eq!(user("1").unwrap().filter.user_id.as_deref(), Some("1"));
    let rule = "a string or an integer from -9223372036854775808 to 18446744073709551615";
    refused(user("1.5"), &format!(r#"field "user_id" must be {rule}, got the number 1.5"#));
    refused(user(r#""""#), r#"field "user_id" must not be empty, omit it to not filter by it"#);
}

#[test]
fn selecting_everything_must_be_explicit() {
    let nothing = r#"nothing is selected: set "ids", "replica", "key", "key_prefix", "user_id" or "cause", or set "all" to true"#;
    for body in ["", "{}", " \n", r#"{"dry_run":true}"#, r#"{"all":false,"key":null}"#] {
        refused(redrive(body), nothing);
    }
    let all = redrive(r#"{"all":true}"#).unwrap();
    assert_eq!(all, Selected { filter: LetterFilter::default(), dry_run: false, rate: None });
    refused(
        redrive(r#"{"all":true,"key":"k"}"#),
        r#"field "all" cannot be combined with other selectors"#,
    );
}

/// The client chooses the name of an unknown field: any length, any characters.
#[test]
fn an_unknown_field_is_reported_escaped_and_truncated() {
    let reported = |name: &str| match redrive(&format!(r#"{{"{name}":1}}"#)) {
        Err(Problem::Invalid(said)) => said,
        other => panic!("{other:?}"),
    };
    let said = reported("\u{7f}k\\u001b[2J");
    assert!(said.contains(r"unknown field `\u{7f}k\u{1b}[2J`, expected one of"), "{said}");
    let said = reported(&"ü".repeat(100_000));
    assert!(said.chars().count() < 400 && said.ends_with("at line 1 column 200003"), "{said}");
    assert!(said.contains("unknown field `üüü") && said.contains("ü…"), "{said}");
}

#[test]
fn an_invalid_field_is_named() {
    for (body, sentence) in [
        ("[]", "the body is not a JSON object"),
        (r#"{"key":7}"#, r#"field "key" must be a string, got the number 7"#),
        (r#"{"key":""}"#, r#"field "key" must not be empty, omit it to not filter by it"#),
        (
            r#"{"key_prefix":""}"#,
            r#"field "key_prefix" must not be empty, omit it to not filter by it"#,
        ),
        (
            r#"{"cause":"bored"}"#,
            r#"field "cause" must be rejected, refused, gave_up or retry_overflow, got the string "bored""#,
        ),
        (r#"{"all":"yes"}"#, r#"field "all" must be true or false, got the string "yes""#),
        (
            r#"{"all":true,"dry_run":1}"#,
            r#"field "dry_run" must be true or false, got the number 1"#,
        ),
        (
            r#"{"replica":"ftp://h"}"#,
            r#"field "replica": "ftp://h" must begin with http:// or https://"#,
        ),
        (r#"{"ids":[]}"#, r#"field "ids" must not be empty, omit it to not filter by it"#),
        (
            r#"{"ids":[{"task_id":7}]}"#,
            r#"field "ids[0].task_id" must be the id of a task, got the number 7"#,
        ),
        (
            r#"{"ids":[{"task_id":"7"},{}]}"#,
            r#"field "ids[1].task_id" must be the id of a task, got null"#,
        ),
        (
            r#"{"ids":[{"task_id":"7","replica":""}]}"#,
            r#"field "ids[0].replica" must not be empty, omit it to not filter by it"#,
        ),
    ] {
        refused(redrive(body), sentence);
    }
    for rate in ["0", "-1", "1.5", "4294967296", "\"5\""] {
        let body = format!(r#"{{"all":true,"rate":{rate}}}"#);
        let Err(Problem::Invalid(said)) = redrive(&body) else { panic!("{rate}") };
        assert!(said.starts_with(r#"field "rate" must be an integer from 1 to 4294967295, got"#));
    }
}

#[test]
fn unknown_fields_are_named_at_every_level() {
    for (body, name) in [
        (r#"{"all":true,"dryrun":true}"#, "dryrun"),
        (r#"{"ids":[{"task_id":"7","node":"h"}]}"#, "node"),
    ] {
        let Err(Problem::Invalid(said)) = redrive(body) else { panic!("{body}") };
        assert!(said.contains(&format!("unknown field `{name}`")), "{said}");
    }
    let Err(Problem::Invalid(said)) = object::<EmptyBody>(br#"{"a":1}"#) else { panic!() };
    assert!(said.contains("unknown field `a`"), "{said}");
    object::<EmptyBody>(b" {}").unwrap();
    let discard = object::<SelectionBody<'_>>(br#"{"all":true,"rate":1}"#).unwrap().discarded();
    refused(discard, r#"field "rate" is not supported: discarding has no rate limit"#);
}

#[test]
fn at_most_a_thousand_ids_are_accepted() {
    let ids = |count: usize| {
        let ids: Vec<_> = (0..count).map(|id| format!(r#"{{"task_id":"{id}"}}"#)).collect();
        redrive(&format!(r#"{{"ids":[{}]}}"#, ids.join(",")))
    };
    assert_eq!(ids(1000).unwrap().filter.ids.unwrap().len(), 1000);
    refused(ids(5000), r#"field "ids" has more than 1000 entries"#);
    let Err(Problem::Invalid(said)) = redrive(r#"{"ids":5}"#) else { panic!() };
    assert!(said.contains(r#"expected a list of {"task_id": …, "replica": …} as "ids""#), "{said}");
}

#[test]
fn a_new_address_is_required_and_checked() {
    let to = |body: &str| object::<RenameBody<'_>>(body.as_bytes())?.checked();
    assert_eq!(to(r#"{"to":"h:2"}"#).unwrap().as_str(), "http://h:2");
    refused(to(""), r#"field "to" is missing: it must be the new address"#);
    refused(to(r#"{"to":true}"#), r#"field "to" must be a string, got true"#);
}

#[test]
fn a_barrier_covers_all_replicas_or_the_named_ones() {
    let about = |body: &str| object::<BarrierBody<'_>>(body.as_bytes())?.checked();
    assert_eq!(about("").unwrap(), []);
    assert_eq!(about(r#"{"replicas":[]}"#).unwrap(), []);
    assert_eq!(about(r#"{"replicas":["h:1","http://h:1/"]}"#).unwrap().len(), 1);
    refused(
        about(r#"{"replicas":"h"}"#),
        r#"field "replicas" must be a list of addresses, got the string "h""#,
    );
    refused(about(r#"{"replicas":[null]}"#), r#"field "replicas[0]" must be an address, got null"#);
    refused(
        about(r#"{"replicas":["h:x"]}"#),
        r#"field "replicas[0]": "h:x" is not a URL: invalid port number"#,
    );
}
