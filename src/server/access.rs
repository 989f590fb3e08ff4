//! Who may do what: the table, and the check before every handler.
//!
//! Nothing reaches a handler that has not passed here. What the table does not name needs the role
//! that its method suggests, so that a path which is forgotten is closed rather than open.
//!
//! Where nobody is asked for a token, a page of another site that someone on this machine looks at
//! could still post here, for a browser sends whatever it is told to; so `Origin` and, on loopback,
//! `Host` are looked at. Where a token is asked for, no page has it.

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use arc_swap::ArcSwap;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::uri::Authority;
use axum::http::{Extensions, HeaderMap, Method, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::Inbound;
use super::connections::Peer;
use super::errors::Problem;
use crate::access::{Bucket, Holder, Role, Tokens};
use crate::task::Node;

/// What is asked of whoever asks.
#[derive(Clone, Debug)]
pub struct Access {
    /// The tokens that are good; `None` where nobody is asked for one.
    pub tokens: Option<Arc<ArcSwap<Tokens>>>,
    /// By which names, besides addresses and `localhost`, this server may be called where a
    /// browser could be made to call it.
    pub host_names: Vec<String>,
    /// Whether it may be called by these alone. True where there is neither token nor certificate
    /// and only this machine can ask.
    pub named_hosts_only: bool,
}

impl Access {
    /// Everyone may do everything.
    #[must_use]
    pub fn open() -> Self {
        Self { tokens: None, host_names: Vec::new(), named_hosts_only: false }
    }
}

/// What a request needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Nothing: it tells nothing that is worth hiding.
    Nothing,
    /// A token with this role.
    Role(Role),
}

/// The table: method, path, what it needs. A `*` at the end is any rest; HEAD is GET.
const TABLE: [(&str, &str, Need); 7] = [
    // For whoever restarts and whoever routes.
    ("GET", "/livez", Need::Nothing),
    ("GET", "/readyz", Need::Nothing),
    // The page holds no data; it asks for a token to get any.
    ("GET", "/", Need::Nothing),
    ("GET", "/assets/*", Need::Nothing),
    ("POST", "/replicate", Need::Role(Role::Replicate)),
    ("POST", "/v1/replicate/batch", Need::Role(Role::Replicate)),
    // A barrier only marks a moment.
    ("POST", "/v1/barriers", Need::Role(Role::Observe)),
];

fn need(method: &Method, path: &str) -> Need {
    let reads = method == Method::GET || method == Method::HEAD;
    let verb = if reads { "GET" } else { method.as_str() };
    let line = TABLE.iter().find(|(method, pattern, _)| {
        *method == verb
            && match pattern.strip_suffix('*') {
                Some(begin) => path.starts_with(begin),
                None => path == *pattern,
            }
    });
    match line {
        Some((_, _, need)) => *need,
        None if reads => Need::Role(Role::Observe),
        None => Need::Role(Role::Operate),
    }
}

/// Adds to the description of the API what each operation needs, by the table, and what whoever
/// does not have it is answered.
pub(super) fn describe(openapi: &mut Value) {
    let scheme = json!({
        "type": "http", "scheme": "bearer",
        "description": "As `replicator token new` makes it, where the daemon has --auth-file. \
            What an operation names is the role that its token needs.",
    });
    if let Some(components) = openapi.get_mut("components").and_then(Value::as_object_mut) {
        components.insert("securitySchemes".to_owned(), json!({ "token": scheme }));
    }
    let refused = |description: &str| {
        let schema = json!({ "$ref": "#/components/schemas/Error" });
        json!({
            "description": description, "content": { "application/json": { "schema": schema } },
        })
    };
    let paths = openapi.get_mut("paths").and_then(Value::as_object_mut);
    for (path, item) in paths.into_iter().flatten() {
        for (verb, operation) in item.as_object_mut().into_iter().flatten() {
            let method = verb.to_ascii_uppercase().parse::<Method>();
            let Ok(Need::Role(role)) = method.map(|method| need(&method, path)) else { continue };
            let Some(operation) = operation.as_object_mut() else { continue };
            // Or nothing, where no token is asked for.
            let security = json!([{}, { "token": [role.to_string()] }]);
            operation.insert("security".to_owned(), security);
            let responses = operation.get_mut("responses").and_then(Value::as_object_mut);
            let Some(responses) = responses else { continue };
            for (status, description) in [
                ("401", "No token, or not a good one."),
                ("403", "Its role does not cover this, or a page of another site asks."),
                ("429", "The rate of the token is used up."),
            ] {
                responses.entry(status).or_insert_with(|| refused(description));
            }
        }
    }
}

