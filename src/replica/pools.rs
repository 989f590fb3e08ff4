//! The connections to the replicas: one pool each, and when it is replaced.
//!
//! A pool is its own HTTP client, because reqwest cannot close idle connections. Replacing it
//! closes the idle ones at once and those in use when they become free. A pool is replaced
//!
//! - after an attempt without an answer: its other connections may be dead too;
//! - at its maximum age, so that a changed address is followed: a connection in steady use would
//!   live for ever;
//! - when credentials are reloaded (all pools).
//!
//! Invented replica names that resolve must not use up the process's file descriptors, so there are
//! at most [`ClientSettings::idle_replicas`] pools. Beyond that, connections close after the answer.
//!
//! A new pool costs 25 µs and 2 KiB. All pools share TLS sessions.

#![expect(clippy::disallowed_methods, reason = "the age of connections is local to this module")]

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::{ClientBuilder, Response};
use rustls::ClientConfig;
use tokio::time::Instant;

use super::ClientSettings;
use super::causes::{closed_unanswered, local_port};
use super::resolver::Resolver;
use crate::task::Node;

/// Shorter than the idle timeouts of servers and load balancers (60 s and more), so that a request
/// rarely meets a connection that is being closed.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

pub(super) struct Pools {
    settings: Arc<ClientSettings>,
    tls: ClientConfig,
    resolver: Resolver,
    spare: Arc<Pool>,
    table: Mutex<PoolTable>,
}

#[derive(Default)]
struct PoolTable {
    by_origin: HashMap<Box<str>, PoolEntry>,
    cleaned: Option<Instant>,
}

struct PoolEntry {
    pool: Arc<Pool>,
    used: Instant,
}

pub(super) struct Pool {
    pub(super) http: reqwest::Client,
    keeps_alive: bool,
    expires: Option<Instant>,
    /// Local ports of the connections that have carried an answer.
    served: Mutex<HashSet<u16>>,
}

impl Pool {
    fn new(http: reqwest::Client, keeps_alive: bool, expires: Option<Instant>) -> Self {
        Self { http, keeps_alive, expires, served: Mutex::default() }
    }

    pub(super) fn keeps_alive(&self) -> bool {
        self.keeps_alive
    }

    pub(super) fn answered(&self, response: &Response) {
        if self.keeps_alive
            && let Some(port) = local_port(response)
        {
            self.served().insert(port);
        }
    }

    /// Whether the connection had served an earlier request and ended without a byte of an answer:
    /// most likely the replica closed it because it was idle.
    pub(super) fn was_idle(&self, error: &reqwest::Error) -> bool {
        closed_unanswered(error).is_some_and(|port| self.served().contains(&port))
    }

    fn has_served(&self) -> bool {
        !self.served().is_empty()
    }

    fn served(&self) -> MutexGuard<'_, HashSet<u16>> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pools {
    pub(super) fn new(
        settings: Arc<ClientSettings>,
        tls: ClientConfig,
        resolver: Resolver,
    ) -> reqwest::Result<Self> {
        let http = builder(&settings).pool_max_idle_per_host(0);
        let http = http.dns_resolver(resolver.clone()).tls_backend_preconfigured(tls.clone());
        let spare = Arc::new(Pool::new(http.build()?, false, None));
        Ok(Self { settings, tls, resolver, spare, table: Mutex::default() })
    }

    pub(super) fn of(&self, node: &Node) -> Arc<Pool> {
        let now = Instant::now();
        let mut table = self.table();
        if let Some(entry) = table.by_origin.get_mut(origin(node)) {
            entry.used = now;
            if entry.pool.expires.is_some_and(|expires| expires <= now) {
                entry.pool = self.make(now);
            }
            return Arc::clone(&entry.pool);
        }
        // Walks all entries, so at most once a second.
        if table.cleaned.is_none_or(|cleaned| now - cleaned >= Duration::from_secs(1)) {
            table.cleaned = Some(now);
            table.by_origin.retain(|_, entry| now - entry.used <= IDLE_TIMEOUT);
        }
        if table.by_origin.len() >= self.settings.idle_replicas {
            return Arc::clone(&self.spare);
        }
        let pool = self.make(now);
        let entry = PoolEntry { pool: Arc::clone(&pool), used: now };
        table.by_origin.insert(origin(node).into(), entry);
        pool
    }

    /// For a request that needs a new connection.
    pub(super) fn unshared(&self) -> Arc<Pool> {
        Arc::clone(&self.spare)
    }

