//! `GET /` and `GET /assets/{name}`: the page for operators, out of the binary itself.
//!
//! The files are under `page/` as the browser gets them: no build step, nothing from elsewhere. They
//! hold no secret and need no token; what they show they ask `/v1` for, as any client. The headers
//! forbid the page everything that it does not use, so that a key or an error that looks like
//! markup stays text even if the page had a mistake.
//!
//! To read: `page/index.html`, then `page/main.js`.

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

/// Sent with every file: what the page may load, and who may show it.
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
    // Kept, and asked about each time: after an upgrade no old part meets a new one.
    (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
];

/// A file of the page.
#[derive(Clone, Copy)]
struct File {
    content_type: &'static str,
    text: &'static str,
}

/// The page.
pub(super) async fn index(headers: HeaderMap) -> Response {
    serve(INDEX, &headers)
}

/// A part of the page.
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

fn serve(file: File, asked: &HeaderMap) -> Response {
    let tag = tag(file.text);
    let mut response = match asked.get(IF_NONE_MATCH).and_then(|known| known.to_str().ok()) {
        Some(known) if knows(known, &tag) => not_modified(),
        _ => bytes(file.text.into()),
    };
    let headers = response.headers_mut();
    headers.extend(HEADERS);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(file.content_type));
    // Hexadecimal digits between quotes always are a header's value.
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        headers.insert(ETAG, tag);
    }
    response
}

/// The same for the same text, in one build and mostly in all.
fn tag(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("\"{:016x}\"", hasher.finish())
}

/// Whether one of the tags in an `If-None-Match` is this one.
fn knows(known: &str, tag: &str) -> bool {
    let mut tags = known.split(',').map(str::trim);
    tags.any(|known| known == "*" || known.strip_prefix("W/").unwrap_or(known) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_known_by_itself_in_a_list_weakly_or_as_any() {
        let tag = tag("text");
        for known in [tag.clone(), format!("\"a\", {tag}"), format!("W/{tag}"), "*".to_owned()] {
            assert!(knows(&known, &tag), "{known}");
        }
        for unknown in ["", "\"a\"", "text"] {
            assert!(!knows(unknown, &tag), "{unknown}");
        }
    }
}
