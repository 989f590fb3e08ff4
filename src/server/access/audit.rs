//! The audit log: requests of operators, and requests that were refused.
//!
//! An operation that succeeded is always logged. Refused and failed requests are limited, because a
//! client without any right can cause them. Every text from outside is cut.

use std::num::NonZeroU32;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::{Method, Uri};
use axum::response::Response;
use parking_lot::Mutex;

use super::{Caller, ClientPeer, Need, now};
use crate::access::{Bucket, Role};

/// No known method is longer; hyper accepts one of 64 KiB.
const METHOD_CHARS: usize = 16;

const PATH_CHARS: usize = 256;

/// Limit of the refused and failed requests in the log: of token holders, and of all others.
const LINES_PER_SECOND: NonZeroU32 = NonZeroU32::MIN.saturating_add(4);

/// Audit detail that the path lacks. A handler attaches it to its response.
#[derive(Clone, Debug)]
pub(in crate::server) struct About(String);

impl About {
    pub(in crate::server) fn of(text: String) -> Self {
        Self(text)
    }

    pub(in crate::server) fn on(self, mut answer: Response) -> Response {
        answer.extensions_mut().insert(self);
        answer
    }
}

/// A request as the audit log shows it.
pub(super) struct AuditEntry {
    /// Needs the role `operate`. These are logged when they succeed, too.
    pub(super) is_operation: bool,
    method: Method,
    uri: Uri,
    peer: Option<Arc<ClientPeer>>,
}

/// Why a request without success is in the audit log.
#[derive(Clone, Copy)]
pub(super) enum AuditEvent {
    /// By the access check.
    Refused,
    /// It was admitted as an operation, and its answer is an error.
    Failed,
}

impl AuditEntry {
    pub(super) fn of(need: Need, request: &Request) -> Option<Self> {
        let Need::Role(role) = need else { return None };
        Some(Self {
            is_operation: role == Role::Operate,
            method: request.method().clone(),
            uri: request.uri().clone(),
            peer: request.extensions().get::<Arc<ClientPeer>>().cloned(),
        })
    }

    fn peer(&self) -> String {
        self.peer.as_ref().map_or_else(String::new, |peer| peer.address.ip().to_string())
    }

    fn method(&self) -> String {
        self.method.as_str().chars().take(METHOD_CHARS).collect()
    }

    fn path(&self) -> String {
        loggable(self.uri.path())
    }

    fn certificate(&self) -> Option<&str> {
        self.peer.as_ref()?.certificate.as_deref()
    }

    pub(super) fn log_operation(&self, caller: &Caller, about: Option<&About>, status: u16) {
        tracing::info!(
            target: "audit",
            who = %caller,
            certificate = self.certificate(),
            peer = self.peer(),
            method = self.method(),
            path = self.path(),
            about = about.map(|about| about.0.as_str()),
            status,
            "an operator's request"
        );
    }
}

/// Truncates a path, and hides segments with an `@`, which may contain a password.
fn loggable(path: &str) -> String {
    let secret = |part: &str| part.contains('@') || part.to_ascii_lowercase().contains("%40");
    let parts = path.split('/').map(|part| if secret(part) { "…" } else { part });
    parts.collect::<Vec<_>>().join("/").chars().take(PATH_CHARS).collect()
}

/// Limits the rate of refused and failed requests in the log. A client without a token could
/// otherwise fill the disk.
#[derive(Debug)]
pub(in crate::server) struct Refusals {
    /// Of token holders. Separate, so that strangers cannot hide them.
    holders: Mutex<RefusalLimit>,
    others: Mutex<RefusalLimit>,
}

#[derive(Debug)]
struct RefusalLimit {
    bucket: Bucket,
    suppressed: u64,
}

impl RefusalLimit {
    fn new() -> Mutex<Self> {
        Mutex::new(Self { bucket: Bucket::new(LINES_PER_SECOND), suppressed: 0 })
    }
}

impl Refusals {
    pub(in crate::server) fn new() -> Self {
        Self { holders: RefusalLimit::new(), others: RefusalLimit::new() }
    }

    pub(super) fn log(&self, entry: &AuditEntry, caller: &Caller, status: u16, event: AuditEvent) {
        let limit = if caller.holder.is_some() { &self.holders } else { &self.others };
        let mut limit = limit.lock();
        if limit.bucket.spend(now()).is_err() {
            limit.suppressed += 1;
            return;
        }
        let suppressed = std::mem::take(&mut limit.suppressed);
        drop(limit);
        tracing::warn!(
            target: "audit",
            who = %caller,
            certificate = entry.certificate(),
            peer = entry.peer(),
            method = entry.method(),
            path = entry.path(),
            status,
            suppressed,
            "{}",
            match event {
                AuditEvent::Refused => "a request was refused",
                AuditEvent::Failed => "a request failed",
            }
        );
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::http::Extensions;

    use super::*;

    fn entry(method: &str, path: &str) -> AuditEntry {
        let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
        AuditEntry::of(Need::Role(Role::Operate), &request).unwrap()
    }

    #[test]
    fn a_password_in_a_path_is_not_logged() {
        assert_eq!(
            loggable("/v1/replicas/http%3A%2F%2Fh%3A1/pause"),
            "/v1/replicas/http%3A%2F%2Fh%3A1/pause"
        );
        assert_eq!(loggable("/v1/replicas/http%3A%2F%2Fu:p%40h/pause"), "/v1/replicas/…/pause");
        assert_eq!(loggable("/a@b/c"), "/…/c");
    }

    #[test]
    fn the_fields_of_a_client_are_cut() {
        let long = entry(&"M".repeat(60_000), &format!("/{}", "p".repeat(60_000)));
        assert_eq!((long.method().len(), long.path().len()), (16, 256));
        assert_eq!(entry("DELETE", "/v1/tasks/1").method(), "DELETE");
    }

    #[test]
    fn refusals_cannot_flood_the_log() {
        let (refusals, entry) = (Refusals::new(), entry("GET", "/"));
        for event in [AuditEvent::Refused, AuditEvent::Failed] {
            for _ in 0..1000 {
                refusals.log(&entry, &Caller::anonymous(&Extensions::new()), 401, event);
            }
        }
        let suppressed = refusals.others.lock().suppressed;
        assert!(suppressed > 1900, "{suppressed} suppressed");
        assert_eq!(refusals.holders.lock().suppressed, 0);
    }
}
