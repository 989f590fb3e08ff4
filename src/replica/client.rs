//! The connections to the replicas, and one attempt over them.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use reqwest::header::{AUTHORIZATION, CONNECTION, HeaderValue, RETRY_AFTER};
use reqwest::{ClientBuilder, Response};
use thiserror::Error;

use super::causes::{REPLICA, Short, certificate, chain, forbidden, never_written, short_of};
use super::credentials::{Tls, Tokens};
use super::kept::Kept;
use super::names::{Lookup, Times};
use super::request;
use super::resolver::{Resolver, TARGET, system};
use super::verdict::{Answer, Sent, retry_after, shortage, unanswered, unsendable, verdict};
use super::{Settings, TlsError};
use crate::policy::{Forbidden, Policy, Target};
use crate::task::{Node, Task, Timestamp, Trace, Verdict};

/// How much of an answer's body is read. What matters of it is a phrase and a sentence; a replica
/// that sends more must not cost memory.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// How long the body of a 2xx is waited for. It says nothing that matters, and is read only so
/// that the connection can be used again: a new one costs less than a worker held for longer.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

/// How long a connection may lie unused. Shorter than the idle timeouts that servers and
/// balancers have (60 s and more), so that a request seldom meets a connection being closed.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Sends deliveries. Keeps connections open for each replica; cheap to clone, clones share them.
#[derive(Clone)]
pub struct Client {
    live: Arc<ArcSwap<Live>>,
    settings: Arc<Settings>,
    policy: Policy,
    resolver: Resolver,
    kept: Arc<Kept>,
}