/// Who asks, among the extensions of a request that has passed.
#[derive(Clone, Debug, Default)]
pub(super) struct Caller(Option<Arc<Holder>>);

impl Caller {
    /// Who sent the request with these extensions. One that did not pass [`check`] may do nothing.
    pub(super) fn of(extensions: &Extensions) -> Result<Self, Problem> {
        let caller = extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Problem::internal(&"a request came past the check of its sender"))
    }

    /// Whether its writes may name these replicas.
    pub(super) fn may_name(&self, replicas: &[Node]) -> Result<(), Problem> {
        let Some(holder) = &self.0 else { return Ok(()) };
        match replicas.iter().find(|replica| !holder.grant.may_name(replica)) {
            None => Ok(()),
            Some(replica) => Err(Problem::Forbidden(format!(
                r#"field "replica_nodes" names {replica}, to which this token may not write"#
            ))),
        }
    }

    /// An idempotency key as this caller's own: clients with tokens of their own may choose the same
    /// key. The space is in no key and in no name.
    pub(super) fn own_key(&self, key: Box<str>) -> Box<str> {
        match &self.0 {
            Some(holder) => format!("{} {key}", holder.grant.name).into(),
            None => key,
        }
    }

    /// Counts so many requests more than the one that it is.
    pub(super) fn spend(&self, more: usize) {
        if let Some(holder) = &self.0 {
            holder.owe(u32::try_from(more).unwrap_or(u32::MAX));
        }
    }
}

fn spent(holder: &Holder, requests: u32) -> Result<(), Problem> {
    holder.spend(requests, now()).map_err(|retry_after| Problem::TooMany {
        error: "this token has used up its requests a second".to_owned(),
        retry_after,
    })
}

#[expect(
    clippy::disallowed_methods,
    reason = "a rate counts real time, and its rules are tested in access::bucket"
)]
fn now() -> Instant {
    Instant::now()
}

/// What an operator's action was about, where its path does not say: on the answer, for the log.
#[derive(Clone, Debug)]
pub(super) struct About(String);

impl About {
    pub(super) fn of(text: String) -> Self {
        Self(text)
    }

    /// Puts it on an answer.
    pub(super) fn on(self, mut answer: Response) -> Response {
        answer.extensions_mut().insert(self);
        answer
    }
}

/// Checks a request, and keeps the audit log.
pub(super) async fn check(
    State(inbound): State<Arc<Inbound>>,
    mut request: Request,
    next: Next,
) -> Response {
    let need = need(request.method(), request.uri().path());
    let action = Action::of(need, &request);
    match admit(&inbound.settings.access, need, &request) {
        Ok(caller) => {
            request.extensions_mut().insert(caller.clone());
            let mut response = next.run(request).await;
            if let Some(action) = action.filter(|action| action.changes) {
                let about = response.extensions_mut().remove::<About>();
                action.done(&caller, about.as_ref(), response.status().as_u16());
            }
            response
        }
        Err((problem, caller)) => {
            let (head, body) = request.into_parts();
            inbound.memory.discard(&head.headers, body);
            let response = problem.into_response();
            let status = response.status().as_u16();
            if head.uri.path() == "/replicate" && head.method == Method::POST {
                inbound.handle.counts().answered(status);
            }
            if let Some(action) = action {
                inbound.refusals.tell(&action, &caller, status);
            }
            response
        }
    }
}

fn admit(access: &Access, need: Need, request: &Request) -> Result<Caller, (Problem, Caller)> {
    let Need::Role(role) = need else { return Ok(Caller::default()) };
    let Some(tokens) = &access.tokens else {
        let browsed = browsed(access, request.method(), request.uri(), request.headers());
        return match browsed {
            Ok(()) => Ok(Caller::default()),
            Err(why) => Err((Problem::Forbidden(why), Caller::default())),
        };
    };
    let Some(token) = bearer(request.headers()) else {
        let error = "this needs a token, as Authorization: Bearer";
        return Err((Problem::Unauthenticated(error), Caller::default()));
    };
    let Some(holder) = tokens.load().find(token).cloned() else {
        let error = "this token is not a good one";
        return Err((Problem::Unauthenticated(error), Caller::default()));
    };
    let caller = Caller(Some(Arc::clone(&holder)));
    if !holder.grant.allows(role) {
        let error = format!("this needs a token with the role {role}");
        return Err((Problem::Forbidden(error), caller));
    }
    match spent(&holder, 1) {
        Ok(()) => Ok(caller),
        Err(problem) => Err((problem, caller)),
    }
}

