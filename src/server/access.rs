//! Authorization: the table of required roles, and the check in front of every handler.
//!
//! Fails closed: a path missing from the table needs the role implied by its method.
//!
//! Without tokens, a malicious page in a local browser could send requests here (CSRF, DNS
//! rebinding). Then `Sec-Fetch-Site`, `Origin` and, on loopback, `Host` are checked. With tokens a
//! foreign page has no token to send.

use std::fmt::Display;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::extract::{FromRequestParts, Request};
use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{Extensions, HeaderMap, HeaderName, HeaderValue, Method, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::ServerState;
use super::connections::ClientPeer;
use super::errors::{Problem, closing};
use crate::access::{Holder, Role, expiry_text};
use crate::clock::wall_clock;
use crate::metrics::Reason;
use crate::task::{Client, Node};

mod audit;
mod tokens;

pub(super) use audit::{About, Refusals};
use audit::{AuditEntry, AuditEvent};
pub use tokens::Tokens;

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

pub(super) const INVALID_TOKEN: &str = "this token is not valid";

const EXPIRED_TOKEN: &str = "this token has expired";

#[derive(Clone, Debug)]
pub struct Access {
    /// Valid tokens. `None` disables authentication.
    pub tokens: Option<Tokens>,
    /// Accepted `Host` names besides IP addresses and `localhost`.
    pub host_names: Vec<String>,
    /// Reject every other `Host`, against DNS rebinding. Set without authentication, on loopback or
    /// with `--host-name`.
    pub named_hosts_only: bool,
}

impl Access {
    /// Full access for everyone.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn open() -> Self {
        Self { tokens: None, host_names: Vec::new(), named_hosts_only: false }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Need {
    /// Public: the response reveals nothing sensitive.
    Nothing,
    Role(Role),
}

/// Method, path and requirement. A trailing `*` matches any suffix; HEAD counts as GET.
const TABLE: [(&str, &str, Need); 7] = [
    // Called by supervisors and load balancers.
    ("GET", "/livez", Need::Nothing),
    ("GET", "/readyz", Need::Nothing),
    // The page contains no data. It fetches data from /v1 with a token.
    ("GET", "/", Need::Nothing),
    ("GET", "/assets/*", Need::Nothing),
    ("POST", "/replicate", Need::Role(Role::Replicate)),
    ("POST", "/v1/replicate/batch", Need::Role(Role::Replicate)),
    // A barrier only records a position.
    ("POST", "/v1/barriers", Need::Role(Role::Observe)),
];

/// Answered even when all connections are in use.
fn is_probe(path: &str) -> bool {
    matches!(path, "/livez" | "/readyz")
}

fn need(method: &Method, path: &str) -> Need {
    let reads = method == Method::GET || method == Method::HEAD;
    let verb = if reads { "GET" } else { method.as_str() };
    let row = TABLE.iter().find(|(method, pattern, _)| {
        *method == verb
            && match pattern.strip_suffix('*') {
                Some(begin) => path.starts_with(begin),
                None => path == *pattern,
            }
    });
    match row {
        Some((_, _, need)) => *need,
        None if reads => Need::Role(Role::Observe),
        None => Need::Role(Role::Operate),
    }
}

/// Adds the required roles and their error responses to the API description.
pub(super) fn describe(openapi: &mut Value) {
    let scheme = json!({
        "type": "http", "scheme": "bearer",
        "description": "A token made by `replicator token new`. Required if the daemon runs with \
            --auth-file. The scope of an operation is the role that the token must have.",
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
            // The empty entry stands for a daemon without --auth-file.
            let security = json!([{}, { "token": [role.to_string()] }]);
            operation.insert("security".to_owned(), security);
            let responses = operation.get_mut("responses").and_then(Value::as_object_mut);
            let Some(responses) = responses else { continue };
            for (status, description) in [
                ("401", "The token is missing, not valid, or has expired."),
                (
                    "403",
                    "The role of the token does not allow this, or the request comes from another site.",
                ),
                ("429", "The token has exceeded its rate limit."),
            ] {
                responses.entry(status).or_insert_with(|| refused(description));
            }
        }
    }
}

/// Who sent a request, by [`check`]. The router's handlers find it in the extensions.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// `None` without authentication.
    holder: Option<Arc<Holder>>,
    /// `None` without a connection, in tests.
    address: Option<IpAddr>,
}

impl Caller {
    /// Without [`check`] this is an internal error.
    pub(super) fn of(extensions: &Extensions) -> Result<Self, Problem> {
        let caller = extensions.get::<Self>().cloned();
        caller.ok_or_else(|| Problem::internal(&"the request did not pass the access check"))
    }

    pub(super) fn anonymous(extensions: &Extensions) -> Self {
        let peer = extensions.get::<Arc<ClientPeer>>();
        Self { holder: None, address: peer.map(|peer| peer.address.ip()) }
    }

    /// The claimant of shared limits.
    pub(super) fn client(&self) -> Option<Client> {
        match &self.holder {
            Some(holder) => Some(Client::Token(Arc::clone(&holder.grant.name))),
            None => self.address.map(Client::at),
        }
    }

    /// Resolves when the token expires, or a reload removes it or changes its grant. A request that
    /// outlives that must end.
    pub(super) async fn revoked(&self, access: &Access) {
        match (&self.holder, &access.tokens) {
            (Some(holder), Some(tokens)) => tokens.revoked(holder).await,
            _ => std::future::pending().await,
        }
    }

    pub(super) fn may_name(&self, replicas: &[Node]) -> Result<(), Problem> {
        let Some(holder) = &self.holder else { return Ok(()) };
        match replicas.iter().find(|replica| !holder.grant.may_name(replica)) {
            None => Ok(()),
            Some(replica) => Err(Problem::Forbidden(format!(
                r#"field "replica_nodes": this token must not write to {replica}"#
            ))),
        }
    }

    /// Scopes an idempotency key to the caller, so that two token holders may use the same key.
    /// Neither a key nor a name contains the separating space.
    pub(super) fn own_key(&self, key: Box<str>) -> Box<str> {
        match &self.holder {
            Some(holder) => format!("{} {key}", holder.grant.name).into(),
            None => key,
        }
    }

    /// Charges `more` requests to the rate limit, besides the one charged by [`check`].
    pub(super) fn spend(&self, more: usize) -> Result<(), Problem> {
        let Some(holder) = self.holder.as_ref().filter(|_| more > 0) else { return Ok(()) };
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        holder.spend_more(more, now()).map_err(Problem::too_many)
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Self::of(&parts.extensions)
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "a rate counts real time, and its rules are tested in access::bucket"
)]
fn now() -> Instant {
    Instant::now()
}

/// Authorizes a request for its handler, and writes the audit log.
pub(super) async fn check<F: Future<Output = Response>>(
    server: &ServerState,
    request: Request,
    handle: impl FnOnce(Request, Caller) -> F,
) -> Response {
    let need = need(request.method(), request.uri().path());
    let peer = request.extensions().get::<Arc<ClientPeer>>();
    if peer.is_some_and(|peer| peer.probes_only) && !is_probe(request.uri().path()) {
        if need == Need::Role(Role::Replicate) {
            server.handle.counts().refused(Reason::Connections);
        }
        let retry_after = server.handle.retry_after();
        let error = "all connections (--max-connections), or the share of this client, are in use"
            .to_owned();
        let problem = Problem::Unavailable { error, retry_after };
        return closing(server.reject(request, problem));
    }
    let audit = AuditEntry::of(need, &request);
    match admit(&server.settings.access, need, &request) {
        Ok(caller) => {
            if let Some(peer) = peer.filter(|_| caller.holder.is_some()) {
                peer.authenticated();
            }
            let is_charged = matches!(need, Need::Role(_))
                && matches!(*request.method(), Method::GET | Method::HEAD)
                // Its handler charges one answer for many requests.
                && request.uri().path() != "/metrics";
            let mut response = handle(request, caller.clone()).await;
            if is_charged {
                response = server.charged(&caller.client(), response).await;
            }
            if let Some(audit) = audit.filter(|audit| audit.is_operation) {
                let (status, about) = (response.status(), response.extensions_mut().remove());
                if status.is_client_error() || status.is_server_error() {
                    server.refusals.log(&audit, &caller, status.as_u16(), AuditEvent::Failed);
                } else {
                    audit.log_operation(&caller, about.as_ref(), status.as_u16());
                }
            }
            response
        }
        Err((problem, caller)) => {
            let response = server.reject(request, problem);
            if let Some(audit) = audit {
                let status = response.status().as_u16();
                server.refusals.log(&audit, &caller, status, AuditEvent::Refused);
            }
            response
        }
    }
}

impl ServerState {
    /// Answers a request that no handler gets.
    fn reject(&self, request: Request, problem: Problem) -> Response {
        let (head, body) = request.into_parts();
        self.memory.discard(&head.headers, body);
        let response = problem.into_response();
        if head.uri.path() == "/replicate" && head.method == Method::POST {
            self.handle.counts().answered(response.status().as_u16());
        }
        response
    }
}

fn admit(access: &Access, need: Need, request: &Request) -> Result<Caller, (Problem, Caller)> {
    let anonymous = Caller::anonymous(request.extensions());
    let Need::Role(role) = need else { return Ok(anonymous) };
    let Some(tokens) = &access.tokens else {
        return match same_site(access, request.method(), request.uri(), request.headers()) {
            Ok(()) => Ok(anonymous),
            Err(why) => Err((Problem::Forbidden(why), anonymous)),
        };
    };
    let Some(token) = bearer(request.headers()) else {
        let error = "a token is required: send it as Authorization: Bearer TOKEN";
        return Err((Problem::Unauthenticated(error), anonymous));
    };
    let Some(holder) = tokens.list().find(token).cloned() else {
        return Err((Problem::Unauthenticated(INVALID_TOKEN), anonymous));
    };
    let caller = Caller { holder: Some(Arc::clone(&holder)), ..anonymous };
    let time = wall_clock();
    if holder.grant.has_expired(time) {
        return Err((Problem::Unauthenticated(EXPIRED_TOKEN), caller));
    }
    if let Some(expires) = holder.grant.expires.filter(|_| holder.warns_of_expiry(time)) {
        let (token, expires) = (&holder.grant.name, expiry_text(expires));
        tracing::warn!(%token, expires, "a token in use expires within 7 days");
    }
    if !holder.grant.allows(role) {
        let error = format!("a token with the role {role} is required");
        return Err((Problem::Forbidden(error), caller));
    }
    match holder.spend(now()) {
        Ok(()) => Ok(caller),
        Err(retry_after) => Err((Problem::too_many(retry_after), caller)),
    }
}

/// The bearer token. `None` unless there is exactly one `Authorization` header.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let mut lines = headers.get_all(AUTHORIZATION).iter();
    let only = lines.next().filter(|_| lines.next().is_none())?;
    let (scheme, token) = only.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

/// Rejects requests that another site may have caused a browser to send.
fn same_site(
    access: &Access,
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<(), String> {
    // The request line may carry an absolute URI.
    let lines = headers.get_all(HOST).iter().map(|host| host.to_str().unwrap_or_default());
    let hosts: Vec<_> = lines.chain(uri.authority().map(Authority::as_str)).collect();
    if access.named_hosts_only
        && let Some(strange) = hosts.iter().find(|host| !is_allowed_host(access, host))
    {
        let strange = super::wire::shown(strange);
        return Err(format!(
            "unexpected Host {strange}: without authentication only an IP address, localhost or a --host-name is accepted"
        ));
    }
    if method == Method::GET || method == Method::HEAD {
        return Ok(());
    }
    // Sent by browsers only.
    if let Some(site) = headers.get_all(SEC_FETCH_SITE).iter().find(|site| !is_own_site(site)) {
        let site = super::wire::shown(&String::from_utf8_lossy(site.as_bytes()));
        return Err(format!(
            "cross-site request (Sec-Fetch-Site: {site}): without authentication only this server's own page may change anything"
        ));
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
                "cross-site request (Origin): without authentication only this server's own page may change anything"
                    .to_owned(),
            );
        }
    }
    Ok(())
}

/// `none` is a request by the user, such as an address typed into the browser.
fn is_own_site(site: &HeaderValue) -> bool {
    site == "same-origin" || site == "none"
}

fn is_allowed_host(access: &Access, host: &str) -> bool {
    name_of(host).is_some_and(|name| {
        let address = name.trim_start_matches('[').trim_end_matches(']');
        name == "localhost" || address.parse::<IpAddr>().is_ok() || is_named(access, &name)
    })
}

fn is_named(access: &Access, name: &str) -> bool {
    access.host_names.iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Drops the port and a trailing dot.
fn name_of(host: &str) -> Option<String> {
    let authority: Authority = host.parse().ok()?;
    if authority.as_str().contains('@') {
        return None;
    }
    Some(authority.host().trim_end_matches('.').to_ascii_lowercase())
}

impl Display for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.holder.as_ref().map_or("-", |holder| &holder.grant.name))
    }
}

#[cfg(test)]
mod tests;
