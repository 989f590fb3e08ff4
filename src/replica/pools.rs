//! The connections to the replicas: a pool for each, and when one is replaced.
//!
//! A pool is an HTTP client of its own, for reqwest has no way to close what lies idle in one. It
//! is replaced, so that its idle connections are closed and those in use are closed when they are
//! free,
//!
//! - after an attempt without an answer: what took its connection may have taken the others;
//! - at its age, so that a name that leads elsewhere is followed: connections in steady use live
//!   for ever;
//! - when certificates and tokens are read again, all of them.
//!
//! Each replica that was sent something leaves idle connections behind. Made-up names that all
//! lead somewhere must not use up the process's open files, so there are no more pools than
//! [`Settings::idle_replicas`]; beyond, connections are closed after the answer.
//!
//! An empty pool takes about 25 microseconds to make and 2 KiB. TLS sessions are shared by all.

#![expect(clippy::disallowed_methods, reason = "the age of a connection is no one else's matter")]

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::{ClientBuilder, Response};
use rustls::ClientConfig;
use tokio::time::Instant;

use super::Settings;
use super::causes::{closed_unanswered, local_port};
use super::resolver::Resolver;
use crate::task::Node;

/// How long a connection may lie unused. Shorter than the idle timeouts that servers and
/// balancers have (60 s and more), so that a request seldom meets a connection being closed.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// The pools of all replicas.
pub(super) struct Pools {
    settings: Arc<Settings>,
    tls: ClientConfig,
    resolver: Resolver,
    /// Keeps no connection: each request has a new one.
    spare: Arc<Pool>,
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    by_origin: HashMap<Box<str>, Entry>,
    /// When pools were last looked for that nobody uses.
    cleaned: Option<Instant>,
}

struct Entry {
    pool: Arc<Pool>,
    used: Instant,
}

/// Connections to one replica that were made since the same moment.
pub(super) struct Pool {
    pub(super) http: reqwest::Client,
    keeps: bool,
    until: Option<Instant>,
    /// The local ports of the connections that an answer came over.
    served: Mutex<HashSet<u16>>,
}

impl Pool {
    fn new(http: reqwest::Client, keeps: bool, until: Option<Instant>) -> Self {
        Self { http, keeps, until, served: Mutex::default() }
    }

    /// Whether its connections are used again.
    pub(super) fn keeps(&self) -> bool {
        self.keeps
    }

    /// An answer has come.
    pub(super) fn answered(&self, response: &Response) {
        if self.keeps
            && let Some(port) = local_port(response)
        {
            self.served().insert(port);
        }
    }

    /// Whether the request met the end of a connection that had served another before, without a
    /// byte of an answer: most likely the replica closed it because it was idle.
    pub(super) fn was_idle(&self, error: &reqwest::Error) -> bool {
        closed_unanswered(error).is_some_and(|port| self.served().contains(&port))
    }

    fn has_served(&self) -> bool {
        !self.served().is_empty()
    }