/// The token of a request that has exactly one.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    let only = lines.next().filter(|_| lines.next().is_none())?;
    let (scheme, token) = only.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Refuses what a browser may have been made to send by another site.
fn browsed(access: &Access, method: &Method, uri: &Uri, headers: &HeaderMap) -> Result<(), String> {
    // A client may write the whole address into its request line.
    let lines = headers.get_all(HOST).iter().map(|host| host.to_str().unwrap_or_default());
    let hosts: Vec<_> = lines.chain(uri.authority().map(Authority::as_str)).collect();
    if access.named_hosts_only
        && let Some(strange) = hosts.iter().find(|host| !is_ours(access, host))
    {
        let strange = super::wire::shown(strange);
        return Err(format!(
            "this server is not to be called {strange}: by an address, localhost or a --host-name alone, for it asks for no token"
        ));
    }
    if method == Method::GET || method == Method::HEAD {
        return Ok(());
    }
    let host = hosts.first();
    for origin in headers.get_all(ORIGIN) {
        let from = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
        let same = from.is_some_and(|(_, from)| {
            host.is_some_and(|host| host.eq_ignore_ascii_case(from))
                || name_of(from).is_some_and(|name| is_named(access, &name))
        });
        if !same {
            return Err(
                "this comes from a page of another site (Origin): only this server's own page may change anything"
                    .to_owned(),
            );
        }
    }
    Ok(())
}

/// Whether a `Host` is an address, `localhost` or one of the names.
fn is_ours(access: &Access, host: &str) -> bool {
    name_of(host).is_some_and(|name| {
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name == "localhost" || address.parse::<IpAddr>().is_ok() || is_named(access, &name)
    })
}

fn is_named(access: &Access, name: &str) -> bool {
    access.host_names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// The name in a host with or without a port, in lower case and without the dot at its end.
fn name_of(host: &str) -> Option<String> {
    let authority: Authority = host.parse().ok()?;
    if authority.as_str().contains('@') {
        return None;
    }
    Some(authority.host().trim_end_matches('.').to_ascii_lowercase())
}

/// What the audit log says of a request.
struct Action {
    changes: bool,
    method: Method,
    path: String,
    peer: Option<Arc<Peer>>,
}

impl Action {
    fn of(need: Need, request: &Request) -> Option<Self> {
        let Need::Role(role) = need else { return None };
        Some(Self {
            changes: role == Role::Operate,
            method: request.method().clone(),
            path: plain(request.uri().path()),
            peer: request.extensions().get::<Arc<Peer>>().cloned(),
        })
    }

    fn peer(&self) -> String {
        self.peer.as_ref().map_or_else(String::new, |peer| peer.address.ip().to_string())
    }

    fn certificate(&self) -> Option<&str> {
        self.peer.as_ref()?.certificate.as_deref()
    }

    fn done(&self, caller: &Caller, about: Option<&About>, status: u16) {
        tracing::info!(
            target: "audit",
            who = %caller,
            certificate = self.certificate(),
            peer = self.peer(),
            method = %self.method,
            path = self.path,
            about = about.map(|about| about.0.as_str()),
            status,
            "an operator's request"
        );
    }
}

impl Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0.as_ref().map_or("-", |holder| &holder.grant.name))
    }
}

/// A path for the log: of bounded length, and without what could be a password in an address.
fn plain(path: &str) -> String {
    const SHOWN_CHARS: usize = 256;
    let secret = |part: &str| part.contains('@') || part.to_ascii_lowercase().contains("%40");
    let parts = path.split('/').map(|part| if secret(part) { "…" } else { part });
    parts.collect::<Vec<_>>().join("/").chars().take(SHOWN_CHARS).collect()
}

/// Refusals are told of, but not each: whoever has no token could fill the disk with them.
#[derive(Debug)]
pub(super) struct Refusals(Mutex<(Bucket, u64)>);

impl Refusals {
    pub(super) fn new() -> Self {
        Self(Mutex::new((Bucket::new(std::num::NonZeroU32::MIN.saturating_add(4)), 0)))
    }

    fn tell(&self, action: &Action, caller: &Caller, status: u16) {
        let mut told = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if told.0.spend(1, now()).is_err() {
            told.1 += 1;
            return;
        }
        let untold = std::mem::take(&mut told.1);
        drop(told);
        tracing::warn!(
            target: "audit",
            who = %caller,
            certificate = action.certificate(),
            peer = action.peer(),
            method = %action.method,
            path = action.path,
            status,
            untold,
            "a request was refused"
        );
    }
}

#[cfg(test)]
mod tests;
