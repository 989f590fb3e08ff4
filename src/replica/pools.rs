//! The idle connections to the replicas, kept for the next attempt.
//!
//! A connection of HTTP/2 is kept from the start, for the attempts that share it; "closed" means that
//! it takes no more requests, and ends with its last one.
//!
//! A kept connection is closed
//!
//! - after an attempt to its replica without an answer: it may be dead too;
//! - at its maximum age, so that a changed address is followed: a connection in steady use would
//!   live for ever;
//! - after [`IDLE_TIMEOUT`] without a request;
//! - when credentials are reloaded (all of them).
//!
//! Invented replica names that resolve must not use up the process's file descriptors, so
//! connections to at most [`ClientSettings::idle_replicas`] replicas are kept. One more replica
//! takes the place of the one that was idle for the longest time, so that a client with many
//! replicas cannot take the places of replicas that are in use. Each keeps
//! [`ClientSettings::idle_per_replica`] connections and up to a quarter of [`SURPLUS`], which is for
//! all of them: strong writes may need any number at the same time, and one connection for each would
//! cost more than the write.

#![expect(clippy::disallowed_methods, reason = "idle times are local to this module")]

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use super::causes::Unanswered;
use super::client::DRAIN_TIMEOUT;
use super::connection::{Connection, Http1};
use super::http2::{Http2, Http2Use};
use super::resolver::Resolver;
use super::{ClientSettings, ClientTls};
use crate::policy::Target;
use crate::task::Node;

/// Shorter than the idle timeouts of servers and load balancers (60 s and more), so that a request
/// rarely meets a connection that is being closed.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// Kept connections of all replicas beyond [`ClientSettings::idle_per_replica`].
const SURPLUS: usize = 1024;

pub(super) struct Pools {
    settings: Arc<ClientSettings>,
    tls: TlsConnector,
    resolver: Resolver,
    kept: Arc<Mutex<KeptConnections<Http1>>>,
}

impl Pools {
    pub(super) fn new(settings: Arc<ClientSettings>, tls: &ClientTls, resolver: Resolver) -> Self {
        let tls = TlsConnector::from(Arc::new(tls.config(settings.http2)));
        let limits =
            KeptLimits { per_origin: settings.idle_per_replica, origins: settings.idle_replicas };
        let kept = Arc::new(Mutex::new(KeptConnections::new(limits)));
        Self { settings, tls, resolver, kept }
    }

    pub(super) fn take(&self, node: &Node) -> Option<Connection> {
        let now = Instant::now();
        let mut kept = self.kept.lock();
        let most = self.settings.connection_age;
        let is_usable = |shared: &Http2| !shared.has_ended() && !shared.age.is_over(most, now);
        if let Some(shared) = kept.take_shared(origin(node), now, is_usable) {
            return Some(Connection::Http2(shared));
        }
        while let Some(connection) = kept.take(origin(node), now) {
            if !connection.is_closed() && !connection.age.is_over(most, now) {
                return Some(Connection::Http1(connection));
            }
        }
        None
    }

    pub(super) async fn connect(
        &self,
        node: &Node,
        target: &Target,
    ) -> Result<Connection, Unanswered> {
        let addresses = self.resolver.addresses(target).await?;
        let (http2, now) = (self.settings.http2, Instant::now());
        let connection = Connection::open(target, addresses, &self.tls, http2, now).await?;
        if let Connection::Http2(shared) = &connection {
            let mut kept = self.kept.lock();
            kept.share(origin(node), &shared.of, now, Instant::now());
            self.sweep(&mut kept);
        }
        Ok(connection)
    }

    /// Keeps a connection whose last answer was read to its end.
    pub(super) async fn keep_when_free(&self, node: &Node, connection: Connection) {
        let Connection::Http1(mut connection) = connection else { return };
        if !connection.is_reusable(DRAIN_TIMEOUT).await {
            return;
        }
        let now = Instant::now();
        if connection.age.is_over(self.settings.connection_age, now) {
            return;
        }
        let made = connection.age.made;
        let mut kept = self.kept.lock();
        kept.keep(origin(node), connection, made, now);
        self.sweep(&mut kept);
    }

    fn sweep(&self, kept: &mut KeptConnections<Http1>) {
        if !kept.is_swept {
            kept.is_swept = true;
            tokio::spawn(sweep(Arc::downgrade(&self.kept)));
        }
    }

