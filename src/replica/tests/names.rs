//! Names and the policy, with a resolver that the test controls.

use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::super::names::{Lookup, LookupTimes};
use super::*;
use crate::policy::Rule;

/// A lookup before every connection, which is never slow.
const UNCACHED: LookupTimes = LookupTimes { fresh: Duration::ZERO, slow: Duration::from_secs(120) };

const CLOSING: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn rules(rules: &[&str]) -> Option<Vec<Rule>> {
    Some(rules.iter().map(|rule| rule.parse().unwrap()).collect())
}

fn looking_up(policy: &Policy, lookup: Lookup) -> ReplicaClient {
    let settings = settings(Duration::from_secs(120));
    let (tls, tokens) = (ClientTls::default(), ReplicaTokens::default());
    ReplicaClient::resolving(&settings, policy.clone(), tls, tokens, (lookup, UNCACHED)).unwrap()
}

/// A lookup that returns `answers` in turn, then the last one, and the number of its calls.
fn answering(answers: Vec<Vec<IpAddr>>) -> (Lookup, Arc<AtomicUsize>) {
    let lookups = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&lookups);
    let lookup = move |_: &str| {
        let at = count.fetch_add(1, Ordering::SeqCst);
        Ok(answers.get(at).or(answers.last()).unwrap().clone())
    };
    (Arc::new(lookup), lookups)
}

/// The address of the peer with another host name.
fn named(peer: &Peer, name: &str) -> Node {
    Node::parse(&peer.node.as_str().replace("127.0.0.1", name)).unwrap()
}

fn port(peer: &Peer) -> &str {
    peer.node.as_str().rsplit(':').next().unwrap()
}

async fn attempt(client: &ReplicaClient, node: &Node) -> AttemptOutcome {
    client.send(node, &set("private-key", b"v"), None, NOW, &Fence::Open).await
}

async fn send(client: &ReplicaClient, node: &Node) -> Verdict {
    attempt(client, node).await.verdict
}

