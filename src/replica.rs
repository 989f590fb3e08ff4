//! The outbound side: one attempt to send a write to a replica, and the verdict of its answer.
//!
//! It owns the request format, the connections and the reading of answers into a [`Verdict`].
//!
//! One call of [`ReplicaClient::send`] is one attempt. It is bounded in time by
//! [`ClientSettings::request_timeout`] (a large body may take longer while it makes progress) and
//! in memory by 64 KiB each of the answer's head, of what comes before it, and of its body (with
//! HTTP/2, that much for all requests of a connection together). It follows no redirect, uses no proxy, and never
//! connects to an address that the [`Policy`] forbids. Error texts never contain the key, the value,
//! a token or a URL.
//!
//! It does not retry, count or order: the engine does. Start with `client.rs`.

use std::time::Duration;

mod age;
mod bounded;
mod causes;
mod client;
mod connection;
mod credentials;
mod fenced;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod http2;
mod names;
mod patience;
mod pools;
mod quote;
mod request;
mod resolver;
mod upload;
mod verdict;

#[cfg(test)]
mod tests;

pub(crate) use causes::{
    OtherProtocol, TlsPeer, certificate_problem, never_written, other_protocol,
};
pub use client::read::{ReadValue, ValueLimit};
pub use client::{ReplicaClient, ReplicaClientError, http_client, install_crypto};
pub use credentials::{ClientTls, ClientTlsError, ReplicaTokens, ReplicaTokensError};

#[cfg(doc)]
use crate::{policy::Policy, task::Verdict};

/// To which replicas HTTP/2 is spoken, many requests on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaHttp2 {
    Off,
    /// To `https` replicas that choose it in the TLS handshake.
    Auto,
    /// Also to each `http` replica, without asking.
    PriorKnowledge,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientSettings {
    pub node_id: String,
    /// Limit for one attempt, from connecting to the end of the answer. With a large body, the
    /// limit for a time without progress.
    pub request_timeout: Duration,
    /// Zero means no limit.
    pub connection_age: Duration,
    pub idle_per_replica: usize,
    pub idle_replicas: usize,
    pub http2: ReplicaHttp2,
}