    /// Closes the kept connections to a replica, and those in use when they become free, after an
    /// attempt without an answer.
    pub(super) fn retire(&self, node: &Node) {
        self.kept.lock().retire(origin(node), Instant::now());
    }
}

/// Closes idle connections until none is left.
async fn sweep(kept: Weak<Mutex<KeptConnections<Http1>>>) {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Some(kept) = kept.upgrade() else { return };
        let mut kept = kept.lock();
        kept.close_idle(Instant::now());
        if kept.by_origin.is_empty() {
            kept.is_swept = false;
            return;
        }
    }
}

#[derive(Clone, Copy)]
struct KeptLimits {
    per_origin: usize,
    origins: usize,
}

/// By origin, with the times of each.
struct KeptConnections<C> {
    limits: KeptLimits,
    by_origin: HashMap<Box<str>, KeptOrigin<C>>,
    /// A task closes the idle ones.
    is_swept: bool,
}

struct KeptOrigin<C> {
    /// With the time of the last use, oldest first.
    idle: Vec<(C, Instant)>,
    /// Those of HTTP/2, with the time of the last use, oldest first.
    shared: Vec<(Arc<Http2>, Instant)>,
    used: Instant,
    /// Connections that were made before are not kept.
    retired: Option<Instant>,
}

impl<C> KeptConnections<C> {
    fn new(limits: KeptLimits) -> Self {
        Self { limits, by_origin: HashMap::new(), is_swept: false }
    }

    /// The one that was used last.
    fn take(&mut self, origin: &str, now: Instant) -> Option<C> {
        let kept = self.by_origin.get_mut(origin)?;
        kept.used = now;
        let (connection, used) = kept.idle.pop()?;
        (now - used < IDLE_TIMEOUT).then_some(connection)
    }

    fn keep(&mut self, origin: &str, connection: C, made: Instant, now: Instant) {
        let most = self.limits.per_origin;
        let idle = self.idle(origin);
        let has_room = idle < most || (idle < most + SURPLUS / 4 && self.surplus() < SURPLUS);
        let kept = self.origin(origin, now);
        if !kept.has_retired(made) && has_room {
            kept.idle.push((connection, now));
        }
    }

    fn idle(&self, origin: &str) -> usize {
        self.by_origin.get(origin).map_or(0, |kept| kept.idle.len())
    }

    fn surplus(&self) -> usize {
        let most = self.limits.per_origin;
        self.by_origin.values().map(|kept| kept.idle.len().saturating_sub(most)).sum()
    }

    fn share(&mut self, origin: &str, connection: &Arc<Http2>, made: Instant, now: Instant) {
        let most = self.limits.per_origin;
        let kept = self.origin(origin, now);
        if !kept.has_retired(made) && kept.shared.len() < most {
            kept.shared.push((Arc::clone(connection), now));
        }
    }

    /// A place on the oldest connection that has one. Those that are not usable are let go.
    fn take_shared(
        &mut self,
        origin: &str,
        now: Instant,
        is_usable: impl Fn(&Http2) -> bool,
    ) -> Option<Http2Use> {
        let kept = self.by_origin.get_mut(origin)?;
        kept.used = now;
        kept.close_idle_shared(now);
        kept.shared.retain(|(connection, _)| is_usable(connection));
        kept.shared.iter_mut().find_map(|(connection, used)| {
            let taken = Http2::take(connection)?;
            *used = now;
            Some(taken)
        })
    }

    fn origin(&mut self, origin: &str, now: Instant) -> &mut KeptOrigin<C> {
        if !self.by_origin.contains_key(origin) {
            self.make_room();
        }
        let empty = KeptOrigin { idle: Vec::new(), shared: Vec::new(), used: now, retired: None };
        let kept = self.by_origin.entry(origin.into()).or_insert(empty);
        kept.used = now;
        kept
    }

    fn make_room(&mut self) {
        while self.by_origin.len() >= self.limits.origins.max(1) {
            let oldest = self.by_origin.iter().min_by_key(|(_, kept)| kept.used);
            let Some(oldest) = oldest.map(|(origin, _)| origin.clone()) else { return };
            self.by_origin.remove(&oldest);
        }
    }

