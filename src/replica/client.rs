//! The HTTP client: one attempt, and its verdict.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use reqwest::header::{AUTHORIZATION, CONNECTION, HeaderValue, RETRY_AFTER};
use reqwest::{ClientBuilder, Response};
use thiserror::Error;

use super::causes::{
    LocalShortage, REPLICA, certificate_problem, chain, forbidden, never_written, short_of,
};
use super::credentials::{ClientTls, ReplicaTokens};
use super::names::{Lookup, LookupTimes};
use super::patience::{AttemptLimits, Patience};
use super::pools::{Pool, Pools, builder};
use super::request;
use super::resolver::{Resolver, TARGET, system};
use super::verdict::{
    ReplicaAnswer, Sent, is_ambiguous, retry_after, shortage, unanswered, unsendable, verdict,
};
use super::{ClientSettings, ClientTlsError};
use crate::policy::{Forbidden, Policy, Target};
use crate::task::{AttemptOutcome, Node, ReplicaCommand, Task, Timestamp, Trace, Verdict};

const MAX_BODY_BYTES: usize = 64 * 1024;

/// Time to read the body of a 2xx. Its content is ignored; reading it only makes the connection
/// reusable, and a new connection costs less than a worker that waits longer.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

const SLOWEST: u64 = 64 * 1024;

#[derive(Clone)]
pub struct ReplicaClient {
    live: Arc<ArcSwap<Live>>,
    settings: Arc<ClientSettings>,
    policy: Policy,
    resolver: Resolver,
}

/// State that [`ReplicaClient::renew`] replaces.
struct Live {
    pools: Pools,
    tls: ClientTls,
    tokens: ReplicaTokens,
}

impl fmt::Debug for ReplicaClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReplicaClient").field("settings", &self.settings).finish_non_exhaustive()
    }
}

#[derive(Debug, Error)]
pub enum ReplicaClientError {
    #[error("--node-id {node_id:?} cannot be sent in an HTTP header")]
    NodeId { node_id: String },
    #[error("cannot set up the HTTP client for the replicas")]
    Setup { source: reqwest::Error },
}

/// Sets the TLS provider of the process. Must be called before a reqwest client is built.
pub fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

impl ReplicaClient {
    /// The authorities of `tls`, or else those of the system, are read once, here. If the system
    /// has none, `http` works and every `https` attempt fails; a warning is logged.
    pub fn new(
        settings: &ClientSettings,
        policy: Policy,
        tls: ClientTls,
        tokens: ReplicaTokens,
    ) -> Result<Self, ReplicaClientError> {
        Self::resolving(settings, policy, tls, tokens, (system(), LookupTimes::default()))
    }

    pub(super) fn resolving(
        settings: &ClientSettings,
        policy: Policy,
        tls: ClientTls,
        tokens: ReplicaTokens,
        (lookup, times): (Lookup, LookupTimes),
    ) -> Result<Self, ReplicaClientError> {
        if HeaderValue::from_str(&settings.node_id).is_err() {
            return Err(ReplicaClientError::NodeId { node_id: settings.node_id.clone() });
        }
        install_crypto();
        let settings = Arc::new(settings.clone());
        let resolver = Resolver::new(policy.clone(), lookup, times, settings.request_timeout);
        let pools = Pools::new(Arc::clone(&settings), tls.config(), resolver.clone());
        let pools = pools.map_err(|source| ReplicaClientError::Setup { source })?;
        let live = Arc::new(ArcSwap::from_pointee(Live { pools, tls, tokens }));
        Ok(Self { live, settings, policy, resolver })
    }

