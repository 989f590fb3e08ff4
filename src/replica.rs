//! The outbound side: one attempt to carry a write to a replica, and what its answer means.
//!
//! It owns the wire to the replicas: the form of a request, the connections, and the reading of
//! answers into a [`Verdict`]. It is the only module that names reqwest.
//!
//! It guarantees that an attempt is bounded, in time by [`Settings::request_timeout`] and in
//! memory by 64 KiB of an answer's body, and that one call of [`Client::send`] is one attempt:
//! redirects are not followed and proxies not used, whatever the environment says. It connects to
//! no address that the [`Policy`] forbids. No error text carries the key, the value, a token or a
//! URL that contains the key.
//!
//! It deliberately does not retry, count, order or remember: that is the engine's. It reads no
//! clock for what it says: the moment of sending comes in as a parameter.
//!
//! Start with [`Client::send`] in `client.rs`; `request.rs` is what goes out, `verdict.rs` the
//! table of what comes back, `causes.rs` what is said where nothing does; `resolver.rs` is where
//! names meet the policy, `names.rs` where they are looked up, `credentials.rs` has certificates and tokens.

use std::time::Duration;

mod causes;
mod client;
mod credentials;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod kept;
mod names;
mod request;
mod resolver;
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
    /// How long one attempt may take, from connecting to the end of the answer.
    pub request_timeout: Duration,
    /// How many connections to one replica are kept open while they have nothing to do.
    pub idle_per_replica: usize,
    /// To how many replicas connections are kept.
    pub idle_replicas: usize,
}