    fn retire(&mut self, origin: &str, now: Instant) {
        if let Some(kept) = self.by_origin.get_mut(origin) {
            kept.idle.clear();
            kept.shared.clear();
            kept.retired = Some(now);
        }
    }

    fn close_idle(&mut self, now: Instant) {
        self.by_origin.retain(|_, kept| {
            kept.idle.retain(|(_, used)| now - *used < IDLE_TIMEOUT);
            kept.close_idle_shared(now);
            let is_empty = kept.idle.is_empty() && kept.shared.is_empty();
            !is_empty || now - kept.used < IDLE_TIMEOUT
        });
    }
}

impl<C> KeptOrigin<C> {
    fn has_retired(&self, made: Instant) -> bool {
        self.retired.is_some_and(|retired| made <= retired)
    }

    fn close_idle_shared(&mut self, now: Instant) {
        self.shared
            .retain(|(connection, used)| connection.is_in_use() || now - *used < IDLE_TIMEOUT);
    }
}

/// Scheme, host and port: nodes that differ only in their base path share connections.
fn origin(node: &Node) -> &str {
    let text = node.as_str();
    let host = text.find("://").map_or(0, |at| at + "://".len());
    let end = text.get(host..).and_then(|rest| rest.find('/'));
    end.and_then(|end| text.get(..host + end)).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(origins: usize) -> KeptConnections<u32> {
        KeptConnections::new(KeptLimits { per_origin: 2, origins })
    }

    fn later(from: Instant, seconds: u64) -> Instant {
        from + Duration::from_secs(seconds)
    }

    #[test]
    fn the_connection_that_was_used_last_is_taken_and_idle_ones_are_closed() {
        let (mut kept, start) = (kept(9), Instant::now());
        for (connection, at) in [(1, 0), (2, 20), (3, 21)] {
            kept.keep("a", connection, start, later(start, at));
        }
        kept.close_idle(later(start, 31));
        assert_eq!(kept.take("a", later(start, 31)), Some(3));
        assert_eq!(kept.take("a", later(start, 31)), Some(2));
        assert_eq!(kept.take("a", later(start, 31)), None, "the first was idle for 31 s");
        kept.close_idle(later(start, 62));
        assert!(kept.by_origin.is_empty());
    }

    #[test]
    fn the_connections_beyond_those_of_each_replica_are_limited_for_all_together() {
        let (mut kept, now) = (kept(9), Instant::now());
        for origin in ["a", "b", "c", "d", "e"] {
            (0..SURPLUS).for_each(|_| kept.keep(origin, 0, now, now));
        }
        let each = 2 + SURPLUS / 4;
        let idle = ["a", "b", "c", "d", "e"].map(|origin| kept.idle(origin));
        assert_eq!(idle, [each, each, each, each, 2]);
    }

    #[test]
    fn many_made_up_replicas_do_not_take_the_places_of_those_in_use() {
        let (mut kept, start) = (kept(10), Instant::now());
        for n in 0..1_000 {
            let now = later(start, n);
            if n % 5 == 0 {
                let connection = kept.take("in-use", now);
                assert!(n == 0 || connection.is_some(), "round {n}");
                kept.keep("in-use", 0, start, now);
            }
            kept.keep(&format!("made-up-{n}"), 1, start, now);
            assert!(kept.by_origin.len() <= 10);
        }
    }

    #[test]
    fn a_connection_that_was_made_before_a_failed_attempt_is_not_kept() {
        let (mut kept, start) = (kept(9), Instant::now());
        kept.keep("a", 1, start, start);
        kept.retire("a", later(start, 1));
        assert_eq!(kept.take("a", later(start, 1)), None);
        kept.keep("a", 2, start, later(start, 2));
        assert_eq!(kept.take("a", later(start, 2)), None, "it was in use");
        kept.keep("a", 3, later(start, 2), later(start, 3));
        assert_eq!(kept.take("a", later(start, 3)), Some(3));
    }

    #[test]
    fn base_paths_of_one_origin_share_its_connections() {
        let node = |name: &str| Node::parse(&format!("http://{name}")).unwrap();
        assert_eq!(origin(&node("h:81/a/b")), "http://h:81");
        assert_eq!(origin(&node("[::1]:81")), "http://[::1]:81");
    }
}
