//! The inbound side: HTTP requests in, calls of the daemon's [`Handle`] out, answers back.
//!
//! It owns the connections, the reading and checking of requests, and the words of every answer.
//! It guarantees that
//!
//! - a write is handed to the daemon only when it is complete and valid, so that a client that
//!   hangs up in the middle leaves nothing behind;
//! - `success` is said only after the daemon said it;
//! - nothing that a client does costs more than a configured share: the number of connections, the
//!   bytes of bodies in memory, the size of one body, and the time that a client may take to send a
//!   head, to send a body or to read its answer are all bounded;
//! - every error of a handler is `{"error":"…"}` with a sentence that names the field or the limit,
//!   and never quotes a value.
//!
//! It deliberately knows nothing of queues, replicas or disks, and keeps no state of a request
//! beyond its answer. A head that is not HTTP/1.1, or is beyond the limits, is answered by hyper,
//! without a body.
//!
//! To read: [`serve`], then `routes` for the map of paths and `replicate` for the path of one
//! write, which uses `access` (who may), `body` (bytes, bounded), `wire` (JSON) and `validate` (the rules). Every
//! status code is made in `errors`.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::middleware;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::dispatcher::Handle;
use crate::metrics::Users;
use crate::policy::Policy;
use crate::traces::Tracer;

mod access;
mod body;
mod connections;
mod errors;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod health;
mod idempotency;
mod memory_replica;
mod metrics;
mod page;
mod replicate;
mod routes;
mod tls;
mod v1;
mod validate;
mod wire;

#[cfg(test)]
mod tests;

pub use access::Access;
pub use memory_replica::MemoryReplica;
pub use tls::{Tls, TlsError};

/// What the server is told once, at the start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is asked of whoever asks.
    pub access: Access,
    /// What is shown over TLS; `None` is plain HTTP.
    pub tls: Option<Tls>,
    /// Makes the spans of requests.
    pub tracer: Tracer,
    /// Under which name this replicator answers.
    pub node_id: String,
    /// Connections open at once. Beyond it those that wait for their clients end for the next ones.
    pub max_connections: usize,
    /// How long a client may take to send the head of a request, to send its body, and to go on
    /// reading its answer; also how long a connection may be idle, and how long a request waits
    /// for its share of `request_memory`.
    pub client_timeout: Duration,
    /// The longest body, in bytes.
    pub max_body_bytes: usize,
    /// The bodies of all requests that have no answer yet, in bytes together. One body of
    /// `max_body_bytes` is always possible.
    pub request_memory: usize,
    /// The longest value, decoded, in bytes.
    pub max_value_bytes: usize,
    /// The longest key, in bytes.
    pub max_key_bytes: usize,
    /// The longest list of replicas, each counted once.
    pub max_replicas: usize,
    /// Where writes may go.
    pub policy: Policy,
}

/// What all requests share.
#[derive(Debug)]
struct Inbound {
    handle: Handle,
    settings: Settings,
    memory: body::Memory,
    users: Mutex<Users>,
    long_polls: v1::LongPolls,
    /// Becomes true when the server stops.
    closing: watch::Receiver<bool>,
    /// What `/v1/openapi.json` says.
    openapi: serde_json::Value,
    refusals: access::Refusals,
}

impl Inbound {
    /// Returns when the server stops: for whoever would wait for long.
    async fn closing(&self) {
        // An error is as good: whoever would say it is gone.
        let _ = self.closing.clone().wait_for(|closing| *closing).await;
    }
}

/// Serves requests from `listener` until `stop` resolves. Returns when it has stopped accepting
/// and every request in flight has its answer.
///
/// A client that is in the middle of sending when `stop` resolves has its `client_timeout` as
/// always; a strong write has the time that the daemon takes to decide it. Idle connections are
/// closed at once. No error of a connection or of accepting ends it.
///
/// # Cancel safety
///
/// Dropped, it stops accepting; the connections that are open go on in their own tasks.
pub async fn serve(
    listener: TcpListener,
    handle: Handle,
    settings: Settings,
    stop: impl Future<Output = ()>,
) {
    let limits = connections::Limits {
        max_connections: settings.max_connections,
        client_timeout: settings.client_timeout,
    };
    let (close, closing) = watch::channel(false);
    let (router, openapi) = routes::router();
    let inbound = Inbound {
        memory: body::Memory::new(&settings),
        users: Mutex::new(Users::default()),
        long_polls: v1::LongPolls::new(settings.max_connections),
        closing,
        openapi,
        refusals: access::Refusals::new(),
        handle,
        settings,
    };
    let tls = inbound.settings.tls.clone();
    let inbound = Arc::new(inbound);
    let checked = middleware::from_fn_with_state(Arc::clone(&inbound), access::check);
    let router = router.with_state(inbound).layer(checked);
    let stop = async {
        stop.await;
        close.send_replace(true);
    };
    connections::accept(listener, router, tls, &limits, stop).await;
}
