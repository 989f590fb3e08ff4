use axum::http::HeaderValue;

use super::*;

#[test]
fn a_path_missing_from_the_table_needs_the_role_implied_by_its_method() {
    let role = Need::Role;
    for (method, path, expected) in [
        (Method::GET, "/", Need::Nothing),
        (Method::HEAD, "/livez", Need::Nothing),
        (Method::GET, "/readyz", Need::Nothing),
        (Method::GET, "/assets/page.js", Need::Nothing),
        (Method::POST, "/assets/page.js", role(Role::Operate)),
        (Method::POST, "/livez", role(Role::Operate)),
        (Method::GET, "/health", role(Role::Observe)),
        (Method::GET, "/metrics", role(Role::Observe)),
        (Method::GET, "/metrics/users", role(Role::Observe)),
        (Method::GET, "/v1/tasks/1", role(Role::Observe)),
        (Method::DELETE, "/v1/tasks/1", role(Role::Operate)),
        (Method::GET, "/v1/events", role(Role::Observe)),
        (Method::POST, "/v1/barriers", role(Role::Observe)),
        (Method::GET, "/v1/keys/k", role(Role::Observe)),
        (Method::POST, "/v1/snapshot", role(Role::Operate)),
        (Method::POST, "/v1/verify", role(Role::Operate)),
        (Method::PATCH, "/v1/replicas/b", role(Role::Operate)),
        (Method::POST, "/replicate", role(Role::Replicate)),
        (Method::POST, "/v1/replicate/batch", role(Role::Replicate)),
        (Method::POST, "/v1/dead-letters/redrive", role(Role::Operate)),
        (Method::POST, "/replicate/", role(Role::Operate)),
        (Method::POST, "//replicate", role(Role::Operate)),
        (Method::POST, "/%72eplicate", role(Role::Operate)),
        (Method::GET, "/assets", role(Role::Observe)),
        (Method::OPTIONS, "/replicate", role(Role::Operate)),
        (Method::CONNECT, "", role(Role::Operate)),
        (Method::GET, "/nothing", role(Role::Observe)),
    ] {
        assert_eq!(need(&method, path), expected, "{method} {path}");
    }
}

#[test]
fn a_token_is_read_from_exactly_one_bearer_header() {
    let token = |lines: &[&str]| {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(AUTHORIZATION, HeaderValue::from_str(line).unwrap());
        }
        bearer(&headers).map(str::to_owned)
    };
    assert_eq!(token(&["Bearer t"]).as_deref(), Some("t"));
    assert_eq!(token(&["bearer  t"]).as_deref(), Some("t"));
    for none in [&["Basic t"][..], &["Bearer"], &["t"], &["Bearer a", "Bearer b"], &[]] {
        assert_eq!(token(none), None, "{none:?}");
    }
}

fn allowed(method: &Method, uri: &str, headers: &[(&str, &str)], access: &Access) -> bool {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        let name: HeaderName = name.parse().unwrap();
        map.append(name, HeaderValue::from_str(value).unwrap());
    }
    same_site(access, method, &uri.parse().unwrap(), &map).is_ok()
}

#[test]
fn on_loopback_without_tokens_only_known_hosts_are_accepted() {
    let access = Access {
        tokens: None,
        host_names: vec!["replicator.internal".to_owned()],
        named_hosts_only: true,
    };
    let get = |host: &str| allowed(&Method::GET, "/metrics", &[("host", host)], &access);
    for good in [
        "127.0.0.1:8085",
        "127.0.0.1",
        "localhost:8085",
        "LocalHost.",
        "[::1]:8085",
        "10.1.2.3:1",
        "replicator.internal:8085",
        "Replicator.Internal.",
    ] {
        assert!(get(good), "{good}");
    }
    for bad in [
        "evil.example:8085",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "x@127.0.0.1",
        "127.0.0.1@evil.example",
        "",
        "a b",
        "notreplicator.internal",
    ] {
        assert!(!get(bad), "{bad}");
    }
    assert!(allowed(&Method::GET, "/metrics", &[], &access), "browsers always send Host");
    let both = [("host", "localhost"), ("host", "evil.example")];
    assert!(!allowed(&Method::GET, "/metrics", &both, &access));
    let absolute = "http://evil.example/metrics";
    assert!(!allowed(&Method::GET, absolute, &[("host", "localhost")], &access));
    assert!(allowed(&Method::GET, "/metrics", &[("host", "evil.example")], &Access::open()));
}

#[test]
fn a_cross_site_request_changes_nothing() {
    let access = Access { host_names: vec!["ops.example".to_owned()], ..Access::open() };
    let post = |host: &str, origin: &str| {
        allowed(&Method::POST, "/replicate", &[("host", host), ("origin", origin)], &access)
    };
    assert!(post("127.0.0.1:8085", "http://127.0.0.1:8085"));
    assert!(post("internal:80", "https://ops.example"), "behind a proxy under another name");
    for origin in [
        "http://evil.example",
        "null",
        "",
        "http://127.0.0.1:3000",
        "http://localhost:8085",
        "http://127.0.0.1:8085.evil.example",
        "http://ops.example.evil.example",
    ] {
        assert!(!post("127.0.0.1:8085", origin), "{origin}");
    }
    assert!(allowed(&Method::POST, "/replicate", &[("host", "h")], &access), "not a browser");
    let two = [("host", "h"), ("origin", "http://h"), ("origin", "http://evil.example")];
    assert!(!allowed(&Method::POST, "/replicate", &two, &access));
}

#[test]
fn a_browser_that_reports_another_site_changes_nothing() {
    let site = |method: Method, site: &str| {
        allowed(&method, "/replicate", &[("host", "h"), ("sec-fetch-site", site)], &Access::open())
    };
    for own in ["same-origin", "none"] {
        assert!(site(Method::POST, own), "{own}");
    }
    for foreign in ["cross-site", "same-site", "", "Same-Origin", "strange"] {
        assert!(!site(Method::POST, foreign), "{foreign}");
        assert!(!site(Method::DELETE, foreign), "{foreign}");
        assert!(site(Method::GET, foreign), "reading changes nothing");
    }
    let two = [("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")];
    assert!(!allowed(&Method::POST, "/replicate", &two, &Access::open()));
}

#[test]
fn a_request_without_the_middleware_is_an_internal_error() {
    let unchecked = Caller::of(&Extensions::new());
    assert!(matches!(unchecked, Err(Problem::Internal(_))));
}