    /// Replaces certificates and tokens; `None` keeps the current ones. Later attempts use new
    /// connections and new name lookups in any case, so that none outlives a changed policy,
    /// certificate or address. Attempts in flight finish on their connection. On an error nothing
    /// changes.
    pub fn renew(
        &self,
        tls: Option<ClientTls>,
        tokens: Option<ReplicaTokens>,
    ) -> Result<(), ClientTlsError> {
        let current = self.live.load();
        let tls = tls.unwrap_or_else(|| current.tls.clone());
        let tokens = tokens.unwrap_or_else(|| current.tokens.clone());
        let resolver = self.resolver.clone();
        let pools = Pools::new(Arc::clone(&self.settings), tls.config(), resolver);
        let pools = pools.map_err(|error| ClientTlsError::Unusable(chain(&error)))?;
        self.resolver.clear_answers();
        self.live.store(Arc::new(Live { pools, tls, tokens }));
        Ok(())
    }

    /// The request is repeated once, on a new connection, if the replica had closed the idle
    /// connection or if this process stood still during the request. Neither says anything about
    /// the replica, and PUT and DELETE are idempotent.
    ///
    /// `now` is the wall clock: the remaining ttl and a `Retry-After` date are computed from it.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future closes the connection. The outcome is ambiguous, as after a timeout.
    pub async fn send(
        &self,
        node: &Node,
        task: &Task,
        trace: Option<&Trace>,
        now: Timestamp,
    ) -> AttemptOutcome {
        // The resolver never sees a literal address, so the policy checks it here.
        let target = Target::of(node).and_then(|target| {
            self.policy.admit_target(&target)?;
            Ok(target)
        });
        let target = match target {
            Ok(target) => target,
            Err(forbidden) => {
                return AttemptOutcome::certain(not_sent(&forbidden), Duration::ZERO);
            }
        };
        let live = self.live.load_full();
        let command = task.command_at(now);
        let sent = Sent { command, key: &task.key, value: &task.value };
        let node_id = &*self.settings.node_id;
        let token = live.tokens.of(node);
        let call = Call { node_id, node, task, command, trace, token, target: target.clone() };
        let limits = AttemptLimits { silence: self.settings.request_timeout, slowest: SLOWEST };
        let mut patience = Patience::new(limits);
        let pool = live.pools.of(node);
        let mut outcome = call.over(&pool, &mut patience).await;
        // The replica may still apply the first request, whatever the repeat returns.
        let mut first_is_ambiguous = false;
        if let RequestOutcome::Lost(error) = &outcome
            && (pool.was_idle(error) || (patience.slept() && is_inconclusive(error)))
        {
            let error_text = chain(error);
            tracing::debug!(task = %task.id, replica = %node, error = error_text, "request repeated");
            first_is_ambiguous = !is_unsent(error);
            outcome = call.over(&live.pools.unshared(), &mut patience).await;
        }
        if matches!(outcome, RequestOutcome::Lost(_) | RequestOutcome::TimedOut) {
            live.pools.retire(node, &pool);
        }
        let (verdict, ambiguous) = match outcome {
            RequestOutcome::Answered(response) => {
                let ambiguous = is_ambiguous(response.status());
                (judge(&sent, response, now, &mut patience).await, ambiguous)
            }
            RequestOutcome::Unsendable(error) => {
                (unsendable(&format!("cannot build the request: {}", chain(&error))), false)
            }
            RequestOutcome::Lost(error) => {
                (self.without_answer(&error, &target), !is_unread(&error))
            }
            RequestOutcome::TimedOut => (unanswered(&patience.exceeded()), true),
        };
        let ambiguous = ambiguous || first_is_ambiguous;
        AttemptOutcome { verdict, ambiguous, took: patience.total() }
    }

    /// A client for addresses that an operator configured, without the policy, certificates and
    /// tokens of the replicas.
    pub fn http(&self) -> Result<reqwest::Client, ReplicaClientError> {
        let http =
            or_without_roots(|| builder(&self.settings).timeout(self.settings.request_timeout));
        http.map_err(|source| ReplicaClientError::Setup { source })
    }