    /// Stops reuse of the idle connections of `failed`, over which an attempt had no answer.
    pub(super) fn retire(&self, node: &Node, failed: &Arc<Pool>) {
        if !failed.has_served() {
            return; // It has no idle connection.
        }
        let now = Instant::now();
        // Another attempt may have replaced it already.
        if let Some(entry) = self.table().by_origin.get_mut(origin(node))
            && Arc::ptr_eq(&entry.pool, failed)
        {
            entry.pool = self.make(now);
        }
    }

    fn make(&self, now: Instant) -> Arc<Pool> {
        let tls = self.tls.clone();
        let http = builder(&self.settings).pool_max_idle_per_host(self.settings.idle_per_replica);
        let http = http.dns_resolver(self.resolver.clone()).tls_backend_preconfigured(tls).build();
        match http {
            Ok(http) => Arc::new(Pool::new(http, true, self.expiry(now))),
            // Does not happen: the spare pool was built from the same parts.
            Err(_) => Arc::clone(&self.spare),
        }
    }

    /// Jitter of up to a fifth, so that the replicas are not all reconnected to at once.
    fn expiry(&self, now: Instant) -> Option<Instant> {
        let age = self.settings.connection_age;
        (!age.is_zero()).then(|| now + age.mul_f64(0.8 + 0.2 * fastrand::f64()))
    }

    fn table(&self) -> MutexGuard<'_, PoolTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Scheme, host and port: nodes that differ only in their base path share connections.
fn origin(node: &Node) -> &str {
    let text = node.as_str();
    let host = text.find("://").map_or(0, |at| at + "://".len());
    let end = text.get(host..).and_then(|rest| rest.find('/'));
    end.and_then(|end| text.get(..host + end)).unwrap_or(text)
}

/// No total timeout: [`Patience`](super::patience::Patience) bounds the time of an attempt.
/// Malformed headers that other clients accept are accepted: the write was applied, and a rejected
/// answer would make it a dead letter.
pub(super) fn builder(settings: &ClientSettings) -> ClientBuilder {
    reqwest::Client::builder()
        .connect_timeout(settings.request_timeout)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .http1_allow_obsolete_multiline_headers_in_responses(true)
        .http1_allow_spaces_after_header_name_in_responses(true)
        .http1_ignore_invalid_headers_in_responses(true)
        .tcp_nodelay(true)
        .no_proxy()
        .referer(false)
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::super::names::LookupTimes;
    use super::super::resolver::system;
    use super::super::{ClientTls, install_crypto};
    use super::*;
    use crate::policy::Policy;

    fn pools(idle_replicas: usize, connection_age: Duration) -> Pools {
        install_crypto();
        let settings = ClientSettings {
            node_id: "r".into(),
            request_timeout: Duration::from_secs(5),
            connection_age,
            idle_per_replica: 1,
            idle_replicas,
        };
        let resolver = Resolver::new(
            Policy::new(None, None),
            system(),
            LookupTimes::default(),
            Duration::from_secs(5),
        );
        Pools::new(Arc::new(settings), ClientTls::default().config(), resolver).unwrap()
    }

    fn node(name: &str) -> Node {
        Node::parse(&format!("http://{name}")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn idle_connections_are_kept_for_a_limited_number_of_replicas() {
        let pools = pools(2, Duration::ZERO);
        let keeps = |name| pools.of(&node(name)).keeps_alive();
        assert!(keeps("a") && keeps("b"));
        assert!(!keeps("c") && !keeps("d"));
        advance(Duration::from_secs(20)).await;
        assert!(keeps("a"), "a has kept its pool");
        advance(Duration::from_secs(9)).await;
        assert!(!keeps("c"), "the connections of b are not yet idle for 30 s");
        advance(Duration::from_secs(2)).await;
        assert!(keeps("c"), "the connections of b are closed");
        assert!(!keeps("b") && keeps("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn pools_are_replaced_at_their_maximum_age_and_not_all_at_once() {
        let pools = pools(100, Duration::from_secs(60));
        let names: Vec<_> = (0..50).map(|n| node(&format!("n{n}"))).collect();
        let first: Vec<_> = names.iter().map(|name| pools.of(name)).collect();
        let same = || {
            let now = names.iter().map(|name| pools.of(name));
            now.zip(&first).filter(|(now, first)| Arc::ptr_eq(now, first)).count()
        };
        advance(Duration::from_secs(47)).await;
        assert_eq!(same(), 50);
        advance(Duration::from_secs(7)).await;
        assert!((1..50).contains(&same()), "{} of 50", same());
        advance(Duration::from_secs(6)).await;
        assert_eq!(same(), 0);
    }

    #[test]
    fn base_paths_of_one_origin_share_its_connections() {
        assert_eq!(origin(&node("h:81/a/b")), "http://h:81");
        assert_eq!(origin(&node("[::1]:81")), "http://[::1]:81");
    }
}
