//! `GET /` and `GET /assets/{name}`: the operators' web page, embedded in the binary.
//!
//! The files under `page/` are served as they are: no build step, nothing loaded from elsewhere.
//! They contain no secrets and need no token; the page fetches its data from `/v1` like any client.
//! The Content-Security-Policy is strict, so that a key or an error that looks like markup stays
//! text even if the page has a bug. Read `page/index.html`, then `page/main.js`.

use std::hash::{DefaultHasher, Hash, Hasher};

use axum::extract::Path;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::Response;

use super::errors::{Problem, bytes, not_modified};

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

const INDEX: File = File { content_type: HTML, text: include_str!("page/index.html") };

const HEADERS: [(HeaderName, HeaderValue); 4] = [
    (
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
             img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    // Revalidated every time: after an upgrade, old and new files must not mix.
    (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
];

#[derive(Clone, Copy)]
struct File {
    content_type: &'static str,
    text: &'static str,
}

pub(super) async fn index(headers: HeaderMap) -> Response {
    serve(INDEX, &headers)
}

pub(super) async fn asset(
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    find(&name).map(|file| serve(file, &headers)).ok_or(Problem::NotFound)
}

fn find(name: &str) -> Option<File> {
    let script = |text| Some(File { content_type: SCRIPT, text });
    match name {
        "api.js" => script(include_str!("page/api.js")),
        "cluster.js" => script(include_str!("page/cluster.js")),
        "dialogs.js" => script(include_str!("page/dialogs.js")),
        "dom.js" => script(include_str!("page/dom.js")),
        "events.js" => script(include_str!("page/events.js")),
        "format.js" => script(include_str!("page/format.js")),
        "history.js" => script(include_str!("page/history.js")),
        "letters.js" => script(include_str!("page/letters.js")),
        "main.js" => script(include_str!("page/main.js")),
        "operations.js" => script(include_str!("page/operations.js")),
        "overview.js" => script(include_str!("page/overview.js")),
        "pages.js" => script(include_str!("page/pages.js")),
        "plain.js" => script(include_str!("page/plain.js")),
        "plot.js" => script(include_str!("page/plot.js")),
        "replicas.js" => script(include_str!("page/replicas.js")),
        "tasks.js" => script(include_str!("page/tasks.js")),
        "theme.js" => script(include_str!("page/theme.js")),
        "style.css" => Some(File { content_type: STYLE, text: include_str!("page/style.css") }),
        "icon.svg" => Some(File { content_type: IMAGE, text: include_str!("page/icon.svg") }),
        _ => None,
    }
}

fn serve(file: File, request: &HeaderMap) -> Response {
    let tag = tag(file.text);
    let mut response = match request.get(IF_NONE_MATCH).and_then(|known| known.to_str().ok()) {
        Some(known) if knows(known, &tag) => not_modified(),
        _ => bytes(file.text.into()),
    };
    let headers = response.headers_mut();
    headers.extend(HEADERS);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.content_type));
    // Always valid: hexadecimal digits in quotes.
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    response
}

fn tag(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

/// Whether an `If-None-Match` header contains the tag.
fn knows(known: &str, tag: &str) -> bool {
    let mut tags = known.split(',').map(str::trim);
    tags.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn if_none_match_accepts_a_tag_alone_in_a_list_weak_or_a_star() {
        let tag = tag("text");
        for known in [tag.clone(), format!("\"a\", {tag}"), format!("W/{tag}"), "*".to_owned()] {
            assert!(knows(&known, &tag), "{known}");
        }
        for unknown in ["", "\"a\"", "text"] {
            assert!(!knows(unknown, &tag), "{unknown}");
        }
    }
}
