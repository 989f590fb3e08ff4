//! The HTTP client: one attempt, and its verdict.

use std::error::Error as _;
use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use hyper::Response;
use hyper::header::{AUTHORIZATION, HeaderValue, RETRY_AFTER};
use thiserror::Error;

use super::ClientSettings;
use super::causes::{LocalShortage, Unanswered};
use super::connection::{Connection, ReceivedBody};
use super::credentials::{ClientTls, ReplicaTokens};
use super::fenced::FencedRequest;
use super::names::{Lookup, LookupTimes};
use super::patience::{AttemptLimits, Patience};
use super::pools::Pools;
use super::request;
use super::resolver::{Resolver, system};
use super::verdict::{
    ReplicaAnswer, Sent, is_ambiguous, retry_after, shortage, unanswered, unsendable, verdict,
};
use crate::lease::Fence;
use crate::policy::{Forbidden, Policy, Target};
use crate::task::{AttemptOutcome, Node, ReplicaCommand, Task, Timestamp, Trace, Verdict};

pub(super) mod read;

const MAX_BODY_BYTES: usize = 64 * 1024;

/// Time to read the body of a 2xx. Its content is ignored; reading it only makes the connection
/// reusable, and a new connection costs less than a worker that waits longer.
pub(super) const DRAIN_TIMEOUT: Duration = Duration::from_millis(250);

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

/// Sets the TLS provider of the process. Must be called before a TLS client is built.
pub fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client for addresses that an operator configured. Trusts the system's authorities, uses no proxy
/// and follows no redirect.
pub fn http_client(timeout: Duration) -> Result<reqwest::Client, ReplicaClientError> {
    install_crypto();
    let redirect = reqwest::redirect::Policy::none;
    let builder = || reqwest::Client::builder().timeout(timeout).no_proxy().redirect(redirect());
    let built = builder().build().or_else(|error| {
        let without_roots = builder().tls_certs_only([]).build()?;
        let error = innermost(&error);
        tracing::warn!(error, "the system's certificates cannot be read: https requests will fail");
        Ok(without_roots)
    });
    built.map_err(|source| ReplicaClientError::Setup { source })
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
        let pools = Pools::new(Arc::clone(&settings), &tls, resolver.clone());
        let live = Arc::new(ArcSwap::from_pointee(Live { pools, tls, tokens }));
        Ok(Self { live, settings, policy, resolver })
    }

    /// Replaces certificates and tokens; `None` keeps the current ones. Later attempts use new
    /// connections and new name lookups in any case, so that none outlives a changed policy,
    /// certificate or address. Attempts in flight finish on their connection.
    pub fn renew(&self, tls: Option<ClientTls>, tokens: Option<ReplicaTokens>) {
        let current = self.live.load();
        let tls = tls.unwrap_or_else(|| current.tls.clone());
        let tokens = tokens.unwrap_or_else(|| current.tokens.clone());
        let pools = Pools::new(Arc::clone(&self.settings), &tls, self.resolver.clone());
        self.resolver.clear_answers();
        self.live.store(Arc::new(Live { pools, tls, tokens }));
    }

    /// The request is repeated once, on a new connection, if the replica had closed the idle
    /// connection or if this process stood still during the request. Neither says anything about
    /// the replica, and PUT and DELETE are idempotent. So is a request that the replica says it did
    /// not process (HTTP/2).
    ///
    /// `now` is the wall clock: the remaining ttl and a `Retry-After` date are computed from it.
    ///
    /// Nothing is written once `fence` has ended. A request in flight is cut then, which says nothing
    /// about the replica; it is ambiguous if some of its bytes may have been sent.
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
        fence: &Fence,
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
        let pools = &live.pools;
        let call =
            Call { node_id, node, task, command, trace, token, target: &target, pools, fence };
        let limits = AttemptLimits { silence: self.settings.request_timeout, slowest: SLOWEST };
        let mut patience = Patience::new(limits);
        let kept = live.pools.take(node);
        let was_idle = kept.as_ref().is_some_and(Connection::has_served);
        let mut outcome = call.over(kept, &mut patience).await;
        // The replica may still apply the first request, whatever the repeat returns.
        let mut first_is_ambiguous = false;
        if let RequestOutcome::Lost(why) = &outcome
            && ((was_idle && why.is_silent_end())
                || why.is_refused()
                || (patience.slept() && why.is_inconclusive()))
        {
            tracing::debug!(task = %task.id, replica = %node, error = why.text(), "request repeated");
            first_is_ambiguous = !why.is_unsent();
            outcome = Box::pin(call.over(None, &mut patience)).await;
        }
        match &outcome {
            // A shortage of this process says nothing about the connections.
            RequestOutcome::Lost(why) if why.shortage().is_some() => {}
            RequestOutcome::Lost(_) | RequestOutcome::TimedOut { .. } => live.pools.retire(node),
            _ => {}
        }
        let (verdict, ambiguous) = match outcome {
            RequestOutcome::Answered(response, connection) => {
                let ambiguous = is_ambiguous(response.status());
                let (verdict, read_whole) = judge(&sent, response, now, &mut patience).await;
                if read_whole {
                    live.pools.keep_when_free(node, connection).await;
                }
                (verdict, ambiguous)
            }
            RequestOutcome::Unsendable(error) => {
                (unsendable(&format!("cannot build the request: {error}")), false)
            }
            RequestOutcome::Lost(why) => (self.without_answer(&why, &target), !why.is_unread()),
            RequestOutcome::Fenced { begun: true } => {
                (shortage("cut: the lease of the partition has ended"), true)
            }
            RequestOutcome::Fenced { begun: false } => {
                (shortage("not sent: the lease of the partition has ended"), false)
            }
            RequestOutcome::TimedOut { connected: true } => {
                (unanswered(&patience.exceeded()), true)
            }
            RequestOutcome::TimedOut { connected: false } => {
                (unanswered(&format!("cannot connect: {}", patience.exceeded())), false)
            }
        };
        let ambiguous = ambiguous || first_is_ambiguous;
        AttemptOutcome { verdict, ambiguous, took: patience.total() }
    }

    /// A client for addresses that an operator configured, without the policy, certificates and
    /// tokens of the replicas.
    pub fn http(&self) -> Result<reqwest::Client, ReplicaClientError> {
        http_client(self.settings.request_timeout)
    }

    fn without_answer(&self, why: &Unanswered, target: &Target) -> Verdict {
        if let Unanswered::Forbidden(forbidden) = why {
            return not_sent(forbidden);
        }
        let short = match why.shortage() {
            // An address without a route gives the same error.
            Some(LocalShortage::Ports) => self.resolver.has_route(target),
            short => short.is_some(),
        };
        if short {
            let cause = why.text();
            return shortage(&format!("not sent: this process is short of resources: {cause}"));
        }
        unanswered(&why.certificate_problem().unwrap_or_else(|| why.text()))
    }
}