    fn served(&self) -> MutexGuard<'_, HashSet<u16>> {
        // A set of numbers is whole whatever panicked while it was held.
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pools {
    /// None open yet.
    pub(super) fn new(
        settings: Arc<Settings>,
        tls: ClientConfig,
        resolver: Resolver,
    ) -> reqwest::Result<Self> {
        let http = builder(&settings).pool_max_idle_per_host(0);
        let http = http.dns_resolver(resolver.clone()).tls_backend_preconfigured(tls.clone());
        let spare = Arc::new(Pool::new(http.build()?, false, None));
        Ok(Self { settings, tls, resolver, spare, kept: Mutex::default() })
    }

    /// The connections to a replica.
    pub(super) fn of(&self, node: &Node) -> Arc<Pool> {
        let now = Instant::now();
        let mut kept = self.kept();
        if let Some(entry) = kept.by_origin.get_mut(origin(node)) {
            entry.used = now;
            if entry.pool.until.is_some_and(|until| until <= now) {
                entry.pool = self.made(now);
            }
            return Arc::clone(&entry.pool);
        }
        // Looking at all of them once a second is enough.
        if kept.cleaned.is_none_or(|cleaned| now - cleaned >= Duration::from_secs(1)) {
            kept.cleaned = Some(now);
            // Its connections are closed by now or about to be.
            kept.by_origin.retain(|_, entry| now - entry.used <= IDLE_TIMEOUT);
        }
        if kept.by_origin.len() >= self.settings.idle_replicas {
            return Arc::clone(&self.spare);
        }
        let pool = self.made(now);
        let entry = Entry { pool: Arc::clone(&pool), used: now };
        kept.by_origin.insert(origin(node).into(), entry);
        pool
    }

    /// For a request that needs a connection of its own, made for it.
    pub(super) fn unshared(&self) -> Arc<Pool> {
        Arc::clone(&self.spare)
    }

    /// An attempt over `failed` had no answer: what lies idle in it is not used again.
    pub(super) fn retire(&self, node: &Node, failed: &Arc<Pool>) {
        if !failed.has_served() {
            return; // Nothing lies idle.
        }
        let now = Instant::now();
        // Another attempt may have been first.
        if let Some(entry) = self.kept().by_origin.get_mut(origin(node))
            && Arc::ptr_eq(&entry.pool, failed)
        {
            entry.pool = self.made(now);
        }
    }

    fn made(&self, now: Instant) -> Arc<Pool> {
        let tls = self.tls.clone();
        let http = builder(&self.settings).pool_max_idle_per_host(self.settings.idle_per_replica);
        let http = http.dns_resolver(self.resolver.clone()).tls_backend_preconfigured(tls).build();
        match http {
            Ok(http) => Arc::new(Pool::new(http, true, self.until(now))),
            // The spare one is made of the same.
            Err(_) => Arc::clone(&self.spare),
        }
    }

    /// When connections that are made from `now` on are too old: up to a fifth earlier than asked
    /// for, so that not all replicas are connected to at once.
    fn until(&self, now: Instant) -> Option<Instant> {
        let age = self.settings.connection_age;
        (!age.is_zero()).then(|| now + age.mul_f64(0.8 + 0.2 * fastrand::f64()))
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Each entry is whole whatever panicked while it was held.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Scheme, host and port: a base path is no other connection.
fn origin(node: &Node) -> &str {
    let text = node.as_str();
    let host = text.find("://").map_or(0, |at| at + "://".len());
    let end = text.get(host..).and_then(|rest| rest.find('/'));
    end.and_then(|end| text.get(..host + end)).unwrap_or(text)
}

/// What all clients have in common, whatever certificates they trust. The time of an attempt is
/// bounded by [`Patience`](super::patience::Patience).
///
/// An answer that breaks the rules in a way that others read all the same is read: the write was
/// applied, and to refuse the answer makes a dead letter of it.
pub(super) fn builder(settings: &Settings) -> ClientBuilder {
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

    use super::super::names::Times;
    use super::super::resolver::system;
    use super::super::{Tls, install_crypto};
    use super::*;
    use crate::policy::Policy;

    fn pools(idle_replicas: usize, connection_age: Duration) -> Pools {
        install_crypto();
        let settings = Settings {
            node_id: "r".into(),
            request_timeout: Duration::from_secs(5),
            connection_age,
            idle_per_replica: 1,
            idle_replicas,
        };
        let resolver = Resolver::new(
            Policy::new(None, None),
            system(),
            Times::default(),
            Duration::from_secs(5),
        );
        Pools::new(Arc::new(settings), Tls::default().config(), resolver).unwrap()
    }

    fn node(name: &str) -> Node {
        Node::parse(&format!("http://{name}")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn connections_are_kept_to_so_many_replicas_and_no_more() {
        let pools = pools(2, Duration::ZERO);
        let keeps = |name| pools.of(&node(name)).keeps();
        assert!(keeps("a") && keeps("b"));
        assert!(!keeps("c") && !keeps("d"));
        advance(Duration::from_secs(20)).await;
        assert!(keeps("a"), "as before");
        advance(Duration::from_secs(9)).await;
        assert!(!keeps("c"), "b's connections are not idle for long enough");
        advance(Duration::from_secs(2)).await;
        assert!(keeps("c"), "b's connections are closed");
        assert!(!keeps("b") && keeps("a"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pool_is_replaced_when_it_is_old_and_not_all_at_once() {
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