    fn without_answer(&self, error: &reqwest::Error, target: &Target) -> Verdict {
        if let Some(forbidden) = forbidden(error) {
            return not_sent(forbidden);
        }
        let short = match short_of(error) {
            // An address without a route gives the same error.
            Some(LocalShortage::Ports) => self.resolver.has_route(target),
            short => short.is_some(),
        };
        if short {
            let cause = chain(error);
            return shortage(&format!("not sent: this process is short of resources: {cause}"));
        }
        if let Some(why) = certificate_problem(error, &REPLICA) {
            return unanswered(&why);
        }
        let unsent = is_unsent(error);
        let why = if error.is_timeout() && unsent {
            let within = humantime::format_duration(self.settings.request_timeout);
            format!("no answer within {within}")
        } else if unsent {
            format!("cannot connect: {}", chain(error))
        } else {
            format!("no answer: {}", chain(error))
        };
        unanswered(&why)
    }
}

struct Call<'a> {
    node_id: &'a str,
    node: &'a Node,
    task: &'a Task,
    command: ReplicaCommand,
    trace: Option<&'a Trace>,
    token: Option<&'a HeaderValue>,
    target: Target,
}

enum RequestOutcome {
    Answered(Response),
    /// The request cannot be built, now or later.
    Unsendable(reqwest::Error),
    /// The connection failed or could not be made.
    Lost(reqwest::Error),
    TimedOut,
}

impl Call<'_> {
    async fn over(&self, pool: &Pool, patience: &mut Patience) -> RequestOutcome {
        let Self { node_id, node, task, command, trace, token, target } = self;
        let (mut request, upload) =
            match request::build(&pool.http, node_id, node, task, *command, *trace) {
                Ok(built) => built,
                Err(error) => return RequestOutcome::Unsendable(error),
            };
        if let Some(token) = token {
            request.headers_mut().insert(AUTHORIZATION, (*token).clone());
        }
        if !pool.keeps_alive() {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        patience.watch(upload);
        let answer = TARGET.scope(target.clone(), pool.http.execute(request));
        match patience.until(answer).await {
            Some(Ok(response)) => {
                pool.answered(&response);
                RequestOutcome::Answered(response)
            }
            Some(Err(error)) if error.is_builder() => RequestOutcome::Unsendable(error),
            Some(Err(error)) => RequestOutcome::Lost(error),
            None => RequestOutcome::TimedOut,
        }
    }
}

fn is_unsent(error: &reqwest::Error) -> bool {
    error.is_connect() || never_written(error)
}

/// Whether the replica has not read the request and never will. It reads nothing before the TLS
/// handshake is complete.
fn is_unread(error: &reqwest::Error) -> bool {
    is_unsent(error) || !is_inconclusive(error)
}

/// Whether `error` may have come only from the pause of this process, so that a repeat may succeed.
fn is_inconclusive(error: &reqwest::Error) -> bool {
    forbidden(error).is_none() && certificate_problem(error, &REPLICA).is_none()
}

fn not_sent(forbidden: &Forbidden) -> Verdict {
    unsendable(&format!("not sent: the replica {forbidden}"))
}

fn or_without_roots(builder: impl Fn() -> ClientBuilder) -> reqwest::Result<reqwest::Client> {
    builder().build().or_else(|error| {
        let http = builder().tls_certs_only([]).build()?;
        let error = chain(&error);
        tracing::warn!(error, "the system's certificates cannot be read: https requests will fail");
        Ok(http)
    })
}

async fn judge(
    sent: &Sent<'_>,
    mut response: Response,
    now: Timestamp,
    patience: &mut Patience,
) -> Verdict {
    let status = response.status();
    let wait = response.headers().get(RETRY_AFTER);
    let retry_after =
        wait.and_then(|value| value.to_str().ok()).and_then(|text| retry_after(text, now));
    let body = if status.is_success() {
        // A body that is not read to its end closes the connection.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, body(&mut response, patience)).await;
        Vec::new()
    } else {
        body(&mut response, patience).await
    };
    let answer = ReplicaAnswer { status, retry_after, body: &body };
    verdict(sent, &answer)
}

async fn body(response: &mut Response, patience: &mut Patience) -> Vec<u8> {
    let mut body = Vec::new();
    while body.len() < MAX_BODY_BYTES
        && let Some(Ok(Some(chunk))) = patience.until(response.chunk()).await
    {
        let room = MAX_BODY_BYTES - body.len();
        body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
    }
    body
}