/// The last cause of an error of reqwest, whose own text contains the URL.
fn innermost(error: &reqwest::Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.last().map_or_else(|| "unknown cause".to_owned(), ToString::to_string)
}

struct Call<'a> {
    node_id: &'a str,
    node: &'a Node,
    task: &'a Task,
    command: ReplicaCommand,
    trace: Option<&'a Trace>,
    token: Option<&'a HeaderValue>,
    target: &'a Target,
    pools: &'a Pools,
    fence: &'a Fence,
}

enum RequestOutcome {
    Answered(Response<ReceivedBody>, Connection),
    /// The request cannot be built, now or later.
    Unsendable(hyper::http::Error),
    /// The connection failed or could not be made.
    Lost(Unanswered),
    TimedOut {
        connected: bool,
    },
    /// This process may not send it any more.
    Fenced {
        begun: bool,
    },
}

impl Call<'_> {
    /// Sends the request over a kept connection, or over a new one.
    async fn over(&self, kept: Option<Connection>, patience: &mut Patience) -> RequestOutcome {
        let Self { node_id, node, task, command, trace, token, target, pools, fence } = *self;
        let built = request::build(node_id, node, task, command, trace, fence.epoch());
        let mut request = match built {
            Ok(request) => request,
            Err(error) => return RequestOutcome::Unsendable(error),
        };
        if let Some(token) = token {
            request.headers_mut().insert(AUTHORIZATION, token.clone());
        }
        patience.watch(request.body().progress());
        let connected = AtomicBool::new(kept.is_some());
        let fenced = FencedRequest::of(fence);
        let exchange = pin!(async {
            let mut connection = match kept {
                Some(connection) => connection,
                // In a box, as all that is seldom needed, so that an attempt stays small.
                None => Box::pin(pools.connect(node, target)).await?,
            };
            connected.store(true, Ordering::Relaxed);
            Ok((connection.send(request, fenced.as_ref()).await?, connection))
        });
        let exchanged = match &fenced {
            None => patience.until(exchange).await,
            Some(fenced) => tokio::select! {
                // An answer says more than the end of the fence.
                biased;
                exchanged = patience.until(exchange) => match exchanged {
                    Some(Err(_)) if fenced.was_refused() => {
                        return RequestOutcome::Fenced { begun: fenced.has_begun() };
                    }
                    exchanged => exchanged,
                },
                () = fenced.ended() => {
                    return RequestOutcome::Fenced { begun: fenced.has_begun() };
                }
            },
        };
        match exchanged {
            Some(Ok((response, connection))) => RequestOutcome::Answered(response, connection),
            Some(Err(why)) => RequestOutcome::Lost(why),
            None => RequestOutcome::TimedOut { connected: connected.load(Ordering::Relaxed) },
        }
    }
}

fn not_sent(forbidden: &Forbidden) -> Verdict {
    unsendable(&format!("not sent: the replica {forbidden}"))
}

/// The verdict, and whether the answer was read to its end: then its connection can be used again.
async fn judge(
    sent: &Sent<'_>,
    mut response: Response<ReceivedBody>,
    now: Timestamp,
    patience: &mut Patience,
) -> (Verdict, bool) {
    let status = response.status();
    let wait = response.headers().get(RETRY_AFTER);
    let retry_after =
        wait.and_then(|value| value.to_str().ok()).and_then(|text| retry_after(text, now));
    let (body, read_whole) = if status.is_success() {
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, body(&mut response, patience)).await;
        (Vec::new(), drained.is_ok_and(|(_, read_whole)| read_whole))
    } else {
        body(&mut response, patience).await
    };
    let answer = ReplicaAnswer { status, retry_after, body: &body };
    (verdict(sent, &answer), read_whole)
}

/// The beginning of the body, and whether that is the whole body.
async fn body(response: &mut Response<ReceivedBody>, patience: &mut Patience) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    while body.len() < MAX_BODY_BYTES {
        match patience.until(pin!(response.body_mut().chunk())).await {
            Some(Some(Ok(chunk))) => {
                let room = MAX_BODY_BYTES - body.len();
                body.extend_from_slice(chunk.get(..room).unwrap_or(&chunk));
            }
            Some(None) => return (body, true),
            Some(Some(Err(_))) | None => break,
        }
    }
    (body, false)
}