/// What can be replaced while the daemon runs.
struct Live {
    http: reqwest::Client,
    tls: Tls,
    tokens: Tokens,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Why there is no [`Client`].
#[derive(Debug, Error)]
pub enum ClientError {
    /// The node id cannot stand in a header.
    #[error("the node id {node_id:?} cannot be part of an HTTP header")]
    NodeId {
        /// The node id.
        node_id: String,
    },
    /// The HTTP client cannot be set up.
    #[error("cannot set up the HTTP client for the replicas")]
    Setup {
        /// What the client says.
        source: reqwest::Error,
    },
}

/// Sets the cryptography that TLS uses in this process; a second time changes nothing. Whoever
/// makes a reqwest client of their own besides calls this first.
pub fn install_crypto() {
    // If there is a provider already, it serves as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl Client {
    /// Sets up the client; opens no connection yet.
    ///
    /// Certificates of `https` replicas are checked against those that `tls` names or else those
    /// that the system trusts, which are read here, once. Where the system has none, plain `http`
    /// works and every `https` attempt fails, which is logged.
    ///
    /// # Errors
    ///
    /// A [`ClientError`] where the settings make no client.
    pub fn new(
        settings: &Settings,
        policy: Policy,
        tls: Tls,
        tokens: Tokens,
    ) -> Result<Self, ClientError> {
        Self::resolving(settings, policy, tls, tokens, (system(), Times::default()))
    }

    /// The same, with another resolver than the system's.
    pub(super) fn resolving(
        settings: &Settings,
        policy: Policy,
        tls: Tls,
        tokens: Tokens,
        (lookup, times): (Lookup, Times),
    ) -> Result<Self, ClientError> {
        if HeaderValue::from_str(&settings.node_id).is_err() {
            return Err(ClientError::NodeId { node_id: settings.node_id.clone() });
        }
        install_crypto();
        let resolver = Resolver::new(policy.clone(), lookup, times, settings.request_timeout);
        let http = connections(settings, &resolver, &tls);
        let http = http.map_err(|source| ClientError::Setup { source })?;
        let live = Arc::new(ArcSwap::from_pointee(Live { http, tls, tokens }));
        let kept = Kept::new(settings.idle_replicas, POOL_IDLE_TIMEOUT, settings.request_timeout);
        let kept = Arc::new(kept);
        Ok(Self { live, settings: Arc::new(settings.clone()), policy, resolver, kept })
    }

    /// Uses these from the next attempt on, and what it had where there is nothing. Connections
    /// are made anew either way, so that none outlives a rule, a certificate or a name's address
    /// of before; attempts on the wire go on.
    ///
    /// # Errors
    ///
    /// [`TlsError::Unusable`]; then nothing has changed.
    pub fn renew(&self, tls: Option<Tls>, tokens: Option<Tokens>) -> Result<(), TlsError> {
        let before = self.live.load();
        let tls = tls.unwrap_or_else(|| before.tls.clone());
        let tokens = tokens.unwrap_or_else(|| before.tokens.clone());
        let http = connections(&self.settings, &self.resolver, &tls);
        let http = http.map_err(|error| TlsError::Unusable(chain(&error)))?;
        self.resolver.forget_answers();
        self.live.store(Arc::new(Live { http, tls, tokens }));
        Ok(())
    }

    /// One attempt to carry `task` to `node`, as a part of `trace`.
    ///
    /// `now` is the wall clock at the moment of sending: the ttl that is left is counted from it,
    /// and so is a `Retry-After` that is a date.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the attempt and closes its connection. The replica may have the
    /// write or not, as after a timeout.
    pub async fn send(
        &self,
        node: &Node,
        task: &Task,
        trace: Option<&Trace>,
        now: Timestamp,
    ) -> Verdict {
        // An address without a name is never shown to the resolver: this is where it is checked.
        let target = Target::of(node).and_then(|target| {
            self.policy.admit_target(&target)?;
            Ok(target)
        });
        let target = match target {
            Ok(target) => target,
            Err(forbidden) => return not_sent(&forbidden),
        };
        let command = task.command_at(now);
        let sent = Sent { command, key: &task.key, value: &task.value };
        let live = self.live.load_full();
        let node_id = &self.settings.node_id;
        let request = request::build(&live.http, node_id, node, task, command, trace);
        let answer = match request {
            Ok(mut request) => {
                if let Some(token) = live.tokens.of(node) {
                    request.headers_mut().insert(AUTHORIZATION, token.clone());
                }
                if !self.kept.may_keep(node, now) {
                    request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                TARGET.scope(target.clone(), live.http.execute(request)).await
            }
            Err(error) => Err(error),
        };
        match answer {
            Ok(response) => judge(&sent, response, now).await,
            // Nothing went out, and nothing about the task will change.
            Err(error) if error.is_builder() => {
                unsendable(&format!("the request cannot be made: {}", chain(&error)))
            }
            Err(error) => self.without_answer(&error, &target),
        }
    }

    /// An HTTP client for whoever sends something else than deliveries, to where an operator says:
    /// without the policy, the certificates and the tokens that are for replicas.
    ///
    /// # Errors
    ///
    /// [`ClientError::Setup`].
    pub fn http(&self) -> Result<reqwest::Client, ClientError> {
        let http = or_without_roots(|| builder(&self.settings));
        http.map_err(|source| ClientError::Setup { source })
    }

    /// What it means that there was no answer, and why, for operators.
    fn without_answer(&self, error: &reqwest::Error, target: &Target) -> Verdict {
        if let Some(forbidden) = forbidden(error) {
            return not_sent(forbidden);
        }
        let short = match short_of(error) {
            // An address that this machine has no route to gives the same error.
            Some(Short::Ports) => self.resolver.has_route(target),
            short => short.is_some(),
        };
        if short {
            return shortage(&format!(
                "not sent: this process is short of resources: {}",
                chain(error)
            ));
        }
        // Before the certificates have been agreed on no request is read.
        if let Some(why) = certificate(error, &REPLICA) {
            return unanswered(&why, false);
        }
        let never_sent = error.is_connect() || never_written(error);
        let why = if error.is_timeout() {
            let within = humantime::format_duration(self.settings.request_timeout);
            format!("no answer within {within}")
        } else if never_sent {
            format!("cannot connect: {}", chain(error))
        } else {
            format!("no answer: {}", chain(error))
        };
        unanswered(&why, !never_sent)
    }
}

/// The policy has forbidden the attempt: for good, as far as anyone can know.
fn not_sent(forbidden: &Forbidden) -> Verdict {
    unsendable(&format!("not sent: the replica {forbidden}"))
}

/// Connections with these certificates, none open yet.
fn connections(
    settings: &Settings,
    resolver: &Resolver,
    tls: &Tls,
) -> reqwest::Result<reqwest::Client> {
    let builder = || tls.apply(builder(settings).dns_resolver(resolver.clone()));
    if tls.trusts_the_system() { or_without_roots(builder) } else { builder().build() }
}

/// A client that trusts whom the system trusts, or nobody where that is not known.
fn or_without_roots(builder: impl Fn() -> ClientBuilder) -> reqwest::Result<reqwest::Client> {
    builder().build().or_else(|error| {
        let http = builder().tls_certs_only([]).build()?;
        tracing::warn!(
            error = chain(&error),
            "no certificates of the system could be read: replicas with https will fail"
        );
        Ok(http)
    })
}

/// What all clients have in common, whatever certificates they trust.
fn builder(settings: &Settings) -> ClientBuilder {
    reqwest::Client::builder()
        .timeout(settings.request_timeout)
        .connect_timeout(settings.request_timeout)
        .pool_max_idle_per_host(settings.idle_per_replica)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .no_proxy()
        .referer(false)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
}

/// Reads of an answer what the verdict needs.
async fn judge(sent: &Sent<'_>, mut response: Response, now: Timestamp) -> Verdict {
    let status = response.status();
    let wait = response.headers().get(RETRY_AFTER);
    let retry_after =
        wait.and_then(|value| value.to_str().ok()).and_then(|text| retry_after(text, now));
    let body = if status.is_success() {
        // Both ways out are fine: read to its end the connection is used again, else it is closed.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, body(&mut response)).await;
        Vec::new()
    } else {
        body(&mut response).await
    };
    let answer = Answer { status, retry_after, body: &body };
    verdict(sent, &answer)
}

/// A body up to [`MAX_BODY_BYTES`]; what there is of it where it ends in an error or a timeout.
async fn body(response: &mut Response) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < MAX_BODY_BYTES
        && let Ok(Some(chunk)) = response.chunk().await
    {
        let room = MAX_BODY_BYTES - body.len();
        body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
    }
    body
}
