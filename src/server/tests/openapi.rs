//! The OpenAPI description, compared with the API.

use serde_json::Map;

use super::support::Server;
use super::*;
use crate::access::TokenList;

const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

async fn description() -> Value {
    let server = start(settings()).await;
    let answer = Client::connect(server.address).await.get("/v1/openapi.json", "").await;
    assert_eq!(answer.status, 200);
    answer.json()
}

fn operations(description: &Value) -> Vec<(String, String, &Map<String, Value>)> {
    let mut all = vec![];
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            assert!(METHODS.contains(&method.as_str()), "{path} {method}");
            all.push((path.clone(), method.clone(), operation.as_object().unwrap()));
        }
    }
    all
}

/// A minimal request for a described operation.
fn request(method: &str, path: &str, query: &str) -> String {
    let path = path.replace("{node}", "h%3A1").replace("{id}", "7");
    let method = method.to_uppercase();
    format!("{method} {path}{query} HTTP/1.1\r\nhost: h\r\ncontent-length: 0\r\n\r\n")
}

/// Collects every `$ref`.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("$ref").and_then(Value::as_str));
            object.values().for_each(|value| references(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[tokio::test]
async fn it_is_openapi_3_1_and_every_reference_resolves() {
    let description = description().await;
    assert!(description["openapi"].as_str().unwrap().starts_with("3.1."));
    assert_eq!(description["info"]["title"], "replicator");
    assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
    let mut found = vec![];
    references(&description, &mut found);
    assert!(found.len() > 20, "{found:?}");
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(description.pointer(pointer).is_some(), "{reference}");
    }
}

#[tokio::test]
async fn every_operation_has_a_summary_and_describes_success_and_errors() {
    let description = description().await;
    let mut ids = vec![];
    for (path, method, operation) in operations(&description) {
        let name = format!("{method} {path}");
        assert!(!operation["summary"].as_str().unwrap().is_empty(), "{name}");
        assert!(operation["tags"].as_array().is_some_and(|tags| tags.len() == 1), "{name}");
        ids.push(operation["operationId"].as_str().unwrap().to_owned());
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.keys().any(|status| status.starts_with('2')), "{name}");
        let fails = responses.keys().any(|status| status.starts_with(['4', '5']));
        assert_eq!(fails, path != "/livez", "{name}");
        for (status, response) in responses {
            assert!(response["description"].is_string(), "{name} {status}");
            assert!(response["content"].is_object(), "{name} {status}");
        }
        let parameters = operation.get("parameters").and_then(Value::as_array);
        for segment in path.split('/').filter_map(|part| part.strip_prefix('{')) {
            let segment = segment.strip_suffix('}').unwrap();
            let described = parameters.unwrap().iter().any(|parameter| {
                parameter["name"] == segment
                    && parameter["in"] == "path"
                    && parameter["required"] == true
            });
            assert!(described, "{name} {segment}");
        }
    }
    let count = ids.len();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count, "{ids:?}");
}

#[tokio::test]
async fn every_operation_returns_a_status_that_is_described() {
    let description = description().await;
    // The daemon has stopped, so that no request finds or waits for anything.
    let Server { address, requests, health: _health, stop: _stop, .. } = start(settings()).await;
    drop(requests);
    for (path, method, operation) in operations(&description) {
        let mut client = Client::connect(address).await;
        client.send(&request(&method, &path, "")).await;
        let answer = client.answer().await;
        let described = operation["responses"].get(answer.status.to_string());
        assert!(described.is_some(), "{method} {path}: {answer:?}");
        let unknown = "this path does not exist";
        assert!(answer.status != 405 && !answer.body.contains(unknown), "{method} {path}");
    }
}

#[tokio::test]
async fn operations_that_need_a_token_describe_the_required_role() {
    let description = description().await;
    let scheme = &description["components"]["securitySchemes"]["token"];
    assert_eq!((&scheme["type"], &scheme["scheme"]), (&json!("http"), &json!("bearer")));
    let mut with_tokens = settings();
    with_tokens.access.tokens = Some(Tokens::new(TokenList::default()));
    let server = start(with_tokens).await;
    for (path, method, operation) in operations(&description) {
        let mut client = Client::connect(server.address).await;
        client.send(&request(&method, &path, "")).await;
        let protected = client.answer().await.status == 401;
        assert_eq!(operation.get("security").is_some(), protected, "{method} {path}");
        for status in ["401", "403", "429"] {
            assert_eq!(operation["responses"].get(status).is_some(), protected, "{method} {path}");
        }
    }
    for (operation, role) in [
        ("/paths/~1replicate/post", "replicate"),
        ("/paths/~1v1~1barriers/post", "observe"),
        ("/paths/~1v1~1dead-letters~1discard/post", "operate"),
    ] {
        let security = &description.pointer(operation).unwrap()["security"];
        assert_eq!(security, &json!([{}, { "token": [role] }]));
    }
}

#[tokio::test]
async fn the_described_parameters_are_the_accepted_ones() {
    let description = description().await;
    let server = start(settings()).await;
    for (path, method, operation) in operations(&description) {
        if !path.starts_with("/v1/") {
            continue;
        }
        let mut client = Client::connect(server.address).await;
        client.send(&request(&method, &path, "?unknown=1")).await;
        let answer = client.answer().await;
        let parameters = operation.get("parameters").and_then(Value::as_array);
        let queried = parameters.into_iter().flatten().filter(|given| given["in"] == "query");
        let names: Vec<_> = queried.map(|given| given["name"].as_str().unwrap()).collect();
        let sentence = match names[..] {
            [] => r#"unknown parameter "unknown": this path takes none"#.to_owned(),
            _ => format!(r#"unknown parameter "unknown", expected one of {}"#, names.join(", ")),
        };
        answer.is_error(400, &sentence);
    }
}

#[tokio::test]
async fn the_described_enum_values_are_the_accepted_ones() {
    let description = description().await;
    let schemas = &description["components"]["schemas"];
    let parameters = description.pointer("/paths/~1v1~1dead-letters/get/parameters").unwrap();
    let cause = parameters.as_array().unwrap().iter().find(|given| given["name"] == "cause");
    assert!(cause.is_some());
    assert_eq!(
        schemas["Cause"]["enum"],
        json!(["rejected", "refused", "gave_up", "retry_overflow"])
    );
    assert_eq!(schemas["Rename"]["additionalProperties"], false);
}

/// Routes added by `routes!` are described. Only the page is routed otherwise.
#[test]
fn every_route_is_described() {
    for source in [include_str!("../routes.rs"), include_str!("../v1/openapi.rs")] {
        let others = source.split(".route(").skip(1).filter(|other| !other.contains("(page::"));
        assert_eq!(others.count(), 0, "route it with `routes!` in v1/openapi.rs");
    }
}
