//! The HTTP server: turns requests into calls of the daemon's [`Handle`].
//!
//! It owns connections, reading and validating requests, and the wording of every response.
//! Guarantees:
//!
//! - A write reaches the daemon only when it is complete and valid.
//! - `success` is sent only after the daemon reported it.
//! - Connections, bytes of bodies in memory, the size of a body, and the time a client may take
//!   to send or to read are all bounded.
//! - Every error of a handler is `{"error":"…"}`. It names the field or limit and never quotes a
//!   value. hyper answers a malformed or oversized head itself, without a body.
//!
//! It knows nothing about queues, replicas or disks. Read [`serve`], then `routes` and `replicate`.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::dispatcher::Handle;
use crate::metrics::Users;
use crate::policy::Policy;
use crate::traces::Tracer;

mod access;
mod addresses;
mod answers;
mod body;
mod client_pool;
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

pub use access::{Access, Tokens};
pub use memory_replica::MemoryReplica;
pub use tls::{InboundTls, InboundTlsError};

#[derive(Clone, Debug)]
pub struct ServerSettings {
    pub access: Access,
    /// `None` serves plain HTTP.
    pub tls: Option<InboundTls>,
    pub tracer: Tracer,
    pub node_id: String,
    pub policy: Policy,
    pub limits: ServerLimits,
}

/// Limits of requests and connections.
#[derive(Clone, Debug)]
pub struct ServerLimits {
    /// At this limit a new connection evicts one that waits for its client. If none does, only
    /// probes are answered, on a few connections more.
    pub max_connections: usize,
    /// Limit for sending a head, sending a body, not reading a response, being idle, and waiting
    /// for a share of `request_memory`.
    pub client_timeout: Duration,
    pub max_body_bytes: usize,
    /// Bytes of the bodies of all unanswered requests. One body of `max_body_bytes` always fits.
    pub request_memory: usize,
    /// Applies to the decoded value.
    pub max_value_bytes: usize,
    pub max_key_bytes: usize,
    /// Distinct replicas of one write.
    pub max_replicas: usize,
}

#[derive(Debug)]
struct ServerState {
    handle: Handle,
    settings: ServerSettings,
    addresses: addresses::Addresses,
    memory: body::BodyMemory,
    answers: answers::AnswerMemory,
    users: Mutex<Users>,
    long_polls: v1::LongPolls,
    /// Becomes true when the server stops.
    closing: watch::Receiver<bool>,
    openapi: serde_json::Value,
    refusals: access::Refusals,
}

impl ServerState {
    /// Resolves when the server stops. Long-lived requests must select on it.
    async fn closing(&self) {
        // A dropped sender also means that the server has stopped.
        let _ = self.closing.clone().wait_for(|closing| *closing).await;
    }
}

/// Serves requests from `listener` until `stop` resolves, then returns once every request in flight
/// is answered.
///
/// Then idle connections close at once, while a client that is sending keeps its `client_timeout`.
/// Errors of connections or of accepting are not fatal. When dropped, it stops accepting, but open
/// connections continue.
pub async fn serve(
    listener: TcpListener,
    handle: Handle,
    settings: ServerSettings,
    stop: impl Future<Output = ()>,
) {
    let limits = connections::ConnectionLimits {
        max_connections: settings.limits.max_connections,
        client_timeout: settings.limits.client_timeout,
    };
    let (close, closing) = watch::channel(false);
    let (router, openapi) = routes::router();
    let server = ServerState {
        addresses: addresses::Addresses::default(),
        memory: body::BodyMemory::new(&settings),
        answers: answers::AnswerMemory::new(settings.limits.request_memory),
        users: Mutex::new(Users::default()),
        long_polls: v1::LongPolls::new(settings.limits.max_connections),
        closing,
        openapi,
        refusals: access::Refusals::new(),
        handle,
        settings,
    };
    let tls = server.settings.tls.clone();
    let routes = routes::Routes::new(server, router);
    let stop = async {
        stop.await;
        close.send_replace(true);
    };
    connections::accept(listener, routes, tls, &limits, stop).await;
}
