//! The connections to the replicas, and one attempt over them.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{HeaderValue, RETRY_AFTER};
use reqwest::{ClientBuilder, Response};
use thiserror::Error;

use super::Settings;
use super::request;
use super::resolver::Resolver;
use super::verdict::{Answer, Sent, retry_after, unanswered, unsendable, verdict};
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
#[derive(Clone, Debug)]
pub struct Client {
    http: reqwest::Client,
    settings: Arc<Settings>,
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
    /// Certificates of `https` replicas are checked against those that the system trusts, which
    /// are read here, once. Where the system has none, plain `http` works and every `https`
    /// attempt fails, which is logged.
    ///
    /// # Errors
    ///
    /// A [`ClientError`] where the settings make no client.
    pub fn new(settings: &Settings) -> Result<Self, ClientError> {
        if HeaderValue::from_str(&settings.node_id).is_err() {
            return Err(ClientError::NodeId { node_id: settings.node_id.clone() });
        }
        install_crypto();
        let http = builder(settings).build().or_else(|error| {
            let http = builder(settings).tls_certs_only([]).build()?;
            tracing::warn!(
                error = chain(&error),
                "no certificates of the system could be read: replicas with https will fail"
            );
            Ok(http)
        });
        Ok(Self {
            http: http.map_err(|source| ClientError::Setup { source })?,
            settings: Arc::new(settings.clone()),
        })
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
        let command = task.command_at(now);
        let sent = Sent { command, key: &task.key, value: &task.value };
        let node_id = &self.settings.node_id;
        let request = request::build(&self.http, node_id, node, task, command, trace);
        let answer = match request {
            Ok(request) => self.http.execute(request).await,
            Err(error) => Err(error),
        };
        match answer {
            Ok(response) => judge(&sent, response, now).await,
            // Nothing went out, and nothing about the task will change.
            Err(error) if error.is_builder() => {
                unsendable(&format!("the request cannot be made: {}", chain(&error)))
            }
            Err(error) => unanswered(&self.why(&error), !error.is_connect()),
        }
    }

    /// The HTTP client, for whoever sends something else than deliveries.
    #[must_use]
    pub fn http(&self) -> reqwest::Client {
        self.http.clone()
    }

    /// Why there was no answer, for operators.
    fn why(&self, error: &reqwest::Error) -> String {
        if error.is_timeout() {
            let within = humantime::format_duration(self.settings.request_timeout);
            format!("no answer within {within}")
        } else if error.is_connect() {
            format!("cannot connect: {}", chain(error))
        } else {
            format!("no answer: {}", chain(error))
        }
    }
}

/// What all clients have in common, whatever certificates they trust.
fn builder(settings: &Settings) -> ClientBuilder {
    reqwest::Client::builder()
        .timeout(settings.request_timeout)
        .connect_timeout(settings.request_timeout)
        .pool_max_idle_per_host(settings.idle_per_replica)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .dns_resolver(Resolver::default())
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

/// An error and its causes, from the outside in.
///
/// Only the causes: reqwest's own line is `error sending request for url (…)`, and the URL
/// contains the key.
fn chain(error: &reqwest::Error) -> String {
    let mut causes = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        causes.push(cause.to_string());
        next = cause.source();
    }
    if causes.is_empty() {
        return "of an unknown cause".to_owned();
    }
    causes.join(": ")
}
