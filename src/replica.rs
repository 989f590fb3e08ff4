//! The outbound side: one attempt to carry a write to a replica, and what its answer means.
//!
//! It owns the wire to the replicas: the form of a request, the connections, and the reading of
//! answers into a [`Verdict`]. It is the only module that names reqwest.
//!
//! It guarantees that an attempt is bounded, in time by [`Settings::request_timeout`] (a large body
//! may take longer as long as it makes progress) and in memory by 64 KiB of an answer's body, and
//! that one call of [`Client::send`] is one attempt: redirects are not followed and proxies not
//! used, whatever the environment says. A request that meets the end of an idle connection is
//! repeated once within the attempt, on a new connection. It connects to
//! no address that the [`Policy`] forbids. No error text carries the key, the value, a token or a
//! URL that contains the key.
//!
//! It deliberately does not retry, count, order or remember: that is the engine's. It reads no
//! clock for what it sends: the moment of sending comes in as a parameter.
//!
//! Start with [`Client::send`] in `client.rs`; `request.rs` is what goes out, `verdict.rs` the
//! table of what comes back, `causes.rs` what is said where nothing does; `patience.rs` bounds the
//! time, `upload.rs` shows how far a large body has come, `pools.rs` keeps the connections;
//! `resolver.rs` is where names meet the policy, `names.rs` where they are looked up;
//! `credentials.rs` has certificates and tokens.

use std::time::Duration;

mod causes;
mod client;
mod credentials;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod names;
mod patience;
mod pools;
mod request;
mod resolver;
mod upload;
mod verdict;

#[cfg(test)]
mod tests;

pub(crate) use causes::{Peer, certificate as wrong_certificate, never_written};
pub use client::{Client, ClientError, install_crypto};
pub use credentials::{Tls, TlsError, Tokens, TokensError};
pub use request::go_duration;

#[cfg(doc)]
use crate::{policy::Policy, task::Verdict};

/// What a [`Client`] needs to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The name of this replicator, the first part of every `X-Replication-Id`.
    pub node_id: String,
    /// How long one attempt may take, from connecting to the end of the answer; with a large body,
    /// how long it may take without progress.
    pub request_timeout: Duration,
    /// The greatest age of a connection that is used again; zero is no limit.
    pub connection_age: Duration,
    /// How many connections to one replica are kept open while they have nothing to do.
    pub idle_per_replica: usize,
    /// To how many replicas connections are kept.
    pub idle_replicas: usize,
}