#[tokio::test]
async fn a_name_that_is_rebound_to_a_blocked_address_is_rejected() {
    let mut peer = Peer::answering(CLOSING).await;
    let (lookup, lookups) = answering(vec![vec![ip("127.0.0.1")], vec![ip("169.254.169.254")]]);
    let client = looking_up(&Policy::new(rules(&["rebound.example"]), None), lookup);
    let node = named(&peer, "rebound.example");
    assert_eq!(send(&client, &node).await, Verdict::Delivered);
    peer.seen();
    for _ in 0..2 {
        let error = rejected_text(send(&client, &node).await);
        assert_eq!(
            &*error,
            "not sent: the replica resolves to 169.254.169.254, a link-local address, which is always blocked"
        );
    }
    assert_eq!(lookups.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn a_name_that_is_rebound_out_of_an_allowed_range_is_rejected() {
    let mut peer = Peer::answering(CLOSING).await;
    let (lookup, _) = answering(vec![vec![ip("127.0.0.1")], vec![ip("127.0.1.1")]]);
    let range = format!("127.0.0.0/24:{}", port(&peer));
    let client = looking_up(&Policy::new(rules(&[&range]), None), lookup);
    let node = named(&peer, "rebound.example");
    assert_eq!(send(&client, &node).await, Verdict::Delivered);
    peer.seen();
    let error = rejected_text(send(&client, &node).await);
    assert!(error.contains("resolves to 127.0.1.1, which is not allowed by"), "{error}");
    assert!(peer.requests.try_recv().is_err());
}

#[tokio::test]
async fn only_the_allowed_addresses_of_a_name_are_used() {
    let mut peer = Peer::answering(OK).await;
    let all = ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "127.0.0.1"].map(ip);
    let (lookup, _) = answering(vec![all.to_vec()]);
    let client = looking_up(&Policy::new(None, None), lookup);
    assert_eq!(send(&client, &named(&peer, "many.example")).await, Verdict::Delivered);
    peer.seen();
}

#[tokio::test]
async fn a_range_allows_only_its_ports_even_with_concurrent_attempts() {
    let good = Peer::answering(CLOSING).await;
    let mut bad = Peer::answering(CLOSING).await;
    let (lookup, _) = answering(vec![vec![ip("127.0.0.1")]]);
    // The second rule admits the name at the port of `bad`, but only the first allows its address.
    let rules =
        rules(&[&format!("127.0.0.0/8:{}", port(&good)), &format!("10.0.0.0/8:{}", port(&bad))]);
    let client = looking_up(&Policy::new(rules, None), lookup);
    let (to_good, to_bad) = (named(&good, "db.example"), named(&bad, "db.example"));
    let attempts = (0..40).map(|n| {
        let (client, node) = (client.clone(), if n % 2 == 0 { &to_good } else { &to_bad }.clone());
        tokio::spawn(async move { (n % 2 == 0, send(&client, &node).await) })
    });
    for attempt in attempts.collect::<Vec<_>>() {
        match attempt.await.unwrap() {
            (true, verdict) => assert_eq!(verdict, Verdict::Delivered),
            (false, verdict) => assert!(rejected_text(verdict).contains("resolves to 127.0.0.1")),
        }
    }
    assert!(bad.requests.try_recv().is_err());
}

#[tokio::test]
async fn a_forbidden_address_is_neither_looked_up_nor_connected_to() {
    let mut peer = Peer::answering(OK).await;
    let (lookup, lookups) = answering(vec![vec![ip("127.0.0.1")]]);
    let client = looking_up(&Policy::new(rules(&["10.0.0.0/8"]), None), lookup);
    for host in ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "[::ffff:127.0.0.1]"] {
        let error = rejected_text(send(&client, &named(&peer, host)).await);
        assert!(error.starts_with("not sent: the replica is not allowed by"), "{host}: {error}");
    }
    assert_eq!(lookups.load(Ordering::SeqCst), 0);
    assert!(peer.requests.try_recv().is_err());
}

#[tokio::test]
async fn replaced_rules_hold_for_open_connections() {
    let peer = Peer::answering(OK).await;
    let (lookup, _) = answering(vec![vec![ip("127.0.0.1")]]);
    let policy = Policy::new(rules(&["127.0.0.0/8"]), None);
    let client = looking_up(&policy, lookup);
    let node = named(&peer, "db.example");
    assert_eq!(send(&client, &node).await, Verdict::Delivered);
    // The name is still admitted, so only a new connection finds the address forbidden.
    policy.replace(rules(&["10.0.0.0/8"]));
    client.renew(None, None);
    assert!(rejected_text(send(&client, &node).await).contains("resolves to 127.0.0.1"));
    policy.replace(rules(&["other.example"]));
    assert!(rejected_text(send(&client, &node).await).contains("is not allowed by"));
}

#[tokio::test]
async fn a_failed_lookup_is_retried_and_reported_without_the_key() {
    let peer = Peer::answering(OK).await;
    let lookup: Lookup = Arc::new(|_| Err(std::io::Error::other("the name server is down")));
    let client = looking_up(&Policy::new(None, None), lookup);
    let AttemptOutcome { verdict, ambiguous, .. } =
        attempt(&client, &named(&peer, "db.example")).await;
    assert!(matches!(verdict, Verdict::Retry { .. }) && !ambiguous, "{verdict:?}");
    let error = retry_text(verdict);
    assert!(error.contains("the name server is down"), "{error}");
    assert!(!error.contains("private-key"), "{error}");
}

