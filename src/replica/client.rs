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
use super::names::{Lookup, Times};
use super::patience::{Limits, Patience};
use super::pools::{Pool, Pools, builder};
use super::request;
use super::resolver::{Resolver, TARGET, system};
use super::verdict::{
    Answer, Sent, leaves_open, retry_after, shortage, unanswered, unsendable, verdict,
};
use super::{Settings, TlsError};
use crate::policy::{Forbidden, Policy, Target};
use crate::task::{AttemptOutcome, Command, Node, Task, Timestamp, Trace, Verdict};

/// How much of an answer's body is read. What matters of it is a phrase and a sentence; a replica
/// that sends more must not cost memory.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// How long the body of a 2xx is waited for. It says nothing that matters, and is read only so
/// that the connection can be used again: a new one costs less than a worker held for longer.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

/// The lowest rate at which a replica may take a large body, in bytes a second.
const SLOWEST: u64 = 64 * 1024;

/// Sends deliveries. Keeps connections open for each replica; cheap to clone, clones share them.
#[derive(Clone)]
pub struct Client {
    live: Arc<ArcSwap<Live>>,
    settings: Arc<Settings>,
    policy: Policy,
    resolver: Resolver,
}

/// What can be replaced while the daemon runs.
struct Live {
    pools: Pools,
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
        let settings = Arc::new(settings.clone());
        let resolver = Resolver::new(policy.clone(), lookup, times, settings.request_timeout);
        let pools = Pools::new(Arc::clone(&settings), tls.config(), resolver.clone());
        let pools = pools.map_err(|source| ClientError::Setup { source })?;
        let live = Arc::new(ArcSwap::from_pointee(Live { pools, tls, tokens }));
        Ok(Self { live, settings, policy, resolver })
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
        let resolver = self.resolver.clone();
        let pools = Pools::new(Arc::clone(&self.settings), tls.config(), resolver);
        let pools = pools.map_err(|error| TlsError::Unusable(chain(&error)))?;
        self.resolver.forget_answers();
        self.live.store(Arc::new(Live { pools, tls, tokens }));
        Ok(())
    }

    /// One attempt to carry `task` to `node`, as a part of `trace`.
    ///
    /// A request that met the end of a connection that was idle is repeated once, on a new
    /// connection, and so is one that failed while this process did not run: neither says
    /// anything of the replica, and PUT and DELETE are idempotent.
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
    ) -> AttemptOutcome {
        // An address without a name is never shown to the resolver: this is where it is checked.
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
        let limits = Limits { silence: self.settings.request_timeout, slowest: SLOWEST };
        let mut patience = Patience::new(limits);
        let pool = live.pools.of(node);
        let mut ended = call.over(&pool, &mut patience).await;
        // The first request may be applied after all, whatever becomes of the repeat.
        let mut in_doubt = false;
        if let Ended::Lost(error) = &ended
            && (pool.was_idle(error) || (patience.slept() && says_nothing(error)))
        {
            let error_text = chain(error);
            tracing::debug!(task = %task.id, replica = %node, error = error_text, "request repeated");
            in_doubt = !is_unsent(error);
            ended = call.over(&live.pools.unshared(), &mut patience).await;
        }
        if matches!(ended, Ended::Lost(_) | Ended::Silent) {
            live.pools.retire(node, &pool);
        }
        let (verdict, open) = match ended {
            Ended::Answered(response) => {
                let open = leaves_open(response.status());
                (judge(&sent, response, now, &mut patience).await, open)
            }
            // Nothing went out, and nothing about the task will change.
            Ended::Unsendable(error) => {
                (unsendable(&format!("the request cannot be made: {}", chain(&error))), false)
            }
            Ended::Lost(error) => (self.without_answer(&error, &target), !never_read(&error)),
            Ended::Silent => (unanswered(&patience.exceeded()), true),
        };
        AttemptOutcome { verdict, ambiguous: open || in_doubt, took: patience.total() }
    }

    /// An HTTP client for whoever sends something else than deliveries, to where an operator says:
    /// without the policy, the certificates and the tokens that are for replicas.
    ///
    /// # Errors
    ///
    /// [`ClientError::Setup`].
    pub fn http(&self) -> Result<reqwest::Client, ClientError> {
        let http =
            or_without_roots(|| builder(&self.settings).timeout(self.settings.request_timeout));
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
        if let Some(why) = certificate(error, &REPLICA) {
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

/// One attempt, as it goes out.
struct Call<'a> {
    node_id: &'a str,
    node: &'a Node,
    task: &'a Task,
    command: Command,
    trace: Option<&'a Trace>,
    token: Option<&'a HeaderValue>,
    target: Target,
}

/// What became of a request.
enum Ended {
    Answered(Response),
    /// There can be no such request.
    Unsendable(reqwest::Error),
    /// The connection failed, or there was none.
    Lost(reqwest::Error),
    /// No answer in time.
    Silent,
}

impl Call<'_> {
    /// Sends it over a connection of this pool.
    async fn over(&self, pool: &Pool, patience: &mut Patience) -> Ended {
        let Self { node_id, node, task, command, trace, token, target } = self;
        let (mut request, upload) =
            match request::build(&pool.http, node_id, node, task, *command, *trace) {
                Ok(built) => built,
                Err(error) => return Ended::Unsendable(error),
            };
        if let Some(token) = token {
            request.headers_mut().insert(AUTHORIZATION, (*token).clone());
        }
        if !pool.keeps() {
            request.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        patience.watch(upload);
        let answer = TARGET.scope(target.clone(), pool.http.execute(request));
        match patience.until(answer).await {
            Some(Ok(response)) => {
                pool.answered(&response);
                Ended::Answered(response)
            }
            Some(Err(error)) if error.is_builder() => Ended::Unsendable(error),
            Some(Err(error)) => Ended::Lost(error),
            None => Ended::Silent,
        }
    }
}

/// Whether the replica cannot have read a request that failed with `error`.
fn is_unsent(error: &reqwest::Error) -> bool {
    error.is_connect() || never_written(error)
}

/// Whether no replica has read a request that failed with `error`, or ever will: before the
/// certificates have been agreed on none is read.
fn never_read(error: &reqwest::Error) -> bool {
    is_unsent(error) || forbidden(error).is_some() || certificate(error, &REPLICA).is_some()
}

/// Whether the failure of a request that went out while this process stood still is no evidence:
/// the next one may well be answered.
fn says_nothing(error: &reqwest::Error) -> bool {
    forbidden(error).is_none() && certificate(error, &REPLICA).is_none()
}

/// The policy has forbidden the attempt: for good, as far as anyone can know.
fn not_sent(forbidden: &Forbidden) -> Verdict {
    unsendable(&format!("not sent: the replica {forbidden}"))
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

/// Reads of an answer what the verdict needs.
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
        // Both ways out are fine: read to its end the connection is used again, else it is closed.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, body(&mut response, patience)).await;
        Vec::new()
    } else {
        body(&mut response, patience).await
    };
    let answer = Answer { status, retry_after, body: &body };
    verdict(sent, &answer)
}

/// A body up to [`MAX_BODY_BYTES`]; what there is of it where it ends in an error or a timeout.
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