#[tokio::test]
async fn a_name_server_that_hangs_only_times_out_the_attempt() {
    let peer = Peer::answering(OK).await;
    let (release, released) = std::sync::mpsc::channel::<()>();
    let released = Mutex::new(released);
    let lookup: Lookup = Arc::new(move |_| {
        // Blocks until the test ends.
        let _ = released.lock().recv();
        Ok(vec![ip("127.0.0.1")])
    });
    let request_timeout = Duration::from_millis(200);
    let settings = ClientSettings { idle_per_replica: 1, ..settings(request_timeout) };
    let (policy, tls, tokens) =
        (Policy::new(None, None), ClientTls::default(), ReplicaTokens::default());
    let client =
        ReplicaClient::resolving(&settings, policy, tls, tokens, (lookup, UNCACHED)).unwrap();
    let AttemptOutcome { verdict, ambiguous, .. } =
        attempt(&client, &named(&peer, "db.example")).await;
    drop(release);
    assert!(matches!(verdict, Verdict::Retry { .. }) && !ambiguous, "{verdict:?}");
}

#[tokio::test]
async fn the_policy_also_checks_a_cached_answer() {
    let peer = Peer::answering(CLOSING).await;
    let (lookup, lookups) = answering(vec![vec![ip("127.0.0.1")]]);
    let policy = Policy::new(rules(&["127.0.0.0/8"]), None);
    let (tls, tokens) = (ClientTls::default(), ReplicaTokens::default());
    let times = LookupTimes { fresh: Duration::from_secs(3600), ..UNCACHED };
    let settings = settings(Duration::from_secs(120));
    let client =
        ReplicaClient::resolving(&settings, policy.clone(), tls, tokens, (lookup, times)).unwrap();
    let node = named(&peer, "db.example");
    assert_eq!(send(&client, &node).await, Verdict::Delivered);
    policy.replace(rules(&["10.0.0.0/8"]));
    assert!(rejected_text(send(&client, &node).await).contains("resolves to 127.0.0.1"));
    assert_eq!(lookups.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_lack_of_local_resources_is_not_a_failure_of_the_replica() {
    let peer = Peer::answering(OK).await;
    for errno in [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM] {
        let lookup: Lookup = Arc::new(move |_| Err(std::io::Error::from_raw_os_error(errno)));
        let client = looking_up(&Policy::new(None, None), lookup);
        let verdict = send(&client, &named(&peer, "db.example")).await;
        let Verdict::Shortage { error } = verdict else { panic!("{verdict:?}") };
        assert!(error.contains("short of resources"), "{error}");
    }
}

#[tokio::test]
async fn an_address_without_a_route_is_a_failure_of_the_replica() {
    let peer = Peer::answering(OK).await;
    let lookup: Lookup = Arc::new(|_| Err(std::io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)));
    // The name has no address, so there is no route to one.
    let client = looking_up(&Policy::new(None, None), lookup);
    let AttemptOutcome { verdict, ambiguous, .. } =
        attempt(&client, &named(&peer, "db.example")).await;
    assert!(matches!(verdict, Verdict::Retry { .. }) && !ambiguous, "{verdict:?}");
}

#[tokio::test]
async fn a_token_is_sent_only_to_its_replica() {
    let (mut ours, mut other) = (Peer::answering(OK).await, Peer::answering(OK).await);
    let request_timeout = Duration::from_secs(120);
    let settings = ClientSettings { idle_per_replica: 1, ..settings(request_timeout) };
    let tokens = |token| ReplicaTokens::parse(&format!("{} {token}", ours.node)).unwrap();
    let policy = Policy::new(None, None);
    let client =
        ReplicaClient::new(&settings, policy, ClientTls::default(), tokens("one")).unwrap();
    send(&client, &ours.node).await;
    send(&client, &other.node).await;
    let renewed = tokens("two");
    assert_eq!(header(&ours.seen().1, "authorization"), Some("Bearer one"));
    assert_eq!(header(&other.seen().1, "authorization"), None);
    client.renew(None, Some(renewed));
    send(&client, &ours.node).await;
    assert_eq!(header(&ours.seen().1, "authorization"), Some("Bearer two"));
}
